"""The panel's Model section: choosing, downloading and removing weights."""

from __future__ import annotations

import json
import pickle
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import slicer
import torch
from safetensors.numpy import save_file

from SegMoTELib.errors import CancelledError, ModelError, SegMoTEError
from SegMoTELib.mrml.segments import segment_mask
from SegMoTELib.network import ModelConfig, build_model
from SegMoTELib.network.checkpoints import save_checkpoint
from SegMoTELib.zoo import resolve_model


@pytest.fixture
def folder(models_folder):
    models_folder.mkdir()
    return models_folder


@pytest.fixture
def host(folder, monkeypatch):
    """A download that waits until it is let go, and then writes weights, fails or is cancelled."""
    class Host:
        go, error, accepted = threading.Event(), None, []

    def fetch(entry, accept, progress, cancelled):
        Host.accepted.append(accept)
        progress(100_000_000, entry.size)
        while not Host.go.wait(0.01):
            if cancelled():
                raise CancelledError("stopped")
        if Host.error:
            raise Host.error
        (folder / entry.file).write_bytes(resolve_model("segmote-tiny").read_bytes())

    Host.go.clear()
    Host.error, Host.accepted = None, []
    monkeypatch.setattr("SegMoTELib.zoo.download.fetch", fetch)
    return Host


@pytest.fixture
def ready(panel, image):
    """The panel with the volume chosen and the tool for points on."""
    panel.ui.volumeSelector.setCurrentNode(image)
    panel.ui.addPointButton.click()
    finish(panel)
    return panel


@pytest.fixture
def another(tmp_path):
    """Weights of another geometry, untrained and without experts: what the former model remembers means nothing to
    them."""
    torch.manual_seed(0)
    model = build_model(replace(ModelConfig.tiny(), image_size=128, name="another"))
    model.adapters_trained = model.auto_trained = False
    save_checkpoint(model, tmp_path / "another.safetensors")
    return tmp_path / "another.safetensors"


def click(widget, ras=(0.0, 0.0, 0.0)):
    """A point in the axial view."""
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.JumpSliceByOffsetting(*(np.array(ras) + (0 if node.GetName() == "Red" else 40)))
    selection = slicer.app.applicationLogic().GetSelectionNode()
    slicer.mrmlScene.GetNodeByID(selection.GetActivePlaceNodeID()).AddControlPoint(list(ras))


def mask(widget):
    target = widget.target
    return segment_mask(target.segmentation, target.segment_id, target.volume, (0, 63, 0, 63, 0, 19))


def choose_file(widget, path):
    import qt

    qt.QFileDialog.answer = str(path)
    choose(widget, "file")
    finish(widget)


def choose(widget, name):
    box = widget.ui.modelComboBox
    box.setCurrentIndex(box.findData(name))
    box.real.activated.emit(box.findData(name))


def finish(widget):
    """Until neither downloads nor jobs are left."""
    end = time.monotonic() + 300
    while True:
        assert time.monotonic() < end
        widget.onTimer()
        if not widget.logic.downloading() and not widget.logic.busy() and widget.logic.download is None:
            return
        time.sleep(0.01)


def test_every_model_of_the_catalogue_is_listed_in_words(panel):
    texts = [panel.ui.modelComboBox.real.itemText(i) for i in range(panel.ui.modelComboBox.real.count())]
    assert texts[0] == "segmote-tiny (bundled, 16 MB)"
    assert "sam-vit-b (not downloaded, 375 MB)" in texts
    assert texts[-1] == "A file of mine..."


def test_a_model_that_is_not_here_says_so_and_the_old_one_goes_on_answering(panel):
    choose(panel, "sam-vit-b")
    assert "press Download" in panel.ui.modelStateLabel.text
    assert "Apache-2.0" in panel.ui.licenceLabel.text
    assert panel.logic.modelName == "segmote-tiny"
    assert panel.ui.downloadButton.enabled
    assert not panel.ui.removeModelButton.enabled


def test_a_download_shows_its_progress_and_is_used_when_it_is_here(panel, host):
    choose(panel, "sam-vit-b")
    panel.ui.downloadButton.click()
    while not panel.logic.download.here:
        time.sleep(0.01)
    panel.onTimer()
    assert "100 of 375 MB" in panel.ui.modelStateLabel.text
    assert not panel.ui.downloadButton.enabled
    host.go.set()
    finish(panel)
    assert panel.logic.modelName == "sam-vit-b"
    assert panel.chosenModel() == "sam-vit-b"


