"""Made-up tests of a captioner: two recordings in sequence or at once, and nothing but silence, noise or a tone. [O]

The recordings are those that are evaluated on, as they are but for leading and trailing silence; the seed is fixed, so
that two models hear the same.
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
    labels: tuple[str, ...]  # what sounds, in its order; of "nothing" one of silence, noise, tone
    parts: tuple[NDArray[np.float32 | np.int16], ...]  # (T,) each
    level: float = 0.0  # dB of the second part against the first, of an overlap

    def waveform(self, sample_rate: int) -> NDArray[np.float32]:
        """(T,), peak at most 1."""
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

    Choose settings on other seeds than those that are reported. Pairs are drawn from all the clips alike, never two of
    one label. Raises AudioError for a clip that cannot be read, OptionError where all clips are of one kind.
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
    """Four of silence, eight of white and pink noise, eight pure tones, each of its own length, level and pitch."""
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
    """sequence_named, overlap_named: share of the pairs whose caption names both; sequence_extra, overlap_extra: how
    many sounds that are not there it names, in the mean; sequence_order: share of those in sequence with both named
    that it names in their order; nothing_named: share of silence, noise and tones given as such."""
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
