"""Adapters: the formula of the paper, padding, permutation, the two streams, gradients, errors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lamb.config import AdapterConfig
from lamb.model.adapter import ADAPTERS, QueryAttention

DIM, DIM_LLM, HEAD_DIM = 16, 24, 8


def make(kind: str = "two_stream", dim: int = DIM, **changes) -> nn.Module:
    options = {"semantic_queries": 3, "temporal_queries": 4, "fusion_queries": 5, "head_dim": HEAD_DIM}
    return ADAPTERS[kind](AdapterConfig(**options | changes), dim, DIM_LLM)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "two_stream": make,
    "semantic": lambda: make(temporal=False),
    "temporal": lambda: make(semantic=False),
    "linear": lambda: make("linear"),
    "qformer": lambda: make("qformer"),
}


@pytest.fixture(params=KINDS)
def adapter(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return KINDS[request.param]()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Clips of 9, 1, 4 and 12 tokens; the padding holds large numbers, which must not matter."""
    torch.manual_seed(1)
    mask = torch.arange(12) < torch.tensor([9, 1, 4, 12])[:, None]
    h_a = torch.randn(4, 12, DIM)
    return torch.where(mask[..., None], h_a, 100 * h_a), mask


def test_query_attention_is_the_formula():
    torch.manual_seed(0)
    block = QueryAttention(AdapterConfig(head_dim=HEAD_DIM), DIM, 3)
    h = torch.randn(7, DIM)
    heads = []
    for rows in torch.arange(DIM).split(HEAD_DIM):
        w_q, w_k, w_v = (linear.weight[rows].T for linear in (block.query, block.key, block.value))
        attention = ((block.queries @ w_q) @ (h @ w_k).T / HEAD_DIM**0.5).softmax(-1)
        heads.append(attention @ (h @ w_v))
    expected = block.norm(torch.cat(heads, dim=-1) + block.queries)
    torch.testing.assert_close(block(h[None])[0], expected)


def test_alone_and_in_a_padded_batch(adapter, batch):
    h_a, mask = batch
    z_a, z_mask = adapter(h_a, mask)
    assert z_a.shape == (*z_mask.shape, DIM_LLM)
    assert z_mask.dtype == torch.bool
    for i, length in enumerate(mask.sum(1)):
        alone, alone_mask = adapter(h_a[i : i + 1, :length], mask[i : i + 1, :length])
        assert alone_mask.all()
        torch.testing.assert_close(z_a[i][z_mask[i]], alone[0], atol=1e-5, rtol=0)


def test_permuting_the_batch_permutes_the_result(adapter, batch):
    h_a, mask = batch
    order = torch.tensor([2, 0, 3, 1])
    z_a, _ = adapter(h_a, mask)
    permuted, _ = adapter(h_a[order], mask[order])
    torch.testing.assert_close(permuted, z_a[order], atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter(adapter, batch):
    h_a, mask = batch
    h_a.requires_grad_()
    z_a, z_mask = adapter(h_a, mask)
    z_a[z_mask].square().sum().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert not h_a.grad[~mask].any()
    assert h_a.grad[mask].any(-1).all()


def test_two_stream_gives_as_many_tokens_as_it_has_fusion_queries(batch):
    z_a, z_mask = make()(*batch)
    assert z_a.shape == (4, 5, DIM_LLM)
    assert z_mask.all()


def test_only_the_temporal_stream_hears_the_order(batch):
    torch.manual_seed(0)
    h_a, mask = batch
    backwards = h_a.clone()
    for i, length in enumerate(mask.sum(1)):
        backwards[i, :length] = h_a[i, :length].flip(0)
    semantic, temporal = make(temporal=False), make(semantic=False)
    torch.testing.assert_close(semantic(backwards, mask), semantic(h_a, mask), atol=1e-5, rtol=0)
    change = (temporal(backwards, mask)[0] - temporal(h_a, mask)[0]).abs().amax((1, 2))
    assert change[1] == 0  # one token has no order
    assert (change[[0, 2, 3]] > 1e-3).all()


@pytest.mark.parametrize("off", ["semantic", "temporal"])
def test_a_stream_that_is_off_has_no_parameters(off):
    assert not any(name.startswith(off) for name, _ in make(**{off: False}).named_parameters())


def test_a_clip_without_tokens_is_an_error(adapter, batch):
    h_a, mask = batch
    mask[1] = False
    with pytest.raises(ValueError, match="drop empty clips"):
        adapter(h_a, mask)


def test_padding_before_a_token_is_caught(adapter, batch):
    h_a, mask = batch
    mask[0, 0] = False
    with pytest.raises(AssertionError, match="padding must be at the end"):
        adapter(h_a, mask)


@pytest.mark.parametrize(
    ("build", "remedy"),
    [
        (lambda: make(semantic=False, temporal=False), "switch semantic or temporal on"),
        (lambda: make(head_dim=7), "choose a head_dim that divides it"),
        (lambda: make("qformer", head_dim=7), "choose a head_dim that divides it"),
        (lambda: make(kernels=(3, 4)), "odd sizes"),
        (lambda: make(kernels=()), "one or more"),
        (lambda: make(dim=15, head_dim=5), "even encoder width"),
    ],
)
def test_what_cannot_be_built_says_why(build, remedy):
    with pytest.raises(ValueError, match=remedy):
        build()


def test_queries_start_as_far_apart_as_asked():
    torch.manual_seed(0)
    near, far = (make(dim=128, head_dim=64, query_std=std).fusion.queries.std() for std in (0.02, 0.5))
    qformer = make("qformer", dim=128, head_dim=64, query_std=0.5).queries.std()
    assert float(qformer.detach()) == pytest.approx(0.5, rel=0.1)
    assert float(near.detach()) == pytest.approx(0.02, rel=0.1)
    assert float(far.detach()) == pytest.approx(0.5, rel=0.1)
