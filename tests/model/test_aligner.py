"""Cross-Modal Aligner: closed form and properties of the CS divergence, InfoNCE written out, the named terms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from torch import Tensor

from lamb.config import AlignerConfig
from lamb.model.aligner import CrossModalAligner, cs_divergence, gap, info_nce, pool

sets = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "m": st.integers(1, 6),
        "n": st.integers(1, 6),
        "dim": st.integers(1, 8),
        "scale": st.sampled_from([0.01, 1.0, 37.0, 1000.0]),
    }
)
SIGMAS = [0.5, 1.0, "median"]
kernels = st.fixed_dictionaries({"sigma": st.sampled_from(SIGMAS), "normalise": st.booleans()})


def draw(seed: int, m: int, n: int, dim: int, scale: float) -> tuple[Tensor, Tensor]:
    """Two random sets whose points have norms of about `scale`, a batch of 3."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (scale * torch.randn(3, k, dim, generator=generator) / dim**0.5 for k in (m, n))
    return x, y


def naive(x: Tensor, y: Tensor, sigma: float) -> float:
    """The formula as the paper has it, pair by pair."""

    def mean_kernel(a: Tensor, b: Tensor) -> float:
        pairs = [math.exp(-float((p - q).square().sum()) / (2 * sigma**2)) for p in a for q in b]
        return sum(pairs) / len(pairs)

    return math.log(mean_kernel(x, x)) + math.log(mean_kernel(y, y)) - 2 * math.log(mean_kernel(x, y))


@pytest.mark.parametrize("sigma", [0.7, 1.5])
def test_divergence_of_two_gaussians(sigma):
    """The mean of k over draws of N(m1, S1) and N(m2, S2) tends to (2 pi s^2)^(D/2) N(m1 - m2; 0, S1 + S2 + s^2 I).

    That is the overlap of the two Gaussians smoothed by the kernel density estimate, of covariances S + s^2/2 I.
    """
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([[0.0, 0.0], [1.5, -1.0]])
    factors = torch.tensor([[[1.0, 0.0], [0.5, 0.8]], [[0.6, 0.0], [-0.3, 1.1]]])  # S = A A^T
    x, y = (m + torch.randn(2500, 2, generator=generator) @ a.T for m, a in zip(means, factors, strict=True))
    s1, s2 = (factors @ factors.mT + sigma**2 / 2 * torch.eye(2)).double().numpy()

    def log_overlap(difference, covariance) -> float:
        return multivariate_normal.logpdf(difference, cov=covariance)

    expected = (
        log_overlap([0, 0], s1 + s1)
        + log_overlap([0, 0], s2 + s2)
        - 2 * log_overlap((means[0] - means[1]).double().numpy(), s1 + s2)
    )
    estimate = cs_divergence(x, y, sigma=sigma, normalise=False)
    assert estimate.item() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_equals_the_naive_formula(sigma):
    x, y = draw(seed=0, m=4, n=5, dim=3, scale=1.0)
    expected = [naive(a, b, sigma) for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(cs_divergence(x, y, sigma=sigma, normalise=False), torch.tensor(expected))


def test_normalise_works_on_unit_vectors():
    x, y = draw(seed=0, m=4, n=5, dim=3, scale=1.0)
    inside = cs_divergence(5 * x, 0.2 * y, sigma=1.0, normalise=True)
    unit = (z / z.norm(dim=-1, keepdim=True) for z in (x, y))
    torch.testing.assert_close(inside, cs_divergence(*unit, sigma=1.0, normalise=False))


def test_median_counts_every_pair_of_points_once():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]])  # distances 1, 3, 2
    median = cs_divergence(x, y, sigma="median", normalise=False)
    torch.testing.assert_close(median, cs_divergence(x, y, sigma=2.0, normalise=False))


@given(sets, kernels)
@settings(max_examples=40, deadline=None)
def test_never_negative_and_symmetric(points, kernel):
    x, y = draw(**points)
    divergence = cs_divergence(x, y, **kernel)
    assert (divergence >= -1e-6).all()
    torch.testing.assert_close(cs_divergence(y, x, **kernel), divergence)


@given(sets, kernels)
@settings(max_examples=40, deadline=None)
def test_zero_for_equal_sets(points, kernel):
    x, _ = draw(**points)
    assert cs_divergence(x, x.flip(1), **kernel).abs().max() <= 1e-6


