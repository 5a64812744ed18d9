"""Segments that follow the sound: true times, streams, silence, damage, the grid, bounded memory."""

import io
import itertools
import os
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamb.audio import reader as audio
from lamb.audio.reader import AudioError, AudioWarning
from lamb.config import DecodeConfig
from lamb.inference.captioner import Captioner
from lamb.inference.captions import Segment
from lamb.inference.engine import Engine
from lamb.inference.generation import Hypothesis
from lamb.inference.parts import Grid, Part
from lamb.inference.timeline import _Joiner

RATE = 16000


class Pitch(torch.nn.Module):
    """Stands in for an encoder: a token of 0.16 s is a spectrum in 32 bands, so that it changes when the tone does."""

    sample_rate, frame_rate, dim = RATE, 6.25, 32

    def forward(self, waveform: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.nn.functional.pad(waveform * mask, (0, 2560 - waveform.shape[1] % 2560)).unfold(1, 2560, 2560)
        bands = torch.fft.rfft(x).abs()[..., 1:].unflatten(-1, (32, -1)).sum(-1)  # (B, N, 32)
        valid = torch.arange(x.shape[1]) * 2560 < mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(bands, dim=-1) * 3, valid


@pytest.fixture
def captioner(make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Captioner:
    """Captions name the band that is the strongest, with "the whole: " in front where the search is with beams."""
    model = make_model()
    model.encoder = Pitch()

    def describe(_: Any, tokens: list[np.ndarray], options: DecodeConfig, *__: Any) -> list[list[Hypothesis]]:
        start = "" if options.beams == 1 else "the whole: "
        return [[Hypothesis(f"{start}{int(h_a.mean(0).argmax())}.", -0.1)] for h_a in tokens]

    monkeypatch.setattr(Engine, "describe", describe)
    return Captioner(model)


def tone(band: float, seconds: float) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * (band + 0.5) * 250 * t) + 1e-3 * noise).astype(np.float32)


def days(*parts: tuple[int | None, float]) -> np.ndarray:
    """Tones (band, seconds) one after the other; None is digital silence."""
    return np.concatenate([np.zeros(round(s * RATE), np.float32) if b is None else tone(b, s) for b, s in parts])


def rows(segments: Any) -> list[tuple[float, float, str]]:
    return [(round(s.start, 2), round(s.end, 2), s.caption) for s in segments]


PARTS = [(3, 7.3), (9, 4.1), (None, 6.0), (3, 21.7), (20, 2.5), (9, 11.0), (None, 1.0), (9, 3.3)]


def test_segments_follow_the_sound(captioner: Captioner) -> None:
    segments = list(captioner.timeline((days(*PARTS), RATE)))
    captions = ["Silence." if band is None else f"{band}." for band, _ in PARTS]
    assert [s.caption for s in segments] == captions
    ends = np.cumsum([seconds for _, seconds in PARTS])
    assert [s.end for s in segments] == pytest.approx(ends, abs=0.31)
    assert [s.start for s in segments] == pytest.approx([0, *[s.end for s in segments[:-1]]])
    assert segments[-1].end == pytest.approx(ends[-1], abs=1e-6)
    assert all(0 <= s.confidence <= 1 for s in segments)


def test_the_whole_comes_last(captioner: Captioner) -> None:
    found = captioner.timeline((days(*PARTS), RATE))
    segments = list(found)
    assert found.caption.segments == tuple(segments)
    assert found.caption.text.startswith("the whole: ")
    assert found.caption.duration == pytest.approx(sum(seconds for _, seconds in PARTS))
    (same,) = captioner.caption([(days(*PARTS), RATE)], timeline=True)
    assert same == found.caption


def test_without_a_timeline_the_caption_is_the_same(captioner: Captioner) -> None:
    """Of a length that windows of 10 s divide: half of the timeline's windows are then those of the plain caption."""
    seen: list[np.ndarray] = []
    captioner.model.audio_tokens = lambda h_a, mask: pytest.fail("no")  # type: ignore[method-assign]
    original = Engine.describe

    def describe(engine: Engine, tokens: list[np.ndarray], options: DecodeConfig, *rest: Any) -> Any:
        if options.beams > 1:
            seen.extend(tokens)
        return original(engine, tokens, options, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "describe", describe)
        x = days((3, 17), (9, 13))
        captioner.caption([(x, RATE)], timeline=True)
        captioner.caption([(x, RATE)])
    one, other = seen
    assert np.array_equal(one, other)


def test_one_segment_is_the_whole(captioner: Captioner) -> None:
    for seconds in (0.1, 3.0, 9.9):
        (result,) = captioner.caption([(tone(4, seconds), RATE)], timeline=True)
        assert rows(result.segments) == [(0, seconds, result.text)]
        assert result.segments[0].confidence == result.confidence


def test_it_is_deterministic_and_ignores_the_batch(captioner: Captioner) -> None:
    x = days(*PARTS)
    first = list(captioner.timeline((x, RATE)))
    assert list(captioner.timeline((x, RATE))) == first
    assert list(captioner.timeline((x, RATE), batch_size=1)) == first


