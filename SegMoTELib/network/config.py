"""ModelConfig: the one frozen description of an architecture, and its plain-dict form for checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from SegMoTELib.errors import CheckpointError

# SAM's pixel normalisation (RGB, 0-255): segment_anything.build_sam.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

LARGEST = {"": 16384, "image_size": 4096, "encoder_depth": 256, "compact_depths": 256}  # "": every other size

# Width, depth, heads and global-attention blocks of SAM's three encoders: segment_anything.build_sam.
SAM_ENCODERS = {
    "vit_b": (768, 12, 12, (2, 5, 8, 11)),
    "vit_l": (1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": (1280, 32, 16, (7, 15, 23, 31)),
}


@dataclass(frozen=True)
class AutoTarget:
    """A structure the model segments without any prompt.

    Attributes:
        name: what the user reads and passes to ``decode(auto=...)``.
        modality: the modality it was trained on.
        color: (red, green, blue), each 0-255.
        terminology: a terminology entry in Slicer's serialised form, or "" where none fits.
        sources: the training labels it stands for, each ``"<data set>:<label index>"``.
        plane: of the training slices, "axial", "coronal" or "sagittal"; "" where they had none or several.
    """

    name: str
    modality: str = ""
    color: tuple[int, int, int] = (128, 174, 128)
    terminology: str = ""
    sources: tuple[str, ...] = ()
    plane: str = ""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides parameter shapes and the computation; weights live elsewhere.

    Attributes:
        name: short name shown to the user.
        encoder: "sam_vit" (SAM's ViT) or "compact" (convolutions, for CPU laptops).
        image_size: side of the square input, pixels.
        embed_dim: width of the image embedding and of the mask decoder.
        encoder_width, encoder_depth, encoder_heads, global_attention: ViT geometry.
        encoder_stride: input pixels per embedding cell.
        encoder_norm_eps: LayerNorm epsilon (SAM 1e-6; the released SegMoTE 1e-5).
        compact_widths, compact_depths: channels and residual blocks of the compact encoder at strides 2, 4, 8, 16, 32.
        decoder_mlp: hidden width of the decoder's token MLP.
        semantic_tokens: extra tokens of the released SegMoTE layout (their output is not used).
        experts: number of expert tokens and of experts. top_k: experts kept per token. expert_rank: their inner width.
        expert_layers: decoder layers with token experts; in the others expert tokens take the usual MLP.
        gating: "learned" (softmax over all experts, then top k) or "reference" (the released weights' behaviour).
        expert_residual: the expert output is added to the base's token MLP instead of replacing it.
        prompt_tokens: Q, prompt tokens per auto target. auto_targets: what PPT can segment without prompts.
        domains: compact: kinds of image, by data set code, that the adapters tell apart; empty = no domain experts.
        resize: "pad" (aspect ratio kept, SAM) or "squash" (released SegMoTE).
        pixel_mean, pixel_std: input normalisation on 0-255.

    Raises:
        ValueError: fields that contradict each other, or sizes beyond any use; names the field.
    """

    name: str
    encoder: str
    image_size: int
    embed_dim: int
    encoder_width: int = 768
    encoder_depth: int = 12
    encoder_heads: int = 12
    global_attention: tuple[int, ...] = (2, 5, 8, 11)
    encoder_stride: int = 16
    encoder_norm_eps: float = 1e-6
    compact_widths: tuple[int, ...] = ()
    compact_depths: tuple[int, ...] = ()
    decoder_mlp: int = 2048
    semantic_tokens: int = 0
    experts: int = 4
    top_k: int = 1
    expert_rank: int = 64
    expert_layers: tuple[int, ...] = (0, 1)
    gating: str = "learned"
    expert_residual: bool = True
    prompt_tokens: int = 2
    auto_targets: tuple[AutoTarget, ...] = (AutoTarget("foreground"),)
    domains: tuple[str, ...] = ()
    resize: str = "pad"
    pixel_mean: tuple[float, float, float] = PIXEL_MEAN
    pixel_std: tuple[float, float, float] = PIXEL_STD

    def __post_init__(self) -> None:
        """Refuse contradictory values early, with the field's name; and sizes that only harm could want."""
        for name, value in vars(self).items():
            numbers = [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, int)]
            limit = LARGEST.get(name, LARGEST[""])
            if sum(numbers) > limit or (isinstance(value, (tuple, str)) and len(value) > limit):
                raise ValueError(f"{name} is larger than {limit}")
        if self.encoder not in ("sam_vit", "compact"):
            raise ValueError(f"encoder must be 'sam_vit' or 'compact', not {self.encoder!r}")
        if self.gating not in ("learned", "reference"):
            raise ValueError(f"gating must be 'learned' or 'reference', not {self.gating!r}")
        if self.resize not in ("pad", "squash"):
            raise ValueError(f"resize must be 'pad' or 'squash', not {self.resize!r}")
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k must lie between 1 and experts={self.experts}, not {self.top_k}")
        if not self.expert_layers or not set(self.expert_layers) <= {0, 1}:
            raise ValueError(f"expert_layers must name decoder layers 0 and/or 1, not {self.expert_layers}")
        if self.image_size % (32 if self.encoder == "compact" else self.encoder_stride):
            raise ValueError(f"image_size {self.image_size} does not fit the encoder's stride")
        if self.domains and self.encoder != "compact":
            raise ValueError("domains need the compact encoder")
        if len({target.name for target in self.auto_targets}) != len(self.auto_targets):
            raise ValueError("auto_targets must have different names")

    @property
    def embedding_size(self) -> int:
        """Side of the square image embedding, cells."""
        return self.image_size // self.encoder_stride

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution mask logits, pixels."""
        return 4 * self.embedding_size

    @classmethod
    def sam(cls, encoder: str) -> ModelConfig:
        """SAM's geometry ("vit_b", "vit_l" or "vit_h": 1024 px, width 256) with adapters attached.

        Raises:
            ValueError: another encoder.
        """
        if encoder not in SAM_ENCODERS:
            raise ValueError(f"SAM has the encoders {', '.join(SAM_ENCODERS)}, not {encoder!r}")
        width, depth, heads, blocks = SAM_ENCODERS[encoder]
        return cls(name=f"sam_{encoder}", encoder="sam_vit", image_size=1024, embed_dim=256, encoder_width=width,
                   encoder_depth=depth, encoder_heads=heads, global_attention=blocks)

    @classmethod
    def published(cls) -> ModelConfig:
        """The released SegMoTE's layout: 512 px, width 768, 4 experts of rank 64, reference gating, squashed images."""
        return cls(name="segmote_published", encoder="sam_vit", image_size=512, embed_dim=768, encoder_norm_eps=1e-5,
                   semantic_tokens=4, gating="reference", expert_residual=False, resize="squash")

    @classmethod
    def tiny(cls, auto_targets: tuple[AutoTarget, ...] = (AutoTarget("foreground"),)) -> ModelConfig:
        """A compact convolutional encoder for CPU laptops: 256 px, embedding at stride 8, under 8 M parameters."""
        return cls(name="segmote_tiny", encoder="compact", image_size=256, embed_dim=128, encoder_stride=8,
                   compact_widths=(32, 64, 128, 224, 224), compact_depths=(0, 2, 2, 2, 2), decoder_mlp=256,
                   prompt_tokens=8, auto_targets=auto_targets)

    def to_dict(self) -> dict:
        """Return a JSON-ready dict that ``from_dict`` turns back into an equal config."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> ModelConfig:
        """Rebuild a config from ``to_dict``'s output (lists are accepted where tuples stood).

        Raises:
            CheckpointError: a field is unknown, missing or contradictory.
        """
        if not isinstance(values, dict):
            raise CheckpointError("architecture description is not a set of named fields.")
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise CheckpointError(f"architecture description has unknown fields: {', '.join(unknown)}; "
                                  "it was probably written by a newer SegMoTE.")
        try:
            plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                                     for key, value in values.items()}
            targets = tuple(
                AutoTarget(**{**target, "color": tuple(target["color"]), "sources": tuple(target["sources"])})
                for target in values["auto_targets"])
            return cls(**{**plain, "auto_targets": targets})
        except (TypeError, ValueError, KeyError) as error:
            raise CheckpointError(f"architecture description is not usable: {error}.") from error
