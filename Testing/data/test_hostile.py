"""Sources with faults: each is told by name, nothing is lost in silence, and the rest is kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from SegMoTELib.data.curate import Curation, curate
from SegMoTELib.data.grey_levels import to_8_bit
from SegMoTELib.data.items import BadFile, Item
from SegMoTELib.data.pack import open_pack, open_packs
from SegMoTELib.data.readers.common import indexed_labels
from SegMoTELib.data.sources import open_sources
from SegMoTELib.errors import DataError


def read(*folders: Path) -> tuple[dict[str, Item], dict[str, str]]:
    """Items by identifier, and reasons of bad files by file name."""
    items, bad = {}, {}
    for source in open_sources(list(folders)):
        bad |= {one.path.name: one.reason for one in source.bad_files}
        for reference in source.references:
            for found in reference.items():
                if isinstance(found, BadFile):
                    bad[found.path.name] = found.reason
                else:
                    items[found.identifier] = found
    return items, bad


def run(*folders: Path, output: Path, **options) -> Curation:
    return curate(open_sources(list(folders)), output, **options)


@pytest.fixture
def a_pair(tmp_path, a_picture, write_png):
    """Write ``images/NAME.png`` and ``labels/NAME.png`` of a seed's picture into a folder of pairs."""

    def make(name: str, seed: int = 0, folder: str = "pairs") -> Path:
        image, mask = a_picture(seed)
        write_png(tmp_path / folder / "images" / f"{name}.png", image)
        write_png(tmp_path / folder / "labels" / f"{name}.png", mask.astype(np.uint8))
        return tmp_path / folder

    return make


@pytest.fixture
def a_labelled_volume(tmp_path, a_volume, write_volume):
    """Write a volume with a label made of its own by a function; returns the folder."""

    def make(change, suffix: str = ".nii.gz") -> Path:
        image, label = a_volume()
        write_volume(tmp_path / "case" / f"image{suffix}", image)
        write_volume(tmp_path / "case" / f"label{suffix}", change(label))
        return tmp_path / "case"

    return make


def test_a_volume_with_an_empty_label_is_named(a_labelled_volume):
    items, bad = read(a_labelled_volume(np.zeros_like))
    assert items == {}
    assert "no voxel is labelled" in bad["label.nii.gz"]


@pytest.mark.parametrize(("value", "suffix", "message"), [
    (0.9999, ".nii.gz", "found values such as 0.9999"), (0.5, ".nrrd", "found values such as 0.5"),
    (np.nan, ".nii.gz", "NaN"), (np.nan, ".nii", "NaN"), (np.nan, ".nrrd", "nan"), (np.inf, ".nii.gz", "infinite"),
    (300, ".nii.gz", "0 to 300"), (-1, ".nrrd", "-1 to 0")])
def test_labels_that_are_no_index_are_named_and_not_rounded(a_labelled_volume, value, suffix, message):
    items, bad = read(a_labelled_volume(lambda label: np.where(label, value, 0).astype(np.float32), suffix))
    assert items == {}
    assert message in bad[f"label{suffix}"]


def test_labels_that_a_stored_scale_rounded_are_read_as_meant(a_labelled_volume):
    items, bad = read(a_labelled_volume(lambda label: (label * np.float32(0.9999999)).astype(np.float32)))
    assert bad == {}
    assert {int(item.label.max()) for item in items.values()} == {1}
    assert len(items) == 3


def test_a_label_in_a_jpeg_is_refused(a_pair):
    folder = a_pair("a")
    Image.open(folder / "labels" / "a.png").save(folder / "labels" / "a.jpg")
    (folder / "labels" / "a.png").unlink()
    items, bad = read(folder)
    assert items == {}
    assert "export them as PNG" in bad["a.jpg"]


@pytest.mark.parametrize("change", ["compressed", "resized"])
@pytest.mark.parametrize("labels", [{}, {"1": "blob"}, {"255": "blob"}])
def test_a_mask_of_shades_of_grey_is_refused_and_not_taken_for_a_hundred_labels(a_pair, change, labels):
    folder = a_pair("a")
    mask = Image.open(folder / "labels" / "a.png").point(lambda value: 255 * value)
    if change == "compressed":
        mask.save(folder / "a.jpg", quality=75)
        mask = Image.open(folder / "a.jpg").copy()
        (folder / "a.jpg").unlink()
    else:
        mask = mask.resize((48, 48), Image.Resampling.BILINEAR).resize((96, 96), Image.Resampling.BILINEAR)
    mask.save(folder / "labels" / "a.png")
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    items, bad = read(folder)
    assert items == {}
    assert "shades of grey" in bad["a.png"]


