"""Data sets from strangers: nothing in them runs, and nothing is read or written outside of their folders."""

from __future__ import annotations

import json
import stat

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from SegMoTELib.data.curate import _atomic_folder, _cell, curate
from SegMoTELib.data.items import SourceSet
from SegMoTELib.data.pack import open_pack
from SegMoTELib.data.readers.imis import read_sparse_masks
from SegMoTELib.data.report import Report, Thumbnail
from SegMoTELib.data.sources import open_sources
from SegMoTELib.data.writer import PackWriter
from SegMoTELib.errors import DataError
from SegMoTELib.training.config import load_training_config

OUTSIDE = ["../../x", "..", "/etc/passwd", "a/b", "a\\b", "C:x", ".hidden", "", "nul\0byte", None]


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


@pytest.mark.parametrize("line", [
    "data: !!python/object/apply:builtins.exec [\"open(r'MARK', 'w').close()\"]",
    "data: !!python/object/new:subprocess.Popen [[touch, MARK]]", "data: !!python/name:os.system",
    "data: " + "[" * 5000])
def test_a_training_config_runs_nothing(tmp_path, line):
    path = tmp_path / "run.yaml"
    path.write_text(line.replace("MARK", str(tmp_path / "mark")))
    with pytest.raises(DataError, match=r"run\.yaml"):
        load_training_config(path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("part", ["data", "indices", "shape", "format"])
def test_a_label_archive_with_objects_runs_nothing(tmp_path, part):
    path = tmp_path / "x.(1, 4, 4, 1).npz"
    sparse.save_npz(path, sparse.csr_matrix(np.eye(1, 16, dtype=np.uint8)))
    arrays = dict(np.load(path, allow_pickle=False))
    arrays[part] = np.array([Evil(tmp_path / "mark")], dtype=object)
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="not a sparse label matrix"):
        read_sparse_masks(path)
    assert not (tmp_path / "mark").exists()
    np.load(path, allow_pickle=True)[part]  # the bait works
    assert (tmp_path / "mark").exists()


def test_a_label_archive_that_would_fill_the_memory_is_refused(tmp_path):
    path = tmp_path / "x.(1, 4, 4, 1).npz"
    sparse.save_npz(path, sparse.csr_matrix((10**6, 10**8), dtype=np.uint8))
    with pytest.raises(DataError, match="not a sparse label matrix"):
        read_sparse_masks(path)


def described(folder, **changes):
    """A pack of one image, with changes to its description."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.pad(np.ones((20, 20), np.uint8), 20)).save(folder / name / "one.png")
    description = {"name": "set", "modality": "MR", "labels": {"0": "background", "1": "organ"},
                   "splits": {"train": ["one"]}, "licence": "CC0"}
    (folder / "dataset.json").write_text(json.dumps(description | changes))
    return folder


@pytest.mark.parametrize("identifier", OUTSIDE)
def test_an_image_is_named_not_addressed(tmp_path, identifier):
    folder = described(tmp_path / "set", splits={"train": ["one", identifier]})
    with pytest.raises(DataError, match="is not the name of an image"):
        open_pack(folder)
    with pytest.raises(ValueError, match="is not the name of an image"):
        PackWriter(tmp_path / "out", SourceSet("set", "MR", {}, {}, [])).free_name(identifier)


def test_a_folder_given_as_dots_becomes_a_name(tmp_path, monkeypatch):
    folder = described(tmp_path / "set")
    (folder / "below").mkdir()
    monkeypatch.chdir(folder / "below")
    sources = open_sources([folder / "below" / ".."], "pack")
    assert sources[0].code == "set"
    curate(sources, tmp_path / "out", review=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]
    assert (tmp_path / "out" / "set" / "images" / "one.png").is_file()


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "images/../../outside.png"])
def test_a_description_cannot_name_files_outside_of_its_folder(tmp_path, name):
    folder = tmp_path / "set"
    folder.mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "outside.png")
    (folder / "dataset.json").write_text(json.dumps(
        {"labels": {"1": "organ"}, "modality": {"0": "MR"},
         "training": [{"image": name, "label": "label/x.(1, 4, 4, 1).npz"}]}))
    with pytest.raises(DataError, match="does not lie in the data set's folder"):
        open_sources([folder])


@pytest.mark.parametrize("text", ["[" * 100_000, "{\"a\":" * 100_000])
def test_a_description_nested_without_end_is_named(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json"):
        open_sources([tmp_path])
    with pytest.raises(DataError, match=r"dataset\.json"):
        open_pack(tmp_path)


def test_names_in_the_report_stay_text(tmp_path):
    bad = "<script>alert(1)</script><img src=x onerror=alert(1)>\"' {{ 7 * 7 }} {% raw %}"
    row = dict.fromkeys(("code", "modality", "licence", "source", "share", "splits", "images", "kept", "rejected"), bad)
    Report(summary=bad, sets=[row], reasons=[(bad, 1)], thresholds=[(bad, 1.0)], bad_files=[(bad, bad)],
           duplicates=[(bad, bad, bad)],
           galleries=[(bad, "kept", 1, [Thumbnail("AAAA", bad, (bad,))])]).write(tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert html.count("&lt;script&gt;") == 20
    assert "<script" not in html
    assert "onerror=alert(1)>" not in html
    assert "{{ 7 * 7 }}" in html
    assert "http" not in html  # needs no network


@pytest.mark.parametrize(("text", "cell"), [
    ("=cmd|'/c calc'!A1", "'=cmd|'/c calc'!A1"), ("@SUM(1)", "'@SUM(1)"), ("+1", "'+1"), ("-1", "'-1"),
    ("left kidney", "left kidney"), ("", "")])
def test_a_name_is_no_formula_in_a_spreadsheet(text, cell):
    assert _cell(text) == cell


def test_an_unfinished_curation_is_the_users_alone(tmp_path):
    with _atomic_folder(tmp_path / "out", False) as folder:
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
