"""How well and how fast `lamb caption --timeline` is, on made-up days.

    python benchmarks/timeline.py [--seconds S] [--seeds K ...] [--hours H] [--model NAME]

A day is development recordings at known times in a bed of pink noise, a function of its seed. Scores are of whole days:
- boundary F1: a boundary found counts when it is within 1 s of a true one, each used once;
- label named: share of events whose label is named by the caption of the segment that overlaps the event most.
With `--hours` a day of that length is written as wav and captioned by the real command: time and peak memory.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from lamb import audio
from lamb.captions import Segment
from lamb.data import sources
from lamb.data.manifest import Clip
from lamb.labels import names

RATE = 16000
SOUNDS = Path(__file__).parents[2] / "shared" / "sounds"
BEDS = {"quiet": -70.0, "noisy": -40.0}  # RMS of the pink noise in dBFS; events peak at -15 to -3 dBFS
TOLERANCE = 1.0  # seconds


@dataclass
class Day:
    """Sound in blocks, read once; `events` (start, end, label) in seconds, filled as the blocks are read."""

    clips: Sequence[Clip]
    seed: int
    seconds: float
    bed: str
    events: list[tuple[float, float, str]] = field(default_factory=list)

    def blocks(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(self.seed)
        at, before = 0, ""
        while at < self.seconds * RATE:
            # three events of four stand apart, the fourth follows the one before it at once
            x = np.zeros(round(rng.uniform(1, 8) * RATE) if rng.random() < 0.75 or not at else 0, np.float32)
            clip = self.clips[rng.integers(len(self.clips))]
            event = sounding(audio.load(clip.path, RATE))
            level = 10 ** (rng.uniform(-15, -3) / 20)
            if len(event) >= RATE and clip.labels[0] != before:
                before = clip.labels[0]
                begin = at + len(x)
                self.events.append((begin / RATE, (begin + len(event)) / RATE, before))
                x = np.concatenate([x, level * event / np.abs(event).max()])
            yield x + 10 ** (BEDS[self.bed] / 20) * pink(rng, len(x))
            at += len(x)

    def boundaries(self) -> list[float]:
        """The instants where the sound changes; an end that is the next beginning counts once."""
        return sorted({t for start, end, _ in self.events for t in (start, end)} - {0.0})


def sounding(x: np.ndarray) -> np.ndarray:
    """`x` from its first sound to its first pause of a second, below -40 dB of its peak."""
    cell = RATE // 20
    level = np.abs(x[: len(x) // cell * cell]).reshape(-1, cell).max(1)
    loud = np.flatnonzero(level > 0.01 * level.max(initial=0))
    if not len(loud):
        return x[:0]
    pauses = np.flatnonzero(np.diff(loud) > 20)
    last = loud[pauses[0]] if len(pauses) else loud[-1]
    return x[loud[0] * cell : (last + 1) * cell]


def pink(rng: np.random.Generator, n: int) -> np.ndarray:
    """Noise of 1/f power and RMS 1, (n,)."""
    if not n:
        return np.zeros(0, np.float32)
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1 + n // 800))  # flat below 20 Hz
    x = np.fft.irfft(spectrum, n)
    return (x / np.sqrt(np.mean(x**2))).astype(np.float32)


def matched(found: Sequence[float], true: Sequence[float]) -> int:
    """How many of `found` can be paired with one of `true` within TOLERANCE, each used once (both sorted)."""
    pairs = i = j = 0
    while i < len(found) and j < len(true):
        if abs(found[i] - true[j]) <= TOLERANCE:
            pairs, i, j = pairs + 1, i + 1, j + 1
        elif found[i] < true[j]:
            i += 1
        else:
            j += 1
    return pairs