def test_many_small_labels_are_no_shades_of_grey(a_pair, write_png):
    folder = a_pair("a")
    rows, columns = np.indices((96, 96))
    label = np.where((rows % 6 < 2) & (columns % 6 < 2), rows // 6 * 16 + columns // 6, 0).astype(np.uint8)
    write_png(folder / "labels" / "a.png", label)
    items, bad = read(folder)
    assert bad == {}
    assert np.array_equal(items["a"].label, label)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_of_16_bits_keep_all_of_them(a_pair, suffix):
    folder = a_pair("a")
    grey = np.asarray(Image.open(folder / "images" / "a.png")).astype(np.uint16) * 10  # 12 bits
    (folder / "images" / "a.png").unlink()
    blue_first = np.stack([grey // 4, grey // 2, grey], axis=-1)
    cv2.imwrite(str(folder / "images" / f"a.{suffix}"), blue_first)
    items, bad = read(folder)
    assert bad == {}
    assert np.array_equal(items["a"].image, to_8_bit(blue_first[..., ::-1], "unknown"))
    assert len(np.unique(items["a"].image)) > 50


def test_a_label_in_grey_of_16_bits_a_channel_is_read(a_pair):
    folder = a_pair("a")
    label = np.asarray(Image.open(folder / "labels" / "a.png")).astype(np.uint16)
    cv2.imwrite(str(folder / "labels" / "a.png"), np.stack([label] * 3, axis=-1))
    items, bad = read(folder)
    assert bad == {}
    assert np.array_equal(items["a"].label, label)


@pytest.fixture
def a_turned_picture(a_pair):
    """A pair whose image is stored in another orientation than it is shown in; returns the folder and what is shown."""

    def make(suffix: str, orientation: int) -> tuple[Path, np.ndarray]:
        folder = a_pair("a")
        upright = np.asarray(Image.open(folder / "images" / "a.png"))[:80]
        Image.fromarray(np.asarray(Image.open(folder / "labels" / "a.png"))[:80]).save(folder / "labels" / "a.png")
        (folder / "images" / "a.png").unlink()
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.rot90(upright, {6: 1, 3: 2}[orientation])).save(
            folder / "images" / f"a.{suffix}", exif=exif, **({"quality": 100} if suffix == "jpg" else {}))
        return folder, upright

    return make


@pytest.mark.parametrize(("suffix", "orientation"), [("jpg", 6), ("jpg", 3), ("png", 6), ("tif", 3)])
def test_a_picture_that_is_stored_turned_is_read_as_it_is_shown(a_turned_picture, suffix, orientation):
    folder, upright = a_turned_picture(suffix, orientation)
    items, bad = read(folder)
    assert bad == {}
    assert np.abs(items["a"].image.astype(int) - upright).max() < 8


def test_a_tiff_that_lies_on_its_side_is_refused(a_turned_picture):
    items, bad = read(a_turned_picture("tif", 6)[0])
    assert items == {}
    assert "stored turned (orientation 6); save it upright" in bad["a.png"]


def test_a_pack_shows_a_turned_jpeg_upright_too(a_pack):
    folder = a_pack(train=[1])
    upright = np.asarray(Image.open(folder / "images" / "p1.png"))[:80]
    Image.fromarray(np.asarray(Image.open(folder / "labels" / "p1.png"))[:80]).save(folder / "labels" / "p1.png")
    (folder / "images" / "p1.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright)).save(folder / "images" / "p1.jpg", exif=exif, quality=100)
    sample = open_pack(folder).sample("p1")
    assert sample.load_label().shape == (80, 96)
    assert np.abs(sample.load_image().astype(int) - upright).max() < 8


def test_a_palette_is_colours_in_an_image_and_indices_in_a_label(a_pair):
    folder = a_pair("a")
    for kind in ("images", "labels"):
        indices = Image.open(folder / kind / "a.png").point(lambda value: value > 0)
        picture = Image.fromarray(np.asarray(indices), mode="P")
        picture.putpalette([0, 0, 255, 250, 20, 10])
        picture.save(folder / kind / "a.png")
    items, bad = read(folder)
    assert bad == {}
    assert {tuple(colour) for colour in items["a"].image.reshape(-1, 3)} <= {(0, 0, 255), (250, 20, 10)}
    assert set(np.unique(items["a"].label)) == {0, 1}


def test_printing_colours_become_rgb(a_pair):
    folder = a_pair("a")
    image = Image.open(folder / "images" / "a.png").convert("RGB")
    (folder / "images" / "a.png").unlink()
    image.convert("CMYK").save(folder / "images" / "a.jpg", quality=100)
    items, _ = read(folder)
    grey = items["a"].image if items["a"].image.ndim == 2 else items["a"].image.mean(axis=2)
    assert np.abs(grey - np.asarray(image)[..., 0].astype(float)).mean() < 3


def test_ct_in_unsigned_integers_is_not_taken_for_hounsfield_units(a_pair):
    folder = a_pair("a")
    image = np.asarray(Image.open(folder / "images" / "a.png")).astype(np.uint16) * 200
    Image.fromarray(image).save(folder / "images" / "a.png")
    (folder / "dataset.json").write_text(json.dumps({"modality": "CT"}))
    items, _ = read(folder)
    assert len(np.unique(items["a"].image)) > 50


def test_names_of_any_script_are_kept_and_tell_volumes_apart(a_pair, tmp_path):
    for seed, name in enumerate(("患者1_1", "患者1_2", "患者2_1", "größe 3_1", "größe_3_1")):
        folder = a_pair(name, seed)
    items, bad = read(folder)
    assert bad == {}
    assert {"患者1_1", "患者1_2", "患者2_1"} < items.keys()
    assert items["患者1_1"].group == items["患者1_2"].group != items["患者2_1"].group
    run(folder, output=tmp_path / "out")
    assert open_packs([tmp_path / "out"])[0].info["n_images"] == 5


def test_a_pack_names_what_it_lists_twice_or_not_at_all(a_pack):
    folder = a_pack(train=[1, 2, 3], test=[4])
    info = json.loads((folder / "dataset.json").read_text())
    info["splits"] = {"training": ["p1", "p2", "p1"], "test": ["p4", "p2"], "val": None}
    (folder / "dataset.json").write_text(json.dumps(info))
    items, bad = read(folder)
    assert {name: item.split for name, item in items.items()} == {"p1": "train", "p2": "test", "p4": "test"}
    assert "it counts once, in 'training'" in bad["p1"]
    assert "it counts once, in 'test'" in bad["p2"]
    assert "not listed in any split" in bad["p3.png"]


def test_a_pack_with_numbers_for_names_is_read(a_pack):
    folder = a_pack(train=[1])
    for kind in ("images", "labels"):
        (folder / kind / "p1.png").rename(folder / kind / "1.png")
    info = json.loads((folder / "dataset.json").read_text()) | {"splits": {"train": [1]}}
    (folder / "dataset.json").write_text(json.dumps(info))
    assert list(read(folder)[0]) == ["1"]
    assert [sample.identifier for sample in open_pack(folder).samples("train")] == ["1"]


def test_a_name_that_leads_out_of_a_pack_is_refused(a_pack):
    folder = a_pack(train=[1])
    other = a_pack("other", train=[2])
    info = json.loads((folder / "dataset.json").read_text())
    info["splits"] = {"train": ["p1", "../../other/images/p2", str(other / "images" / "p2")]}
    (folder / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="is not the name of an image"):
        read(folder)


@pytest.mark.parametrize(("change", "message"), [
    ({"splits": {"fold0": ["p1"]}}, "splits must be named"), ({"splits": {"train": "p1"}}, "not a list"),
    ({"groups": ["a", "b"]}, "groups must map names"), ({"labels": None}, "not a data set description"),
    ({"labels": {"one": "blob"}}, "not a data set description")])
def test_a_data_set_that_is_not_described_right_is_named_and_the_others_are_kept(a_pack, change, message, tmp_path):
    folder = a_pack("wrong", train=[1], info=change)
    with pytest.raises(DataError, match=message):
        open_sources([folder])
    a_pack("right", train=[2])
    found = run(folder.parent, output=tmp_path / "out")
    assert [record.title for record in found.records] == ["right/p2"]
    assert message in found.bad_files[0].reason
    assert message in (tmp_path / "out" / "report.html").read_text()


def test_an_image_of_more_than_8_bits_is_brought_to_8_and_never_clipped(a_pack):
    folder = a_pack(train=[1])
    image = np.asarray(Image.open(folder / "images" / "p1.png")).astype(np.uint16) * 250
    Image.fromarray(image).save(folder / "images" / "p1.png")
    items, bad = read(folder)
    assert bad == {}
    assert len(np.unique(items["p1"].image)) > 50
    with pytest.raises(DataError, match="convert the data set with segmote curate"):
        open_pack(folder).sample("p1").load_image()


@pytest.mark.parametrize("spacing", [["x", "y"], [None, None], [0, 1], [float("nan"), 1], [1], 5, {"p1": [-1, 1]}])
def test_a_pack_with_a_spacing_that_is_none_is_named_and_others_are_kept(a_pack, tmp_path, spacing):
    a_pack("wrong", train=[1], info={"spacing_mm": spacing})
    folder = a_pack("right", train=[2], info={"spacing_mm": {"p2": [0.5, 2]}})
    found = run(folder.parent, output=tmp_path / "out")
    assert [record.title for record in found.records] == ["right/p2"]
    assert "must be [row, column], both in millimetres" in found.bad_files[0].reason
    assert open_pack(tmp_path / "out" / "right").sample("p2").spacing_mm == (0.5, 2.0)


@pytest.mark.parametrize(("info", "licence"), [
    ({"licence": None, "license": "CC BY-SA 4.0"}, "CC BY-SA 4.0"), ({"licence": None}, "not stated"),
    ({"licence": "CC0", "license": "other"}, "CC0")])
def test_a_licence_of_either_spelling_goes_along(a_pack, tmp_path, info, licence):
    run(a_pack(train=[1], info=info), output=tmp_path / "out")
    written = open_pack(tmp_path / "out" / "blobs").info
    assert written["licence"] == licence
    assert "license" not in written


def test_names_too_long_for_a_file_are_shortened_and_kept_apart(a_pair, tmp_path):
    folder = a_pair("a")
    for seed, end in enumerate("bc", start=1):
        for kind in ("images", "labels"):
            place = folder / ("d" * 130) / ("é" * 100 + end) / kind
            place.mkdir(parents=True)
            shutil.copy(a_pair("z", seed, "other") / kind / "z.png", place / "q.png")
    found = run(folder, output=tmp_path / "out")
    names = open_pack(tmp_path / "out" / "pairs").info["groups"]
    assert len(names) == len(found.records) == 3
    assert found.bad_files == []
    assert max(len(name.encode()) for name in names) <= 200


def test_an_instance_map_of_another_size_is_named(a_pack, tmp_path):
    folder = a_pack(train=[1, 2])
    (folder / "instances").mkdir()
    Image.fromarray(np.zeros((5, 7), np.uint16)).save(folder / "instances" / "p1.png")
    found = run(folder, output=tmp_path / "out")
    assert [record.name for record in found.records] == ["p2"]
    assert "its size differs" in found.bad_files[0].reason


def test_slices_of_one_volume_in_two_splits_are_refused_from_the_looser(a_pack, tmp_path):
    folder = a_pack(train=[1], val=[2], test=[3])
    names = {"p1": "other_z001", "p2": "scan_z001", "p3": "scan_z007"}
    for kind in ("images", "labels"):
        for old, new in names.items():
            (folder / kind / f"{old}.png").rename(folder / kind / f"{new}.png")
    info = json.loads((folder / "dataset.json").read_text())
    info["splits"] = {"train": ["other_z001"], "val": ["scan_z001"], "test": ["scan_z007"]}
    (folder / "dataset.json").write_text(json.dumps(info))
    found = run(folder, output=tmp_path / "out")
    assert {record.name: bool(record.refusal) for record in found.records} == {
        "other_z001": False, "scan_z001": True, "scan_z007": False}
    assert "the source has other images of it in test" in found.records[1].refusal


def test_an_nnunet_folder_without_an_ending_goes_by_its_files(an_nnunet_folder):
    folder = an_nnunet_folder(cases=1)
    info = json.loads((folder / "dataset.json").read_text())
    del info["file_ending"]
    (folder / "dataset.json").write_text(json.dumps(info))
    for path in [*folder.glob("*Tr/*.nii.gz")]:
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path).replace(".nii.gz", ".nrrd"))
        path.unlink()
    (folder / "imagesTs").mkdir()
    (folder / "imagesTs" / "more_0000.nrrd").touch()
    items, bad = read(folder)
    assert len(items) == 3
    assert bad == {"imagesTs": "its images have no labels: there is no labelsTs."}


def test_pixels_that_nnunet_ignores_are_refused_for_what_they_are(an_nnunet_folder, a_volume, write_volume):
    folder = an_nnunet_folder(cases=2)
    info = json.loads((folder / "dataset.json").read_text())
    info["labels"]["ignore"] = 2
    (folder / "dataset.json").write_text(json.dumps(info))
    label = a_volume(0)[1]
    label[2, 0, :5] = 2
    write_volume(folder / "labelsTr" / "blob_000.nii.gz", label)
    items, bad = read(folder)
    assert {item.group for item in items.values()} == {"blob_001"}
    assert "5 pixels are marked to be ignored (2)" in bad["blob_000.nii.gz"]


@pytest.mark.parametrize(("labels", "names"), [
    ({"whole tumour": [1, 2], "core": 2}, {1: "whole tumour without core", 2: "core"}),
    ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]},
     {1: "whole without core", 2: "core without enhancing", 3: "enhancing"}),
    ({"left": [1, 2], "right": [2, 3]}, {1: "left without right", 2: "left and right", 3: "right without left"}),
    ({"background": 0, "liver": 1, "spleen": 2}, {1: "liver", 2: "spleen"}),
    ({"0": "background", "3": "liver"}, {3: "liver"})])
