"""SegMoTE: ``encode`` an image once, ``decode`` prompts many times."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from SegMoTELib.network.compact import CompactDecoder
from SegMoTELib.network.config import ModelConfig
from SegMoTELib.network.decoder import ExpertDecoder, MaskPrediction
from SegMoTELib.network.encoders import ImageEmbedding, build_encoder
from SegMoTELib.network.prompt_encoders import CompactPromptEncoder, FloatPromptEncoder, draw_prompts
from SegMoTELib.network.prompt_tokens import PromptTokenizer

Points = tuple[Tensor, Tensor]

# Parts that SegMoTE adds to SAM: trained in the adapt stage, switched off with ``adapters=False``.
ADAPTER_PREFIXES = (
    "prompt_tokenizer.", "mask_decoder.expert_", "mask_decoder.compress_vit_feat.", "mask_decoder.target_dense.")
# Of these, what the base stage learns, too: the prompts that stand for an auto target.
LEARNED_WITH_BASE = ("prompt_tokenizer.", "mask_decoder.target_dense.")


class SegMoTE(nn.Module):
    """A SAM with token experts (MoTE) and learned prompts (PPT).

    Attributes:
        config: the architecture.
        metadata: what the checkpoint says about itself (training data, licence, ...); empty for a fresh model.
        adapters_trained: False where the experts are still random (SAM's own weights, a base run).
        auto_trained: False where PPT is still random (SAM's own weights).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.metadata: dict[str, str] = {}
        self.adapters_trained = self.auto_trained = True
        self._kept_pe: tuple | None = None
        self.compact = config.encoder == "compact"
        self.image_encoder = build_encoder(config)
        if self.compact:
            self.prompt_encoder = CompactPromptEncoder(config)
            self.mask_decoder = CompactDecoder(config)
        else:
            self.prompt_encoder = FloatPromptEncoder(
                embed_dim=config.embed_dim, image_embedding_size=(config.embedding_size,) * 2,
                input_image_size=(config.image_size,) * 2, mask_in_chans=16)
            self.mask_decoder = ExpertDecoder(config)
        self.prompt_tokenizer = PromptTokenizer(config.embed_dim, config.prompt_tokens, len(config.auto_targets)) \
            if config.prompt_tokens and config.auto_targets else None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.mask_decoder.iou_token.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights (the prompt encoder stays in float32)."""
        return self.mask_decoder.iou_token.weight.dtype

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters SegMoTE adds to SAM (MoTE, expert heads and features, PPT), by name."""
        return {name: parameter for name, parameter in self.named_parameters() if is_adapter(name)}

    def encode(self, pixels: Tensor) -> ImageEmbedding:
        """Encode images; an encoder in reduced precision hands its result to the decoder's precision.

        Args:
            pixels: (B, 3, S, S) float, normalised with the config's mean and std, S = ``config.image_size``.

        Raises:
            ValueError: another shape.
        """
        size = self.config.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size):
            raise ValueError(f"encode expects (B, 3, {size}, {size}) pixels, got {tuple(pixels.shape)}")
        weight = next(self.image_encoder.parameters())
        embedding = self.image_encoder(pixels.to(weight.device, weight.dtype))
        return embedding if weight.dtype == self.dtype else embedding.to(self.dtype)

    def decode(self, embedding: ImageEmbedding, points: Points | None = None, boxes: Tensor | None = None,
               masks: Tensor | None = None, auto: bool | str | Tensor | None = None, adapters: bool = True,
               multimask: bool = False, attention: bool = False,
               domains: Tensor | None = None) -> MaskPrediction:
        """Turn prompts into masks; one image with N prompts, or N images with one prompt set each.

        Args:
            embedding: of 1 or N images.
            points: (coords (N, P, 2) as x, y in input pixels, labels (N, P): 1 inside, 0 outside, -1 padding).
            boxes: (N, 4) x0, y0, x1, y1 in input pixels.
            masks: (N, 1, h, w) logits of an earlier prediction.
            auto: segment without or beside prompts: a target's name, True for the first target, or (N,) indices.
            adapters: use experts and PPT's tokens; False gives the base (for SAM weights: SAM's own output).
            multimask: with ``adapters=False``, SAM's three masks instead of one.
            attention: also return the expert tokens' attention maps.
            domains: (1 or N, D) probabilities of what kind of image it is; by default as ``embedding`` looks, which is
                right for whole images and a guess for parts.

        Raises:
            ValueError: no prompt at all, prompts that disagree on N, or an unknown target.
        """
        count = self._count(embedding, points, boxes, masks, auto)
        targets = self._targets(auto, count)
        dtype = self.dtype
        if points is not None:
            points = (points[0].to(self.device, torch.float32), points[1].to(self.device))
        boxes = None if boxes is None else boxes.to(self.device, torch.float32)
        masks = None if masks is None else masks.to(self.device, torch.float32)
        if points is not None or boxes is not None or masks is not None:
            sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=masks)
        else:
            sparse, dense = torch.zeros(count, 0, self.config.embed_dim, device=self.device), None
        sparse = sparse.to(dtype)
        if targets is not None and self.prompt_tokenizer is not None:
            features = embedding.features.expand(count, -1, -1, -1)
            sparse = torch.cat([self.prompt_tokenizer(features, targets), sparse], dim=1)
        image_pe = self._image_pe()
        if self.compact:
            size = 2 * self.config.embedding_size
            maps = draw_prompts(size, self.config.image_size, count, points, boxes, masks, embedding.features)
            return self.mask_decoder(embedding, image_pe, maps, sparse, targets, adapters, attention, domains)
        no_mask = self.prompt_encoder.no_mask_embed.weight[None].to(dtype)
        dense = dense.to(dtype) if masks is not None else None
        return self.mask_decoder(embedding, image_pe, no_mask, sparse, dense, adapters, multimask, attention)

    def domains(self, embedding: ImageEmbedding) -> Tensor | None:
        """Probabilities (B, D) of what kind of image each is, for ``decode``; None for a model without domain experts.

        Args:
            embedding: of B whole images.
        """
        experts = self.mask_decoder.expert_domains if self.compact else None
        return None if experts is None else experts.route(embedding)

    def _image_pe(self) -> Tensor:
        """(1, L, C) positional encoding of the embedding's cells, kept until its frequencies or the size change."""
        matrix = self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        key = (id(matrix), matrix._version, self.dtype, matrix.device, self.prompt_encoder.image_embedding_size)
        if self._kept_pe is None or self._kept_pe[0] != key:
            with torch.inference_mode(False), torch.no_grad():  # kept for training, too
                pe = self.prompt_encoder.get_dense_pe().to(self.dtype).flatten(2).transpose(1, 2).contiguous()
            self._kept_pe = (key, pe)
        return self._kept_pe[1]

    def target_index(self, name: str) -> int:
        """Index of an auto target.

        Raises:
            ValueError: the model does not offer it; the message lists what it offers.
        """
        names = [target.name for target in self.config.auto_targets]
        if self.prompt_tokenizer is None or name not in names:
            offered = ", ".join(map(repr, names)) if names and self.prompt_tokenizer is not None else "none"
            raise ValueError(f"this model has no auto target {name!r}; it offers: {offered}")
        return names.index(name)

    def _targets(self, auto: bool | str | Tensor | None, count: int) -> Tensor | None:
        if auto is None or auto is False:
            return None
        if isinstance(auto, Tensor):
            return auto.to(self.device)
        name = self.config.auto_targets[0].name if auto is True and self.config.auto_targets else str(auto)
        return torch.full((count,), self.target_index(name), dtype=torch.int64, device=self.device)

    @staticmethod
    def _count(embedding: ImageEmbedding, points: Points | None, boxes: Tensor | None, masks: Tensor | None,
               auto: bool | str | Tensor | None) -> int:
        """N, after checking that all prompts agree with each other and with the images."""
        sizes = {name: len(value) for name, value in (
            ("points", None if points is None else points[0]), ("point labels", None if points is None else points[1]),
            ("boxes", boxes), ("masks", masks), ("auto", auto if isinstance(auto, Tensor) else None),
        ) if value is not None}
        if not sizes and (auto is None or auto is False):
            raise ValueError("decode needs a prompt: points, boxes, masks or auto")
        images = len(embedding)
        if len(set(sizes.values())) > 1:
            raise ValueError(f"prompts disagree on their number: {sizes}")
        count = next(iter(sizes.values()), images)
        if images not in (1, count):
            raise ValueError(f"{count} prompts do not fit {images} images: give one image, or one prompt set per image")
        return count


def is_adapter(name: str) -> bool:
    """Tell whether a parameter, by its state-dict name, belongs to what SegMoTE adds to SAM."""
    return name.startswith(ADAPTER_PREFIXES) or ".experts." in name


def build_model(config: ModelConfig) -> SegMoTE:
    """Return a model with fresh random weights, in eval mode (call ``train()`` for training)."""
    return SegMoTE(config).eval()
