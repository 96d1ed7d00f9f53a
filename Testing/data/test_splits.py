"""Splits by patient, and pictures that turn up twice."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from SegMoTELib.data.splits import assign_splits, find_duplicates, fingerprint, leaks


def split(groups: list[str], fixed: list[str | None] | None = None, duplicates=(), seed: int = 0) -> list[str]:
    return assign_splits(groups, fixed or [None] * len(groups), ["set"] * len(groups), duplicates, seed)


def test_a_patient_is_in_one_split_only():
    groups = [f"patient {number % 20}" for number in range(200)]
    splits = split(groups)
    assert all(len({s for s, g in zip(splits, groups, strict=True) if g == group}) == 1 for group in groups)
    assert {name: splits.count(name) for name in ("train", "val", "test")} == {"train": 140, "val": 30, "test": 30}


@pytest.mark.parametrize(("count", "expected"), [(1, ["train"]), (2, ["test", "train"]), (3, ["test", "train", "val"])])
def test_few_patients_still_make_sensible_splits(count, expected):
    assert sorted(split([f"p{number}" for number in range(count)])) == expected


def test_the_seed_decides_and_the_order_of_reading_does_not():
    groups = [f"p{number}" for number in range(30)]
    first = dict(zip(groups, split(groups), strict=True))
    assert first == dict(zip(groups[::-1], split(groups[::-1]), strict=True))
    assert first != dict(zip(groups, split(groups, seed=1), strict=True))


def test_most_patients_stay_in_their_split_when_one_is_added():
    for seed in range(10):
        before, after = (dict(zip(groups, split(groups, seed=seed), strict=True))
                         for groups in ([f"p{number}" for number in range(count)] for count in (20, 21)))
        moved = {(before[group], after[group]) for group in before if before[group] != after[group]}
        assert sum(before[group] != after[group] for group in before) <= 2
        assert ("test", "train") not in moved


def test_a_split_fixed_by_the_source_stays_and_binds_its_patient():
    assert split(["a", "a", "b"], ["test", None, "val"]) == ["test", "test", "val"]


def test_the_same_and_nearly_the_same_picture_are_found_between_groups_only(a_picture):
    image, _ = a_picture(1)
    brighter = np.clip(image.astype(int) + 3, 0, 255).astype(np.uint8)
    smaller = np.asarray(Image.fromarray(image).resize((80, 80), Image.Resampling.BILINEAR))
    prints = [fingerprint(one) for one in (image, image, brighter, smaller, a_picture(2)[0])]
    found = find_duplicates(prints, ["a", "b", "c", "d", "e"])
    assert {(one.first, one.second): one.kind for one in found} == {
        (0, 1): "identical", (0, 2): "near", (0, 3): "near", (1, 2): "near", (1, 3): "near", (2, 3): "near"}
    assert find_duplicates(prints, ["a"] * 5) == []


@pytest.mark.parametrize("change", [
    lambda image: image[:, ::-1], lambda image: image[::-1], np.rot90, lambda image: np.rot90(image, 2).T,
    lambda image: np.clip((image - 60.0) * 1.5, 0, 255), lambda image: 255 * (image / 255) ** 1.5],
    ids=["mirrored", "upside down", "turned", "transposed", "windowed", "gamma"])
def test_a_picture_that_was_turned_or_windowed_is_found_again(a_picture, change):
    image = a_picture(1)[0]
    prints = [fingerprint(one) for one in (image, np.ascontiguousarray(change(image)).astype(np.uint8))]
    assert [one.kind for one in find_duplicates(prints, ["a", "b"])] == ["near"]


def test_different_pictures_are_no_duplicates(a_picture):
    prints = [fingerprint(a_picture(seed)[0]) for seed in range(30)]
    assert find_duplicates(prints, [str(number) for number in range(30)]) == []


def test_free_patients_with_the_same_picture_are_moved_together(a_picture):
    groups = [f"p{number}" for number in range(20)]
    prints = [fingerprint(a_picture(number // 2)[0]) for number in range(20)]
    duplicates = find_duplicates(prints, groups)
    splits = split(groups, duplicates=duplicates)
    assert splits[::2] == splits[1::2]
    assert not leaks(splits, groups, duplicates, groups)


def test_a_duplicate_of_a_test_picture_is_refused_from_training(a_picture):
    prints = [fingerprint(a_picture(0)[0])] * 2
    duplicates = find_duplicates(prints, ["a", "b"])
    splits = split(["a", "b"], ["train", "test"], duplicates)
    assert leaks(splits, ["a", "b"], duplicates, ["set/a", "set/b"]) == {
        0: "duplicate across splits: the same pixels as set/b in test"}


def test_a_patient_that_the_source_put_into_two_splits_stays_in_test_only():
    assert list(leaks(["train", "test", "train"], ["a", "a", "b"], [], ["x", "y", "z"])) == [0]