def test_a_download_is_stopped_and_can_be_taken_up(panel, host):
    choose(panel, "sam-vit-b")
    panel.ui.downloadButton.click()
    panel.ui.stopDownloadButton.click()
    finish(panel)
    assert "stopped" in panel.ui.statusLabel.text
    assert panel.ui.downloadButton.enabled


def test_a_failed_download_is_explained(panel, host):
    choose(panel, "sam-vit-b")
    host.error = ModelError("The host is out of reach.")
    host.go.set()
    panel.ui.downloadButton.click()
    finish(panel)
    assert panel.ui.statusLabel.text == "⚠ The host is out of reach."
    assert panel.logic.modelName == "segmote-tiny"


def test_a_licence_that_is_not_permissive_is_asked_for(panel, host, monkeypatch):
    asked = []
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text, *_: asked.append(text) or False)
    choose(panel, "segmote-published")
    panel.ui.downloadButton.click()
    assert "not stated" in asked[0]
    assert not panel.logic.downloading()
    assert host.accepted == []


def test_removing_the_weights_in_use_goes_back_to_the_bundled_ones(panel, folder, monkeypatch):
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_: True)
    (folder / "mine.safetensors").write_bytes(resolve_model("segmote-tiny").read_bytes())
    panel.fillModels()
    choose(panel, "mine")
    finish(panel)
    assert panel.logic.modelName == "mine"
    panel.ui.removeModelButton.click()
    assert panel.logic.modelName == "segmote-tiny"
    assert list(folder.iterdir()) == []


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def damaged(path):
    path.write_bytes(b"no weights")


def truncated(path):
    path.write_bytes(resolve_model("segmote-tiny").read_bytes()[:1_000_000])


def web_page(path):
    path.write_text("<!DOCTYPE html><html><body>Sign in to download</body></html>")


def foreign(path):
    save_file({"weight": np.zeros((2, 2), np.float32)}, path)


def unknown_format(path):
    save_file({"weight": np.zeros(1, np.float32)}, path, metadata={"format": "else", "config": json.dumps({"a": 1})})


def unsafe(path):
    path.write_bytes(pickle.dumps(Bomb(path.with_suffix(".executed"))))


def unsafe_archive(path):
    torch.save({"model": Bomb(path.with_suffix(".executed"))}, path)


def other_network(path):
    torch.save({"layer.weight": torch.zeros(3)}, path)


def empty(path):
    path.touch()


@pytest.mark.parametrize("make", [damaged, truncated, web_page, foreign, unknown_format, empty])
def test_weights_that_cannot_be_used_are_explained_and_the_former_ones_stay(ready, tmp_path, make):
    make(tmp_path / "broken.safetensors")
    refused(ready, tmp_path / "broken.safetensors")


@pytest.mark.parametrize("make", [damaged, web_page, unsafe, unsafe_archive, other_network, empty])
def test_pickles_that_cannot_be_used_are_explained_and_nothing_in_them_is_run(ready, tmp_path, make):
    make(tmp_path / "broken.pth")
    refused(ready, tmp_path / "broken.pth")
    assert not (tmp_path / "broken.executed").exists()


def refused(widget, path):
    """A file is chosen between two clicks: the second is answered by the model that answered the first."""
    click(widget)
    finish(widget)
    predictor = widget.logic._segmenter.predictor
    choose_file(widget, path)
    assert widget.ui.statusLabel.text.startswith("⚠")
    assert path.name in widget.ui.statusLabel.text
    assert widget.chosenModel() == widget.logic.modelName == "segmote-tiny"
    assert widget.logic._segmenter.predictor is predictor
    first = mask(widget)
    click(widget, (10.0, 0.0, 0.0))
    finish(widget)
    assert mask(widget).any()
    widget.ui.undoButton.click()
    np.testing.assert_array_equal(mask(widget), first)


def test_a_file_refused_before_anything_was_loaded_leaves_the_bundled_model_to_answer(panel, image, tmp_path):
    panel.ui.volumeSelector.setCurrentNode(image)
    web_page(tmp_path / "broken.pth")
    choose_file(panel, tmp_path / "broken.pth")
    assert "segmote-tiny stays in use" in panel.ui.statusLabel.text
    panel.ui.addPointButton.click()
    click(panel)
    finish(panel)
    assert mask(panel).any()


def test_a_click_while_a_refused_file_is_loaded_is_answered_by_the_former_model(panel, image, tmp_path):
    panel.ui.volumeSelector.setCurrentNode(image)
    other_network(tmp_path / "broken.pth")
    import qt

    qt.QFileDialog.answer = str(tmp_path / "broken.pth")
    choose(panel, "file")
    panel.ui.addPointButton.click()
    click(panel)
    finish(panel)
    assert "broken.pth" in panel.ui.statusLabel.text or panel.ui.statusLabel.text == "Ready."
    assert panel.logic.modelName == "segmote-tiny"
    assert mask(panel).any()


