"""A folder with every file that the documentation's commands take, made small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from SegMoTELib.zoo import resolve_model
from Testing.demo.phantoms import write_ct, write_ultrasound
from Testing.docs.pages import ROOT, blocks


@pytest.fixture(scope="session")
def materials(tmp_path_factory) -> Path:
    """ct.nrrd, ct_series, ultrasound.nrrd, scans, my_data, my_weights.safetensors, base.yaml and adapt.yaml."""
    folder = tmp_path_factory.mktemp("materials")
    write_ct(folder / "ct.nrrd")
    write_series(folder / "ct_series", folder / "ct.nrrd")
    write_ultrasound(folder / "ultrasound.nrrd", slices=2)
    write_ultrasound(folder / "scans" / "first.nrrd", slices=1)
    write_ultrasound(folder / "scans" / "second.nii.gz", slices=1, seed=6)
    write_pairs(folder / "my_data")
    shutil.copy(resolve_model("segmote-tiny"), folder / "my_weights.safetensors")
    for block in blocks(ROOT / "docs" / "researcher.md"):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    return folder


def write_series(folder: Path, volume: Path) -> None:
    """A CT series of one file a slice."""
    import pydicom
    import SimpleITK as sitk
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    image = sitk.ReadImage(str(volume))
    array, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()
    direction = image.GetDirection()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    folder.mkdir(parents=True)
    for index, pixels in enumerate(array):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        one = Dataset()
        one.file_meta = meta
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.PatientID, one.PatientName, one.PatientBirthDate, one.PatientSex = "phantom", "Phantom", "", ""
        one.StudyDate, one.StudyTime, one.StudyID, one.AccessionNumber = "20260101", "120000", "1", ""
        one.ReferringPhysicianName, one.PositionReferenceIndicator = "", ""
        one.Modality, one.Manufacturer, one.SeriesNumber, one.InstanceNumber = "CT", "", 1, index + 1
        one.Rows, one.Columns = pixels.shape
        one.PixelSpacing, one.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        one.ImageOrientationPatient = [direction[i] for i in (0, 3, 6, 1, 4, 7)]
        one.ImagePositionPatient = list(image.TransformIndexToPhysicalPoint((0, 0, index)))
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 0
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
        one.RescaleSlope, one.RescaleIntercept, one.RescaleType = 1, -1024, "HU"
        one.PixelData = (pixels.astype(np.int32) + 1024).astype(np.uint16).tobytes()
        pydicom.dcmwrite(folder / f"{index:03}.dcm", one, enforce_file_format=True)


def write_pairs(folder: Path, patients: int = 8) -> None:
    """Two 64 x 64 pictures a patient: a bright disk (1) and a dark square (2), with their index maps."""
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    rows, columns = np.mgrid[:64, :64]
    for patient in range(patients):
        for picture in "ab":
            row, column = rng.integers(18, 44, 2)
            label = np.zeros((64, 64), np.uint8)
            label[48:60, 4 + patient:18 + patient] = 2
            label[(rows - row) ** 2 + (columns - column) ** 2 < rng.integers(9, 14) ** 2] = 1
            image = 110 + 90 * (label == 1) - 70 * (label == 2) + rng.normal(0, 8, label.shape)
            name = f"p{patient:02}_{picture}.png"
            Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / "images" / name)
            Image.fromarray(label).save(folder / "labels" / name)
    description = next(block.text for block in blocks(ROOT / "docs" / "researcher.md") if block.language == "json")
    (folder / "dataset.json").write_text(json.dumps(json.loads(description)))
