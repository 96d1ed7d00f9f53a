"""Side-by-side measurements behind ``segmote bench``: ratios from one run, never single timings."""
