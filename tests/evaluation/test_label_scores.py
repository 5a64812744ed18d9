"""Measures of labelled recordings on captions whose numbers are known."""

import pytest

from lamb.data.manifest import Clip
from lamb.evaluation.labels import auroc, calibration_error, label_scores
from lamb.inference.captions import Caption


def clip(name: str, *labels: str) -> Clip:
    return Clip(name, f"{name}.wav", labels=labels)


def test_label_scores():
    clips = [clip("a", "dog"), clip("b", "rain", "wind"), clip("c", "cow"), clip("d", "cat")]
    results = [
        Caption("a.wav", text="A dog barks.", confidence=0.9),
        Caption("b.wav", text="Rain falls.", confidence=0.5),
        Caption("c.wav", text="A dog barks.", confidence=0.3),
        Caption("d.wav", error="not a sound"),
    ]
    scores = label_scores(clips, results)
    assert scores == {
        "clips": 4,
        "failed": 1,
        "label_named": 2 / 5,  # dog and rain, of dog, rain, wind, cow, cat
        "clean": 1 / 4,  # dog; rain without wind is not
        "extra": 1 / 4,  # a dog where there is a cow
        # bins: 0.9 {1}, 0.5 {0}, 0.3 {0}, 0.0 {0}
        "calibration_error": pytest.approx((0.1 + 0.5 + 0.3 + 0.0) / 4),
        "auroc": 1.0,
        "distinct_captions": 2,
    }
    with pytest.raises(ValueError, match="zip"):
        label_scores(clips, results[:2])


def test_kinds_that_no_model_is_trained_on():
    clips = [clip(name, "gorilla") for name in "abcd"]
    results = [
        Caption("a.wav", text="An animal calls.", confidence=0.9),
        Caption("b.wav", text="A dog barks.", confidence=0.9),
        Caption("c.wav", text="A dog barks.", confidence=0.2),
        Caption("d.wav", text="An animal calls, then a dog barks.", confidence=0.6),
    ]
    scores = label_scores(clips, results)
    assert scores["unheard_fair"] == 0.5
    assert "label_named" not in scores


def test_auroc():
    assert auroc([0.1, 0.4, 0.8], [False, False, True]) == 1
    assert auroc([0.1, 0.4, 0.8], [True, False, False]) == 0
    assert auroc([0.5, 0.5, 0.9], [True, False, False]) == 0.25
    assert auroc([0.5, 0.7], [True, True]) == 0.5


def test_calibration_error():
    assert calibration_error([0.0, 1.0], [False, True]) == 0
    assert calibration_error([1.0, 1.0], [False, False]) == 1
    assert calibration_error([0.25, 0.25, 0.25, 0.25], [True, False, False, False]) == pytest.approx(0)
    assert calibration_error([0.61, 0.69], [True, False]) == pytest.approx(0.15)
