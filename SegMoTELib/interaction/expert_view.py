"""What the experts did for one prediction: data for a front end, and a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

HEAT = ((0, 0, 0), (160, 20, 110), (255, 120, 20), (255, 255, 160))  # colours of least to most attention
STRENGTH = 0.65  # of the brightest heat over the image


@dataclass(frozen=True)
class ExpertView:
    """The router's choices for one mask.

    Attributes:
        selected: index of the expert token that gave the mask.
        token_probabilities: (E,) how sure the choice was, sums to 1.
        routing: per expert layer, (T,) the expert every token went to.
        gate_probabilities: per expert layer, (T, E).
        attention: (T, H, W) where every expert token looked, on the image's own pixels.
        domains: what kind of image it looked like: data set code -> probability, the likeliest first; empty where the
            model has no domain experts.
    """

    selected: int
    token_probabilities: np.ndarray
    routing: tuple[np.ndarray, ...]
    gate_probabilities: tuple[np.ndarray, ...]
    attention: np.ndarray
    domains: dict[str, float] = field(default_factory=dict)

    @property
    def looks_like(self) -> tuple[str, float] | None:
        """The likeliest kind of image and its probability, or None without domain experts."""
        return next(iter(self.domains.items()), None)


def attention_png(view: ExpertView, image: np.ndarray, side: int) -> bytes:
    """Return the image with the selected token's attention over it as a PNG, for a panel; needs no plotting library.

    Args:
        image: (H, W, 3) uint8, what the mask was predicted on. side: pixels of the longer side of the picture.
    """
    attention = view.attention[view.selected]
    low, high = attention.min(), attention.max()
    share = (attention - low) / (high - low) if high > low else np.zeros_like(attention)
    stops = np.linspace(0, 1, len(HEAT))
    heat = np.stack([np.interp(share, stops, channel) for channel in zip(*HEAT, strict=True)], axis=-1)
    weight = STRENGTH * share[..., None]
    blended = np.rint((1 - weight) * image + weight * heat).astype(np.uint8)
    scale = side / max(image.shape[:2])
    size = tuple(max(1, round(scale * length)) for length in image.shape[1::-1])
    file = io.BytesIO()
    Image.fromarray(blended).resize(size, Image.Resampling.BILINEAR).save(file, "PNG")
    return file.getvalue()


def draw_expert_view(view: ExpertView, image: np.ndarray, mask: np.ndarray, path: str | Path) -> None:
    """Draw image with mask, the selected token's attention and the router's probabilities into a PNG.

    After a prediction: ``draw_expert_view(predictor.expert_view(), image, masks[0], "experts.png")``.

    Args:
        image: (H, W) or (H, W, 3) uint8. mask: (H, W) bool.
    """
    from matplotlib.figure import Figure

    layers = len(view.gate_probabilities)
    figure = Figure(figsize=(4 * (2 + layers), 4), layout="constrained")
    axes = figure.subplots(1, 2 + layers)
    for axis in axes[:2]:
        axis.imshow(image, cmap="gray")
        axis.set_axis_off()
    if mask.any() and not mask.all():
        axes[0].contour(mask, levels=[0.5], colors="yellow", linewidths=1)
    probability = view.token_probabilities[view.selected]
    axes[0].set_title(f"expert token {view.selected} ({probability:.0%})")
    axes[1].imshow(view.attention[view.selected], cmap="inferno", alpha=0.6)
    axes[1].set_title("its attention")
    if view.looks_like:
        figure.suptitle("looks like {} ({:.0%})".format(*view.looks_like))
    for index, (axis, gates) in enumerate(zip(axes[2:], view.gate_probabilities, strict=True)):
        axis.imshow(gates, vmin=0, vmax=1, cmap="viridis")
        for (row, column), value in np.ndenumerate(gates):
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
        axis.set(title=f"router, layer {index}", xlabel="expert", ylabel="expert token",
                 xticks=range(gates.shape[1]), yticks=range(gates.shape[0]))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, format="png")