def test_choosing_no_file_changes_nothing(ready):
    choose_file(ready, "")
    assert ready.chosenModel() == ready.logic.modelName == "segmote-tiny"
    assert not ready.ui.statusLabel.text.startswith("⚠")


def test_another_model_takes_over_and_undo_reaches_back_before_it(ready, another):
    click(ready)
    finish(ready)
    first = mask(ready)
    choose_file(ready, another)
    assert ready.logic.modelName == str(another)
    assert ready.ui.statusLabel.text == f"{another} answers from now on."
    np.testing.assert_array_equal(mask(ready), first)
    click(ready, (6.0, 0.0, 0.0))
    finish(ready)
    assert not ready.ui.statusLabel.text.startswith("⚠")
    ready.ui.undoButton.click()
    np.testing.assert_array_equal(mask(ready), first)
    ready.ui.undoButton.click()
    assert not mask(ready).any()
    ready.ui.redoButton.click()
    click(ready, (-6.0, 0.0, 0.0))
    finish(ready)
    assert not ready.ui.statusLabel.text.startswith("⚠")


def test_a_click_that_waits_while_the_model_changes_is_answered_by_the_new_one(ready, another):
    click(ready)
    finish(ready)
    ready.logic.startModel(str(another))
    click(ready, (6.0, 0.0, 0.0))
    finish(ready)
    assert ready.logic.modelName == str(another)
    answers = next(iter(ready.logic._segmenter._answers.values()))
    (answer,) = answers.values()
    assert len(answer.prompts.positives) == 2
    assert answer.logits.shape == (1, 64, 64)  # of the new model; the bundled one's are 128 x 128


def test_changing_the_model_while_it_propagates_keeps_the_finished_slices(ready, another):
    click(ready)
    finish(ready)
    before = mask(ready)
    ready.ui.bothWaysButton.click()
    while not (ready.logic._runs and ready.logic._runs.pending and ready.logic._runs.pending.masks):
        ready.onTimer()
        time.sleep(0.005)
        assert ready.logic.busy()
    ready.logic.startModel(str(another))
    finish(ready)
    assert ready.logic.modelName == str(another)
    if ready.logic.hasPending():  # else the propagation was faster than loading
        np.testing.assert_array_equal(mask(ready), before)
        ready.ui.applyButton.click()
    assert mask(ready).sum() > before.sum()


def test_a_device_that_is_not_here_is_explained_and_the_list_goes_back(ready):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    box = ready.ui.deviceComboBox
    box.setCurrentIndex(1)
    box.real.activated.emit(1)
    finish(ready)
    assert "device 'cuda' is not available on this machine" in ready.ui.statusLabel.text
    assert box.currentIndex == 0
    box.setCurrentIndex(3)
    box.real.activated.emit(3)
    finish(ready)
    assert ready.logic.choice.device == "cpu"
    assert "the one you chose" in ready.ui.modelStateLabel.text
    click(ready)
    finish(ready)
    assert mask(ready).any()


def test_stopping_while_weights_are_loaded_leaves_the_former_ones(ready, another):
    ready.logic.startModel(str(another))
    assert ready.logic.loading()
    ready.ui.cancelButton.click()
    finish(ready)
    assert ready.logic.modelName == ready.chosenModel() == "segmote-tiny"
    click(ready)
    finish(ready)
    assert mask(ready).any()


def test_a_file_in_use_is_removed_as_well_as_a_name(ready, folder, monkeypatch):
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_: True)
    path = folder / "mine.safetensors"
    path.write_bytes(resolve_model("segmote-tiny").read_bytes())
    choose_file(ready, path)
    assert ready.logic.modelName == str(path)
    ready.fillModels("mine")
    ready.ui.removeModelButton.click()
    assert ready.logic.modelName == "segmote-tiny"
    assert not path.exists()
    click(ready)
    finish(ready)
    assert mask(ready).any()


def test_weights_that_cannot_be_deleted_are_explained(ready, folder, monkeypatch):
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_: True)
    (folder / "mine.safetensors").write_bytes(resolve_model("segmote-tiny").read_bytes())
    ready.fillModels("mine")

    def held_open(name):
        raise PermissionError(13, "used by another process")

    monkeypatch.setattr("SegMoTELib.zoo.store.remove", held_open)
    ready.ui.removeModelButton.click()
    assert "mine.safetensors could not be deleted (used by another process)" in ready.ui.statusLabel.text


