"""Values of DICOM pixels: rescaled, bright where bright, RGB; against pydicom's and SimpleITK's own."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_rescale

from SegMoTELib.errors import VolumeError
from SegMoTELib.imaging.dicom_pixels import _gdcm, frames_of
from SegMoTELib.imaging.files import read_volume


def saved(one, folder):
    one.save_as(folder / "one.dcm")
    return folder / "one.dcm"


def grey(folder, dtype=np.uint16, stored=None, **tags):
    """One CR file with a ramp over the range of its stored bits, and the ramp."""
    one = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    for name in ("RescaleSlope", "RescaleIntercept", "PixelPaddingValue"):
        delattr(one, name)
    bits = np.dtype(dtype).itemsize * 8
    stored = stored or bits
    low = -2 ** (stored - 1) if np.dtype(dtype).kind == "i" else 0
    ramp = np.linspace(low, low + 2 ** stored - 1, 128 * 128).round().astype(dtype).reshape(128, 128)
    one.Modality, one.BitsAllocated, one.BitsStored, one.HighBit = "CR", bits, stored, stored - 1
    one.PixelRepresentation = int(low < 0)
    one.PixelData = ramp.tobytes()
    for name, value in tags.items():
        setattr(one, name, value)
    return saved(one, folder), ramp


@pytest.mark.parametrize(("dtype", "stored"), [(np.uint8, 8), (np.int16, 16), (np.uint16, 16), (np.uint16, 12),
                                               (np.int16, 12), (np.uint16, 10)])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (1, -1024), (2, 5), (0.25, -3.5), (-1, 7)])
def test_values_are_those_of_pydicom(tmp_path, dtype, stored, slope, intercept):
    path, _ = grey(tmp_path, dtype, stored, RescaleSlope=slope, RescaleIntercept=intercept)
    data = pydicom.dcmread(path)
    np.testing.assert_array_equal(read_volume(path).array[0], apply_rescale(data.pixel_array, data))


@pytest.mark.parametrize(("dtype", "stored"), [(np.uint8, 8), (np.int16, 16), (np.uint16, 16), (np.uint16, 12),
                                               (np.int16, 12)])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (1, -1024), (0.5, 10)])
def test_monochrome1_is_turned_round_within_its_range(tmp_path, dtype, stored, slope, intercept):
    """The darkest stored value becomes the brightest, then values are rescaled; as SimpleITK does, where it can."""
    path, ramp = grey(tmp_path, dtype, stored, PhotometricInterpretation="MONOCHROME1", RescaleSlope=slope,
                      RescaleIntercept=intercept)
    array = read_volume(path).array[0]
    expected = (int(ramp.min()) + int(ramp.max()) - ramp.astype(float)) * slope + intercept
    np.testing.assert_array_equal(array, expected)
    if (dtype, stored) != (np.int16, 12):  # GDCM refuses this one
        np.testing.assert_array_equal(array, sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0])


def test_a_monochrome1_series_comes_with_its_bright_parts_bright(write_series, tmp_path):
    def inverted(index, one):
        one.Modality, one.PhotometricInterpretation = "MR", "MONOCHROME1"

    write_series(tmp_path, inverted)
    array = read_volume(tmp_path).array
    assert (array[:, 0, 0] < array[:, 100, 100]).all()
    assert (np.diff(array[:, 100, 100]) == -100).all()  # one range for all slices


@pytest.mark.parametrize("tags", [{"RescaleType": "HU"}, {"Modality": "PT"}, {"Modality": "CT"}])
def test_values_with_a_unit_are_never_turned_round(tmp_path, tags):
    path, ramp = grey(tmp_path, np.int16, PhotometricInterpretation="MONOCHROME1", **tags)
    np.testing.assert_array_equal(read_volume(path).array[0], ramp)


@pytest.mark.parametrize("padding", [0, 4095])
def test_the_padding_of_a_monochrome1_image_is_dark(tmp_path, padding):
    path, ramp = grey(tmp_path, np.uint16, 12, PhotometricInterpretation="MONOCHROME1")
    one = pydicom.dcmread(path)
    one.add_new("PixelPaddingValue", "US", padding)
    array = read_volume(saved(one, tmp_path)).array[0]
    assert (array[ramp == padding] == array[ramp != padding].min()).all()
    np.testing.assert_array_equal(array[ramp != padding], 4095 - ramp[ramp != padding])


def test_an_old_overlay_in_the_upper_bits_is_no_brightness(tmp_path):
    for dtype in (np.uint16, np.int16):
        path, ramp = grey(tmp_path, dtype, 12)
        one = pydicom.dcmread(path)
        one.PixelData = ((ramp & 0x0FFF).astype(np.uint16) | 0x8000).tobytes()
        np.testing.assert_array_equal(read_volume(saved(one, tmp_path)).array[0], ramp)


@pytest.mark.parametrize("tags", [{"RescaleSlope": 0, "RescaleIntercept": 0}, {"BitsAllocated": 12}, {"Rows": 500}])
def test_nonsense_about_the_pixels_is_refused(tmp_path, tags):
    path, _ = grey(tmp_path, **tags)
    with pytest.raises(VolumeError, match=r"one\.dcm: its pixels cannot be read"):
        read_volume(path)


def test_the_slices_of_a_pet_series_have_scales_of_their_own(write_series, tmp_path):
    def scaled(index, one):
        one.Modality, one.RescaleSlope, one.RescaleIntercept = "PT", 0.5 + index, 0

    write_series(tmp_path, scaled)
    np.testing.assert_allclose(read_volume(tmp_path).array[:, 100, 100], [100 * k * (0.5 + k) for k in range(6)])


def test_a_lookup_table_of_values_is_applied(tmp_path):
    one = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    one.PixelData = np.arange(128 * 128, dtype=np.int16).tobytes()
    del one.RescaleSlope, one.RescaleIntercept
    table = pydicom.Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "US"
    table.LUTData = (3 * np.arange(4096)).astype(np.uint16).tobytes()
    one.ModalityLUTSequence = [table]
    path = saved(one, tmp_path)
    np.testing.assert_array_equal(read_volume(path).array[0], apply_modality_lut(one.pixel_array, one))


COMPRESSED = ["MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "SC_rgb_rle.dcm",
              "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_dcmtk_+eb+cy+s2.dcm", "examples_jpeg2k.dcm", "JPEG2000.dcm",
              "JPEGLSNearLossless_16.dcm"]


@pytest.mark.parametrize("name", COMPRESSED)
def test_both_decoders_agree(name):
    """What pydicom decodes, GDCM decodes to the same: an installation without pydicom's plugins reads it too."""
    data = pydicom.dcmread(get_testdata_file(name))
    again = [frame for frame, _ in _gdcm(data.file_meta.TransferSyntaxUID).iter_array(data)]
    np.testing.assert_array_equal(np.squeeze(again), data.pixel_array)


