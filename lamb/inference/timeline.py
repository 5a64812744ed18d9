"""A recording of any length in one pass and bounded memory: segments with times and captions, then the whole. [O]

Windows are encoded once, half overlapping; where two cover a cell its token is their mean, weighted by how far inside
each window it lies. `changes` finds the boundaries; a segment is captioned from its own tokens, in parts no longer
than a window. Neighbours that say the same are joined. With a fixed grid every window is a segment, cut half way where
windows overlap.
"""

import math
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..audio import reader as audio
from ..config import DecodeConfig
from ..data.vocabulary import mentions
from ..model.lamb import LambModel
from .batches import SILENCE, describe, encode
from .captions import Caption, Segment
from .changes import CELL, Kind, Piece, Segmenter, Summary, features
from .confidence import confidence_of
from .generation import Hypothesis

UNREADABLE = Hypothesis("(unreadable)", 0.0)
LIVE = 4  # windows that are waited for where the sound still comes; elsewhere a batch
ENCODED = 4  # windows that are encoded together: more are no faster on a CPU, and take 10 MB each


@dataclass(frozen=True)
class Plan:
    """What is wanted: `options` for windows and segments; `whole`, `n_best` and `seed` for the caption of it all."""

    options: DecodeConfig
    whole: DecodeConfig
    grid: bool  # segments are the windows
    n_best: int = 1
    seed: int | None = None
    listen: Callable[[np.ndarray], None] | None = None  # is handed all samples, in order, while they pass


@dataclass
class _Part:
    """A stretch of the recording that gets one caption."""

    start: float  # seconds
    end: float
    h_a: Tensor | None  # (N_a, D); None: `hypothesis` is known
    goes_on: bool = False  # into the next one, without a change
    hypothesis: Hypothesis = SILENCE


def timeline(model: LambModel, source: audio.Source, plan: Plan) -> Generator[Segment, None, Caption]:
    """Yields the segments, each as soon as it is final, and returns the whole, with the segments in it.

    Raises AudioError for what cannot be opened. A stretch that cannot be decoded is a segment "(unreadable)" of
    confidence 0, with an AudioDamage (a warning).
    """
    name, found = audio.name(source), []
    sound = _Sound(model, source, plan)
    joiner = _Joiner(plan.options)
    count = 0
    for part in sound.parts():
        count += 1
        for segment in joiner.add(part):
            found.append(_told(segment, name))
            yield segment
    hypotheses = sound.whole()
    last = joiner.end()
    if count == 1 and last.caption not in (SILENCE.text, UNREADABLE.text):  # the whole has a better search
        last = replace(last, caption=hypotheses[0].text, confidence=_sure(hypotheses[0], plan.whole))
    found.append(_told(last, name))
    yield last
    return Caption(
        file=name,
        duration=sound.end,
        text=hypotheses[0].text,
        score=hypotheses[0].score,
        confidence=_sure(hypotheses[0], plan.whole),
        captions=tuple(h.text for h in hypotheses),
        scores=tuple(h.score for h in hypotheses),
        sounds=hypotheses[0].sounds,
        segments=tuple(found),
    )


def _sure(hypothesis: Hypothesis, options: DecodeConfig) -> float:
    if hypothesis in (SILENCE, UNREADABLE):
        return float(hypothesis is SILENCE)
    return confidence_of(hypothesis, options)


def _told(segment: Segment, name: str) -> Segment:
    if segment.caption == UNREADABLE.text:
        problem = f"damaged: {segment.start:.2f} s to {segment.end:.2f} s cannot be decoded and is passed over"
        warnings.warn(audio.AudioDamage(name, problem), stacklevel=3)
    return segment


