"""Curation from end to end: what is written, what is left out, and what is said about it."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import ndimage

from SegMoTELib.cli.curate import command
from SegMoTELib.data.curate import curate
from SegMoTELib.data.pack import open_pack, open_packs
from SegMoTELib.data.sources import open_sources
from SegMoTELib.data.writer import PackWriter
from SegMoTELib.errors import DataError


def run(*arguments: str | Path) -> str:
    """Run ``segmote curate`` and return what it prints; errors come through."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "review.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def checksums(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_what_is_written_opens_as_a_pack_with_the_same_pixels(a_pack, out):
    folder = a_pack(train=[1, 2], val=[3], test=[4])
    printed = run(folder, "-o", out)
    assert ("1 data sets, 4 images of 4 patients or volumes and 4 masks kept; 0 masks rejected, 0 bad files, "
            "0 duplicates. See") in printed
    before, after = open_pack(folder), open_pack(out / "blobs")
    assert after.labels == before.labels
    for split in ("train", "val", "test"):
        for old, new in zip(before.samples(split), after.samples(split), strict=True):
            assert np.array_equal(old.load_image(), new.load_image())
            assert np.array_equal(old.load_label(), new.load_label())


def test_the_licence_and_other_descriptions_are_carried_along(a_pack, an_nnunet_folder, out):
    run(a_pack(train=[1]), an_nnunet_folder(cases=3), "-o", out)
    blobs, nnunet = open_packs([out])[::-1]
    assert (blobs.info["licence"], blobs.info["caveat"], blobs.modality) == ("CC BY 4.0", "synthetic", "CT")
    assert nnunet.info["licence"] == "CC BY-SA 4.0"
    assert "CC BY-SA 4.0" in (out / "report.html").read_text()


def test_volumes_are_split_whole_and_keep_their_spacing(an_nnunet_folder, out):
    run(an_nnunet_folder(cases=6, channels=("T1", "T2")), "-o", out)
    places: dict[str, set[str]] = {}
    for pack in open_packs([out]):
        assert all(pack.info["splits"].values())
        for split in pack.info["splits"]:
            for sample in pack.samples(split):
                assert sample.spacing_mm == pytest.approx((0.7, 0.8))
                places.setdefault(pack.info["groups"][sample.identifier], set()).add(split)
    assert len(places) == 6
    assert all(len(splits) == 1 for splits in places.values())


@pytest.fixture
def twelve_pairs(tmp_path, a_picture, write_png):
    """Pictures of patients a, b, c and d, named ``ax0`` and so on, where only a pattern tells them apart."""
    for number in range(12):
        image, mask = a_picture(number)
        write_png(tmp_path / "in" / "images" / f"{'abcd'[number % 4]}x{number}.png", image)
        write_png(tmp_path / "in" / "labels" / f"{'abcd'[number % 4]}x{number}.png", mask.astype(np.uint8))
    return tmp_path / "in"


def test_patients_can_be_told_by_a_pattern(twelve_pairs, out):
    assert "12 images of 4 patients or volumes" in run(twelve_pairs, "-o", out, "--patient", "^[a-d]")
    info = open_pack(out / "in").info
    assert info["n_groups"] == 4
    for split in info["splits"].values():
        for other in info["splits"].values():
            assert split is other or not {name[0] for name in split} & {name[0] for name in other}


def test_names_that_a_pattern_does_not_match_are_counted(twelve_pairs, out):
    printed = run(twelve_pairs, "-o", out, "--patient", "^[a-c]")
    assert "12 images of 6 patients or volumes" in printed
    assert "3 of 12 names do not match --patient (e.g. in/dx11), so their patients are told by the layout" in printed
    assert "3 of 12 names do not match --patient" in (out / "report.html").read_text()


@pytest.mark.parametrize(("pattern", "message"), [("^patient", "matches none of the 12 names, such as in/ax0"),
                                                  (r"\d*", "an empty patient in 'ax0'"), ("x()", "an empty patient"),
                                                  ("", "an empty patient")])
def test_a_pattern_that_tells_no_patients_apart_is_refused(twelve_pairs, out, pattern, message):
    with pytest.raises(DataError, match=message):
        run(twelve_pairs, "-o", out, "--patient", pattern)
    assert not out.exists()


def test_a_rejected_mask_leaves_the_written_label_map_only(a_pack, write_png, out):
    folder = a_pack(train=[1], info={"labels": {"0": "background", "1": "blob", "2": "speck"}})
    label = np.array(next(open_pack(folder).samples("train")).load_label())
    label[3, 3:5] = 2
    write_png(folder / "labels" / "p1.png", label)
    before = checksums(folder)
    run(folder, "-o", out)
    assert checksums(folder) == before
    written = next(open_pack(out / "blobs").samples("train")).load_label()
    assert np.array_equal(written, np.where(label == 2, 0, label))
    kept, rejected = rows(out)
    assert (kept["verdict"], rejected["verdict"], rejected["label_name"]) == ("kept", "rejected", "speck")
    assert "too small" in rejected["reasons"]
    report = (out / "report.html").read_text()
    assert "Rejected: too small" in report
    assert report.count("data:image/jpeg;base64,") == 2


def test_defects_are_left_out_and_counted(a_pack, a_picture, write_png, out):
    folder = a_pack(train=[1, 2, 3])
    image, mask = a_picture(2)
    write_png(folder / "images" / "p2.png", ndimage.gaussian_filter(image, 5))
    write_png(folder / "labels" / "p3.png", np.zeros(mask.shape, np.uint8))
    run(folder, "-o", out)
    info = open_pack(out / "blobs").info
    assert info["splits"] == {"train": ["p1"], "val": [], "test": []}
    assert info["review"]["reasons"] == {"blurred": 1, "empty mask": 1}
    assert not (out / "blobs" / "images" / "p2.png").exists()


def test_objects_without_an_edge_are_told_and_kept_when_asked(a_pack, a_picture, write_png, tmp_path):
    folder = a_pack(train=[1, 2, 3, 4, 5])
    for seed in (1, 2, 3):  # labels where nothing is
        write_png(folder / "labels" / f"p{seed}.png", np.roll(a_picture(seed)[1], 24, axis=1).astype(np.uint8))
    printed = run(folder, "-o", tmp_path / "judged")
    assert "blobs, blob: 3 of 5 masks rejected" in printed
    assert "3 of 5\nmasks were rejected because their border" in (tmp_path / "judged" / "report.html").read_text()
    printed = run(folder, "-o", tmp_path / "kept", "--min-border", "0")
    assert "5 masks kept" in printed
    assert "masks rejected, because" not in printed


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "high"])
def test_a_border_rule_that_no_border_could_be_judged_by_is_refused(a_pack, out, value):
    result = CliRunner().invoke(command, [str(a_pack(train=[1])), "-o", str(out), "--min-border", value])
    assert result.exit_code == 2
    assert "--min-border" in result.output
    assert not out.exists()


