"""The measures of labelled recordings: what a caption names of what is there, and how sure of it the model was. [O]

A caption names a label when it holds one of its words. It is clean when it names all labels of its clip and no other
kind; `lamb.data.vocabulary.akin` tells what is another kind, and what only another word for the same. Clips of kinds
that no model is trained on (labels without phrases in the vocabulary) have a measure of their own.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ..data.manifest import Clip
from ..data.vocabulary import PHRASES, VOCABULARY, extra, is_clean, names
from ..inference.captions import Caption
from .metrics import Floats
from .scores import Measure, mean, ratio

SURE = 0.5  # a confidence above it stands for what is said


def label_scores(clips: Sequence[Clip], results: Sequence[Caption]) -> dict[str, float]:
    """Label measures of labelled clips; a clip that could not be captioned counts as not named, and not clean.

    Of the clips whose labels a model may know:
    label_named: share of (clip, label) pairs where the caption names the label.
    clean: share of clips whose caption names their labels and no other kind.
    extra: how many sounds that are not there a caption names, in the mean.

    Of the clips with other labels:
    unheard_fair: share where nothing is named that is not there, or with a confidence of at most 0.5; the upper classes
    of what is there are never wrong.

    Of all clips:
    calibration_error, auroc: of the confidence as that of a clean caption.
    distinct_captions: how many there are.
    """
    scores: dict[str, float] = {"clips": len(clips), "failed": sum(not result.ok for result in results)}
    scores |= {name: measure.value for name, measure in label_measures(clips, results).items()}
    pairs = list(zip(clips, results, strict=True))
    if unheard := [_fair(clip, result) for clip, result in pairs if _is_unheard(clip)]:
        scores["unheard_fair"] = float(np.mean(unheard))
    confidence = [result.confidence or 0.0 for result in results]
    right = [_is_right(clip, result) for clip, result in pairs]
    scores["calibration_error"] = calibration_error(confidence, right)
    scores["auroc"] = auroc(confidence, right)
    scores["distinct_captions"] = len({result.text for result in results if result.ok})
    return scores


def label_measures(clips: Sequence[Clip], results: Sequence[Caption]) -> dict[str, Measure]:
    """label_named, clean and extra, with the score of every clip whose labels a model may know; empty without any."""
    known = [bool(clip.labels) and not _is_unheard(clip) for clip in clips]
    if not any(known):
        return {}

    def of_each(score: Callable[[Clip, Caption], float], other: float = np.nan) -> Floats:
        """(S,): the score of each clip, `other` for those whose labels no model may know."""
        pairs = zip(clips, results, known, strict=True)
        return np.array([score(clip, result) if there else other for clip, result, there in pairs], dtype=float)

    named = of_each(lambda clip, result: sum(result.ok and names(result.text, label) for label in clip.labels), 0)
    return {
        "label_named": ratio(named, of_each(lambda clip, _: len(clip.labels), 0)),
        "clean": mean(of_each(_is_right)),
        "extra": mean(of_each(lambda clip, result: extra(result.text, clip.labels))),
    }


def _is_unheard(clip: Clip) -> bool:
    """Whether the clip is of a kind that no model is trained on."""
    return any(label in VOCABULARY and label not in PHRASES and label != "silence" for label in clip.labels)


def _is_right(clip: Clip, result: Caption) -> bool:
    """Whether a caption is clean: it names the labels of its clip, and no other kind."""
    return result.ok and is_clean(result.text, clip.labels)


def _fair(clip: Clip, result: Caption) -> bool:
    return not extra(result.text, clip.labels) or (result.confidence or 0.0) <= SURE


def calibration_error(confidence: Sequence[float], named: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error: mean of |share named - mean confidence| over equal-width bins, by their clips."""
    c, y = np.asarray(confidence), np.asarray(named, dtype=float)
    bin_of = np.minimum((c * bins).astype(int), bins - 1)
    gaps = [np.abs(y[bin_of == k].mean() - c[bin_of == k].mean()) * (bin_of == k).sum() for k in set(bin_of.tolist())]
    return float(sum(gaps) / len(c))


def auroc(confidence: Sequence[float], right: Sequence[bool]) -> float:
    """Area under the receiver operating characteristic: how likely a right one has a higher confidence than a wrong
    one, of equal ones half; 0.5 where all are right, or wrong."""
    c, y = np.asarray(confidence, dtype=float), np.asarray(right, dtype=bool)
    if y.all() or not y.any():
        return 0.5
    higher = c[y][:, None] > c[~y][None]
    equal = c[y][:, None] == c[~y][None]
    return float((higher + 0.5 * equal).mean())
