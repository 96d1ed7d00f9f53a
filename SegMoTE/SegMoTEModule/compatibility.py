"""What each supported Slicer needs, all in this file: packages, their installation, and what differs between versions.

================  ======================  ======================  ======================
\\                 Slicer 5.10             Slicer 5.12             Slicer 5.13 (preview)
================  ======================  ======================  ======================
Python            3.12                    3.12                    3.12
NumPy, SciPy      2.0, 1.13               2.4, 1.17               2.4, 1.17
SimpleITK         2.5, Slicer's own       2.5, from PyPI          2.5, from PyPI
pydicom           2.4: update for DICOM   3.0                     3.0
Qt                5                       5 (6.8 if built so)     5 (6.8 if built so)
pip               ``slicer.util``         ``slicer.packaging``    ``slicer.packaging``
================  ======================  ======================  ======================

Before 5.10
    There is no ``vtkSlicerSegmentEditorLogic``, through which every mask is written: refused with a sentence.
pip
    5.12 brought ``slicer.packaging``: ``pip_ensure`` shows progress and offers a restart where a package in use was
    updated. It installs nothing while Slicer runs its tests, so that what is still missing afterwards is an error
    here. 5.10 has ``slicer.util.pip_install`` alone, which takes pip's arguments as a list.
PyTorch
    Comes through the PyTorch extension, which picks the build for the graphics card; never from pip here. It brings
    torchvision, too. Its ``installTorch`` uses ``slicer.util._executePythonModule``, which 5.10 to 5.13 have.
SimpleITK
    From 5.12 on it cannot read nodes of the scene (``slicer:``); nothing here does that.
Qt
    Only what Qt 5 and 6 share: signals are connected by signatures that both have, no ``QRegExp``, ``exec_`` or
    ``currentIndexChanged(QString)``.
macOS
    Slicer's packages up to 5.12 are for Intel processors, for which PyTorch ended with 2.2; that one needs NumPy 1.
    ``checkPyTorch`` says so, instead of an error in the middle of a click.

Sources: ``SuperBuild``, ``Base/Python/slicer`` and ``CMakeLists.txt`` of the tags v5.10.0 and v5.12.3 and of main in
August 2026. Nothing of this has been tried in the application yet; .github/workflows/slicer.yml is for that.
"""

from importlib import invalidate_caches, metadata
from pathlib import Path
from subprocess import CalledProcessError

import slicer
from slicer.i18n import tr as _

REQUIREMENTS = Path(__file__).parents[1] / "Resources" / "requirements.txt"
PYTORCH = ("torch>=2.2", "torchvision>=0.17")


def missingPackages():
    """Requirements that are not installed, or too old: PyTorch's first, then those of requirements.txt."""
    from packaging.requirements import Requirement

    def isMet(line):
        requirement = Requirement(line)
        try:
            return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
        except metadata.PackageNotFoundError:
            return False

    return [line for line in (*PYTORCH, *_requirements()) if not isMet(line)]


def ensurePackages(told=lambda text, isError: None):
    """Install what is missing, after asking once; nothing if all is there.

    Raises ``SegMoTEError``: this Slicer is too old, the user declined, PyTorch's extension is missing, or pip failed.
    """
    from SegMoTELib.errors import SegMoTEError

    checkSlicer()
    missing = missingPackages()
    if not missing:
        loadPyTorch()
        return
    names = ", ".join(missing)
    if not slicer.util.confirmOkCancelDisplay(
            _("SegMoTE needs {names} once; the download can take some minutes. Install now?").format(names=names)):
        raise SegMoTEError(_("SegMoTE cannot work without {names}.").format(names=names))
    told(_("Installing {names}; this can take some minutes...").format(names=names), False)
    try:
        with slicer.util.WaitCursor():
            if set(missing) & set(PYTORCH):
                _installPyTorch()
            _installOthers()
    except CalledProcessError as error:
        raise SegMoTEError(_("Installing {names} failed ({reason}). The Python console shows what pip said; check the "
                             "network and proxy and try again.").format(names=names, reason=error)) from error
    invalidate_caches()
    missing = missingPackages()
    if missing:
        raise SegMoTEError(_("{names} could not be installed; see the Python console, or restart Slicer and try "
                             "again.").format(names=", ".join(missing)))
    loadPyTorch()


def checkSlicer():
    """Raise ``SegMoTEError`` where this Slicer lacks what masks are written with."""
    from SegMoTELib.errors import SegMoTEError

    if not hasattr(slicer, "vtkSlicerSegmentEditorLogic"):
        raise SegMoTEError(_("SegMoTE needs Slicer 5.10 or newer."))


def loadPyTorch():
    """Import PyTorch and torchvision; ``SegMoTEError`` where they are damaged, or do not fit each other."""
    from SegMoTELib.errors import SegMoTEError, reason

    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except Exception as error:  # an ImportError, an OSError from a DLL, a RuntimeError from builds that do not fit
        raise SegMoTEError(_("PyTorch could not be loaded ({reason}). Install it anew in the PyTorch Utils module and "
                             "restart Slicer.").format(reason=reason(error))) from error


def checkPyTorch():
    """Raise ``SegMoTEError`` where PyTorch and NumPy, both installed, cannot work together; imports both."""
    import numpy as np
    import torch

    from SegMoTELib.errors import SegMoTEError

    try:
        torch.from_numpy(np.zeros(1))
    except RuntimeError as error:
        raise SegMoTEError(_("PyTorch {torch} cannot work with this Slicer's NumPy {numpy} ({reason}). Install a newer "
                             "PyTorch in the PyTorch Utils module; for Slicer's Intel packages on macOS there is none."
                             ).format(torch=torch.__version__, numpy=np.__version__, reason=error)) from error


def _requirements():
    lines = (line.strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def _installPyTorch():
    from SegMoTELib.errors import SegMoTEError

    try:
        import PyTorchUtils
    except ImportError:
        raise SegMoTEError(_("Install the PyTorch extension from the Extensions Manager, restart Slicer and try "
                             "again.")) from None
    versions = [line[line.index(">"):] for line in PYTORCH]
    if PyTorchUtils.PyTorchUtilsLogic().installTorch(
            askConfirmation=False, torchVersionRequirement=versions[0], torchvisionVersionRequirement=versions[1]) is None:
        raise SegMoTEError(_("PyTorch was not installed; see the PyTorch Utils module for the reason."))


def _installOthers():
    try:
        from slicer import packaging
    except ImportError:  # Slicer 5.10
        slicer.util.pip_install(["-r", str(REQUIREMENTS)])
    else:
        packaging.pip_ensure(packaging.load_requirements(REQUIREMENTS), prompt_install=False, requester="SegMoTE")