def test_without_review_every_mask_is_kept(a_pack, a_picture, write_png, out):
    folder = a_pack(train=[1, 2])
    write_png(folder / "images" / "p2.png", ndimage.gaussian_filter(a_picture(2)[0], 5))
    run(folder, "-o", out, "--no-review")
    assert open_pack(out / "blobs").info["splits"]["train"] == ["p1", "p2"]
    assert {row["sharpness"] for row in rows(out)} == {""}


def test_a_bad_file_is_named_everywhere_and_the_rest_is_kept(a_pack, truncate, out):
    folder = a_pack(train=[1, 2])
    truncate(folder / "images" / "p1.png")
    printed = run(folder, "-o", out)
    assert "p1.png" in printed
    assert "1 bad files" in printed
    assert "p1.png" in (out / "report.html").read_text()
    (bad,) = open_pack(out / "blobs").info["review"]["bad_files"]
    assert "p1.png" in bad["reason"]
    assert open_pack(out / "blobs").info["splits"]["train"] == ["p2"]


def test_when_nothing_can_be_used_the_report_still_says_why(a_pack, truncate, out):
    folder = a_pack(train=[1])
    truncate(folder / "images" / "p1.png")
    assert "0 images of 0 patients or volumes and 0 masks kept" in run(folder, "-o", out)
    assert "p1.png" in (out / "report.html").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "review.csv"]


def test_a_duplicate_across_fixed_splits_is_refused_from_training(a_pack, out):
    folder = a_pack(train=[1, 2], test=[3])
    for kind in ("images", "labels"):
        shutil.copy(folder / kind / "p3.png", folder / kind / "p1.png")
    run(folder, "-o", out)
    info = open_pack(out / "blobs").info
    assert info["splits"] == {"train": ["p2"], "val": [], "test": ["p3"]}
    assert "the same pixels as blobs/p3 in test" in next(row for row in rows(out) if row["image"] == "p1")["reasons"]
    assert "blobs/p1 refused" in (out / "report.html").read_text()
    assert not (out / "blobs" / "images" / "p1.png").exists()


