"""Pixels and millimetres: volumes, slice planes, intensity ranges and files. Knows nothing of tensors or scenes."""
