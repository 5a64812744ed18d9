"""Scores: equal to pycocoevalcap where it is installed, and to numbers it gave where it is not; properties; bootstrap.

The reference is not among the dependencies. To compare: .venv/bin/python -m pip install --no-deps pycocoevalcap==1.2
(104 MB); its tokenizer also wants `java`. Without them these tests are skipped.
"""

import csv
import math
import random
import shutil
from collections import defaultdict
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from conftest import SHARED
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lamb.evaluation.metrics import (
    bleu,
    cider_d,
    confidence_interval,
    mean_length,
    paired_test,
    rouge_l,
    tokenize,
    vocabulary_size,
)

needs_captions = pytest.mark.skipif(not (SHARED / "captions").exists(), reason="../shared/captions is not here")
Clips = list[tuple[list[str], list[list[str]]]]

# What pycocoevalcap 1.2's PTBTokenizer (stanford-corenlp-3.4.1.jar, Java 17) answered, on 2026-11-23.
TOKENS = [
    ("A dog's high-pitched bark, then a siren.", "a dog 's high-pitched bark then a siren"),
    ("“It’s raining” – he said… and it doesn't stop!", "it 's raining he said and it does n't stop"),
    (
        "Birds' wings, (faint) at 5 p.m. near the U.S. border; 1,000 of them: 10-20 at 12:30, 2.5 miles",
        "birds wings -lrb- faint -rrb- at 5 p.m. near the u.s. border 1,000 of them 10-20 at 12:30 2.5 miles",
    ),
    (
        "'A cat meows' and/or a dog barks.Then 'the' bird -- chirps - twice... really?!",
        "a cat meows and/or a dog barks.then the bird chirps twice really ?!",
    ),
    (
        "You cannot hear it & it's gonna rain, isn't it? He'll say they've, I'm, we'd",
        "you can not hear it & it 's gon na rain is n't it he 'll say they 've i 'm we 'd",
    ),
    (
        "Mr. Smith, Dr. No and the lady with the 1980s TV's 'n' R&B etc. at 7 o'clock, ma'am",
        "mr. smith dr. no and the lady with the 1980s tv 's 'n' r&b etc. at 7 o'clock ma'am",
    ),
    (
        "A person snores,  whistles\tand\nsneezes ; over and over .",
        "a person snores whistles and sneezes over and over",
    ),
    (
        "*gulp* 100% of #1 [music] {laughs} snake_case <b>",
        "* gulp * 100 % of # 1 -lsb- music -rsb- -lcb- laughs -rcb- snake_case <b>",
    ),
    (
        "No. 5 is said, no. A man says the letter a. A woman says b. and leaves",
        "no. 5 is said no a man says the letter a a woman says b. and leaves",
    ),
    (
        'A voice says "hello" 3 times in a 10kHz café in the 90\'s at 10:15am',
        "a voice says hello 3 times in a 10khz café in the 90 's at 10:15 am",
    ),
    ("It's. A dog's. The end is b. The man's. 5 p.m. A", "it 's a dog 's the end is b the man 's 5 p.m. a"),
    ("...", ""),
    ("", ""),
]

# Captions of all kinds: much alike, one reference, repeated words, empty, identical, an empty reference, one word.
GOLDEN: Clips = [
    (candidate.split(), [reference.split() for reference in references])
    for candidate, *references in (
        (
            "a dog barks and a man speaks",
            "a dog barks while a man speaks",
            "a man speaks and a dog barks twice",
            "a dog barks",
        ),
        ("rain falls", "heavy rain falls on a tin roof as thunder rolls"),
        ("a a a a a", "a bell rings", "a a bell"),
        ("", "an engine idles", "the engine of a car idles", "a car idles"),
        ("church bells ring in the distance", "church bells ring in the distance", "bells ring"),
        ("water runs", "", "water runs from a tap"),
        ("wind", "wind", "birds sing"),
    )
]
# Bleu(4), Rouge() and Cider() of pycocoevalcap 1.2 on them, compute_score's two answers, on 2026-11-23.
GOLDEN_BLEU = [0.641395011963, 0.601480723979, 0.510989861559, 0.42558347223]
GOLDEN_BLEU_CLIPS = [
    [0.999999999714, 0.0183156388704, 0.39999999992, 0.0, 0.999999999667, 0.9999999995, 0.999999998],
    [0.912870928904, 0.0183156388658, 0.316227765946, 0.0, 0.99999999965, 0.99999999925, 0.0009999999985],
    [0.693361274134, 0.000183156388704, 3.21829794785e-06, 0.0, 0.999999999628, 0.009999999995, 9.99999998667e-05],
    [9.55442791886e-05, 1.83156388727e-05, 1.1362193661e-08, 0.0, 0.999999999596, 0.000999999999625, 3.16227765622e-05],
]
GOLDEN_ROUGE = 0.612523184215
GOLDEN_ROUGE_CLIPS = [0.936061381074, 0.29756097561, 0.523605150215, 0.0, 1.0, 0.530434782609, 1.0]
GOLDEN_CIDER = 2.02891351626
GOLDEN_CIDER_CLIPS = [4.34914815833, 0.826291280531, 0.392316215091, 0.0, 6.05595294249, 1.32868601741, 1.25]


