"""The answers to declared questions: from differences with known means, and where they say nothing."""

import numpy as np
import pytest

from lamb.config import ContrastsConfig
from lamb.training.contrasts import answer, markdown

TOKENS = np.full(300, 10.0)


def differences(mean: float, clip: float, seed: float, seeds: int = 5) -> np.ndarray:
    """Nats of each clip: `mean` a token, with deviations between clips and between seeds, a token."""
    rng = np.random.default_rng(0)
    of_seeds = rng.normal(0, 1, seeds)
    of_seeds = seed * (of_seeds - of_seeds.mean()) / of_seeds.std()
    of_clips = rng.normal(0, 1, (seeds, 300))
    of_clips = clip * (of_clips - of_clips.mean()) / of_clips.std()
    return 10 * (mean + of_seeds[:, None] + of_clips)


@pytest.mark.parametrize(
    ("mean", "clip", "seed", "verdict"),
    [
        (0.1, 0.3, 0.02, "worse"),
        (-0.1, 0.3, 0.02, "better"),
        (0.0, 0.05, 0.002, "no difference"),
        (0.0, 0.3, 0.1, "not resolved"),
        (0.05, 0.3, 0.1, "not resolved"),
    ],
)
def test_answers(mean, clip, seed, verdict):
    found = answer(differences(mean, clip, seed), TOKENS, margin=0.02, questions=3)
    assert found["answer"] == verdict
    assert found["mean"] == pytest.approx(mean, abs=1e-12)
    assert found["low"] < mean < found["high"]


def test_more_questions_and_seeds_that_differ_widen_the_interval():
    one, three = (answer(differences(0.1, 0.3, 0.05), TOKENS, 0.02, questions) for questions in (1, 3))
    calm = answer(differences(0.1, 0.3, 0.0), TOKENS, 0.02, 1)
    width = [found["high"] - found["low"] for found in (calm, one, three)]
    assert width == sorted(width)
    # of pure noise, drawing seeds and clips overstates the standard error of the mean, by up to sqrt(3)
    assert 1 < width[0] / (2 * 1.96 * 0.3 / (5 * 300) ** 0.5) < 3**0.5


def test_a_clip_counts_by_its_tokens():
    tokens = np.array([1.0, 9.0])
    found = answer(np.array([[1.0, 0.0], [1.0, 0.0]]), tokens, 0.02, 1)
    assert found["mean"] == pytest.approx(0.1)


def test_the_table():
    asked = ContrastsConfig(rows={"aligner": "unaligned", "guide": "unguided"}, against="full")
    found = {"aligner": answer(differences(0.1, 0.3, 0.02), TOKENS, 0.02, 2)}
    lines = markdown(asked, found).splitlines()
    assert "97.5 % interval" in lines[2]
    assert lines[4].startswith("| aligner | 5 | +0.1000 [+0.0")
    assert lines[4].endswith("| worse |")
    assert lines[5] == "| guide | – | – | too few runs |"