def test_bounded_memory_and_many_hours_of_the_same(captioner: Captioner) -> None:
    """Ten minutes that are made while they are read: one segment, and memory does not follow the length."""

    class Endless(io.RawIOBase):
        """A wav file that is not there."""

        def __init__(self) -> None:
            head = io.BytesIO()
            soundfile.write(head, np.zeros(16, np.int16), RATE, format="WAV")
            self.head, self.left = head.getvalue()[:40] + b"\xff" * 4, 2 * RATE * 600

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            if self.head:
                head, self.head = self.head, b""
                return head
            size = min(size, self.left)
            self.left -= size
            return (b"\x10\x20\x30\x00" * (size // 4 + 1))[:size]

    tracemalloc.start()
    found = captioner.timeline(Endless())
    segments = list(found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(segments) == 1
    assert segments[0].end == pytest.approx(600, abs=1)
    assert peak < 24e6, "in float32 they are 38 MB"


# --- as it comes


def feed(parts: list[bytes], pause: float) -> Any:
    """A pipe into which another thread writes these parts, with pauses."""
    out, into = os.pipe()

    def write() -> None:
        with open(into, "wb", buffering=0) as file:
            for part in parts:
                file.write(part)
                time.sleep(pause)

    threading.Thread(target=write, daemon=True).start()
    return open(out, "rb")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_segments_come_while_the_sound_does(captioner: Captioner, tmp_path: Any, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, days(*PARTS, *PARTS), RATE)
    content = path.read_bytes()
    n = len(content) // 20
    gate, written = threading.Event(), []

    class Gated(io.RawIOBase):
        """What a pipe would give: its second half only once a segment was there."""

        def read(self, size: int = -1) -> bytes:
            if len(written) * n > len(content) // 2:
                assert gate.wait(20), "no segment came before the second half"
            written.append(0)
            return content[(len(written) - 1) * n : len(written) * n]

        read1 = read

    found = captioner.timeline(Gated())
    first = next(found)
    gate.set()
    assert (first.start, first.caption) == (0, "3.")
    segments = [first, *found]
    whole = list(captioner.timeline(str(path)))
    assert rows(segments[:-1]) == rows(whole[:-1])
    assert segments[-1].end == pytest.approx(whole[-1].end, abs=0.1), "a pipe's mp3 does not say how much is padding"


def test_a_pipe_of_a_format_that_jumps_is_copied(captioner: Captioner, tmp_path: Any) -> None:
    soundfile.write(tmp_path / "a.aiff", days((3, 4), (9, 4)), RATE)
    content = (tmp_path / "a.aiff").read_bytes()
    with feed([content[:5000], content[5000:]], 0.01) as pipe:
        assert [s.caption for s in captioner.timeline(pipe)] == ["3.", "9."]


def test_listen_hears_every_sample_once(captioner: Captioner) -> None:
    x = days(*PARTS)
    for options in ({}, {"window": 4.0, "hop": 1.5}, {"window": 3.0}):
        heard: list[np.ndarray] = []
        list(captioner.timeline((x, RATE), listen=heard.append, **options))
        np.testing.assert_array_equal(np.concatenate(heard), x)


def test_what_cannot_be_opened(captioner: Captioner) -> None:
    with pytest.raises(AudioError, match="does not exist"):
        next(captioner.timeline("none.wav"))
    with pytest.raises(AudioError, match="empty"):
        next(captioner.timeline(io.BytesIO()))
    with pytest.raises(ValueError, match="hop"):
        captioner.timeline("none.wav", window=3, hop=4)
    failed, good = captioner.timelines(["none.wav", (tone(3, 1), RATE)])
    assert "does not exist" in failed.error
    assert len(list(good)) == 1


# --- damage


def damaged(content: bytes) -> bytes:
    """Noise in place of a twentieth of the bytes, in the middle."""
    a, n = len(content) // 2, len(content) // 20
    return content[:a] + np.random.default_rng(0).bytes(n) + content[a + n :]


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_damage_costs_what_is_damaged(captioner: Captioner, tmp_path: Any, suffix: str) -> None:
    x = days((3, 15), (9, 30), (20, 15))
    x += 0.02 * np.random.default_rng(0).standard_normal(len(x)).astype(np.float32)
    soundfile.write(tmp_path / f"a.{suffix}", x, RATE)
    content = damaged((tmp_path / f"a.{suffix}").read_bytes())
    with pytest.warns(AudioWarning, match="damaged: .* cannot be decoded"):
        segments = list(captioner.timeline(content))
    lost = [s for s in segments if s.caption == "(unreadable)"]
    assert len(lost) == 1
    assert 29 < lost[0].start < lost[0].end < 36
    assert lost[0].confidence == 0
    assert [s.caption for s in segments if s.end < 29 or s.start > 34] == ["3.", "20."]
    assert segments[-1].start == pytest.approx(45, abs=0.5), "what follows is at its time"


def test_a_stretch_of_nan(captioner: Captioner) -> None:
    x = days((3, 12), (9, 12))
    x[5 * RATE : 10 * RATE] = np.nan
    with pytest.warns(AudioWarning):
        segments = list(captioner.timeline((x, RATE)))
    assert [s.caption for s in segments if s.end - s.start > 1.5] == ["3.", "(unreadable)", "9."]


def test_what_cannot_be_read_at_all_is_not_called_silence(captioner: Captioner) -> None:
    with pytest.warns(AudioWarning, match="damaged: 0.00 s to 20.00 s cannot be decoded"):
        (caption,) = captioner.caption([(np.full(20 * RATE, np.nan, np.float32), RATE)], timeline=True)
    assert [(s.caption, s.confidence) for s in caption.segments] == [("(unreadable)", 0.0)]
    assert (caption.text, caption.confidence, caption.score) == ("(unreadable)", 0.0, None)
    assert caption.n_best() == [("(unreadable)", None)]


def test_a_file_that_breaks_off_gives_what_is_there(captioner: Captioner, tmp_path: Any) -> None:
    soundfile.write(tmp_path / "a.wav", days((3, 20), (9, 20)), RATE)
    content = (tmp_path / "a.wav").read_bytes()
    with pytest.warns(AudioWarning, match="truncated"):
        segments = list(captioner.timeline(content[: len(content) * 3 // 4]))
    assert [s.caption for s in segments] == ["3.", "9."]
    assert segments[-1].end == pytest.approx(30, abs=0.1)
    (whole,) = captioner.caption([content[: len(content) * 3 // 4]])
    assert "truncated" in whole.error, "one caption is of all or of nothing"


# --- the grid


spans = st.integers(1, 40).flatmap(lambda hop: st.tuples(st.just(hop), st.integers(hop, 80), st.integers(1, 400)))


@settings(deadline=None)
@given(spans, st.randoms(use_true_random=False))
def test_the_grid_covers_any_recording(spans: tuple[int, int, int], rng: Any) -> None:
    """The arithmetic alone, without a model: times in tenths of a second, captions at random."""
    hop, window, length = spans
    grid, joiner, parts, segments = Grid([]), _Joiner(), [], list[Segment]()
    for k in itertools.count():
        end = min(k * hop + window, length) / 10
        parts += grid.add(k * hop / 10, np.zeros(0), end, None)
        if k * hop + window >= length:
            break
    parts += grid.finish(length / 10)
    for part in parts:
        part.caption = rng.choice("abc")
        segments += joiner.add(part)
    segments.append(joiner.end())
    assert (segments[0].start, segments[-1].end) == (0, length / 10)
    for one, following in itertools.pairwise(segments):
        assert one.end == following.start
        assert one.caption != following.caption
    assert all(s.start < s.end for s in segments)


def joined(*parts: tuple[float, str, bool]) -> list[tuple[float, float, str]]:
    """What becomes of parts (seconds, caption, goes on)."""
    joiner, at, segments = _Joiner(), 0.0, list[Segment]()
    for seconds, text, goes_on in parts:
        segments += joiner.add(Part(at, at + seconds, None, goes_on, text))
        at += seconds
    return rows([*segments, joiner.end()])


def test_neighbours_that_say_the_same_are_one() -> None:
    assert joined((2, "A", False), (3, "A", False), (1, "B", False)) == [(0, 5, "A"), (5, 6, "B")]
    dogs = (2, "A dog barks.", False), (3, "Some dogs are barking.", False), (1, "Rain.", False)
    assert joined(*dogs) == [(0, 5, "Some dogs are barking."), (5, 6, "Rain.")]
    assert joined((2, "A dog barks.", False), (2, "A dog barks in the rain.", False))[0] == (0, 2, "A dog barks.")


def test_what_does_not_change_is_one_segment() -> None:
    parts = [(10, "A hum.", True), (10, "A buzz.", True), (7, "A hum.", True), (3, "A hiss.", False)]
    assert joined(*parts) == [(0, 30, "A hum.")]
    assert joined(*parts, (5, "A hum.", False)) == [(0, 35, "A hum.")]


def test_a_grid_is_as_fine_as_asked(captioner: Captioner) -> None:
    x = days((3, 6), (9, 6))
    (result,) = captioner.caption([(x, RATE)], timeline=True, window=3, beams=1)
    assert rows(result.segments) == [(0, 6, "3."), (6, 12, "9.")]
    (result,) = captioner.caption([(x, RATE)], timeline=True, hop=5, beams=1)
    assert [s.start for s in result.segments] in ([0], [0, 7.5]), "windows from 0 to 10 s and from 5 to 12 s"


def test_a_live_pipe_is_known(tmp_path: Any) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert audio.is_live(tmp_path / "fifo")
    with feed([b""], 0) as pipe:
        assert audio.is_live(pipe)
    for source in (tmp_path / "none.wav", b"", io.BytesIO(), (np.zeros(9), RATE)):
        assert not audio.is_live(source)
