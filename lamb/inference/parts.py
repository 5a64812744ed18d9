"""From windows to parts, the stretches of a recording that a timeline captions one by one. [O]

`Grid`: every window is a part. `Cells`: parts follow the sound. There windows overlap by half; where two cover a cell
of `changes.CELL` seconds its tokens are their mean, weighted by how far inside each window the cell lies. `changes`
finds the boundaries, and a part has the tokens of its own cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ..audio import reader as audio
from ..config import DecodeConfig
from .captions import SILENCE, UNREADABLE
from .changes import CELL, Kind, Piece, Segmenter, features
from .confidence import confidence_of
from .recording import has_sound

if TYPE_CHECKING:
    from .engine import Engine

ENCODED = 4  # windows encoded together: more are no faster on a CPU, and each takes 10 MB
Window = tuple[float, np.ndarray, np.ndarray | None]  # start in seconds, samples (T,), tokens (N_a, D) or None
Spans = list[tuple[float, float]]  # (start, end) in seconds


@dataclass
class Part:
    """A stretch of the recording that gets one caption."""

    start: float  # seconds
    end: float
    h_a: np.ndarray | None  # (N_a, D); None: what is heard is known
    goes_on: bool = False  # into the next one, without a change
    caption: str = SILENCE
    confidence: float = 1.0


def _known(start: float, end: float, lost: bool, goes_on: bool = False) -> Part:
    """A part that needs no model: silence, or what could not be decoded."""
    return Part(start, end, None, goes_on, *((UNREADABLE, 0.0) if lost else (SILENCE, 1.0)))


def encoded(engine: Engine, group: Sequence[tuple[float, np.ndarray]]) -> Iterator[Window]:
    """Windows of a recording (start in seconds, samples) with their tokens (N_a, D), or None for silence."""
    sounding = [has_sound(start, x, engine.sample_rate) for start, x in group]
    tokens = iter(engine.encode([x for (_, x), sounds in zip(group, sounding, strict=True) if sounds], ENCODED))
    for (start, x), sounds in zip(group, sounding, strict=True):
        yield start, x, next(tokens) if sounds else None


def describe(engine: Engine, parts: Sequence[Part], options: DecodeConfig) -> None:
    """Fill in the captions and confidences of the parts that have tokens."""
    unknown = [(part, part.h_a) for part in parts if part.h_a is not None]
    found = engine.describe([h_a for _, h_a in unknown], options)
    for (part, _), (best, *_) in zip(unknown, found, strict=True):
        part.caption, part.confidence = best.text, confidence_of(best, options)


class Grid:
    """Windows as parts; where two overlap, the cut is half way."""

    def __init__(self, lost: Spans):
        self.lost = lost
        self.held: list[Part] = []  # the last window, whose end the next one decides

    def add(self, start: float, x: np.ndarray, end: float, h_a: np.ndarray | None) -> list[Part]:
        """The parts that are final when a window is known: its start and end in seconds, samples and tokens."""
        done = self.held
        if done:
            start = done[0].end = (start + done[0].end) / 2
        gone = sum(max(0.0, min(end, b) - max(start, a)) for a, b in self.lost)
        lost = gone > (end - start) / 2
        self.held = [_known(start, end, lost) if lost or h_a is None else Part(start, end, h_a)]
        return done

    def finish(self, end: float) -> list[Part]:
        """The parts that are left, of a recording that lasts `end` seconds."""
        self.held[0].end = end
        return self.held


class Cells:
    """Parts that follow the sound: tokens and levels of overlapping windows cell by cell, cut where they change."""

    def __init__(self, sample_rate: int, frame_rate: float, dim: int, options: DecodeConfig, lost: Spans):
        self.lost, self.rate = lost, sample_rate
        self.fine = max(1, round(frame_rate * CELL))  # tokens in a cell
        self.longest, self.hop = round(options.window / CELL), round(options.hop / CELL)
        self.segmenter = Segmenter()
        self.kinds: list[Kind] = []  # of the cells from segmenter.at on
        self.level = np.zeros(0)  # dB, of the same
        self.tokens = np.zeros((0, self.fine, dim), np.float32)  # of the same, times their weight
        self.weight = np.zeros(0, np.float32)
        self.pushed = 0  # cells that the segmenter has

    def add(self, start: float, x: np.ndarray, end: float, h_a: np.ndarray | None) -> list[Part]:
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
            inside = np.arange(n, dtype=np.float32) + 0.5
            weight = np.minimum(inside, n - inside)  # (n,) how far inside the window
            tokens = _pooled(h_a, n * self.fine).reshape(n, self.fine, -1)  # (n, fine, D)
            self.tokens[here] += weight[:, None, None] * tokens
            self.weight[here] += weight
        return self._push(first + min(self.hop, n), False)

    def finish(self, end: float) -> list[Part]:
        """The parts that are left, of a recording that lasts `end` seconds."""
        parts = self._push(self.segmenter.at + len(self.kinds), True)
        parts[-1].end = end
        return parts

    def _grow(self, cells: int) -> None:
        more = cells - self.segmenter.at - len(self.kinds)
        if more > 0:
            self.kinds += [Kind.SILENCE] * more
            self.level = np.append(self.level, np.zeros(more))
            self.tokens = np.concatenate([self.tokens, np.zeros((more, *self.tokens.shape[1:]), np.float32)])
            self.weight = np.append(self.weight, np.zeros(more, np.float32))

    def _push(self, until: int, end: bool) -> list[Part]:
        """The cells up to `until` are complete."""
        at = self.segmenter.at
        new = slice(self.pushed - at, until - at)
        tokens = self.tokens[new].mean(1) / np.maximum(self.weight[new], 0.5)[:, None]  # (n, D)
        parts: list[Part] = []
        for piece in self.segmenter.push(self.kinds[new], features(tokens, self.level[new]), end):
            parts += self._parts(piece, at)
        self.pushed, gone = until, self.segmenter.at - at
        self.kinds, self.level = self.kinds[gone:], self.level[gone:]
        self.tokens, self.weight = self.tokens[gone:].copy(), self.weight[gone:]
        return parts

    def _parts(self, piece: Piece, at: int) -> list[Part]:
        """A piece as parts no longer than a window."""
        count = math.ceil((piece.end - piece.start) / self.longest) if piece.kind is Kind.SOUND else 1
        ends = [piece.start + (piece.end - piece.start) * k // count for k in range(count + 1)]
        parts = []
        for k, (a, b) in enumerate(pairwise(ends)):
            held = [c - at for c in range(a, b) if self.kinds[c - at] is Kind.SOUND]
            start, end, goes_on = round(a * CELL, 3), round(b * CELL, 3), piece.goes_on or k < count - 1
            if held:
                h_a = (self.tokens[held] / self.weight[held, None, None]).reshape(-1, self.tokens.shape[2])  # (N_a, D)
                parts.append(Part(start, end, h_a, goes_on))
            else:
                parts.append(_known(start, end, piece.kind is Kind.LOST, goes_on))
        return parts


def _pooled(h_a: np.ndarray, n: int) -> np.ndarray:
    """Tokens (N_a, D) -> (n, D): token k is the mean of those that overlap its share, [k, k + 1) N_a / n, of time."""
    first = np.arange(n) * len(h_a) // n
    last = -(-np.arange(1, n + 1) * len(h_a) // n)
    total = np.concatenate([np.zeros((1, h_a.shape[1])), np.cumsum(h_a, 0, dtype=np.float64)])  # (N_a + 1, D)
    return ((total[last] - total[first]) / (last - first)[:, None]).astype(np.float32)
