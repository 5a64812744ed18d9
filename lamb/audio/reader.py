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

import glob
import io
import math
import os
import shutil
import stat
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, BinaryIO

import numpy as np

from .errors import CONVERT, REPLACE, RESCUE, AudioDamage, AudioError, AudioWarning

Source = str | os.PathLike | bytes | BinaryIO | tuple[np.ndarray, int]
"""A path; a file's content; a binary file object, read from its beginning (one that cannot seek, such as a pipe, is
copied to a temporary file and can be read once); or an array (T,) or (T, channels) with its rate in Hz, floats as they
are, integers scaled to [-1, 1]."""

# fmt: off
SUFFIXES = frozenset([  # what `expand` takes for sound when it looks into a folder
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf",
    ".m4a", ".m4b", ".mp4", ".mov", ".3gp", ".webm", ".mka", ".mkv", ".aac", ".amr", ".wma",
])
# fmt: on

RATES = (4_000, 192_000)  # Hz
CHANNELS = (1, 32)
MIN_DURATION = 0.1  # seconds; shorter than one frame of most encoders
MAX_DURATION = 3600.0  # seconds that `load` holds unless told otherwise: 230 MB at 16 kHz
SILENCE_DBFS = -70.0  # a peak below this is digital silence

_BLOCK = 65_536  # frames decoded at a time
_UNKNOWN = 2**63 - 1  # libsndfile's "frames" of a FLAC that does not say
_DEMUXERS = "aac,ac3,eac3,aiff,amr,ape,asf,au,avi,caf,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,wv"
_SEEKABLE = ("mov", "matroska", "asf", "aac", "mp3")  # containers in which PyAV lands where it says
_TIMED = ("mov", "matroska", "asf", "flac")  # containers whose header holds the length; for others ffmpeg guesses it
# what these formats begin with, besides mp3 and aac, is read from a pipe as it comes: the last is webm and mka
_STREAMED = (b"RIFF", b"RF64", b"fLaC", b"OggS", b".snd", b"\x1aE\xdf\xa3")
_BELIEVED = 3600.0  # seconds that a clock in a damaged file may jump
_LARGEST = 4096  # bytes of a frame of mp3 or aac, and some
_TAIL = 2**17  # bytes that hold the last page of an ogg, which is 65,307 at most
_TAGS = 1.0  # seconds that tags at the end of an mp3 may look like
_PLANES = 8  # channels that a frame of PyAV can have one by one


@dataclass(frozen=True)
class AudioInfo:
    """What a sound's header says."""

    duration: float | None  # seconds; None where the header does not say
    sample_rate: int  # Hz
    channels: int
    format: str  # container and codec, such as "wav pcm_16" or "mov aac"


def name(source: Source) -> str:
    """What to call `source` in messages and results: its path, or "<bytes>", "<stream>", "<array>"."""
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "<bytes>"
    if isinstance(source, tuple):
        return "<array>"
    given = getattr(source, "name", None)
    return given if isinstance(given, str) and given else "<stream>"


def probe(source: Source) -> AudioInfo:
    """Length, rate, channels and format of `source`, decoding at most a moment of it. Raises AudioError."""
    with _open(source) as sound:
        duration = None if sound.frames is None else sound.frames / sound.rate
        return AudioInfo(duration, sound.rate, sound.channels, sound.format)


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
    if start < 0 or (duration is not None and duration <= 0):
        raise ValueError(f"start must be >= 0 and duration > 0, not {start} and {duration}")
    with _open(source) as sound:

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
    source: Source, sample_rate: int, window: float, hop: float, lost: list[tuple[float, float]] | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """Cut `source` in one pass and constant memory: (start in seconds, samples (T,) as from `load`), every `hop` s.

    Each holds `window` seconds, the last one what is left; it stops before a window that lies within the previous
    one. Raises AudioError; for a sound that breaks off, after the windows before the break.

    With a list `lost` damage costs what is damaged: zeros are in its place, and their (start, end) in seconds is in the
    list when the window that holds them comes. A file that ends early gives an AudioDamage. A pipe is read as it
    comes, not copied, if its format can be read forwards: wav, flac, ogg, opus, mp3, aac, webm, mka, au.
    """
    if not 0 < hop <= window:
        raise ValueError(f"hop must be > 0 and at most the window of {window} s, not {hop}")
    size = math.ceil(window * sample_rate - 1e-6)  # not rounded down: windows end to end would leave out a sample
    held: list[np.ndarray] = []  # samples [first, end) of the sound
    first = end = covered = index = 0
    with _open(source, lost) as sound:
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


