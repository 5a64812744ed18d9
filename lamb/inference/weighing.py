"""Which caption says best what is there: every sound that a candidate names is weighed on its own. [O]

Beam search finds likely sentences; a small language model rounds them off with sounds that nobody hears, and tells one
sound twice. So the candidates are the beams and what is left of them where they end before another sound ("A dog barks
while rain falls." also gives "A dog barks."), and sentences that are offered: the kinds of sound that the label heads
find the most probable, alone and two of them together, and the upper classes. Of each sound that one names it is known
how the encoder's label heads answer to it, and how the language model, and from that follows a confidence:

    c = sigmoid(w . [1, logit p_clip, logit p_frame, logit p_text, upper, later])

    p_clip    the clip head's probability of the labels that the words stand for (of an upper class of all below it)
    p_frame   the highest of the frame head's probabilities of the same over the tokens
    p_text    exp(mean log probability of the tokens of its clause), raw logits and guide
    upper     1 for the name of an upper class;  later  1 for any sound but the first

The caption is the candidate with the highest sum over its sounds of worth * c - doubt * (1 - c), and `wording` times
the mean log probability of its tokens; worth is 1, or `upper` for the name of an upper class. One that tells a sound
twice is taken only where there is no other. With doubt 1 a second sound is told from a confidence of 0.5 on.

    confidence of the caption = sigmoid(a + b * logit prod_s c_s + u * (whether it names an upper class))

The numbers are fitted on labelled recordings by `scripts/fit_weighing.py`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ..config import DecodeConfig, WeighConfig
from ..data.vocabulary import PARENTS, PHRASES, SAME, VOCABULARY, akin, ancestors, mentions
from ..model.lamb import LambModel
from .captions import Sound
from .generation import Hypothesis, clean, log_probabilities

# Where another sound may begin, and the sentence could have ended
LINK = re.compile(r",? (?:and )?then |,? followed by | before | while | as | with | and ")
EDGE = 1e-3  # probabilities are kept this far from 0 and 1, where a logit says more than anybody knows
TWICE = 100.0  # taken off a candidate that tells a sound twice


@dataclass(frozen=True)
class Named:
    """A sound that a caption names: what the words may stand for, and the clause that names it, in characters."""

    labels: frozenset[str]
    start: int
    end: int


@lru_cache(65536)
def sounds_of(caption: str) -> tuple[tuple[Named, ...], bool]:
    """The sounds that `caption` names, in their order, and whether it tells one of them twice."""
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
            else:  # several words of one clause: the narrower ones count
                k = next(k for k in same if found[k].start == start)
                found[k] = replace(found[k], labels=_narrower(found[k].labels, labels))
    return tuple(found), twice


def _narrower(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    """Of words for one sound, what they have in common; else the ones that are not the upper class of the others."""
    if one & other:
        return one & other
    return other if one & frozenset().union(*map(ancestors, other)) else one


def shorter(caption: str) -> list[str]:
    """The sentences that are left of `caption` where it ends before another sound."""
    return [caption[: link.start()].rstrip(",") + "." for link in LINK.finditer(caption)]


class Weigher:
    """The candidates of a batch of clips, weighed by what the encoder's label heads and the language model say."""

    def __init__(self, model: LambModel, options: DecodeConfig):
        self.model, self.options = model, options
        self.places: dict[str, list[int]] = {}  # outputs of the label heads that stand for a label
        for k, label in enumerate(model.encoder.labels):
            self.places.setdefault(SAME.get(label, label), []).append(k)
        self.kinds = {label: at for label, at in self.places.items() if label in PHRASES}

    @torch.inference_mode()
    def choose(
        self, h_a: Tensor, h_a_mask: Tensor, z_a: Tensor, z_a_mask: Tensor, found: Sequence[Sequence[Hypothesis]]
    ) -> list[list[Hypothesis]]:
        """h_a (B, N_a, D), z_a (B, N, D_llm), their masks and hypotheses of each clip -> its candidates, the best
        first, with their sounds and their confidence."""
        texts = [list(dict.fromkeys(row)) for row in self.candidates(h_a, h_a_mask, found)]
        rows = []
        for own, row in zip(texts, self.measure(h_a, h_a_mask, z_a, z_a_mask, texts), strict=True):
            scored = [weigh(text, *measures, self.options.weigh) for text, measures in zip(own, row, strict=True)]
            rows.append([hypothesis for _, hypothesis in sorted(scored, key=lambda item: -item[0])])
        return rows

    @torch.inference_mode()
    def candidates(self, h_a: Tensor, h_a_mask: Tensor, found: Sequence[Sequence[Hypothesis]]) -> list[list[str]]:
        """Of each clip, h_a (B, N_a, D), the texts that are weighed; the last ones are those that are offered."""
        clip = self.model.encoder.tag(h_a, h_a_mask)  # (B, C)
        frame = self.model.encoder.tag_frames(h_a) * h_a_mask[..., None]  # (B, N_a, C + 1)
        rows = zip(found, clip, frame, strict=True)
        return [[*_candidates(row), *self._offered(p, by_token)] for row, p, by_token in rows]

    @torch.inference_mode()
    def measure(
        self, h_a: Tensor, h_a_mask: Tensor, z_a: Tensor, z_a_mask: Tensor, texts: Sequence[Sequence[str]]
    ) -> list[list[tuple[float, list[list[float]]]]]:
        """Of each of a clip's texts its score, the mean log probability of its tokens and its end; and of each sound
        that it names what its confidence is made of."""
        clip = self.model.encoder.tag(h_a, h_a_mask)  # (B, C)
        frame = self.model.encoder.tag_frames(h_a) * h_a_mask[..., None]  # (B, N_a, C + 1)
        prefix, prefix_mask = self.model.llm.prefix(z_a, z_a_mask)
        bias = self.model.bias(z_a, z_a_mask) if self.options.guide else None
        rows = torch.tensor([k for k, row in enumerate(texts) for _ in row], device=h_a.device)
        flat = [text for row in texts for text in row]
        ids, mask = self.model.llm.tokenize(flat)  # (K, L)
        places = self.model.llm.tokenizer(flat, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        log_p, valid = log_probabilities(
            self.model, prefix[rows], prefix_mask[rows], ids, mask, None if bias is None else bias[rows], self.options
        )  # (K, L + 1)
        measured: list[list[tuple[float, list[list[float]]]]] = [[] for _ in texts]
        for text, k, own, there, spans in zip(flat, rows.tolist(), log_p, valid, places, strict=True):
            named, _ = sounds_of(text)
            values = own[there].tolist()
            found = [self._measures(n, place, clip[k], frame[k], values, spans) for place, n in enumerate(named)]
            measured[k].append((sum(values) / len(values), found))
        return measured

    def _offered(self, clip: Tensor, frame: Tensor) -> list[str]:
        """Sentences with the most probable kinds and upper classes: clip (C,), frame (N_a, C + 1), 0 in padding. Two
        kinds are also told in the order in which they sound the most, and at once."""
        count = self.options.weigh.offered
        by_time = frame.sum(0)
        both = {label: float(clip[at].sum() + by_time[at].sum() / by_time.sum()) for label, at in self.kinds.items()}
        kinds = sorted(both, key=lambda label: -both[label])[:count]
        when = {label: int(frame[:, self.kinds[label]].sum(1).argmax()) for label in kinds}
        clauses = {label: PHRASES[label][0].clause for label in kinds}
        texts = [clauses[label] for label in kinds]
        if count > 1:
            first, second = (clauses[label] for label in sorted(kinds[:2], key=lambda label: when[label]))
            texts += [f"{first}, then {second}", f"{first} while {second}"]
        sums = {parent: float(clip[self._heads(frozenset([parent]))].sum()) for parent in sorted(PARENTS)}
        parents = sorted(sums, key=lambda parent: -sums[parent])[:count]
        return [clean(text) for text in (*texts, *(PHRASES[parent][0].clause for parent in parents))]

    def _heads(self, labels: frozenset[str]) -> list[int]:
        """The outputs of the label heads that answer to the labels, and to all below them."""
        return [k for label in sorted(below(labels)) for k in self.places.get(label, ())]

    def _measures(
        self, named: Named, place: int, clip: Tensor, frame: Tensor, log_p: list[float], spans: list[tuple[int, int]]
    ) -> list[float]:
        """Of a sound, clip (C,), frame (N_a, C + 1), log_p of each token and where it lies in the text."""
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
    """What a candidate is worth, and it with its sounds and its confidence."""
    named, twice = sounds_of(text)
    value = options.wording * score - TWICE * (twice or not named)
    sounds = []
    for sound, measure in zip(named, measures, strict=True):
        c = sigmoid(sum(w * x for w, x in zip(options.sound, measure, strict=True)))
        value += (options.upper if measure[4] else 1.0) * c - options.doubt * (1 - c)
        sounds.append(Sound(text[sound.start : sound.end].strip(" ,."), tuple(sorted(sound.labels)), c))
    return value, Hypothesis(text, score, tuple(sounds), caption_confidence(sounds, options))


def caption_confidence(sounds: Sequence[Sound], options: WeighConfig) -> float:
    """How likely the caption names what is there, and nothing else."""
    if not sounds:
        return 0.0
    a, b, u = options.caption
    upper = any(set(sound.labels) <= PARENTS for sound in sounds)
    return sigmoid(a + b * logit(math.prod(sound.confidence for sound in sounds)) + u * upper)


def _candidates(found: Sequence[Hypothesis]) -> list[str]:
    texts = [h.text for h in found if h.text]
    return list(dict.fromkeys([*texts, *(part for text in texts for part in shorter(text))])) or ["."]


@lru_cache(65536)
def below(labels: frozenset[str]) -> frozenset[str]:
    """The labels, and all that they are upper classes of."""
    return labels | {name for name in VOCABULARY if labels & ancestors(name)}


def sigmoid(x: float) -> float:
    return 0.5 + 0.5 * math.tanh(x / 2)


def logit(p: float) -> float:
    p = min(max(p, EDGE), 1 - EDGE)
    return math.log(p / (1 - p))
