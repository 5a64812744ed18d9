"""Captioned scenes: labelled recordings alone, in sequence or overlapping, with a caption composed to match.

Our choice. A scene is a pure function of (recordings, seed, index), so training can stop and go on anywhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .vocabulary import PARENTS, PHRASES, SAME, VOCABULARY, Phrase, akin

Audio = NDArray[np.float32]
Kind = Literal["single", "sequence", "overlap"]
KINDS: tuple[Kind, ...] = ("single", "sequence", "overlap")
SYNTHETIC = ("noise", "tone")  # labels whose sounds are made here
COUNTED = frozenset(label for label, phrases in PHRASES.items() if any(p.times == "any" for p in phrases))
FLOOR = -50.0  # dB of the loudest 20 ms: what is trimmed from a recording's ends
BURST = -14.0  # dB of the loudest 20 ms: what sounds, when it is counted
GAP = 0.1  # seconds: a longer pause parts two of what is counted
ONCE = 0.8  # seconds: what sounds for longer may be several that run together
DEPTH = 6.0  # dB of the random equaliser
CAPTIONED = [label for label in PHRASES if label not in {*PARENTS, *SAME}]  # kinds that a scene may hold


class Recording(NamedTuple):
    """A recording to mix scenes from."""

    samples: NDArray[np.int16]  # (T,), trimmed, of peak 32767; as int16 to save memory
    description: str = ""  # what its collection says of it: "a dog howling"


@dataclass(frozen=True)
class Event:
    """One recording in a scene."""

    label: str
    start: float  # seconds
    end: float
    level: float  # dB, against the loudest event of the scene
    times: int = 0  # how often it sounds; 0: not known
    description: str = ""  # of its recording
    said: str = ""  # the upper class that stands for it in the caption; empty: it is told by its label


@dataclass(frozen=True)
class Scene:
    waveform: Audio  # (T,), peak at most 1
    kind: Kind
    events: tuple[Event, ...]  # in the order of their starts; of an overlap the loudest first
    caption: str


def trim(x: Audio, sample_rate: int) -> Audio:
    """Leading and trailing stretches below FLOOR, by the loudest 20 ms cut off, the peak set to 1."""
    frame = sample_rate // 50
    padded = np.pad(x, (0, -len(x) % frame)).reshape(-1, frame)
    power = np.square(padded).mean(1)
    loud = np.flatnonzero(power > power.max() * 10 ** (FLOOR / 10))
    if power.max() <= 0:
        raise ValueError("a silent recording cannot be part of a scene")
    x = x[loud[0] * frame : (loud[-1] + 1) * frame]
    return x / np.abs(x).max()


def bursts(x: Audio, sample_rate: int) -> int:
    """How often it sounds: stretches of `x` above BURST, by its loudest 20 ms, pauses up to GAP s bridged.

    A single stretch longer than ONCE seconds may be several that run together, and counts as 0: not known.
    """
    frame = sample_rate // 50
    power = np.square(np.pad(x, (0, -len(x) % frame))).reshape(-1, frame).mean(1)
    loud = np.flatnonzero(power > power.max() * 10 ** (BURST / 10))
    count = 1 + int((np.diff(loud) > 1 + GAP * 50).sum())
    return 0 if count == 1 and loud[-1] - loud[0] > ONCE * 50 else count


def _fast(n: int) -> int:
    """A length of at least n whose Fourier transform is quick."""
    return -(-n // 4096) * 4096


def colour(x: Audio, rng: np.random.Generator) -> Audio:
    """A random smooth equaliser of about +-DEPTH dB: another microphone, another room."""
    size = _fast(len(x))
    spectrum = np.fft.rfft(x, size)
    knots = rng.normal(0, DEPTH / 1.5, 8)
    gain = 10 ** (np.interp(np.linspace(0, 7, len(spectrum) // 64 + 1), np.arange(8), knots) / 20)
    smooth = np.interp(np.arange(len(spectrum)) / 64, np.arange(len(gain)), gain).astype(np.float32)
    return np.fft.irfft(spectrum * smooth, size)[: len(x)].astype(np.float32)


def reverberate(
    x: Audio, rng: np.random.Generator, sample_rate: int, longest: float = 0.6, wettest: float = 0.15
) -> Audio:
    """Convolution with exponentially decaying noise, 0.1 to `longest` s to -60 dB."""
    decay = rng.uniform(0.1, longest)
    n = int(decay * sample_rate)
    fade = 10 ** (-3 * np.arange(n, dtype=np.float32) / n)
    tail = rng.standard_normal(n, np.float32) * fade * np.float32(rng.uniform(0.02, wettest))
    tail[0] = 1.0
    size = _fast(len(x) + n)
    return np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(tail, size), size)[: len(x)].astype(np.float32)


def blur(x: Audio, rng: np.random.Generator, sample_rate: int) -> Audio:
    """Hard to make out: heard through a wall or a telephone, from far away in a large room, or in loud noise."""
    way = int(rng.integers(3))
    if way == 0:  # a narrow band, its flanks of 24 dB an octave
        size = _fast(len(x))
        frequency = np.maximum(np.fft.rfftfreq(size, 1 / sample_rate), 1.0)
        centre = 200 * 12 ** rng.random()  # 200 to 2400 Hz
        gain = 1 / (1 + (centre / 1.5 / frequency) ** 4) / (1 + (frequency / centre / 1.5) ** 4)
        x = np.fft.irfft(np.fft.rfft(x, size) * gain, size)[: len(x)].astype(np.float32)
    if way == 1:
        x = reverberate(reverberate(x, rng, sample_rate, 1.5, 0.6), rng, sample_rate, 1.5, 0.6)
    level = rng.uniform(-10, 2) if way == 2 else rng.uniform(-30, -8)  # of the noise against the sound, dB
    rms = float(np.sqrt(np.square(x).mean())) or 1.0
    bed = noise(len(x), rng, rng.uniform(0, 2))
    x = x / np.float32(rms) + bed / np.sqrt(np.square(bed).mean()) * np.float32(10 ** (level / 20))
    return (x / np.abs(x).max()).astype(np.float32)


def respeed(x: Audio, factor: float) -> Audio:
    """Played `factor` times faster, pitch and all."""
    return np.interp(np.arange(0, len(x) - 1, factor), np.arange(len(x)), x).astype(np.float32)


def noise(n: int, rng: np.random.Generator, tilt: float) -> Audio:
    """Noise of `n` samples whose power falls with frequency^tilt (0 white, 1 pink, 2 brown), peak 1."""
    size = _fast(n)
    spectrum = np.fft.rfft(rng.standard_normal(size, np.float32))
    spectrum *= np.maximum(np.arange(len(spectrum), dtype=np.float32), size / 1000) ** np.float32(-tilt / 2)
    x = np.fft.irfft(spectrum, size)[:n]
    return (x / np.abs(x).max()).astype(np.float32)


def tone(n: int, rng: np.random.Generator, sample_rate: int) -> Audio:
    """A steady sine of 80 to 6000 Hz, sometimes with a few harmonics, peak 1."""
    frequency = 80 * (6000 / 80) ** rng.random()
    phase = 2 * np.pi * frequency * np.arange(n) / sample_rate + rng.uniform(0, 2 * np.pi)
    x = np.sin(phase)
    if rng.random() < 0.3:
        x = x + sum(rng.uniform(0, 0.3) * np.sin(k * phase) for k in (2, 3) if k * frequency < sample_rate / 2)
    return (x / np.abs(x).max()).astype(np.float32)


def compose(kind: Kind, events: Sequence[Event], rng: np.random.Generator) -> str:
    """A sentence for the events of a scene, with varied wording."""
    phrases = [_phrase(event, rng) for event in events]
    clauses, nouns = [p.clause for p in phrases], [p.noun for p in phrases]

    def choose(*options: str) -> str:
        return options[int(rng.integers(len(options)))]

    if len(phrases) == 1:
        text = clauses[0]
    elif kind == "sequence" and len(phrases) == 2:
        (a, b), (_, nb) = clauses, nouns
        text = choose(f"{a}, then {b}", f"{a}, and then {b}", f"{a} followed by {nb}", f"{a} before {b}")
    elif kind == "sequence":
        a, b, c = clauses
        text = choose(f"{a}, then {b}, and then {c}", f"{a} followed by {nouns[1]} and then {nouns[2]}")
    elif len(phrases) == 2:
        (a, b), (_, nb) = clauses, nouns
        if events[1].level < -5 and rng.random() < 0.6:
            where = choose("in the background", "in the background", "in the distance")
            text = choose(f"{a} with {nb} {where}", f"{a} while {b} {where}", f"{a} and {b} {where}")
        else:
            text = choose(f"{a} while {b}", f"{a} as {b}", f"{a} and {b}", f"{a} with {nb}")
    else:
        a, b, c = clauses
        text = choose(f"{a} while {b} and {c}", f"{a} as {b} and {c}", f"{a} with {nouns[1]} and {nouns[2]}")
    return text[0].upper() + text[1:] + "."


def _phrase(event: Event, rng: np.random.Generator) -> Phrase:
    """One of the phrases for what is said of the event, often with the number of times where that is known."""
    known = PHRASES[event.said or event.label]
    described = [p for p in known if any(word in event.description for word in p.only)]
    bank = described or [p for p in known if not p.only and (p.times != "many" or event.times not in (1, 2))]
    phrase = bank[int(rng.integers(len(bank)))]
    if phrase.times != "any" or not event.times or rng.random() < 0.4:
        return phrase
    if event.times < 3:
        often = "twice" if event.times == 2 else "once"
    else:
        often = ("several times", "repeatedly", "three times" if event.times == 3 else "many times")[rng.integers(3)]
    return replace(phrase, finite=f"{phrase.finite} {often}", ing=f"{phrase.ing} {often}")


def caption(rng: np.random.Generator, shares: Sequence[float], parents: float = 0.0) -> str:
    """The caption of some scene, without its sound: what a language model learns to write."""
    kind: Kind = KINDS[int(rng.choice(3, p=np.asarray(shares) / np.sum(shares)))]
    labels = _labels(kind, CAPTIONED, np.full(len(CAPTIONED), 1 / len(CAPTIONED)), rng)
    events = []
    for label in labels:
        times = int(rng.integers(6)) if label in COUNTED else 0
        only = [word for phrase in PHRASES[label] for word in phrase.only]
        description = only[int(rng.integers(len(only)))] if only and rng.random() < 0.4 else ""
        event = Event(label, 0.0, 1.0, rng.uniform(-10, 0), times, description)
        events.append(_vaguer(event, rng) if rng.random() < parents else event)
    return compose(kind, events, rng)


def _vaguer(event: Event, rng: np.random.Generator) -> Event:
    """The event told by one of its upper classes, where it has any."""
    parents = VOCABULARY[event.label].parents
    return replace(event, said=parents[int(rng.integers(len(parents)))]) if parents else event


def _labels(kind: Kind, labels: list[str], weights: NDArray[np.float64], rng: np.random.Generator) -> list[str]:
    """The labels of a scene, no two that a listener may take for each other: "a dog barks, then a dog barks" is no
    caption."""
    count = 1 if kind == "single" else int(rng.choice([2, 3], p=[0.8, 0.2] if kind == "sequence" else [0.9, 0.1]))
    chosen: list[str] = []
    while len(chosen) < count:
        label = labels[int(rng.choice(len(labels), p=weights))]
        if not any(label in akin(other) for other in chosen):
            chosen.append(label)
    return chosen


class SceneMaker:
    """Makes scenes from `recordings`: label -> sources -> recordings.

    A share `plain` of the scenes holds its recordings as they are, where others vary them in speed, colour, room and
    noise. A share `parents` of the sounds of these others is made hard to make out, and told by an upper class. Every
    source of a label is heard as often, however many clips were cut from it: twenty clips of one air conditioner are
    one air conditioner.
    """

    def __init__(
        self,
        recordings: Mapping[str, Sequence[Sequence[Recording]]],
        sample_rate: int,
        seconds: float,
        seed: int,
        shares: Sequence[float],
        parents: float = 0.0,
        plain: float = 0.0,
    ):
        self.recordings, self.rate, self.seconds, self.seed = recordings, sample_rate, seconds, seed
        self.labels, self.parents, self.plain = [*recordings, *SYNTHETIC], parents, plain
        self.shares = np.asarray(shares) / np.sum(shares)  # of KINDS
        counts = np.array([sum(map(len, found)) for found in recordings.values()] + [10] * len(SYNTHETIC), dtype=float)
        # between every label alike and every recording alike
        self.weights = np.sqrt(counts) / np.sqrt(counts).sum()

    def batch(self, step: int, size: int, part: Iterable[int] | None = None) -> list[Scene]:
        """Of batch number `step`, `size` scenes of similar length so that little is padding, those in `part`."""
        seconds = np.random.default_rng((self.seed, 1, step)).uniform(min(3.0, self.seconds), self.seconds)
        return [self.scene(step * size + k, seconds) for k in (range(size) if part is None else part)]

    def scene(self, index: int, seconds: float) -> Scene:
        """Scene number `index`, at most `seconds` long."""
        rng = np.random.default_rng((self.seed, 0, index))
        kind: Kind = KINDS[int(rng.choice(3, p=self.shares))]
        labels = _labels(kind, self.labels, self.weights, rng)
        plain = bool(self.plain) and rng.random() < self.plain
        if kind == "single":
            x, events = self._single(labels[0], seconds, rng, plain)
        elif kind == "sequence":
            x, events = self._sequence(labels, seconds, rng, plain)
        else:
            x, events = self._overlap(labels, seconds, rng, plain)
        x = x[: int(seconds * self.rate)]
        if rng.random() < 0.5:  # many collections pad their clips to one length
            x = np.pad(x, (0, int(seconds * self.rate) - len(x)))
        if not plain and rng.random() < 0.5:  # a bed of noise, mostly faint, which is no sound to tell of
            x = x + noise(len(x), rng, rng.uniform(0, 2)) * 10 ** (rng.uniform(-60, -18) / 20)
        if not plain and rng.random() < 0.15:  # a large or a hard room
            x = reverberate(x, rng, self.rate, 1.2, 0.4)
        x = x / max(float(np.abs(x).max()), 1e-6) * 10 ** (rng.uniform(-20, 0) / 20)
        return Scene(x.astype(np.float32), kind, tuple(events), compose(kind, events, rng))

    def _sound(self, label: str, seconds: float, rng: np.random.Generator, plain: bool) -> tuple[Audio, Event]:
        """A sound of the label, at most `seconds` long, varied unless `plain`; and an event without its place."""
        n, event = int(seconds * self.rate), Event(label, 0.0, 0.0, 0.0)
        if label == "noise":
            return noise(n, rng, float(rng.choice([0.0, 0.0, 1.0, 2.0]))), event
        if label == "tone":
            return tone(n, rng, self.rate), event
        sources = self.recordings[label]
        clips = sources[int(rng.integers(len(sources)))]
        recording = clips[int(rng.integers(len(clips)))]
        x: Audio = recording.samples.astype(np.float32) / np.float32(32767)
        if not plain and rng.random() < 0.6:
            x = respeed(x, rng.uniform(0.85, 1.18))
        if len(x) > n:
            offset = int(rng.integers(len(x) - n + 1))
            cut = x[offset : offset + n]
            # a cut from a pause would be captioned with what is not heard in it
            x = cut if np.abs(cut).max() > 0.1 * np.abs(x).max() else x[:n]
        event = replace(event, times=bursts(x, self.rate) if label in COUNTED else 0, description=recording.description)
        if plain:
            return x / max(float(np.abs(x).max()), 1e-6), event
        if rng.random() < 0.5:
            x = colour(x, rng)
        if rng.random() < 0.2:
            x = reverberate(x, rng, self.rate)
        if self.parents and rng.random() < self.parents and VOCABULARY[label].parents:
            x, event = blur(x, rng, self.rate), replace(_vaguer(event, rng), times=0, description="")
        return x / max(float(np.abs(x).max()), 1e-6), event

    def _repeat(self, x: Audio, length: float, rng: np.random.Generator) -> Audio:
        """The sound again and again, with pauses, up to `length` seconds."""
        n = int(length * self.rate)
        parts = [x]
        while sum(map(len, parts)) < n:
            parts += [np.zeros(int(rng.uniform(0, 0.5) * self.rate), np.float32), x]
        return np.concatenate(parts)[:n]

    def _single(self, label: str, seconds: float, rng: np.random.Generator, plain: bool) -> tuple[Audio, list[Event]]:
        if plain:
            x, event = self._sound(label, seconds, rng, plain)
            return x, [replace(event, start=0.0, end=len(x) / self.rate)]
        x, event = self._sound(label, rng.uniform(0.6, 1.0) * seconds, rng, plain)
        if rng.random() < 0.3:
            x, event = self._repeat(x, rng.uniform(0.6, 1.0) * seconds, rng), replace(event, times=0)
        room = seconds - len(x) / self.rate
        start = rng.uniform(0, min(1.5, room)) if rng.random() < 0.4 else 0.0
        event = replace(event, start=start, end=start + len(x) / self.rate)
        return np.pad(x, (int(start * self.rate), 0)), [event]

    def _sequence(
        self, labels: list[str], seconds: float, rng: np.random.Generator, plain: bool
    ) -> tuple[Audio, list[Event]]:
        parts, events, at = [], [], 0
        share = seconds / len(labels)
        levels = rng.uniform(-8, 0, len(labels))
        for label, level in zip(labels, levels - levels.max(), strict=True):
            x, event = self._sound(label, rng.uniform(0.5, 1.0) * share, rng, plain)
            x = x * np.float32(10 ** (level / 20))
            gap = int(rng.uniform(0, min(0.6, share - len(x) / self.rate)) * self.rate)
            end = (at + len(x)) / self.rate
            events.append(replace(event, start=at / self.rate, end=end, level=float(level)))
            parts += [x, np.zeros(gap, np.float32)]
            at += len(x) + gap
        return np.concatenate(parts), events

    def _overlap(
        self, labels: list[str], seconds: float, rng: np.random.Generator, plain: bool
    ) -> tuple[Audio, list[Event]]:
        length = rng.uniform(0.7, 1.0) * seconds
        sounds = [self._sound(label, length, rng, plain) for label in labels]
        once = int(rng.integers(2 * len(sounds)))  # in half of the scenes, one that is short is heard once
        mix = np.zeros(int(length * self.rate), np.float32)
        events = []
        for k, (x, event) in enumerate(sounds):
            if not plain and k != once and len(x) < 0.6 * length * self.rate:
                x, event = self._repeat(x, length, rng), replace(event, times=0)
            level = 0.0 if k == 0 else float(rng.uniform(-8, 0))
            rms = float(np.sqrt(np.square(x).mean())) or 1.0
            start = int(rng.integers(len(mix) - len(x) + 1)) if len(x) < len(mix) else 0
            x = x[: len(mix) - start]
            mix[start : start + len(x)] += x / np.float32(rms) * np.float32(10 ** (level / 20))
            events.append(replace(event, start=start / self.rate, end=(start + len(x)) / self.rate, level=level))
        return mix, events