def is_live(source: Source) -> bool:
    """Whether `source` is a pipe, whose end may be yet to come."""
    if isinstance(source, str | os.PathLike):
        return stat.S_ISFIFO(os.stat(source).st_mode) if os.path.exists(source) else False
    return hasattr(source, "read") and not _seekable(source)


def level(x: np.ndarray) -> float:
    """Peak level of samples `x` in dBFS: 0 at full scale, -inf for zeros."""
    peak = float(np.abs(x).max(initial=0.0))
    return 20 * math.log10(peak) if peak else -math.inf


def is_silent(x: np.ndarray) -> bool:
    """Whether `x` is digital silence: its peak is below SILENCE_DBFS."""
    return level(x) < SILENCE_DBFS


def expand(paths: Iterable[str], recursive: bool) -> list[str]:
    """The files that `paths` mean: a file or "-" as it is, a folder's sounds and a glob's matches, sorted.

    `**` in a glob means any folders. What starts with a dot is passed over. A path that does not exist stays, for
    `load` to report. Raises AudioError for a folder that holds no sound (its subfolders count if `recursive`) or
    cannot be listed, and for a glob without a match.
    """
    files: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            files += _sounds_in(path, recursive)
        elif not os.path.lexists(path) and any(sign in path for sign in "*?["):
            matches = sorted(match for match in glob.glob(path, recursive=True) if not os.path.isdir(match))
            if not matches:
                raise AudioError(path, "matches no file", "check the pattern and the folder it is used in")
            files += matches
        else:
            files.append(path)
    return files


def _sounds_in(folder: str, recursive: bool) -> list[str]:
    def refuse(error: OSError) -> None:
        raise AudioError(name(error.filename), f"cannot be listed ({error.strerror})", "check its permissions")

    found = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        found += [
            os.path.join(parent, file)
            for file in files
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in SUFFIXES
        ]
        folders[:] = [sub for sub in folders if not sub.startswith(".")] if recursive else []
    if not found:
        deeper = "" if recursive else ", or look into its subfolders with --recursive"
        raise AudioError(folder, "a folder without audio files", f"name another{deeper}")
    return sorted(found)


# ---- from a source to blocks of mono samples ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Sound:
    """An opened source. `read(first)`, once: blocks (n, channels) of float32, from frame `first` to the end."""

    name: str
    rate: int  # Hz
    channels: int
    frames: int | None  # as the header says; None where it does not
    format: str
    read: Callable[[int], Iterator[np.ndarray]]
    broken: type[Exception]  # what `read` raises on bad data
    lost: list[tuple[float, float]] | None = None  # where damage is noted, in seconds, in place of an error
    is_cut: Callable[[], bool] = lambda: False  # at the end: whether there should be more


@contextmanager
def _open(source: Source, lost: list[tuple[float, float]] | None = None) -> Iterator[_Sound]:
    """Open whatever `source` is, and refuse what is out of bounds."""
    with ExitStack() as stack:
        called = name(source)
        if isinstance(source, tuple):
            sound = _array(called, *source, lost)
        else:
            file = _file(source, stack, streamed=lost is not None)
            if isinstance(file, _Stream):
                sound = replace(_pyav(called, file, stack, lost), is_cut=file.is_cut)
            else:
                sound = _seekable_sound(called, file, stack, lost)
        for what, value, (low, high) in (("Hz", sound.rate, RATES), ("channels", sound.channels, CHANNELS)):
            if not low <= value <= high:
                remedy = f"convert it to {low} to {high} {what}"
                if isinstance(source, tuple):
                    remedy = f"give an array (T, channels) with {low} to {high} {what}"
                raise AudioError(called, f"{value} {what}, outside {low} to {high}", remedy)
        if sound.frames is not None:
            _check_length(sound, sound.frames)
        yield sound


