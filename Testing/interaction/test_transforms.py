"""Pixels, points, boxes and masks go into the square and come back to where they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segment_anything.utils.transforms import ResizeLongestSide

from SegMoTELib.interaction.transforms import SquareTransform
from SegMoTELib.network import ModelConfig

SHAPES = [(37, 53), (53, 37), (64, 64), (1, 1), (5, 900), (900, 5), (200, 333)]
PAD = replace(ModelConfig.tiny(), image_size=64)
SQUASH = replace(PAD, resize="squash")


@pytest.fixture(params=[PAD, SQUASH], ids=["pad", "squash"])
def config(request):
    return request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_points_and_boxes_keep_their_place_in_the_image(config, shape):
    transform = SquareTransform(config, *shape)
    points = np.random.default_rng(0).random((5, 2)) * shape[::-1]
    inside = transform.apply_points(points)
    assert (inside >= 0).all()
    assert (inside <= 64).all()
    assert np.allclose(inside / transform.resized[::-1], points / shape[::-1])
    boxes = np.concatenate([points, points + 1], axis=1)
    expected = np.concatenate([transform.apply_points(points), transform.apply_points(points + 1)], axis=1)
    assert np.allclose(transform.apply_boxes(boxes), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_bright_spot_is_found_where_its_point_says_and_comes_back(config, shape):
    height, width = shape
    transform = SquareTransform(config, *shape)
    row, column = height // 3, 2 * width // 3
    rows, columns = np.ogrid[:height, :width]
    radius = max(height, width) / 12
    distance = (rows - row) ** 2 + (columns - column) ** 2
    image = (255 * np.exp(-0.5 * distance / radius**2)).astype(np.uint8)
    pixels = transform.apply_image(np.repeat(image[..., None], 3, axis=2))[0].mean(dim=0)
    assert pixels.shape == (64, 64)

    x, y = transform.apply_points(np.array([column + 0.5, row + 0.5]))
    drawn = torch.zeros(64, 64)
    drawn[int(y), int(x)] = 1
    assert pixels[int(y), int(x)] > pixels.max() - 0.25 * (pixels.max() - pixels.min()) - 1e-6

    low = F.avg_pool2d(F.max_pool2d(drawn[None], 7, 1, 3), 2)
    back = transform.inverse_masks(low)[0]
    assert tuple(back.shape) == shape
    assert back[row, column] > 0.4 * back.max()
    assert back.max() > 0


@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (64, 64), (200, 333), (30, 31)], ids=str)
def test_padding_and_resizing_are_sams(shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    transform = SquareTransform(PAD, *shape)
    resized = torch.from_numpy(ResizeLongestSide(64).apply_image(image)).permute(2, 0, 1).float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (PAD.pixel_mean, PAD.pixel_std))
    expected = F.pad((resized - mean) / std, (0, 64 - resized.shape[2], 0, 64 - resized.shape[1]))
    assert torch.equal(transform.apply_image(image)[0], expected)
    points = np.random.default_rng(2).random((4, 2)) * shape[::-1]
    assert np.allclose(transform.apply_points(points), ResizeLongestSide(64).apply_coords(points, shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masks_come_back_by_sams_two_interpolations(config, shape):
    transform = SquareTransform(config, *shape)
    low = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(3))
    height, width = transform.resized
    square = F.interpolate(low[None], (64, 64), mode="bilinear", align_corners=False)[..., :height, :width]
    expected = F.interpolate(square, shape, mode="bilinear", align_corners=False)[0]
    assert (transform.inverse_masks(low) - expected).abs().max() < 1e-5


def test_squashing_fills_the_square_with_the_nearest_pixels():
    image = np.random.default_rng(4).integers(0, 256, (32, 128, 3), dtype=np.uint8)
    pixels = SquareTransform(SQUASH, 32, 128).apply_image(image)[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (PAD.pixel_mean, PAD.pixel_std))
    grey_levels = (pixels * std + mean).round()
    expected = torch.from_numpy(np.repeat(image, 2, axis=0)[:, 1::2].astype(np.float32)).permute(2, 0, 1)
    assert torch.equal(grey_levels, expected)
