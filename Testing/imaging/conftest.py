"""Volumes of every awkward geometry, all showing the same ball in space."""

from __future__ import annotations

import numpy as np
import pytest

from SegMoTELib.imaging.volume import Volume

CENTER, RADIUS = np.array([12.0, -20.0, 33.0]), 14.0  # RAS millimetres


def rotation(degrees: float, axis: int) -> np.ndarray:
    """(3, 3) rotation about a coordinate axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = [other for other in range(3) if other != axis]
    matrix = np.eye(3)
    matrix[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return matrix


DIRECTIONS = {
    "RAS": np.eye(3), "LPS": np.diag([-1.0, -1, 1]), "left-handed": np.diag([1.0, 1, -1]),
    "sagittal acquisition": np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
    "oblique": rotation(20, 0) @ rotation(-15, 2), "oblique left-handed": rotation(25, 1) @ np.diag([-1.0, 1, 1])}
SPACINGS = {"isotropic": (1.0, 1.0, 1.0), "anisotropic": (0.8, 0.8, 3.0), "all different": (0.7, 1.1, 2.5)}


def make_volume(directions: np.ndarray, spacing: tuple, side: float = 60.0) -> Volume:
    """A volume of ``side`` millimetres around the ball: 200 inside, 50 outside."""
    shape = np.round(side / np.array(spacing)).astype(int)
    matrix = np.eye(4)
    matrix[:3, :3] = directions * spacing
    matrix[:3, 3] = CENTER - matrix[:3, :3] @ ((shape - 1) / 2)
    k, j, i = np.mgrid[:shape[2], :shape[1], :shape[0]]
    ras = np.stack([i, j, k], axis=-1) @ matrix[:3, :3].T + matrix[:3, 3]
    inside = np.linalg.norm(ras - CENTER, axis=-1) <= RADIUS
    return Volume(np.where(inside, 200, 50).astype(np.int16), matrix, "CT", "ball")


@pytest.fixture(params=[(d, s) for d in DIRECTIONS for s in SPACINGS], ids=lambda p: f"{p[0]}, {p[1]}")
def ball(request) -> Volume:
    """The ball in a volume of some geometry."""
    return make_volume(DIRECTIONS[request.param[0]], SPACINGS[request.param[1]])


@pytest.fixture
def make_ball():
    """Function: directions name, spacing name -> volume of the ball."""
    return lambda directions, spacing: make_volume(DIRECTIONS[directions], SPACINGS[spacing])


@pytest.fixture
def disk():
    """Function: plane -> (rows, columns) bool, the ball's disk on it, from geometry alone."""
    def draw(plane):
        rows, columns = np.mgrid[:plane.shape[0], :plane.shape[1]]
        return np.linalg.norm(plane.to_ras(np.stack([columns, rows], axis=-1)) - CENTER, axis=-1) <= RADIUS
    return draw


@pytest.fixture
def center():
    """(3,) RAS centre of the ball."""
    return CENTER


@pytest.fixture(params=["tilted", "steep"])
def slice_to_ras(request):
    """(4, 4) of an oblique slice view through the ball."""
    turn = {"tilted": rotation(30, 0) @ rotation(20, 1), "steep": rotation(65, 1) @ rotation(-40, 2)}[request.param]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, CENTER + turn @ (5, -3, 2)
    return matrix
