"""MoTE: a router that sends each expert token to its experts, the experts, and the load-balance loss.

SegMoTE (arXiv 2602.19213), section "MoTE"; noisy top-k gating and the smooth load estimate follow Shazeer et al. 2017
(arXiv 1701.06538, appendix A); the softmax over all experts before the top k follows Switch Transformer and GShard, so
that the gate depends on the scores, and the router learns, also at k = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOISE_FLOOR = 1e-2  # smallest standard deviation of the routing noise (released SegMoTE)
# Fresh routers that can learn start decided: what tells images apart is a part of every token only, and with scores of
# unit size it drowns in the noise, and the balance loss evens the probabilities out before the experts differ.
LEARNED_SCORES = 2.0


@dataclass
class Routing:
    """Where one layer's router sent its tokens.

    Attributes:
        indices: (N, T) the first-choice expert of every token, int64.
        gates: (N, T, E) weight of every expert, zero where not kept.
        probabilities: (N, T, E) softmax of the router's scores.
        confidence: (N, T) score of the first choice; the token with the highest gives the mask.
        balance_loss: scalar, zero when importance and load are even.
    """

    indices: Tensor
    gates: Tensor
    probabilities: Tensor
    confidence: Tensor
    balance_loss: Tensor


class TokenExperts(nn.Module):
    """E experts of low rank for token states (N, T, D), with their router; no loop over batch, token or expert.

    Args:
        dim: token width D. experts: E. rank: inner width. top_k: experts kept per token.
        gating: "learned" or "reference".
        residual: add the expert output to the token and normalise, instead of replacing the token.
    """

    def __init__(self, dim: int, experts: int, rank: int, top_k: int, gating: str, residual: bool) -> None:
        super().__init__()
        self.top_k, self.gating, self.residual = top_k, gating, residual
        self.gate = nn.Parameter(torch.zeros(dim, experts))
        self.noise = nn.Parameter(torch.zeros(dim, experts))
        self.down_weight = nn.Parameter(torch.empty(experts, rank, dim))
        self.down_bias = nn.Parameter(torch.zeros(experts, rank))
        self.mix1 = nn.Linear(rank, rank)
        self.mix2 = nn.Linear(rank, rank)
        self.up = nn.Linear(rank, dim)
        self.norm = nn.LayerNorm(dim) if residual else nn.Identity()
        nn.init.trunc_normal_(self.down_weight, std=dim ** -0.5)
        nn.init.trunc_normal_(self.gate, std=(LEARNED_SCORES if gating == "learned" else 1.0) * dim ** -0.5)

    def forward(self, tokens: Tensor, shared: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Route (N, T, D) tokens through their experts; returns the new states, same shape, and the routing.

        Args:
            shared: with ``residual``, (N, T, D) what an expert that all tokens share adds: the frozen base's token MLP.
        """
        routing = self.route(tokens)
        hidden = torch.einsum("ntd,erd->nter", tokens, self.down_weight) + self.down_bias
        if self.residual:
            hidden = F.gelu(hidden)
        combined = torch.einsum("nte,nter->ntr", routing.gates, hidden)
        out = self.up(self.mix2(self.mix1(combined)))
        if not self.residual:
            return out, routing
        return self.norm(tokens + out if shared is None else tokens + out + shared), routing

    def route(self, tokens: Tensor) -> Routing:
        """Score the experts for every token; noise is drawn in training mode only."""
        clean = tokens @ self.gate
        scores = clean
        deviation = None
        if self.training:
            deviation = F.softplus(tokens @ self.noise) + NOISE_FLOOR
            scores = clean + torch.randn_like(clean) * deviation
        probabilities = scores.softmax(dim=-1)
        kept_scores, kept = scores.topk(self.top_k, dim=-1)
        if self.gating == "learned":
            kept_gates = probabilities.gather(-1, kept)
        else:
            kept_gates = kept_scores.softmax(dim=-1)  # the constant 1 at k = 1: no gradient reaches the router
        gates = torch.zeros_like(scores).scatter(-1, kept, kept_gates.to(scores.dtype))
        if self.gating == "learned":
            importance = gates.sum(dim=(0, 1))
            load = self._smooth_load(clean, scores, deviation).sum(dim=(0, 1))
            # The token that gives the mask is a choice of the same router: keep all tokens in use, too.
            token_importance = scores.amax(dim=-1).softmax(dim=-1).sum(dim=0)
            balance = cv_squared(importance) + cv_squared(load) + cv_squared(token_importance)
        else:
            # The released code sums over images only (importance stays per token) and takes the sample variance.
            balance = (_released_cv_squared(gates.sum(dim=0))
                       + _released_cv_squared((gates > 0).sum(dim=(0, 1)).to(scores.dtype)))
        return Routing(kept[..., 0], gates, probabilities, kept_scores[..., 0], balance)

    def _smooth_load(self, clean: Tensor, scores: Tensor, deviation: Tensor | None) -> Tensor:
        """P(expert stays among the top k if its noise is drawn again), (N, T, E): Shazeer et al. 2017, eq. 8-9."""
        experts = scores.shape[-1]
        if self.top_k == experts:
            return torch.ones_like(scores)
        if deviation is None:  # without noise the load is the count
            return torch.zeros_like(scores).scatter(-1, scores.topk(self.top_k, dim=-1).indices, 1.0)
        top = scores.topk(self.top_k + 1, dim=-1).values
        inside = scores > top[..., -1:]
        threshold = torch.where(inside, top[..., -1:], top[..., -2:-1])
        return torch.special.ndtr((clean - threshold) / deviation)


def cv_squared(values: Tensor) -> Tensor:
    """Squared coefficient of variation, (std / mean)^2, of a vector of non-negative values; a float32 scalar.

    Shazeer et al. 2017, equation 7.
    """
    values = values.float()
    return values.var(unbiased=False) / (values.mean() ** 2 + 1e-10)


def _released_cv_squared(values: Tensor) -> Tensor:
    values = values.float()
    return values.var() / (values.mean() ** 2 + 1e-10)
