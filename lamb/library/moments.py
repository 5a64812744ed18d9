"""From recordings to moments: segments with their times, tokens and length, many recordings at a time. [O]

A recording of at most one window is one segment, heard as `lamb caption` hears it; a longer one is cut where its sound
changes, as by `lamb caption --timeline`.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np

from ..audio.errors import AudioError
from ..config import DecodeConfig
from ..inference.changes import CELL
from ..inference.confidence import confidence_of
from ..inference.engine import Engine
from ..inference.parts import Cells, Part
from ..inference.recording import Source, Windows, has_sound, is_sliver, windows

ENCODED = 4  # windows of a long recording that are encoded together


@dataclass
class Moment:
    """A segment of a recording, its caption, and its place in the aligned space."""

    start: float  # seconds
    end: float
    caption: str
    confidence: float
    vector: np.ndarray  # (D_llm,) mean of z_a, of length 1; of silence that of its caption


@dataclass
class Heard:
    """A recording, its length in seconds and its moments; or why there are none."""

    source: Source
    duration: float = 0.0
    moments: list[Moment] = field(default_factory=list)
    error: AudioError | None = None


@dataclass
class _Opened:
    """A recording with its first two windows, or why there are none; the rest of a long one when it is its turn."""

    source: Source
    first: list[tuple[float, np.ndarray]] = field(default_factory=list)
    rest: Windows = field(default_factory=lambda: iter(()))
    error: AudioError | None = None


def hear(
    engine: Engine, sources: Iterable[Source], options: DecodeConfig, group: int, silence: np.ndarray
) -> Iterator[list[Heard]]:
    """The recordings in the order of `sources`, `group` at a time; the next ones are decoded in the background.

    `options.window` is the longest that is one segment; captions are generated as `options` say. `silence` is the
    vector (D_llm,) of segments without sound, for which there is no z_a.
    """
    overlapping = replace(options, hop=max(1, round(options.window / 2 / CELL)) * CELL)
    todo = iter(sources)

    def opened(source: Source) -> _Opened:
        rest = windows(source, engine.sample_rate, overlapping)
        try:
            return _Opened(source, list(islice(rest, 2)), rest)
        except AudioError as error:
            return _Opened(source, error=error)

    with ThreadPoolExecutor(2, thread_name_prefix="lamb-decode") as pool:
        following = [pool.submit(opened, source) for source in islice(todo, group)]
        while following:
            found = [future.result() for future in following]
            following = [pool.submit(opened, source) for source in islice(todo, group)]
            yield _group(engine, found, overlapping, silence)


def _group(engine: Engine, found: Sequence[_Opened], options: DecodeConfig, silence: np.ndarray) -> list[Heard]:
    """What is heard in some recordings: those of one window are encoded together, and all are captioned together."""
    heard = [Heard(item.source, error=item.error) for item in found]
    parts: list[list[Part]] = [[] for _ in found]
    short: list[tuple[int, np.ndarray]] = []
    for k, item in enumerate(found):
        if len(item.first) == 1:
            [(start, x)] = item.first
            heard[k].duration = len(x) / engine.sample_rate
            parts[k] = [Part(0.0, heard[k].duration, None)]
            if has_sound(start, x, engine.sample_rate):
                short.append((k, x))
        elif item.first:
            try:
                heard[k].duration, parts[k] = _long(engine, chain(item.first, item.rest), options)
            except AudioError as error:
                heard[k].error = error
    for (k, _), h_a in zip(short, engine.encode([x for _, x in short], options.batch_size), strict=True):
        parts[k][0].h_a = h_a
    _describe(engine, [part for own in parts for part in own], options)
    tokens = [part.h_a for own in parts for part in own if part.h_a is not None]
    vectors = map(unit_mean, engine.audio_tokens(tokens, options.batch_size))
    for recording, own in zip(heard, parts, strict=True):
        recording.moments = _joined(
            [Moment(p.start, p.end, p.caption, p.confidence, silence if p.h_a is None else next(vectors)) for p in own]
        )
    return heard


def _long(engine: Engine, found: Windows, options: DecodeConfig) -> tuple[float, list[Part]]:
    """The length of a recording in seconds, and its parts with their tokens."""
    cells = Cells(engine.sample_rate, engine.frame_rate, engine.dim, options, [])
    parts: list[Part] = []
    end = 0.0
    while group := list(islice(found, ENCODED)):
        there = [has_sound(start, x, engine.sample_rate) for start, x in group]
        encoded = engine.encode([x for (_, x), sound in zip(group, there, strict=True) if sound], ENCODED)
        tokens = iter(encoded)
        for (start, x), sound in zip(group, there, strict=True):
            end = start + len(x) / engine.sample_rate
            if not is_sliver(start, x, engine.sample_rate):
                parts += cells.add(start, x, end, next(tokens) if sound else None)
    return end, parts + cells.finish(end)


def _describe(engine: Engine, parts: Sequence[Part], options: DecodeConfig) -> None:
    unknown = [part for part in parts if part.h_a is not None]
    found = engine.describe([part.h_a for part in unknown if part.h_a is not None], options)
    for part, (best, *_) in zip(unknown, found, strict=True):
        part.caption, part.confidence = best.text, confidence_of(best, options)


def _joined(moments: list[Moment]) -> list[Moment]:
    """Neighbours with the same caption as one; its vector is the mean by seconds, of length 1."""
    joined: list[Moment] = []
    for m in moments:
        last = joined[-1] if joined else None
        if last is None or last.caption != m.caption:
            joined.append(m)
            continue
        vector = _unit(last.vector * (last.end - last.start) + m.vector * (m.end - m.start))
        joined[-1] = Moment(last.start, m.end, m.caption, max(last.confidence, m.confidence), vector)
    return joined


def unit_mean(tokens: np.ndarray) -> np.ndarray:
    """Tokens (N, D) -> their mean as a vector (D,) of length 1, as the aligner pools them."""
    return _unit(tokens.mean(0, dtype=np.float32))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / max(float(np.linalg.norm(x)), 1e-9)
