"""All caption scores of one evaluation. A score whose program or model is missing is left out, with the remedy.

A round has one candidate per clip and its references. An evaluation has one round per system, or several where human
captions are compared with each other. Captions are tokenised, embedded and passed to Java once for all rounds.

Letters: S clips, F counts of a clip.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from . import fense, metrics
from . import reference_metrics as reference
from .bootstrap import Total, confidence_interval
from .metrics import Floats
from .resources import SBERT, Unavailable
from .tokenizer import tokenize

NAMES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "cider_d": "CIDEr-D",
    "spice": "SPICE",
    "spider": "SPIDEr",
    "spider_fl": "SPIDEr-FL",
    "fense": "FENSE",
    "sbert": "SBERT similarity",
    "fluency_errors": "captions with a fluency error",
    "vocabulary": "words in use",
    "length": "words a caption",
}
"""The measures, in the order of the tables."""


@dataclass(frozen=True)
class Measure:
    """One score of one system: over all clips, for each clip, and the counts from which it is computed."""

    value: float
    per_clip: Floats | None = None  # (S,); nan for a clip without a score
    counts: Floats | None = None  # (S, F), to be summed over clips
    of: Total | None = None  # the score from those sums

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval by the bootstrap over clips; None for a score that has no counts per clip."""
        if self.counts is None:
            return None
        return confidence_interval(self.counts, of=self.of)


def mean(values: Floats) -> Measure:
    """The mean of the scores of the clips; nan stands for a clip without a score."""
    there = np.isfinite(values)
    return ratio(np.where(there, values, 0.0), there.astype(float))


def ratio(part: Floats, whole: Floats) -> Measure:
    """A score that is one sum over clips divided by another; a clip with a `whole` of 0 has no score of its own."""
    of = lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1e-12)
    per_clip = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return Measure(float(part.sum() / whole.sum()), per_clip, np.stack([part, whole], axis=1), of)


@dataclass(frozen=True)
class Round:
    """Captions that are scored together: one candidate per clip, which may be empty, and at least one reference."""

    candidates: Sequence[str]
    references: Sequence[Sequence[str]]


@dataclass
class Scored:
    """The measures of each round, the reasons for those left out, and notes on how the others were computed."""

    rounds: list[dict[str, Measure]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, measures: Sequence[Measure]) -> None:
        """Add a measure: one value per round."""
        for found, measure in zip(self.rounds, measures, strict=True):
            found[name] = measure

    def try_to(self, names: Sequence[str], work: Callable[[], Any]) -> Any:
        """The result of `work`, or None if something that it needs is missing; then `names` are left out."""
        try:
            return work()
        except Unavailable as error:
            self.left_out.update(dict.fromkeys(names, str(error)))
            return None


def score(rounds: Sequence[Round], sbert: str = SBERT) -> Scored:
    """All scores that can be computed on this machine; `sbert` is the sentence model of SBERT similarity and FENSE.

    A caption without words scores 0 everywhere. Raises ValueError for a round without clips or references.
    """
    for k, one in enumerate(rounds):
        if not one.candidates or not all(one.references):
            raise ValueError(f"round {k}: nothing to score, or a clip without a reference")
    done = Scored([{} for _ in rounds])
    tokens = _tokenize(rounds, done)
    plain = [_joined(one, tokens) for one in rounds]
    with ThreadPoolExecutor(1) as pool:  # METEOR is a process that runs beside what follows
        meteors = pool.submit(done.try_to, ["meteor"], lambda: reference.meteor(plain))
        _words(plain, done)
        similarity = done.try_to(["sbert", "fense"], lambda: fense.Sentences(sbert).similarity(plain))
        detector = done.try_to(["fluency_errors", "spider_fl", "fense"], fense.FluencyDetector)
        if (found := meteors.result()) is not None:
            done.add("meteor", [Measure(m.score, m.per_clip, m.counts, reference.meteor_of) for m in found])
    spices = done.try_to(["spice", "spider", "spider_fl"], lambda: reference.spice(plain))
    if sbert != SBERT and similarity is not None:
        done.notes.append(f"SBERT similarity and FENSE are of {sbert}, not of {SBERT} as in publications")
    errors = None
    if detector is not None:
        texts = sorted({text for candidates, _ in plain for text in candidates})
        likely = dict(zip(texts, detector.probability(texts) > fense.THRESHOLD, strict=True))
        errors = [np.array([float(likely[text]) for text in candidates]) for candidates, _ in plain]
    _combine(done, spices, similarity, errors)
    done.rounds = [{name: found[name] for name in NAMES if name in found} for found in done.rounds]
    done.left_out = {name: done.left_out[name] for name in NAMES if name in done.left_out}
    return done


