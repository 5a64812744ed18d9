"""Recordings, padding, what sounds when, and batches from the background in their order."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lamb.audio import reader as audio
from lamb.data import loader
from lamb.data.manifest import Clip
from lamb.data.scenes import Event, Recording, SceneMaker

RATE = 16000


def sine(seconds: float, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(0.3 * np.arange(int(seconds * RATE)))


def saved(path: Path, x: np.ndarray, label: str = "dog", **values) -> Clip:
    soundfile.write(path, x, RATE)
    return Clip(path.stem, str(path), labels=(label,), **values)


def test_recordings(tmp_path):
    padded = np.concatenate([np.zeros(RATE), sine(1, 0.1), np.zeros(RATE)])
    clips = [
        saved(tmp_path / "a.wav", padded, "siren"),
        saved(tmp_path / "b.wav", sine(0.5), "dog"),
        saved(tmp_path / "c.wav", sine(2), "siren", start=0.5, duration=0.25),
    ]
    bank = loader.recordings(clips, RATE)
    assert list(bank) == ["dog", "siren"]
    assert [len(x) for ((x, _),) in bank["siren"]] == pytest.approx([RATE, RATE // 4], abs=RATE // 50 * 2)
    for ((x, _),) in (source for found in bank.values() for source in found):
        assert x.dtype == np.int16
        assert np.abs(x.astype(int)).max() == 32767


def test_bad_recordings_are_named(tmp_path):
    good = saved(tmp_path / "good.wav", sine(1))
    with pytest.raises(audio.AudioError, match=r"silent\.wav.*zeros"):
        loader.recordings([good, saved(tmp_path / "silent.wav", np.zeros(RATE))], RATE)
    with pytest.raises(audio.AudioError, match=r"none\.wav"):
        loader.recordings([good, Clip("n", str(tmp_path / "none.wav"), labels=("dog",))], RATE)


def test_activity():
    # 2 frames a second, centred on 0, 0.5, 1 and 1.5 s
    events = [
        [Event("dog", 0.3, 1.3, 0.0), Event("rain", 0.0, 0.5, -3.0)],
        [Event("rain", 0.0, 2.0, 0.0)],
        [Event("dog", 0.6, 0.7, 0.0), Event("rain", 1.9, 2.5, 0.0)],  # between two centres; past the last frame
    ]
    target = loader.activity(events, ["dog", "rain"], 4, 2.0)
    assert target.shape == (3, 4, 2)
    assert target[0, :, 0].tolist() == [0, 1, 1, 0]
    assert target[0, :, 1].tolist() == [1, 0, 0, 0]  # ends at a centre: without that frame
    assert target[1, :, 1].tolist() == [1, 1, 1, 1]
    assert target[1, :, 0].sum() == 0
    assert target[2, :, 0].tolist() == [0, 1, 0, 0]
    assert target[2, :, 1].tolist() == [0, 0, 0, 1]


def test_scene_batch():
    bank = {label: [[Recording(np.round(sine(1) * 32767).astype(np.int16))]] for label in ("dog", "siren")}
    make = partial(loader.scene_batch, SceneMaker(bank, RATE, 4.0, 0, (1, 1, 1)), 5)
    batch = make(2)
    assert batch["waveform"].shape == batch["mask"].shape
    assert len(batch["waveform"]) == len(batch["captions"]) == len(batch["events"]) == 5
    assert not batch["waveform"][~batch["mask"]].any()
    assert torch.equal(batch["waveform"], make(2)["waveform"])


def number(step: int) -> tuple[int, int]:
    return step, os.getpid()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("first", "last"), [(0, 7), (5, 9), (4, 4)])
def test_background_keeps_the_order(workers, first, last):
    found = list(loader.background(number, first, last, workers))
    assert [step for step, _ in found] == list(range(first, last))
    assert all((pid == os.getpid()) == (workers == 0) for _, pid in found)


@pytest.mark.parametrize("workers", [0, 1])
def test_background_leaves_the_random_state_alone(workers):
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    list(loader.background(number, 0, 3, workers))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