def apart(clips: Clips) -> tuple[list[list[str]], list[list[list[str]]]]:
    """The candidates and the references."""
    return [candidate for candidate, _ in clips], [references for _, references in clips]


def assert_equals_pycocoevalcap(clips: Clips) -> None:
    """All three scores, of the collection and of each clip, to 1e-6 of those of pycocoevalcap."""
    why = "pycocoevalcap is not installed (pip install --no-deps pycocoevalcap==1.2)"
    reference = {
        name: getattr(pytest.importorskip(f"pycocoevalcap.{name}.{name}", reason=why), name.title())()
        for name in ("bleu", "rouge", "cider")
    }
    candidates, references = apart(clips)
    texts = {k: [" ".join(tokens) for tokens in group] for k, group in enumerate(references)}
    results = {k: [" ".join(tokens)] for k, tokens in enumerate(candidates)}
    options: dict[str, Any] = {"verbose": 0}
    for name, (score, per_clip), extra in (
        ("bleu", bleu(candidates, references), options),
        ("rouge", rouge_l(candidates, references), {}),
        ("cider", cider_d(candidates, references), {}),
    ):
        if name == "cider" and not any(any(group) for group in references):
            continue  # the reference's own check fails where no reference has a word
        its_score, its_clips = reference[name].compute_score(texts, results, **extra)
        np.testing.assert_allclose(score, its_score, rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(per_clip, its_clips, rtol=0, atol=1e-6, err_msg=name)


def audiocaps_test() -> list[list[list[str]]]:
    """The tokens of the five captions of each of AudioCaps' test clips."""
    clips = defaultdict(list)
    with (SHARED / "captions" / "audiocaps_test.csv").open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            clips[row["youtube_id"], row["start_time"]].append(tokenize(row["caption"]))
    return list(clips.values())


def leave_one_out(clips: list[list[list[str]]], k: int) -> Clips:
    """Caption k of each clip against its others."""
    return [(group[k], group[:k] + group[k + 1 :]) for group in clips]


# ---- tokens


@pytest.mark.parametrize(("text", "tokens"), TOKENS)
def test_tokens_are_those_that_pycocoevalcap_gave(text, tokens):
    assert tokenize(text) == tokens.split()


@needs_captions
@pytest.mark.skipif(shutil.which("java") is None, reason="java is not here")
def test_every_caption_has_the_tokens_of_pycocoevalcap(monkeypatch):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")  # one short run beside others
    why = "pycocoevalcap is not installed (pip install --no-deps pycocoevalcap==1.2)"
    reference = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer", reason=why)
    captions = []
    for path in sorted((SHARED / "captions").glob("*.csv")):
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                captions += [value for column, value in row.items() if column.startswith("caption")]
    captions = sorted(set(captions))
    assert len(captions) > 80_000
    answers = reference.PTBTokenizer().tokenize({k: [{"caption": text}] for k, text in enumerate(captions)})
    assert {text: answers[k][0] for k, text in enumerate(captions) if answers[k][0].split() != tokenize(text)} == {}


@settings(deadline=None)
@given(st.text())
@example("\U0001f415 a dog\U0001f415barks")
def test_any_text_has_tokens(text):
    for token in tokenize(text):
        assert token
        assert token not in {".", ",", "'", "-", "?", "!", ":", ";"}
        assert token.split() == [token], "no white space"


# ---- scores, against the reference


def test_bleu_is_what_pycocoevalcap_gave():
    scores, per_clip = bleu(*apart(GOLDEN))
    np.testing.assert_allclose(scores, GOLDEN_BLEU, atol=1e-10)
    np.testing.assert_allclose(per_clip, GOLDEN_BLEU_CLIPS, atol=1e-10)
    np.testing.assert_allclose(bleu(*apart(GOLDEN), orders=2)[0], GOLDEN_BLEU[:2], atol=1e-10)


@pytest.mark.parametrize(
    ("metric", "score", "per_clip"),
    [(rouge_l, GOLDEN_ROUGE, GOLDEN_ROUGE_CLIPS), (cider_d, GOLDEN_CIDER, GOLDEN_CIDER_CLIPS)],
)
def test_rouge_and_cider_are_what_pycocoevalcap_gave(metric, score, per_clip):
    found, clips = metric(*apart(GOLDEN))
    assert found == pytest.approx(score, abs=1e-10)
    np.testing.assert_allclose(clips, per_clip, atol=1e-10)


words = st.sampled_from(["a", "dog", "barks", "and", "the", "bird", "chirps", "while", "rain", "falls"])
captions = st.lists(words, max_size=12)
collections = st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=5)), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(collections)
@example(GOLDEN)
@example([([], [[]])])
@example([([], [[]]), (["a"], [["a"]])])
@example([(["a", "dog"], [["a", "dog"]] * 5)] * 3)
def test_scores_of_random_captions_are_those_of_pycocoevalcap(clips):
    assert_equals_pycocoevalcap(clips)


