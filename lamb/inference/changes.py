"""Where a recording changes, from encoder tokens and level. [O]

Time is divided into cells of CELL seconds. The cost of a segment is the sum of the squared distances of its cells to
their mean, plus a fixed PENALTY; the segmentation of least cost is found exactly (dynamic programming, "optimal
partitioning"). The features of a cell are its token as a unit vector, so that PENALTY does not depend on the scale of
the encoder, and its level. Silence, and what could not be decoded, is a segment of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import groupby, pairwise

import numpy as np

CELL = 0.2  # seconds
PENALTY = 4.0  # chosen on made-up days (benchmarks/timeline.py, seeds 1 and 2); 3 to 6 give nearly the same
LEVEL_WEIGHT = 0.02  # of one decibel, relative to the unit vector
FLOOR_DB = -90.0  # lower levels are raised to this one
SHORTEST = 5  # fewest cells between two changes: shorter segments cannot be read as they pass, and gain no score
PAUSE = 5  # cells of silence that make a segment; a shorter pause belongs to the sound around it
LONGEST = 150  # cells without a change after which a piece ends without one
AHEAD = 25  # cells that must follow a boundary before it is final


class Kind(Enum):
    """What a cell holds."""

    SOUND = 0
    SILENCE = 1
    LOST = 2  # could not be decoded


@dataclass(frozen=True)
class Piece:
    """Cells [start, end) of a recording; with `goes_on` it ends without a change."""

    start: int
    end: int
    kind: Kind
    goes_on: bool = False


def features(tokens: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Tokens (n, D) and levels (n,) in dB of n cells -> (n, D + 1)."""
    unit = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-9)
    return np.concatenate([unit, LEVEL_WEIGHT * np.maximum(level, FLOOR_DB)[:, None]], axis=1)


def changes(x: np.ndarray) -> list[int]:
    """The ends of the segments of least cost of features `x` (n, D); the last end is n.

    Every segment has at least SHORTEST cells, unless n is smaller.
    """
    n = len(x)
    total = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x, 0, dtype=np.float64)])  # (n + 1, D)
    squares = np.concatenate([[0.0], np.cumsum(np.square(x).sum(1), dtype=np.float64)])
    gram = total @ total.T
    best, came_from = np.full(n + 1, np.inf), np.zeros(n + 1, int)
    best[0] = 0.0
    for end in range(min(SHORTEST, n), n + 1):
        starts = np.arange(0, max(1, end - SHORTEST + 1))
        spread = gram[end, end] + gram[starts, starts] - 2 * gram[starts, end]  # |sum of the segment|^2
        cost = best[starts] + squares[end] - squares[starts] - spread / (end - starts) + PENALTY
        came_from[end] = starts[(k := int(cost.argmin()))]
        best[end] = cost[k]
    ends = [n]
    while (end := int(came_from[ends[-1]])) > 0:
        ends.append(end)
    return ends[::-1]


class Segmenter:
    """Takes cells and yields pieces, each as soon as it is final; the pieces cover every cell once, in order.

    It holds at most LONGEST cells and one block.
    """

    def __init__(self) -> None:
        self.at = 0  # the recording's cell that is the first one held
        self.kinds: list[Kind] = []
        self.x = np.empty((0, 0))

    def push(self, kinds: list[Kind], x: np.ndarray, end: bool = False) -> Iterator[Piece]:
        """The next n cells: their kinds and features (n, D); `end`: they are the last."""
        self.kinds += kinds
        self.x = np.concatenate([self.x, x]) if len(self.x) else x
        while self.kinds:
            kind, n = self._run()
            closed = end or n < len(self.kinds)
            if kind is Kind.SOUND:
                found = [k for k in changes(self.x[:n]) if closed or k <= n - AHEAD]
            else:
                found = [n] if closed else []
            for begin, stop in pairwise([0, *found]):
                yield self._take(stop - begin, kind)
            if not closed:
                if not found and n >= LONGEST:
                    yield self._take(n - AHEAD, kind, goes_on=True)
                return

    def _run(self) -> tuple[Kind, int]:
        """Kind and length of the first run of cells; silence that is short, or may prove to be, counts as sound."""
        first, n = Kind.SOUND, 0
        for kind, run in groupby(self.kinds):
            length = len(list(run))
            if kind is Kind.SILENCE and length < PAUSE:
                kind = Kind.SOUND
            if n and kind is not first:
                break
            first, n = kind, n + length
        return first, n

    def _take(self, n: int, kind: Kind, goes_on: bool = False) -> Piece:
        piece = Piece(self.at, self.at + n, kind, goes_on)
        self.at, self.kinds, self.x = self.at + n, self.kinds[n:], self.x[n:]
        return piece
