"""The whole model: padding, what learns and what does not, its parts on and off, beginnings, errors."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch

from lamb.config import ConfigError
from lamb.extensions import build
from lamb.model.lamb import Output, caption_labels
from lamb.model.losses import loss_terms

CAPTIONS = ["A dog barks.", "Rain falls, then a siren wails.", "Church bells ring."]
CED = {"name": "ced", "source": None, "options": {"dim": 32, "heads": 2, "depth": 2, "target_length": 48}}
ENCODERS = {"efficientat": {}, "ced": CED | {"train": "frozen"}, "ced-lora": CED | {"train": "lora"}}
ADAPTERS: dict[str, dict[str, Any]] = {
    "two_stream": {},
    "semantic": {"temporal": False},
    "temporal": {"semantic": False},
    "linear": {"kind": "linear"},
    "qformer": {"kind": "qformer"},
}


def sounds(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise clips of several levels and their mask; the padding is noise as well, as it must not matter."""
    waveform = torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(0))
    waveform *= torch.logspace(-2, 0, len(lengths))[:, None]
    return waveform, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def run(model, *lengths: int) -> Output:
    """A forward pass of as many of the captions."""
    return model(*sounds(*lengths), *model.llm.tokenize(CAPTIONS[: len(lengths)]))


def trained(model) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


# --- padding


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("encoder", ["efficientat", "ced"])
@torch.no_grad()
def test_alone_and_in_a_padded_batch(make_model, encoder, adapter):
    model = make_model(encoder=ENCODERS[encoder], adapter=ADAPTERS[adapter])
    torch.nn.init.normal_(model.adapter.out.weight, std=0.1)  # larger than at the beginning: 1e-4 then says something
    lengths = (7000, 30000, 16001)  # with CED's chunks of 0.48 s, several chunks
    together = run(model, *lengths)
    ids, ids_mask = model.llm.tokenize(CAPTIONS)
    waveform, _ = sounds(*lengths)
    for k, n in enumerate(lengths):
        words = int(ids_mask[k].sum())
        alone = model(
            waveform[k : k + 1, :n],
            torch.ones(1, n, dtype=torch.bool),
            ids[k : k + 1, :words],
            ids_mask[k : k + 1, :words],
        )
        assert alone.z_a_mask.all()
        torch.testing.assert_close(together.z_a[k][together.z_a_mask[k]], alone.z_a[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.bias[k], alone.bias[0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(together.logits[k, : words + 1], alone.logits[0], atol=1e-4, rtol=1e-4)
        assert together.labels[k, : words + 1].tolist() == alone.labels[0].tolist()


@torch.no_grad()
def test_permuting_the_batch(make_model):
    model = make_model()
    waveform, mask = sounds(7000, 16000, 16001)
    ids, ids_mask = model.llm.tokenize(CAPTIONS)
    order = torch.tensor([2, 0, 1])
    found = model(waveform, mask, ids, ids_mask)
    permuted = model(waveform[order], mask[order], ids[order], ids_mask[order])
    for field in fields(Output):
        torch.testing.assert_close(getattr(permuted, field.name), getattr(found, field.name)[order])


def test_outputs(make_model):
    model = make_model()
    out = run(model, 16000, 9000)
    ids, mask = model.llm.tokenize(CAPTIONS[:2])
    vocabulary, dim = model.llm.embedding_matrix.shape
    assert out.z_a.shape == (2, 4, dim)
    assert out.logits.shape == (2, ids.shape[1] + 1, vocabulary)
    assert out.bias.shape == (2, 1, vocabulary)
    assert torch.equal(out.z_t, model.llm.embedding_matrix[ids])
    assert torch.equal(out.z_t_mask, mask)


def test_labels_by_hand():
    ids = torch.tensor([[5, 6, 7], [8, 2, 2], [2, 2, 2]])
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    expected = [[5, 6, 7, 2], [8, 2, -100, -100], [2, -100, -100, -100]]
    assert caption_labels(ids, mask, eos=2).tolist() == expected


@torch.no_grad()
def test_logits_predict_the_next_token(make_model):
    """Changing token k changes the logits behind it and none before."""
    model = make_model()
    waveform, mask = sounds(16000)
    ids, ids_mask = model.llm.tokenize(CAPTIONS[1:2])
    changed = ids.clone()
    changed[0, 3] = (ids[0, 3] + 1) % len(model.llm.embedding_matrix)
    a, b = (model(waveform, mask, x, ids_mask).logits[0] for x in (ids, changed))
    torch.testing.assert_close(a[:4], b[:4])
    assert (a[4] - b[4]).abs().max() > 1e-4


# --- what learns


@pytest.mark.parametrize("encoder", ["efficientat", "ced"])
def test_a_frozen_encoder_stays_as_it_is(make_model, encoder):
    model = make_model(encoder=ENCODERS[encoder]).train()
    assert model.adapter.training
    assert model.llm.training
    assert not any(module.training for module in model.encoder.modules())
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    loss_terms(model, run(model, 16000, 9000))["loss"].backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.state_dict().items())


def test_a_frozen_language_model_stays_as_it_is(make_model):
    model = make_model(llm={"train": "frozen"}).train()
    assert not model.llm.model.training
    loss_terms(model, run(model, 16000, 9000))["loss"].backward()
    assert all(parameter.grad is None for parameter in model.llm.parameters())
    assert model.adapter.out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("encoder", ENCODERS)
def test_gradients_reach_everything_that_learns(make_model, encoder):
    model = make_model(encoder=ENCODERS[encoder], llm={"train": "lora"}).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "up.weight" in name:  # zero at first, and then A gets none
            torch.nn.init.normal_(parameter, std=0.1)
    loss_terms(model, run(model, 16000, 9000, 7000))["loss"].backward()
    parts = {"adapter", "aligner", "guide", "llm"} | ({"encoder"} if encoder == "ced-lora" else set())
    assert {name.split(".")[0] for name, _ in trained(model)} == parts
    for name, parameter in trained(model):
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
        assert "lora" in name or name.split(".")[0] in ("adapter", "aligner", "guide"), name


def test_an_encoder_that_learns_in_full(make_model):
    model = make_model(encoder={"train": "full"}).train()
    first, norm, *_ = model.encoder.features[0]
    mean = norm.running_mean.clone()
    loss_terms(model, run(model, 16000, 9000))["loss"].backward()
    assert first.weight.grad.abs().sum() > 0
    assert not torch.equal(norm.running_mean, mean)


@torch.no_grad()
def test_merging_lora_changes_nothing(make_model):
    model = make_model(encoder=ENCODERS["ced-lora"], llm={"train": "lora"})
    base = run(model, 16000, 9000).logits
    for _, parameter in trained(model):
        parameter += 0.05 * torch.randn(parameter.shape)
    adapted = run(model, 16000, 9000)
    model.merge_lora()
    merged = run(model, 16000, 9000)
    assert (adapted.logits - base).abs().max() > 1e-2
    torch.testing.assert_close(merged.z_a, adapted.z_a, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(merged.logits, adapted.logits, atol=1e-4, rtol=1e-4)
    assert not [name for name in model.state_dict() if "lora" in name]


# --- parts on and off, beginnings


def test_parts_switched_off(make_model):
    model = make_model(aligner={"enabled": False}, guide={"enabled": False})
    assert model.aligner is None
    assert model.guide is None
    assert run(model, 16000).bias is None
    assert not [name for name in model.state_dict() if name.startswith(("aligner", "guide"))]
    assert make_model(adapter={"semantic": False}).adapter.semantic is None
    assert make_model(adapter={"temporal": False}).adapter.temporal is None


@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0])
@pytest.mark.parametrize("adapter", ["two_stream", "linear", "qformer"])
@torch.no_grad()
def test_beginning_at_the_scale_of_the_table(make_model, adapter, scale):
    model = make_model(adapter=ADAPTERS[adapter] | {"scale": 2.0, "centred": True})
    model.llm.embedding_matrix.normal_(mean=0.5 * scale, std=scale)
    torch.manual_seed(0)
    model.initialise()
    table = model.llm.embedding_matrix
    z_a, mask = model.audio_tokens(*model.encode(*sounds(16000, 16000, 16000)))
    spread = (z_a[mask] - table.mean(0)).square().mean().sqrt()
    assert 0.5 < spread / (2 * table.std()) < 1.5
    words = table[torch.randint(len(table), (64, 1))]
    words = words * model.token_norm() / words.norm(dim=-1).mean()  # z_a when it is aligned
    bias = model.guide(words, torch.ones(64, 1, dtype=torch.bool), table)[:, 0]
    assert 0.4 < (bias - bias.mean(0)).std(-1).mean() < 0.625


@torch.no_grad()
def test_by_default_nothing_of_the_gap_is_closed_before_training(make_model):
    """The adapter starts as PyTorch makes it; only the guide's beta knows the table."""
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.adapter.state_dict().items()}
    model.llm.embedding_matrix.normal_(mean=3.0, std=20.0)
    beta = model.guide.beta.item()
    model.initialise()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.adapter.state_dict().items())
    assert model.guide.beta.item() < beta / 10
    z_a, mask = model.audio_tokens(*model.encode(*sounds(16000, 16000, 16000)))
    measured = z_a[mask].norm(dim=-1).mean().item()
    assert measured == pytest.approx(model.token_norm(), rel=0.3)


