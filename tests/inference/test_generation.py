"""Decoding on a toy vocabulary: beam search against all sequences, the guide, sampling, scores, clean sentences."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from searched import generate

from lamb.config import RerankingConfig
from lamb.extensions.one_mention import OneMention
from lamb.extensions.reranking import Reranker
from lamb.inference import torch_runtime
from lamb.inference.generation import Hypothesis, clean
from lamb.inference.torch_runtime import TorchRuntime

WORDS = ("</s>", "ah", "be", "cow", "dog", "eel")
EOS, V = 0, len(WORDS)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of six words whose opinions are strong, and whose own generation settings must not matter."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.min_new_tokens = 3
    folder = tmp_path_factory.mktemp("toy")
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture
def make_toy(make_model, toy_folder):
    def make(**sections: dict[str, Any]) -> Any:
        llm = {"source": str(toy_folder), "prompt": "dog <audio> cow"} | sections.pop("llm", {})
        decode = {"max_new_tokens": 4, "no_repeat_ngram": 0, "beams": 1} | sections.pop("decode", {})
        return make_model(llm=llm, decode=decode, **sections)

    return make


def audio(model, size: int = 2, tokens: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """z_a and its mask, of all valid tokens."""
    z_a = 0.5 * torch.randn(size, tokens, model.llm.dim, generator=torch.Generator().manual_seed(seed))
    return z_a, torch.ones(size, tokens, dtype=torch.bool)


def best(model, z_a, mask, **changes) -> list[Hypothesis]:
    return [found[0] for found in generate(model, z_a, mask, replace(model.config.decode, **changes))]


def sentence(ids) -> str:
    return clean(" ".join(WORDS[k] for k in ids if k != EOS))


@torch.no_grad()
def everything(model, z_a, mask, limit: int) -> dict[tuple[int, ...], float]:
    """The log probability, under the guided logits, of every sequence that ends or is cut at `limit`; for one clip."""
    words = range(1, V)
    sequences = [(*s, EOS) for n in range(limit) for s in itertools.product(words, repeat=n)]
    sequences += list(itertools.product(words, repeat=limit))
    ids = torch.tensor([list(s) + [EOS] * (limit - len(s)) for s in sequences])
    prefix, prefix_mask = model.llm.prefix(z_a[None].expand(len(ids), -1, -1), mask[None].expand(len(ids), -1))
    logits = model.llm.logits(prefix, prefix_mask, ids)  # (sequences, limit + 1, V)
    bias = model.step_bias(model.bias(z_a[None], mask[None]), ids)
    if bias is not None:
        logits = logits + bias
    step = logits[:, :-1].log_softmax(-1).gather(2, ids[..., None])[..., 0]
    return {s: float(row[: len(s)].sum()) for s, row in zip(sequences, step, strict=True)}


# --- search


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("guide", ["once", "residual", "none"])
def test_wide_beam_search_is_exhaustive_search(make_toy, guide, penalty):
    options = {"enabled": guide != "none", "beta": 0.3}
    extensions = {"residual_guide": {"enabled": guide == "residual"}}
    model = make_toy(guide=options, decode={"length_penalty": penalty}, extensions=extensions)
    if guide == "residual":
        model.guide.gamma.data.fill_(0.5)
    z_a, mask = audio(model, size=3)
    found = best(model, z_a, mask, beams=150)
    for clip in range(3):
        scores = everything(model, z_a[clip], mask[clip], limit=4)
        assert sum(math.exp(s) for s in scores.values()) == pytest.approx(1, abs=1e-4)
        ids = max(scores, key=lambda s: scores[s] / len(s) ** penalty)
        assert found[clip].text == sentence(ids)
        assert found[clip].score == pytest.approx(scores[ids] / len(ids), abs=1e-4)


@torch.no_grad()
def test_reranking_by_hand(make_model):
    model = make_model(decode={"max_new_tokens": 6, "beams": 6}).eval()
    z_a, mask = audio(model, size=12)
    mask[1, 1:] = False
    plain = generate(model, z_a, mask, model.config.decode, n_best=6)
    changed = 0
    for weight in (0.5, 50.0):
        found = Reranker(TorchRuntime(model), RerankingConfig(weight)).ranked(z_a.numpy(), mask.numpy(), plain)
        for clip in range(12):
            a = z_a[clip][mask[clip]].mean(0)
            value = {}
            for h in plain[clip]:
                ids = torch.tensor(model.llm.tokenizer(h.text).input_ids)
                value[h] = h.score + weight * float(torch.cosine_similarity(a, model.llm.embed(ids).mean(0), dim=0))
            assert found[clip] == sorted(plain[clip], key=lambda h: -value[h])
            changed += found[clip][0] != plain[clip][0]
    assert changed, "a choice that would not have been made without"


def test_the_toy_language_has_something_to_search(make_toy):
    """Otherwise the test above shows little: guide and length penalty change the best, and greedy search misses it."""
    model = make_toy(guide={"beta": 0.3})
    z_a, mask = audio(model, size=8)
    raw = make_toy(guide={"enabled": False})
    wide = best(model, z_a, mask, beams=150)
    assert wide != best(model, z_a, mask)
    assert [h.text for h in wide] != [h.text for h in best(raw, z_a, mask, beams=150)]
    assert [h.text for h in wide] != [h.text for h in best(model, z_a, mask, beams=150, length_penalty=0.0)]
    assert len({h.text for h in wide}) > 2


@torch.no_grad()
def test_greedy_is_the_argmax_of_guided_logits(make_toy):
    model = make_toy(decode={"max_new_tokens": 7})
    z_a, mask = audio(model, size=6)
    found = best(model, z_a, mask)
    bias = model.bias(z_a, mask)
    for clip in range(6):
        prefix = model.llm.prefix(z_a[clip : clip + 1], mask[clip : clip + 1])
        ids: list[int] = []
        while len(ids) < 7 and EOS not in ids:
            logits = model.llm.logits(*prefix, torch.tensor([ids], dtype=torch.long))  # whole, without a cache
            ids.append(int((logits[0, -1] + bias[clip, 0]).argmax()))
        assert found[clip].text == sentence(ids)


@pytest.mark.parametrize("word", range(1, V))
def test_a_strong_guide_names_the_nearest_entry(make_toy, word):
    model = make_toy(guide={"beta": 30.0})
    z_a = model.llm.embedding_matrix[word].detach().expand(1, 3, -1)
    mask = torch.ones(1, 3, dtype=torch.bool)
    name = WORDS[word]
    assert best(model, z_a, mask, beams=2)[0].text == f"{name.capitalize()} {name} {name} {name}."
    model.guide.beta.data.zero_()
    assert best(model, z_a, mask, beams=2)[0].text.lower().count(name) < 4


def test_no_run_of_words_twice(make_toy):
    model = make_toy(guide={"beta": 30.0}, decode={"max_new_tokens": 5, "no_repeat_ngram": 1})
    z_a, mask = model.llm.embedding_matrix[3].detach().expand(1, 3, -1), torch.ones(1, 3, dtype=torch.bool)
    for size, beams in itertools.product((1, 2, 3), (1, 3)):
        words = best(model, z_a, mask, no_repeat_ngram=size, beams=beams)[0].text.rstrip(".").lower().split()
        runs = list(zip(*(words[k:] for k in range(size)), strict=False))
        assert len(runs) == len(set(runs))
        assert len(words) > size or "cow" not in words[size:]
    assert best(model, z_a, mask, no_repeat_ngram=0)[0].text == "Cow cow cow cow cow."


# --- batches


@pytest.mark.parametrize("options", [{}, {"beams": 4}, {"seed": 5}], ids=["greedy", "beam", "sample"])
def test_a_clip_does_not_depend_on_its_batch(make_toy, options):
    model = make_toy(decode={"max_new_tokens": 6, "beams": options.get("beams", 1)})
    seed, n = options.get("seed"), 3
    z_a, mask = audio(model, size=5)
    together = generate(model, z_a, mask, model.config.decode, n, seed)
    order = torch.tensor([3, 0, 4, 2, 1])
    permuted = generate(model, z_a[order], mask[order], model.config.decode, n, seed)
    for clip in range(5):
        alone = generate(model, z_a[clip : clip + 1], mask[clip : clip + 1], model.config.decode, n, seed)[0]
        for other in (together[clip], permuted[int((order == clip).nonzero())]):
            assert [h.text for h in other] == [h.text for h in alone]
            assert [h.score for h in other] == pytest.approx([h.score for h in alone], abs=1e-4)


@pytest.mark.parametrize("beams", [1, 4])
def test_padding_of_the_audio_tokens_does_not_matter(make_toy, beams):
    model = make_toy(adapter={"kind": "linear"}, decode={"max_new_tokens": 6, "beams": beams})
    z_a, _ = audio(model, size=4, tokens=6)
    mask = torch.arange(6) < torch.tensor([6, 1, 3, 5])[:, None]
    found = best(model, torch.where(mask[..., None], z_a, 100 * z_a), mask)
    for clip in range(4):
        n = int(mask[clip].sum())
        alone = best(model, z_a[clip : clip + 1, :n], mask[clip : clip + 1, :n])[0]
        assert found[clip].text == alone.text
        assert found[clip].score == pytest.approx(alone.score, abs=1e-4)


def test_from_sound_to_text_alone_and_in_a_padded_batch(make_model):
    model = make_model(adapter={"kind": "linear"}, decode={"beams": 3})
    lengths = torch.tensor([4000, 16000, 9000])
    mask = torch.arange(16000) < lengths[:, None]
    waveform = torch.randn(3, 16000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = best(model, *model.audio_tokens(*model.encode(waveform, mask)))
        for clip, n in enumerate(lengths.tolist()):
            h_a = model.encode(waveform[clip : clip + 1, :n], mask[clip : clip + 1, :n])
            assert best(model, *model.audio_tokens(*h_a))[0].text == found[clip].text


# --- n-best, scores


def test_n_best_is_distinct_and_sorted(make_toy):
    model = make_toy()
    z_a, mask = audio(model, size=4)
    for seed in (None, 1):
        for found in generate(model, z_a, mask, model.config.decode, n_best=6, seed=seed):
            assert len({h.text for h in found}) == len(found) <= 6
            scores = [h.score for h in found]
            assert scores == sorted(scores, reverse=True)
        assert len(found) > 1


def test_alternatives_do_not_change_the_caption(make_toy):
    model = make_toy(decode={"length_penalty": -3.0, "beams": 6})
    z_a, mask = audio(model, size=8)
    found = generate(model, z_a, mask, model.config.decode, n_best=6)
    assert [alternatives[0].text for alternatives in found] == [h.text for h in best(model, z_a, mask)]
    assert any(h[0].score < max(other.score for other in h) for h in found)  # short ones are asked for, not likely ones


@torch.no_grad()
@pytest.mark.parametrize("residual", [False, True])
def test_score_is_the_mean_log_probability(make_toy, residual):
    model = make_toy(guide={"beta": 0.3}, extensions={"residual_guide": {"enabled": residual}})
    if residual:
        model.guide.gamma.data.fill_(0.5)
    z_a, mask = audio(model, size=1)
    decoding = TorchRuntime(model).decoding(z_a.numpy(), mask.numpy(), 1.0)
    scores = everything(model, z_a[0], mask[0], limit=4)
    captions = [(1, 2), (), (3, 1, 4)]
    for ids, log_p in zip(captions, decoding.log_probabilities([0, 0, 0], captions), strict=True):
        assert log_p.shape == (len(ids) + 1,)
        assert log_p.sum() == pytest.approx(scores[*ids, EOS], abs=1e-5)


@torch.no_grad()
def test_captions_are_read_alike_alone_together_and_after_a_search(make_toy, monkeypatch):
    model = make_toy(guide={"beta": 0.3})
    z_a, mask = audio(model, size=3)
    mask[1, -2:] = False
    decoding = TorchRuntime(model).decoding(z_a.numpy(), mask.numpy(), 1.0)
    clips, captions = [2, 0, 1, 1], [(1, 2), (), (3, 1, 4), (5,)]
    together = decoding.log_probabilities(clips, captions)
    decoding.start()
    decoding.step(np.array([0, 2]), np.zeros((2, 1), np.int64), np.array([[1], [3]]))
    again = decoding.log_probabilities(clips, captions)
    monkeypatch.setattr(torch_runtime, "READ", 1)  # one caption at a time
    alone = decoding.log_probabilities(clips, captions)
    for one, two, three in zip(together, again, alone, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
        np.testing.assert_allclose(one, three, atol=1e-5)


def test_no_captions_have_no_log_probabilities(make_toy):
    model = make_toy()
    z_a, mask = audio(model)
    assert TorchRuntime(model).decoding(z_a.numpy(), mask.numpy(), 1.0).log_probabilities([], []) == []


# --- sampling


def test_the_seed_decides_the_sample(make_toy):
    model = make_toy(decode={"top_p": 1.0})
    z_a, mask = audio(model, size=2)
    samples = [generate(model, z_a, mask, model.config.decode, 4, seed) for seed in (0, 0, 1)]
    assert samples[0] == samples[1]
    assert samples[0] != samples[2]


def test_samples_follow_the_guided_distribution(make_toy):
    model = make_toy(decode={"top_p": 1.0, "max_new_tokens": 1})
    z_a, mask = audio(model, size=1)
    scores = everything(model, z_a[0], mask[0], limit=1)
    seeds = 200
    drawn = Counter(generate(model, z_a, mask, model.config.decode, 1, seed)[0][0].text for seed in range(seeds))
    expected = {sentence(ids): seeds * math.exp(value) for ids, value in scores.items()}
    assert sum((drawn[text] - n) ** 2 / n for text, n in expected.items()) < 20.5  # chi-square, 5 degrees: p = 0.001


def test_low_temperature_and_small_top_p_are_greedy(make_toy):
    model = make_toy()
    z_a, mask = audio(model, size=4)
    greedy = [h.text for h in best(model, z_a, mask)]
    for change in ({"temperature": 1e-4, "top_p": 1.0}, {"top_p": 1e-6}):
        options = replace(model.config.decode, **change)
        assert [h[0].text for h in generate(model, z_a, mask, options, 1, seed=3)] == greedy


# --- sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("  \n", ""),
        (" ,;", ""),
        ("a dog barks", "A dog barks."),
        (" A dog  barks .", "A dog barks."),
        ("a dog barks, then", "A dog barks, then."),
        ("a dog barks , and\na cat meows,", "A dog barks, and a cat meows."),
        ("is that a dog?", "Is that a dog?"),
        ("écoute !", "Écoute !"),
    ],
)
def test_clean(text, expected):
    assert clean(text) == expected


@given(st.text() | st.text(alphabet="aB .,;:-!?\n\t"))
def test_clean_makes_one_sentence_and_is_idempotent(text):
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert len(cleaned.splitlines()) <= 1
    assert cleaned == "" or cleaned[-1] in ".!?"
    assert cleaned == cleaned.strip()


def test_one_mention_takes_part_where_it_is_switched_on(make_toy, monkeypatch):
    seen = []
    monkeypatch.setattr(OneMention, "__call__", lambda self, ids, log_p: seen.append(log_p.shape[1]))
    for enabled in (True, False):
        model = make_toy(extensions={"one_mention": {"enabled": enabled}})
        generate(model, *audio(model), model.config.decode)
        assert set(seen) == ({V} if enabled else set())
        seen.clear()


@pytest.mark.parametrize("residual", [0.0, 0.5])
@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_the_guides_strength_scales_its_beta(make_toy, strength, residual):
    model = make_toy(guide={"beta": 1.5}, extensions={"residual_guide": {"enabled": True}})
    model.guide.gamma.data.fill_(residual)
    z_a, mask = audio(model)
    found = best(model, z_a, mask, guide=strength, beams=3)
    assert found != best(model, z_a, mask, beams=3)
    with torch.no_grad():
        model.guide.beta *= strength
    assert found == best(model, z_a, mask, beams=3)
