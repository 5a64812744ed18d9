"""Sounds of captions, their confidences and the choice among candidates, by hand and on a tiny model."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from lamb.config import DecodeConfig, WeighConfig
from lamb.data.vocabulary import PARENTS, PHRASES
from lamb.inference.captioner import Captioner
from lamb.inference.captions import Sound
from lamb.inference.confidence import logistic
from lamb.inference.generation import Hypothesis, clean
from lamb.inference.search import Found
from lamb.inference.torch_runtime import TorchRuntime
from lamb.inference.weighing import Weigher, below, caption_confidence, logit, shorter, sigmoid, sounds_of, weigh

LABELS = ["dog", "rain", "siren", "man_speaking"]


def test_sounds_of_a_caption():
    named, twice = sounds_of("A dog barks, then rain falls.")
    assert [sorted(sound.labels) for sound in named] == [["dog"], ["rain"]]
    assert ["A dog barks, then rain falls."[s.start : s.end] for s in named] == ["A dog barks", "rain falls."]
    assert not twice


@pytest.mark.parametrize(
    ("caption", "count", "twice"),
    [
        ("A dog barks while a dog is barking.", 1, True),
        ("Frogs croak while a frog is croaking.", 1, True),
        ("An animal calls, then a dog barks.", 1, True),  # an upper class, and one of it
        ("A car horn honks.", 1, False),  # two words of one clause
        ("A person coughs, then a person sneezes.", 2, False),
        ("Something is heard.", 0, False),
    ],
)
def test_what_is_told_twice(caption, count, twice):
    named, again = sounds_of(caption)
    assert (len(named), again) == (count, twice)


def test_what_is_left_of_a_caption():
    assert shorter("A dog barks, then rain falls, and then a siren wails.") == [
        "A dog barks.",
        "A dog barks, then rain falls.",
    ]
    assert shorter("A dog barks.") == []


def test_an_upper_class_stands_for_all_below_it():
    assert {"animal", "dog", "crow", "bird"} <= below(frozenset(["animal"]))
    assert below(frozenset(["dog"])) == {"dog"}


def measure(p: float, upper: bool = False, later: bool = False) -> list[float]:
    return [1.0, logit(p), 0.0, 0.0, float(upper), float(later)]


OPTIONS = WeighConfig(enabled=True, sound=(0, 1, 0, 0, 0, 0), doubt=1.0, upper=0.5, wording=0.0)


def test_worth_by_hand():
    value, hypothesis = weigh("A dog barks, then rain falls.", -1.0, [measure(0.9), measure(0.2)], OPTIONS)
    assert value == pytest.approx(0.9 - 0.1 + 0.2 - 0.8)
    assert [round(sound.confidence, 6) for sound in hypothesis.sounds] == [0.9, 0.2]
    assert [sound.text for sound in hypothesis.sounds] == ["A dog barks", "rain falls"]
    assert hypothesis.confidence == pytest.approx(0.18)
    alone, _ = weigh("A dog barks.", -1.0, [measure(0.9)], OPTIONS)
    assert alone > value  # a second sound that is unlikely is left out
    detailed, _ = weigh("A dog barks, then rain falls.", -1.0, [measure(0.9), measure(0.2)], replace(OPTIONS, doubt=0))
    assert detailed > weigh("A dog barks.", -1.0, [measure(0.9)], replace(OPTIONS, doubt=0))[0]
    upper, _ = weigh("An animal calls.", -1.0, [measure(0.9, upper=True)], OPTIONS)
    assert upper == pytest.approx(0.5 * 0.9 - 0.1)
    again, _ = weigh("A dog barks while a dog is barking.", -1.0, [measure(0.9)], OPTIONS)
    assert again < -10


def test_the_confidence_of_a_caption():
    options = replace(OPTIONS, caption=(0.0, 1.0, -2.0))
    dog, animal = Sound("a dog barks", ("dog",), 0.8), Sound("an animal calls", ("animal",), 0.8)
    assert caption_confidence([dog], options) == pytest.approx(0.8)
    assert caption_confidence([animal], options) == pytest.approx(sigmoid(logit(0.8) - 2))
    assert caption_confidence([], options) == 0


def test_logistic_regression_finds_the_weights_that_made_the_data():
    rng = np.random.default_rng(0)
    x = np.stack([np.ones(6000), rng.normal(size=6000), rng.normal(size=6000)], 1)
    y = rng.random(6000) < 1 / (1 + np.exp(-x @ [0.5, 1.5, -1.0]))
    assert logistic(x, y, np.zeros(3)) == pytest.approx([0.5, 1.5, -1.0], abs=0.15)


@pytest.fixture(params=["", "x "], ids=["no lead", "a lead"])
def model(make_model, monkeypatch, request):
    made = make_model(llm={"lead": request.param})
    clip, frame = torch.nn.Linear(made.encoder.dim, 4), torch.nn.Linear(made.encoder.dim, 5)
    encoder = type(made.encoder)
    monkeypatch.setattr(made.encoder, "labels", LABELS)
    monkeypatch.setattr(
        encoder,
        "tag",
        lambda self, h, mask: clip((h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).softmax(-1),
        raising=False,
    )
    monkeypatch.setattr(encoder, "tag_frames", lambda self, h: frame(h).softmax(-1), raising=False)
    return made


TEXTS = [["A dog barks.", "A dog barks, then rain falls."], ["A siren wails."]]


def heard(model) -> tuple[TorchRuntime, np.ndarray, np.ndarray]:
    """A runtime, and encoder tokens (2, 7, D) of two clips with their mask."""
    mask = np.arange(7) < np.array([[7], [4]])
    h_a = np.random.default_rng(5).standard_normal((2, 7, model.encoder.dim)).astype(np.float32)
    return TorchRuntime(model), h_a * mask[..., None], mask


def measured(runtime, h_a, mask, texts, found=()):
    decoding = runtime.decoding(*runtime.audio_tokens(h_a, mask), 1.0)
    clip, frame = runtime.tag(h_a, mask)
    return Weigher(runtime, DecodeConfig()).measure(clip, frame * mask[..., None], decoding, texts, found)


@torch.inference_mode()
def test_measures(model):
    runtime, h_a, mask = heard(model)
    clip, frame = runtime.tag(h_a, mask)
    (short, (dog,)), (long, (first, rain)) = measured(runtime, h_a, mask, TEXTS)[0]
    assert dog[1] == pytest.approx(logit(clip[0, 0]), abs=1e-5)
    assert rain[1:3] == pytest.approx([logit(clip[0, 1]), logit(frame[0, :, 1].max())], abs=1e-5)
    assert (dog[4:], first[4:], rain[4:]) == ([0, 0], [0, 0], [0, 1])
    for text, score in zip(TEXTS[0], (short, long), strict=True):  # the mean over the tokens and the end, by hand
        z_a, z_mask = model.audio_tokens(torch.from_numpy(h_a[:1]), torch.from_numpy(mask[:1]))
        ids, _ = model.llm.tokenize([text])
        logits = model.llm.logits(*model.llm.prefix(z_a, z_mask), ids) + model.bias(z_a, z_mask)
        labels = torch.cat([ids, ids.new_full((1, 1), model.llm.tokenizer.eos_token_id)], 1)
        log_p = logits.log_softmax(-1).gather(2, labels[..., None])
        assert score == pytest.approx(float(log_p.mean()), abs=1e-4)
    assert 0 < sigmoid(rain[3]) < 1


def test_a_clip_does_not_depend_on_its_neighbours(model):
    runtime, h_a, mask = heard(model)
    both = measured(runtime, h_a, mask, TEXTS)
    alone = measured(runtime, h_a[1:, :4], mask[1:, :4], TEXTS[1:])
    assert both[1][0][0] == pytest.approx(alone[0][0][0], abs=1e-4)
    assert both[1][0][1][0] == pytest.approx(alone[0][0][1][0], abs=1e-3)


def test_tokens_stand_for_characters_of_the_caption(model):
    [(ids, spans)] = TorchRuntime(model).tokenize([TEXTS[0][1]])
    assert model.llm.tokenize(TEXTS[0][1:])[0].tolist() == [ids]
    assert spans[0][0] == 0
    assert spans[-1][1] == len(TEXTS[0][1])
    assert all(0 <= b[0] - a[1] <= 1 for a, b in pairwise(spans))


def test_what_the_search_knows_is_not_computed_again(model):
    runtime, h_a, mask = heard(model)
    text = TEXTS[1][0]
    [(ids, _)] = runtime.tokenize([text])
    log_p = tuple(-float(k) for k in range(len(ids) + 1))
    known = Found(tuple(ids), log_p)
    [[(score, _)]] = measured(runtime, h_a[1:, :4], mask[1:, :4], [[text]], [[Hypothesis(text, 0.0, found=known)]])
    assert score == pytest.approx(sum(log_p) / len(log_p))
    [[(plain, _)]] = measured(runtime, h_a[1:, :4], mask[1:, :4], [[text]])
    for other in (Found(tuple(ids), log_p[:-1]), Found((*ids, 3), (*log_p, 0.0))):  # cut, or other tokens
        [[(score, _)]] = measured(runtime, h_a[1:, :4], mask[1:, :4], [[text]], [[Hypothesis(text, 0.0, found=other)]])
        assert score == plain


def test_choice(model):
    runtime, h_a, mask = heard(model)
    found = [[Hypothesis("A dog barks while rain falls.", -1.0)], [Hypothesis("", -9.0)]]
    decoding = runtime.decoding(*runtime.audio_tokens(h_a, mask), 1.0)
    rows = Weigher(runtime, DecodeConfig(weigh=OPTIONS)).choose(h_a, mask, decoding, found)
    texts = {h.text for h in rows[0]}
    assert {"A dog barks while rain falls.", "A dog barks."} <= texts
    assert len(texts) == len(rows[0]) >= 6  # each once
    assert all(h.confidence is not None and 0 <= h.confidence <= 1 and math.isfinite(h.score) for h in rows[0])
    assert rows[1][0].sounds  # where nothing was found, something that is offered is told


def test_the_most_probable_kinds_are_offered(model):
    clip = np.array([[0.05, 0.6, 0.3, 0.05]], np.float32)
    frame = np.zeros((1, 7, 5), np.float32)
    frame[0, 5:, 1] = frame[0, :2, 2] = frame[0, 2:5, 4] = 1
    (texts,) = Weigher(TorchRuntime(model), DecodeConfig()).candidates(clip, frame, [[]])
    loud, early = (PHRASES[LABELS[k]][0].clause for k in (1, 2))
    assert texts[1:5] == [clean(text) for text in (loud, early, f"{early}, then {loud}", f"{early} while {loud}")]
    assert all(set(sounds_of(text)[0][0].labels) <= PARENTS for text in texts[5:])
    assert len(texts) == 7


def test_a_captioner_weighs_what_it_says(model):
    captioner = Captioner(model, DecodeConfig(max_new_tokens=4, weigh=OPTIONS))
    rng = np.random.default_rng(0)
    sounds = [(rng.uniform(-0.5, 0.5, 8000).astype(np.float32), 16000) for _ in range(2)]
    for detailed in (False, True):
        for result in captioner.caption(sounds, detailed=detailed):
            assert result.ok
            assert result.sounds
            assert result.confidence == pytest.approx(caption_confidence(result.sounds, OPTIONS))
            assert result.to_dict()["sounds"][0].keys() == {"text", "labels", "confidence"}
