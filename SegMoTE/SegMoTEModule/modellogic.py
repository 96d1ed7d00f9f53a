"""Weights in the module's logic: which there are, loading, changing and fetching them without stopping the panel."""

import logging
import threading
from dataclasses import dataclass
from importlib.util import find_spec

from slicer.i18n import tr as _

from SegMoTEModule import compatibility

BUNDLED_MODEL = "segmote-tiny"


@dataclass(frozen=True)
class Choice:
    """Weights, by a name of ``models()`` or as a file, and where and how exactly to compute with them."""

    name: str = BUNDLED_MODEL
    device: str = "auto"
    precision: str = "auto"


class ModelLogic:
    """Mixed into ``SegMoTELogic``, which loads the chosen weights with the first prompt."""

    choice = Choice()  # in use, or to be loaded with the first prompt
    download = None  # the latest Download
    _device = None  # that the model was last seen on
    _fellBack = False  # to the CPU, when the GPU's memory ran out
    _loading = None  # the job that loads weights
    _explained = None  # the answer whose experts were shown last
    _summary = None  # an answer, and who gave it

    # --- for scripts -----------------------------------------------------------------------------------------------

    @property
    def modelName(self):
        """Name, or file, of the weights in use."""
        return self.choice.name

    def models(self):
        """What of the catalogue and of the user's own weights is on this machine (``SegMoTELib.zoo.store.Held``)."""
        from SegMoTELib.zoo.store import held

        return held() if find_spec("platformdirs") else []

    def setModel(self, nameOrPath=BUNDLED_MODEL, device="auto", precision="auto"):
        """Load weights (a name of ``models()`` or a file) and use them from now on; if that fails, nothing changes."""
        with self._waited():
            self.startModel(nameOrPath, device, precision)

    def removeModel(self, name):
        """Delete downloaded weights; the bundled ones take over if they are in use. Returns the bytes freed."""
        from SegMoTELib.errors import ModelError
        from SegMoTELib.zoo.store import find, remove

        model = find(name)
        if model.path == self._path() and model.state != "bundled":
            self.setModel(BUNDLED_MODEL, self.choice.device, self.choice.precision)
        try:
            return remove(name)
        except OSError as error:
            raise ModelError(_("{path} could not be deleted ({reason}); restart Slicer and try again.").format(
                path=model.path, reason=error.strerror or error)) from error

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

    @property
    def modelState(self):
        """Weights, device and precision in words, and why these; empty until they are loaded."""
        predictor = self._predictor()
        return "" if predictor is None else _("{name}, on {device}. {reason}").format(
            name=self.modelName, device=predictor.describe(), reason=self._reason(predictor))

    # --- for the panel: start and go on ----------------------------------------------------------------------------

    def startModel(self, name, device="auto", precision="auto"):
        """``setModel`` without waiting. Until the new weights are there the former ones answer."""
        from SegMoTELib.zoo import read_card, resolve_model

        read_card(resolve_model(name))
        self.ensureDependencies()
        self._load(Choice(str(name), device, precision))

    def loading(self):
        """Whether weights are being loaded."""
        return self._loading is not None and not self._loading.cancelled()

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

    # --- the experts -----------------------------------------------------------------------------------------------

    @property
    def expertSummary(self):
        """Which expert token gave the latest mask, in words."""
        last = getattr(self._predictor(), "last", None)
        if self._summary is None or last is not self._summary[0]:  # reading tensors of a GPU waits for it: once for each answer
            self._summary = last, self._summarise(last)
        return self._summary[1]

    @staticmethod
    def _summarise(last):
        if last is None:
            return _("No answer yet.")
        if last.token_probabilities is None:
            return _("These weights have no trained experts: the mask is SAM's own.")
        index, probabilities = int(last.selected[0]), last.token_probabilities[0]
        return _("Token {index} of {count} gave the mask ({share} sure).").format(
            index=index + 1, count=len(probabilities), share=f"{float(probabilities[index]):.0%}")

    def expertsToShow(self):
        """Whether there is an answer whose experts have not been shown, and no other work that this would delay."""
        last = getattr(self._predictor(), "last", None)
        if last is None or last is self._explained or last.token_probabilities is None:
            return False
        job = self._segmenter.jobs.current()
        return job is None or job.key == "prefetch"

    def startExpertView(self, shown, side):
        """Compute how the experts came to the latest answer.

        ``shown`` is called with an ``ExpertView`` and a PNG, bytes, of where the chosen token looked, no side longer
        than ``side`` pixels.
        """
        predictor = self._predictor()
        self._explained = predictor.last

        def work(job):
            from SegMoTELib.interaction.expert_view import attention_png

            with predictor.turn:
                view, pixels = predictor.expert_view(), predictor.encoded.pixels
            return view, attention_png(view, pixels, side)

        self._segmenter.jobs.submit("experts", work, lambda found: shown(*found), self._segmenter.failed,
                                    label=_("Looking at the experts"))
        self.onBusy()

    # --- inside ----------------------------------------------------------------------------------------------------

    def _predictor(self):
        return self._segmenter.predictor if self._segmenter is not None else None

    def _path(self):
        """File of the weights in use, None where it is gone."""
        from SegMoTELib.errors import SegMoTEError
        from SegMoTELib.zoo import resolve_model

        try:
            return resolve_model(self.modelName)
        except SegMoTEError:
            return None

    def _whenLoaded(self, action):
        """Do it now, or as soon as the model is loaded, which is started if need be."""
        segments = self._segments()
        if segments.predictor is not None:
            action()
        else:
            self._waiting.append(action)
            if not self.loading():
                self._load(self.choice)
        self.onBusy()

    def _load(self, choice):
        onDisk = self._embeddingsOnDisk

        def work(job):
            from SegMoTELib.interaction.predictor import Predictor
            from SegMoTELib.network import load_checkpoint
            from SegMoTELib.zoo import resolve_model

            compatibility.checkPyTorch()
            return Predictor(load_checkpoint(resolve_model(choice.name)), choice.device, choice.precision,
                             self._cache(onDisk))

        self._loading = self._segments().jobs.submit(
            "model", work, lambda predictor: self._loaded(choice, predictor),
            lambda error: self._notLoaded(choice, error), label=_("Loading {name}").format(name=choice.name))
        self.onBusy()

    def _loaded(self, choice, predictor):
        """Answer with this model from now on; what the former one was computing is asked anew."""
        former = self._predictor()
        self._loading, self._explained, self._fellBack = None, None, False
        self.choice, self._device = choice, predictor.device
        if self._runs is not None:
            self._runs.model_changed()
        self._segmenter.use(predictor)
        waiting, self._waiting = self._waiting, []
        if former is not None:
            self._told(_("{name} answers from now on.").format(name=choice.name), False)
            if self._asked is not None and self._asked.exists():
                waiting.append(lambda: self._segments().update(self._asked))
        for action in waiting:
            try:
                action()
            except Exception as error:
                if not self.isExpected(error):
                    logging.exception("SegMoTE")
                self._told(str(error), True)
        self.onModel(True)

    def _notLoaded(self, choice, error):
        """Say why, and go on with the weights that were in use, or chosen, before."""
        from SegMoTELib.interaction.devices import out_of_memory

        self._loading = None
        if not self.isExpected(error):
            logging.error("SegMoTE: the model was not loaded", exc_info=error)
        reason = out_of_memory(error) or str(error)
        if choice != self.choice:
            reason = _("{reason} {name} stays in use.").format(reason=reason, name=self.modelName)
        self._told(reason, True)
        if choice != self.choice and self._waiting:
            self._load(self.choice)
        else:
            self._waiting = []
        self.onModel(False)

    def _watchDevice(self):
        """Tell when the model has moved to the CPU because the GPU's memory ran out."""
        predictor = self._predictor()
        if predictor is not None and predictor.device != self._device:
            self._device, self._fellBack = predictor.device, True
            self.onStatus(_("The GPU's memory ran out; going on with {device}.").format(device=predictor.describe()),
                          True)

    def _reason(self, predictor):
        """Why this device and precision."""
        import torch

        if self._fellBack:
            return _("The GPU's memory ran out; choose the device again to try it once more.")
        if self.choice.device != "auto":
            device = _("The device is the one you chose.")
        elif predictor.device.type != "cpu":
            device = _("Automatic: PyTorch found this GPU.")
        elif torch.version.cuda is None and not torch.backends.mps.is_built():
            device = _("Automatic: this PyTorch was built without GPU support.")
        else:
            device = _("Automatic: PyTorch found no CUDA or Apple GPU.")
        if self.choice.precision != "auto" or predictor.dtype is not torch.float32:
            return device
        return _("{device} Lower precision would not be faster.").format(device=device)


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
        if self._cancelled.is_set():
            return _("Stopping the download of {title}...").format(title=self.entry.title)
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