@pytest.mark.parametrize(("name", "shape", "dtype"), [("SC_rgb_jpeg_gdcm.dcm", (1, 100, 100, 3), np.uint8),
                                                      ("JPGExtended.dcm", (1, 1024, 256), np.uint16)])
def test_what_pydicom_cannot_decode_gdcm_does(name, shape, dtype):
    """JPEG lossless, and JPEG of 12 bits."""
    path = get_testdata_file(name)
    array = read_volume(path).array
    assert array.shape == shape
    assert array.dtype == dtype
    np.testing.assert_array_equal(np.squeeze(array), np.squeeze(sitk.GetArrayFromImage(sitk.ReadImage(path))))


def test_a_jpeg_2000_image_whose_sign_the_header_denies_is_read():
    path = get_testdata_file("J2K_pixelrep_mismatch.dcm")
    np.testing.assert_array_equal(read_volume(path).array[0], pydicom.dcmread(path).pixel_array)


@pytest.mark.parametrize("pixels", [None, b""])
def test_a_file_without_pixels_is_named(tmp_path, pixels):
    path, _ = grey(tmp_path, PixelData=pixels)
    with pytest.raises(VolumeError, match=r"one\.dcm: its pixels cannot be read \(it holds none\)"):
        read_volume(path)


def test_a_compressed_monochrome1_image_is_turned_round_once(tmp_path):
    one = pydicom.dcmread(get_testdata_file("JPGExtended.dcm"))
    one.PhotometricInterpretation = "MONOCHROME1"
    expected = 4095 - read_volume(one.filename).array
    np.testing.assert_array_equal(read_volume(saved(one, tmp_path)).array, expected)


def test_a_compressed_series_is_the_same_series(write_series, tmp_path):
    write_series(tmp_path / "plain")
    plain = read_volume(tmp_path / "plain")
    for syntax in (pydicom.uid.RLELossless, pydicom.uid.JPEGLSLossless):
        folder = tmp_path / syntax
        write_series(folder)
        for path in folder.iterdir():
            one = pydicom.dcmread(path)
            one.compress(syntax, generate_instance_uid=False)
            one.save_as(path)
        np.testing.assert_array_equal(read_volume(folder).array, plain.array)


@pytest.mark.parametrize("name", ["examples_rgb_color.dcm", "SC_ybr_full_422_uncompressed.dcm", "examples_palette.dcm",
                                  "SC_rgb_small_odd_big_endian.dcm", "SC_rgb_rle_2frame.dcm"])
def test_colours_come_as_rgb(name):
    data = pydicom.dcmread(get_testdata_file(name))
    expected = data.pixel_array
    if data.PhotometricInterpretation == "PALETTE COLOR":
        expected = (apply_color_lut(expected, data) >> 8).astype(np.uint8)
    array = read_volume(data.filename).array
    assert array.dtype == np.uint8
    assert array.shape[3] == 3
    np.testing.assert_array_equal(np.squeeze(array), np.squeeze(expected))


def test_a_photo_compressed_by_another_library_has_its_colours(tmp_path):
    """Red above blue, as JPEG with YBR_FULL_422 that Pillow wrote."""
    picture = np.zeros((64, 48, 3), np.uint8)
    picture[:32, :, 0] = picture[32:, :, 2] = 255
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95)
    one = pydicom.dcmread(get_testdata_file("examples_rgb_color.dcm"))
    one.Rows, one.Columns, one.PhotometricInterpretation, one.Modality = 64, 48, "YBR_FULL_422", "XC"
    one.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    one.PixelData = encapsulate([buffer.getvalue()])
    volume = read_volume(saved(one, tmp_path))
    assert np.abs(volume.array[0].astype(int) - picture).mean() < 5
    assert volume.modality == "XC"


def test_sixteen_bit_colours_keep_their_sixteen_bits():
    name = get_testdata_file("SC_rgb_rle_16bit.dcm")
    np.testing.assert_array_equal(frames_of(name)[0], pydicom.dcmread(name).pixel_array)