def test_a_given_beta_stays(make_model):
    assert make_model(guide={"beta": 0.25}).guide.beta.item() == 0.25


def test_building_is_reproducible(make_model):
    first, second = make_model().state_dict(), make_model().state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# --- errors


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"encoder": {"name": "cedar"}}, r"encoder\.name: 'cedar' is not one of ced, efficientat"),
        ({"encoder": {"source": None, "options": {"breadth": 3}}}, r"encoder\.options: .*breadth.*give"),
        ({"encoder": {"name": "ced", "source": None}}, r"encoder\.options: .*dim.*encoder\.source"),
        ({"encoder": {"options": {"mels": 32}}}, r"encoder\.options: .*give one of the two"),
        ({"encoder": {"source": "nowhere/at/all"}}, r"encoder\.source: .*nowhere/at/all"),
        ({"encoder": {"name": "ced", "source": "nowhere/at/all"}}, r"encoder\.source: .*nowhere/at/all; give a folder"),
        ({"encoder": {"train": "lora"}}, r"encoder\.train: efficientat has no LoRA; choose frozen or full"),
        ({"adapter": {"head_dim": 24}}, r"adapter: .*32 is not a multiple of head_dim 24: choose"),
        ({"adapter": {"semantic": False, "temporal": False}}, r"adapter: both streams .*switch"),
        ({"adapter": {"kernels": [2]}}, r"adapter: kernels .*odd"),
        ({"llm": {"source": None}}, r"llm\.source: give"),
    ],
)
def test_what_cannot_be_built(make_config, sections, message):
    with pytest.raises(ConfigError, match=message):
        build(make_config(**sections))
