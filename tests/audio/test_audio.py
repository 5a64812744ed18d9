"""lamb.audio.reader: every format, source and error; windows against slices of the whole."""

import contextlib
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import threading
import tracemalloc
import types
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lamb.audio import ffmpeg
from lamb.audio import reader as audio
from lamb.audio.reader import AudioError, AudioWarning, Damage, load, probe, windows

TONE = 440.0  # Hz, of every test sound
LIBSNDFILE = {  # suffix: soundfile's format and subtype
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_24"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
}
PYAV = {  # suffix: ffmpeg's codec and a rate that it takes
    "m4a": ("aac", 44100),
    "mp4": ("aac", 16000),
    "webm": ("libopus", 48000),
    "mka": ("flac", 16000),
    "aac": ("aac", 22050),
    "amr": ("libopencore_amrnb", 8000),
    "wma": ("wmav2", 44100),
}


def tone(seconds=1.0, rate=16000, channels=1):
    """A sine of amplitude 0.5 (T, channels)."""
    x = 0.5 * np.sin(2 * np.pi * TONE * np.arange(round(seconds * rate)) / rate)
    return np.repeat(x[:, None], channels, axis=1).astype(np.float32)


def sweep(seconds, rate=16000):
    """A sine that rises from 100 Hz to 3.5 kHz (T,): no two of its windows are alike."""
    frequency = np.linspace(100, 3500, round(seconds * rate))
    return (0.5 * np.sin(2 * np.pi * np.cumsum(frequency) / rate)).astype(np.float32)


def encode(path, codec, rate, x, options=None):
    """Write `x` (T,) with ffmpeg's `codec`; skip the test where this ffmpeg lacks it."""
    try:
        av.codec.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"this ffmpeg has no encoder {codec}")
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout, stream.bit_rate = "mono", 12200 if "amr" in codec else 64000
        convert = av.AudioResampler(stream.codec_context.format.name, "mono", rate)
        for at in range(0, len(x), 1024):
            frame = av.AudioFrame.from_ndarray(x[None, at : at + 1024].copy(), "fltp", "mono")
            frame.sample_rate, frame.pts = rate, at
            for converted in convert.resample(frame):
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    return path


def make(folder, suffix, seconds=1.0, x=None):
    """A test sound of the kind `suffix` in `folder`: (path, rate)."""
    path = Path(folder) / f"sound.{suffix}"
    if suffix in LIBSNDFILE:
        kind, subtype = LIBSNDFILE[suffix]
        soundfile.write(path, tone(seconds) if x is None else x, 16000, format=kind, subtype=subtype)
        return path, 16000
    codec, rate = PYAV[suffix]
    return encode(path, codec, rate, tone(seconds, rate)[:, 0] if x is None else x), rate


def assert_tone(x, rate, seconds, slack=0.0):
    """`x` is a tone of TONE Hz, amplitude 0.5 and `seconds` length, give or take `slack`."""
    assert x.dtype == np.float32
    assert x.ndim == 1
    assert abs(len(x) / rate - seconds) <= 0.001 + slack
    middle = x[len(x) // 4 : 3 * len(x) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() * rate / len(middle) == pytest.approx(TONE, abs=1.5 * rate / len(middle))
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.5, rel=0.2)  # amr takes some


def refused(match, source, rate=16000, **kwargs):
    """Loading `source` is refused for a reason that matches; `windows` refuses it as well."""
    with pytest.raises(AudioError, match=match) as caught:
        load(source, rate, **kwargs)
    if not kwargs:
        with pytest.raises(AudioError, match=match):
            list(windows(source, rate, 1.0, 1.0))
    error = caught.value
    assert str(error) == f"{error.file}: {error.problem}; {error.remedy}"
    assert error.file == audio.name(source)
    assert error.remedy
    return error


# ---- formats and sources