def test_regions_become_names_of_what_each_index_shows(labels, names):
    assert indexed_labels({"labels": labels}, Path("dataset.json")) == names


def test_an_ending_without_its_dot_is_understood(an_nnunet_folder):
    folder = an_nnunet_folder(cases=2)
    info = json.loads((folder / "dataset.json").read_text()) | {"file_ending": "nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(info))
    items, bad = read(folder)
    assert bad == {}
    assert {item.group for item in items.values()} == {"blob_000", "blob_001"}


def test_images_without_the_number_of_a_channel_are_told_to_be_renamed(an_nnunet_folder):
    folder = an_nnunet_folder(cases=2)
    (folder / "imagesTr" / "blob_000_0000.nii.gz").rename(folder / "imagesTr" / "blob_000.nii.gz")
    items, bad = read(folder)
    assert {item.group for item in items.values()} == {"blob_001"}
    assert list(bad) == ["blob_000.nii.gz"]
    assert "rename it to blob_000_0000.nii.gz" in bad["blob_000.nii.gz"]


@pytest.mark.parametrize("channels", [None, {}, {"first": "CT"}])
def test_an_nnunet_folder_without_channels_says_what_is_needed(an_nnunet_folder, channels):
    folder = an_nnunet_folder(cases=1)
    info = json.loads((folder / "dataset.json").read_text()) | {"channel_names": channels}
    (folder / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="needs what the image channels are"):
        open_sources([folder])


def test_a_folder_given_twice_or_as_a_dot_comes_once_by_its_name(a_pack, monkeypatch):
    folder = a_pack(train=[1])
    monkeypatch.chdir(folder)
    (source,) = open_sources([Path("."), folder, folder.parent])
    assert source.code == "blobs"


def test_a_window_without_width_is_refused(a_pack):
    with pytest.raises(DataError, match="no width"):
        open_sources([a_pack(train=[1])], "auto", (40.0, 0.0))


def test_an_output_that_cannot_be_written_is_one_sentence(a_pack, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        run(a_pack(train=[1]), output=tmp_path / "file" / "out")


def test_a_patient_in_two_sources_is_one_when_the_name_tells(a_pair, tmp_path):
    for seed in range(8):
        a_pair(f"pat{seed}_a", seed, "left")
        a_pair(f"pat{seed}_b", seed + 50, "right")
    found = run(tmp_path / "left", tmp_path / "right", output=tmp_path / "out", patient_pattern=r"pat\d+")
    splits = {}
    for record in found.records:
        splits.setdefault(record.name.partition("_")[0], set()).add(record.split)
    assert {len(of_one) for of_one in splits.values()} == {1}
    assert set.union(*splits.values()) == {"train", "val", "test"}


def test_links_are_followed_and_broken_ones_named(a_pair, tmp_path):
    folder = a_pair("a")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(folder / "images" / "a.png", tmp_path / "elsewhere" / "b.png")
    os.symlink(tmp_path / "elsewhere" / "b.png", folder / "images" / "a.png")
    a_pair("gone", 1)
    (folder / "images" / "gone.png").unlink()
    os.symlink(tmp_path / "nowhere.png", folder / "images" / "gone.png")
    os.symlink(folder, folder / "loop")
    items, bad = read(folder)
    assert list(items) == ["a"]
    assert bad == {"gone.png": "label without an image."}


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 2), (20, 5)])
def test_pictures_of_a_few_pixels_are_judged_without_falling_over(tmp_path, write_png, shape):
    write_png(tmp_path / "in" / "images" / "a.png", np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape))
    label = np.zeros(shape, np.uint8)
    label.flat[: label.size // 2 + 1] = 1
    write_png(tmp_path / "in" / "labels" / "a.png", label)
    found = run(tmp_path / "in", output=tmp_path / "out")
    assert len(found.records) == 1
    assert (tmp_path / "out" / "report.html").exists()
