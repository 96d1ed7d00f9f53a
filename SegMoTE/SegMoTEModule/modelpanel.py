"""The part of the panel that chooses weights: what there is, its licence, Download, Remove."""

import html
import logging
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from SegMoTEModule.modellogic import BUNDLED_MODEL

DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
MY_FILE = "file"  # the entry that asks for a file


class ModelPanel:
    """Mixed into the module's widget."""

    def connectModelWidgets(self):
        ui = self.ui
        ui.modelComboBox.connect("activated(int)", self.guarded(self.onModelChosen))
        for box in (ui.deviceComboBox, ui.precisionComboBox):
            box.connect("activated(int)", self.guarded(lambda index: self.useModel(self.logic.modelName)))
        self.logic.onModel = self.onModelLoaded
        for button, method in ((ui.downloadButton, self.onDownload), (ui.stopDownloadButton, self.onStopDownload),
                               (ui.removeModelButton, self.onRemoveModel)):
            button.connect("clicked()", self.guarded(method))
        ui.licenceLabel.setOpenExternalLinks(True)

    def chosenModel(self):
        """Name of the model that the list shows."""
        return self.ui.modelComboBox.currentData or BUNDLED_MODEL

    def fillModels(self, shown=None):
        """List the models with their state; show one of them, default: the one in use, and its device."""
        box = self.ui.modelComboBox
        shown = shown or self.logic.modelName
        box.clear()
        models, problem = self.listedModels()
        if problem:
            self.showStatus(problem, True)
        for model in models:
            box.addItem(f"{model.name} ({self.stateInWords(model)})", model.name)
        if not models:
            box.addItem(_("{name} (bundled)").format(name=BUNDLED_MODEL), BUNDLED_MODEL)
        if shown != MY_FILE and shown not in [model.name for model in models] and shown != BUNDLED_MODEL:
            box.addItem(Path(shown).name, shown)  # a file of the user's
        box.addItem(_("A file of mine..."), MY_FILE)
        box.setCurrentIndex(max(0, box.findData(shown)))
        self.ui.deviceComboBox.setCurrentIndex(DEVICES.index(self.logic.choice.device.split(":")[0]))
        self.ui.precisionComboBox.setCurrentIndex(PRECISIONS.index(self.logic.choice.precision))
        self.showModel()

    def listedModels(self):
        """The models, and why their folder cannot be read or ""; the bundled one works without it."""
        try:
            return self.logic.models(), ""
        except Exception as error:
            if not self.logic.isExpected(error):
                raise
            return [], str(error)

    def stateInWords(self, model):
        entry = self.logic.entry(model.name)
        words = {"bundled": _("bundled"), "verified": _("verified"), "yours": _("yours"),
                 "not verified": _("there, not verified"), "not downloaded": _("not downloaded"),
                 "partly downloaded": _("partly downloaded")}[model.state]
        size = entry.size if entry and model.state.endswith("downloaded") else model.size
        return _("{state}, {size:.0f} MB").format(state=words, size=size / 1e6) if size else words

    def showModel(self):
        """Licence, targets and state of the model that the list shows."""
        entry = self.logic.entry(self.chosenModel())
        if entry is not None:
            self.ui.licenceLabel.setText(_('{licence} (<a href="{url}">read it</a>)').format(
                licence=html.escape(entry.licence), url=html.escape(entry.licence_url)))
            self.ui.modelComboBox.setToolTip("\n".join(filter(None, (
                entry.title, _("For: {what}").format(what=entry.modalities),
                _("Learned from: {what}").format(what=entry.trained_on), entry.remark))))
        else:
            licence = html.escape(self.logic.card().licence)
            self.ui.licenceLabel.setText(licence or _("The file does not say; ask where you got it."))
            self.ui.modelComboBox.setToolTip(self.chosenModel())
        self.ui.downloadButton.setText(_("Resume") if self.held(self.chosenModel()) == "partly downloaded"
                                       else _("Download"))
        self.ui.targetComboBox.clear()
        for name, modality in self.logic.targets():
            self.ui.targetComboBox.addItem(f"{name} ({modality})" if modality else name)
        self.showState()
        self.updateControls()

    def showState(self):
        """Whether the model that the list shows is here, loaded, and where it computes."""
        if self.chosenModel() != self.logic.modelName:
            self.ui.modelStateLabel.setText(_("{chosen} is not on this machine: press Download. Until then {name} "
                                              "answers.").format(chosen=self.chosenModel(), name=self.logic.modelName))
        elif self.logic.modelState:
            self.ui.modelStateLabel.setText(self.logic.modelState)
        else:
            self.ui.modelStateLabel.setText(_("{name}, not loaded: it is loaded with the first prompt.").format(
                name=self.logic.modelName))

    def onModelChosen(self, index):
        name = self.chosenModel()
        if name == MY_FILE:
            name = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), _("Weights"), "",
                                                  _("Weights (*.safetensors *.pth *.pt)"))
            if not name:
                self.fillModels()
                return
        if self.isMissing(name):
            self.showModel()
            return
        self.useModel(name)

    def useModel(self, name):
        """Load weights; until they are here, and if they cannot be used, the former ones stay."""
        try:
            self.logic.startModel(name, DEVICES[self.ui.deviceComboBox.currentIndex],
                                  PRECISIONS[self.ui.precisionComboBox.currentIndex])
        except Exception:
            self.fillModels()
            raise
        if self.logic.loading():
            self.ui.modelStateLabel.setText(_("Loading {chosen}; until then {name} answers.").format(
                chosen=Path(name).name, name=Path(self.logic.modelName).name))

    def onModelLoaded(self, changed):
        self.refreshModels()
        if changed:
            self.clearExperts()  # they are those of the former model

    def refreshModels(self):
        """List the models anew; one that is looked at, or being downloaded, stays in view."""
        self.fillModels(self.chosenModel() if self.isMissing(self.chosenModel()) else None)

    def held(self, name):
        """State of a model of the list, "" for a file."""
        return next((model.state for model in self.listedModels()[0] if model.name == name), "")

    def isMissing(self, name):
        """Whether a model of the list has to be downloaded first."""
        return self.held(name) in ("not downloaded", "partly downloaded")

    def onDownload(self):
        entry = self.logic.entry(self.chosenModel())
        if not entry.permissive and not slicer.util.confirmOkCancelDisplay(
                _("{title}: licence {licence}. Read it at {url}. Do you accept it?").format(
                    title=entry.title, licence=entry.licence, url=entry.licence_url)):
            return
        self.logic.startFetch(entry.name, True)

    def onStopDownload(self):
        self.logic.download.cancel()

    def onRemoveModel(self):
        name = self.chosenModel()
        if slicer.util.confirmOkCancelDisplay(_("Delete the weights of {name} from this machine?").format(name=name)):
            freed = self.logic.removeModel(name)
            self.showStatus(_("{name}: {size:.0f} MB freed.").format(name=name, size=freed / 1e6), False)
            self.fillModels()

    def showDownload(self):
        """Progress of a download; at its end the model is used. The panel's timer calls this."""
        download = self.logic.download
        if download is None:
            return
        if download.running():
            self.ui.modelStateLabel.setText(download.inWords())
            return
        self.logic.download = None
        if download.error is not None:
            if not self.logic.isExpected(download.error):
                logging.error("SegMoTE download", exc_info=download.error)
            self.showStatus(str(download.error), True)
            self.fillModels(download.entry.name)
        else:
            self.showStatus(_("{title} is here and verified.").format(title=download.entry.title), False)
            self.guarded(self.useModel)(download.entry.name)

    def modelControls(self):
        """(widgets, reason why they cannot be used or None) for ``updateControls``."""
        busy = self.logic.downloading()
        state = self.held(self.chosenModel())
        missing = self.isMissing(self.chosenModel())
        here = None if state in ("verified", "not verified", "yours", "partly downloaded") else _(
            "These weights cannot be removed.")
        return (((self.ui.downloadButton,), None if missing and not busy else
                 _("A download is running.") if busy else _("These weights are on this machine.")),
                ((self.ui.stopDownloadButton,), None if busy else _("No download is running.")),
                ((self.ui.removeModelButton,), _("A download is running.") if busy else here))
