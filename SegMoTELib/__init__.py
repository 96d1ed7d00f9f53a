"""SegMoTELib: the library behind the SegMoTE extension. Imports without Slicer, without Qt and without torch."""

__version__ = "0.1.0"
