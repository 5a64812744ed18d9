"""The bootstrap over clips: the uncertainty of a score, and whether one system is better than another."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from .metrics import Floats

Total = Callable[[Floats], Floats]
"""A function from counts summed over clips, (..., F), to the score, (...,)."""


def _counted(per_clip: ArrayLike, of: Total | None) -> tuple[Floats, Total]:
    """What is counted in each clip, (S, F), and the score from its sums: scores (S,) count for their mean.

    Raises ValueError for anything but finite numbers of at least one clip.
    """
    values = np.asarray(per_clip, dtype=np.float64)
    if values.ndim != (1 if of is None else 2) or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"one finite score a clip is wanted; got an array of shape {values.shape} or one with nan or inf"
        )
    return (values[:, None], lambda sums: sums[..., 0] / len(values)) if of is None else (values, of)


def _resampled_sums(values: Floats, samples: int, seed: int) -> Floats:
    """Sums (samples, F) of values (S, F) that are drawn S at a time, with replacement, along the first axis."""
    random, clips = np.random.default_rng(seed), len(values)
    draws = (random.integers(0, clips, clips) for _ in range(samples))
    return np.stack([np.bincount(draw, minlength=clips) @ values for draw in draws])


def confidence_interval(
    per_clip: ArrayLike, level: float = 0.95, samples: int = 1000, seed: int = 0, of: Total | None = None
) -> tuple[float, float]:
    """Bootstrap interval (low, high) of the mean of `per_clip`, for other clips of the same kind.

    Its ends are the percentiles (1 ± level) / 2 of the means of resampled clips (Efron 1979, "Bootstrap methods:
    another look at the jackknife"). This is right for scores that are means over clips (ROUGE-L, and CIDEr-D with fixed
    document frequencies). For any other score, such as BLEU, `per_clip` holds what is counted in each clip, (S, F), and
    `of` computes the score from the sums of these counts.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; a share between 0 and 1 is wanted, such as 0.95")
    counts, score = _counted(per_clip, of)
    low, high = np.quantile(score(_resampled_sums(counts, samples, seed)), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_test(
    a: ArrayLike, b: ArrayLike, samples: int = 10_000, seed: int = 0, of: Total | None = None
) -> tuple[float, float]:
    """(difference, p): the mean of a - b over clips that both scored, and the probability of such a one by chance.

    The paired, two-sided bootstrap: the same clips are resampled for both systems, and p is the share of resampled
    differences that are at least as far from the observed difference as that is from 0. The observed one counts too
    (Efron and Tibshirani 1993, "An introduction to the bootstrap", 16.4), so p is at least 1 / (samples + 1). With
    `of`, the difference is between two scores of counts (see `confidence_interval`).
    """
    (first, score), (second, _) = (_counted(values, of) for values in (a, b))
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} and {len(second)} scores: both systems must be scored on the same clips")
    ours, theirs = np.split(_resampled_sums(np.concatenate([first, second], axis=1), samples, seed), 2, axis=1)
    observed = score(first.sum(0)) - score(second.sum(0))
    moved = score(ours) - score(theirs) - observed
    extreme = np.count_nonzero(np.abs(moved) >= np.abs(observed) * (1 - 1e-12))
    return float(observed), float((extreme + 1) / (samples + 1))