@needs_captions
@pytest.mark.parametrize("k", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, 5))])
def test_people_score_as_with_pycocoevalcap(k):
    assert_equals_pycocoevalcap(leave_one_out(audiocaps_test(), k))


@needs_captions
def test_what_people_score_on_audiocaps():
    """Each caption against the other four, the mean of five rounds; the numbers are pycocoevalcap's too (above)."""
    clips = audiocaps_test()
    rounds = [apart(leave_one_out(clips, k)) for k in range(5)]
    assert len(clips) == 975
    assert np.mean([cider_d(*each)[0] for each in rounds]) == pytest.approx(0.9076, abs=1e-4)
    assert np.mean([bleu(*each)[0][3] for each in rounds]) == pytest.approx(0.2905, abs=1e-4)
    assert np.mean([rouge_l(*each)[0] for each in rounds]) == pytest.approx(0.4949, abs=1e-4)


# ---- scores, closed forms and properties


def test_bleu_by_hand():
    candidate, references = (
        ["a", "a", "dog", "barks"],
        [["a", "dog", "runs", "off", "now"], ["the", "dog", "barks", "at", "him"]],
    )
    scores, per_clip = bleu([candidate], [references])
    brevity = math.exp(1 - 5 / 4)
    p1, p2 = 3 / 4, 2 / 3  # a, dog, barks, the second "a" is one too many; "a dog", "dog barks"
    np.testing.assert_allclose(scores[:2], [brevity * p1, brevity * math.sqrt(p1 * p2)], rtol=1e-8)
    np.testing.assert_allclose(scores, per_clip[:, 0])


def test_rouge_l_by_hand():
    score, _ = rouge_l([["a", "b", "c", "d"]], [[["a", "c", "x", "d", "y", "z"], ["d", "c"]]])
    precision, recall = 3 / 4, 1 / 2  # a, c, d of the first reference, of its six; one of two of the second
    assert score == pytest.approx((1 + 1.44) * precision * recall / (recall + 1.44 * precision))


def test_cider_d_by_hand():
    """Two clips, 1-grams only: every word is of one clip, so that its weight is log 2."""
    candidates = [["dog", "dog", "rain"], ["sea"]]
    references = [[["dog", "barks"]], [["sea"], ["waves"]]]
    score, per_clip = cider_d(candidates, references, orders=1)
    # (2, 1) against (1, 1) in (dog, rain | barks): clipped to 1 * 1; the candidate has one 2-gram more
    first = 10 * 1 / (math.sqrt(5) * math.sqrt(2)) * math.exp(-1 / 72)
    np.testing.assert_allclose(per_clip, [first, 5])
    assert score == pytest.approx((first + 5) / 2)


def test_a_caption_equal_to_its_only_reference_is_perfect():
    texts = [
        ["a", "dog", "barks", "at", "night"],
        ["rain", "falls", "on", "tin", "roofs"],
        ["bells", "ring", "far", "away", "today"],
    ]
    references = [[text] for text in texts]
    np.testing.assert_allclose(bleu(texts, references)[1], 1, atol=1e-8)
    np.testing.assert_allclose(rouge_l(texts, references)[1], 1)
    np.testing.assert_allclose(cider_d(texts, references)[1], 10)


def common_subsequence(a: list[str], b: list[str]) -> int:
    """The textbook's table."""
    above = [0] * (len(b) + 1)
    for x in a:
        row = [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(row[j], above[j + 1]))
        above = row
    return above[-1]


@settings(deadline=None)
@given(st.lists(words, min_size=1, max_size=80), st.lists(words, min_size=1, max_size=80))
def test_rouge_l_finds_the_longest_common_subsequence(a, b):
    share = common_subsequence(a, b)
    precision, recall = share / len(a), share / len(b)
    expected = 2.44 * precision * recall / (recall + 1.44 * precision) if share else 0
    assert rouge_l([a], [[b]])[0] == pytest.approx(expected)


