"""Intervals and paired tests: against the normal and binomial distribution, and their coverage."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from lamb.evaluation.bootstrap import confidence_interval, paired_test


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