class _Sound:
    """A recording on its way through the model: `end` seconds of it have been heard."""

    def __init__(self, model: LambModel, source: audio.Source, plan: Plan):
        self.model, self.source, self.plan = model, source, plan
        self.rate = model.encoder.sample_rate
        self.end = 0.0
        self.summary, self.summarised = Summary(), 0.0  # of windows that do not overlap, up to this second
        self.rest: tuple[float, Tensor] | None = None  # start and tokens of a window that does overlap

    def parts(self) -> Iterator[_Part]:
        """The parts in order, captioned group by group of windows."""
        options = self.plan.options
        lost: list[tuple[float, float]] = []
        cut = _Grid(lost) if self.plan.grid else _Cells(self.model, options, lost)
        windows = audio.windows(self.source, self.rate, options.window, options.hop, lost)
        size, limit = 1, LIVE if audio.is_live(self.source) else options.batch_size
        while group := list(islice(windows, size)):
            size = min(2 * size, limit)  # the first segments soon, the rest fast
            parts: list[_Part] = []
            for start, x, h_a in self._encoded(group):
                parts += cut.add(start, x, self.end, h_a)
            yield from self._captioned(parts)
        yield from self._captioned(cut.finish(self.end))

    def whole(self) -> list[Hypothesis]:
        """The captions of all that was heard, best first."""
        if self.rest and self.end - self.summarised >= audio.MIN_DURATION:  # the end, which no summarised window has
            start, h_a = self.rest
            share = (self.summarised - start) / (self.end - start)
            self.summary.add(h_a[min(round(share * len(h_a)), len(h_a) - 1) :])
        tokens = self.summary.tokens()
        if tokens is None:
            return [SILENCE]
        return describe(self.model, [tokens], self.plan.whole, self.plan.n_best, self.plan.seed)[0]

    def _encoded(self, group: list[tuple[float, np.ndarray]]) -> Iterator[tuple[float, np.ndarray, Tensor | None]]:
        """The windows with their tokens (N_a, D), None for silence; not a last sliver too short to hold anything."""
        held = [(start, x) for start, x in group if not start or len(x) >= audio.MIN_DURATION * self.rate]
        tokens = iter(encode(self.model, [x for _, x in held if not audio.is_silent(x)], ENCODED))
        for k, (start, x) in enumerate(group):
            if self.plan.listen:
                self.plan.listen(x[round(self.end * self.rate) - round(start * self.rate) :])
            self.end = start + len(x) / self.rate
            if k == len(held):
                return
            h_a = None if audio.is_silent(x) else next(tokens)
            if h_a is not None and start > self.summarised - CELL / 2:
                self.summary.add(h_a)
                self.summarised, self.rest = self.end, None
            elif h_a is not None:
                self.rest = start, h_a
            yield start, x, h_a

    def _captioned(self, parts: list[_Part]) -> list[_Part]:
        unknown = [(part, part.h_a) for part in parts if part.h_a is not None]
        found = describe(self.model, [h_a for _, h_a in unknown], self.plan.options)
        for (part, _), hypotheses in zip(unknown, found, strict=True):
            part.hypothesis, part.h_a = hypotheses[0], None
        return parts


class _Grid:
    """Windows as parts; where two overlap, the cut is half way."""

    def __init__(self, lost: list[tuple[float, float]]):
        self.lost = lost
        self.held: list[_Part] = []  # the last window, whose end the next one decides

    def add(self, start: float, x: np.ndarray, end: float, h_a: Tensor | None) -> list[_Part]:
        """The parts that are final when a window is known: its start and end in seconds, samples and tokens."""
        done = self.held
        if done:
            start = done[0].end = (start + done[0].end) / 2
        gone = sum(max(0.0, min(end, b) - max(start, a)) for a, b in self.lost)
        known = UNREADABLE if gone > (end - start) / 2 else SILENCE
        self.held = [_Part(start, end, None if known is UNREADABLE else h_a, hypothesis=known)]
        return done

    def finish(self, end: float) -> list[_Part]:
        """The parts that are left, of a recording that lasts `end` seconds."""
        self.held[0].end = end
        return self.held


