"""The objective: exactly the terms that the config asks for, their weighted sum, cross entropies by hand."""

import pytest
import torch

from lamb.model.losses import cross_entropy, loss_terms

CAPTIONS = ["A dog barks.", "Rain falls, then a siren wails.", "Church bells ring."]
CS = {"cs_global", "cs_token", "infonce"}


def output(model):
    torch.manual_seed(2)
    waveform = torch.randn(3, 16000)
    return model(waveform, torch.ones_like(waveform, dtype=torch.bool), *model.llm.tokenize(CAPTIONS))


@pytest.mark.parametrize(
    ("sections", "names"),
    [
        ({}, CS | {"guided", "plain"}),
        ({"loss": {"alignment": 0.0}}, {"guided", "plain"}),
        ({"loss": {"guided": 0.0}}, CS | {"plain"}),
        ({"loss": {"plain": 0.0}}, CS | {"guided"}),
        ({"aligner": {"enabled": False}}, {"guided", "plain"}),
        ({"aligner": {"global_weight": 0.0, "token_weight": 0.0}}, {"infonce", "guided", "plain"}),
        ({"guide": {"enabled": False}}, CS | {"plain"}),
        ({"guide": {"enabled": False}, "aligner": {"enabled": False}}, {"plain"}),
    ],
)
def test_the_terms_are_those_of_the_config(make_model, sections, names):
    model = make_model(**sections)
    terms = loss_terms(model, output(model))
    assert terms.keys() == names | {"loss"}
    assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values())


def test_the_loss_is_the_weighted_sum(make_model):
    model = make_model(
        loss={"alignment": 0.5, "guided": 2.0, "plain": 0.25},
        aligner={"global_weight": 3.0, "token_weight": 0.7, "infonce_weight": 0.1},
    )
    terms = loss_terms(model, output(model))
    weights = {"cs_global": 1.5, "cs_token": 0.35, "infonce": 0.05, "guided": 2.0, "plain": 0.25}
    torch.testing.assert_close(terms["loss"], sum(weight * terms[name] for name, weight in weights.items()))


def test_cross_entropies_by_hand(make_model):
    model = make_model()
    out = output(model)
    terms = {name: term.item() for name, term in loss_terms(model, out).items()}
    plain, guided, count = 0.0, 0.0, 0
    for row, (logits, labels) in enumerate(zip(out.logits.detach(), out.labels, strict=True)):
        for x, label in zip(logits, labels, strict=True):
            if label != -100:
                plain -= float(x.log_softmax(0)[label])
                guided -= float((x + out.bias[row, 0].detach()).log_softmax(0)[label])
                count += 1
    assert count == sum(len(model.llm.tokenizer(c, add_special_tokens=False).input_ids) + 1 for c in CAPTIONS)
    assert terms["plain"] == pytest.approx(plain / count, rel=1e-5)
    assert terms["guided"] == pytest.approx(guided / count, rel=1e-5)
    assert abs(plain - guided) / count > 1e-3


def test_padding_does_not_matter(make_model):
    out = output(make_model())
    changed = out.logits.masked_fill((out.labels == -100)[..., None], 1e4)
    assert torch.equal(cross_entropy(changed, out.labels), cross_entropy(out.logits, out.labels))


def test_float32_under_autocast():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 50, generator=generator).bfloat16()
    labels = torch.tensor([[1, 2, -100], [3, 4, 5]])
    bias = 1e-3 * torch.randn(2, 1, 50, generator=generator)  # lost when added in bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        found = cross_entropy(logits, labels, bias)
        plain = cross_entropy(logits, labels)
    expected = -(logits.double() + bias).log_softmax(-1)
    expected = torch.stack([expected[b, k, labels[b, k]] for b, k in (labels != -100).nonzero()]).mean()
    assert found.dtype == plain.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("name", ["cs_global", "cs_token", "infonce", "guided", "plain"])
def test_every_term_teaches_the_adapter(make_model, name):
    model = make_model()
    loss_terms(model, output(model))[name].backward()
    assert model.adapter.out.weight.grad.abs().sum() > 0
