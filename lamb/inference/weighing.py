"""The choice among candidate captions: every sound that a candidate names is weighed on its own. [O]

Beam search finds likely sentences, but a small language model completes them with sounds that are not there, and names
one sound twice. Therefore the candidates are the beams and their beginnings up to another sound ("A dog barks while
rain falls." also gives "A dog barks."). Further sentences are offered: the kinds of sound that are the most probable by
the label heads of the encoder, each alone and two of them together, and the upper classes. Each sound that a candidate
names gets a confidence from the label heads and from the language model:

    c = sigmoid(w . [1, logit p_clip, logit p_frame, logit p_text, upper, later])

    p_clip    probability by the clip head of the labels for which the words stand (for an upper class, of all below it)
    p_frame   highest probability of the same labels by the frame head over the tokens
    p_text    exp(mean log probability of the tokens of its clause), from raw logits and guide
    upper     1 for the name of an upper class;  later  1 for any sound but the first

The caption is the candidate with the highest sum of worth * c - doubt * (1 - c) over its sounds, plus `wording` times
the mean log probability of its tokens. The worth is 1, or `upper` for the name of an upper class. A candidate that
names a sound twice is only chosen if there is no other. With doubt 1, a second sound needs a confidence of 0.5.

    confidence of the caption = sigmoid(a + b * logit prod_s c_s + u * (whether it names an upper class))

The numbers are fitted on labelled recordings by `scripts/fit_weighing.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ..config import DecodeConfig, WeighConfig
from ..data.vocabulary import PARENTS, PHRASES, SAME, VOCABULARY, akin, ancestors, mentions
from .captions import Sound
from .generation import Hypothesis, clean
from .search import Decoding, Found

if TYPE_CHECKING:
    from .engine import Runtime

# Where another sound may begin, and the sentence could have ended
LINK = re.compile(r",? (?:and )?then |,? followed by | before | while | as | with | and ")
EDGE = 1e-3  # probabilities are kept this far from 0 and 1, where logits are overconfident
TWICE = 100.0  # penalty of a candidate that names a sound twice


@dataclass(frozen=True)
class Named:
    """A sound that a caption names: the labels for which the words may stand, and the clause, in characters."""

    labels: frozenset[str]
    start: int
    end: int


@lru_cache(65536)
def sounds_of(caption: str) -> tuple[tuple[Named, ...], bool]:
    """The sounds that `caption` names, in order, and whether it names one of them twice."""
    starts = [0, *(link.end() for link in LINK.finditer(caption))]
    ends = [*(link.start() for link in LINK.finditer(caption)), len(caption)]
    found: list[Named] = []
    twice = False
    for start, end in zip(starts, ends, strict=True):
        here: list[frozenset[str]] = [m.labels for m in mentions(caption) if start <= m.start < end]
        for labels in here:
            kin = frozenset().union(*map(akin, labels))
            same = [k for k, named in enumerate(found) if named.labels & kin]
            if not same:
                found.append(Named(labels, start, end))
            elif all(found[k].start != start for k in same):
                twice = True
            else:  # several words in one clause: the narrower ones count
                k = next(k for k in same if found[k].start == start)
                found[k] = replace(found[k], labels=_narrower(found[k].labels, labels))
    return tuple(found), twice


def _narrower(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    """The common labels of two words for one sound or, without any, those that are not an upper class of the others."""
    if one & other:
        return one & other
    return other if one & frozenset().union(*map(ancestors, other)) else one


def shorter(caption: str) -> list[str]:
    """The beginnings of `caption` that end before another sound, as sentences."""
    return [caption[: link.start()].rstrip(",") + "." for link in LINK.finditer(caption)]


class Weigher:
    """Weighs the candidates of a batch of clips with the label heads of the encoder and the language model."""

    def __init__(self, runtime: Runtime, options: DecodeConfig):
        self.runtime, self.options = runtime, options
        self.places: dict[str, list[int]] = {}  # label: the outputs of the label heads for it
        for k, label in enumerate(runtime.labels):
            self.places.setdefault(SAME.get(label, label), []).append(k)
        self.kinds = {label: at for label, at in self.places.items() if label in PHRASES}

    def choose(
        self, h_a: np.ndarray, h_a_mask: np.ndarray, decoding: Decoding, found: Sequence[Sequence[Hypothesis]]
    ) -> list[list[Hypothesis]]:
        """The candidates of each clip, best first, with their sounds and confidences.

        They come from h_a (B, N_a, D), its mask, the prompts of the same clips, and the hypotheses of each clip.
        """
        clip, frame = self.runtime.tag(h_a, h_a_mask)  # (B, C), (B, N_a, C + 1)
        frame = frame * h_a_mask[..., None]
        texts = [list(dict.fromkeys(row)) for row in self.candidates(clip, frame, found)]
        rows = []
        for own, row in zip(texts, self.measure(clip, frame, decoding, texts, found), strict=True):
            scored = [weigh(text, *measures, self.options.weigh) for text, measures in zip(own, row, strict=True)]
            rows.append([hypothesis for _, hypothesis in sorted(scored, key=lambda item: -item[0])])
        return rows

    def candidates(self, clip: np.ndarray, frame: np.ndarray, found: Sequence[Sequence[Hypothesis]]) -> list[list[str]]:
        """The candidate texts of each clip, clip (B, C), frame (B, N_a, C + 1), 0 in padding; those that are offered
        come last."""
        rows = []
        for row, p, by_token in zip(found, clip, frame, strict=True):
            beams = [h.text for h in row if h.text]
            texts = dict.fromkeys([*beams, *(part for text in beams for part in shorter(text))])
            rows.append([*(texts or ["."]), *self._offered(p, by_token)])
        return rows

    def measure(
        self,
        clip: np.ndarray,
        frame: np.ndarray,
        decoding: Decoding,
        texts: Sequence[Sequence[str]],
        found: Sequence[Sequence[Hypothesis]] = (),
    ) -> list[list[tuple[float, list[list[float]]]]]:
        """For each text of each clip its score, which is the mean log probability of its tokens and its end, and for
        each sound that it names the numbers from which its confidence is computed.

        Args:
            clip, frame: (B, C), (B, N_a, C + 1), 0 in padding; what the label heads say.
            decoding: the prompts of the clips.
            texts: of each clip.
            found: hypotheses of each clip; the search has told how probable their tokens are.
        """
        flat = [(k, text) for k, row in enumerate(texts) for text in row]
        tokens = self.runtime.tokenize([text for _, text in flat])
        known = {(k, h.text): h.found for k, row in enumerate(found) for h in row if h.found is not None}
        log_p = [_known(known.get(key), ids) for key, (ids, _) in zip(flat, tokens, strict=True)]
        unknown = [n for n, values in enumerate(log_p) if values is None]
        told = decoding.log_probabilities([flat[n][0] for n in unknown], [tokens[n][0] for n in unknown])
        for n, values in zip(unknown, told, strict=True):
            log_p[n] = values.tolist()
        measured: list[list[tuple[float, list[list[float]]]]] = [[] for _ in texts]
        for (k, text), own, (_, spans) in zip(flat, log_p, tokens, strict=True):
            assert own is not None
            named, _ = sounds_of(text)
            sounds = [self._measures(n, place, clip[k], frame[k], own, spans) for place, n in enumerate(named)]
            measured[k].append((sum(own) / len(own), sounds))
        return measured

    def _offered(self, clip: np.ndarray, frame: np.ndarray) -> list[str]:
        """Sentences with the most probable kinds and upper classes, given the probabilities clip (C,) and, 0 in
        padding, frame (N_a, C + 1). Two kinds are also named together, in the order of their peaks."""
        count = self.options.weigh.offered
        by_time = frame.sum(0)
        both = {label: float(clip[at].sum() + by_time[at].sum() / by_time.sum()) for label, at in self.kinds.items()}
        kinds = sorted(both, key=lambda label: -both[label])[:count]
        when = {label: int(frame[:, self.kinds[label]].sum(1).argmax()) for label in kinds}
        clauses = {label: PHRASES[label][0].clause for label in kinds}
        texts = [clauses[label] for label in kinds]
        if len(kinds) > 1:
            first, second = (clauses[label] for label in sorted(kinds[:2], key=lambda label: when[label]))
            texts += [f"{first}, then {second}", f"{first} while {second}"]
        sums = {parent: float(clip[self._heads(frozenset([parent]))].sum()) for parent in sorted(PARENTS)}
        parents = sorted(sums, key=lambda parent: -sums[parent])[:count]
        return [clean(text) for text in (*texts, *(PHRASES[parent][0].clause for parent in parents))]

    def _heads(self, labels: frozenset[str]) -> list[int]:
        """The outputs of the label heads for the labels and for all labels below them."""
        return [k for label in sorted(below(labels)) for k in self.places.get(label, ())]

    def _measures(
        self,
        named: Named,
        place: int,
        clip: np.ndarray,
        frame: np.ndarray,
        log_p: list[float],
        spans: list[tuple[int, int]],
    ) -> list[float]:
        """The numbers of one sound, from clip (C,), frame (N_a, C + 1), and log_p and position of each token."""
        heads = self._heads(named.labels)
        p_clip = float(clip[heads].sum()) if heads else 0.0
        p_frame = float(frame[:, heads].sum(1).max()) if heads else 0.0
        inside = [value for value, (_, end) in zip(log_p, spans, strict=False) if named.start < end <= named.end]
        p_text = math.exp(sum(inside) / len(inside)) if inside else 0.0
        upper = float(named.labels <= PARENTS)
        return [1.0, logit(p_clip), logit(p_frame), logit(p_text), upper, float(place > 0)]


def weigh(
    text: str, score: float, measures: Sequence[Sequence[float]], options: WeighConfig
) -> tuple[float, Hypothesis]:
    """The value of a candidate, and the candidate with its sounds and its confidence."""
    named, twice = sounds_of(text)
    value = options.wording * score - TWICE * (twice or not named)
    sounds = []
    for sound, measure in zip(named, measures, strict=True):
        c = sigmoid(sum(w * x for w, x in zip(options.sound, measure, strict=True)))
        value += (options.upper if measure[4] else 1.0) * c - options.doubt * (1 - c)
        sounds.append(Sound(text[sound.start : sound.end].strip(" ,."), tuple(sorted(sound.labels)), c))
    return value, Hypothesis(text, score, tuple(sounds), caption_confidence(sounds, options))


def caption_confidence(sounds: Sequence[Sound], options: WeighConfig) -> float:
    """The probability that the caption names the sounds that are there and nothing else."""
    if not sounds:
        return 0.0
    a, b, u = options.caption
    upper = any(set(sound.labels) <= PARENTS for sound in sounds)
    return sigmoid(a + b * logit(math.prod(sound.confidence for sound in sounds)) + u * upper)


def _known(found: Found | None, ids: Sequence[int]) -> list[float] | None:
    """The log probabilities of the tokens `ids` and of the end, of a sequence that a search found just so."""
    if found is None or found.ids != tuple(ids) or len(found.log_p) != len(ids) + 1:
        return None  # written otherwise than the tokenizer does, or cut before its end
    return list(found.log_p)


@lru_cache(65536)
def below(labels: frozenset[str]) -> frozenset[str]:
    """The labels, and all labels of which they are upper classes."""
    return labels | {name for name in VOCABULARY if labels & ancestors(name)}


def sigmoid(x: float) -> float:
    return 0.5 + 0.5 * math.tanh(x / 2)


def logit(p: float) -> float:
    p = min(max(p, EDGE), 1 - EDGE)
    return math.log(p / (1 - p))