def _combine(
    done: Scored, spices: list[Floats] | None, similarity: list[Floats] | None, errors: list[Floats] | None
) -> None:
    """SPIDEr = (CIDEr-D + SPICE) / 2 (Liu et al. 2017); an error costs 90 % of SPIDEr-FL and of FENSE."""
    for k, found in enumerate(done.rounds):
        scores: dict[str, Floats] = {}
        if similarity is not None:
            scores["sbert"] = similarity[k]
        if spices is not None:
            cider = found["cider_d"].per_clip
            assert cider is not None
            scores |= {"spice": spices[k], "spider": (cider + spices[k]) / 2}
        if errors is not None:
            scores["fluency_errors"] = errors[k]
            for base, penalised in (("sbert", "fense"), ("spider", "spider_fl")):
                if base in scores:
                    scores[penalised] = scores[base] * (1 - fense.PENALTY * errors[k])
        found.update({name: mean(values) for name, values in scores.items()})


def _tokenize(rounds: Sequence[Round], done: Scored) -> dict[str, list[str]]:
    """The tokens of every caption by the PTB tokenizer, or by our own where there is no Java."""
    texts = sorted({text for one in rounds for group in (one.candidates, *one.references) for text in group})
    try:
        return dict(zip(texts, reference.ptb_tokenize(texts), strict=True))
    except Unavailable as error:
        done.notes.append(f"tokens by lamb's own tokenizer, as the PTB tokenizer is not here: {error}")
        return {text: tokenize(text) for text in texts}


def _joined(one: Round, tokens: dict[str, list[str]]) -> reference.Round:
    candidates = [" ".join(tokens[text]) for text in one.candidates]
    return candidates, [[" ".join(tokens[text]) for text in group] for group in one.references]


def _words(plain: Sequence[reference.Round], done: Scored) -> None:
    """BLEU, ROUGE-L and CIDEr-D, vocabulary and length."""
    for found, (candidates, references) in zip(done.rounds, plain, strict=True):
        words = [text.split() for text in candidates], [[text.split() for text in group] for group in references]
        counts = metrics.bleu_counts(*words)
        bleu, bleus = metrics.bleu_of(counts.sum(0)), metrics.bleu_of(counts)  # (4,), (S, 4)
        for n in range(4):
            found[f"bleu_{n + 1}"] = Measure(float(bleu[n]), bleus[:, n], counts, _bleu_total(n))
        found["rouge_l"], found["cider_d"] = mean(metrics.rouge_l(*words)[1]), mean(metrics.cider_d(*words)[1])
        found["vocabulary"] = Measure(metrics.vocabulary_size(words[0]))
        found["length"] = mean(np.array([len(tokens) for tokens in words[0]], dtype=float))


def _bleu_total(n: int) -> Total:
    return lambda sums: metrics.bleu_of(sums)[..., n]


def averaged(rounds: Sequence[dict[str, Measure]], places: Sequence[Sequence[int]], clips: int) -> dict[str, Measure]:
    """The mean over rounds, weighted by their numbers of clips.

    Round k scored the clips with the numbers places[k], out of as many as `clips`.
    """
    weight = np.array([len(place) for place in places]) / sum(map(len, places))
    found = {}
    for name in rounds[0]:
        measures = [one[name] for one in rounds]
        value = float(weight @ [measure.value for measure in measures]) if len(rounds) > 1 else measures[0].value
        if measures[0].counts is None:
            found[name] = Measure(value)
            continue
        blocks, per_clip = [], np.full((len(rounds), clips), np.nan)
        for k, (measure, place) in enumerate(zip(measures, places, strict=True)):
            assert measure.counts is not None
            assert measure.per_clip is not None
            block = np.zeros((clips, measure.counts.shape[1]))
            block[list(place)] = measure.counts
            blocks.append(block)
            per_clip[k, list(place)] = measure.per_clip
        there = np.isfinite(per_clip)
        sums, times = np.where(there, per_clip, 0).sum(0), there.sum(0)
        means = np.divide(sums, times, out=np.full(clips, np.nan), where=times > 0)
        found[name] = Measure(value, means, np.concatenate(blocks, axis=1), _mean_of(measures, weight))
    return found


def _mean_of(measures: Sequence[Measure], weight: Floats) -> Total:
    def total(sums: Floats) -> Floats:
        parts = np.split(sums, len(measures), axis=-1)
        of = [measure.of(part) for measure, part in zip(measures, parts, strict=True) if measure.of]
        return np.tensordot(weight, np.stack(of), axes=1)

    return total
