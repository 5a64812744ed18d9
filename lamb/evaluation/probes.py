"""Artificial tests of a captioner: two recordings in sequence or at once, and silence, noise or a tone alone. [O]

The recordings are those of the evaluation, without leading and trailing silence. Seeds are fixed, so that all models
hear the same sounds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..data import loader, scenes
from ..data.manifest import Clip
from ..data.vocabulary import extra, place
from ..errors import OptionError
from ..inference.captions import Caption

Kind = Literal["sequence", "overlap", "nothing"]
PAIRS: tuple[Kind, ...] = ("sequence", "overlap")
LONGEST = 4.5  # seconds of a recording in a sequence, so that two fit into a window of 10 s
PAUSE = 0.3  # seconds between them


@dataclass(frozen=True)
class Probe:
    kind: Kind
    labels: tuple[str, ...]  # of the two sounds in order; silence, noise or tone for "nothing"
    parts: tuple[NDArray[np.float32 | np.int16], ...]  # (T,) each
    level: float = 0.0  # dB of the second part relative to the first, in an overlap

    def waveform(self, sample_rate: int) -> NDArray[np.float32]:
        """The samples (T,), with a peak of at most 1."""
        if self.kind == "nothing":
            return self.parts[0].astype(np.float32)
        longest = int(LONGEST * sample_rate)
        first, second = (part[:longest].astype(np.float32) / np.float32(32767) for part in self.parts)
        if self.kind == "sequence":
            return np.concatenate([first, np.zeros(int(PAUSE * sample_rate), np.float32), second])
        mix = np.zeros(max(len(first), len(second)), np.float32)
        for x, level in ((first, 0.0), (second, self.level)):
            mix[: len(x)] += x / np.sqrt(np.square(x).mean()) * np.float32(10 ** (level / 20))
        return mix / np.abs(mix).max()


def probes(clips: Sequence[Clip], sample_rate: int, seeds: Sequence[int] = (0,), count: int = 200) -> list[Probe]:
    """For each seed `count` pairs in sequence and `count` at once (the second 0 to 6 dB softer), then 20 of nothing.

    Settings should be chosen on other seeds than those that are reported. All clips are equally likely in a pair, whose
    labels differ. Raises AudioError for a clip that cannot be read, OptionError if all clips are of one kind.
    """
    bank = loader.recordings([clip for clip in clips if clip.labels], sample_rate)
    sounds = [(label, x.samples) for label, sources in bank.items() for x in chain(*sources)]
    if len(bank) < 2:
        raise OptionError("--probe needs recordings of at least two kinds of sound", "give data with more labels")
    made: list[Probe] = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        made += [_pair(kind, sounds, rng) for kind in PAIRS for _ in range(count)]
    return [*made, *_nothing(sample_rate, rng)]


def _pair(kind: Kind, sounds: Sequence[tuple[str, NDArray[np.int16]]], rng: np.random.Generator) -> Probe:
    while True:
        (a, x), (b, y) = (sounds[int(k)] for k in rng.integers(len(sounds), size=2))
        if a != b:
            return Probe(kind, (a, b), (x, y), float(rng.uniform(-6, 0)))


def _nothing(sample_rate: int, rng: np.random.Generator) -> Iterator[Probe]:
    """Four of silence, eight of white or pink noise, eight pure tones, all of random length, level and pitch."""
    for k in range(20):
        n, gain = int(rng.uniform(2, 8) * sample_rate), np.float32(10 ** (rng.uniform(-40, -3) / 20))
        if k < 4:
            x, label = rng.integers(-1, 2, n).astype(np.float32) * np.float32(k > 1) / np.float32(32768), "silence"
        elif k < 12:
            x, label = scenes.noise(n, rng, tilt=float(k % 2)) * gain, "noise"
        else:
            frequency = 100 * 50 ** rng.random()  # 100 to 5000 Hz
            x, label = np.sin(2 * np.pi * frequency / sample_rate * np.arange(n)).astype(np.float32) * gain, "tone"
        yield Probe("nothing", (label,), (x,))


def probe_scores(made: Sequence[Probe], results: Sequence[Caption]) -> dict[str, float]:
    """The scores of captions of probes.

    sequence_named, overlap_named: share of the pairs in which the caption names both sounds.
    sequence_extra, overlap_extra: mean number of sounds that the caption names although they are not there.
    sequence_order: share of pairs in sequence that are named in their order, among those of which both are named.
    nothing_named: share of silence, noise and tones that are named as such.
    """
    named: dict[Kind, list[bool]] = {"sequence": [], "overlap": [], "nothing": []}
    more: dict[Kind, list[int]] = {"sequence": [], "overlap": [], "nothing": []}
    order = []
    for probe, result in zip(made, results, strict=True):
        places = [place(result.text, label) if result.ok else None for label in probe.labels]
        found = [p for p in places if p is not None]
        named[probe.kind].append(len(found) == len(places))
        more[probe.kind].append(extra(result.text, probe.labels))
        if probe.kind == "sequence" and len(found) == 2:
            order.append(found[0] < found[1])
    scores = {f"{kind}_named": float(np.mean(hits)) for kind, hits in named.items()}
    scores |= {f"{kind}_extra": float(np.mean(more[kind])) for kind in PAIRS}
    return {**scores, "sequence_order": float(np.mean(order)) if order else 0.0}
