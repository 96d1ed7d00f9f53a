"""MedSeg-HQ: reading labelled images, reviewing their masks, splitting them, writing them in one layout."""
