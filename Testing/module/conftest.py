"""The module on a real scene, behind the stand-in for the Slicer application."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PySide6.QtWidgets")
slicer = pytest.importorskip("slicer")

from Testing.slicer_stub import install, start_scene  # noqa: E402
from Testing.slicer_stub.application import volume_node  # noqa: E402

install()

VOLUMES = Path(__file__).parents[3] / "shared" / "data" / "volumes"


@pytest.fixture
def scene():
    """A fresh ``slicer.mrmlScene`` with views."""
    scene = start_scene()
    yield scene
    scene.Clear(True)


@pytest.fixture
def sample_data(scene, monkeypatch):
    """``SampleData`` whose head is the MR volume beside the checkout."""
    path = VOLUMES / "ch2_aal" / "image.nii.gz"
    if not path.exists():
        pytest.skip("needs the volumes in ../shared/data")
    module = types.ModuleType("SampleData")
    module.SampleDataLogic = lambda: types.SimpleNamespace(downloadMRHead=lambda: volume_node(path, "MRHead"))
    monkeypatch.setitem(sys.modules, "SampleData", module)


@pytest.fixture
def module(scene):
    """The module file."""
    import SegMoTE

    return SegMoTE


@pytest.fixture(autouse=True)
def models_folder(tmp_path, monkeypatch):
    """A user's folder of weights without any."""
    monkeypatch.setenv("SEGMOTE_MODEL_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def panel(module):
    """The entered panel."""
    panel = module.SegMoTEWidget()
    panel.setup()
    panel.parent.real.show()
    panel.enter()
    panel.ui.mappingComboBox.setCurrentIndex(1)
    yield panel
    panel.cleanup()
    panel.parent.real.close()


@pytest.fixture
def logic(module):
    """A logic that is closed again."""
    logic = module.SegMoTELogic()
    logic.mapping = "percentiles"
    yield logic
    logic.close()


SHAPE = (20, 64, 64)  # k, j, i


@pytest.fixture
def truth():
    """(k, j, i) bool of a bright ellipsoid."""
    k, j, i = np.mgrid[:SHAPE[0], :SHAPE[1], :SHAPE[2]]
    return ((i - 30) / 14) ** 2 + ((j - 26) / 10) ** 2 + ((k - 10) / 6) ** 2 <= 1


@pytest.fixture
def image(scene, truth):
    """A volume with the ellipsoid around the RAS origin, 1 x 1 x 2.5 mm."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ellipsoid")
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    slicer.util.updateVolumeFromArray(node, (80 + 120 * truth + noise).astype(np.int16))
    node.SetSpacing(1.0, 1.0, 2.5)
    node.SetOrigin(-30, -26, -25)
    node.CreateDefaultDisplayNodes()
    return node


@pytest.fixture
def bright(monkeypatch):
    """Auto answers with what is bright: the bundled model's own targets are not in this volume."""
    from SegMoTELib.interaction.session import Session

    monkeypatch.setattr(Session, "auto_logits", lambda self, plane, name: (
        (self.image_on(plane)[..., 0].astype(np.float32) - 140) / 10, 0.9))
