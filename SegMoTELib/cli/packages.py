"""The packages that SegMoTE uses: which are needed always, which for what, and how to get one that is missing."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

# Extra of pyproject.toml ("" = always needed) -> names on PyPI.
PACKAGES = {
    "": ("click", "filelock", "numpy", "pillow", "platformdirs", "pooch", "psutil", "pydicom", "safetensors", "scipy",
         "segment-anything", "SimpleITK", "torch", "torchvision", "tqdm"),
    "dicom": ("highdicom",),
    "research": ("ImageHash", "Jinja2", "matplotlib", "monai", "opencv-python-headless", "PyYAML", "scikit-image"),
    "cluster": ("distributed",),
}
PURPOSES = {"dicom": "DICOM SEG", "research": "curate, train and evaluate", "cluster": "batch --cluster"}
BESIDES = {"slicer-core": "bench click and the tests on a Slicer scene", "vtk": "comes with slicer-core"}
# Name in "import" -> name on PyPI, where they differ in more than capitals.
IMPORTED_AS = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "PyYAML", "skimage": "scikit-image",
               "slicer": "slicer-core", "segment_anything": "segment-anything"}


def installed(name: str) -> str:
    """Version of a package, "" if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def how_to_get(module: str) -> str:
    """The pip line for a module that could not be imported."""
    name = IMPORTED_AS.get(module, module)
    for extra, names in PACKAGES.items():
        if extra and name.lower() in (one.lower() for one in names):
            return f"pip install 'segmote[{extra}]'"
    return f"pip install {name}"
