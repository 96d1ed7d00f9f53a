"""The bridge to Slicer's scene: volumes out of it, masks into segments. Runs in Slicer and on the slicer-core wheel.

Main thread only: MRML is not thread-safe.
"""
