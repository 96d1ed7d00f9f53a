"""Target: where results go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """Where results go: a segment of a segmentation, on a volume."""

    volume: Any
    segmentation: Any
    segment_id: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Hashable, by the nodes' ids; the segment's comes first."""
        return self.segmentation.GetID(), self.segment_id, self.volume.GetID()

    def exists(self) -> bool:
        """False once a node or the segment was deleted."""
        return (self.volume.GetScene() is not None and self.segmentation.GetScene() is not None
                and self.segmentation.GetSegmentation().GetSegment(self.segment_id) is not None)
