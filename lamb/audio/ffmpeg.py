"""Decoding by ffmpeg, through PyAV: what libsndfile cannot read, and whatever is damaged.

Only audio demuxers may look at a file, so that a playlist cannot make ffmpeg open other files or addresses.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from typing import Any, BinaryIO

import numpy as np

from .decoders import BLOCK, Sound, scaled
from .errors import CONVERT, REPLACE, RESCUE, AudioError
from .headers import read_at
from .sources import Stream

_DEMUXERS = "aac,ac3,eac3,aiff,amr,ape,asf,au,avi,caf,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,wv"
_SEEKABLE = ("mov", "matroska", "asf", "aac", "mp3")  # containers in which PyAV lands where it says
_TIMED = ("mov", "matroska", "asf", "flac")  # containers whose header holds the length; for others ffmpeg guesses it
_BELIEVED = 3600.0  # seconds that a clock in a damaged file may jump
_LARGEST = 4096  # bytes of a frame of mp3 or aac, and some
_TAGS = 1.0  # seconds that tags at the end of an mp3 may look like
_PLANES = 8  # channels that a frame of PyAV can have one by one


def ffmpeg(
    called: str, file: BinaryIO | Stream, stack: ExitStack, lost: list[tuple[float, float]] | None = None
) -> Sound:
    """Decode the first audio stream by ffmpeg. Raises AudioError for what it cannot, unless it goes into `lost`."""
    import av

    if not isinstance(file, Stream):
        file.seek(0)
    try:
        options = {"format_whitelist": _DEMUXERS}
        container = stack.enter_context(av.open(file, "r", options=options, metadata_errors="ignore"))
    except av.FFmpegError:
        problem = "not audio, or damaged at its very beginning"
        remedy = "give a sound file, for instance wav, flac, mp3 or m4a"
        if not isinstance(file, Stream) and read_at(file, 4, 4) == b"ftyp":
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
        return scaled(x.T if frame.format.is_planar else x.reshape(-1, frame.layout.nb_channels))

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
    return Sound(called, rate, head.layout.nb_channels, stated, kind, read, lost)


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
            for begin in range(0, hole, BLOCK):
                yield np.zeros((min(BLOCK, hole - begin), channels), np.float32)
        if x is not None:
            channels = x.shape[1]
            yield x
            at += len(x)
