"""Each source layout, sound and damaged: what comes out, and what is reported by name."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import sparse

from SegMoTELib.data.grey_levels import to_8_bit
from SegMoTELib.data.items import BadFile, Item
from SegMoTELib.data.sources import detect_layout, open_sources
from SegMoTELib.errors import DataError


def read(*folders: Path, layout: str = "auto") -> tuple[dict[str, list[Item]], list[BadFile]]:
    """Return the items of each data set and all bad files."""
    items, bad = {}, []
    for source in open_sources(list(folders), layout):
        found = [one for reference in source.references for one in reference.items()]
        items[source.code] = [one for one in found if isinstance(one, Item)]
        bad += source.bad_files + [one for one in found if isinstance(one, BadFile)]
    return items, bad


def test_a_pack_keeps_its_splits_and_description(a_pack):
    folder = a_pack(train=[1, 2], test=[3])
    (source,) = open_sources([folder])
    items, bad = read(folder)
    assert [item.split for item in items["blobs"]] == ["train", "train", "test"]
    assert source.info["caveat"] == "synthetic"
    assert bad == []


def test_a_pack_with_damaged_files_names_them(a_pack, truncate, write_png):
    folder = a_pack(train=[1, 2, 3, 4, 5])
    truncate(folder / "images" / "p1.png")
    (folder / "labels" / "p2.png").unlink()
    write_png(folder / "labels" / "p3.png", np.zeros((10, 10), np.uint8))
    (folder / "images" / "p4.png").unlink()
    items, bad = read(folder)
    assert [item.identifier for item in items["blobs"]] == ["p5"]
    reasons = [one.reason for one in bad]
    assert all(name in reason for name, reason in zip(["p1.png", "p2.png", "p3.png", "p4"], reasons, strict=True))
    assert "truncated" in reasons[0]
    assert "not found" in reasons[1]
    assert "10x10" in reasons[2]


def test_an_nnunet_folder_gives_labelled_slices_along_the_thick_axis(an_nnunet_folder):
    folder = an_nnunet_folder(cases=2)
    assert detect_layout(folder) == "nnunet"
    items, bad = read(folder)
    (found,) = items.values()
    assert [item.identifier for item in found[:3]] == ["blob_000_z001", "blob_000_z002", "blob_000_z003"]
    assert {item.group for item in found} == {"blob_000", "blob_001"}
    assert found[0].spacing_mm == pytest.approx((0.7, 0.8))
    assert found[0].image.dtype == found[0].label.dtype == np.uint8
    assert bad == []


def test_channels_become_data_sets_that_share_their_patients(an_nnunet_folder):
    first, second = open_sources([an_nnunet_folder(cases=1, channels=("T1", "CT"))])
    assert (first.code, first.modality, second.code, second.modality) == (
        "Dataset007_Blob_T1", "MR", "Dataset007_Blob_CT", "CT")
    assert first.group_space == second.group_space


def test_an_nnunet_folder_with_damaged_cases_names_them(an_nnunet_folder, a_volume, write_volume, truncate):
    folder = an_nnunet_folder(cases=5)
    image, label = a_volume(0)
    write_volume(folder / "labelsTr" / "blob_000.nii.gz", label[:, :-1])
    write_volume(folder / "labelsTr" / "blob_001.nii.gz", label.astype(np.float32) * 0.5)
    (folder / "imagesTr" / "blob_002_0000.nii.gz").unlink()
    truncate(folder / "imagesTr" / "blob_003_0000.nii.gz")
    write_volume(folder / "imagesTr" / "blob_009_0000.nii.gz", image)
    items, bad = read(folder)
    assert {item.group for found in items.values() for item in found} == {"blob_004"}
    assert [(one.path.name, word) for one, word in zip(bad, ("without a label", "pixels", "integers", "not found",
                                                           "not a readable"), strict=True) if word in one.reason] == [
        ("blob_009_0000.nii.gz", "without a label"), ("blob_000.nii.gz", "pixels"), ("blob_001.nii.gz", "integers"),
        ("blob_002.nii.gz", "not found"), ("blob_003.nii.gz", "not a readable")]


def test_a_label_that_lies_elsewhere_is_a_bad_file(an_nnunet_folder, a_volume, write_volume):
    folder = an_nnunet_folder(cases=1)
    write_volume(folder / "labelsTr" / "blob_000.nii.gz", a_volume(0)[1], spacing=(1.0, 1.0, 5.0))
    _, (bad,) = read(folder)
    assert "spacing" in bad.reason


def test_a_value_without_a_name_is_a_bad_file(an_nnunet_folder, a_volume, write_volume):
    folder = an_nnunet_folder(cases=1)
    write_volume(folder / "labelsTr" / "blob_000.nii.gz", a_volume(0)[1] * 3)
    _, (bad,) = read(folder)
    assert "[3] have no name in the data set's description (1 = blob)" in bad.reason
    assert "write the number of the label instead" in bad.reason


@pytest.fixture
def an_imis_folder(tmp_path, a_picture, write_png):
    """Two slices of one volume and one of another, with masks that overlap in the first."""
    folder = tmp_path / "sources" / "BTCV"
    (folder / "label").mkdir(parents=True)
    pairs = []
    for number, name in enumerate(("ABD_001_010", "ABD_001_020", "ABD_002_010")):
        image, mask = a_picture(number)
        masks = np.stack([mask, np.zeros_like(mask), np.roll(mask, 8, axis=1) if number == 0 else mask & False])
        label = f"label/x___{name}.(3, 96, 96, 1).npz"
        write_png(folder / "image" / f"{name}.png", np.stack([image] * 3, axis=-1))
        sparse.save_npz(folder / label, sparse.csr_matrix(masks.reshape(3, -1).astype(np.int32)))
        pairs.append({"image": f"image/{name}.png", "label": label})
    (folder / "dataset.json").write_text(json.dumps({
        "name": "BTCV", "modality": {"0": "ct"}, "training": pairs,
        "labels": {"0": "background", "1": "spleen", "2": "kidney", "3": "liver"}}))
    return folder


def test_the_published_layout_is_read_without_losing_overlaps(an_imis_folder, a_picture):
    (source,) = open_sources([an_imis_folder])
    items, bad = read(an_imis_folder)
    found = {item.identifier: item for item in items["BTCV"]}
    assert (source.modality, source.labels) == ("CT", {1: "spleen", 2: "kidney", 3: "liver"})
    assert list(found) == ["ABD_001_010", "ABD_001_010_layer2", "ABD_001_020", "ABD_002_010"]
    mask = a_picture(0)[1]
    assert np.array_equal(found["ABD_001_010"].label == 1, mask)
    assert np.array_equal(found["ABD_001_010_layer2"].label == 3, np.roll(mask, 8, axis=1))
    assert {item.group for item in found.values()} == {"ABD_001", "ABD_002"}
    assert found["ABD_001_020"].image.ndim == 2
    assert bad == []


def test_a_pair_that_is_listed_twice_counts_once_where_it_is_strictest(an_imis_folder):
    info = json.loads((an_imis_folder / "dataset.json").read_text())
    info["training"].append(info["training"][0])
    info["test"] = [info["training"][2]]
    (an_imis_folder / "dataset.json").write_text(json.dumps(info))
    items, bad = read(an_imis_folder)
    assert {item.identifier: item.split for item in items["BTCV"]} == {
        "ABD_001_010": None, "ABD_001_010_layer2": None, "ABD_001_020": None, "ABD_002_010": "test"}
    assert [one.reason for one in bad] == [
        "listed again in 'training' by dataset.json; it counts once, in 'test'.",
        "listed again in 'training' by dataset.json; it counts once, in 'training'."]


def test_a_damaged_sparse_label_is_named(an_imis_folder, truncate):
    labels = sorted((an_imis_folder / "label").iterdir())
    truncate(labels[0])
    labels[1].rename(labels[1].with_name("x___ABD_001_020.npz"))
    items, bad = read(an_imis_folder)
    assert [item.identifier for item in items["BTCV"]] == ["ABD_002_010"]
    assert [one.path.name for one in bad] == [labels[0].name, labels[1].name]


@pytest.mark.parametrize(("image_name", "label_name"), [
    ("images/a.nii.gz", "labels/a.nii.gz"), ("a.nrrd", "a_mask.nrrd"), ("case/image.mha", "case/label.mha"),
    ("a_img.nii", "a-seg.nii.gz"), ("case/imaging.mha", "case/segmentation.mha"),
    ("volume-7.nii", "segmentation-7.nii"), ("img/img0001.nrrd", "label/label0001.nrrd")])
def test_volumes_and_labels_find_each_other(tmp_path, a_volume, write_volume, image_name, label_name):
    image, label = a_volume()
    write_volume(tmp_path / "in" / image_name, image)
    write_volume(tmp_path / "in" / label_name, label)
    items, bad = read(tmp_path / "in")
    assert len(items["in"]) == 3
    assert bad == []


@pytest.mark.parametrize("folders", [("Training", "valid", "test"), ("train", "other")])
def test_folders_that_are_called_like_splits_are_the_splits_where_there_are_several(tmp_path, a_picture, write_png,
                                                                                    folders):
    for number, name in enumerate(folders):
        image, mask = a_picture(number)
        write_png(tmp_path / "in" / name / "images" / "a.png", image)
        write_png(tmp_path / "in" / name / "labels" / "a.png", mask.astype(np.uint8))
    items, bad = read(tmp_path / "in")
    assert bad == []
    assert {item.identifier: item.split for item in items["in"]} == (
        {"Training_a": "train", "valid_a": "val", "test_a": "test"} if len(folders) == 3
        else {"train_a": None, "other_a": None})


def test_a_label_beside_two_images_is_not_guessed(tmp_path, a_volume, write_volume):
    image, label = a_volume()
    for name in ("ct", "pet"):
        write_volume(tmp_path / "in" / "case" / f"{name}.mha", image)
    write_volume(tmp_path / "in" / "case" / "seg.mha", label)
    items, bad = read(tmp_path / "in")
    assert items["in"] == []
    assert [one.path.name for one in bad] == ["seg.mha", "ct.mha", "pet.mha"]


def test_a_modality_that_is_null_is_unknown(tmp_path, a_picture, write_png):
    image, mask = a_picture()
    write_png(tmp_path / "in" / "a.png", image)
    write_png(tmp_path / "in" / "a_mask.png", mask.astype(np.uint8))
    (tmp_path / "in" / "dataset.json").write_text(json.dumps({"modality": None}))
    assert [source.modality for source in open_sources([tmp_path / "in"])] == ["unknown"]


def test_names_find_each_other_whichever_way_their_accents_are_stored(tmp_path, a_picture, write_png):
    image, mask = a_picture()
    write_png(tmp_path / "in" / "images" / (unicodedata.normalize("NFC", "Müller1") + ".png"), image)
    write_png(tmp_path / "in" / "labels" / (unicodedata.normalize("NFD", "Müller1") + ".png"), mask.astype(np.uint8))
    items, bad = read(tmp_path / "in")
    assert bad == []
    assert [item.identifier for item in items["in"]] == ["Müller1"]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_what_is_no_number_in_a_ct_is_the_darkest_in_every_format(tmp_path, a_volume, write_volume, suffix, kind):
    image, label = (array[:, :63, :61] for array in a_volume())
    holes = np.random.default_rng(0).random(image.shape) < 0.1
    holes[-1, -1, -1] = True
    write_volume(tmp_path / "in" / f"a{suffix}", np.where(holes, np.nan, image).astype(kind))
    write_volume(tmp_path / "in" / f"a_seg{suffix}", label)
    (tmp_path / "in" / "dataset.json").write_text(json.dumps({"modality": "CT"}))
    items, bad = read(tmp_path / "in")
    assert bad == []
    assert np.array_equal(np.stack([item.image for item in items["in"]]),
                          np.where(holes, 0, to_8_bit(image, "CT"))[1:])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_truncated_volume_is_named_and_never_filled_up(tmp_path, a_volume, write_volume, truncate, suffix):
    image, label = a_volume()
    write_volume(tmp_path / "in" / f"a{suffix}", image)
    write_volume(tmp_path / "in" / f"a_seg{suffix}", label)
    truncate(tmp_path / "in" / f"a{suffix}")
    items, (bad,) = read(tmp_path / "in")
    assert items["in"] == []
    assert f"a{suffix}: not a readable image" in bad.reason


def test_float_labels_with_whole_numbers_are_read(tmp_path, a_volume, write_volume):
    image, label = a_volume()
    write_volume(tmp_path / "in" / "a.nii.gz", image)
    write_volume(tmp_path / "in" / "a_seg.nii.gz", label.astype(np.float32))
    items, _ = read(tmp_path / "in")
    assert np.array_equal(items["in"][0].label, label[1])


def test_2d_pairs_keep_their_colours_and_lonely_files_are_named(tmp_path, a_picture, write_png):
    image, mask = a_picture()
    colours = np.stack([image, image // 2, image // 3], axis=-1)
    write_png(tmp_path / "in" / "images" / "a.png", colours)
    write_png(tmp_path / "in" / "masks" / "a.png", mask.astype(np.uint8))
    write_png(tmp_path / "in" / "images" / "b.png", colours)
    write_png(tmp_path / "in" / "masks" / "c.png", mask.astype(np.uint8))
    items, bad = read(tmp_path / "in")
    assert np.array_equal(items["in"][0].image, colours)
    assert [(one.path.name, one.reason) for one in bad] == [("b.png", "image without a label."),
                                                            ("c.png", "label without an image.")]


def test_a_cropped_slicer_segmentation_lands_where_it_belongs(tmp_path, a_volume, write_volume):
    image, label = a_volume()
    write_volume(tmp_path / "in" / "a.nrrd", image)
    whole = sitk.GetImageFromArray(label)
    whole.SetSpacing((0.8, 0.7, 5.0))
    cropped = whole[8:60, 6:62, 1:]
    for key, value in {"ID": "S1", "Name": "tumour", "LabelValue": "1", "Layer": "0"}.items():
        cropped.SetMetaData(f"Segment0_{key}", value)
    sitk.WriteImage(cropped, str(tmp_path / "in" / "a.seg.nrrd"))
    (source,) = open_sources([tmp_path / "in"])
    items, bad = read(tmp_path / "in")
    assert bad == []
    assert source.labels == {1: "tumour"}
    assert np.array_equal(np.stack([item.label for item in items["in"]]), label[1:])


@pytest.fixture
def a_slicer_segmentation(tmp_path, a_volume, write_volume):
    """Write a volume and its segments, one array a layer, with some header entries; returns the folder."""

    def make(layers: list[np.ndarray], header: dict[str, str], name: str = "a") -> Path:
        write_volume(tmp_path / "in" / f"{name}.nrrd", a_volume()[0])
        stored = sitk.GetImageFromArray(np.stack(layers, axis=-1) if len(layers) > 1 else layers[0],
                                        isVector=len(layers) > 1)
        stored.SetSpacing((0.8, 0.7, 5.0))
        for key, value in header.items():
            stored.SetMetaData(key, value)
        sitk.WriteImage(stored, str(tmp_path / "in" / f"{name}.seg.nrrd"))
        return tmp_path / "in"

    return make


def test_segments_without_layers_in_the_header_have_one_each_and_their_identifier_for_a_name(a_slicer_segmentation,
                                                                                             a_volume):
    label = a_volume()[1]
    other = np.roll(label, 30, axis=2) * (1 - label)
    folder = a_slicer_segmentation([label, other], {"Segment0_ID": "liver", "Segment1_ID": "S2",
                                                    "Segment1_Name": "tumour"})
    (source,) = open_sources([folder])
    items, bad = read(folder)
    assert bad == []
    assert source.labels == {1: "liver", 2: "tumour"}
    assert np.array_equal(np.stack([item.label for item in items["in"]]), (label + 2 * other)[1:])


def test_segments_whose_numbers_have_gaps_are_all_read(a_slicer_segmentation, a_volume):
    label = a_volume()[1]
    label[2] *= 2
    header = {f"Segment{index}_{key}": value for index, number in ((0, "1"), (2, "2"))
              for key, value in {"ID": f"S{number}", "LabelValue": number, "Layer": "0"}.items()}
    items, bad = read(a_slicer_segmentation([label], header))
    assert bad == []
    assert np.array_equal(np.stack([item.label for item in items["in"]]), label[1:])


@pytest.mark.parametrize(("key", "value", "message"), [("LabelValue", "x", "must be numbers"),
                                                       ("Layer", "3", "should be in layer 3")])
def test_a_segment_with_a_damaged_header_is_named_and_the_others_are_kept(a_slicer_segmentation, a_volume, key, value,
                                                                          message):
    label = a_volume()[1]
    a_slicer_segmentation([label], {"Segment0_ID": "S1", f"Segment0_{key}": value}, "wrong")
    items, (bad,) = read(a_slicer_segmentation([label], {"Segment0_ID": "S1"}, "right"))
    assert bad.path.name == "wrong.seg.nrrd"
    assert message in bad.reason
    assert {item.group for item in items["in"]} == {"right"}


def test_ct_goes_through_the_window_and_mr_through_percentiles(tmp_path, a_volume, write_volume):
    image, label = a_volume()
    for name, modality in (("ct", "CT"), ("mr", "MR")):
        write_volume(tmp_path / name / "a.nii.gz", image)
        write_volume(tmp_path / name / "a_seg.nii.gz", label)
        (tmp_path / name / "dataset.json").write_text(json.dumps({"modality": modality}))
    items, _ = read(tmp_path / "ct", tmp_path / "mr")
    hounsfield = image[1].astype(float)
    assert np.array_equal(items["ct"][0].image, np.round(np.clip((hounsfield + 160) / 400, 0, 1) * 255))
    assert items["mr"][0].image.min() == 0
    assert items["mr"][0].image.max() == 255


def test_an_empty_folder_and_a_missing_one_are_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image with a label"):
        open_sources([tmp_path / "empty"])
    with pytest.raises(DataError, match="no such folder"):
        open_sources([tmp_path / "missing"])


def test_a_description_that_is_not_json_is_an_error(tmp_path):
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="not readable as JSON"):
        open_sources([tmp_path])
