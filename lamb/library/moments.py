"""From recordings to moments: segments with times, captions and vectors, for many recordings at a time. [O]

A recording of at most one window is one segment, captioned as by `lamb caption`. A longer one is cut where its sound
changes, as by `lamb caption --timeline`.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice, repeat

import numpy as np

from ..audio.errors import AudioError
from ..config import DecodeConfig, DecodeLimits
from ..inference.changes import CELL
from ..inference.engine import Engine
from ..inference.parts import ENCODED, Cells, Part, describe, encoded
from ..inference.recording import Source, Windows, has_sound, is_sliver, windows


@dataclass
class Moment:
    """A segment of a recording, its caption, and its place in the aligned space."""

    start: float  # seconds
    end: float
    caption: str
    confidence: float
    vector: np.ndarray  # (D_llm,) mean of z_a, scaled to length 1; for silence the vector of its caption
    kinds: np.ndarray  # (C,) probability of each label of the encoder; zeros for silence; C = 0 without label heads


@dataclass
class Heard:
    """A recording, its length in seconds and its moments, or the error."""

    source: Source
    duration: float = 0.0
    moments: list[Moment] = field(default_factory=list)
    error: AudioError | None = None


Opened = tuple[Heard, list[tuple[float, np.ndarray]], Windows]
"""A recording, its first two windows (none after an error), and an iterator over the others."""


def hear(
    engine: Engine, sources: Iterable[Source], options: DecodeConfig, group: int, silence: np.ndarray
) -> Iterator[list[Heard]]:
    """The recordings in the order of `sources`, `group` at a time; the next ones are decoded in the background.

    A recording of at most `options.window` seconds is one segment. `silence` is the vector (D_llm,) of segments without
    sound, for which there is no z_a. Each is decoded in a process of its own, which may die of it.
    """
    overlapping = replace(options, hop=max(1, round(options.window / 2 / CELL)) * CELL)
    todo = iter(sources)

    def opened(source: Source) -> Opened:
        rest = windows(source, engine.sample_rate, overlapping, limits=DecodeLimits())
        try:
            return Heard(source), list(islice(rest, 2)), rest
        except AudioError as error:
            return Heard(source, error=error), [], rest

    with ThreadPoolExecutor(2, thread_name_prefix="lamb-decode") as pool:
        following = [pool.submit(opened, source) for source in islice(todo, group)]
        while following:
            found = [future.result() for future in following]
            following = [pool.submit(opened, source) for source in islice(todo, group)]
            yield _group(engine, found, overlapping, silence)


def _group(engine: Engine, found: Sequence[Opened], options: DecodeConfig, silence: np.ndarray) -> list[Heard]:
    """A group of recordings: those of one window are encoded together, and all are captioned together."""
    parts: list[list[Part]] = [[] for _ in found]
    short: list[tuple[Part, np.ndarray]] = []
    for (heard, first, rest), own in zip(found, parts, strict=True):
        if len(first) == 1:
            [(start, x)] = first
            heard.duration = len(x) / engine.sample_rate
            own.append(Part(0.0, heard.duration, None))
            if has_sound(start, x, engine.sample_rate):
                short.append((own[0], x))
        elif first:
            try:
                heard.duration, own[:] = _long(engine, chain(first, rest), options)
            except AudioError as error:
                heard.error = error
    for (part, _), h_a in zip(short, engine.encode([x for _, x in short], options.batch_size), strict=True):
        part.h_a = h_a
    describe(engine, [part for own in parts for part in own], options)
    tokens = [part.h_a for own in parts for part in own if part.h_a is not None]
    vectors = map(unit_mean, engine.audio_tokens(tokens, options.batch_size))
    none = np.zeros(len(engine.runtime.labels), np.float32)
    kinds = iter(engine.kinds(tokens, options.batch_size)) if len(none) else repeat(none)
    for (heard, _, _), own in zip(found, parts, strict=True):
        places = [(silence, none) if p.h_a is None else (next(vectors), next(kinds)) for p in own]
        heard.moments = _joined(
            [Moment(p.start, p.end, p.caption, p.confidence, *place) for p, place in zip(own, places, strict=True)]
        )
    return [heard for heard, _, _ in found]


def _long(engine: Engine, found: Windows, options: DecodeConfig) -> tuple[float, list[Part]]:
    """The length of a recording in seconds, and its parts with their tokens."""
    cells = Cells(engine.sample_rate, engine.frame_rate, engine.dim, options, [])
    parts: list[Part] = []
    end = 0.0
    while group := list(islice(found, ENCODED)):
        for start, x, h_a in encoded(engine, group):
            end = start + len(x) / engine.sample_rate
            if not is_sliver(start, x, engine.sample_rate):
                parts += cells.add(start, x, end, h_a)
    return end, parts + cells.finish(end)


def _joined(moments: list[Moment]) -> list[Moment]:
    """Join neighbours with the same caption.

    The vector is their mean weighted by seconds, scaled to length 1; a kind is as probable as in the surer one.
    """
    joined: list[Moment] = []
    for m in moments:
        last = joined[-1] if joined else None
        if last is None or last.caption != m.caption:
            joined.append(m)
            continue
        vector = _unit(last.vector * (last.end - last.start) + m.vector * (m.end - m.start))
        confidence, kinds = max(last.confidence, m.confidence), np.maximum(last.kinds, m.kinds)
        joined[-1] = Moment(last.start, m.end, m.caption, confidence, vector, kinds)
    return joined


def unit_mean(tokens: np.ndarray) -> np.ndarray:
    """The mean of tokens (N, D), as the aligner pools them, scaled to length 1: (D,)."""
    return _unit(tokens.mean(0, dtype=np.float32))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / max(float(np.linalg.norm(x)), 1e-9)
