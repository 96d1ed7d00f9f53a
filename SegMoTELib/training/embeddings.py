"""Embeddings of a frozen encoder, computed once: what makes the adapt stage cheap."""

from __future__ import annotations

import torch
from torch import Tensor

from SegMoTELib.network import ImageEmbedding, SegMoTE


class EmbeddingStore:
    """Keeps image embeddings in half precision, by key, up to a number of bytes; further ones are computed anew.

    Args:
        budget: bytes.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.used = budget, 0
        self.kept: dict[tuple, ImageEmbedding] = {}

    def encode(self, model: SegMoTE, pixels: Tensor, keys: list[tuple]) -> ImageEmbedding:
        """Return the embedding of (B, 3, S, S) pixels; images whose key is known are not encoded again."""
        missing = {key: index for index, key in enumerate(keys) if key not in self.kept}
        fresh: dict[tuple, ImageEmbedding] = {}
        if missing:
            with torch.no_grad():
                encoded = model.encode(pixels[list(missing.values())]).to(torch.float16)
            fresh = {key: encoded[[row]] for row, key in enumerate(missing)}
        for key, embedding in fresh.items():
            if self.used + embedding.nbytes <= self.budget:
                self.kept[key] = embedding
                self.used += embedding.nbytes
        # Fresh ones pass through half precision, too, so that a result does not depend on what was kept.
        return ImageEmbedding.cat([self.kept.get(key, fresh.get(key)) for key in keys]).to(model.dtype)
