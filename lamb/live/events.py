"""Sound events in a stream: samples go in, and each event comes out soon after its end. [O]

Time is divided into cells of `changes.CELL` seconds. The sound since the last event is encoded again at every look, and
`changes` cuts it where it changes. A cut is certain once `ListenConfig.sure` seconds have followed it. Silence also
ends an event. Memory holds the samples since the last event, at most `ListenConfig.longest` seconds and one hop.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..audio.errors import AudioRepair
from ..audio.reader import MENDED, level, mended
from ..config import DecodeConfig, ListenConfig
from ..inference.changes import CELL, PAUSE, changes, features
from ..inference.confidence import confidence_of
from ..inference.engine import Engine


@dataclass(frozen=True)
class Event:
    """A sound from `start` to `end`, in seconds since listening began, and its samples (T,)."""

    start: float
    end: float
    caption: str
    confidence: float
    samples: np.ndarray


class Ear:
    """Finds the events in a stream of samples at `engine.sample_rate`."""

    def __init__(self, engine: Engine, options: DecodeConfig, config: ListenConfig):
        self.engine, self.options, self.config = engine, options, config
        self.cell = round(CELL * engine.sample_rate)  # samples
        self.x = np.zeros(0, np.float32)  # samples since the last event, or since the sound began
        self.at = 0  # samples that came before them
        self.looked = 0  # cells of `x` at the last look
        self.repaired = False  # whether a repair has been told

    @property
    def heard(self) -> float:
        """Seconds of the stream so far."""
        return (self.at + len(self.x)) / self.engine.sample_rate

    def push(self, x: np.ndarray) -> list[Event]:
        """Take the next samples (T,) and return the events that are over now.

        Those that are NaN or infinite are replaced as in a file. The first time this is told, by an AudioRepair (a
        warning).
        """
        x, count, lost = mended(x)
        if count and not self.repaired:
            problem = f"{count} of {len(x)} samples near {{:.1f}} s are NaN or infinite, taken for silence"
            warnings.warn(AudioRepair("the stream", (problem if lost else MENDED).format(self.heard)), stacklevel=2)
            self.repaired = True
        self.x = np.concatenate([self.x, x])
        return list(self._look(end=False))

    def skip(self, seconds: float) -> list[Event]:
        """Note that some seconds of the stream are missing, and return the events before them."""
        events = self.finish()
        self.at += round(seconds * self.engine.sample_rate)
        return events

    def finish(self) -> list[Event]:
        """End the stream, and return the events that are left."""
        events = list(self._look(end=True))
        self.x, self.at, self.looked = self.x[:0], self.at + len(self.x), 0
        return events

    def _look(self, end: bool) -> Iterator[Event]:
        hop = max(1, round(self.config.hop / CELL))
        while (count := len(self.x) // self.cell) and (end or count - self.looked >= hop):
            quiet = [level(c) < self.config.level for c in self.x[: count * self.cell].reshape(count, self.cell)]
            silent = next((k for k, is_quiet in enumerate(quiet) if not is_quiet), count)
            if silent:
                self._drop(silent)
                continue
            sound = _until_pause(quiet)
            closed = end or sound < count
            h_a, ends = self._cut(sound, closed)
            yield from self._told(h_a, sound, ends)
            if closed:
                self._drop(sound)
            elif ends:
                self._drop(ends[-1])
                self.looked = count - ends[-1]
            else:
                self.looked = count

    def _cut(self, count: int, closed: bool) -> tuple[np.ndarray, list[int]]:
        """Tokens h_a (N_a, D) of the first `count` cells, and the certain ends of events in them, in cells.

        If the sound is `closed`, all ends are certain.
        """
        x = self.x[: count * self.cell]
        [h_a] = self.engine.encode([x], 1)
        cells = np.stack([part.mean(0) for part in _shares(h_a, range(count + 1), count)])  # (count, D)
        power = np.square(x.reshape(count, self.cell)).mean(1)
        ends = changes(features(cells, 10 * np.log10(np.maximum(power, 1e-12))))
        if closed:
            return h_a, ends
        certain = count - math.ceil(self.config.sure / CELL)
        ends = [k for k in ends if k <= certain]
        if not ends and count >= round(self.config.longest / CELL):
            ends = [certain]
        return h_a, ends

    def _told(self, h_a: np.ndarray, count: int, ends: list[int]) -> Iterator[Event]:
        """The events that end at the cells `ends`, each captioned from its share of the tokens of `count` cells."""
        edges = [0, *ends]
        found = self.engine.describe(_shares(h_a, edges, count), self.options) if ends else []
        begin = self.at / self.engine.sample_rate
        for (start, until), (best, *_) in zip(pairwise(edges), found, strict=True):
            samples = self.x[start * self.cell : until * self.cell].copy()
            sure = confidence_of(best, self.options)
            yield Event(begin + start * CELL, begin + until * CELL, best.text, sure, samples)

    def _drop(self, cells: int) -> None:
        self.x, self.at = self.x[cells * self.cell :].copy(), self.at + min(cells * self.cell, len(self.x))
        self.looked = 0


def _shares(h_a: np.ndarray, edges: Sequence[int], count: int) -> list[np.ndarray]:
    """Tokens (N_a, D) of `count` cells -> those between each pair of neighbouring `edges`, at least one."""
    places = [round(k * len(h_a) / count) for k in edges]
    return [h_a[min(a, len(h_a) - 1) : max(b, a + 1)] for a, b in pairwise(places)]


def _until_pause(quiet: list[bool]) -> int:
    """The first cell of a silence of PAUSE cells, or the number of cells if there is none."""
    return next((k for k in range(len(quiet) - PAUSE + 1) if all(quiet[k : k + PAUSE])), len(quiet))