def test_a_duplicate_in_another_data_set_is_found_too(a_pack, out):
    run(a_pack("first", train=[1, 2]), a_pack("second", test=[2]), "-o", out)
    first, second = open_packs([out])
    assert first.info["splits"]["train"] == ["p1"]
    assert second.info["splits"]["test"] == ["p2"]


def test_the_same_run_gives_the_same_bytes(a_pack, an_nnunet_folder, tmp_path):
    sources = [a_pack(train=[1, 2], test=[3]), an_nnunet_folder(cases=4)]
    for name in ("one", "two"):
        run(*sources, "-o", tmp_path / name, "--seed", "5")
    assert checksums(tmp_path / "one") == checksums(tmp_path / "two")


def test_curating_the_output_again_keeps_splits_and_groups(an_nnunet_folder, tmp_path):
    run(an_nnunet_folder(cases=4), "-o", tmp_path / "one")
    run(tmp_path / "one", "-o", tmp_path / "two")
    first, second = (open_packs([tmp_path / name])[0].info for name in ("one", "two"))
    assert first["splits"] == second["splits"]
    assert first["groups"] == second["groups"]


def test_an_existing_output_is_replaced_only_when_asked_and_only_if_it_is_ours(a_pack, out):
    folder = a_pack(train=[1])
    run(folder, "-o", out)
    with pytest.raises(DataError, match="already exists"):
        run(folder, "-o", out)
    run(folder, "-o", out, "--overwrite")
    (out / "review.csv").unlink()
    with pytest.raises(DataError, match="not the output of an earlier curation"):
        run(folder, "-o", out, "--overwrite")


def test_an_interrupted_run_leaves_nothing_and_keeps_the_earlier_output(a_pack, out):
    sources = open_sources([a_pack(train=[1, 2])])
    curate(sources, out)
    before = checksums(out)

    def interrupt(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curate(sources, out, overwrite=True, progress=interrupt)
    assert checksums(out) == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "sources"]


def test_a_run_that_is_ended_from_outside_leaves_nothing(a_pack, out, monkeypatch):
    folder, before = a_pack(train=[1, 2]), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(PackWriter, "finish", lambda *_: signal.raise_signal(signal.SIGTERM))
    result = CliRunner().invoke(command, [str(folder), "-o", str(out)])
    assert (result.exit_code, result.output.strip()) == (1, "Aborted!")
    assert [path.name for path in out.parent.iterdir()] == ["sources"]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("place", ["{source}", "{source}/out", "{source}/.."])
def test_an_output_in_or_around_a_source_is_refused(a_pack, place):
    folder = a_pack(train=[1])
    with pytest.raises(DataError, match="outside the source"):
        run(folder, "-o", place.format(source=folder), "--overwrite")


def test_a_pattern_that_is_none_is_refused(a_pack, out):
    with pytest.raises(DataError, match="not a valid regular expression"):
        run(a_pack(train=[1]), "-o", out, "--patient", "(")


def test_names_in_the_report_cannot_break_it(a_pack, out):
    run(a_pack(train=[1], info={"licence": "<script>alert(1)</script>"}), "-o", out)
    assert "<script>" not in (out / "report.html").read_text()


def test_instance_maps_go_along(a_pack, write_png, out):
    folder = a_pack(train=[1])
    label = next(open_pack(folder).samples("train")).load_label()
    write_png(folder / "instances" / "p1.png", label.astype(np.uint16) * 300)
    run(folder, "-o", out)
    assert np.array_equal(next(open_pack(out / "blobs").samples("train")).load_instances(), label.astype(int) * 300)


def test_real_images_are_mostly_kept(real_pack, tmp_path, out):
    pack = open_pack(real_pack / "kidney_mr")
    folder = tmp_path / "kidney_mr"
    shutil.copytree(pack.folder, folder)
    run(folder, "-o", out)
    written = open_pack(out / "kidney_mr").info
    assert written["n_masks"] >= 0.85 * pack.info["n_masks"]
    assert written["licence"] == pack.info["licence"]
    assert json.dumps(written["review"])
