"""The sources of a stream: a microphone, an address or standard input, each as blocks of mono samples as they arrive.

PyAV (ffmpeg) reads them. It may follow an address over the network but never opens a file on this machine, and what is
piped leads it nowhere.
Messages never contain the user name, the password or the query (after the question mark) of an address.
"""

import queue
import time
from collections.abc import Callable, Iterator
from io import RawIOBase
from typing import Any, BinaryIO
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from ..audio.ffmpeg import DEMUXERS
from ..errors import LambError, optional

NETWORK = "rtsp,rtp,rtcp,udp,tcp,tls,http,https,httpproxy,crypto,hls"  # protocols that an address may lead to
SCHEMES = ("rtsp", "rtsps", "http", "https")
MICROPHONE = "mic"
AHEAD = 5.0  # seconds by which a recording behind an address may be ahead of the clock

Blocks = Iterator[np.ndarray]


class StreamError(LambError, OSError):
    """A stream that cannot be opened or has ended: its name, the reason and the remedy."""


class SourceError(LambError, ValueError):
    """A request for something that is not a stream."""


def told(source: str) -> str:
    """The name of `source` in messages: an address without its credentials and query."""
    parts = urlsplit(source)
    if not parts.scheme or not parts.netloc:
        return source
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def opener(source: str, rate: int, patience: float, stdin: RawIOBase | BinaryIO) -> Callable[[], Blocks]:
    """A function that opens `source` and returns its blocks (n,) at `rate` Hz; it is called again after a StreamError.

    Args:
        source: "mic", "mic:NAME" or "mic:NUMBER"; an address; "-" for `stdin`.
        patience: seconds without any sound after which the stream counts as lost.

    Raises SourceError for anything else. The end of a stream is not an error.
    """
    kind, _, name = source.partition(":")
    if kind == MICROPHONE:
        return lambda: _microphone(name, rate, patience)
    if source == "-":
        return lambda: _decoded(stdin, "-", rate, patience)
    if urlsplit(source).scheme.lower() in SCHEMES and urlsplit(source).hostname:
        return lambda: _paced(_decoded(source, told(source), rate, patience), rate)
    remedy = (
        f"give {MICROPHONE}, an address ({', '.join(f'{scheme}://' for scheme in SCHEMES)}), or - for standard input"
    )
    raise SourceError(f"{told(source)}: is not a stream", f"{remedy}; for a file use: lamb caption --timeline")


def _decoded(source: str | RawIOBase | BinaryIO, name: str, rate: int, patience: float) -> Blocks:
    import av

    options = {"rtsp_transport": "tcp", "protocol_whitelist": NETWORK}
    if not isinstance(source, str):  # only a sound: no playlist, which could lead to files and addresses
        options = {"format_whitelist": DEMUXERS, "protocol_whitelist": ""}
    try:
        container = av.open(source, "r", options=options, timeout=(patience, patience), metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        piped = "pipe a whole file or stream, such as WAV or FLAC, and no raw samples"
        remedy = "check the address" if isinstance(source, str) else piped
        raise StreamError(f"{name}: cannot be opened ({_reason(error)})", remedy) from None
    with container:
        if not container.streams.audio:
            raise StreamError(f"{name}: holds no sound", "choose a stream with sound, or switch it on in the camera")
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        try:
            for frame in container.decode(container.streams.audio[0]):
                for block in resampler.resample(frame):
                    yield block.to_ndarray().reshape(-1)
        except av.FFmpegError as error:
            raise StreamError(f"{name}: lost ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """The reason without the address, which libraries put into their messages together with its password."""
    return getattr(error, "strerror", None) or type(error).__name__


def _paced(blocks: Blocks, rate: int) -> Blocks:
    """The blocks at the speed of the clock: a recording behind an address would arrive as fast as it can."""
    began, given = time.monotonic(), 0.0
    for block in blocks:
        given += len(block) / rate
        early = given - AHEAD - (time.monotonic() - began)
        if early > 0:
            time.sleep(early)
        yield block


def _microphone(name: str, rate: int, patience: float) -> Blocks:
    try:
        sounddevice = optional("sounddevice", "a microphone needs sounddevice", "live")
    except OSError:
        raise SourceError("a microphone needs PortAudio", "install it: apt install libportaudio2") from None
    import soxr

    device: Any = int(name) if name.isdigit() else name or None
    blocks: queue.Queue[np.ndarray] = queue.Queue(maxsize=1000)

    def heard(data: np.ndarray, frames: int, when: Any, status: Any) -> None:
        if not blocks.full():  # if it is full, nobody listens any more
            blocks.put_nowait(data[:, 0].copy())

    try:
        own = int(sounddevice.query_devices(device, "input")["default_samplerate"])
        stream = sounddevice.InputStream(samplerate=own, device=device, channels=1, dtype="float32", callback=heard)
    except (sounddevice.PortAudioError, ValueError) as error:
        known = ", ".join(d["name"] for d in sounddevice.query_devices() if d["max_input_channels"]) or "none"
        raise StreamError(f"microphone {name or 'of the system'}: {error}", f"there are: {known}") from None
    resampler = soxr.ResampleStream(own, rate, num_channels=1, dtype="float32")
    with stream:
        while True:
            try:
                yield resampler.resample_chunk(blocks.get(timeout=patience))
            except queue.Empty:
                raise StreamError("microphone: gives no sound any more", "plug it in again") from None
