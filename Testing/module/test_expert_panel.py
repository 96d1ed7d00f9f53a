"""The panel's Experts section: which expert answered, how sure, and where it looked; only while it is open."""

from __future__ import annotations

import time

import pytest
import slicer

from SegMoTELib.interaction.predictor import Predictor


def settle(panel):
    """Until no job is left."""
    panel.onTimer()
    while panel.logic.busy():
        panel.onTimer()
        time.sleep(0.005)
    panel.onTimer()


def click(panel, ras=(0.0, 0.0, 0.0)):
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.JumpSliceByOffsetting(*ras)
    selection = slicer.app.applicationLogic().GetSelectionNode()
    slicer.mrmlScene.GetNodeByID(selection.GetActivePlaceNodeID()).AddControlPoint(list(ras))
    settle(panel)


@pytest.fixture
def clicked(panel, image):
    """The panel after one click."""
    panel.ui.volumeSelector.setCurrentNode(image)
    panel.ui.addPointButton.click()
    click(panel)
    return panel


@pytest.fixture
def views(monkeypatch):
    """How often an expert view was computed."""
    made, compute = [], Predictor.expert_view
    monkeypatch.setattr(Predictor, "expert_view", lambda self: made.append(1) or compute(self))
    return made


def picture(panel):
    return panel.ui.attentionLabel.real.pixmap()


def test_closed_it_costs_nothing_but_says_in_words_who_answered(clicked, views):
    click(clicked, (2.0, 0.0, 0.0))
    assert views == []
    assert picture(clicked).isNull()
    assert "of 4 gave the mask" in clicked.ui.expertLabel.text


def test_opened_it_shows_the_router_and_the_attention_of_the_latest_answer(clicked, views):
    clicked.ui.expertsButton.collapsed = False
    settle(clicked)
    assert views == [1]
    view = clicked.logic._segmenter.predictor.expert_view()
    table = clicked.ui.expertTableLabel.text
    assert table.count("<tr>") == 5
    kind, share = next(iter(view.domains.items()))
    assert f"Looks like {kind} ({share:.0%})." in table
    assert f"{view.selected + 1} ★" in table
    assert f"{view.token_probabilities[view.selected]:.0%}" in table
    expert = view.routing[0][view.selected]
    assert f"expert {expert + 1}, {view.gate_probabilities[0][view.selected, expert]:.0%}" in table
    shown = picture(clicked).toImage()
    assert max(shown.width(), shown.height()) == 300
    colours = {shown.pixel(x, y) for x in range(0, 300, 8) for y in range(0, 300, 8)}
    assert len(colours) > 50


def test_open_it_follows_every_answer_once(clicked, views):
    clicked.ui.expertsButton.collapsed = False
    settle(clicked)
    first = picture(clicked).toImage()
    click(clicked, (8.0, 4.0, 0.0))
    assert views == [1, 1]
    assert picture(clicked).toImage() != first
    settle(clicked)
    assert views == [1, 1]


def test_closing_the_scene_takes_the_picture_away(clicked, scene):
    clicked.ui.expertsButton.collapsed = False
    settle(clicked)
    scene.Clear(False)
    settle(clicked)
    assert picture(clicked).isNull()
    assert clicked.ui.expertTableLabel.text == ""


def test_a_model_without_experts_says_so(clicked, tmp_path):
    from SegMoTELib.network import ModelConfig, build_model
    from SegMoTELib.network.checkpoints import save_checkpoint

    model = build_model(ModelConfig.tiny())
    model.adapters_trained = model.auto_trained = False
    save_checkpoint(model, tmp_path / "base.safetensors")
    clicked.ui.expertsButton.collapsed = False
    clicked.logic.setModel(str(tmp_path / "base.safetensors"))
    click(clicked, (2.0, 0.0, 0.0))
    assert "no trained experts" in clicked.ui.expertLabel.text
    assert picture(clicked).isNull()
