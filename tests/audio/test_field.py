"""Recordings as they come from the field: joined, late, gapped, upside down, with a few bad bytes; nothing vanishes."""

import io
from contextlib import nullcontext
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile

from lamb.audio import reader, sandbox
from lamb.audio.downmix import downmix
from lamb.audio.headers import _ogg_crc
from lamb.audio.reader import AudioError, AudioWarning, Damage
from lamb.config import DecodeLimits

RATE = 16_000
ID3V1 = b"TAG" + b"a" * 125
ID3V2 = b"ID3\4\0\0\0\0\x28\0" + bytes(40 * 128)


def noise(seconds, rate=RATE, seed=0):
    """Noise of another level in every quarter of a second (T,)."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.uniform(0.05, 0.3, 4 * seconds), rate // 4)
    return (levels * rng.standard_normal(rate * seconds)).clip(-1, 1).astype(np.float32)


def written(x, kind, subtype=None, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, x, rate, format=kind, subtype=subtype)
    return file.getvalue()


def encoded(x, container, codec, rate=RATE, start=0.0, gap=(0.0, 0.0), video=0):
    """By ffmpeg: packets from `start` s on, later by gap[1] s from gap[0] s on, beside `video` s of pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        if video:
            picture = out.add_stream("libvpx" if container == "webm" else "mpeg4", rate=5)
            picture.width = picture.height = 64
            picture.pix_fmt = "yuv420p"
        stream = out.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 64_000
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=stream.codec_context.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray((x * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        for k in range(5 * video):
            out.mux(picture.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), k, np.uint8))))
        if video:
            out.mux(picture.encode(None))
        parts = [*resampler.resample(frame), *resampler.resample(None), None]
        for packet in [packet for part in parts for packet in stream.encode(part)]:
            late = start + (gap[1] if packet.pts * packet.time_base >= gap[0] else 0)
            packet.pts += round(late / packet.time_base)
            packet.dts += round(late / packet.time_base)
            out.mux(packet)
    return file.getvalue()


def copied(content, container, begin, end=1e9):
    """Packets from `begin` to `end` seconds, as `ffmpeg -c copy` would."""
    file = io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(file, "w", format=container) as out:
        stream = source.streams.audio[0]
        target = out.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None and begin <= float(packet.pts * packet.time_base) < end:
                packet.stream = target
                out.mux(packet)
    return file.getvalue()


def heard(source):
    """Samples (T,) and what is lost; as `load` gives them where nothing is."""
    damage = Damage()
    x = np.concatenate([x for _, x in reader.windows(source, RATE, 5.0, 5.0, damage)])
    if damage == Damage():
        assert len(reader.load(source, RATE)) == pytest.approx(len(x), abs=RATE / 10)
    return x, damage


def sounding(x):
    """(begin, end) in seconds of what is no silence."""
    there = np.flatnonzero(np.abs(x) > 0.01)
    return there[0] / RATE, there[-1] / RATE


def corrupted(content, at, size=10):
    """`size` bad bytes at a share of the content."""
    bad, place = bytearray(content), round(at * len(content))
    bad[place : place + size] = bytes([0x55]) * size
    return bytes(bad)


# ---- joined files


@pytest.mark.parametrize(
    "make",
    [
        lambda x, rate: written(x, "OGG", "VORBIS", rate),
        lambda x, rate: written(x, "OGG", "OPUS", rate),
        lambda x, rate: encoded(x, "ogg", "flac", rate),
        lambda x, rate: written(x, "MP3", None, rate),
        lambda x, rate: ID3V2 + written(x, "MP3", None, rate),
        lambda x, rate: written(x, "MP3", None, rate) + ID3V1,
        lambda x, rate: encoded(x, "adts", "aac", rate),
    ],
    ids=["vorbis", "opus", "ogg flac", "mp3", "mp3 with tags", "mp3 with old tags", "aac"],
)
@pytest.mark.parametrize("rate", [RATE, 48_000])
def test_files_joined_to_one_are_heard_to_the_end(make, rate):
    one = make(noise(6), RATE)
    x, damage = heard(one + make(noise(4, rate, 1), rate))
    assert len(x) / RATE == pytest.approx(10, abs=0.35)
    assert damage.truncated is None
    assert sum(end - start for start, end in damage.spans) < 0.2, "a joint may cost a frame or two"
    twice, _ = heard(one + one)
    assert len(twice) / RATE == pytest.approx(12, abs=0.35), "the same file twice, with the same serial numbers"


def test_a_picture_in_the_tag_of_a_joined_mp3_is_no_lost_time():
    picture = b"ID3\4\0\0\0\x10\0\0" + np.random.default_rng(0).bytes(0x10 << 14).replace(b"\xff", b"\0")
    x, damage = heard(written(noise(5), "MP3") + picture + written(noise(5), "MP3"))
    assert (len(x) / RATE, damage.spans) == (pytest.approx(10, abs=0.2), [])


