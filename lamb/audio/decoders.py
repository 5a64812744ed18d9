"""Decoders behind one shape, `Sound`: libsndfile, and arrays that the caller has decoded; ffmpeg is next door."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from .errors import AudioError, Damage
from .headers import mp3_says_length

BLOCK = 65_536  # frames decoded at a time
_UNKNOWN = 2**63 - 1  # libsndfile's "frames" of a FLAC that does not say


@dataclass(frozen=True)
class AudioInfo:
    """What a sound's header says."""

    duration: float | None  # seconds; None where the header does not say
    sample_rate: int  # Hz
    channels: int
    format: str  # container and codec, such as "wav pcm_16" or "mov aac"


@dataclass(frozen=True)
class Sound:
    """An opened source. `read(first)`, once: blocks (n, channels) of float32, from frame `first` to the end."""

    name: str
    rate: int  # Hz
    channels: int
    frames: int | None  # as the header says; None where it does not
    format: str
    read: Callable[[int], Iterator[np.ndarray]]
    damage: Damage = field(default_factory=Damage)  # is noted on the way
    tolerant: bool = False  # damage is passed over, not refused
    exact: bool = True  # `frames` is what there must be, not what there may be
    is_cut: Callable[[], bool] = lambda: False  # at the end: whether there should be more

    @property
    def info(self) -> AudioInfo:
        """What its header says."""
        duration = None if self.frames is None else self.frames / self.rate
        return AudioInfo(duration, self.rate, self.channels, self.format)


def scaled(x: np.ndarray) -> np.ndarray:
    """Samples as float32: integers to [-1, 1) by their width (unsigned ones are centred), floats as they are."""
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and treated so
            return x.astype(np.float32, copy=False)
    half = 2.0 ** (8 * x.dtype.itemsize - 1)
    return ((x.astype(np.float64) - (half if x.dtype.kind == "u" else 0)) / half).astype(np.float32)


def resampled(rate: int, target: int) -> Callable[[np.ndarray], np.ndarray]:
    """From blocks (n, channels) at `rate` Hz to blocks at `target` Hz, continuous from one to the next."""
    import soxr

    streams: dict[int, Any] = {}

    def convert(x: np.ndarray) -> np.ndarray:
        channels = x.shape[1]
        if channels not in streams:
            streams.clear()
            streams[channels] = soxr.ResampleStream(rate, target, num_channels=channels, dtype="float32")
        return streams[channels].resample_chunk(np.ascontiguousarray(x)).reshape(-1, channels)

    return convert


def array(called: str, x: np.ndarray, rate: int) -> Sound:
    """Samples (T,) or (T, channels) that the caller has already."""
    x = np.asarray(x)
    if x.ndim not in (1, 2) or x.dtype.kind not in "fiu":
        problem = f"an array of {x.dtype} with shape {x.shape}"
        raise AudioError(called, problem, "give floats or integers of shape (T,) or (T, channels)")
    x = x.reshape(len(x), -1) if x.size else np.empty((0, 1), np.float32)

    def read(first: int) -> Iterator[np.ndarray]:
        return (scaled(x[at : at + BLOCK]) for at in range(first, len(x), BLOCK))

    return Sound(called, int(rate), x.shape[1], len(x), "array", read)


def libsndfile(called: str, file: BinaryIO, stack: ExitStack) -> Sound | None:
    """Decode by libsndfile; None for what it cannot read, or reads only in part."""
    import soundfile

    class Forward(soundfile.SoundFile):
        """Else every `read` ends with a seek to where it is already, after which an mp3 goes on with some silence."""

        def seekable(self) -> bool:
            return False

    says_length = mp3_says_length(file)  # now, as nobody else may move the file once libsndfile has it
    file.seek(0)
    try:
        sound = stack.enter_context(Forward(file))
    except soundfile.LibsndfileError:
        return None
    if not soundfile.SoundFile.seekable(sound):  # GSM 6.10: seeking fails, if only to the beginning
        return None
    # Where the header gives no length libsndfile stops at a guess: at nothing in a wav from a pipe, at a sixth of a
    # variable-rate mp3 whose first frame is a large one.
    if sound.frames in (0, _UNKNOWN) or (sound.format == "MP3" and not says_length):
        return None

    def read(first: int) -> Iterator[np.ndarray]:
        if first >= sound.frames:
            return
        # libsndfile's mp3 is silent after a seek until the bit reservoir is filled, in at most half a second; its
        # vorbis lands beside the mark in the last page, which holds at most 255 packets of, in practice, 2048 frames.
        at = max(0, first - sound.samplerate)
        if sound.subtype == "VORBIS":
            at = min(at, max(0, sound.frames - 2**19))
        sound.seek(at)
        while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
            if at + len(block) > first:
                yield block[max(0, first - at) :]
            at += len(block)

    kind = f"{sound.format} {sound.subtype}".lower()
    return Sound(called, sound.samplerate, sound.channels, sound.frames, kind, read)
