"""Decoding by ffmpeg, through PyAV: what libsndfile cannot read, and whatever is damaged.

Every frame is put where its time stamp says. Where frames are missing there are zeros: a gap in the time stamps is
silence, as recorders leave it when they are paused; only what is there and cannot be decoded is damage.

Only audio demuxers may look at a file, so that a playlist cannot make ffmpeg open other files or addresses.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, BinaryIO

import numpy as np

from .decoders import BLOCK, Sound, resampled, scaled
from .errors import CONVERT, REPLACE, RESCUE, AudioError, AudioRepair, Damage
from .headers import read_at
from .sources import Stream

DEMUXERS = "aac,ac3,eac3,aiff,amr,ape,asf,au,avi,caf,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,wv"
# what DTS begins with, in words of 16 and 14 bits and in both orders of bytes, and as DTS-HD: no demuxer takes it
_DTS = (b"\x7f\xfe\x80\x01", b"\xfe\x7f\x01\x80", b"\x1f\xff\xe8\x00", b"\xff\x1f\x00\xe8", b"DTSHDHDR")
_SEEKABLE = ("mov", "matroska", "asf", "aac", "mp3")  # containers in which PyAV lands where it says
_TIMED = ("mov", "matroska", "asf", "flac")  # containers whose header holds the length; for others ffmpeg guesses it
# containers whose packets have time stamps of their own: one that is missing need not be lost
_CLOCKED = ("mov", "matroska", "asf", "mpegts", "mpeg", "flv", "avi")
_CLOCKLESS = ("mp3", "aac")  # the bytes that cannot be decoded are as much time as the others, at the mean rate
_GAP = 0.1  # seconds; time stamps that differ by less are rounded, or a codec's delay
_BELIEVED = 3600.0  # seconds that a clock may jump
_LARGEST = 4096  # bytes of a frame of mp3 or aac, and some
_TAGS = 1.0  # seconds that tags at the end of an mp3 may look like
_HOPE = 10_000  # packets in which there must be a first frame; each byte of an amr may be one that holds nothing
_PLANES = 8  # channels that a frame of PyAV can have one by one


@dataclass(frozen=True)
class _Piece:
    """A frame, its time in seconds, and whether something before it could not be decoded; no frame: at the end."""

    time: float | None
    frame: Any
    broken: bool


def ffmpeg(called: str, file: BinaryIO | Stream, stack: ExitStack, damage: Damage, track: int | None = None) -> Sound:
    """Decode an audio track, see `reader.opened`. Raises AudioError; what cannot be decoded is noted in `damage`."""
    import av

    if not isinstance(file, Stream):
        file.seek(0)
    try:
        options = {"format_whitelist": DEMUXERS}
        container = stack.enter_context(av.open(file, "r", options=options, metadata_errors="ignore"))
    except av.FFmpegError:
        problem = "not audio, or damaged at its very beginning"
        remedy = "give a sound file, for instance wav, flac, mp3 or m4a"
        sign = b"" if isinstance(file, Stream) else read_at(file, 0, 8)
        if sign[4:] == b"ftyp":
            problem, remedy = "its index is missing or damaged, as in a recording that was cut off", REPLACE
        elif sign.startswith(_DTS):
            problem, remedy = "its audio is in an unsupported codec (dts)", CONVERT
        raise AudioError(called, problem, remedy) from None
    if not container.streams.audio:
        raise AudioError(called, "holds no audio stream", "give a file with sound in it")
    stream = _chosen(called, file, container, track)
    if stream.codec_context is None:
        raise AudioError(called, "its audio is in an unsupported codec", CONVERT)
    codec, name = stream.codec_context.name, container.format.name.split(",")[0]
    pieces = _pieces(container, stream)
    try:
        head = next(pieces, None)
    except (av.error.DecoderNotFoundError, av.error.PatchWelcomeError):
        raise AudioError(called, f"its audio is in an unsupported codec ({codec})", CONVERT) from None
    if head is None:
        raise AudioError(called, "holds zero samples", "record or export it again")
    if head.frame is None:
        raise AudioError(called, "truncated or damaged: nothing of it can be decoded", RESCUE)
    rate = head.frame.sample_rate  # the frame's: a stream's header gives half of it for HE-AAC
    if _is_unsafe(head.frame):
        channels = head.frame.layout.nb_channels
        raise AudioError(called, f"{channels} channels of {codec}, more than {_PLANES}", CONVERT)
    begin = head.time
    if head.time is not None and len(container.streams) > 1 and container.start_time is not None:
        begin = container.start_time / 1e6
        begin = head.time if head.time - begin < _GAP else begin

    def read(first: int) -> Iterator[np.ndarray]:
        at, todo = 0, chain([head], pieces)
        if first > rate and name in _SEEKABLE and begin is not None:
            assert stream.time_base is not None  # ffmpeg sets it for every stream that it opens
            target = begin + first / rate - 0.5  # seconds; half a second for the codec to settle
            container.seek(round(target / stream.time_base), stream=stream)
            again = _pieces(container, stream)
            if (landed := next(again, None)) is None or landed.frame is None:
                return
            at = -1 if landed.time is None else round((landed.time - begin) * rate)
            if not 0 <= at <= first:
                raise AudioError(called, f"its index is damaged: {first / rate:g} s is not found", CONVERT)
            todo = chain([landed], again)
        for block in _placed(todo, rate, begin, at, damage, name):
            if at + len(block) > first:
                yield block[max(0, first - at) :]
            at += len(block)

    seconds = None
    if name in _TIMED and stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif name in _TIMED and container.duration and len(container.streams) == 1:
        seconds = container.duration / 1e6  # of the longest stream, which is the only one
    stated = round(seconds * rate) if seconds and seconds > 0 else None  # a damaged header may say less than nothing
    channels = head.frame.layout.nb_channels
    return Sound(called, rate, channels, stated, f"{name} {codec}", read, damage, exact=False)


def _chosen(called: str, file: BinaryIO | Stream, container: Any, track: int | None) -> Any:
    """The stream of a track: the one that is asked for, that is marked as the default, or that is the loudest."""
    tracks = container.streams.audio
    if track is not None:
        if track > len(tracks):
            raise AudioError(called, f"has no audio track {track}", f"choose one of 1 to {len(tracks)} (--track)")
        return tracks[track - 1]
    if len(tracks) == 1:
        return tracks[0]
    default = [stream for stream in tracks if stream.disposition.value & 1]
    chosen = default[0] if len(default) == 1 or (isinstance(file, Stream) and default) else tracks[0]
    if len(default) != 1 and not isinstance(file, Stream):
        chosen = tracks[_loudest(file, len(tracks))]
    problem = f"has {len(tracks)} audio tracks, of which number {tracks.index(chosen) + 1} is heard; see --track"
    warnings.warn(AudioRepair(called, problem), stacklevel=2)
    return chosen


def _loudest(file: BinaryIO, count: int) -> int:
    """Which audio track has the most energy in its first seconds."""
    import av

    energy, place = np.zeros(count), file.tell()
    for k in range(count):
        file.seek(0)
        with av.open(file, "r", options={"format_whitelist": DEMUXERS}, metadata_errors="ignore") as container:
            for piece in islice(_pieces(container, container.streams.audio[k]), 500):
                if piece.frame is not None and not _is_unsafe(piece.frame):
                    energy[k] += float(np.square(_samples(piece.frame), dtype=np.float64).mean(1).sum())
    file.seek(place)  # from where the container that is open reads on
    return int(energy.argmax())


def _is_unsafe(frame: Any) -> bool:
    """Whether PyAV would read beyond the list of a frame's planes; damaged AAC has frames of 29 channels."""
    return frame.format.is_planar and frame.layout.nb_channels > _PLANES