def test_declining_to_remove_keeps_the_weights(ready, folder, monkeypatch):
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_: False)
    (folder / "mine.safetensors").write_bytes(resolve_model("segmote-tiny").read_bytes())
    ready.fillModels("mine")
    ready.ui.removeModelButton.click()
    assert (folder / "mine.safetensors").exists()


def test_offline_the_message_names_the_file_and_its_place(ready, folder, monkeypatch):
    entry = ready.logic.entry("sam-vit-b")
    nowhere = replace(entry, url="http://127.0.0.1:9/sam_vit_b_01ec64.pth")
    monkeypatch.setattr(type(ready.logic), "entry", lambda self, name: nowhere if name == entry.name else None)
    choose(ready, "sam-vit-b")
    ready.ui.downloadButton.click()
    finish(ready)
    assert ready.ui.statusLabel.text.startswith("⚠")
    assert str(folder / "sam_vit_b_01ec64.pth") in ready.ui.statusLabel.text
    assert ready.logic.modelName == "segmote-tiny"
    assert ready.ui.downloadButton.enabled


def test_half_a_download_can_be_resumed_or_removed(panel, folder, monkeypatch):
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_: True)
    (folder / ".sam_vit_b_01ec64.pth.part").write_bytes(bytes(2_000_000))
    panel.fillModels("sam-vit-b")
    assert "partly downloaded, 375 MB" in panel.ui.modelComboBox.real.currentText()
    assert panel.ui.downloadButton.text == "Resume"
    panel.ui.removeModelButton.click()
    assert list(folder.iterdir()) == []
    panel.fillModels("sam-vit-b")
    assert panel.ui.downloadButton.text == "Download"


def test_clicks_are_answered_while_weights_are_downloaded(ready, host):
    choose(ready, "sam-vit-b")
    ready.ui.downloadButton.click()
    click(ready)
    while ready.logic.busy():
        ready.onTimer()
        time.sleep(0.01)
    assert mask(ready).any()
    assert ready.logic.downloading()
    ready.ui.stopDownloadButton.click()
    finish(ready)


def test_a_model_that_is_looked_at_stays_in_view_while_another_is_loaded_by_a_click(panel, image):
    panel.ui.volumeSelector.setCurrentNode(image)
    choose(panel, "sam-vit-b")
    panel.ui.addPointButton.click()
    click(panel)
    finish(panel)
    assert mask(panel).any()
    assert panel.chosenModel() == "sam-vit-b"
    assert "press Download" in panel.ui.modelStateLabel.text
    assert panel.logic.modelName == "segmote-tiny"


def test_a_folder_of_models_that_cannot_be_read_is_explained_and_the_bundled_model_works(panel, image, monkeypatch):
    def unreadable():
        raise ModelError("/models: cannot be read (Permission denied).")

    monkeypatch.setattr("SegMoTELib.zoo.store.held", unreadable)
    panel.fillModels()
    assert panel.ui.statusLabel.text == "⚠ /models: cannot be read (Permission denied)."
    box = panel.ui.modelComboBox.real
    assert [box.itemText(i) for i in range(box.count())] == ["segmote-tiny (bundled)", "A file of mine..."]
    panel.ui.volumeSelector.setCurrentNode(image)
    panel.ui.addPointButton.click()
    click(panel)
    finish(panel)
    assert mask(panel).any()


def test_a_licence_is_linked_and_nothing_in_its_text_is_taken_for_markup(panel, another):
    choose(panel, "medsam-vit-b")
    assert '<a href="https://zenodo.org/records/10689643">' in panel.ui.licenceLabel.text
    save_checkpoint(build_model(ModelConfig.tiny()), another, {"licence": "<img src='file:///etc/passwd'> & more"})
    choose_file(panel, another)
    assert panel.ui.licenceLabel.text == "&lt;img src=&#x27;file:///etc/passwd&#x27;&gt; &amp; more"


def test_scripts_get_the_reason_as_an_error_and_keep_the_former_model(logic, tmp_path):
    unsafe(tmp_path / "broken.pth")
    with pytest.raises(SegMoTEError, match=r"broken\.pth.*segmote-tiny stays in use"):
        logic.setModel(str(tmp_path / "broken.pth"))
    assert logic.modelName == "segmote-tiny"
    logic.setModel("segmote-tiny", "cpu", "fp32")
    assert logic.modelState.startswith("segmote-tiny, on CPU")
    assert "you chose" in logic.modelState
