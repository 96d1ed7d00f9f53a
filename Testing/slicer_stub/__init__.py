"""Stands in for what only the Slicer application has: Qt through PythonQt, qMRML widgets, the scripted module bases.

MRML, segmentation, markups and the Segment Editor's logic are the real ones, from the slicer-core wheel. As small as it
can be: what the module does not use is not here.
"""

from Testing.slicer_stub.application import install, start_scene

__all__ = ["install", "start_scene"]
