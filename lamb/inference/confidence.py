"""The confidence of a caption: the probability that it names the main sound, from its score. [O]

    confidence = sigmoid(a + b * logit(p)),   p = exp(score)

The score is the mean log probability of the caption's tokens, so p is a probability. (a, b), `DecodeConfig.confidence`,
are fitted on labelled recordings at the end of training (Platt scaling).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..config import DecodeConfig
    from .generation import Hypothesis

EDGE = 1e-6  # p is kept this far from 0 and 1, where its logit is infinite


def confidence(score: float, calibration: tuple[float, float]) -> float:
    """The confidence, in 0-1, of a caption with this score, under the model's calibration (a, b)."""
    offset, slope = calibration
    p = min(max(math.exp(score), EDGE), 1 - EDGE)
    return 1 / (1 + math.exp(-(offset + slope * math.log(p / (1 - p)))))


def confidence_of(hypothesis: Hypothesis, options: DecodeConfig) -> float:
    """The confidence of a hypothesis, from its sounds if they were weighed, and otherwise from its score."""
    if hypothesis.confidence is not None:
        return hypothesis.confidence
    return confidence(hypothesis.score, options.confidence)


def fit_confidence(scores: Sequence[float], named: Sequence[bool]) -> tuple[float, float]:
    """The calibration (a, b) that fits the scores of captions and whether each names its label."""
    p = np.clip(np.exp(np.asarray(scores, dtype=float)), EDGE, 1 - EDGE)
    a, b = logistic(np.stack([np.ones_like(p), np.log(p / (1 - p))], 1), np.asarray(named), np.array([0.0, 1.0]))
    return float(a), float(b)


def logistic(x: NDArray[np.float64], y: NDArray[np.bool_], prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logistic regression of y (n,) on x (n, k): the weights (k,).

    Newton's method, where a step that overshoots is halved until the cost falls. A weak prior keeps the fit finite if x
    separates the two groups perfectly.
    """
    right = np.asarray(y, dtype=float)

    def cost(w: NDArray[np.float64]) -> float:
        return float(np.logaddexp(0, x @ w).sum() - right @ (x @ w) + 0.05 * np.square(w - prior).sum())

    w = prior.copy()
    for _ in range(50):
        q = 0.5 + 0.5 * np.tanh(x @ w / 2)  # sigmoid
        gradient = x.T @ (q - right) + 0.1 * (w - prior)
        step = np.linalg.solve((x * (q * (1 - q))[:, None]).T @ x + 0.1 * np.eye(len(prior)), gradient)
        while cost(w - step) > cost(w) and np.abs(step).max() > 1e-9:
            step /= 2
        w -= step
    return w
