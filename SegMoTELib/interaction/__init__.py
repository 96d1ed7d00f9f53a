"""The engine a front end drives: prompts in, masks out. No Slicer, no Qt."""
