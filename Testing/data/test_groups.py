"""Which images are of one patient, as names and descriptions tell it; they are never in two splits."""

from __future__ import annotations

import json

import numpy as np
import pytest

from SegMoTELib.data.curate import curate
from SegMoTELib.data.items import group_from_name
from SegMoTELib.data.sources import open_sources


@pytest.mark.parametrize(("name", "group"), [
    ("ABD_001_100", "ABD_001"), ("patient000_slice03", "patient000"), ("patient001_frame01_slice_03", "patient001"),
    ("p7-Img0012", "p7"), ("p7/slice003", "p7"), ("p7_z012", "p7"), ("scan_z012", "scan"),
    ("ISIC_0012092", "ISIC_0012092"), ("slice03", "slice03"), ("patient1/003", "patient1"),
    ("mr/patient1/t2/003", "mr/patient1"), ("p1/IM-0001-0003", "p1"), ("p1/Image 12", "p1"), ("003", "003"),
    ("benign/003", "benign/003"), ("part1/benign (3)", "part1/benign (3)"),
    ("patient1/axial003", "patient1"), ("in/sub-A01/ses-2/t1_002", "in/sub-A01"), ("subset1/x", "subset1/x")])
def test_slices_are_told_by_their_names(name, group):
    assert group_from_name(name) == group


@pytest.mark.parametrize(("name", "group"), [
    ("patient001_frame01", "patient001"), ("patient001/patient001_frame12", "patient001"),
    ("sub-01/ses-2/t1", "sub-01"), ("FLARE22_Tr_0001", "FLARE22_Tr_0001"), ("site1/case_003", "site1/case_003"),
    ("case_00_img02", "case_00")])
def test_volumes_of_one_patient_are_told_by_their_names(name, group):
    assert group_from_name(name, is_volume=True) == group


@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
def test_cases_of_one_patient_in_an_nnunet_folder_are_split_as_one(tmp_path, a_picture, write_png, a_volume,
                                                                   write_volume, ending):
    folder = tmp_path / "Dataset027_ACDC"
    for number in range(8):
        case = f"patient{number // 2:03d}_frame{number % 2:02d}"
        image, label = a_volume(number) if ending == ".nii.gz" else a_picture(number)
        write = write_volume if ending == ".nii.gz" else write_png
        write(folder / "imagesTr" / f"{case}_0000{ending}", image)
        write(folder / "labelsTr" / f"{case}{ending}", label.astype(np.uint8))
    (folder / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "MRI"}, "labels": {"background": 0, "heart": 1}, "file_ending": ending}))
    found = curate(open_sources([folder]), tmp_path / "out")
    assert {record.group for record in found.records} == {f"Dataset027_ACDC/patient{number:03d}" for number in range(4)}


def test_a_pack_whose_patients_are_numbers_from_0_keeps_them_together(a_pack, tmp_path):
    folder = a_pack(train=[1, 3], test=[2, 4], info={"groups": {"p1": 0, "p2": 0, "p3": 1, "p4": 2}})
    found = curate(open_sources([folder]), tmp_path / "out")
    assert {record.name: record.group for record in found.records} == {
        "p1": "blobs/0", "p2": "blobs/0", "p3": "blobs/1", "p4": "blobs/2"}
    assert [record.name for record in found.records if record.refusal] == ["p1"]