def _seekable_sound(called: str, file: BinaryIO, stack: ExitStack, lost: list[tuple[float, float]] | None) -> _Sound:
    if not file.seek(0, os.SEEK_END):
        raise AudioError(called, "empty (0 bytes)", REPLACE)
    if _is_cut(file):
        problem = "truncated: it ends before its own header says"
        if lost is None:
            raise AudioError(called, problem, RESCUE)
        warnings.warn(AudioDamage(called, problem), stacklevel=2)
    head = _at(file, 0, 4)
    if lost is not None and (head in (b"fLaC", b"OggS") or _is_mp3(head)):
        return _pyav(called, file, stack, lost)  # libsndfile closes over a hole, and all that follows is too early
    return _soundfile(called, file, stack, lost) or _pyav(called, file, stack, lost)


def _check_length(sound: _Sound, frames: int) -> None:
    if frames == 0:
        raise AudioError(sound.name, "holds zero samples", "record or export it again")
    if frames < MIN_DURATION * sound.rate:
        problem = f"lasts {frames / sound.rate:.3f} s, shorter than {MIN_DURATION} s"
        raise AudioError(sound.name, problem, "give a longer sound")


class _Stream:
    """A pipe that is read as it comes; `head` has been read from it already."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self.head = head
        self.read_some = getattr(file, "read1", file.read)  # what is there now, where it can be had
        self.size, self.begin, self.tail = 0, b"", b""  # of what has been read

    def read(self, size: int) -> bytes:
        """At most `size` bytes, none at the end. PyAV would write any more past its buffer."""
        some = self.head or self.read_some(size)
        some, self.head = some[:size], some[size:]
        self.size += len(some)
        if len(self.begin) < _TAIL:
            self.begin += some
        if self.begin[:4] == b"OggS":
            self.tail = (self.tail + some)[-_TAIL:]
        return some

    def is_cut(self) -> bool:
        """Whether it has ended before the place that its own structure states."""
        if self.tail:
            return _ogg_is_cut(self.tail)
        end = _stated_end(io.BytesIO(self.begin))
        return end is not None and end > self.size + 64


def _seekable(file: Any) -> bool:
    return hasattr(file, "seekable") and file.seekable()


def _file(source: Any, stack: ExitStack, streamed: bool) -> BinaryIO | _Stream:
    """A seekable binary file with the content of `source`, closed by `stack` unless it is the caller's own.

    A pipe is copied to a temporary file, or if `streamed` and in a format that can be read forwards, given as it is.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    file = source
    if isinstance(source, str | os.PathLike):
        called = name(source)
        try:
            file = stack.enter_context(open(source, "rb"))  # noqa: SIM115
        except FileNotFoundError:
            raise AudioError(called, "does not exist", "check the path") from None
        except IsADirectoryError:
            raise AudioError(called, "a folder, not a file", "name a file in it") from None
        except PermissionError:
            raise AudioError(called, "no permission to read it", "change its permissions (chmod +r)") from None
        except (OSError, ValueError) as error:  # ValueError: a path with a null character
            raise AudioError(called, f"cannot be opened ({error})", "check the path") from None
    if not hasattr(file, "read"):
        raise TypeError(f"audio is a path, bytes, a binary file or (array, rate), not {type(source).__name__}")
    if isinstance(file, io.TextIOBase):
        raise TypeError("audio is read from a file in binary mode: open(path, 'rb')")
    if not _seekable(file):
        head = file.read(16)
        if streamed and (head[:4] in _STREAMED or _is_mp3(head) or head[:1] == b"\xff"):
            return _Stream(head, file)
        spool = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        spool.write(head)  # decoders jump about; the disk holds what memory may not
        shutil.copyfileobj(file, spool)
        file = spool
    return file