# ---- whole, though something in the file says otherwise


def without_end(content):
    """An ogg file whose last page is not marked as the last."""
    page = bytearray(content[content.rfind(b"OggS\0") :])
    page[5] &= ~4
    page[22:26] = bytes(4)
    page[22:26] = _ogg_crc(bytes(page))
    return content[: -len(page)] + bytes(page)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_that_is_not_marked_as_ended_is_whole(subtype):
    content = without_end(written(noise(10), "OGG", subtype))
    x, damage = heard(content)
    assert (len(x) / RATE, damage) == (pytest.approx(10, abs=0.05), Damage())
    with pytest.raises(AudioError, match="truncated"):
        reader.load(content[:-100], RATE)


CONTAINERS = {"mp4": "aac", "mov": "aac", "matroska": "aac", "webm": "libopus", "mpegts": "aac", "asf": "wmav2"}


def rate_of(container):
    return 48_000 if container == "webm" else RATE


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_duration_is_the_time_of_the_end(container):
    """A start that is not 0, and pictures longer than the sound, are no missing end."""
    rate = rate_of(container)
    for options in ({"start": 10.0}, {"video": 25}, {}):
        x, damage = heard(encoded(noise(5, rate), container, CONTAINERS[container], rate, **options))
        assert (len(x) / RATE, damage) == (pytest.approx(5, abs=0.15), Damage())


@pytest.mark.parametrize("container", CONTAINERS)
def test_times_count_from_the_containers_start(container):
    rate = rate_of(container)
    x, damage = heard(encoded(noise(5, rate), container, CONTAINERS[container], rate, start=10.0, video=20))
    assert damage == Damage()
    assert sounding(x) == (pytest.approx(10, abs=0.1), pytest.approx(15, abs=0.1))


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_gap_in_the_time_stamps_is_silence(container):
    rate = rate_of(container)
    content = encoded(noise(6, rate), container, CONTAINERS[container], rate, gap=(2.0, 3.0))
    x, damage = heard(content)
    assert (len(x) / RATE, damage) == (pytest.approx(9, abs=0.15), Damage())
    assert not x[round(2.3 * RATE) : round(4.7 * RATE)].any()
    part = reader.load(content, RATE, 6.0, 1.0)
    np.testing.assert_allclose(np.abs(part).mean(), np.abs(x[6 * RATE : 7 * RATE]).mean(), rtol=0.1)


@pytest.mark.parametrize("container", ["matroska", "webm", "asf"])
def test_an_end_that_the_bytes_miss_is_told(container):
    rate = rate_of(container)
    content = encoded(noise(10, rate), container, CONTAINERS[container], rate)
    for share in (0.5, 0.9):
        with pytest.raises(AudioError, match="truncated"):
            reader.load(content[: round(share * len(content))], RATE)


