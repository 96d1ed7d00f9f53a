"""MoTE: what the router learns, when it is noisy, and how evenly it works."""

from __future__ import annotations

import pytest
import torch

from SegMoTELib.network.experts import TokenExperts, cv_squared


def experts(gating: str = "learned", top_k: int = 1, residual: bool = True) -> TokenExperts:
    torch.manual_seed(0)
    layer = TokenExperts(24, 4, rank=8, top_k=top_k, gating=gating, residual=residual)
    with torch.no_grad():
        layer.noise.normal_(std=0.1)
        for bias in (layer.down_bias, layer.mix1.bias, layer.up.bias):
            bias.normal_(std=0.1)
    return layer


def tokens(n: int = 6, t: int = 5) -> torch.Tensor:
    return torch.randn(n, t, 24, generator=torch.Generator().manual_seed(1))


def mask_gradient(layer: TokenExperts, training: bool = True) -> torch.Tensor:
    """Gradient of the router's weights from the output alone, without the balance loss."""
    layer.train(training)
    out, _ = layer(tokens())
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return layer.gate.grad


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_learned_gating_brings_gradients_to_the_router(top_k, training):
    assert mask_gradient(experts("learned", top_k), training).abs().max() > 1e-3


def test_reference_gating_brings_no_gradient_to_the_router_at_k_1():
    layer = experts("reference", residual=False).train()
    out, routing = layer(tokens())
    (out.square().sum() + routing.balance_loss).backward()
    assert layer.gate.grad is None or not layer.gate.grad.any()
    assert layer.noise.grad is None or not layer.noise.grad.any()


def test_reference_gating_brings_gradients_to_the_router_at_k_2():
    assert mask_gradient(experts("reference", top_k=2)).abs().max() > 1e-3


@pytest.mark.parametrize("gating", ["learned", "reference"])
def test_noise_is_drawn_in_training_only(gating):
    layer = experts(gating)
    state = torch.get_rng_state()
    first, second = layer.eval()(tokens())[0], layer(tokens())[0]
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state), "evaluation must not draw random numbers"

    layer.train()
    assert not torch.equal(layer(tokens())[1].confidence, layer(tokens())[1].confidence)


@pytest.mark.parametrize("gating", ["learned", "reference"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_vectorised_experts_equal_a_loop_over_tokens_and_experts(gating, residual, top_k):
    layer = experts(gating, top_k, residual=residual).eval()
    x = tokens()
    out, routing = layer(x)
    expected = torch.empty_like(x)
    for n in range(x.shape[0]):
        for t in range(x.shape[1]):
            token = x[n, t]
            scores = token @ layer.gate
            kept = scores.topk(top_k).indices
            gates = scores.softmax(0)[kept] if gating == "learned" else scores[kept].softmax(0)
            assert routing.indices[n, t] == scores.argmax()
            assert torch.allclose(routing.gates[n, t, kept], gates, atol=1e-6)
            assert (routing.gates[n, t] > 0).sum() == top_k
            hidden = 0
            for gate, e in zip(gates, kept, strict=True):
                one = layer.down_weight[e] @ token + layer.down_bias[e]
                hidden = hidden + gate * (torch.nn.functional.gelu(one) if residual else one)
            change = layer.up(layer.mix2(layer.mix1(hidden)))
            expected[n, t] = layer.norm(token + change) if residual else change
    assert torch.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_smooth_load_is_the_probability_to_stay_chosen(top_k):
    layer = experts(top_k=top_k).train()
    x = tokens(2, 3)
    clean = (x @ layer.gate).detach()
    deviation = 0.5 + torch.rand(clean.shape, generator=torch.Generator().manual_seed(3))
    scores = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(4)) * deviation
    load = layer._smooth_load(clean, scores, deviation)

    draws = 20000
    again = clean + torch.randn(draws, *clean.shape, generator=torch.Generator().manual_seed(5)) * deviation
    for e in range(4):
        others = scores.clone().expand(draws, *scores.shape).clone()
        others[..., e] = again[..., e]
        chosen = (others.topk(top_k, dim=-1).indices == e).any(dim=-1)
        assert (chosen.float().mean(dim=0) - load[..., e]).abs().max() < 0.015


@pytest.mark.parametrize("training", [True, False])
def test_all_experts_are_loaded_when_all_are_kept(training):
    layer = experts(top_k=4).train(training)
    scores = torch.randn(2, 3, 4)
    assert torch.equal(layer._smooth_load(scores, scores, torch.ones_like(scores)), torch.ones_like(scores))


def test_the_balance_loss_is_zero_for_even_and_large_for_lonely_experts():
    assert cv_squared(torch.tensor([5.0, 5.0, 5.0, 5.0])) == 0
    assert float(cv_squared(torch.tensor([1.0, 0.0, 0.0, 0.0]))) == pytest.approx(3)


def test_the_balance_loss_falls_when_it_is_optimised():
    layer = experts().train()
    x = tokens(64, 4) + 1
    with torch.no_grad():
        layer.gate[:, 0] += 0.3
    optimizer = torch.optim.Adam([layer.gate, layer.noise], lr=1e-2)

    def measured() -> float:
        with torch.no_grad():
            return sum(float(layer(x)[1].balance_loss) for _ in range(10)) / 10

    before = measured()
    for _ in range(100):
        optimizer.zero_grad()
        layer(x)[1].balance_loss.backward()
        optimizer.step()
    assert before > 2
    assert measured() < before / 4


@pytest.mark.parametrize(("gating", "wanted"), [("learned", 2.0), ("reference", 1.0)])
def test_fresh_routers_that_can_learn_start_decided(gating, wanted):
    layer = TokenExperts(512, 8, rank=4, top_k=1, gating=gating, residual=True)
    scores = torch.nn.functional.layer_norm(torch.randn(200, 512), (512,)) @ layer.gate
    assert float(scores.std()) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_four_modalities_find_four_experts_without_collapse(seed):
    """Every modality needs another linear map of its tokens; one expert of low rank cannot serve two."""
    torch.manual_seed(seed)
    dim, rank = 16, 4
    centers = 2 * torch.randn(4, dim)
    maps = torch.randn(4, dim, dim) / 4
    layer = TokenExperts(dim, 4, rank=rank, top_k=1, gating="learned", residual=True)
    optimizer = torch.optim.Adam(layer.parameters(), lr=5e-3)

    def sample() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        modality = torch.arange(4).repeat(16)
        x = centers[modality] + 0.3 * torch.randn(64, dim)
        return modality, x[:, None], torch.einsum("nij,nj->ni", maps[modality], x)[:, None]

    for _ in range(600):
        _, x, wanted = sample()
        out, routing = layer.train()(x)
        loss = (out - wanted).square().mean() + 0.05 * routing.balance_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    modality, x, _ = sample()
    chosen = layer.eval()(x)[1].indices[:, 0]
    favourites = [int(chosen[modality == m].mode().values) for m in range(4)]
    purity = [float((chosen[modality == m] == favourites[m]).float().mean()) for m in range(4)]
    assert sorted(favourites) == [0, 1, 2, 3]
    assert min(purity) > 0.9
