"""Which device and precision to compute with, in one place and with honest words."""

from __future__ import annotations

import platform
import re
from functools import lru_cache
from pathlib import Path

import torch

from SegMoTELib.errors import SegMoTEError

# PyTorch raises a plain RuntimeError where MPS or the CPU have no more memory.
GPU_FULL = re.compile("CUDA error: out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED")  # not always of its own kind
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_device(wanted: str = "auto") -> torch.device:
    """Return the device to use: CUDA, else MPS, else CPU; or the wanted one ("cuda:1", "mps", "cpu").

    Raises:
        SegMoTEError: the wanted device does not exist here.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise SegMoTEError(f"{wanted!r} is not a device; use auto, cpu, cuda, cuda:N or mps.") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, False) or (
            device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise SegMoTEError(f"device {wanted!r} is not available on this machine; use 'auto' or 'cpu'.")
    return device


def choose_precision(device: torch.device, wanted: str = "auto") -> torch.dtype:
    """Return the dtype to compute in: fp16 on CUDA; bf16 on CPUs with matrix units for it (AMX); otherwise fp32.

    CPUs with bf16 instructions but without AMX gain nothing: their fp32 products are as fast.

    Raises:
        SegMoTEError: unknown precision.
    """
    if wanted != "auto":
        if wanted not in PRECISIONS:
            raise SegMoTEError(f"{wanted!r} is not a precision; use auto, {', '.join(PRECISIONS)}.")
        return PRECISIONS[wanted]
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if device.type == "cpu" and "amx_bf16" in cpu_flags() else torch.float32


def describe(device: torch.device, dtype: torch.dtype) -> str:
    """One line for a status bar, e.g. "CPU (Intel Xeon, 2 threads), fp32"."""
    precision = next(name for name, value in PRECISIONS.items() if value == dtype)
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision}"
    name = cpu_name() if device.type == "cpu" else platform.processor()
    return f"{device.type.upper()} ({name}, {torch.get_num_threads()} threads), {precision}"


def out_of_memory(error: Exception) -> str:
    """What to do where an error says that memory ran out, as one sentence; "" for any other error."""
    if isinstance(error, torch.cuda.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and GPU_FULL.search(str(error))):
        return "The GPU's memory ran out; choose the CPU as device, or a smaller model."
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        return "The memory ran out; close other volumes and programs, or choose a smaller model."
    return ""


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """CPU feature flags as Linux reports them; empty on other systems."""
    return frozenset(_cpu_info("flags").split())


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """Marketing name of the CPU, or the architecture where the system does not tell."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(field: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")
