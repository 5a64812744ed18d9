"""The only audio reader: any sound -> mono float32 samples (T,) in [-1, 1] at the rate that is asked for.

libsndfile decodes what it can (wav, flac, ogg, opus, mp3, aiff, au, caf) and PyAV the rest (m4a, mp4, webm, mka, aac,
amr, wma ...); which one is found out by trying, not from the file's name. A sound is decoded in blocks that are
mixed to mono and resampled at once, so that memory holds the samples asked for and no more.

A file that cannot be read in full is an `AudioError`, never silence and never a part of it:
- wav, aiff, au, caf, mp4 and mp3 (with a Xing tag) that are shorter than their header says, and ogg without its last
  page, are refused on opening; flac, webm, mka and wma when decoding stops before the length in the header.
- A cut that lies behind the window asked for goes unnoticed in the latter; a cut in an mp3 without a tag, or between
  two frames of aac or amr, cannot be noticed at all: nothing in them says how long they are.

Only audio demuxers may look at a file, so that a playlist cannot make ffmpeg open other files or addresses. Yet
libsndfile is known to crash the process on some broken files: a service reads strangers' files in a worker process.
"""

import io
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import BinaryIO

import numpy as np

from .decoders import AudioInfo, Sound, array, libsndfile, resampled
from .downmix import downmix
from .errors import REPLACE, RESCUE, SAFE, AudioDamage, AudioError, AudioRepair, AudioWarning, Damage
from .ffmpeg import ffmpeg
from .headers import HeaderError, Part, is_cut, is_mp3, joined_at, read_at
from .sources import Source, Stream, is_live, name, open_source

__all__ = [
    "RESCUE",
    "AudioDamage",
    "AudioError",
    "AudioInfo",
    "AudioWarning",
    "Damage",
    "Source",
    "centred",
    "is_live",
    "is_silent",
    "level",
    "load",
    "mended",
    "name",
    "probe",
    "windows",
]

RATES = (4_000, 192_000)  # Hz
CHANNELS = (1, 32)
MIN_DURATION = 0.1  # seconds; shorter than one frame of most encoders
MAX_DURATION = 3600.0  # seconds that `load` holds unless told otherwise: 230 MB at 16 kHz
TRUNCATED = "truncated: it ends before its own header says"
NO_MEMORY = "needs more memory to decode than there is for it"
MENDED = "samples near {:.1f} s are NaN or infinite, replaced by interpolation"
SILENCE_DBFS = -70.0  # a peak below this is digital silence


def probe(source: Source) -> AudioInfo:
    """Length, rate, channels and format of `source`, decoding at most a moment of it. Raises AudioError."""
    with opened(source) as sound:
        return sound.info


def load(
    source: Source,
    sample_rate: int,
    start: float = 0.0,
    duration: float | None = None,
    *,
    max_duration: float = MAX_DURATION,
) -> np.ndarray:
    """Samples (T,), mono float32 at `sample_rate` Hz, of the seconds [start, start + duration) of `source`.

    They equal the same slice of the whole sound (within 1 ms in webm, mka and wma, whose clocks are no finer). Only
    what is near the window is decoded, but in formats without an index (amr, ac3) all that is before it. A window
    that goes past the end is cut there. Without a `duration` it reads to the end, at most `max_duration` seconds.
    Raises AudioError: unreadable, a longer sound than that, or a window that starts past the end.
    """
    check_stretch(start, duration)
    try:
        return _load(source, None, sample_rate, start, duration, max_duration)
    except AudioError as error:
        if is_live(source) or isinstance(source, tuple):
            raise
        try:  # the decoder may be the one that gave up
            x = _load(source, damage := Damage(), sample_rate, start, duration, max_duration)
        except AudioError:
            raise error from None
        if damage != Damage():
            raise
        return x


def check_stretch(start: float, duration: float | None) -> None:
    """Raise ValueError for seconds that no sound can have."""
    if start < 0 or (duration is not None and duration <= 0):
        raise ValueError(f"start must be >= 0 and duration > 0, not {start} and {duration}")


