"""What a caption names, and the measures by hand."""

import math

import numpy as np
import pytest

from lamb.data.manifest import Clip
from lamb.data.vocabulary import VOCABULARY, names
from lamb.evaluation.labels import auroc, calibration_error, fit_confidence, label_scores
from lamb.inference.captions import Caption


@pytest.mark.parametrize(
    ("caption", "label"),
    [
        ("A DOG barks.", "dog"),
        ("Barking in the distance.", "dog"),
        ("A rooster crows, then a crow caws.", "crow"),
        ("Crows caw.", "crow"),
        ("A female speaks.", "woman_speaking"),
        ("An adult male speaks.", "man_speaking"),
        ("A car honks.", "car_horn"),
        ("Someone opens a can.", "can_opening"),
        ("A soda can pops open.", "can_opening"),
        ("Water pours into a glass.", "pouring_water"),
        ("The sound of water being poured.", "pouring_water"),
        ("A glass shatters.", "glass_breaking"),
        ("Raindrops fall.", "rain"),
        ("Gunshots are fired.", "gun_shot"),
        ("A man types on a keyboard.", "keyboard_typing"),
        ("Pigs squeal.", "pig"),
        ("Someone is snoring.", "snoring"),
        ("A washing machine spins.", "washing_machine"),
    ],
)
def test_names(caption, label):
    assert names(caption, label)


@pytest.mark.parametrize(
    ("caption", "label"),
    [
        ("A rooster crows.", "crow"),
        ("Roosters crow.", "crow"),
        ("Crickets chirp.", "chirping_birds"),
        ("A female speaks.", "man_speaking"),
        ("A woman and women talk.", "man_speaking"),
        ("A human voice.", "man_speaking"),
        ("Cattle low.", "cat"),
        ("Birds can be heard.", "can_opening"),
        ("A brain wave.", "rain"),
        ("A train passes.", "rain"),
        ("People train outside.", "rain"),
        ("A trainer shouts.", "train"),
        ("Pigeons coo.", "pig"),
        ("The moon is full.", "cow"),
        ("A horse snorts.", "snoring"),
        ("Some type of engine runs.", "keyboard_typing"),
        ("A man talks on a walkie-talkie.", "footsteps"),
        ("A man drops a box.", "water_drops"),
        ("Rain pours down.", "pouring_water"),
        ("Water drips.", "pouring_water"),
        ("A glass of water.", "glass_breaking"),
        ("A seal splashes.", "sea_waves"),
        ("Someone drinks from a can.", "drilling"),
        ("When it is late.", "hen"),
        ("A windy day.", "wind"),
        ("", "dog"),
    ],
)
def test_does_not_name(caption, label):
    assert not names(caption, label)


def test_every_label_has_words():
    for entry in VOCABULARY.values():
        assert entry.words
        assert all(word == word.lower().strip() and "*" not in word[:-1] for word in entry.words)


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


def test_fit_confidence_finds_the_curve_that_made_the_data():
    rng = np.random.default_rng(0)
    scores = np.log(rng.uniform(0.05, 0.95, 4000))
    p = np.exp(scores)
    named = rng.random(4000) < 1 / (1 + np.exp(-(0.7 + 1.8 * np.log(p / (1 - p)))))
    assert fit_confidence(scores.tolist(), named.tolist()) == pytest.approx((0.7, 1.8), abs=0.2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("scores", "named"),
    [
        ([], []),
        ([0.0] * 5, [False] * 5),
        ([-0.01] * 300, [False] * 300),
        ([-9.0] * 50, [True] * 50),
        ([-1e-7] * 20 + [-3.0] * 20, [False] * 20 + [True] * 20),
        ([-0.1] * 20 + [-3.0] * 20, [True] * 20 + [False] * 20),
    ],
)
def test_fit_confidence_is_finite_and_fits(scores, named):
    a, b = fit_confidence(scores, named)
    assert math.isfinite(a + b)
    for score, right in zip(scores, named, strict=True):
        p = min(max(math.exp(score), 1e-6), 1 - 1e-6)
        assert (a + b * math.log(p / (1 - p)) > 0) == right
    if not scores:
        assert (a, b) == (0, 1)