@pytest.mark.parametrize("suffix", [*LIBSNDFILE, *PYAV])
def test_format(tmp_path, suffix):
    path, rate = make(tmp_path, suffix)
    # What ffmpeg's demuxers pass on of a codec's own delay and padding.
    slack = 0.15 if suffix in PYAV else 0
    for source in (path, path.read_bytes()):
        assert_tone(load(source, 16000), 16000, 1.0, slack)
    info = probe(path)
    assert (info.sample_rate, info.channels) == (rate, 1)
    assert re.fullmatch(r"\w+ \w+", info.format)
    if suffix in ("aac", "amr"):
        assert info.duration is None
    else:
        assert info.duration == pytest.approx(1.0, abs=0.06)


def test_name_does_not_decide(tmp_path):
    path, _ = make(tmp_path, "m4a")
    assert_tone(load(path.rename(tmp_path / "sound.wav"), 16000), 16000, 1.0, 0.1)


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM", "GSM610"]
)
def test_wav_subtype(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", tone(), 16000, subtype=subtype)
    assert_tone(load(tmp_path / "a.wav", 16000), 16000, 1.0, 0.1)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s32le", "pcm_f64le", "alac"])
def test_pyav_sample_types(tmp_path, codec):
    path = encode(tmp_path / ("a.m4a" if codec == "alac" else "a.mka"), codec, 16000, tone()[:, 0])
    assert_tone(load(path, 16000), 16000, 1.0)


def test_wav_in_another_form(tmp_path):
    for form in ("RF64", "WAVEX"):
        soundfile.write(tmp_path / "a.wav", tone(), 16000, format=form)
        assert_tone(load(tmp_path / "a.wav", 16000), 16000, 1.0)
    soundfile.write(tmp_path / "a.wav", tone(), 16000, format="WAV", endian="BIG")
    assert_tone(load(tmp_path / "a.wav", 16000), 16000, 1.0)


def pipe(content):
    """A file object that cannot seek, as a shell's pipe."""
    out, into = os.pipe()

    def feed():
        with open(into, "wb") as file:
            file.write(content)

    threading.Thread(target=feed).start()
    return open(out, "rb")


@pytest.mark.parametrize("suffix", ["wav", "m4a"])
def test_sources(tmp_path, suffix):
    path, _ = make(tmp_path, suffix)
    content, expected = path.read_bytes(), load(path, 16000)
    for source in (str(path), content, bytearray(content), io.BytesIO(content), pipe(content)):
        np.testing.assert_array_equal(load(source, 16000), expected)
    parts = [x for _, x in windows(pipe(content), 16000, 0.3, 0.3)]
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-6)
    with open(path, "rb") as file:
        file.seek(99)  # a file object is read from its beginning, and stays open
        for _ in range(2):
            np.testing.assert_array_equal(load(file, 16000), expected)


def test_named_pipe(tmp_path):
    path, _ = make(tmp_path, "wav")
    os.mkfifo(tmp_path / "fifo")
    thread = threading.Thread(target=lambda: (tmp_path / "fifo").write_bytes(path.read_bytes()))
    thread.start()
    np.testing.assert_array_equal(load(tmp_path / "fifo", 16000), load(path, 16000))
    thread.join()


def test_array():
    x = tone(channels=2)
    for dtype, peak in ((np.int16, 2**15), (np.int32, 2**31)):
        np.testing.assert_allclose(load(((x * peak * 0.999).astype(dtype), 16000), 16000), 0.999 * x[:, 0], atol=1e-4)
    np.testing.assert_array_equal(load((x.astype(np.float64), 16000), 16000), x[:, 0])
    np.testing.assert_array_equal(load((2 * x, 16000), 16000), 2 * x[:, 0])
    assert probe((x, 16000)) == audio.AudioInfo(1.0, 16000, 2, "array")


def test_names():
    assert audio.name(Path("a/b.wav")) == "a/b.wav"
    assert audio.name(b"RIFF") == "<bytes>"
    assert audio.name(io.BytesIO()) == "<stream>"
    assert audio.name((np.zeros(3), 16000)) == "<array>"


