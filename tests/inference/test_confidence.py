"""The calibrated confidence: its formula, and the fit of its curve."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamb.inference.confidence import confidence, fit_confidence


@given(st.floats(-50, 0))
def test_the_identity_gives_the_probability_itself(score):
    assert confidence(score, (0.0, 1.0)) == pytest.approx(min(max(math.exp(score), 1e-6), 1 - 1e-6), rel=1e-6)


@pytest.mark.parametrize("score", [0.0, -1e-12, -1e9, -math.inf])
def test_any_score_has_a_confidence(score):
    assert 0 <= confidence(score, (0.3, 2.0)) <= 1


def test_a_calibration_shifts_and_stretches_the_logit():
    p = confidence(math.log(0.8), (0.5, 2.0))
    assert math.log(p / (1 - p)) == pytest.approx(0.5 + 2 * math.log(4))


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