def _mono(sound: _Sound, first: int, stop: int | None) -> Iterator[np.ndarray]:
    """Frames [first, stop) as the mean of the channels: blocks (n,). Raises AudioError for what is wrong on the way."""
    at, repaired = first, False
    try:
        for block in sound.read(first):
            with np.errstate(invalid="ignore", over="ignore"):  # inf - inf, to be found by the next lines
                x = block[: None if stop is None else stop - at].mean(axis=1, dtype=np.float32)
            bad = ~np.isfinite(x)
            count = int(bad.sum())
            if (many := count > max(64, len(x) // 10)) and sound.lost is not None:
                sound.lost.append((at / sound.rate, (at + len(x)) / sound.rate))
                x, count = np.zeros_like(x), 0
            elif many:
                problem = f"{count} of {len(x)} samples near {at / sound.rate:.1f} s are NaN or infinite"
                raise AudioError(sound.name, problem, "record or export it again")
            if count:
                good = np.flatnonzero(~bad)
                x[bad] = np.interp(np.flatnonzero(bad), good, x[good]) if len(good) else 0
                if not repaired:
                    problem = f"samples near {at / sound.rate:.1f} s are NaN or infinite, replaced by interpolation"
                    warnings.warn(f"{sound.name}: {problem}", AudioWarning, stacklevel=2)
                repaired = True
            yield x
            at += len(x)
            if at == stop:
                return
    except sound.broken as error:
        problem = f"truncated or damaged: decoding stops at {at / sound.rate:.2f} s"
        if sound.lost is None or not at:
            raise AudioError(sound.name, problem, RESCUE) from error
        warnings.warn(AudioDamage(sound.name, problem), stacklevel=2)
        return
    # The end. A header may be wrong by a codec's delay or rounding, hence 0.2 s or a hundredth.
    if sound.frames is not None and sound.frames - at > max(0.2 * sound.rate, sound.frames / 100):
        problem = f"truncated: {at / sound.rate:.2f} s of the {sound.frames / sound.rate:.2f} s in its header"
        if sound.lost is None or not at:
            raise AudioError(sound.name, problem, RESCUE)
        warnings.warn(AudioDamage(sound.name, problem), stacklevel=2)
    elif sound.is_cut():
        problem = f"truncated: it ends before its own header says, at {at / sound.rate:.2f} s"
        warnings.warn(AudioDamage(sound.name, problem), stacklevel=2)
    if first == 0:
        _check_length(sound, at)


def _resampled(sound: _Sound, rate: int, first: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
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


# ---- decoders -----------------------------------------------------------------------------------------------------


def _scaled(x: np.ndarray) -> np.ndarray:
    """Samples as float32: integers to [-1, 1) by their width (unsigned ones are centred), floats as they are."""
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and treated so
            return x.astype(np.float32, copy=False)
    half = 2.0 ** (8 * x.dtype.itemsize - 1)
    return ((x.astype(np.float64) - (half if x.dtype.kind == "u" else 0)) / half).astype(np.float32)


def _array(called: str, x: np.ndarray, rate: int, lost: list[tuple[float, float]] | None) -> _Sound:
    """Samples (T,) or (T, channels) that the caller has already."""
    x = np.asarray(x)
    if x.ndim not in (1, 2) or x.dtype.kind not in "fiu":
        problem = f"an array of {x.dtype} with shape {x.shape}"
        raise AudioError(called, problem, "give floats or integers of shape (T,) or (T, channels)")
    x = x.reshape(len(x), -1) if x.size else np.empty((0, 1), np.float32)

    def read(first: int) -> Iterator[np.ndarray]:
        return (_scaled(x[at : at + _BLOCK]) for at in range(first, len(x), _BLOCK))

    return _Sound(called, int(rate), x.shape[1], len(x), "array", read, OverflowError, lost)


def _soundfile(
    called: str, file: BinaryIO, stack: ExitStack, lost: list[tuple[float, float]] | None = None
) -> _Sound | None:
    """Decode by libsndfile; None for what it cannot read, or reads only in part."""
    import soundfile

    class Forward(soundfile.SoundFile):
        """Else every `read` ends with a seek to where it is already, after which an mp3 goes on with some silence."""

        def seekable(self) -> bool:
            return False

    mp3_says_length = _mp3_says_length(file)  # now, as nobody else may move the file once libsndfile has it
    file.seek(0)
    try:
        sound = stack.enter_context(Forward(file))
    except soundfile.LibsndfileError:
        return None
    if not soundfile.SoundFile.seekable(sound):  # GSM 6.10: seeking fails, if only to the beginning
        return None
    # Where the header gives no length libsndfile stops at a guess: at nothing in a wav from a pipe, at a sixth of a
    # variable-rate mp3 whose first frame is a large one.
    if sound.frames in (0, _UNKNOWN) or (sound.format == "MP3" and not mp3_says_length):
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
        while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
            if at + len(block) > first:
                yield block[max(0, first - at) :]
            at += len(block)

    kind = f"{sound.format} {sound.subtype}".lower()
    broken = soundfile.LibsndfileError
    return _Sound(called, sound.samplerate, sound.channels, sound.frames, kind, read, broken, lost)


def _pyav(
    called: str, file: BinaryIO | _Stream, stack: ExitStack, lost: list[tuple[float, float]] | None = None
) -> _Sound:
    """Decode the first audio stream by ffmpeg. Raises AudioError for what it cannot, unless it goes into `lost`."""
    import av

    if not isinstance(file, _Stream):
        file.seek(0)
    try:
        options = {"format_whitelist": _DEMUXERS}
        container = stack.enter_context(av.open(file, "r", options=options, metadata_errors="ignore"))
    except av.FFmpegError:
        problem = "not audio, or damaged at its very beginning"
        remedy = "give a sound file, for instance wav, flac, mp3 or m4a"
        if not isinstance(file, _Stream) and _at(file, 4, 4) == b"ftyp":
            problem, remedy = "its index is missing or damaged, as in a recording that was cut off", REPLACE
        raise AudioError(called, problem, remedy) from None
    if not container.streams.audio:
        raise AudioError(called, "holds no audio stream", "give a file with sound in it")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise AudioError(called, "its audio is in an unsupported codec", CONVERT)
    codec = stream.codec_context.name
    frames, intact = container.decode(stream), _intact(container, stream)  # the one or, with `lost`, the other
    try:
        time, head = next(intact, (None, None)) if lost is not None else (None, next(frames, None))
    except (av.error.DecoderNotFoundError, av.error.PatchWelcomeError):
        raise AudioError(called, f"its audio is in an unsupported codec ({codec})", CONVERT) from None
    except av.FFmpegError as error:
        problem = f"truncated or damaged: nothing of it can be decoded ({error.strerror})"
        raise AudioError(called, problem, RESCUE) from None
    if head is None and time is not None:
        raise AudioError(called, "truncated or damaged: nothing of it can be decoded", RESCUE)
    if head is None:
        raise AudioError(called, "holds zero samples", "record or export it again")
    rate = head.sample_rate  # the frame's: a stream's header gives half of it for HE-AAC
    if _is_unsafe(head):
        raise AudioError(called, f"{head.layout.nb_channels} channels of {codec}, more than {_PLANES}", CONVERT)

    def samples(frame: av.AudioFrame) -> np.ndarray:
        if frame.sample_rate != rate or _is_unsafe(frame):
            now = f"{frame.sample_rate} Hz and {frame.layout.nb_channels} channels"
            raise AudioError(called, f"its rate changes, or it is damaged: from {rate} Hz to {now}", CONVERT)
        x = frame.to_ndarray()
        return _scaled(x.T if frame.format.is_planar else x.reshape(-1, frame.layout.nb_channels))

    container_name = container.format.name.split(",")[0]

    def read(first: int) -> Iterator[np.ndarray]:
        if lost is not None:
            found = chain([(time, head)], intact)
            yield from _with_holes(((t, None if f is None else samples(f)) for t, f in found), rate, lost)
            return
        at, todo = 0, chain([head], frames)
        if first > rate and container_name in _SEEKABLE and head.time is not None:
            assert stream.time_base is not None  # ffmpeg sets it for every stream that it opens
            target = head.time + first / rate - 0.5  # seconds; half a second for the codec to settle
            container.seek(round(target / stream.time_base), stream=stream)
            again = container.decode(stream)
            if (landed := next(again, None)) is None:
                return
            at = -1 if landed.time is None else round((landed.time - head.time) * rate)
            if not 0 <= at <= first:
                raise AudioError(called, f"its index is damaged: {first / rate:g} s is not found", CONVERT)
            todo = chain([landed], again)
        for frame in todo:
            x = samples(frame)
            if at + len(x) > first:
                yield x[max(0, first - at) :]
            at += len(x)

    seconds = None
    if container_name in _TIMED and stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif container_name in _TIMED and container.duration and len(container.streams) == 1:
        seconds = container.duration / 1e6  # of the longest stream, which is the only one
    stated = None if seconds is None else round(seconds * rate)
    kind = f"{container_name} {codec}"
    return _Sound(called, rate, head.layout.nb_channels, stated, kind, read, av.FFmpegError, lost)


def _is_unsafe(frame: Any) -> bool:
    """Whether PyAV would read beyond the list of a frame's planes; damaged AAC has frames of 29 channels."""
    return frame.format.is_planar and frame.layout.nb_channels > _PLANES


def _intact(container: Any, stream: Any) -> Iterator[tuple[float | None, Any]]:
    """The frames of a stream that can be decoded, with the times in seconds where they belong.

    mp3 and aac have no clock: the bytes that cannot be decoded are as much time as the others, at the mean rate.
    What cannot be decoded at the very end is told by the time of the end and None.
    """
    import av

    decoder = _Decoder(stream)
    clockless = container.format.name in ("mp3", "aac")
    patience = 100  # errors of the container, not of a packet, that do not lead on
    end, sizes, count, late = 0, 0, 0, 0.0  # bytes; of what could be decoded: bytes, packets; units of the clock
    over: float | None = None  # where that ends which could not be decoded since the last frame
    while patience:
        try:
            for packet in container.demux(stream):
                size = 0
                if packet.pos is not None and packet.size:
                    size = packet.pos + packet.size - (end if count else packet.pos)
                    end = packet.pos + packet.size
                frames, intact = decoder.decode(packet)
                if clockless and size:
                    if count and (size > _LARGEST or not intact):
                        late += (size * count / sizes - 1) * (packet.duration or 0)
                    else:
                        sizes, count = sizes + size, count + 1
                if not intact and packet.pts is not None:
                    over = float((packet.pts + (packet.duration or 0) + late) * packet.time_base)
                for frame in frames:
                    patience, over = 100, None
                    yield None if frame.time is None else frame.time + late * float(frame.time_base), frame
            break
        except av.FFmpegError:
            patience -= 1
    if over is not None:
        yield over - (_TAGS if clockless else 0.0), None


class _Decoder:
    """Packets to frames of one kind. What damage makes of a packet may be of any other, and so is what follows then."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.codec = stream, stream.codec_context
        if self.codec.name == "flac":
            self._begin()
        self.kind: tuple[int, int] | None = None  # Hz, channels
        self.strange: list[tuple[int, int]] = []  # kinds of the last frames, if they were of another

    def decode(self, packet: Any) -> tuple[list[Any], bool]:
        """Frames, and whether they are all that the packet held."""
        import av

        try:
            frames = self.codec.decode(packet)
        except av.FFmpegError:
            return [], not packet.size
        good = [frame for frame in frames if self._belongs(frame)]
        if len(good) == len(frames):
            return frames, True
        self._begin()
        return good, False

    def _begin(self) -> None:
        """Another decoder, if the header says how to read each packet: it knows nothing of what was damaged."""
        import av

        if extradata := self.stream.codec_context.extradata:
            self.codec = av.CodecContext.create(self.codec.name, "r")
            self.codec.extradata = extradata
            if self.codec.name == "flac":
                self.codec.options = {"err_detect": "crccheck+explode"}  # else a frame with wrong bits is noise

    def _belongs(self, frame: Any) -> bool:
        kind = frame.sample_rate, frame.layout.nb_channels
        self.kind = self.kind or kind
        safe = kind[0] == self.kind[0] and not _is_unsafe(frame)
        # the channels may really change: between packets that say what they are, or if it stays so
        if kind == self.kind or (safe and (not self.stream.codec_context.extradata or self.strange[-3:] == [kind] * 3)):
            self.kind, self.strange = kind, []
            return True
        self.strange = [*self.strange[-2:], kind]
        return False


def _with_holes(
    frames: Iterable[tuple[float | None, np.ndarray | None]], rate: int, lost: list[tuple[float, float]]
) -> Iterator[np.ndarray]:
    """Blocks of (time in seconds, samples (n, channels)), with zeros where the times say that some are missing."""
    at, channels = 0, 1
    origin: float | None = None
    for time, x in frames:
        if origin is None:
            origin = time
        hole = 0 if time is None or origin is None else round((time - origin) * rate) - at
        if 0.1 * rate < hole < _BELIEVED * rate:
            if lost and at / rate - lost[-1][1] < 1.0:  # what little was decoded in between may be anything
                lost[-1] = (lost[-1][0], (at + hole) / rate)
            else:
                lost.append((at / rate, (at + hole) / rate))
            at += hole
            for begin in range(0, hole, _BLOCK):
                yield np.zeros((min(_BLOCK, hole - begin), channels), np.float32)
        if x is not None:
            channels = x.shape[1]
            yield x
            at += len(x)


# ---- headers: is all of the file there? ---------------------------------------------------------------------------


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _is_cut(file: BinaryIO) -> bool:
    """Whether the file ends before the place that its own structure states. libsndfile reads such files in silence."""
    size = file.seek(0, os.SEEK_END)
    if _at(file, 0, 4) == b"OggS":
        return _ogg_is_cut(_at(file, max(0, size - _TAIL), _TAIL))
    end = _stated_end(file)
    return end is not None and end > size + 64  # some programs are wrong by the size of a header


def _stated_end(file: BinaryIO) -> int | None:
    """The offset where the sound data ends according to the header; None for other formats and where it does not say.

    Programs that write to a pipe cannot know the size and put 0, -1 or about 2 GiB there.
    """
    head = _at(file, 0, 24)
    if head[4:8] == b"ftyp":  # mp4: boxes from end to end, one of them the samples
        end = 0
        while len(box := _at(file, end, 16)) >= 8:
            size = struct.unpack(">I", box[:4])[0]
            if size == 1 and len(box) == 16:
                size = struct.unpack(">Q", box[8:])[0]
            if size < 8:
                return None
            end += size
        return end
    if head[:4] == b".snd" and len(head) == 24:
        offset, size = struct.unpack(">II", head[4:12])
        return None if size == 2**32 - 1 else offset + size
    if _is_mp3(head):
        return _mp3_stated_end(file)
    forms = {b"RIFF": "<4sI", b"RF64": "<4sI", b"RIFX": ">4sI", b"FORM": ">4sI", b"caff": ">4sq"}
    if (form := forms.get(head[:4])) is None:
        return None
    width, at, long_size = struct.calcsize(form), 8 if head[:4] == b"caff" else 12, None
    while len(chunk := _at(file, at, width)) == width:
        kind, size = struct.unpack(form, chunk)
        at += width
        if kind == b"ds64":
            long_size = struct.unpack("<Q", _at(file, at + 8, 8).ljust(8, b"\0"))[0]
        if kind in (b"data", b"SSND"):
            size = long_size or size
            unsaid = size <= 0 or 0x7FFFF000 <= size <= 0x80000000 or 0xFFFFFF00 <= size <= 0xFFFFFFFF
            return None if unsaid else at + size
        if size < 0:
            return None
        at += size + (size % 2 if width == 8 else 0)
    return None


def _ogg_is_cut(tail: bytes) -> bool:
    """Whether the last page of an ogg file is incomplete or not marked as the end."""
    at = tail.rfind(b"OggS\0")
    if at < 0:
        return False  # other data follows: for the decoder to judge
    page = tail[at:]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    return not page[5] & 4 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])


def _is_mp3(head: bytes) -> bool:
    return head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2)


def _mp3_stated_end(file: BinaryIO) -> int | None:
    """The end of an mp3 by the bytes in its Xing tag, less one frame: programs disagree about the tag's own."""
    head, at = _at(file, 0, 10), 0
    if head[:3] == b"ID3" and len(head) == 10:
        at = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    frame = _at(file, at, 512)
    tag = max(frame.find(b"Xing"), frame.find(b"Info"))
    if tag < 0 or len(frame) < tag + 16:
        return None
    flags, _frames, size = struct.unpack(">III", frame[tag + 4 : tag + 16])
    return at + size - 2048 if flags & 3 == 3 and size > 2048 else None


def _mp3_says_length(file: BinaryIO) -> bool:
    """Whether a whole mp3 is covered by its Xing tag: not if it has none, nor if it was joined from several."""
    end = _mp3_stated_end(file)
    return end is not None and file.seek(0, os.SEEK_END) <= 1.01 * end + 4096
