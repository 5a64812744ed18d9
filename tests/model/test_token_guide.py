"""Token Guide: scores against brute force, memory, precision, the bias and its initial strength."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lamb.config import GuideConfig
from lamb.model import token_guide
from lamb.model.token_guide import TokenGuide, guide_scores, initial_beta

B, N, V, D = 3, 5, 50, 8
ALL = [{"distance": d, "reduce": r} for d in ("l2", "l1", "cosine") for r in ("mean", "min")]
every = pytest.mark.parametrize("kind", ALL, ids=lambda kind: "-".join(kind.values()))


def brute_force(z_a: Tensor, mask: Tensor, table: Tensor, distance: str, reduce: str) -> Tensor:
    difference = z_a[:, :, None] - table  # (B, N, V, D)
    scores = {
        "l2": lambda: -difference.square().sum(-1),
        "l1": lambda: -difference.abs().sum(-1),
        "cosine": lambda: torch.cosine_similarity(z_a[:, :, None], table, dim=-1),
    }[distance]()
    clips = [score[valid] for score, valid in zip(scores, mask, strict=True)]  # (tokens, V) each
    return torch.stack([s.mean(0) if reduce == "mean" else s.amax(0) for s in clips])


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """z_a with large numbers in its padding, its mask, and a table with a row of zeros (a padding entry)."""
    generator = torch.Generator().manual_seed(0)
    z_a, table = torch.randn(B, N, D, generator=generator), torch.randn(V, D, generator=generator)
    mask = torch.arange(N) < torch.tensor([5, 1, 3])[:, None]
    table[0] = 0
    return torch.where(mask[..., None], z_a, 100 * z_a), mask, table


@pytest.fixture(params=[None, 64], ids=["whole", "chunked"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(token_guide, "_CHUNK", request.param)


@every
def test_scores_equal_brute_force(kind, inputs, chunk):
    torch.testing.assert_close(guide_scores(*inputs, **kind), brute_force(*inputs, **kind), atol=1e-4, rtol=1e-5)


@every
def test_gradients_equal_brute_force(kind, inputs, chunk):
    z_a, mask, table = (t.double().requires_grad_() if t.is_floating_point() else t for t in inputs)
    weight = torch.randn(B, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight[:, 0] = 0  # the direction of a row of zeros has no gradient to compare
    found, expected = (
        torch.autograd.grad((weight * scores(z_a, mask, table, **kind)).sum(), (z_a, table))
        for scores in (guide_scores, brute_force)
    )
    torch.testing.assert_close(found, expected)
    assert not found[0][~mask].any()


@every
def test_finite_on_zero_vectors(kind):
    z_a, table = torch.zeros(2, 3, D, requires_grad=True), torch.zeros(V, D)
    scores = guide_scores(z_a, torch.ones(2, 3, dtype=torch.bool), table, **kind)
    assert scores.isfinite().all()
    assert torch.autograd.grad(scores.sum(), z_a)[0].isfinite().all()


@every
def test_float32_whatever_comes_in(kind, inputs):
    z_a, mask, table = inputs
    z_a, table = z_a.bfloat16(), table.bfloat16()
    expected = guide_scores(z_a.float(), mask, table.float(), **kind)
    with torch.autocast("cpu", torch.bfloat16):
        scores = guide_scores(z_a, mask, table, **kind)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that anything returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        tensors = result if isinstance(result, (tuple, list)) else [result]
        self.largest = max([self.largest, *(t.numel() for t in tensors if isinstance(t, Tensor))])
        return result


@every
def test_no_copy_of_the_table_and_no_difference_of_all_pairs(kind, monkeypatch):
    monkeypatch.setattr(token_guide, "_CHUNK", 1024)
    z_a, table = torch.randn(4, 4, 64, requires_grad=True), torch.randn(1000, 64, dtype=torch.bfloat16)
    with LargestTensor() as seen:
        guide_scores(z_a, torch.ones(4, 4, dtype=torch.bool), table, **kind).sum().backward()
    assert seen.largest <= 4 * 1000  # (B, V), the result itself


@every
def test_closer_means_higher(kind):
    table = torch.eye(D)
    z_a = table[3].expand(1, 2, D) * 0.9
    assert guide_scores(z_a, torch.ones(1, 2, dtype=torch.bool), table, **kind).argmax() == 3


# Bias and beta


@every
def test_the_softmax_does_not_see_the_centring(kind, inputs):
    guide = TokenGuide(GuideConfig(**kind, beta=0.3))
    bias = guide(*inputs)
    assert bias.shape == (B, 1, V)
    bias = bias[:, 0]
    assert bias.dtype == torch.float32
    torch.testing.assert_close(bias.mean(-1), torch.zeros(B), atol=1e-4, rtol=0)
    logits = torch.randn(B, V, generator=torch.Generator().manual_seed(1))
    expected = (logits + 0.3 * brute_force(*inputs, **kind)).log_softmax(-1)
    torch.testing.assert_close((logits + bias).log_softmax(-1), expected, atol=1e-4, rtol=1e-5)


def test_gradients_reach_z_a_beta_and_a_table_that_is_trained(inputs):
    z_a, mask, table = inputs
    guide = TokenGuide(GuideConfig(beta=0.3))
    guide(z_a.requires_grad_(), mask, table.requires_grad_())[..., 1:4].sum().backward()
    assert guide.beta.shape == ()
    assert guide.beta.grad.any()
    assert z_a.grad[mask].any(-1).all()
    assert table.grad.any(-1)[1:4].all()


@every
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_initial_beta_gives_unit_deviation(kind, scale):
    generator = torch.Generator().manual_seed(0)
    table = scale * torch.randn(600, 32, generator=generator)
    z_a = scale * torch.randn(20, 1, 32, generator=generator)
    beta = initial_beta(table, **kind)
    assert beta == initial_beta(table, **kind)
    bias = TokenGuide(GuideConfig(**kind, beta=beta))(z_a, torch.ones(20, 1, dtype=torch.bool), table)
    assert 0.8 < bias.std(-1).mean().item() < 1.25


@every
def test_initial_beta_of_a_table_of_equal_rows(kind):
    assert initial_beta(torch.zeros(10, 4), **kind) == 1.0
