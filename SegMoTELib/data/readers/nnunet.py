"""nnU-Net raw folders: ``dataset.json``, ``imagesTr/<case>_0000.nii.gz``, ``labelsTr/<case>.nii.gz``.

Each channel becomes a data set of its own (a pack has one modality), except the three channels of an RGB image. The
channels of a case share its group, and so do cases whose names tell the same patient, so they always fall into the same
split. ``imagesTs`` with ``labelsTs`` is the test split.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from SegMoTELib.data.items import BadFile, Reference, SourceSet, group_from_name, modality_name, safe_name
from SegMoTELib.data.readers.common import (
    DESCRIPTION,
    carried_info,
    indexed_labels,
    pair_reference,
    read_description,
)
from SegMoTELib.data.volumes import PICTURE_SUFFIXES, is_image_file, stem
from SegMoTELib.errors import DataError

RGB_NAMES = ({"r", "g", "b"}, {"red", "green", "blue"})
MR_NAMES = ("t1", "t2", "flair", "dwi", "adc", "mp2rage", "swi")


def read(folder: Path, ct_window: tuple[float, float]) -> list[SourceSet]:
    """List one ``DatasetXXX_Name`` folder.

    Raises:
        DataError: a description without channels or labels.
    """
    description = read_description(folder)
    channels = description.get("channel_names") or description.get("modality")
    path = folder / DESCRIPTION
    if not isinstance(channels, dict) or not channels or not all(str(number).isdigit() for number in channels):
        raise DataError(f'{path}: needs what the image channels are, such as "channel_names": {{"0": "CT"}}.')
    labels = indexed_labels(description, path)
    ignored = tuple(index for index, name in labels.items() if name == "ignore")
    labels = {index: name for index, name in labels.items() if index not in ignored}
    names = [str(name) for _, name in sorted(channels.items(), key=lambda pair: int(pair[0]))]
    is_rgb = {name.lower() for name in names} in RGB_NAMES
    bundles = [(list(range(len(names))), "RGB")] if is_rgb else [([k], name) for k, name in enumerate(names)]
    ending = "." + str(description.get("file_ending") or _usual_ending(folder)).lstrip(".")
    sets = []
    for number, (indices, name) in enumerate(bundles):
        code = safe_name(folder.name if len(bundles) == 1 else f"{folder.name}_{name}")
        modality = _modality(name, description)
        references, bad_files = _references(folder, ending, indices, modality, labels, ignored, ct_window)
        # Files are shared by the channels; what is wrong with them is told once.
        sets.append(SourceSet(code=code, modality=modality, labels=labels, info=carried_info(description, folder),
                              references=references, bad_files=bad_files if number == 0 else [],
                              group_space=folder.name))
    return sets


def _references(folder: Path, ending: str, indices: list[int], modality: str, labels: dict[int, str],
                ignored: tuple[int, ...], ct_window: tuple[float, float]) -> tuple[list[Reference], list[BadFile]]:
    references, bad_files = [], []
    for images, labelled, split in (("imagesTr", "labelsTr", None), ("imagesTs", "labelsTs", "test")):
        if not (folder / labelled).is_dir():
            if (folder / images).is_dir() and any((folder / images).iterdir()):
                bad_files.append(BadFile(folder / images, f"its images have no labels: there is no {labelled}."))
            continue
        cases = set()
        for label_path in sorted((folder / labelled).iterdir()):
            if not label_path.name.endswith(ending):
                if is_image_file(label_path):
                    bad_files.append(BadFile(label_path, f"does not end in {ending}, as the others do."))
                continue
            case = label_path.name[:-len(ending)]
            cases.add(case)
            paths = [folder / images / f"{case}_{index:04d}{ending}" for index in indices]
            plain = folder / images / f"{case}{ending}"
            if plain.exists() and not any(path.exists() for path in paths):
                bad_files.append(BadFile(plain, f"its name lacks the number of the channel; rename it to "
                                                f"{case}_0000{ending} (nnUNetv2_convert_MSD_dataset does so)."))
                continue
            # A 2D RGB picture is one file with three channels, whatever channel_names says.
            paths = paths[:1] if not paths[-1].exists() and ending == ".png" else paths
            group = group_from_name(case, is_volume=not ending.lower().endswith(PICTURE_SUFFIXES))
            references.append(pair_reference(paths, label_path, safe_name(case), modality, labels, group=group,
                                             split=split, ct_window=ct_window, ignored=ignored))
        for path in sorted((folder / images).glob(f"*{ending}")):
            if not {path.name[:-len(ending)], path.name[:-len(ending)].rpartition("_")[0]} & cases:
                bad_files.append(BadFile(path, f"image without a label in {labelled}."))
    return references, bad_files


def _usual_ending(folder: Path) -> str:
    """What most labels end in, for a description that does not tell; of as many, nnU-Net's own."""
    counts = Counter(path.name[len(stem(path)):] for path in (folder / "labelsTr").iterdir() if is_image_file(path))
    return max(counts, key=lambda ending: (counts[ending], ending == ".nii.gz"), default=".nii.gz")


def _modality(channel: str, description: dict) -> str:
    """nnU-Net names channels freely; its "CT" is a keyword, MR goes by sequence names."""
    if channel == "RGB" or channel.lower().startswith("rgb"):
        return modality_name(description.get("imaging_modality", "RGB"))
    return "MR" if channel.lower().startswith(MR_NAMES) else modality_name(channel)
