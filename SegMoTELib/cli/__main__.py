"""``python -m SegMoTELib.cli``: the segmote command, for torchrun and for environments without scripts."""

from SegMoTELib.cli import main

if __name__ == "__main__":
    main()