@given(sets, kernels)
@settings(max_examples=40, deadline=None)
def test_masks_are_removal(points, kernel):
    x, y = (z.requires_grad_() for z in draw(**points))
    clean = cs_divergence(x, y, **kernel)
    expected = torch.autograd.grad(clean.sum(), (x, y))
    holes = torch.full((3, 2, x.shape[-1]), torch.nan)
    padded_x, padded_y = torch.cat([holes, x], dim=1), torch.cat([y, holes], dim=1)
    x_mask, y_mask = (~padded.isnan().any(-1) for padded in (padded_x, padded_y))
    masked = cs_divergence(padded_x, padded_y, x_mask, y_mask, **kernel)
    torch.testing.assert_close(masked, clean)
    torch.testing.assert_close(torch.autograd.grad(masked.sum(), (x, y)), expected)


@given(sets, kernels)
@settings(max_examples=40, deadline=None)
def test_finite_in_float32_and_under_autocast(points, kernel):
    x, y = (z.requires_grad_() for z in draw(**points | {"scale": 1000.0}))
    plain = cs_divergence(x, y, **kernel)
    with torch.autocast("cpu", torch.bfloat16):
        divergence = cs_divergence(x, y, **kernel)
    assert divergence.dtype == torch.float32
    torch.testing.assert_close(divergence, plain, atol=0, rtol=0)
    assert divergence.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(divergence.sum(), (x, y)))


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("normalise", [True, False])
def test_finite_gradient_when_all_points_are_one(sigma, normalise):
    x = torch.full((2, 3, 4), 500.0, requires_grad=True)
    divergence = cs_divergence(x, x.detach(), sigma=sigma, normalise=normalise)
    divergence.sum().backward()
    torch.testing.assert_close(divergence.detach(), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.grad, torch.zeros_like(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("normalise", [True, False])
def test_gradient_in_double(normalise):
    x, y = (z.double().requires_grad_() for z in draw(seed=0, m=3, n=4, dim=3, scale=2.0))
    x_mask = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    divergence = lambda x, y: cs_divergence(x, y, x_mask, sigma=1.0, normalise=normalise)
    assert divergence(x, y).dtype == torch.float64
    assert torch.autograd.gradcheck(divergence, (x, y))


def test_the_median_has_no_gradient():
    x, y = (z.double().requires_grad_() for z in draw(seed=0, m=1, n=1, dim=3, scale=1.0))
    # One pair: s is its distance, so the value is constant; the gradient is that of a fixed s.
    sigma = (x - y).norm(dim=-1)[0].item()
    gradient = torch.autograd.grad(cs_divergence(x, y, sigma="median", normalise=False)[0], x)
    fixed = torch.autograd.grad(cs_divergence(x, y, sigma=sigma, normalise=False)[0], x)
    torch.testing.assert_close(gradient, fixed)


def test_an_empty_set_is_an_error():
    x, y = draw(seed=0, m=3, n=3, dim=2, scale=1.0)
    mask = torch.tensor([[True] * 3, [False] * 3, [True] * 3])
    for masks in ((mask, None), (None, mask)):
        with pytest.raises(ValueError, match="no valid token"):
            cs_divergence(x, y, *masks, sigma=1.0, normalise=True)
    with pytest.raises(ValueError, match="no valid token"):
        pool(x, mask)


def test_info_nce_is_a_softmax_both_ways():
    generator = torch.Generator().manual_seed(0)
    a, t = torch.randn(5, 4, generator=generator), torch.randn(5, 4, generator=generator)
    scale = torch.tensor(3.0)
    cosine = [[float(p @ q / (p.norm() * q.norm())) for q in t] for p in a]
    weight = [[math.exp(3 * c) for c in row] for row in cosine]
    to_text = [-math.log(weight[i][i] / sum(weight[i])) for i in range(5)]
    to_audio = [-math.log(weight[i][i] / sum(row[i] for row in weight)) for i in range(5)]
    assert info_nce(a, t, scale).item() == pytest.approx(sum(to_text + to_audio) / 10, rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(info_nce(a, t, scale), info_nce(7 * a, t / 9, scale))


# The aligner


def aligner(**changes) -> CrossModalAligner:
    options = {"global_weight": 1.0, "token_weight": 0.5, "infonce_weight": 2.0, "sigma": 1.0}
    return CrossModalAligner(AlignerConfig(**options | changes))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z_a (4, 6, 8) and z_t (4, 5, 8), captions of 5, 2, 1 and 3 tokens."""
    generator = torch.Generator().manual_seed(0)
    z_a, z_t = torch.randn(4, 6, 8, generator=generator), torch.randn(4, 5, 8, generator=generator)
    z_t_mask = torch.arange(5) < torch.tensor([5, 2, 1, 3])[:, None]
    return z_a.requires_grad_(), torch.ones(4, 6, dtype=torch.bool), z_t.requires_grad_(), z_t_mask


def test_terms_are_what_their_names_say(batch):
    z_a, _, z_t, z_t_mask = batch
    terms = aligner()(*batch)
    captions = [z[m] for z, m in zip(z_t, z_t_mask, strict=True)]
    a, t = z_a.mean(1), torch.stack([caption.mean(0) for caption in captions])
    kernel = {"sigma": 1.0, "normalise": True}
    tokens = [cs_divergence(z, caption, **kernel) for z, caption in zip(z_a, captions, strict=True)]
    torch.testing.assert_close(terms["cs_global"], cs_divergence(a, t, **kernel))
    torch.testing.assert_close(terms["cs_token"], torch.stack(tokens).mean())
    torch.testing.assert_close(terms["infonce"], info_nce(a, t, torch.tensor(1 / 0.07)))


def test_terms_and_weights_have_the_same_names(batch):
    full = aligner()
    assert full.weights == {"cs_global": 1.0, "cs_token": 0.5, "infonce": 2.0}
    assert list(full(*batch)) == list(full.weights)
    part = aligner(global_weight=0.0, infonce_weight=0.0)
    assert part.weights == {"cs_token": 0.5}
    assert list(part(*batch)) == ["cs_token"]
    assert not list(part.parameters())


@pytest.mark.parametrize("term", ["cs_global", "cs_token", "infonce"])
def test_the_audio_moves_and_the_text_does_not(batch, term):
    z_a, _, z_t, _ = batch
    aligner()(*batch)[term].backward()
    assert z_a.grad.any(-1).all()
    assert z_t.grad is None


def test_steps_along_the_gradient_close_the_gap(batch):
    module = aligner()
    before = gap(*batch)
    optimiser = torch.optim.Adam([batch[0]], lr=0.05)
    for _ in range(50):
        optimiser.zero_grad()
        sum(module(*batch).values()).backward()
        optimiser.step()
    after = gap(*batch)
    assert after["l2"] < before["l2"]
    assert after["cosine"] > before["cosine"] + 0.3


def test_the_scale_stays_below_its_limit_and_can_come_back(batch):
    module = aligner(max_scale=20.0)
    with torch.no_grad():
        module.log_scale.fill_(10.0)
    module(*batch)["infonce"].backward()
    assert module.log_scale.exp().item() == pytest.approx(20.0)
    assert module.log_scale.grad > 0  # random pairs: a smaller scale is better


def test_gap_is_between_the_pooled_vectors():
    z_a = torch.tensor([[[2.0, 0.0], [4.0, 0.0], [99.0, 99.0]], [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    z_t = torch.tensor([[[0.0, 4.0]], [[0.0, 3.0]]])
    masks = torch.tensor([[True, True, False], [True] * 3]), torch.tensor([[True], [True]])
    measured = gap(z_a, masks[0], z_t, masks[1])
    assert measured["l2"].item() == pytest.approx((5 + 2) / 2)
    assert measured["cosine"].item() == pytest.approx((0 + 1) / 2)


@pytest.mark.parametrize(
    ("config", "shrinks"), [(AlignerConfig(normalise=False, sigma="median"), True), (AlignerConfig(), False)]
)
def test_raw_vectors_with_the_median_bring_the_length_of_the_audio_to_that_of_the_text(config, shrinks):
    """Audio tokens ten times as long as the text; unit vectors leave their length as it is."""
    generator = torch.Generator().manual_seed(0)
    t = torch.randn(16, 5, 24, generator=generator)
    a = (10 * torch.randn(16, 4, 24, generator=generator)).requires_grad_()
    masks = torch.ones(16, 4, dtype=torch.bool), torch.ones(16, 5, dtype=torch.bool)
    aligner = CrossModalAligner(config)
    before = gap(a, masks[0], t, masks[1])
    optimiser = torch.optim.Adam([a], lr=0.3)
    for _ in range(200):
        optimiser.zero_grad()
        sum(aligner(a, masks[0], t, masks[1]).values()).backward()
        optimiser.step()
    after = gap(a, masks[0], t, masks[1])
    assert after["cosine"] > before["cosine"] + 0.3
    assert (after["l2"] < 0.5 * before["l2"]) == shrinks, (before, after)
