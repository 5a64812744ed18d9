"""A recording of any length in one pass and bounded memory: segments with times and captions, then the whole. [O]

Windows are encoded once. `parts` cuts what is heard into parts, each captioned from its own tokens; neighbours that say
the same are joined into segments. The caption of the whole comes from `recording.Summary`, as without a timeline.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from ..audio import reader as audio
from ..config import DecodeConfig, DecodeLimits
from ..data.vocabulary import mentions
from .captions import SILENCE, UNREADABLE, Caption, Segment
from .changes import CELL
from .parts import Cells, Grid, Part, Window, describe, encoded
from .recording import Source, Summary, is_live, is_sliver, name_of, windows

if TYPE_CHECKING:
    from .engine import Engine
    from .generation import Hypothesis

LIVE = 4  # windows captioned together where the sound still arrives; elsewhere a batch


@dataclass(frozen=True)
class Plan:
    """The options of a timeline: `options` for windows and segments; `whole`, `n_best` and `seed` for the whole."""

    options: DecodeConfig
    whole: DecodeConfig
    grid: bool  # segments are the windows
    n_best: int = 1
    seed: int | None = None
    listen: Callable[[np.ndarray], None] | None = None  # called with all samples, in order
    limits: DecodeLimits | None = None  # of the process that decodes; None: this one decodes


def timeline(engine: Engine, source: Source, plan: Plan) -> Generator[Segment, None, Caption]:
    """Yield the segments, each as soon as it is final, and return the caption of the whole with the segments in it.

    Raises AudioError for what cannot be opened. A stretch that cannot be decoded is a segment "(unreadable)" of
    confidence 0, with an AudioDamage (a warning); so is the whole if nothing of it can be decoded.
    """
    file, found = name_of(source), []
    damage: list[str] = []

    def told(problem: str) -> None:
        warning = audio.AudioDamage(file, problem)
        damage.append(str(warning))
        warnings.warn(warning, stacklevel=4)

    def final(segment: Segment) -> Segment:
        if segment.caption == UNREADABLE:
            told(f"damaged: {segment.start:.2f} s to {segment.end:.2f} s cannot be decoded and is passed over")
        found.append(segment)
        return segment

    sound = _Sound(engine, source, plan)
    joiner = _Joiner()
    count = 0
    for part in sound.parts():
        count += 1
        for segment in joiner.add(part):
            yield final(segment)
    whole, last = Caption.of(file, sound.end, sound.whole(), plan.whole), joiner.end()
    if all(segment.caption == UNREADABLE for segment in [*found, last]):  # not silence: nobody knows
        whole = Caption(file, sound.end, UNREADABLE, confidence=0.0)
    if count == 1 and last.caption not in (SILENCE, UNREADABLE):  # the whole has a better search
        last = replace(last, caption=whole.text, confidence=whole.confidence)
    last = final(last)
    if sound.damage.truncated:
        told(sound.damage.truncated)
    yield last
    return replace(whole, segments=tuple(found), damage=tuple(damage))


class _Sound:
    """A recording while it is read: `end` seconds have been encoded."""

    def __init__(self, engine: Engine, source: Source, plan: Plan):
        self.engine, self.source, self.plan = engine, source, plan
        self.rate = engine.sample_rate
        self.end = 0.0
        self.damage = audio.Damage()
        self.summary, self.summarised = Summary(), 0.0  # of windows that do not overlap, up to this second
        self.rest: tuple[float, np.ndarray] | None = None  # start and tokens of a window that does overlap

    def parts(self) -> Iterator[Part]:
        """The parts in order, captioned group by group of windows."""
        options, engine = self.plan.options, self.engine
        lost = self.damage.spans
        cut = Grid(lost) if self.plan.grid else Cells(self.rate, engine.frame_rate, engine.dim, options, lost)
        rest = windows(self.source, self.rate, options, self.damage, self.plan.limits)
        size, limit = 1, LIVE if is_live(self.source) else options.batch_size
        while group := list(islice(rest, size)):
            size = min(2 * size, limit)  # the first segments soon, the rest fast
            parts: list[Part] = []
            for start, x, h_a in self._encoded(group):
                parts += cut.add(start, x, self.end, h_a)
            yield from self._captioned(parts)
        yield from self._captioned(cut.finish(self.end))

    def whole(self) -> list[Hypothesis]:
        """The hypotheses for the whole recording, best first; none for silence."""
        if self.rest and self.end - self.summarised >= audio.MIN_DURATION:  # the end, which no summarised window has
            start, h_a = self.rest
            share = (self.summarised - start) / (self.end - start)
            self.summary.add(h_a[min(round(share * len(h_a)), len(h_a) - 1) :])
        tokens = self.summary.tokens()
        if tokens is None:
            return []
        return self.engine.describe([tokens], self.plan.whole, self.plan.n_best, self.plan.seed)[0]

    def _encoded(self, group: list[tuple[float, np.ndarray]]) -> Iterator[Window]:
        """The windows with their tokens (N_a, D), None for silence; a last sliver is left out."""
        for start, x, h_a in encoded(self.engine, group):
            if self.plan.listen:
                self.plan.listen(x[round(self.end * self.rate) - round(start * self.rate) :])
            self.end = start + len(x) / self.rate
            if is_sliver(start, x, self.rate):
                continue
            if h_a is not None and start > self.summarised - CELL / 2:
                self.summary.add(h_a)
                self.summarised, self.rest = self.end, None
            elif h_a is not None:
                self.rest = start, h_a
            yield start, x, h_a

    def _captioned(self, parts: list[Part]) -> list[Part]:
        describe(self.engine, parts, self.plan.options)
        for part in parts:
            part.h_a = None  # no longer needed
        return parts


class _Joiner:
    """Joins parts into segments: those without a change between them, and neighbours with the same meaning."""

    def __init__(self) -> None:
        self.unchanged: list[Segment] = []
        self.open: list[Segment] = []

    def add(self, part: Part) -> Iterator[Segment]:
        """The segment that `part` closes, if it does."""
        self.unchanged.append(Segment(part.start, part.end, part.caption, part.confidence))
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
    """One segment with the caption that lasts longest."""
    seconds: dict[str, float] = {}
    for s in segments:
        seconds[s.caption] = seconds.get(s.caption, 0.0) + s.end - s.start
    text = max(seconds, key=lambda text: seconds[text])
    sure = max(s.confidence or 0.0 for s in segments if s.caption == text)
    return Segment(segments[0].start, segments[-1].end, text, sure)


def _same(one: str, other: str) -> bool:
    """Whether two captions mean the same: they are equal, or name the same sounds of the vocabulary."""
    return one == other or bool(_sounds(one) and _sounds(one) == _sounds(other))


@lru_cache(1024)
def _sounds(text: str) -> frozenset[str]:
    return frozenset().union(*(mention.labels for mention in mentions(text)))
