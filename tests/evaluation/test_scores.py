"""All scores of an evaluation: put together from parts, with what is missing left out and told."""

import importlib.util
import shutil

import numpy as np
import pytest
from conftest import needs_captions
from test_metrics import apart, audiocaps_test, leave_one_out

from lamb.evaluation import fense, metrics, scores
from lamb.evaluation import reference_metrics as reference
from lamb.evaluation.bootstrap import confidence_interval
from lamb.evaluation.resources import Unavailable
from lamb.evaluation.scores import Round, averaged, mean, ratio, score
from lamb.evaluation.tokenizer import tokenize

PTB_TOKENIZE = reference.ptb_tokenize

ROUND = Round(
    ["A dog barks.", "", "Rain falls on a roof.", "A man speaks"],
    [["A dog barks.", "A dog is barking"], ["An engine idles"], ["Rain falls."], ["A man speaks", "Somebody talks"]],
)


@pytest.fixture
def nothing_installed(monkeypatch):
    """No Java, no models."""

    def missing(*given):
        raise Unavailable("it is not here", "lamb evaluate --download")

    for module, names in ((reference, ("ptb_tokenize", "meteor", "spice")), (fense, ("Sentences", "FluencyDetector"))):
        for name in names:
            monkeypatch.setattr(module, name, missing)


def test_without_java_the_scores_are_ours_and_it_is_said(nothing_installed):
    done = score([ROUND])
    (found,) = done.rounds
    tokens = [tokenize(text) for text in ROUND.candidates]
    references = [[tokenize(text) for text in group] for group in ROUND.references]
    bleu, bleus = metrics.bleu(tokens, references)
    for n in range(4):
        assert found[f"bleu_{n + 1}"].value == bleu[n]
        np.testing.assert_array_equal(found[f"bleu_{n + 1}"].per_clip, bleus[n])
    assert found["rouge_l"].value == pytest.approx(metrics.rouge_l(tokens, references)[0])
    assert found["cider_d"].value == pytest.approx(metrics.cider_d(tokens, references)[0])
    assert (found["vocabulary"].value, found["length"].value) == (9, 11 / 4)
    assert list(done.left_out) == ["meteor", "spice", "spider", "spider_fl", "fense", "sbert", "fluency_errors"]
    assert set(done.left_out.values()) == {"it is not here; lamb evaluate --download"}
    assert "lamb's own tokenizer" in done.notes[0]


def test_spider_fense_and_their_fluency(nothing_installed, monkeypatch):
    """By their formulas, from parts with known scores."""
    spice, similarity, p = np.array([0.4, 0.0, 0.2, 0.5]), np.array([1.0, 0.0, 0.8, 0.6]), {"rain": 0.95, "a man": 0.9}

    class Sentences:
        def __init__(self, name):
            assert name == "mine"

        def similarity(self, rounds):
            return [similarity for _ in rounds]

    class Detector:
        def probability(self, texts):
            return np.array([max((v for k, v in p.items() if text.startswith(k)), default=0.1) for text in texts])

    monkeypatch.setattr(reference, "spice", lambda rounds: [spice for _ in rounds])
    monkeypatch.setattr(fense, "Sentences", Sentences)
    monkeypatch.setattr(fense, "FluencyDetector", Detector)
    done = score([ROUND, ROUND], "mine")
    found = done.rounds[1]
    assert list(done.left_out) == ["meteor"]
    assert "are of mine, not of paraphrase-TinyBERT-L6-v2" in done.notes[1]
    assert list(found) == [name for name in scores.NAMES if name != "meteor"]
    kept = np.array([1, 1, 0.1, 1])  # 0.9 itself is not above the threshold
    cider = found["cider_d"].per_clip
    for name, expected in {
        "spice": spice,
        "spider": (cider + spice) / 2,
        "spider_fl": (cider + spice) / 2 * kept,
        "sbert": similarity,
        "fense": similarity * kept,
        "fluency_errors": np.array([0, 0, 1, 0]),
    }.items():
        np.testing.assert_allclose(found[name].per_clip, expected, err_msg=name)
        assert found[name].value == pytest.approx(expected.mean()), name


def test_sbert_without_the_detector_is_there(nothing_installed, monkeypatch):
    class Sentences:
        def __init__(self, name):
            pass

        def similarity(self, rounds):
            return [np.ones(4)]

    monkeypatch.setattr(fense, "Sentences", Sentences)
    done = score([ROUND])
    assert done.rounds[0]["sbert"].value == 1.0
    assert "fense" in done.left_out
    assert "sbert" not in done.left_out


@pytest.mark.parametrize("bad", [Round([], []), Round(["a"], [[]])])
def test_nothing_to_score(bad):
    with pytest.raises(ValueError, match="nothing to score, or a clip without a reference"):
        score([bad])


def test_intervals_of_means_and_of_bleu(nothing_installed):
    """A mean's interval is that of its clips; that of BLEU is of resampled counts, around BLEU itself."""
    random = np.random.default_rng(0)
    words = ["a", "dog", "barks", "and", "then", "rain", "falls", "while", "the", "man", "speaks"]
    texts = [" ".join(random.choice(words, 6)) for _ in range(120)]
    candidates, rest = texts[:40], texts[40:]
    (found,) = score([Round(candidates, [rest[2 * k : 2 * k + 2] for k in range(40)])]).rounds
    for name in ("rouge_l", "cider_d", "length"):
        assert found[name].interval == pytest.approx(confidence_interval(found[name].per_clip), rel=1e-9)
    for name in ("bleu_1", "bleu_2"):
        low, high = found[name].interval
        assert low < found[name].value < high
        assert high - low < 0.3
    assert found["vocabulary"].interval is None


def test_ratio_and_mean_skip_what_is_not_there():
    assert mean(np.array([1.0, np.nan, 0.0])).value == 0.5
    assert ratio(np.array([1.0, 0.0]), np.array([1.0, 3.0])).value == 0.25
    low, high = mean(np.array([1.0, np.nan, 1.0, np.nan] * 9)).interval
    assert (low, high) == (1.0, 1.0), "a draw has fewer clips, not zeros"


def test_averaged_over_rounds():
    """Round 0 has clips 0, 1, 2; round 1 only clip 2, and weighs a third as much."""
    rounds = [{"x": mean(np.array([0.0, 0.3, 0.6]))}, {"x": mean(np.array([0.9]))}]
    found = averaged(rounds, [[0, 1, 2], [2]], 4)["x"]
    assert found.value == pytest.approx(0.75 * 0.3 + 0.25 * 0.9)
    np.testing.assert_allclose(found.per_clip, [0.0, 0.3, 0.75, np.nan])
    assert found.of(found.counts.sum(0)) == pytest.approx(found.value)


@needs_captions
@pytest.mark.skipif(
    not (shutil.which("java") and importlib.util.find_spec("pycocoevalcap")), reason="no java, or no pycocoevalcap"
)
def test_scores_are_the_same_by_either_tokenizer(nothing_installed, monkeypatch):
    candidates, references = apart(leave_one_out(audiocaps_test()[:200], 1))
    texts = [" ".join(tokens) for tokens in candidates], [[" ".join(tokens) for tokens in g] for g in references]
    ours = score([Round(*texts)])
    monkeypatch.setattr(reference, "ptb_tokenize", PTB_TOKENIZE)
    theirs = score([Round(*texts)])
    assert (len(ours.notes), theirs.notes) == (1, [])
    for name, measure in ours.rounds[0].items():
        assert measure.value == pytest.approx(theirs.rounds[0][name].value, abs=1e-6), name
