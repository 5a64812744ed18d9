"""Scores: equal to pycocoevalcap where it is installed, and to numbers it gave where it is not; properties.

The reference is not among the dependencies. To compare: .venv/bin/python -m pip install --no-deps pycocoevalcap==1.2
(104 MB). Without it these tests are skipped.
"""

import csv
import math
import random
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from conftest import SHARED, needs_captions
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lamb.evaluation.metrics import bleu, cider_d, rouge_l, vocabulary_size
from lamb.evaluation.tokenizer import tokenize

Clips = list[tuple[list[str], list[list[str]]]]

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


def test_vocabulary_size():
    captions = [["a", "dog"], ["a", "dog", "barks", "a"], []]
    assert vocabulary_size(captions) == 3


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
