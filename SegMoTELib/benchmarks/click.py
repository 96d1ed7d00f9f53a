"""``segmote bench click``: from a click to the segment in a real Slicer scene, stage by stage."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from SegMoTELib.errors import SegMoTEError
from SegMoTELib.imaging.files import read_volume
from SegMoTELib.interaction.predictor import Predictor
from SegMoTELib.mrml.segmenter import SceneSegmenter
from SegMoTELib.mrml.segments import prepare_segmentation
from SegMoTELib.mrml.target import Target
from SegMoTELib.mrml.volumes import view_along, volume_of
from SegMoTELib.network import load_checkpoint
from SegMoTELib.zoo import resolve_model

STAGES = ("extract", "encode", "decode")


def bench_click(model: str, path: Path | None, clicks: int) -> dict[str, object]:
    """Click through a volume and time every stage.

    Args:
        model: name or weights file. path: a volume file; None for a synthetic one of 256 x 256 x 64 voxels.
        clicks: on each of three slices; the first on a slice finds it not encoded yet.

    Returns:
        JSON-ready: medians in seconds of "first" and "cached" clicks, by stage.

    Raises:
        SegMoTEError: the slicer-core wheel is missing, or the volume or model cannot be used.
    """
    try:
        import slicer
    except ImportError:
        raise SegMoTEError("bench click needs a Slicer scene: pip install slicer-core.") from None
    scene = slicer.vtkMRMLScene()
    segmentations = slicer.vtkSlicerSegmentationsModuleLogic()
    segmentations.SetMRMLScene(scene)
    node = _volume(scene, path)
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "bench")
    prepare_segmentation(segmentation, node)
    target = Target(node, segmentation, segmentation.GetSegmentation().AddEmptySegment("bench"))
    segmenter = SceneSegmenter(scene)
    segmenter.mapping, segmenter.predictor = "percentiles", Predictor(load_checkpoint(resolve_model(model)))
    volume, view = volume_of(node), view_along(node, "axial")
    rng = np.random.default_rng(0)
    found: dict[str, list] = {"first": [], "cached": []}
    shape = np.array(volume.shape)
    slices = [int(shape[2] * share) for share in (0.35, 0.5, 0.65)]
    for number, k in enumerate([slices[0] - 1, *slices]):  # the very first slice warms up
        for index in range(clicks):
            ijk = np.append(shape[:2] / 2 + rng.uniform(-0.1, 0.1, 2) * shape[:2], k)
            stages = _click(segmenter, target, volume.to_ras(ijk), view)
            if number:
                found["cached" if index else "first"].append(stages)
    segmenter.close()
    return {"model": model, "volume": list(volume.shape), "device": segmenter.predictor.describe(),
            "seconds": {kind: {stage: float(np.median([one[stage] for one in rows])) for stage in rows[0]}
                        for kind, rows in found.items() if rows}}


def _click(segmenter: SceneSegmenter, target: Target, world: np.ndarray, view: np.ndarray) -> dict[str, float]:
    started = time.perf_counter()
    segmenter.prompts(target).add_point(world, True, view)
    segmenter.update(target)
    asked = time.perf_counter()
    segmenter.jobs.finish()
    total = time.perf_counter() - started
    stages = {stage: segmenter.seconds.get(stage, 0.0) for stage in STAGES}
    return {"ask": asked - started, **stages, "write and rest": total - (asked - started) - sum(stages.values()),
            "total": total}


def _volume(scene, path: Path | None):
    import slicer
    import slicer.util

    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "bench")
    if path is None:
        k, j, i = np.mgrid[:64, :256, :256]
        ball = ((i - 128) / 60) ** 2 + ((j - 128) / 50) ** 2 + ((k - 32) / 28) ** 2 <= 1
        array = (100 + 80 * ball + np.random.default_rng(0).normal(0, 10, ball.shape)).astype(np.int16)
        matrix = np.diag([-1.0, -1.0, 2.0, 1.0])
    else:
        volume = read_volume(path)
        array, matrix = volume.array, volume.ijk_to_ras
    slicer.util.updateVolumeFromArray(node, array)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
    return node


def format_click(report: dict) -> str:
    """The report as text: milliseconds, and each stage's share of the whole."""
    lines = [f"{report['model']} on {report['device']}, volume {' x '.join(map(str, report['volume']))}"]
    for kind, stages in report["seconds"].items():
        title = "slice seen for the first time" if kind == "first" else "slice encoded before"
        lines.append(f"{title}: {stages['total'] * 1000:.0f} ms from click to segment")
        lines += [f"  {name:<16}{value * 1000:>8.1f} ms {value / stages['total']:>6.0%}"
                  for name, value in stages.items() if name != "total"]
    return "\n".join(lines)