def _samples(frame: Any) -> np.ndarray:
    """The samples (n, channels) of a frame."""
    x = frame.to_ndarray()
    return scaled(x.T if frame.format.is_planar else x.reshape(-1, frame.layout.nb_channels))


def _pieces(container: Any, stream: Any) -> Iterator[_Piece]:
    """The frames of a stream that can be decoded; what cannot at the very end has the time of the end, and no frame."""
    import av

    decoder = _Decoder(stream)
    clockless = container.format.name in _CLOCKLESS
    patience = 100  # errors of the container, not of a packet, that do not lead on
    hope: float = _HOPE  # packets that may come before the first frame
    end, sizes, count, late = 0, 0, 0, 0.0  # bytes; of what could be decoded: bytes, packets; units of the clock
    over: float | None = None  # where that ends which could not be decoded since the last frame
    broken = False
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
                        broken = True
                    else:
                        sizes, count = sizes + size, count + 1
                broken = broken or not intact or packet.is_corrupt
                hope = math.inf if frames else hope - 1
                if not hope:
                    break
                if not intact and packet.pts is not None:
                    over = float((packet.pts + (packet.duration or 0) + late) * packet.time_base)
                for frame in frames:
                    time = None if frame.time is None else frame.time + late * float(frame.time_base)
                    yield _Piece(time, frame, broken)
                    patience, over, broken = 100, None, False
            break
        except av.error.DecoderNotFoundError:
            raise
        except av.FFmpegError:
            patience -= 1
            broken = True
    if broken:
        yield _Piece(None if over is None else over - (_TAGS if clockless else 0.0), None, True)


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
        except (av.error.DecoderNotFoundError, av.error.PatchWelcomeError):
            raise
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
        # the kind may really change: between packets that say what they are, or if it stays so
        changes = not self.stream.codec_context.extradata or self.strange[-3:] == [kind] * 3
        if kind == self.kind or (changes and not _is_unsafe(frame)):
            self.kind, self.strange = kind, []
            return True
        self.strange = [*self.strange[-2:], kind]
        return False


def _placed(
    pieces: Iterable[_Piece], rate: int, begin: float | None, at: int, damage: Damage, container: str
) -> Iterator[np.ndarray]:
    """Blocks (n, channels) at `rate` Hz from frame `at` on: each piece where its time says, and zeros in between."""
    silent_gaps, clockless = container in _CLOCKED, container in _CLOCKLESS
    channels = 1
    convert: Any = None  # to `rate`, where the pieces have another
    for piece in pieces:
        if clockless and not piece.broken and piece.time is not None:
            begin = piece.time - at / rate  # its times are guessed from bytes
        hole = 0 if piece.time is None or begin is None else round((piece.time - begin) * rate) - at
        if not (_GAP / 20 if piece.broken else _GAP) * rate < hole < _BELIEVED * rate:
            hole = 0
        if hole and (piece.broken or not silent_gaps):
            if damage.spans and at / rate - damage.spans[-1][1] < 1.0:  # what was decoded in between may be anything
                damage.spans[-1] = (damage.spans[-1][0], (at + hole) / rate)
            else:
                damage.spans.append((at / rate, (at + hole) / rate))
        for zeros in range(0, hole, BLOCK):
            yield np.zeros((min(BLOCK, hole - zeros), channels), np.float32)
        at += hole
        if piece.frame is not None:
            x = _samples(piece.frame)
            channels = x.shape[1]
            if piece.frame.sample_rate != rate:
                convert = convert or resampled(piece.frame.sample_rate, rate)
                x = convert(x)
            else:
                convert = None
            yield x
            at += len(x)
