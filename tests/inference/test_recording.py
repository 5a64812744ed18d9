"""The windows that stand for a recording. The path as a whole is tested where it is used: captioner, gap and page."""

import threading

import numpy as np
import pytest
import soundfile

from lamb.audio import reader
from lamb.config import DecodeConfig, DecodeLimits
from lamb.data.manifest import Clip
from lamb.inference import recording as recording_module
from lamb.inference.recording import KEPT, OPEN, Summary, hear, windows


def window(direction: int, seconds: float = 10, seed: int = 0) -> np.ndarray:
    """Tokens of a window of one kind of sound."""
    noise = np.random.default_rng(seed).standard_normal((round(6 * seconds), 8))
    return (np.eye(8)[direction] + 0.01 * noise).astype(np.float32)


def kinds(summary: Summary) -> list[int]:
    return [int(w.mean.argmax()) for w in summary.windows]


def test_a_few_windows_are_all_kept() -> None:
    summary, all_of_them = Summary(), [window(k % 8, seed=k) for k in range(KEPT)]
    for h_a in all_of_them:
        summary.add(h_a)
    assert np.array_equal(summary.tokens(), np.concatenate(all_of_them))
    assert Summary().tokens() is None


def test_what_is_distinct_stays_among_hours_of_the_same() -> None:
    summary = Summary()
    for k in range(400):
        summary.add(window({100: 1, 250: 2, 399: 3}.get(k, 0), seed=k))
    assert len(summary.windows) == KEPT
    assert sorted(set(kinds(summary))) == [0, 1, 2, 3]
    assert [k for k in kinds(summary) if k] == [1, 2, 3], "in the order of time"
    assert sum(w.weight for w in summary.windows) == pytest.approx(400 * 60)


def test_what_is_present_stays_among_many_moments() -> None:
    summary = Summary()
    for k in range(60):
        summary.add(window(k % 2, seed=k))
    for k in range(2, 8):
        summary.add(window(k, 0.5))
    assert {0, 1} <= set(kinds(summary))
    assert len(summary.windows) == KEPT


def test_a_stretch_of_a_recording_is_decoded_within_limits_as_a_whole_one_is(tmp_path, monkeypatch) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 5 * 16_000), 16_000)
    clip = Clip("a", str(tmp_path / "a.wav"), start=1.0, duration=2.5)
    options = DecodeConfig(window=2.0, hop=2.0)
    expected = list(windows(clip, 16_000, options))
    monkeypatch.setattr(reader, "load", None)  # in this process, not in the one that decodes
    found = list(windows(clip, 16_000, options, limits=DecodeLimits()))
    assert [start for start, _ in found] == [start for start, _ in expected] == [0.0, 2.0]
    for (_, x), (_, y) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)


class Engine:
    """Encodes a window as the position of its last sample."""

    sample_rate = 4000

    def encode(self, waveforms, size):
        return [np.full((1, 1), len(x), np.float32) for x in waveforms]


def test_few_long_recordings_are_open_at_once_and_all_are_heard(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    lengths = [int(k) for k in rng.integers(1, 12, 100)]  # seconds; some longer than what is decoded before their turn
    sources = [(rng.uniform(-0.5, 0.5, 4000 * seconds).astype(np.float32), 4000) for seconds in lengths]
    sources[50] = sources[90] = b"no sound"
    are_open, most = 0, 0
    lock = threading.Lock()

    def counted(*args):
        nonlocal are_open, most
        with lock:
            are_open += 1
            most = max(most, are_open)
        try:
            yield from windows(*args)
        finally:
            with lock:
                are_open -= 1

    monkeypatch.setattr(recording_module, "windows", counted)
    options = DecodeConfig(window=1.0, hop=1.0, batch_size=40)
    groups = list(hear(Engine(), sources, options))
    found = [one for group in groups for one in group]
    assert most <= OPEN + 1, "and the one whose turn it is"
    assert are_open == 0
    assert [k for k, one in enumerate(found) if one.error] == [50, 90]
    assert [one.duration for one in found if not one.error] == [s for k, s in enumerate(lengths) if k not in (50, 90)]
