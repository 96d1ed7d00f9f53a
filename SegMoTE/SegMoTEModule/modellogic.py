"""Weights in the module's logic: which there are, which is chosen, and fetching them without stopping the panel."""

import threading
from importlib.util import find_spec

from slicer.i18n import tr as _

BUNDLED_MODEL = "segmote-tiny"


class ModelLogic:
    """Mixed into ``SegMoTELogic``, which loads the chosen weights with the first prompt."""

    modelName, device, precision = BUNDLED_MODEL, "auto", "auto"
    download = None  # the latest Download

    # --- for scripts -----------------------------------------------------------------------------------------------

    def models(self):
        """What of the catalogue and of the user's own weights is on this machine (``SegMoTELib.zoo.store.Held``)."""
        from SegMoTELib.zoo.store import held

        return held() if find_spec("platformdirs") else []

    def setModel(self, nameOrPath=BUNDLED_MODEL, device="auto", precision="auto"):
        """Choose weights (a name of ``models()`` or a file), device and precision; loaded with the next prompt."""
        from SegMoTELib.zoo import read_card, resolve_model

        read_card(resolve_model(nameOrPath))
        self.modelName, self.device, self.precision = str(nameOrPath), device, precision
        if self._segmenter is not None:
            self.discardRun()
            self._segmenter.reset()

    def fetchModel(self, name, acceptLicence=False):
        """Download weights of the catalogue and wait for them; a licence that is not permissive must be accepted."""
        self.ensureDependencies()
        from SegMoTELib.zoo.catalogue import find_entry
        from SegMoTELib.zoo.download import fetch

        return fetch(find_entry(name), acceptLicence)

    def removeModel(self, name):
        """Delete downloaded weights; returns the bytes freed."""
        from SegMoTELib.zoo.store import remove

        if name == self.modelName:
            self.setModel(BUNDLED_MODEL, self.device, self.precision)
        return remove(name)

    def targets(self):
        """(name, modality) of what ``autoSegment`` finds with the chosen weights."""
        return self.card().targets

    def card(self):
        """What the chosen weights say of themselves; an empty card where they cannot be read."""
        from SegMoTELib.errors import SegMoTEError
        from SegMoTELib.zoo import ModelCard, read_card, resolve_model

        try:
            return read_card(resolve_model(self.modelName))
        except SegMoTEError as error:
            return ModelCard(self.modelName, str(error), ())

    # --- for the panel ---------------------------------------------------------------------------------------------

    def entry(self, name):
        """A model's entry of the catalogue; None for the user's own."""
        from SegMoTELib.zoo.catalogue import catalogue

        return catalogue().get(name)

    def startFetch(self, name, acceptLicence):
        """Download in a thread of its own, so that prompts are answered meanwhile; see ``download``."""
        self.ensureDependencies()
        self.download = Download(self.entry(name), acceptLicence)
        self.onBusy()

    def downloading(self):
        return self.download is not None and self.download.running()


class Download:
    """One download: ``here`` and ``total`` bytes; when it no longer runs, ``error`` is what went wrong, or None."""

    def __init__(self, entry, acceptLicence):
        self.entry, self.here, self.total, self.error = entry, 0, entry.size, None
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(acceptLicence,), daemon=True, name="SegMoTE download")
        self._thread.start()

    def running(self):
        return self._thread.is_alive()

    def cancel(self):
        """Stop; what has come is kept for the next time."""
        self._cancelled.set()

    def inWords(self):
        if not self.total:
            return _("Downloading {title}: {here:.0f} MB").format(title=self.entry.title, here=self.here / 1e6)
        return _("Downloading {title}: {here:.0f} of {total:.0f} MB").format(
            title=self.entry.title, here=self.here / 1e6, total=self.total / 1e6)

    def _progress(self, here, total):
        self.here, self.total = here, total

    def _run(self, acceptLicence):
        from SegMoTELib.zoo.download import fetch

        try:
            fetch(self.entry, acceptLicence, self._progress, self._cancelled.is_set)
        except Exception as error:
            self.error = error
