"""Makes the sounds in `samples/` from nothing but arithmetic, so that they are free of any rights.

    python scripts/make_samples.py [FOLDER]

Each function below returns one sound, float64 (T,) at `RATE`, as near to the real thing as a page of code comes. The
random numbers are seeded for each file, so the same files come out everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import soundfile

RATE = 16_000  # Hz
Random = np.random.RandomState  # its numbers are frozen, those of default_rng may change with NumPy's version


def seconds(duration: float) -> np.ndarray:
    """The time axis of a sound, (T,) in s."""
    return np.arange(round(duration * RATE)) / RATE


def noise(random: Random, duration: float, shape: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Noise (T,) of unit power whose amplitude spectrum is `shape` of the frequency in Hz."""
    n = round(duration * RATE)
    spectrum = np.fft.rfft(random.standard_normal(n)) * shape(np.fft.rfftfreq(n, 1 / RATE))
    x = np.fft.irfft(spectrum, n)
    return x / x.std()


def band(low: float, high: float, order: int = 2) -> Callable[[np.ndarray], np.ndarray]:
    """A band from `low` to `high` Hz whose flanks fall by 6 dB an octave and `order`."""
    return lambda f: 1 / (1 + (low / np.maximum(f, 1e-3)) ** order) / (1 + (f / high) ** order)


def add(x: np.ndarray, at: float, y: np.ndarray) -> None:
    """Add `y` to `x` from `at` seconds on, in place; what does not fit is cut."""
    start = round(at * RATE)
    y = y[: max(0, len(x) - start)]
    x[start : start + len(y)] += y


def room(random: Random, x: np.ndarray, decay: float, wet: float, bright: float = 3000) -> np.ndarray:
    """`x` in a room: 60 dB less after `decay` s, `wet` of it reverberation, damped above `bright` Hz."""
    t = seconds(decay)
    tail = noise(random, decay, band(100, bright)) * 10 ** (-3 * t / decay)
    tail *= wet / np.sqrt((tail**2).sum())
    n = len(x) + len(tail)
    return x + np.fft.irfft(np.fft.rfft(x, n) * np.fft.rfft(tail, n), n)[: len(x)]


def fade(x: np.ndarray, into: float = 0.02, out: float = 0.05) -> np.ndarray:
    """`x` with its first and last seconds brought in and out."""
    t = seconds(len(x) / RATE)
    return x * np.clip(t / into, 0, 1) * np.clip((t[-1] - t) / out, 0, 1)


def background(random: Random, duration: float, level: float) -> np.ndarray:
    """The hush of a room, which no recording is without."""
    return level * noise(random, duration, lambda f: 1 / (f + 40))


def rain(random: Random, duration: float = 6.0) -> np.ndarray:
    """Steady rain: the hush of drops far away, many drops near by, and the patter of those on the window sill."""
    x = 0.5 * noise(random, duration, lambda f: band(150, 4500, 2)(f) / (1 + f / 1200) ** 0.7)
    x *= 1 + 0.12 * noise(random, duration, band(0.1, 2))
    for count, loudness, longest in ((700, 0.5, 0.002), (45, 1.2, 0.006)):
        for _ in range(round(count * duration)):
            length = random.uniform(0.0006, longest)
            t = seconds(6 * length)
            pitch = random.uniform(500, 3500)  # of what the drop falls on
            splash = 0.5 * random.standard_normal(len(t)) + np.sin(2 * np.pi * pitch * t + random.uniform(0, 6))
            add(x, random.uniform(0, duration), loudness * random.uniform(0.1, 1) ** 2 * splash * np.exp(-t / length))
    return np.tanh(0.6 * room(random, x, 0.5, 0.3, 4000))


def siren(random: Random, duration: float = 6.0) -> np.ndarray:
    """A police car's wail: a harmonic tone that rises and falls, through a horn, in a street."""
    t = seconds(duration)
    pitch = 620 * 2 ** (1.15 * (0.5 - 0.5 * np.cos(2 * np.pi * t / 2.4)) ** 0.8)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    x = sum(a * np.sin(k * phase) for k, a in enumerate((1, 0.35, 0.18, 0.08, 0.04, 0.02), 1))
    x *= 1 + 0.15 * noise(random, duration, band(0.1, 3))
    x = room(random, np.asarray(x), 1.8, 0.9)
    return fade(x + background(random, duration, 0.5), 0.05, 0.3)


