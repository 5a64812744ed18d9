"""Beam search against `transformers` and against exhaustive search; sampling against its distribution."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamb.inference.search import Found, NoRepeatNGram, beam_search, sample


class Table:
    """A decoding whose logits depend on the clip and on all tokens so far, by a random function; counts its rows."""

    def __init__(self, clips: int, vocabulary: int, seed: int, sharp: float = 2.0):
        self.seed, self.vocabulary, self.sharp = seed, vocabulary, sharp
        self.beams: list[tuple[int, list[tuple[int, ...]]]] = [(clip, [()]) for clip in range(clips)]
        self.widths: list[int] = []

    def logits(self, clip: int, ids: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([self.seed, clip, *ids, len(ids)])
        return (self.sharp * rng.standard_normal(self.vocabulary)).astype(np.float32)

    def start(self) -> np.ndarray:
        return np.stack([np.stack([self.logits(clip, ids) for ids in beams]) for clip, beams in self.beams])

    def step(self, keep: np.ndarray, parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        self.widths.append(len(keep))
        self.beams = [
            (self.beams[c][0], [(*self.beams[c][1][p], int(t)) for p, t in zip(ps, ts, strict=True)])
            for c, ps, ts in zip(keep, parents, tokens, strict=True)
        ]
        return self.start()


def true(table: Table, clip: int, ids: tuple[int, ...], eos: int, limit: int) -> Found:
    """What the sequence with these tokens must say of itself."""
    tokens = ids if len(ids) == limit else (*ids, eos)
    values = []
    for k, token in enumerate(tokens):
        logits = table.logits(clip, tokens[:k]).astype(np.float64)
        values.append(float(logits[token] - np.log(np.exp(logits).sum())))
    return Found(ids, tuple(values))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_wide_beams_find_what_exhaustive_search_finds(seed, length_penalty):
    vocabulary, limit, eos = 4, 3, 0
    # more beams than there are prefixes: nothing is ever cut
    found = beam_search(
        Table(2, vocabulary, seed), beams=81, eos=eos, max_new_tokens=limit, length_penalty=length_penalty
    )
    table = Table(2, vocabulary, seed)
    words = [w for n in range(limit + 1) for w in itertools.product(range(1, vocabulary), repeat=n)]
    for clip, hypotheses in enumerate(found):
        every = [true(table, clip, word, eos, limit) for word in words]
        every.sort(key=lambda h: -sum(h.log_p) / len(h.log_p) ** length_penalty)
        assert [h.ids for h in hypotheses] == [h.ids for h in every]
        np.testing.assert_allclose([h.score for h in hypotheses], [h.score for h in every], atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), beams=st.integers(1, 5), clips=st.integers(2, 4))
def test_a_clip_does_not_depend_on_its_neighbours_and_scores_are_true(seed, beams, clips):
    class Shifted(Table):
        def logits(self, clip, ids):
            return super().logits(clip + self.first, ids)

    def search(first: int, count: int) -> list[list[Found]]:
        table = Shifted(count, 11, seed)
        table.first = first
        return beam_search(table, beams=beams, eos=3, max_new_tokens=7)

    together = search(0, clips)
    assert together == [hypotheses for k in range(clips) for hypotheses in search(k, 1)]
    for clip, hypotheses in enumerate(together):
        assert len({h.ids for h in hypotheses}) == len(hypotheses) == beams
        for h in hypotheses:
            assert h.log_p == pytest.approx(true(Table(clips, 11, seed), clip, h.ids, 3, 7).log_p, abs=1e-5)


@pytest.fixture(scope="module")
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "vocab_size": 200,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(12)  # sharp enough for distinct beams
        model.lm_head.weight[1] += 0.5
    return model


class Plain:
    """The slowest engine: every beam is read from its beginning at every step."""

    def __init__(self, model, prefix):
        self.model, self.beams = model, prefix[:, None]  # (A, k, P, D)

    @torch.inference_mode()
    def start(self):
        return (
            self.model(inputs_embeds=self.beams.flatten(0, 1)).logits[:, -1].unflatten(0, self.beams.shape[:2]).numpy()
        )

    @torch.inference_mode()
    def step(self, keep, parents, tokens):
        new = self.model.get_input_embeddings()(torch.from_numpy(tokens))[:, :, None]
        self.beams = torch.cat([self.beams[torch.from_numpy(keep)[:, None], torch.from_numpy(parents)], new], 2)
        return self.start()


@pytest.mark.parametrize("length_penalty", [0.5, 1.0])
@pytest.mark.parametrize("beams", [1, 2, 4])
def test_the_search_is_that_of_transformers(llama, beams, length_penalty):
    from transformers import GenerationConfig

    prefix = torch.randn(6, 5, 32, generator=torch.Generator().manual_seed(1))
    config = GenerationConfig(
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=12,
        do_sample=False,
        length_penalty=length_penalty,
        eos_token_id=1,
        pad_token_id=1,
        bos_token_id=0,
    )
    mask = torch.ones(6, 5, dtype=torch.long)
    ids = llama.generate(inputs_embeds=prefix, attention_mask=mask, generation_config=config)  # (6 * beams, L)
    expected = [tuple(row[: row.index(1)] if 1 in row else row) for row in ids.tolist()]
    found = beam_search(Plain(llama, prefix), beams=beams, eos=1, max_new_tokens=12, length_penalty=length_penalty)
    assert [h.ids for hypotheses in found for h in hypotheses] == expected
    assert len({len(h.ids) for hypotheses in found for h in hypotheses}) > 1, "no caption ended before the limit"


def test_clips_that_are_done_leave_the_batch():
    class Short(Table):
        def logits(self, clip, ids):
            logits = np.full(self.vocabulary, -9.0, np.float32)
            logits[0 if len(ids) == 2 * clip else 1 + len(ids)] = 9
            return logits

    table = Short(3, 50, 0)
    found = beam_search(table, beams=1, eos=0, max_new_tokens=20)
    assert [h[0].ids for h in found] == [(), (1, 2), (1, 2, 3, 4)]
    assert table.widths == [2, 2, 1, 1]


def test_a_caption_that_is_cut_has_no_end_to_score():
    table = Table(1, 5, 0)
    (found,) = beam_search(table, beams=2, eos=99, max_new_tokens=4)
    assert [len(h.ids) for h in found] == [len(h.log_p) for h in found] == [4, 4]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_run_of_tokens_comes_twice(n):
    for hypotheses in beam_search(Table(3, 4, 5), beams=3, eos=9, max_new_tokens=4, filters=[NoRepeatNGram(n)]):
        for h in hypotheses:
            runs = [h.ids[k : k + n] for k in range(len(h.ids) - n + 1)]
            assert len(set(runs)) == len(runs)


def test_filters_do_not_raise_the_rest():
    """The score of a filtered hypothesis is the model's own, and so is its rank."""
    (found,) = beam_search(Table(1, 6, 8), beams=4, eos=0, max_new_tokens=5, filters=[NoRepeatNGram(1)])
    for h in found:
        assert h.score == pytest.approx(true(Table(1, 6, 8), 0, h.ids, 0, 5).score, abs=1e-5)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def test_samples_follow_the_distribution_and_the_seed():
    class Once(Table):
        def logits(self, clip, ids):
            return np.log(np.array([0.1, 0.2, 0.7], np.float32)) if not ids else np.array([9, -9, -9], np.float32)

    def drawn(seed, clips=1, **options):
        found = sample(Once(clips, 3, 0), samples=2000, seed=seed, eos=0, max_new_tokens=3, **options)
        return [[h.ids[:1] for h in hypotheses] for hypotheses in found]

    (ids,) = drawn(1)
    shares = [ids.count(first) / len(ids) for first in ((), (1,), (2,))]
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.7], atol=0.04)  # 4 standard deviations of 2,000 draws
    assert drawn(1) == [ids]
    assert drawn(1, clips=3) == [ids] * 3
    assert drawn(2) != [ids]
    assert set(drawn(1, top_p=0.6)[0]) == {(2,)}
    assert set(drawn(1, top_p=0.75)[0]) == {(1,), (2,)}
    cold = drawn(1, temperature=0.2)[0]
    assert cold.count((2,)) / len(cold) > 0.99


def test_sampled_scores_are_the_models_own():
    found = sample(Table(2, 7, 3), samples=5, seed=0, eos=0, max_new_tokens=6, temperature=1.3, top_p=0.8)
    for clip, hypotheses in enumerate(found):
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        for h in hypotheses:
            assert h.score == pytest.approx(true(Table(2, 7, 3), clip, h.ids, 0, 6).score, abs=1e-5)