@settings(deadline=None, max_examples=40)
@given(collections, st.randoms(use_true_random=False))
def test_no_score_looks_at_the_order_of_clips(clips, shuffle: random.Random):
    order = list(range(len(clips)))
    shuffle.shuffle(order)
    for metric in (bleu, rouge_l, cider_d):
        score, per_clip = metric(*apart(clips))
        again, moved = metric(*apart([clips[k] for k in order]))
        np.testing.assert_allclose(again, score, atol=1e-12)
        np.testing.assert_allclose(moved, per_clip[..., order], atol=1e-12)


def test_vocabulary_and_length():
    captions = [["a", "dog"], ["a", "dog", "barks", "a"], []]
    assert vocabulary_size(captions) == 3
    assert mean_length(captions) == 2
    with pytest.raises(ValueError, match="no captions"):
        mean_length([])


@pytest.mark.parametrize("metric", [bleu, rouge_l, cider_d])
@pytest.mark.parametrize(
    ("candidates", "references", "error", "message"),
    [
        ([["a"]], [], ValueError, "1 candidates for the references of 0 clips"),
        ([], [], ValueError, "no captions"),
        ([["a"], ["b"]], [[["a"]], []], ValueError, "clip 1: no reference"),
        (["a dog"], [[["a"]]], TypeError, r"clip 0: a text .* tokenize"),
        ([["a"]], [["a dog"]], TypeError, r"clip 0: a text .* tokenize"),
    ],
)
def test_what_does_not_belong_together_is_refused(metric, candidates, references, error, message):
    with pytest.raises(error, match=message):
        metric(candidates, references)


# ---- certainty


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_of_a_large_sample_is_the_normal_one(level):
    values = np.random.default_rng(1).gamma(2.0, size=1000)
    low, high = confidence_interval(values, level, samples=3000)
    half = NormalDist().inv_cdf((1 + level) / 2) * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.08 * half)


def test_the_interval_of_a_share_is_the_binomial_one():
    low, high = confidence_interval([1] * 30 + [0] * 70, samples=10_000)
    binomial = np.cumsum([math.comb(100, k) * 0.3**k * 0.7 ** (100 - k) for k in range(101)])
    assert abs(low * 100 - np.searchsorted(binomial, 0.025)) <= 1
    assert abs(high * 100 - np.searchsorted(binomial, 0.975)) <= 1


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    random = np.random.default_rng(2)
    held = 0
    for k in range(200):
        low, high = confidence_interval(random.normal(size=60), samples=200, seed=k)
        held += low <= 0 <= high
    assert 0.89 <= held / 200 <= 0.99


def test_intervals_of_equal_scores_and_seeds():
    assert confidence_interval([0.5] * 7) == (0.5, 0.5)
    assert confidence_interval([2.0]) == (2.0, 2.0)
    values = np.arange(20.0)
    assert confidence_interval(values, seed=3) == confidence_interval(values, seed=3)
    assert confidence_interval(values, seed=3) != confidence_interval(values, seed=4)


@pytest.mark.parametrize("effect", [0.0, 0.05, 0.1, 0.15, -0.1])
def test_the_paired_p_value_of_a_large_sample_is_that_of_the_z_test(effect):
    random = np.random.default_rng(5)
    a = random.normal(size=500)
    difference = random.normal(size=500)
    difference += effect - difference.mean()
    found, p = paired_test(a + difference, a, samples=4000)
    assert found == pytest.approx(effect, abs=1e-12)
    assert p == pytest.approx(2 * NormalDist().cdf(-abs(effect) / (difference.std() / math.sqrt(500))), abs=0.02)


def test_equal_systems_do_not_differ_and_a_constant_lead_is_no_chance():
    a = np.random.default_rng(0).normal(size=50)
    assert paired_test(a, a) == (0.0, 1.0)
    difference, p = paired_test(a + 0.25, a, samples=999)
    assert (difference, p) == (pytest.approx(0.25), 1 / 1000)


def test_the_paired_test_has_no_favourite():
    random = np.random.default_rng(4)
    a, b = random.normal(size=(2, 80))
    difference, p = paired_test(a, b, samples=500)
    assert paired_test(b, a, samples=500) == (-difference, p)


def test_without_a_difference_one_test_in_twenty_is_below_a_twentieth():
    random = np.random.default_rng(6)
    below = sum(paired_test(*random.normal(size=(2, 60)), samples=200, seed=k)[1] < 0.05 for k in range(300))
    assert 0.02 <= below / 300 <= 0.09


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0, 2.0]]])
def test_what_is_no_score_a_clip_is_refused(values):
    with pytest.raises(ValueError, match="one finite score a clip"):
        confidence_interval(values)
    with pytest.raises(ValueError, match="one finite score a clip"):
        paired_test(values, values)


def test_other_mistakes_of_certainty_are_refused():
    with pytest.raises(ValueError, match="level is 95"):
        confidence_interval([1.0], level=95)
    with pytest.raises(ValueError, match="same clips"):
        paired_test([1.0, 2.0], [1.0])
