"""Residual guide: the bias of a smaller z̄, in closed form; the paper's guide where gamma is 0."""

import pytest
import torch

from lamb.config import GuideConfig, ResidualGuideConfig
from lamb.extensions.residual_guide import ResidualGuide
from lamb.model.losses import loss_terms
from lamb.model.token_guide import TokenGuide

B, N, L, V, D = 2, 3, 4, 7, 5


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embedding matrix (V, D), z_a (B, N, D) and caption embeddings (B, L, D)."""
    torch.manual_seed(0)
    matrix = torch.randn(V, D)
    return matrix, torch.randn(B, N, D), matrix[torch.randint(V, (B, L))]


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_the_generated_tokens_are_subtracted(inputs, strength):
    matrix, z_a, tokens = inputs
    mask = torch.ones(B, N, dtype=torch.bool)
    guide = ResidualGuide(GuideConfig(beta=0.7), ResidualGuideConfig(True, strength)).eval()
    guide.gamma.data.fill_(0.5 / strength)
    bias = guide(z_a, mask, matrix)
    steps = guide.steps(bias, tokens, matrix)
    assert steps.shape == (B, L + 1, V)
    for t in range(L + 1):
        expected = guide(z_a - 0.5 * tokens[:, :t].sum(1, keepdim=True), mask, matrix)
        torch.testing.assert_close(steps[:, t : t + 1], expected, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(guide.steps(bias, tokens[:, :t], matrix, last=True), expected, atol=1e-4, rtol=1e-5)


def test_strength_is_for_evaluation(inputs):
    matrix, _, tokens = inputs
    guides = [ResidualGuide(GuideConfig(), ResidualGuideConfig(True, strength)).train() for strength in (1.0, 9.0)]
    for guide in guides:
        guide.gamma.data.fill_(0.5)
    one, other = (guide.steps(torch.zeros(B, 1, V), tokens, matrix) for guide in guides)
    assert torch.equal(one, other)
    assert not torch.equal(guides[1].eval().steps(torch.zeros(B, 1, V), tokens, matrix), other)


def test_it_begins_as_the_papers_guide(inputs):
    matrix, z_a, tokens = inputs
    mask = torch.ones(B, N, dtype=torch.bool)
    ours, paper = ResidualGuide(GuideConfig(), ResidualGuideConfig(True)), TokenGuide(GuideConfig())
    bias = paper(z_a, mask, matrix)
    assert paper.steps(bias, tokens, matrix) is bias
    assert torch.equal(ours(z_a, mask, matrix), bias)
    assert torch.equal(ours.steps(bias, tokens, matrix), bias.expand(-1, L + 1, -1))


@torch.no_grad()
def test_in_a_model(make_model):
    paper, ours = make_model(), make_model(extensions={"residual_guide": {"enabled": True}})
    ours.load_state_dict(paper.state_dict() | {"guide.gamma": torch.tensor(0.0)})
    batch = (*(torch.randn(2, 8000), torch.ones(2, 8000, dtype=torch.bool)), *paper.llm.tokenize(["A dog.", "Rain."]))
    one, other = paper(*batch), ours(*batch)
    assert one.bias.shape[1] == 1
    assert other.bias.shape[1] == one.logits.shape[1]
    assert float(loss_terms(paper, one)["guided"]) == pytest.approx(float(loss_terms(ours, other)["guided"]))
