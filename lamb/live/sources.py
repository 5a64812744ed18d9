"""Where a stream comes from: a microphone, an address, standard input; each gives blocks of mono samples as they come.

Addresses are read by PyAV (ffmpeg), which may follow them over the network but never opens a file of this machine.
What is told of an address never holds its user name, its password or what stands behind a question mark.
"""

import queue
import time
from collections.abc import Callable, Iterator
from io import RawIOBase
from typing import Any, BinaryIO
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from ..errors import LambError

NETWORK = "rtsp,rtp,rtcp,udp,tcp,tls,http,https,httpproxy,crypto,hls"  # protocols that an address may lead to
SCHEMES = ("rtsp", "rtsps", "http", "https")
MICROPHONE = "mic"
AHEAD = 5.0  # seconds that a recording behind an address may run ahead of the clock

Blocks = Iterator[np.ndarray]


class StreamError(LambError, OSError):
    """A stream that cannot be opened, or has ended: its name, the reason, and what helps."""


class SourceError(LambError, ValueError):
    """What was asked for is not a stream."""


def told(source: str) -> str:
    """What `source` is called in messages: an address without its credentials."""
    parts = urlsplit(source)
    if not parts.scheme or not parts.netloc:
        return source
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def opener(source: str, rate: int, patience: float, stdin: RawIOBase | BinaryIO) -> Callable[[], Blocks]:
    """A function that opens `source` and gives its blocks (n,) at `rate` Hz; to be called again after StreamError.

    Args:
        source: "mic", "mic:NAME" or "mic:NUMBER"; an address; "-" for `stdin`.
        patience: seconds without any sound after which the stream counts as lost.

    Raises SourceError for anything else. A stream that ends does so without an error.
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

    options = {"rtsp_transport": "tcp"}
    if isinstance(source, str):
        options["protocol_whitelist"] = NETWORK
    try:
        container = av.open(source, "r", options=options, timeout=(patience, patience), metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise StreamError(f"{name}: cannot be opened ({_reason(error)})", "check the address") from None
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
    """What went wrong, without the address: libraries put it, with its password, into their messages."""
    return getattr(error, "strerror", None) or type(error).__name__


def _paced(blocks: Blocks, rate: int) -> Blocks:
    """The blocks, no faster than they can be listened to: a recording behind an address comes as fast as it can."""
    began, given = time.monotonic(), 0.0
    for block in blocks:
        given += len(block) / rate
        early = given - AHEAD - (time.monotonic() - began)
        if early > 0:
            time.sleep(early)
        yield block


def _microphone(name: str, rate: int, patience: float) -> Blocks:
    try:
        import sounddevice
    except ImportError:
        raise SourceError("a microphone needs sounddevice", "pip install 'lamb-aac[live]'") from None
    except OSError:
        raise SourceError("a microphone needs PortAudio", "install it: apt install libportaudio2") from None
    import soxr

    device: Any = int(name) if name.isdigit() else name or None
    blocks: queue.Queue[np.ndarray] = queue.Queue(maxsize=1000)

    def heard(data: np.ndarray, frames: int, when: Any, status: Any) -> None:
        if not blocks.full():  # else nobody listens any more
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
