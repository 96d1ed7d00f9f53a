"""Whole runs on small data sets, sound and broken."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from SegMoTELib.data.pack import open_packs
from SegMoTELib.errors import DataError
from SegMoTELib.evaluation.evaluate import evaluate
from SegMoTELib.evaluation.sheet import choose_pictures, write_sheet
from SegMoTELib.evaluation.table import format_evaluation


def find_row(result, level, name, method, mode):
    return next(row for row in result.summary()
                if (row.level, row.name, row.method, row.mode) == (level, name, method, mode))


def test_every_mode_is_scored_and_every_image_encoded_once(tmp_path, make_pack, predictor):
    result = evaluate(open_packs([make_pack(tmp_path / "shapes")]), predictor, baselines=False)
    assert predictor.encoded == 3
    assert Counter(case.mode for case in result.cases) == {
        "box": 6, "boxes": 6, "click1": 6, "click3": 6, "click5": 6, "clicks": 6, "auto": 3}
    assert find_row(result, "overall", "all", "SegMoTE", "box").metrics["dice"].mean > 0.97
    assert (find_row(result, "overall", "all", "SegMoTE", "click1").metrics["dice"].mean
            < find_row(result, "overall", "all", "SegMoTE", "click3").metrics["dice"].mean)
    clicks = find_row(result, "overall", "all", "SegMoTE", "clicks").metrics
    assert clicks["noc85"].mean == clicks["noc90"].mean == 2
    assert clicks["reached90"].mean == 1
    auto = find_row(result, "dataset", "shapes", "SegMoTE", "auto").metrics["dice"]
    assert 0.5 < auto.mean < 0.9  # it finds the square too


def test_pieces_get_a_box_each_and_what_lies_between_them_is_not_found(tmp_path, make_pack, predictor):
    folder = make_pack(tmp_path / "shapes", images=1)
    label = np.array(Image.open(folder / "labels" / "case0.png"))
    image = np.array(Image.open(folder / "images" / "case0.png"))
    label[2:10, 60:68] = 1  # a second piece of the disk's class, with something bright between them
    image[2:40, 36:68] = 190
    Image.fromarray(label).save(folder / "labels" / "case0.png")
    Image.fromarray(image).save(folder / "images" / "case0.png")
    result = evaluate(open_packs([folder]), predictor)
    scores = {(case.method, case.mode): case.metrics for case in result.cases if case.target == "blob"}
    for method in ("SegMoTE", "frozen base", "ellipse in box", "GrabCut"):
        assert scores[method, "boxes"]["dice"] > scores[method, "box"]["dice"] + 0.1
        assert scores[method, "boxes"]["boxes"] == 2
    assert find_row(result, "overall", "all", "SegMoTE", "boxes").metrics["boxes"].mean == 1.5
    assert "A box per piece: 1.50 boxes a target" in format_evaluation(result)
    result.write_csv(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        drawn = {line["boxes"] for line in csv.DictReader(file) if line["mode"] == "boxes"}
    assert drawn == {"1.0", "2.0"}
    (picture,) = (one for one in result.pictures if one.case.mode == "boxes" and one.case.target == "blob")
    assert len(picture.boxes) == 2


def test_overall_counts_data_sets_alike_whatever_their_size(tmp_path, make_pack, predictor):
    make_pack(tmp_path / "a", images=1)
    make_pack(tmp_path / "b", images=4, modality="MR")
    result = evaluate(open_packs([tmp_path]), predictor)
    single = [find_row(result, "dataset", name, "frozen base", "box").metrics["dice"].mean for name in ("a", "b")]
    row = find_row(result, "overall", "all", "frozen base", "box")
    assert row.metrics["dice"].mean == pytest.approx(np.mean(single))
    assert (row.images, row.targets) == (5, 10)
    assert row.metrics["dice"].low <= row.metrics["dice"].mean <= row.metrics["dice"].high
    assert find_row(result, "modality", "MR", "GrabCut", "box").images == 4


def test_two_runs_are_equal(tmp_path, make_pack, predictor):
    make_pack(tmp_path / "shapes", images=4, instances=True)
    for name in ("first", "second"):
        result = evaluate(open_packs([tmp_path / "shapes"]), predictor, limit=2)
        result.write_json(tmp_path / f"{name}.json")
        result.write_csv(tmp_path / f"{name}.csv")
        write_sheet(tmp_path / f"{name}.png", result.pictures)
    for suffix in ("json", "csv", "png"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()


def test_limit_draws_the_same_few_images_per_data_set(tmp_path, make_pack, predictor):
    make_pack(tmp_path / "a", images=6)
    make_pack(tmp_path / "b", images=2)
    seen = []
    evaluate(open_packs([tmp_path]), predictor, baselines=False, limit=3, progress=lambda *state: seen.append(state))
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5]
    assert {total for _, total, _ in seen} == {5}
    assert Counter(name.split("/")[0] for _, _, name in seen) == {"a": 3, "b": 2}


def test_single_objects_are_the_targets_where_they_are_known(tmp_path, make_pack, predictor):
    result = evaluate(open_packs([make_pack(tmp_path / "cells", images=1, instances=True)]), predictor,
                      baselines=False)
    assert len([case for case in result.cases if case.mode == "box"]) == 5
    assert result.skipped == {"cells": 1}


def test_bad_images_are_named_and_the_others_evaluated(tmp_path, make_pack, predictor):
    folder = make_pack(tmp_path / "shapes", images=8)
    (folder / "labels" / "case0.png").unlink()
    (folder / "images" / "case1.png").unlink()
    Image.new("L", (10, 10)).save(folder / "labels" / "case2.png")
    Image.new("RGB", (72, 64)).save(folder / "labels" / "case3.png")
    (folder / "images" / "case4.png").write_bytes(b"not a picture")
    content = (folder / "images" / "case5.png").read_bytes()
    (folder / "images" / "case5.png").write_bytes(content[:len(content) // 2])
    Image.new("L", (72, 64)).save(folder / "labels" / "case6.png")
    result = evaluate(open_packs([folder]), predictor, baselines=False)
    assert [failure.image for failure in result.failures] == [f"case{index}" for index in range(6)]
    assert {case.image for case in result.cases} == {"case7"}
    assert result.untargeted == {"shapes": 1}
    text = format_evaluation(result)
    assert "6 images could not be evaluated" in text
    assert "shapes/case2" in text
    assert "10x10" in text


def test_a_model_that_fails_on_an_image_does_not_end_the_run(tmp_path, make_pack, predictor, monkeypatch):
    folder = make_pack(tmp_path / "shapes", images=2)
    work = predictor.set_image

    def fail_once(image):
        work(image)
        if predictor.encoded == 1:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(predictor, "set_image", fail_once)
    result = evaluate(open_packs([folder]), predictor, baselines=False)
    assert [failure.reason for failure in result.failures] == ["RuntimeError: out of memory"]
    assert {case.image for case in result.cases} == {"case1"}


def test_a_run_without_any_result_is_an_error(tmp_path, make_pack, predictor):
    folder = make_pack(tmp_path / "shapes", images=2)
    with pytest.raises(DataError, match="no images in the split 'val' of shapes"):
        evaluate(open_packs([folder]), predictor, split="val")
    for path in (folder / "labels").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="none of 2 images could be evaluated; shapes/case0"):
        evaluate(open_packs([folder]), predictor)


def test_data_sets_without_the_split_are_named(tmp_path, make_pack, predictor):
    for name in ("a", "b", "c"):
        make_pack(tmp_path / name, images=1)
    for name, splits in (("a", {"train": ["case0"]}), ("c", {"test": []})):
        info = json.loads((tmp_path / name / "dataset.json").read_text()) | {"splits": splits}
        (tmp_path / name / "dataset.json").write_text(json.dumps(info))
    result = evaluate(open_packs([tmp_path]), predictor, baselines=False)
    assert result.absent == ["a", "c"]
    assert "2 data sets without images in the split 'test' left out (a, c)" in format_evaluation(result)
    result.write_json(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["datasets_without_split"] == ["a", "c"]


def test_data_sets_of_one_name_are_refused(tmp_path, make_pack, predictor):
    folders = [make_pack(tmp_path / parent / "shapes", images=1) for parent in "ab"]
    with pytest.raises(DataError, match="two data sets are named 'shapes'"):
        evaluate(open_packs(folders), predictor)


def test_empty_data_is_told_not_crashed_on(tmp_path, make_pack, predictor):
    folder = make_pack(tmp_path / "shapes", images=1)
    Image.new("L", (72, 64)).save(folder / "labels" / "case0.png")
    result = evaluate(open_packs([folder]), predictor)
    assert "No target was large enough" in format_evaluation(result)
    result.write_json(tmp_path / "out.json")
    with pytest.raises(DataError, match="no case to draw"):
        write_sheet(tmp_path / "sheet.png", result.pictures)


def test_files_hold_what_was_found(tmp_path, make_pack, predictor):
    result = evaluate(open_packs([make_pack(tmp_path / "shapes")]), predictor)
    result.write_json(tmp_path / "new folder" / "out.json")
    result.write_csv(tmp_path / "out.csv")
    content = json.loads((tmp_path / "new folder" / "out.json").read_text())
    assert content["settings"]["methods"] == [
        "SegMoTE", "frozen base", "ellipse in box", "GrabCut", "random walker"]
    row = next(row for row in content["summary"] if (row["level"], row["method"]) == ("overall", "SegMoTE"))
    assert row["metrics"]["surface_dice"]["mean"] == pytest.approx(1.0)
    with (tmp_path / "out.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(result.cases)
    assert float(lines[0]["dice"]) == pytest.approx(result.cases[0].metrics["dice"], abs=1e-6)
    assert lines[0]["noc85"] == ""


def test_sheet_shows_best_median_and_worst_of_every_mode(tmp_path, make_pack, predictor):
    result = evaluate(open_packs([make_pack(tmp_path / "shapes")]), predictor)
    chosen = choose_pictures(result.pictures)
    assert list(chosen) == ["box", "boxes", "click1", "click3", "click5", "auto"]
    dices = [chosen["auto"][rank].case.metrics["dice"] for rank in ("best", "median", "worst")]
    assert dices == sorted(dices, reverse=True)
    truth, prediction = chosen["box"]["best"].masks()
    assert truth.shape == prediction.shape == (64, 72)
    write_sheet(tmp_path / "sheet.png", result.pictures)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 800


def test_a_photograph_that_is_stored_turned_is_upright_on_the_sheet(tmp_path, make_pack, predictor, monkeypatch):
    folder = make_pack(tmp_path / "shapes", images=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(folder / "images" / "case0.png") as image:
        image.transpose(Image.Transpose.ROTATE_90).save(folder / "images" / "case0.jpg", exif=exif)
    (folder / "images" / "case0.png").unlink()
    pictures = evaluate(open_packs([folder]), predictor, baselines=False).pictures
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.extend(figure.axes))
    write_sheet(tmp_path / "sheet.png", pictures)
    assert {axis.images[0].get_array().shape for axis in drawn} == {(64, 72)}


def test_names_on_the_sheet_are_no_formulas(tmp_path, make_pack, predictor):
    folder = make_pack(tmp_path / "set $x", images=1)
    info = json.loads((folder / "dataset.json").read_text())
    info["labels"]["1"] = r"blob $\frac{1$"
    (folder / "dataset.json").write_text(json.dumps(info))
    write_sheet(tmp_path / "sheet.png", evaluate(open_packs([folder]), predictor, baselines=False).pictures)
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_tables_name_every_method_and_data_set(tmp_path, make_pack, predictor):
    text = format_evaluation(evaluate(open_packs([make_pack(tmp_path / "shapes")]), predictor))
    for word in ("SegMoTE", "frozen base", "GrabCut", "random walker", "shapes", "CT", "surface Dice", "5 clicks",
                 "Clicks needed"):
        assert word in text


def test_an_image_listed_twice_counts_once_and_a_spacing_that_is_none_is_named(tmp_path, make_pack, predictor):
    folder = make_pack(tmp_path / "shapes", images=3)
    info = json.loads((folder / "dataset.json").read_text())
    info["splits"]["test"] = ["case1", "case1", "case2"]
    info["spacing_mm"] = {"case2": 0.5}
    (folder / "dataset.json").write_text(json.dumps(info))
    result = evaluate(open_packs([folder]), predictor, baselines=False)
    assert sum(case.mode == "box" for case in result.cases) == 2
    (failure,) = result.failures
    assert (failure.image, "spacing_mm of 'case2'" in failure.reason) == ("case2", True)
