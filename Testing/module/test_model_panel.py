"""The panel's Model section: choosing, downloading and removing weights."""

from __future__ import annotations

import threading
import time

import pytest
import slicer

from SegMoTELib.errors import CancelledError, ModelError
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


def choose(widget, name):
    box = widget.ui.modelComboBox
    box.setCurrentIndex(box.findData(name))
    box.real.activated.emit(box.findData(name))


def finish(widget):
    while widget.logic.downloading():
        widget.onTimer()
        time.sleep(0.01)
    widget.onTimer()


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
    assert panel.logic.modelName == "mine"
    panel.ui.removeModelButton.click()
    assert panel.logic.modelName == "segmote-tiny"
    assert list(folder.iterdir()) == []
