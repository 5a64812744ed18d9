"""The measures of labelled recordings: what a caption names of what is there, and how sure of it the model was. [O]

A caption names a label if it contains one of its words. It is clean if it names all labels of its clip and no other
kind of sound; `lamb.data.vocabulary.akin` tells another kind from another word for the same. Clips of kinds that no
model is trained on (labels without phrases in the vocabulary) have a measure of their own.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ..data.manifest import Clip
from ..data.vocabulary import PHRASES, VOCABULARY, extra, is_clean, names
from ..inference.captions import Caption
from .metrics import Floats
from .scores import Measure, mean, ratio

SURE = 0.5  # above this confidence a caption counts as an assertion


def label_scores(clips: Sequence[Clip], results: Sequence[Caption]) -> dict[str, float]:
    """Label measures of labelled clips. A clip that could not be captioned counts as neither named nor clean.

    Over the clips whose labels a model may know:
    label_named: share of (clip, label) pairs in which the caption names the label.
    clean: share of clips whose caption names their labels and no other kind.
    extra: mean number of sounds that a caption names although they are not there.

    Over the clips with other labels:
    unheard_fair: share of captions that name nothing that is not there, or whose confidence is at most 0.5. An upper
    class of what is there is never wrong.

    Over all clips:
    calibration_error, auroc: of the confidence, as the probability that the caption is clean.
    distinct_captions: number of different captions.
    """
    scores: dict[str, float] = {"clips": len(clips), "failed": sum(not result.ok for result in results)}
    scores |= {name: measure.value for name, measure in label_measures(clips, results).items()}
    pairs = list(zip(clips, results, strict=True))
    if unheard := [pair for pair in pairs if _is_unheard(pair[0])]:
        fair = [not extra(r.text, clip.labels) or (r.confidence or 0.0) <= SURE for clip, r in unheard]
        scores["unheard_fair"] = float(np.mean(fair))
    confidence = [result.confidence or 0.0 for result in results]
    right = [_is_right(clip, result) for clip, result in pairs]
    scores["calibration_error"] = calibration_error(confidence, right)
    scores["auroc"] = auroc(confidence, right)
    scores["distinct_captions"] = len({result.text for result in results if result.ok})
    return scores


def label_measures(clips: Sequence[Clip], results: Sequence[Caption]) -> dict[str, Measure]:
    """label_named, clean and extra with their scores per clip; empty if no label is one that a model may know."""
    known = [bool(clip.labels) and not _is_unheard(clip) for clip in clips]
    if not any(known):
        return {}

    def of_each(score: Callable[[Clip, Caption], float], other: float = np.nan) -> Floats:
        """The score of each clip, (S,); `other` for a clip whose labels no model may know."""
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
    """Whether a caption is clean: it names the labels of its clip and no other kind."""
    return result.ok and is_clean(result.text, clip.labels)


def calibration_error(confidence: Sequence[float], named: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error: |share named - mean confidence| of equal-width bins, weighted by their clips."""
    c, y = np.asarray(confidence), np.asarray(named, dtype=float)
    bin_of = np.minimum((c * bins).astype(int), bins - 1)
    gaps = [np.abs(y[bin_of == k].mean() - c[bin_of == k].mean()) * (bin_of == k).sum() for k in set(bin_of.tolist())]
    return float(sum(gaps) / len(c))


def auroc(confidence: Sequence[float], right: Sequence[bool]) -> float:
    """Area under the ROC curve: the probability that a right caption has a higher confidence than a wrong one.

    Equal confidences count as one half. The result is 0.5 if all captions are right or all are wrong.
    """
    c, y = np.asarray(confidence, dtype=float), np.asarray(right, dtype=bool)
    if y.all() or not y.any():
        return 0.5
    higher = c[y][:, None] > c[~y][None]
    equal = c[y][:, None] == c[~y][None]
    return float((higher + 0.5 * equal).mean())
