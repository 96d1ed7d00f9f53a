"""What the commands for volumes share: options, opening, masks into a file, results, a progress bar."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from SegMoTELib.cli import completion

if TYPE_CHECKING:
    from SegMoTELib.imaging.stacks import PlaneStack
    from SegMoTELib.imaging.volume import Volume
    from SegMoTELib.interaction.carrying import Crop
    from SegMoTELib.interaction.session import Session

POSITION = re.compile(r"[-+.\d][-+.\deE]*(,\s*[-+.\deE]+)+$")  # it may start with a minus sign
MAPPINGS = ("percentiles", "ct_soft_tissue", "ct_lung", "ct_bone", "ct_brain")
PLANES = ("axial", "sagittal", "coronal")


class PositionsCommand(click.Command):
    """A command whose options for positions may be followed by several: ``--point 1,2,3 -4,5,6``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat such an option before each further position."""
        repeatable = {name for one in self.params if getattr(one, "multiple", False) for name in one.opts}
        spelled: list[str] = []
        option = ""  # the option whose positions are being read
        for argument in args:
            if not POSITION.match(argument):
                name = argument.split("=")[0]
                option = name if name in repeatable else ""
            elif option and spelled[-1] != option:
                spelled.append(option)
            spelled.append(argument)
        return super().parse_args(ctx, spelled)


class SegmentName(click.ParamType):
    """Text that a file can hold."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{value!r} has characters of another encoding than the terminal's.", param, ctx)
        return value


def volume_argument(command):
    """VOLUME, a file or folder that is there."""
    return click.argument("volume_path", metavar="VOLUME", type=click.Path(exists=True, path_type=Path))(command)


def common_options(command):
    """--intensity, --model, --device and --keep-embeddings."""
    for option in (
            click.option("--keep-embeddings", is_flag=True,
                         help="Keep embeddings on disk for the next time (segmote cache shows and clears them)."),
            click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu."),
            click.option("--model", default="segmote-tiny", show_default=True, metavar="NAME|PATH", help="Weights.",
                         shell_complete=completion.models(bool, files=True)),
            click.option("--intensity", default="percentiles", show_default=True, type=click.Choice(MAPPINGS),
                         help="Which values become black and white.")):
        command = option(command)
    return command


def output_option(command):
    """-o, refused before any work if its ending is none we write."""
    def checked(ctx: click.Context, param: click.Parameter, path: Path) -> Path:
        from SegMoTELib.imaging.files import check_output

        check_output(path)
        return path

    return click.option("-o", "--output", required=True, type=click.Path(path_type=Path), callback=checked,
                        metavar="FILE", help="Segmentation to write: .seg.nrrd (for Slicer), .dcm (DICOM SEG, of "
                        "a VOLUME from DICOM) or .nii.gz (label map).")(command)


def json_option(command):
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def tell(result: dict, words: str, as_json: bool) -> None:
    """Print a result, in words or as JSON, and its "warnings" to standard error."""
    click.echo(json.dumps(result, indent=2) if as_json else words)
    for warning in result["warnings"]:
        click.echo(f"segmote: {warning}", err=True)


def measured(output: Path, name: str, mask: np.ndarray, volume: Volume) -> dict:
    """What every result tells: file, segment, voxels, millilitres, and a place for more."""
    return {"output": str(output), "segment": name, "voxels": int(np.count_nonzero(mask)),
            "millilitres": round(millilitres(mask, volume), 4), "warnings": []}


def series_option(command):
    """--series, for folders with several."""
    return click.option("--series", default="", metavar="UID", help="Series Instance UID, if VOLUME is a folder with "
                        "several DICOM series.")(command)


def load_predictor(model: str, device: str, keep_embeddings: bool):
    """A predictor with a cache, on disk too where asked for."""
    from SegMoTELib.interaction.embeddings import EmbeddingCache, default_folder
    from SegMoTELib.interaction.predictor import Predictor
    from SegMoTELib.network import load_checkpoint
    from SegMoTELib.zoo import resolve_model

    cache = EmbeddingCache(folder=default_folder() if keep_embeddings else None)
    return Predictor(load_checkpoint(resolve_model(model)), device, cache=cache)


def open_session(path: Path, intensity: str, predictor, series: str, output: Path) -> Session:
    """A session on a volume from a file, whose segments can be written to another."""
    from SegMoTELib.errors import VolumeError
    from SegMoTELib.imaging.files import check_output, read_volume
    from SegMoTELib.imaging.intensity import range_of
    from SegMoTELib.interaction.session import Session

    if path.exists() and output.exists() and output.samefile(path):
        raise VolumeError(f"{output}: is the volume itself, which would be lost; choose another name.")
    volume = read_volume(path, series)
    check_output(output, volume)
    return Session(predictor, volume, range_of(volume, intensity))


def voxels_of(masks: dict[int, Crop], stack: PlaneStack) -> np.ndarray:
    """(K, J, I) bool: masks on slices of a stack as voxels of its volume."""
    whole = np.zeros(stack.volume.array.shape[:3], bool)
    for index, mask in masks.items():
        patch = stack.planes[index].insert(mask.full(), stack.volume)
        whole[patch.slices] |= patch.array
    return whole


def millilitres(mask: np.ndarray, volume: Volume) -> float:
    """Volume of a (K, J, I) mask."""
    return float(np.count_nonzero(mask) * abs(np.linalg.det(volume.ijk_to_ras[:3, :3])) / 1000)


class Bar:
    """A progress bar on stderr, if that is a terminal; also a watcher of ``propagate`` and ``segment_slices``."""

    def __init__(self, label: str) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=100, desc=label, unit="%", leave=False, disable=None,
                        bar_format="{desc}: {percentage:3.0f} % |{bar}| {remaining} left")

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, progress: float, index: int, mask: Crop) -> bool:
        """Show the progress; Ctrl+C is the cancel button here."""
        self.bar.n = round(100 * progress)
        self.bar.refresh()
        return True