def _load(
    source: Source, damage: Damage | None, sample_rate: int, start: float, duration: float | None, max_duration: float
) -> np.ndarray:
    with opened(source, damage) as sound:

        def too_long() -> AudioError:
            problem = f"longer than the {max_duration:g} s that are read as one sound"
            return AudioError(sound.name, problem, "read it in windows (--timeline), or give a duration")

        if duration is None and sound.frames is not None and sound.frames / sound.rate - start > max_duration:
            raise too_long()
        # The resampler needs some sound on both sides of the window, and must begin where a sample of the sound and
        # one of the result fall on the same instant: every 1 / tick seconds.
        tick = math.gcd(sound.rate, sample_rate)
        pad = 0.0 if sound.rate == sample_rate else 256 / min(sound.rate, sample_rate)
        begin = max(0, math.floor((start - pad) * tick))
        skip = round(start * sample_rate) - begin * (sample_rate // tick)
        seconds = max_duration if duration is None else duration
        wanted = max(1, round(seconds * sample_rate))
        stop = None if duration is None else math.ceil((start + duration + pad) * sound.rate)

        held, chunks = 0, []
        for chunk in _resampled(sound, sample_rate, begin * (sound.rate // tick), stop):
            chunks.append(chunk)
            held += len(chunk)
            if duration is None and held > skip + wanted:  # the header did not say, or lied
                raise too_long()
        x = np.concatenate(chunks)[skip : skip + wanted] if chunks else np.empty(0, np.float32)
        if not len(x):
            raise AudioError(sound.name, f"ends before {start:g} s, where the window begins", "choose an earlier start")
        return x


def windows(
    source: Source, sample_rate: int, window: float, hop: float, damage: Damage | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """Cut `source` in one pass and constant memory: (start in seconds, samples (T,) as from `load`), every `hop` s.

    Each holds `window` seconds, the last one what is left; it stops before a window that lies within the previous
    one. Raises AudioError; for a sound that breaks off, after the windows before the break.

    With `damage` it costs what is damaged: zeros are in its place, and its times are noted when the window that holds
    them comes; so is an end that comes too early. A pipe is read as it comes, not copied, if its format can be read
    forwards: wav, flac, ogg, opus, mp3, aac, webm, mka, au.
    """
    if not 0 < hop <= window:
        raise ValueError(f"hop must be > 0 and at most the window of {window} s, not {hop}")
    with opened(source, damage) as sound:
        yield from cut(sound, sample_rate, window, hop)


def cut(sound: Sound, sample_rate: int, window: float, hop: float) -> Iterator[tuple[float, np.ndarray]]:
    """As `windows`, of a sound that is open."""
    size = math.ceil(window * sample_rate - 1e-6)  # not rounded down: windows end to end would leave out a sample
    held: list[np.ndarray] = []  # samples [first, end) of the sound
    first = end = covered = index = 0
    for chunk in _resampled(sound, sample_rate):
        held.append(chunk)
        end += len(chunk)
        while (start := round(index * hop * sample_rate)) + size <= end:
            x = np.concatenate(held)[start - first :]
            held, first, covered = [x], start, start + size
            yield index * hop, x[:size].copy()
            index += 1
    if end > covered:
        yield index * hop, np.concatenate(held)[start - first :]


def centred(x: np.ndarray) -> np.ndarray:
    """Samples `x` (T,) without their mean, as every encoder hears them, in training too: a constant is no sound."""
    return x - x.mean(dtype=np.float64).astype(np.float32)


def level(x: np.ndarray) -> float:
    """Peak level of samples `x` around their mean, in dBFS: 0 at full scale, -inf for a constant."""
    if not len(x):
        return -math.inf
    mean = float(x.mean(dtype=np.float64))
    peak = max(float(x.max()) - mean, mean - float(x.min()))
    peak = 0.0 if peak < 1e-6 else peak  # rounding
    return 20 * math.log10(peak) if peak else -math.inf


def is_silent(x: np.ndarray) -> bool:
    """Whether `x` is digital silence: its peak is below SILENCE_DBFS."""
    return level(x) < SILENCE_DBFS


def mended(x: np.ndarray) -> tuple[np.ndarray, int, bool]:
    """A copy of samples (n,) in which all are finite, how many were not, and whether those are too many.

    They are replaced by interpolation between their neighbours; if they are too many, all of `x` becomes zeros.
    """
    x, bad = x.copy(), ~np.isfinite(x)
    count = int(bad.sum())
    lost = count > max(64, len(x) // 10)
    good = np.flatnonzero(~bad)
    if lost or not len(good):
        x[:] = 0
    elif count:
        x[bad] = np.interp(np.flatnonzero(bad), good, x[good])
    return x, count, lost


# ---- from a source to blocks of mono samples ----------------------------------------------------------------------


@contextmanager
def opened(source: Source, damage: Damage | None = None, track: int | None = None) -> Iterator[Sound]:
    """Open whatever `source` is, and refuse what is out of bounds. Damage is noted, or without `damage` refused.

    `track` is the audio track of a video, from 1 on; None: the default one, else the loudest.
    """
    with ExitStack() as stack:
        called = name(source)
        if isinstance(source, tuple):
            sound = replace(array(called, *source), damage=damage or Damage())
        else:
            file = open_source(source, stack, streamed=damage is not None)
            try:
                sound = _decoded(called, file, stack, damage, track)
            except AudioError:
                raise
            except HeaderError as error:
                raise AudioError(called, error.problem, SAFE) from None
            except Exception as error:  # whatever a decoder raises is the file's error
                raise AudioError(called, _problem(error, "damaged: it cannot be decoded"), SAFE) from error
        for what, value, (low, high) in (("Hz", sound.rate, RATES), ("channels", sound.channels, CHANNELS)):
            if not low <= value <= high:
                remedy = f"convert it to {low} to {high} {what}"
                if isinstance(source, tuple):
                    remedy = f"give an array (T, channels) with {low} to {high} {what}"
                raise AudioError(called, f"{value} {what}, outside {low} to {high}", remedy)
        if sound.frames is not None:
            _check_length(sound, sound.frames)
        yield replace(sound, tolerant=damage is not None)


def _decoded(called: str, file: BinaryIO | Stream, stack: ExitStack, damage: Damage | None, track: int | None) -> Sound:
    """A file's sound, by the decoder that suits it, and all of it where files were joined to one."""
    noted = damage or Damage()
    if isinstance(file, Stream):
        return replace(ffmpeg(called, file, stack, noted, track), is_cut=file.is_cut)
    if not file.seek(0, os.SEEK_END):
        raise AudioError(called, "empty (0 bytes)", REPLACE)
    if is_cut(file):
        noted.truncated = TRUNCATED
        if damage is None:
            raise AudioError(called, TRUNCATED, RESCUE)

    def one(part: BinaryIO, within: ExitStack, own: Damage) -> Sound:
        head = read_at(part, 0, 4)
        # libsndfile closes over a hole in these, and all that follows is too early
        if damage is not None and (head in (b"fLaC", b"OggS") or is_mp3(head)):
            return ffmpeg(called, part, within, own, track)
        sound = libsndfile(called, part, within)
        return replace(sound, damage=own) if sound else ffmpeg(called, part, within, own, track)

    joints = joined_at(file)
    return _joined(file, joints, one, stack, noted) if joints else one(file, stack, noted)


def _joined(
    file: BinaryIO,
    joints: list[int],
    one: Callable[[BinaryIO, ExitStack, Damage], Sound],
    stack: ExitStack,
    damage: Damage,
) -> Sound:
    """The sound of files that follow one another in one, at the rate of the first. `joints` are where others begin."""
    parts = list(pairwise([0, *joints, file.seek(0, os.SEEK_END)]))

    def within(bounds: tuple[int, int]) -> BinaryIO:
        return io.BufferedReader(Part(file, *bounds))  # only when its turn comes: each has a buffer

    head = one(within(parts[0]), stack, damage)

    def read(first: int) -> Iterator[np.ndarray]:
        at = 0
        for part in parts:
            begin, own = at / head.rate, Damage()
            with ExitStack() as held:
                sound = head if part is parts[0] else one(within(part), held, own)
                convert = (lambda x: x) if sound.rate == head.rate else resampled(sound.rate, head.rate)
                for block in map(convert, sound.read(0)):
                    if at + len(block) > first:
                        yield block[max(0, first - at) :]
                    at += len(block)
            damage.spans += [(begin + start, begin + end) for start, end in own.spans]

    return replace(head, frames=None, read=read, damage=damage)


def _problem(error: Exception, problem: str) -> str:
    return NO_MEMORY if isinstance(error, MemoryError) else problem


def _check_length(sound: Sound, frames: int) -> None:
    if frames == 0:
        raise AudioError(sound.name, "holds zero samples", "record or export it again")
    if frames < MIN_DURATION * sound.rate:
        problem = f"lasts {frames / sound.rate:.3f} s, shorter than {MIN_DURATION} s"
        raise AudioError(sound.name, problem, "give a longer sound")


def _mono(sound: Sound, first: int, stop: int | None) -> Iterator[np.ndarray]:
    """Frames [first, stop) in one channel: blocks (n,). Raises AudioError for what is wrong on the way."""
    at, repaired, problem = first, False, ""
    try:
        for x in downmix(sound.read(first)):
            _refuse_loss(sound)
            x, count, lost = mended(x[: None if stop is None else stop - at])
            if lost and not sound.tolerant:
                problem = f"{count} of {len(x)} samples near {at / sound.rate:.1f} s are NaN or infinite"
                raise AudioError(sound.name, problem, "record or export it again")
            if lost:
                sound.damage.spans.append((at / sound.rate, (at + len(x)) / sound.rate))
            elif count and not repaired:
                warnings.warn(AudioRepair(sound.name, MENDED.format(at / sound.rate)), stacklevel=2)
                repaired = True
            yield x
            at += len(x)
            if at == stop:
                return
        _refuse_loss(sound)
    except AudioError:
        if not sound.tolerant or not at:
            raise
        problem = f"truncated or damaged: decoding stops at {at / sound.rate:.2f} s"
    except Exception as error:  # whatever a decoder raises is the file's error
        problem = _problem(error, f"truncated or damaged: decoding stops at {at / sound.rate:.2f} s")
        if not sound.tolerant or not at:
            raise AudioError(sound.name, problem, RESCUE) from error
    # The end. A header may be wrong by a codec's delay or rounding, hence 0.2 s or a hundredth.
    promised = sound.frames or 0
    if not sound.exact and not (sound.damage.spans and sound.damage.spans[-1][1] > at / sound.rate - 1.0):
        promised = 0  # what is there is whole up to its end: others wrote into the header what was once there
    if not problem and promised - at > max(0.2 * sound.rate, promised / 100):
        problem = f"truncated: {at / sound.rate:.2f} s of the {promised / sound.rate:.2f} s in its header"
    if not problem and sound.is_cut():
        problem = f"{TRUNCATED}, at {at / sound.rate:.2f} s"
    if problem and (not sound.tolerant or not at):
        raise AudioError(sound.name, problem, RESCUE)
    sound.damage.truncated = problem or sound.damage.truncated
    if first == 0 and not problem:
        _check_length(sound, at)


def _refuse_loss(sound: Sound) -> None:
    """Raise AudioError for what could not be decoded, where it is not to be passed over."""
    if sound.damage.spans and not sound.tolerant:
        raise AudioError(sound.name, sound.damage.told(), RESCUE)


def _resampled(sound: Sound, rate: int, first: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """Frames [first, stop) of the sound at `rate` Hz: blocks (n,), continuous from one to the next."""
    blocks = _mono(sound, first, stop)
    if sound.rate == rate:
        yield from blocks
        return
    import soxr

    stream = soxr.ResampleStream(sound.rate, rate, num_channels=1, dtype="float32")
    for x in blocks:
        yield stream.resample_chunk(x)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)
