"""Errors written for the person who reads them: what is wrong, with which file or value, and what to do."""


class SegMoTEError(Exception):
    """Base of every error a user can cause or repair; the message is one clear sentence, fit for a status line."""


class CheckpointError(SegMoTEError):
    """A weights file that cannot be used: damaged, unsafe, of another architecture, or incomplete."""


class DataError(SegMoTEError):
    """Images, labels or a data set description that cannot be used as they are."""


class VolumeError(SegMoTEError):
    """A volume, slice plane or image file that cannot be segmented as it is."""


class PromptError(SegMoTEError):
    """Prompts that say nothing, or nothing about this image."""


class SegmentError(SegMoTEError):
    """A segment that cannot be written to."""


class ModelError(SegMoTEError):
    """A model that the catalogue lacks, or whose weights cannot be fetched, verified or removed."""


class CancelledError(SegMoTEError):
    """Long work that the user stopped."""


def reason(error: Exception) -> str:
    """The last line of another library's message that says something, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
