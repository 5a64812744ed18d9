"""Files that strangers send: broken, bombs, and no sound at all; the same ones for the same seed."""

import io
import random
import struct
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import soundfile

SAMPLES = Path(__file__).parents[1] / "samples"


def encoded(x: np.ndarray, rate: int, container: str, codec: str) -> bytes:
    """Mono samples by ffmpeg."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 12_200 if "amr" in codec else 64_000
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=stream.codec_context.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray((x * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def written(x: np.ndarray, rate: int, format: str, subtype: str | None = None) -> bytes:
    """Samples (T,) or (T, channels) by libsndfile."""
    buffer = io.BytesIO()
    soundfile.write(buffer, x, rate, format=format, subtype=subtype)
    return buffer.getvalue()


@cache
def sounds() -> dict[str, bytes]:
    """A second of a sample in every kind of file."""
    x, rate = soundfile.read(SAMPLES / "siren.flac", dtype="float32", frames=16_000)
    by_libsndfile = [
        ("WAV", "PCM_16"),
        ("WAV", "IMA_ADPCM"),
        ("WAV", "FLOAT"),
        ("AIFF", None),
        ("AU", None),
        ("CAF", None),
    ]
    by_libsndfile += [("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]
    by_libsndfile += [("W64", None), ("RF64", None), ("AIFF", "IMA_ADPCM"), ("WAV", "GSM610"), ("CAF", "ALAC_16")]
    by_ffmpeg = [("mp4", "aac"), ("matroska", "flac"), ("adts", "aac"), ("asf", "wmav2"), ("webm", "libopus")]
    by_ffmpeg += [("mov", "alac"), ("mpegts", "mp2"), ("avi", "mp3"), ("ac3", "ac3"), ("tta", "tta")]
    by_ffmpeg += [("wv", "wavpack"), ("amr", "libopencore_amrnb"), ("ogg", "flac"), ("caf", "pcm_s16le")]
    made = {f"{kind} {subtype}": written(x, rate, kind, subtype) for kind, subtype in by_libsndfile}
    rates = {"libopus": 48_000, "ac3": 48_000, "libopencore_amrnb": 8_000}
    return made | {f"{kind} {codec}": encoded(x, rates.get(codec, rate), kind, codec) for kind, codec in by_ffmpeg}


def mutated(content: bytes, rng: random.Random) -> bytes:
    """`content`, cut, flipped, overwritten or sewn together with itself."""
    x, size = bytearray(content), len(content)
    at = rng.randrange(size)
    head = rng.randrange(min(size, 200))
    match rng.randrange(11):
        case 0:
            return bytes(x[:at])
        case 1:
            for _ in range(rng.choice([1, 10, 1000])):
                x[rng.randrange(size)] ^= 1 << rng.randrange(8)
        case 2:
            for _ in range(rng.choice([1, 4, 16])):
                x[rng.randrange(min(size, 200))] = rng.randrange(256)
        case 3:
            x[head : head + 4] = rng.choice(
                [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]
            )
        case 4:
            x[at : at + rng.randrange(1, 5000)] = rng.randbytes(rng.randrange(1, 5000))
        case 5:
            x = x[:at] + x[rng.randrange(size) :]
        case 6:
            del x[head : head + rng.randrange(1, 64)]
        case 7:  # a lie about a size, an offset, a count or a duration
            lie = rng.choice([-1, 0, 1, 2**31 - 1, 2**40, 2**62, 2**63 - 1, rng.randrange(2**24)])
            x[head : head + 8] = struct.pack(rng.choice("<>") + "q", lie)
        case 8:  # many chunks that hold nothing, or what looks so
            x[head:head] = rng.choice([b"JUNK\0\0\0\0", b"\0\0\0\x08free", b"free" + bytes(8)]) * rng.choice([3, 5000])
        case 9:  # one file goes on as another
            other = rng.choice(list(sounds().values()))
            x = x[:at] + other[rng.randrange(len(other)) :]
        case 10:  # one file within another
            other = rng.choice(list(sounds().values()))
            x[at:at] = other[: rng.randrange(1, 4000)]
    return bytes(x)


@cache
def strange() -> dict[str, bytes]:
    """Bombs and wrong types."""
    silence = np.zeros(16_000 * 3600, np.int16)  # an hour in a few hundred kB
    hour = written(silence, 16_000, "FLAC")
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", bytes(10**8))
    fmt = lambda channels, rate: struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", 2**31 - 9, b"WAVE", b"fmt ", 16, 1, channels, rate, 0, 2, 16
    )
    data = b"data" + struct.pack("<I", 2**31 - 45) + bytes(1000)
    return {
        "empty": b"",
        "a byte": b"R",
        "text": b"Ceci n'est pas un son. " * 100,
        "noise": random.Random(0).randbytes(10_000),
        "zeros": bytes(10**6),
        "zip bomb": zipped.getvalue(),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(1000),
        "pdf": b"%PDF-1.7\n" + b"1 0 obj <<>> endobj\n" * 50,
        "elf": b"\x7fELF" + bytes(1000),
        "python": b"import os; os.system('id')",
        "m3u": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
        "an hour of silence": hour,
        "an hour of silence, length hidden": hour[:21] + bytes([hour[21] & 0xF0]) + bytes(4) + hour[26:],
        "9 channels": written(np.full((16_000, 9), 99, np.int16), 16_000, "WAV"),
        "wav of 2 GB": fmt(2, 44_100) + data,
        "wav of 65535 channels": fmt(65_535, 44_100) + data,
        "wav of 4 GHz": fmt(1, 2**32 - 1) + data,
        "wav of no rate": fmt(1, 0) + data,
        "mp3 with a tag of 256 MB": b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(10_000),
        "mp4 of boxes in boxes": b"".join(struct.pack(">I4s", 2**31, b"moov") for _ in range(5000)),
        "ogg of empty pages": (b"OggS\0\0" + bytes(20) + b"\0") * 5000,
    }


def files(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(what it is, content): every strange file first, then mutations of all kinds of sounds in turn."""
    rng = random.Random(seed)
    yield from list(strange().items())[:count]
    kinds = list(sounds().items())
    for number in range(count - len(strange())):
        kind, content = kinds[number % len(kinds)]
        yield f"{kind}, mutation {number}", mutated(content, rng)