def bell(random: Random, pitch: float, duration: float) -> np.ndarray:
    """One stroke of a church bell: hum, prime, minor third, fifth, nominal and above, each beating and dying."""
    t = seconds(duration)
    x = np.zeros(len(t))
    partials = ((0.5, 0.5, 6), (1, 0.8, 3.6), (1.19, 1, 2.8), (1.5, 0.35, 1.8), (2, 1, 1.8), (2.51, 0.4, 1.0))
    partials += ((2.66, 0.35, 0.9), (3.01, 0.5, 0.8), (4.17, 0.35, 0.5), (5.43, 0.25, 0.35), (6.8, 0.15, 0.22))
    for ratio, strength, decay in partials:
        for split in (-0.6, 0.6):  # a bell is never quite round: every partial is two, and they beat
            phase = random.uniform(0, 2 * np.pi)
            x += strength * np.exp(-t / decay) * np.sin(2 * np.pi * (pitch * ratio + split) * t + phase)
    clapper = noise(random, duration, band(800, 4000)) * np.exp(-t / 0.015)
    return fade(x + 1.5 * clapper, 0.002, 0.2)


def church_bells(random: Random, duration: float = 7.0) -> np.ndarray:
    """Three bells in a tower, rung by hand: neither in tune nor in time with each other, heard from the churchyard."""
    x = np.zeros(round(duration * RATE))
    for pitch, first, every in ((523, 0.1, 1.63), (440, 0.52, 1.72), (371, 0.95, 1.81)):
        for k in range(5):
            at = first + k * every + random.uniform(-0.06, 0.06)
            if at < duration - 0.3:
                add(x, at, random.uniform(0.7, 1) * bell(random, pitch, duration))
    x = x + 0.35 * np.concatenate([np.zeros(round(0.09 * RATE)), x])[: len(x)]  # the wall of a house across the road
    return fade(room(random, x, 3.0, 0.8) + background(random, duration, 0.3), 0.01, 0.6)


# What a clock's case answers to each click: pitch in Hz, strength, decay in s
STEEL = ((1570, 0.5, 0.003), (2890, 0.7, 0.0025), (4420, 0.6, 0.002), (6180, 0.4, 0.0015))


def clock_ticking(random: Random, duration: float = 5.0) -> np.ndarray:
    """An alarm clock by the bed, four strokes a second, tick and tock: clicks of small steel parts in a tin case."""
    x = background(random, duration, 0.02)
    t = seconds(0.05)
    for k in range(round(4 * duration)):
        stroke = np.zeros(len(t))
        for delay, level in ((0, 0.6), (0.009, 1.0), (0.016, 0.5)):  # escapement: unlock, impulse, drop
            click = 0.7 * random.standard_normal(len(t)) * np.exp(-t / 0.0004)
            for pitch, strength, decay in STEEL:
                pitch *= (1.0 if k % 2 else 1.06) * random.uniform(0.99, 1.01)
                click += strength * np.sin(2 * np.pi * pitch * t + random.uniform(0, 6)) * np.exp(-t / decay)
            add(stroke, delay, level * click)
        add(x, 0.1 + 0.25 * k, stroke * random.uniform(0.85, 1) * (1.0 if k % 2 else 0.75))
    return room(random, x, 0.3, 0.2, 6000)


def alarm_clock(random: Random, duration: float = 5.0) -> np.ndarray:
    """A digital alarm clock: four beeps, a pause, four beeps."""
    x = background(random, duration, 0.01)
    t = seconds(0.07)
    beep = sum(np.sin(2 * np.pi * 2048 * k * t) / k for k in (1, 2, 3)) * fade(np.ones(len(t)), 0.002, 0.004)
    for group in np.arange(0.15, duration, 1.0):
        for k in range(4):
            add(x, group + 0.125 * k, np.asarray(beep))
    return room(random, x, 0.3, 0.25, 6000)


def sea_waves(random: Random, duration: float = 8.0) -> np.ndarray:
    """Waves that swell, break with a hiss and run out on the beach."""
    t = seconds(duration)
    x = 0.25 * noise(random, duration, lambda f: 1 / (f + 150))
    for at, strength in ((-1.0, 0.7), (2.0, 1.0), (5.6, 0.85)):
        rise = np.clip((t - at) / 1.6, 0, 1) ** 2
        fall = np.exp(-np.clip(t - at - 1.6, 0, None) / 1.3)
        roar = noise(random, duration, lambda f: 1 / (f + 300)) * rise * fall
        spray = noise(random, duration, band(900, 5000)) * rise**3 * fall**1.3
        x += strength * (roar + 0.55 * spray)
    return fade(x, 0.3, 0.4)