@pytest.mark.parametrize("source", [None, 3, io.StringIO("text"), ["a.wav"]])
def test_wrong_type(source):
    with pytest.raises(TypeError):
        load(source, 16000)


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 22050, 32000, 44100, 48000, 96000, 192000])
@pytest.mark.parametrize("channels", [1, 2, 32])
def test_rates_and_channels(tmp_path, rate, channels):
    soundfile.write(tmp_path / "a.wav", tone(0.5, rate, channels), rate)
    assert_tone(load(tmp_path / "a.wav", 16000), 16000, 0.5)


# ---- windows


@pytest.fixture(scope="module")
def long_sounds(tmp_path_factory):
    """30 s in every format that is searched: {suffix: (path, whole sound at 16 kHz)}."""
    folder = tmp_path_factory.mktemp("long")
    sounds = {}
    for suffix in ("wav", "flac", "ogg", "opus", "mp3", "m4a", "webm", "mka", "aac", "amr", "wma"):
        rate = PYAV[suffix][1] if suffix in PYAV else 16000
        try:
            path, _ = make(folder, suffix, x=sweep(30, rate))
        except pytest.skip.Exception:
            continue
        sounds[suffix] = path, load(path, 16000)
    return sounds


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "m4a", "webm", "mka", "aac", "amr", "wma"])
def test_window_is_a_slice(long_sounds, suffix):
    if suffix not in long_sounds:
        pytest.skip(f"this ffmpeg has no encoder for {suffix}")
    path, _ = long_sounds[suffix]
    for rate in (16000, 11025):
        full = load(path, rate)
        for start, seconds in ((0.0, 1.0), (0.01, 0.5), (7.123, 2.0), (20.5, 0.1), (29.0, 5.0)):
            x = load(path, rate, start, seconds)
            expected = full[round(start * rate) :][: round(seconds * rate)]
            if suffix in ("webm", "wma"):  # they tell the time in milliseconds: find the window within two of these,
                # give or take a fraction of a sample
                assert abs(len(x) - len(expected)) <= rate // 500
                near = range(round(start * rate) - rate // 500, round(start * rate) + rate // 500 + 1)
                size = min(len(x), len(expected)) - rate // 500
                assert min(np.abs(full[at : at + size] - x[:size]).max() for at in near if at >= 0) < 0.3
            else:
                assert len(x) == len(expected)
                np.testing.assert_allclose(x, expected, atol=1e-4)


def test_mp3_blocks_join(tmp_path):
    """soundfile seeks after every read, after which an mp3 of variable rate goes on with silence."""
    x = np.random.default_rng(0).uniform(-0.5, 0.5, 44100 * 8)
    soundfile.write(tmp_path / "a.mp3", x, 44100, bitrate_mode="VARIABLE", compression_level=0.9)
    at_once, _ = soundfile.read(tmp_path / "a.mp3", dtype="float32")
    np.testing.assert_allclose(load(tmp_path / "a.mp3", 44100), at_once, atol=1e-5)
    for start in (1.2, 3.3, 7.5):
        expected = at_once[round(start * 44100) :][:22050]
        np.testing.assert_allclose(load(tmp_path / "a.mp3", 44100, start, 0.5), expected, atol=1e-5)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a"])
@pytest.mark.parametrize(("window", "hop"), [(10.0, 10.0), (4.0, 1.3)])
def test_windows_are_slices(long_sounds, suffix, window, hop):
    path, whole = long_sounds[suffix]
    starts = []
    for start, x in windows(path, 16000, window, hop):
        expected = whole[round(start * 16000) :][: round(window * 16000)]
        np.testing.assert_allclose(x, expected, atol=1e-5)
        starts.append(start)
    np.testing.assert_allclose(starts, np.arange(len(starts)) * hop)
    assert starts[-1] + window >= len(whole) / 16000 > starts[-2] + window


def test_window_past_the_end(tmp_path):
    for suffix in ("wav", "mka", "amr"):
        path, _ = make(tmp_path, suffix, 3.0)
        refused("ends before 5 s", path, start=5.0, duration=1.0)
        refused("ends before 5 s", path, start=5.0)
        assert len(load(path, 16000, 2.5, 9.0)) == pytest.approx(8000, abs=2500)


@pytest.mark.parametrize(("start", "duration"), [(-1.0, None), (0.0, 0.0), (0.0, -1.0)])
def test_window_nonsense(start, duration):
    with pytest.raises(ValueError, match="start must be"):
        load((tone(), 16000), 16000, start, duration)


@pytest.mark.parametrize(("window", "hop"), [(1.0, 0.0), (1.0, 2.0), (0.0, 0.0)])
def test_windows_nonsense(window, hop):
    with pytest.raises(ValueError, match="hop"):
        list(windows((tone(), 16000), 16000, window, hop))


@pytest.mark.parametrize(("suffix", "seconds"), [("wav", 1800), ("flac", 1800), ("mka", 300)])
def test_long_file_is_not_held(tmp_path, suffix, seconds, monkeypatch):
    """A window decodes some seconds of it, and a pass over all of it holds a few windows (all of 1800 s: 58 MB)."""
    rate = 8000
    path = tmp_path / f"a.{suffix}"
    if suffix == "mka":
        encode(path, "flac", rate, np.zeros(seconds * rate, np.float32))
    else:
        with soundfile.SoundFile(path, "w", rate, 1) as file:
            for _ in range(seconds):
                file.write(np.zeros(rate, np.float32))
    decoded = []
    mono = audio._mono

    def counting(*args):
        for block in mono(*args):
            decoded.append(len(block))
            yield block

    monkeypatch.setattr(audio, "_mono", counting)
    load(path, rate, 0.0, 0.1)  # imports
    decoded.clear()
    tracemalloc.start()
    try:
        assert len(load(path, rate, seconds - 100.0, 1.0)) == rate
        assert sum(decoded) <= 4 * rate
        assert sum(len(x) for _, x in windows(path, rate, 10.0, 10.0)) == seconds * rate
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


@settings(max_examples=40, deadline=None)
@given(st.integers(1600, 30000), st.sampled_from([8000, 16000, 44100]), st.data())
def test_own_rate_is_identity(length, rate, data):
    x = np.random.default_rng(length).uniform(-1, 1, max(length, rate // 10)).astype(np.float32)
    np.testing.assert_array_equal(load((x, rate), rate), x)
    start = data.draw(st.floats(0, (len(x) - 1) / rate - 1 / rate))
    seconds = data.draw(st.floats(1 / rate, 2.0))
    part = load((x, rate), rate, start, seconds)
    np.testing.assert_array_equal(part, x[round(start * rate) :][: max(1, round(seconds * rate))])


@settings(max_examples=60, deadline=None)
@given(st.integers(800, 40000), st.floats(0.05, 3.0), st.floats(0.2, 1.0))
@example(5125, 0.3203125, 1.0)
def test_windows_cover_everything(length, window, part):
    x = np.arange(1, length + 1, dtype=np.float32)
    hop, end = window * part, 0
    for start, piece in windows((x, 8000), 8000, window, hop):
        assert 0 < len(piece) <= np.ceil(window * 8000)
        assert piece[0] - 1 == round(start * 8000) <= end < piece[-1]  # no gap, and something new
        np.testing.assert_array_equal(np.diff(piece), 1)
        end = piece[-1]
    assert end == length


# ---- errors


def test_missing_folder_empty(tmp_path):
    refused("does not exist", tmp_path / "none.wav")
    refused("does not exist", "")
    refused("a folder", tmp_path)
    refused("cannot be opened", "a\0b")
    (tmp_path / "empty.wav").touch()
    refused(r"empty \(0 bytes\)", tmp_path / "empty.wav")
    refused("empty", b"")
    refused("empty", pipe(b""))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    path, _ = make(tmp_path, "wav")
    path.chmod(0)
    refused("no permission", path)


def test_no_permission_as_told_by_the_system(tmp_path, monkeypatch):
    def denied(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    refused("no permission", tmp_path / "a.wav")


def image():
    header = b"IHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU"
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + b"\0\0\0\nIDATx\x9cc`\0\0\0\x02\0\x01H\xaf\xa4q"


@pytest.mark.parametrize(
    "content",
    [b"x", b"not a sound\n" * 999, Path(__file__).read_bytes(), image(), b"\0" * 9999, b"%PDF-1.4\n" * 50]
    + [np.random.default_rng(seed).bytes(20000) for seed in range(8)],
)
def test_not_audio(content):
    refused("not audio", content)


def test_playlist_opens_nothing(tmp_path):
    path, _ = make(tmp_path, "wav")
    for text in (f"#EXTM3U\n#EXTINF:1,\n{path}\n", f"ffconcat version 1.0\nfile {path}\n"):
        refused("not audio", text.encode())


@pytest.mark.parametrize("share", [0.9, 0.5])
@pytest.mark.parametrize("suffix", [*LIBSNDFILE, "m4a", "mp4", "webm", "mka"])
def test_truncated(tmp_path, suffix, share):
    path, _ = make(tmp_path, suffix, 30.0 if suffix == "mp3" else 5.0)  # 2 kB of an mp3 are no proof
    content = path.read_bytes()
    told = "truncated or damaged: decoding stops at" if suffix == "flac" else audio.TRUNCATED
    refused(told, content[: round(share * len(content))])
    path.write_bytes(content[: round(share * len(content))])
    refused(told, path)


def test_truncated_with_index_in_front(tmp_path):
    path = encode(tmp_path / "a.m4a", "aac", 16000, tone(5.0)[:, 0], {"movflags": "faststart"})
    refused("truncated", path.read_bytes()[:-9000])


def test_truncated_window(tmp_path):
    path, _ = make(tmp_path, "flac", 30.0, pulses(30))
    content = path.read_bytes()
    cut = content[: len(content) // 2]
    assert len(load(cut, 16000, 2.0, 1.0)) == 16000  # nothing is wrong up to there
    refused("truncated", cut, start=14.0, duration=9.0)
    refused("truncated", cut, start=20.0, duration=1.0)


def test_damaged_in_the_middle(tmp_path):
    path, _ = make(tmp_path, "flac", x=np.random.default_rng(0).uniform(-0.5, 0.5, 80000))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 30000] = bytes(30000)
    refused("damaged", bytes(content))


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000, 0x80000000])
def test_wav_of_unsaid_length(tmp_path, size):
    """As programs write it to a pipe."""
    path, _ = make(tmp_path, "wav")
    content = bytearray(path.read_bytes())
    at = content.find(b"data")
    content[at + 4 : at + 8] = struct.pack("<I", size)
    assert_tone(load(bytes(content), 16000), 16000, 1.0)


def test_flac_of_unsaid_length(tmp_path):
    path, _ = make(tmp_path, "flac")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    assert probe(bytes(content)).duration is None
    assert_tone(load(bytes(content), 16000), 16000, 1.0)


def test_mp3_of_unsaid_length(tmp_path):
    """libsndfile would stop at the length that it guesses from the first frame."""
    x = np.concatenate([np.random.default_rng(0).uniform(-0.5, 0.5, 44100), tone(9.0, 44100)[:, 0]]).astype(np.float32)
    soundfile.write(tmp_path / "a.mp3", x, 44100, bitrate_mode="VARIABLE")
    content = (tmp_path / "a.mp3").read_bytes()
    second_frame = content.find(content[:2], 100)
    assert len(load(content[second_frame:], 16000)) == pytest.approx(10 * 16000, rel=0.02)
    assert len(load(content + content, 16000)) == pytest.approx(20 * 16000, rel=0.02)
    assert len(load(b"ID3\4\0\0\0\0\x08\0" + bytes(1024) + content, 16000)) == 10 * 16000


def test_zero_samples(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.empty(0), 16000)
    refused("zero samples", tmp_path / "a.wav")
    refused("zero samples", (np.empty(0), 16000))
    refused("zero samples", (np.empty((0, 2)), 16000))


def test_too_short(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.099), 16000)
    refused("shorter than 0.1 s", tmp_path / "a.wav")
    refused("shorter than 0.1 s", encode(tmp_path / "a.mka", "flac", 16000, tone(0.05)[:, 0]))
    soundfile.write(tmp_path / "a.wav", tone(0.1), 16000)
    assert len(load(tmp_path / "a.wav", 16000)) == 1600


@pytest.mark.parametrize(
    ("rate", "channels", "match"),
    [
        (3999, 1, "3999 Hz, outside 4000 to 192000"),
        (192001, 1, "192001 Hz"),
        (16000, 33, "33 channels, outside 1 to 32"),
    ],
)
def test_out_of_bounds(tmp_path, rate, channels, match):
    soundfile.write(tmp_path / "a.wav", tone(0.5, rate, channels), rate)
    refused(match, tmp_path / "a.wav")
    refused(match, (tone(0.5, rate, channels), rate))


@pytest.mark.parametrize("x", [np.array(1.0), np.zeros((2, 2, 2)), np.array(["a"]), np.zeros(9, complex)])
def test_strange_array(x):
    refused("an array of", (x, 16000))


def test_video_without_sound(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(stream.encode(None))
    refused("no audio stream", tmp_path / "a.mp4")


def test_unsupported_codec(tmp_path):
    path, _ = make(tmp_path, "wav")
    content = bytearray(path.read_bytes())
    content[20:22] = b"\x34\x12"  # the format tag
    refused("unsupported codec", bytes(content))
    for sign in (b"\x7f\xfe\x80\x01", b"\xfe\x7f\x01\x80"):
        refused(r"unsupported codec \(dts\)", sign + bytes(9999))


# ---- damage that costs what is damaged


class Pipe(io.RawIOBase):
    """What gives its bytes a little at a time, and only forwards."""

    def __init__(self, content):
        self.left = io.BytesIO(content)

    def readable(self):
        return True

    def read(self, size=-1):
        return self.left.read(min(size, 5000) if size > 0 else size)


def pulses(seconds):
    """Noise of another level in every quarter of a second, so that a stretch of it is known again (T,)."""
    rng = np.random.default_rng(0)
    levels = np.repeat(rng.uniform(0.02, 0.3, 4 * seconds), 4000)
    return (levels * rng.standard_normal(16000 * seconds)).clip(-1, 1).astype(np.float32)


def envelope(x):
    return np.abs(x[: len(x) // 800 * 800]).reshape(-1, 800).mean(1)  # (n,), every 0.05 s


def lateness(y, x):
    """Seconds by which `y` is behind `x` in the last third of `x`, to 0.05 s."""
    one, other = envelope(x), np.pad(envelope(y), (0, 200))
    begin, end = len(one) * 2 // 3, len(one) - 120
    lags = range(-100, 101)
    fits = [np.corrcoef(one[begin:end], other[begin + lag : end + lag])[0, 1] for lag in lags]
    assert max(fits) > 0.8
    return lags[int(np.argmax(fits))] / 20


def heard(source):
    """All samples (T,) at 16 kHz, what of it is lost, and what is warned of."""
    damage, noted, blocks = Damage(), [], []
    for _, block in windows(source, 16000, 5.0, 5.0, damage):
        blocks.append(block)
        noted = list(damage.spans)
    assert noted == damage.spans, "known when the window comes"
    return np.concatenate(blocks), noted, damage.truncated


@pytest.fixture(scope="module")
def pulse_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pulses")
    x = pulses(60)
    files = {suffix: make(folder, suffix, x=x)[0] for suffix in ("flac", "ogg", "mp3")}
    files["m4a"] = encode(folder / "sound.m4a", "aac", 16000, x)
    return {suffix: path.read_bytes() for suffix, path in files.items()}


@pytest.mark.parametrize("damage", ["noise", "zeros", "bits"])
@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3", "m4a"])
def test_a_damaged_stretch_is_told_and_the_rest_is_in_its_place(pulse_files, suffix, damage):
    content, x = pulse_files[suffix], pulses(60)
    a, n = len(content) // 2, len(content) // 10
    for seed in range(3):
        rng, bad = np.random.default_rng(seed), bytearray(content)
        if damage == "bits":
            for at in rng.integers(a, a + n, 100):
                bad[at] ^= 1 << int(rng.integers(8))
        else:
            bad[a : a + n] = rng.bytes(n) if damage == "noise" else bytes(n)
        for source in (bytes(bad), Pipe(bytes(bad))):
            y, lost, _ = heard(source)
            slack = 0.3 if suffix == "mp3" else 0.1  # it has no clock: time is told by bytes
            assert len(y) / 16000 == pytest.approx(60, abs=slack)
            assert abs(lateness(y, x)) <= slack
            if suffix != "mp3" or damage != "bits":  # most of an mp3's bits may be any
                assert lost
            assert all(27 < start < end < 39 for start, end in lost)


def test_frames_that_damage_made_up_are_no_frames():
    """Noise in AAC may give frames of 29 channels, over which PyAV would crash; then all that follows is as strange."""

    class Stream:
        class codec_context:
            name, extradata = "aac", b"\x14\x08"

            @staticmethod
            def decode(frame):
                return [frame]

    def frame(rate, channels):
        layout = types.SimpleNamespace(nb_channels=channels)
        return types.SimpleNamespace(sample_rate=rate, layout=layout, format=types.SimpleNamespace(is_planar=True))

    decoder, sane = ffmpeg._Decoder(Stream), frame(16000, 1)
    begun = []
    decoder._begin = lambda: begun.append(0)
    assert decoder.decode(sane) == ([sane], True)
    for rate, channels in [(16000, 29), (16000, 2), (22050, 1), (16000, 2), (16000, 2)]:
        assert decoder.decode(frame(rate, channels)) == ([], False)
    assert len(begun) == 5
    assert decoder.decode(sane) == ([sane], True)
    now = frame(16000, 2)
    assert [decoder.decode(now)[1] for _ in range(5)] == [False, False, False, True, True], "it does change at times"


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
@pytest.mark.parametrize("cut", [False, True])
def test_an_end_that_is_missing_or_damaged_is_told(pulse_files, suffix, cut):
    content = pulse_files[suffix]
    kept = content[: len(content) * 9 // 10]
    bad = kept if cut else kept + bytes(len(content) - len(kept))
    for source in (bad, Pipe(bad)):
        y, lost, warned = heard(source)
        assert 50 < len(y) / 16000 < 60
        assert lost or warned
        assert lateness(y, pulses(54)) == pytest.approx(0, abs=0.05)
    for source in (content, Pipe(content)):
        assert heard(source)[1:] == ([], None)


def test_nothing_of_it_can_be_decoded(pulse_files):
    content = pulse_files["m4a"]
    begin, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    with pytest.raises(AudioError, match="nothing of it can be decoded"):
        heard(content[:begin] + bytes(end - begin) + content[end:])


def test_a_wav_from_a_pipe_that_breaks_off(tmp_path):
    content = make(tmp_path, "wav", 4)[0].read_bytes()
    y, lost, truncated = heard(Pipe(content[: 44 + 96000]))
    assert (len(y), lost) == (48000, [])
    assert re.fullmatch(r"truncated: .* at 3\.00 s", truncated)


def test_a_phone_that_ran_out_of_power(tmp_path):
    content = make(tmp_path, "m4a", 4)[0].read_bytes()
    at = content.index(b"moov") - 4
    with pytest.raises(AudioError, match="its index is missing or damaged"):
        list(windows(content[: at - 500], 16000, 1, 1, Damage()))


def test_more_channels_than_pyav_can_read():
    frame = types.SimpleNamespace(layout=types.SimpleNamespace(nb_channels=9))
    for planar in (False, True):
        frame.format = types.SimpleNamespace(is_planar=planar)
        assert ffmpeg._is_unsafe(frame) == planar


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_finite(tmp_path, value):
    x = np.full(16000, value, np.float32)
    soundfile.write(tmp_path / "a.wav", x, 16000, subtype="FLOAT")
    refused("NaN or infinite", tmp_path / "a.wav")
    refused("NaN or infinite", (x, 16000))
    refused("NaN or infinite", (np.stack([tone()[:, 0], x], axis=1), 16000))


def test_single_samples_are_repaired():
    clean = np.linspace(-0.5, 0.5, 16000, dtype=np.float32)[:, None].repeat(2, axis=1)
    x = clean.copy()
    x[[0, 700, 15999], 0] = np.nan
    x[[5, 9000], 1] = -np.inf
    x[9000, 0] = np.inf
    with pytest.warns(AudioWarning, match="<array>: samples near 0.0 s") as caught:
        np.testing.assert_allclose(load((x, 16000), 16000), clean[:, 0], atol=1e-4)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load((clean, 16000), 16000)


def test_float64_beyond_float32_is_infinite():
    x = tone().astype(np.float64)
    x[80] = 1e300
    with pytest.warns(AudioWarning):
        assert np.abs(load((x, 16000), 16000)).max() <= 0.51


def test_bomb(tmp_path):
    """A small file of many hours is refused by its header, and by counting where the header does not say."""
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros(60 * 4000), 4000)
    refused("longer than the 50 s", path, max_duration=50.0)
    assert len(load(path, 4000, max_duration=60.0)) == 60 * 4000
    assert len(load(path, 4000, 20.0, max_duration=50.0)) == 40 * 4000
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F  # 2 ** 36 - 1 samples
    content[22:26] = b"\xff" * 4
    refused("longer than the 3600 s", bytes(content), 4000, max_duration=audio.MAX_DURATION)
    content[21] &= 0xF0  # unknown
    content[22:26] = bytes(4)
    refused("longer than the 50 s", bytes(content), 4000, max_duration=50.0)


def test_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(AudioError("a.wav", "empty", "copy it again")))
    assert (str(error), error.remedy) == ("a.wav: empty; copy it again", "copy it again")
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("suffix", ["wav", "ogg", "mp3", "m4a", "webm"])
def test_damage_is_an_audio_error_or_sound(tmp_path, suffix):
    """Whatever bytes are flipped, nothing else than AudioError comes out (flac is left out: libsndfile may crash)."""
    content = make(tmp_path, suffix, 0.5)[0].read_bytes()
    random = np.random.default_rng(0)
    for _ in range(15):
        damaged = bytearray(content)
        for at in random.integers(0, min(len(content), 3000), 6):
            damaged[at] = random.integers(256)
        with contextlib.suppress(AudioError):
            assert load(bytes(damaged), 16000, max_duration=60.0).dtype == np.float32


# ---- level


def test_level():
    assert audio.level(np.zeros(9, np.float32)) == -np.inf
    assert audio.level(np.empty(0, np.float32)) == -np.inf
    assert audio.level(np.array([1.0, -1.0])) == 0
    assert audio.level(tone()[:, 0]) == pytest.approx(-6.02, abs=0.01)
    assert audio.is_silent(np.zeros(9))
    square = np.tile([1.0, -1.0], 8)
    assert audio.is_silent(square * 10 ** (-70.1 / 20))
    assert not audio.is_silent(square * 10 ** (-69.9 / 20))


# ---- imports


def test_import_is_light():
    code = "import sys, lamb.audio.reader; print([m for m in ('torch', 'av', 'soxr', 'soundfile') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