def test_flac_with_an_old_tag_or_cut_without_decoding_is_whole():
    flac = written(noise(10), "FLAC")
    for content, seconds in ((flac + ID3V1, 10), (copied(flac, "flac", 3), 7), (copied(flac, "flac", 3, 7), 4)):
        x, damage = heard(content)
        assert (len(x) / RATE, damage) == (pytest.approx(seconds, abs=0.3), Damage())
    with pytest.raises(AudioError, match="truncated"):
        reader.load(flac[: len(flac) // 2], RATE)


@pytest.mark.parametrize(("kind", "container"), [("OGG", "ogg"), ("MP3", "mp3")])
def test_what_was_cut_without_decoding_is_whole(kind, container):
    x, damage = heard(copied(written(noise(10), kind), container, 3, 7))
    assert (len(x) / RATE, damage) == (pytest.approx(4, abs=0.1), Damage())


# ---- a few bad bytes


@pytest.mark.parametrize(
    ("kind", "told"),
    [("flac", True), ("ogg", True), ("opus", True), ("aac", True), ("mp3", False), ("m4a", False)],
)
def test_a_few_bad_bytes_cost_what_they_are_in(kind, told):
    """mp3 and m4a decode to something whatever their bits are."""
    content = {
        "flac": lambda x: written(x, "FLAC"),
        "ogg": lambda x: written(x, "OGG", "VORBIS"),
        "opus": lambda x: written(x, "OGG", "OPUS"),
        "mp3": lambda x: written(x, "MP3"),
        "aac": lambda x: encoded(x, "adts", "aac"),
        "m4a": lambda x: encoded(x, "mp4", "aac"),
    }[kind](noise(10))
    for at in (0.3, 0.5, 0.7):
        x, damage = heard(corrupted(content, at, 40))
        assert len(x) / RATE == pytest.approx(10, abs=0.3)
        assert damage.truncated is None
        assert all(10 * at - 2.5 < start < end < 10 * at + 2.5 for start, end in damage.spans)
        assert bool(damage.spans) or not told


@pytest.mark.parametrize("kind", ["mp3", "aac"])
def test_a_bad_first_packet_costs_itself(kind):
    content = written(noise(10), "MP3") if kind == "mp3" else encoded(noise(10), "adts", "aac")
    for bad in (corrupted(content, 0.0005, 80), content[3333:]):
        x, _ = heard(bad)
        assert 9.0 < len(x) / RATE < 10.3


# ---- channels


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", None), ("FLAC", None), ("MP3", None), ("OGG", "OPUS")])
def test_opposite_channels_do_not_vanish(kind, subtype):
    x = noise(5)
    y = reader.load(written(np.stack([x, -x], axis=1), kind, subtype), RATE)
    assert np.sqrt(np.mean(y**2)) == pytest.approx(np.sqrt(np.mean(x**2)), rel=0.1)


@pytest.mark.parametrize("decibels", [0, 3, 6, 9])
def test_an_upside_down_source_is_kept_beside_a_centred_one(decibels):
    """Each at its own level at every frequency, also if it is the weaker one."""
    t, weak = np.arange(4 * RATE) / RATE, 0.3 * 10 ** (-decibels / 20)
    centred, opposed = 0.3 * np.sin(2 * np.pi * 440 * t), weak * np.sin(2 * np.pi * 3000 * t)
    y = reader.load((np.stack([centred + opposed, centred - opposed], axis=1), RATE), RATE)[RATE:][: 2 * RATE]
    spectrum = np.abs(np.fft.rfft(y)) / RATE
    assert spectrum[880] == pytest.approx(0.3, rel=0.02)
    assert spectrum[6000] == pytest.approx(weak, rel=0.02)


def test_channels_that_agree_are_their_mean():
    x = noise(3)
    both = np.stack([x, 0.6 * x], axis=1)
    np.testing.assert_allclose(reader.load((both, RATE), RATE), both.mean(1), atol=1e-6)


@pytest.mark.parametrize("size", [100, 1024, 65_536])
def test_the_downmix_does_not_depend_on_the_blocks(size):
    rng = np.random.default_rng(0)
    x = rng.uniform(-0.5, 0.5, (100_000, 3)).astype(np.float32)
    x[30_000:60_000, 1] = -x[30_000:60_000, 0]
    x[30_000:60_000, 2] = 0
    whole = np.concatenate(list(downmix([x])))
    parts = np.concatenate(list(downmix(x[at : at + size] for at in range(0, len(x), size))))
    assert len(parts) == len(x)
    np.testing.assert_array_equal(parts, whole)


def test_what_breaks_off_is_heard_up_to_there():
    def blocks():
        yield np.ones((1000, 2), np.float32)
        raise OSError("broken")

    found = downmix(blocks())
    assert len(next(found)) == 1000
    with pytest.raises(OSError, match="broken"):
        next(found)


# ---- a constant


@pytest.mark.parametrize("value", [0.5, 127 / 128 - 1, -1.0])
def test_a_constant_is_silence(value):
    x = np.full(RATE, value, np.float32)
    assert reader.is_silent(x)
    x[500] += 0.01
    assert not reader.is_silent(x)


# ---- tracks


def tracks(*sounds, default=()):
    """A video with several audio tracks."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        streams = [out.add_stream("flac", rate=RATE, layout="mono") for _ in sounds]
        for k, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if k in default else av.stream.Disposition(0)
        for stream, x in zip(streams, sounds, strict=True):
            for at in range(0, len(x), 4096):
                frame = av.AudioFrame.from_ndarray((x[None, at : at + 4096] * 32767).astype(np.int16), "s16", "mono")
                frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), at
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return file.getvalue()


def test_the_default_track_is_heard_else_the_loudest():
    quiet, loud = noise(3) / 20, noise(3, seed=1)
    for default, track, expected in (((), None, loud), ((0,), None, quiet), ((0, 1), None, loud), ((1,), 1, quiet)):
        content = tracks(quiet, loud, default=default)
        note = (
            pytest.warns(AudioWarning, match="has 2 audio tracks, of which number") if track is None else nullcontext()
        )
        with note:
            limits = DecodeLimits(track=track)
            found = [x for _, x in sandbox.windows(content, RATE, 5.0, 5.0, limits=limits)]
        np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-4)
    with pytest.raises(AudioError, match="has no audio track 3; choose one of 1 to 2"):
        list(sandbox.windows(content, RATE, 5.0, 5.0, limits=DecodeLimits(track=3)))