def crickets(random: Random, duration: float = 5.0) -> np.ndarray:
    """Crickets on a summer night: pulses of a pure high tone in threes, from several places."""
    x = background(random, duration, 0.02)
    t = seconds(0.018)
    for pitch, every, pulses, level in ((4450, 0.42, 3, 1.0), (4780, 0.55, 3, 0.4), (4210, 0.37, 4, 0.25)):
        at = random.uniform(0, every)
        while at < duration:
            for k in range(pulses):
                pulse = np.sin(2 * np.pi * pitch * (1 - 0.02 * t / t[-1]) * t) * np.sin(np.pi * t / t[-1]) ** 0.7
                add(x, at + 0.032 * k, level * (0.6 + 0.2 * k) * pulse)
            at += every * random.uniform(0.95, 1.05)
    return room(random, x, 0.4, 0.3, 6000)


def helicopter(random: Random, duration: float = 6.0) -> np.ndarray:
    """A helicopter near by: the slap of the blades, thirteen a second, the tail rotor, the rush of air, the turbine."""
    t = seconds(duration)
    x = 2.0 * noise(random, duration, lambda f: band(60, 2500)(f) / (f + 200))
    gate = np.exp(-((13 * t) % 1) / 0.18)  # each blade beats the air, and the sound of it dies
    x *= 0.35 + gate
    x += 0.9 * noise(random, duration, band(120, 900, 4)) * gate**1.5
    slap = sum(np.cos(2 * np.pi * 13 * k * t + random.uniform(0, 2 * np.pi)) / (1 + k / 6) for k in range(1, 24))
    x += 0.12 * np.asarray(slap) * (0.4 + gate)
    tail = sum(np.sin(2 * np.pi * 68 * k * t) / k for k in range(1, 10))
    x += 0.12 * np.asarray(tail) + 0.02 * np.sin(2 * np.pi * 2350 * t)
    x *= 0.85 + 0.15 * np.sin(2 * np.pi * 0.2 * t)
    return fade(room(random, x, 0.8, 0.4), 0.2, 0.3)


def knocks(random: Random, duration: float) -> np.ndarray:
    """Knuckles on a wooden door: one, two, three, and again."""
    x = background(random, duration, 0.004)
    t = seconds(0.25)
    for at in (0.25, 0.47, 0.69, 1.5, 1.72, 1.94):
        knock = 0.5 * noise(random, 0.25, band(200, 1100, 4)) * np.exp(-t / 0.006)
        for pitch, level, decay in ((118, 0.7, 0.03), (265, 0.9, 0.022), (430, 0.8, 0.016), (690, 0.5, 0.01)):
            pitch *= random.uniform(0.98, 1.02)
            knock += level * np.sin(2 * np.pi * pitch * t) * np.exp(-t / decay)
        add(x, at, random.uniform(0.8, 1) * knock)
    return room(random, x, 0.35, 0.3, 1200)


def horn(random: Random, duration: float) -> np.ndarray:
    """A car's horn: two reedy tones a third apart, a short hoot and a long one."""
    t = seconds(duration)
    x = np.zeros(len(t))
    for pitch in (415.0, 502.0):
        tone = sum(
            np.sin(2 * np.pi * pitch * k * t + k) * k**-0.35 / (1 + (k * pitch / 3200) ** 4) for k in range(1, 16)
        )
        x += np.asarray(tone)
    gate = np.zeros(len(t))
    for at, length in ((0.2, 0.35), (0.8, 1.2)):
        add(gate, at, fade(np.ones(round(length * RATE)), 0.012, 0.03))
    return room(random, x * gate, 0.8, 0.4) + background(random, duration, 0.03)


def in_turn(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two sounds, one after the other, equally loud."""
    return np.concatenate([fade(x) / np.abs(x).max() for x in (first, second)])


def knocks_then_bells(random: Random) -> np.ndarray:
    """A knock at the door, then church bells."""
    return in_turn(knocks(random, 2.8), church_bells(random, 4.4))


def horn_then_rain(random: Random) -> np.ndarray:
    """A car horn, then rain."""
    return in_turn(horn(random, 2.5), rain(random, 4.0))


def silence(random: Random) -> np.ndarray:
    """Nothing at all: digital silence."""
    return np.zeros(3 * RATE)


SOUNDS: tuple[Callable[[Random], np.ndarray], ...] = (
    rain, siren, church_bells, clock_ticking, alarm_clock, sea_waves, crickets, helicopter,
    knocks_then_bells, horn_then_rain, silence,
)  # fmt: skip


def main(folder: Path) -> None:
    """Write every sound to `folder`, 16 bit FLAC named after its function, with a peak of -3 dBFS."""
    folder.mkdir(parents=True, exist_ok=True)
    for sound in SOUNDS:
        x = sound(Random(crc32(sound.__name__.encode())))
        x = 0.7 * x / max(np.abs(x).max(), 1e-9)
        soundfile.write(folder / f"{sound.__name__}.flac", x, RATE, subtype="PCM_16")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "samples")
