"""Measures of labelled recordings: how many labels their captions name, and how well the confidence predicts it. [O]"""

from collections.abc import Sequence

import numpy as np

from ..data.labels import names
from ..data.manifest import Clip
from ..inference.captions import Caption


def label_scores(clips: Sequence[Clip], results: Sequence[Caption]) -> dict[str, float]:
    """Label measures of labelled clips; a clip that could not be captioned counts as not named.

    label_named: share of (clip, label) pairs where the caption names the label; calibration_error: of the confidence
    that it does; distinct_captions: how many there are.
    """
    pairs = [(result, label) for clip, result in zip(clips, results, strict=True) for label in clip.labels]
    named = [result.ok and names(result.text, label) for result, label in pairs]
    return {
        "clips": len(clips),
        "failed": sum(not result.ok for result in results),
        "label_named": sum(named) / len(named),
        "calibration_error": calibration_error([result.confidence or 0.0 for result, _ in pairs], named),
        "distinct_captions": len({result.text for result in results if result.ok}),
    }


def calibration_error(confidence: Sequence[float], named: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error: mean of |share named - mean confidence| over equal-width bins, by their clips."""
    c, y = np.asarray(confidence), np.asarray(named, dtype=float)
    bin_of = np.minimum((c * bins).astype(int), bins - 1)
    gaps = [np.abs(y[bin_of == k].mean() - c[bin_of == k].mean()) * (bin_of == k).sum() for k in set(bin_of.tolist())]
    return float(sum(gaps) / len(c))
