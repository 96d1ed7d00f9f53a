"""One reader a source layout; each lists what there is and leaves the reading of pixels to its references."""
