"""Which things of an image are evaluated."""

import numpy as np
import pytest

from SegMoTELib.data.pack import Pack
from SegMoTELib.errors import DataError
from SegMoTELib.evaluation.targets import find_auto_targets, find_targets

NAMES = {1: "liver", 2: "tumour"}


@pytest.fixture
def label():
    values = np.zeros((30, 30), np.uint8)
    values[2:12, 2:12] = 1
    values[20:24, 20:24] = 2
    return values


def make_pack(code, modality="CT"):
    from pathlib import Path

    return Pack(folder=Path(code), info={"modality": modality}, labels=NAMES)


class Offer:
    def __init__(self, name, modality, *sources):
        self.name, self.modality, self.sources = name, modality, sources


def test_one_target_per_label_value_whatever_its_number_of_parts(label):
    label[20:25, 2:6] = 1
    targets, skipped = find_targets(label, NAMES, None, (0,))
    assert [(target.name, int(target.mask.sum())) for target in targets] == [("liver", 120), ("tumour", 16)]
    assert skipped == 0


def test_small_targets_are_counted_not_evaluated(label):
    label[20, 20] = 0
    targets, skipped = find_targets(label, NAMES, None, (0,))
    assert [target.name for target in targets] == ["liver"]
    assert skipped == 1


def test_an_empty_label_map_has_no_target():
    assert find_targets(np.zeros((5, 5), np.uint8), NAMES, None, (0,)) == ([], 0)


def test_unnamed_label_values_are_refused(label):
    label[0, 0] = 255
    with pytest.raises(DataError, match=r"\[255\] are not named"):
        find_targets(label, NAMES, None, (0,))


def test_few_single_objects_are_drawn_by_seed():
    instances = np.repeat(np.arange(60, dtype=np.int32), 40).reshape(60, 40)
    instances[59, 5:] = 0
    label = (instances > 0).astype(np.uint8)
    targets, skipped = find_targets(label, NAMES, instances, (1,))
    again, _ = find_targets(label, NAMES, instances, (1,))
    other, _ = find_targets(label, NAMES, instances, (2,))
    assert len(targets) == 5
    assert skipped == 1
    assert [target.name for target in targets] == [target.name for target in again]
    assert [target.name for target in targets] != [target.name for target in other]
    assert all(target.name.startswith("liver #") for target in targets)


def test_instances_of_another_size_are_refused(label):
    with pytest.raises(DataError, match="instance map is 7x5"):
        find_targets(label, NAMES, np.ones((5, 7), np.int32), (0,))


def test_auto_truth_is_the_union_of_the_named_labels(label):
    offer = Offer("liver with tumour", "MR", "other:3", "set_a:1", "set_a:2")
    found = find_auto_targets(label, make_pack("set_a"), (offer,))
    assert [(target.name, int(target.mask.sum())) for target in found] == [("liver with tumour", 116)]


def test_auto_targets_reach_other_data_of_the_same_kind(label):
    offers = (Offer("Liver", "ct", "set_a:1"), Offer("tumour", "MR", "set_a:2"))
    assert [target.name for target in find_auto_targets(label, make_pack("unseen"), offers)] == ["Liver"]


def test_sources_that_name_no_label_are_passed_over(label):
    offers = (Offer("liver", "CT", "set_a", "set_a:liver", "", ":", "set_a:1"), Offer("tumour", "MR", "set_a:"))
    found = find_auto_targets(label, make_pack("set_a"), offers)
    assert [(target.name, int(target.mask.sum())) for target in found] == [("liver", 100)]


def test_auto_targets_absent_from_an_image_are_left_out(label):
    label[label == 1] = 0
    assert find_auto_targets(label, make_pack("set_a"), (Offer("liver", "CT", "set_a:1"),)) == []


def test_an_empty_instance_map_is_as_good_as_none():
    label = np.zeros((20, 20), np.uint8)
    label[2:8, 2:8] = 1
    targets, skipped = find_targets(label, {1: "nucleus"}, np.zeros((20, 20), np.int32), (0, 0))
    assert [target.name for target in targets] == ["nucleus"]
    assert skipped == 0
