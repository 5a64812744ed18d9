"""How well and how fast `lamb caption --timeline` is, on made-up days.

    python benchmarks/timeline.py [--seconds S] [--seeds K ...] [--hours H] [--suffixes wav mp3 ...] [--model NAME]

A day is development recordings at known times in a bed of pink noise, a function of its seed. Scores are of whole days:
- boundary F1: a boundary found counts when it is within 1 s of a true one, each used once;
- label named: share of events whose label is named by the caption of the segment that overlaps the event most.
With `--hours` a day of that length is written in each format and captioned by the real command: time and peak memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import soundfile

from lamb.audio import reader as audio
from lamb.data import sources
from lamb.data.manifest import Clip
from lamb.data.vocabulary import names
from lamb.inference.captioner import Captioner
from lamb.inference.captions import Segment

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


def scores(day: Day, segments: Sequence[Segment]) -> np.ndarray:
    """(boundaries found, of them true, true boundaries, events, events named) of one day."""
    found = [s.start for s in segments[1:]]
    named = 0
    for start, end, label in day.events:
        main = max(segments, key=lambda s: min(end, s.end) - max(start, s.start))
        named += names(main.caption, label)
    true = [t for t in day.boundaries() if t < segments[-1].end - 0.1]
    return np.array([len(found), matched(found, true), len(true), len(day.events), named])


def report(name: str, counts: np.ndarray) -> None:
    found, right, true, events, named = counts
    shares = f"precision {right / found:.3f}, recall {right / true:.3f}"
    print(f"{name:8} boundary F1 {2 * right / (found + true):.3f} ({shares})", end=", ")
    print(f"label named {named / events:.3f} of {events} events", flush=True)


def write(path: Path, blocks: Iterable[np.ndarray]) -> None:
    """Blocks (n,) as a file of the kind that its name says."""
    pieces = (block[at : at + RATE] for block in blocks for at in range(0, len(block), RATE))
    if path.suffix != ".m4a":
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for x in pieces:
                file.write(x)
        return
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        for x in pieces:
            frame = av.AudioFrame.from_ndarray(x[None].astype(np.float32), "fltp", "mono")
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def long_day(clips: Sequence[Clip], hours: float, model: str, suffix: str) -> None:
    """Time and peak memory of the real command, beside those of a ten-second clip."""
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        for name, seconds in (("clip", 10), ("day", 3600 * hours)):
            path = Path(folder) / f"{name}.{suffix}"
            write(path, Day(clips, 7, seconds, "noisy").blocks())
            size = path.stat().st_size / 1e6
            began = time.perf_counter()
            command = ["caption", str(path), "--timeline", "--model", model, "--format", "srt", "--output", os.devnull]
            process = subprocess.Popen([sys.executable, "-m", "lamb", *command])
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                sys.exit(f"lamb caption failed: {status}")
            peaks.append(usage.ru_maxrss / 1024)
            wall, cpu = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
            told = f"{seconds:.0f} s ({size:.1f} MB) in {wall:.1f} s ({cpu:.0f} s CPU), peak {peaks[-1]:.0f} MB"
            print(f"{path.name}: {told}", flush=True)
        print(f"memory above the clip's: {peaks[1] - peaks[0]:.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900, help="length of a scored day")
    parser.add_argument("--seeds", type=int, nargs="*", default=[11, 12, 13, 14])
    parser.add_argument("--hours", type=float, default=0, help="also time a day of this length")
    parser.add_argument("--suffixes", nargs="+", default=["wav"], help="formats of it: wav, flac, ogg, mp3, m4a")
    parser.add_argument("--beams", type=int, help="of the segments' captions, in place of the timeline's own")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    clips = [clip for clip in sources.sounds(SOUNDS) if clip.split == "development"]
    if args.seeds:
        captioner = Captioner.load(args.model, args.device)
        total = np.zeros(5, int)
        for bed in BEDS:
            counts = np.zeros(5, int)
            began = time.perf_counter()
            for seed in args.seeds:
                day = Day(clips, seed, args.seconds, bed)
                x = np.concatenate(list(day.blocks()))
                counts += scores(day, list(captioner.timeline((x, RATE), beams=args.beams)))
            report(bed, counts)
            total += counts
            print(f"{'':8} {args.seconds * len(args.seeds) / (time.perf_counter() - began):.0f} times real time")
        report("both", total)
    if args.hours:
        for suffix in args.suffixes:
            long_day(clips, args.hours, args.model, suffix)


if __name__ == "__main__":
    main()