class _Cells:
    """Parts that follow the sound: tokens and levels of overlapping windows cell by cell, cut where they change."""

    def __init__(self, model: LambModel, options: DecodeConfig, lost: list[tuple[float, float]]):
        self.lost, self.rate = lost, model.encoder.sample_rate
        self.fine = max(1, round(model.encoder.frame_rate * CELL))  # tokens a cell
        self.longest, self.hop = round(options.window / CELL), round(options.hop / CELL)
        self.segmenter = Segmenter()
        self.kinds: list[Kind] = []  # of the cells from segmenter.at on
        self.level = np.zeros(0)  # dB, of the same
        self.tokens = torch.zeros(0, self.fine, model.encoder.dim)  # of the same, times their weight
        self.weight = torch.zeros(0)
        self.pushed = 0  # cells that the segmenter has

    def add(self, start: float, x: np.ndarray, end: float, h_a: Tensor | None) -> list[_Part]:
        """The parts that are final when a window is known: its start and end in seconds, samples and tokens."""
        first, n = round(start / CELL), max(1, round((end - start) / CELL))
        self._grow(first + n)
        here = slice(first - self.segmenter.at, first + n - self.segmenter.at)
        edges = (np.arange(n + 1) * CELL * self.rate).round().astype(int)
        cells = [x[a:b] for a, b in pairwise(edges)]
        self.level[here] = [10 * math.log10(max(float(np.mean(np.square(c))), 1e-12)) for c in cells]
        self.kinds[here] = [Kind.SILENCE if audio.is_silent(c) else Kind.SOUND for c in cells]
        self.lost[:] = [(a, b) for a, b in self.lost if b > start]
        for a, b in self.lost:
            for cell in range(max(first, round(a / CELL)), min(first + n, max(round(b / CELL), round(a / CELL) + 1))):
                self.kinds[cell - self.segmenter.at] = Kind.LOST
        if h_a is not None:
            weight = torch.minimum(torch.arange(n) + 0.5, n - 0.5 - torch.arange(n))  # how far inside the window
            tokens = F.adaptive_avg_pool1d(h_a.float().T.cpu()[None], n * self.fine)[0].T  # (n * fine, D)
            self.tokens[here] += weight[:, None, None] * tokens.unflatten(0, (n, self.fine))
            self.weight[here] += weight
        return self._push(first + min(self.hop, n), False)

    def finish(self, end: float) -> list[_Part]:
        """The parts that are left, of a recording that lasts `end` seconds."""
        parts = self._push(self.segmenter.at + len(self.kinds), True)
        parts[-1].end = end
        return parts

    def _grow(self, cells: int) -> None:
        more = cells - self.segmenter.at - len(self.kinds)
        if more > 0:
            self.kinds += [Kind.SILENCE] * more
            self.level = np.append(self.level, np.zeros(more))
            self.tokens = torch.cat([self.tokens, self.tokens.new_zeros(more, *self.tokens.shape[1:])])
            self.weight = torch.cat([self.weight, self.weight.new_zeros(more)])

    def _push(self, until: int, end: bool) -> list[_Part]:
        """The cells up to `until` are complete."""
        at = self.segmenter.at
        new = slice(self.pushed - at, until - at)
        tokens = self.tokens[new].mean(1) / self.weight[new].clamp_min(0.5)[:, None]  # (n, D)
        parts: list[_Part] = []
        for piece in self.segmenter.push(self.kinds[new], features(tokens.numpy(), self.level[new]), end):
            parts += self._parts(piece, at)
        self.pushed, gone = until, self.segmenter.at - at
        self.kinds, self.level = self.kinds[gone:], self.level[gone:]
        self.tokens, self.weight = self.tokens[gone:].clone(), self.weight[gone:]
        return parts

    def _parts(self, piece: Piece, at: int) -> list[_Part]:
        """A piece as parts no longer than a window."""
        count = math.ceil((piece.end - piece.start) / self.longest) if piece.kind is Kind.SOUND else 1
        ends = [piece.start + (piece.end - piece.start) * k // count for k in range(count + 1)]
        parts = []
        for k, (a, b) in enumerate(pairwise(ends)):
            held = [c - at for c in range(a, b) if self.kinds[c - at] is Kind.SOUND]
            h_a = (self.tokens[held] / self.weight[held, None, None]).flatten(0, 1) if held else None  # (N_a, D)
            known = UNREADABLE if piece.kind is Kind.LOST else SILENCE
            parts.append(_Part(round(a * CELL, 3), round(b * CELL, 3), h_a, piece.goes_on or k < count - 1, known))
        return parts


class _Joiner:
    """Parts in, segments out: parts without a change between them are one, and so are neighbours that say the same."""

    def __init__(self, options: DecodeConfig):
        self.options = options
        self.unchanged: list[Segment] = []
        self.open: list[Segment] = []

    def add(self, part: _Part) -> Iterator[Segment]:
        """The segment that `part` closes, if it does."""
        sure = _sure(part.hypothesis, self.options)
        self.unchanged.append(Segment(part.start, part.end, part.hypothesis.text, sure))
        if part.goes_on:
            return
        segment, self.unchanged = _joined(self.unchanged), []
        if self.open and not _same(_joined(self.open).caption, segment.caption):
            yield self.end()
        self.open.append(segment)

    def end(self) -> Segment:
        """The segment that is open."""
        segment, self.open = _joined(self.open), []
        return segment


def _joined(segments: list[Segment]) -> Segment:
    """One segment, with the caption of most of the seconds."""
    seconds: dict[str, float] = {}
    for s in segments:
        seconds[s.caption] = seconds.get(s.caption, 0.0) + s.end - s.start
    text = max(seconds, key=lambda text: seconds[text])
    sure = max(s.confidence or 0.0 for s in segments if s.caption == text)
    return Segment(segments[0].start, segments[-1].end, text, sure)


def _same(one: str, other: str) -> bool:
    """Whether two captions say the same: in the same words, or of the same sounds among those that have word lists."""
    return one == other or bool(_sounds(one) and _sounds(one) == _sounds(other))


@lru_cache(1024)
def _sounds(text: str) -> frozenset[str]:
    return frozenset().union(*(mention.labels for mention in mentions(text)))
