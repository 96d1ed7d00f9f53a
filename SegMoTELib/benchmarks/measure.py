"""Timing and memory of callables, measured in turns so that a busy machine hits all of them alike."""

from __future__ import annotations

import contextlib
import platform
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch
from torch.nn.functional import linear

from SegMoTELib import __version__
from SegMoTELib.interaction.devices import cpu_flags, cpu_name

GEMM_SHAPE = (4096, 768, 3072)  # tokens x width x hidden width of ViT-B at 1024 px


def medians(calls: dict[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of every call; calls take turns, so that load from elsewhere falls on all of them."""
    for _ in range(warmup):
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(function: Callable[..., None], *arguments: object) -> float:
    """Peak resident memory in MiB that a call adds, in a fresh process of its own.

    The function is called as ``function(mark, *arguments)`` and calls ``mark()`` when its set-up (imports, weights) is
    done.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_memory, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _measure_memory(sender, function: Callable[..., None], arguments: tuple) -> None:
    before = 0.0

    def mark() -> None:
        nonlocal before
        before = _restart_peak()

    function(mark, *arguments)
    sender.send(_peak_mib() - before)


def _restart_peak() -> float:
    """Let the peak start from now where the system allows it (Linux); returns it in MiB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_mib()


def _peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # Linux carries ru_maxrss over from the parent process; VmHWM does not
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2 ** 10
    if platform.system() == "Windows":
        return psutil.Process().memory_info().peak_wset / 2 ** 20
    import resource  # which Windows does not have

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** 20 if platform.system() == "Darwin" else peak / 2 ** 10


def gemm_peak(dtype: torch.dtype, repeats: int = 7) -> float:
    """Best GFLOP/s of the encoder's largest matrix product on this machine, now."""
    rows, inner, columns = GEMM_SHAPE
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    linear(a, b)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        linear(a, b)
        times.append(time.perf_counter() - started)
    return 2 * rows * inner * columns / min(times) / 1e9


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    flags = sorted(flag for flag in cpu_flags() if flag.startswith(("amx", "avx512_bf16", "avx512_fp16", "avx2")))
    return {"segmote": __version__, "python": platform.python_version(), "torch": torch.__version__,
            "cpu": cpu_name(), "cpu_features": flags, "threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
