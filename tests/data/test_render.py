"""Scenes on disk: what they hold, that they are made once, and only of the recordings of their part."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lamb.config import ConfigError, ScenesConfig
from lamb.data import manifest, render
from lamb.data.render import write_scenes
from lamb.data.scenes import SYNTHETIC, SceneMaker
from lamb.data.sources import split_sounds
from lamb.data.vocabulary import names

RATE = 16000


@pytest.fixture
def config(sounds_folder: Path) -> ScenesConfig:
    return ScenesConfig(sounds=str(sounds_folder), train=6, test=4, seconds=1.0, wordings=3, seed=5)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_scenes_are_what_the_maker_makes(config, tmp_path, monkeypatch):
    made = []
    scene = SceneMaker.scene
    monkeypatch.setattr(SceneMaker, "scene", lambda *inputs: made.append(scene(*inputs)) or made[-1])
    clips = manifest.read(write_scenes(config, tmp_path, RATE))
    assert [clip.split for clip in clips] == ["train"] * 6 + ["test"] * 4
    for clip, scene in zip(clips, made, strict=True):
        x, rate = soundfile.read(clip.path)
        assert (rate, soundfile.info(clip.path).subtype) == (RATE, "PCM_16")
        assert np.abs(x - scene.waveform).max() <= 2**-15
        assert clip.duration == len(x) / rate
        assert clip.captions[0] == scene.caption
        assert 1 <= len(clip.captions) == len(set(clip.captions)) <= 3
        for label in set(clip.labels) - set(SYNTHETIC):
            assert all(names(text, label) for text in clip.captions)


def test_training_and_test_scenes_hold_recordings_of_their_own(config, tmp_path, monkeypatch):
    heard = []
    recordings = render.loader.recordings
    monkeypatch.setattr(
        render.loader, "recordings", lambda clips, rate: heard.append({c.id for c in clips}) or recordings(clips, rate)
    )
    write_scenes(config, tmp_path, RATE)
    assert heard[1] == {"dog4", "rain4", "siren4", "rooster4"}
    assert len(heard[0]) == 12
    assert not heard[0] & heard[1]


def test_what_is_there_is_gone_on_with(config, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    write_scenes(config, whole, RATE)
    stopped = tmp_path / "stopped"
    write_array, written = soundfile.write, []

    def write(path: Path, *rest: object, **options: object) -> None:
        if len(written) == 3:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path)
        write_array(path, *rest, **options)

    monkeypatch.setattr(soundfile, "write", write)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(config, stopped, RATE)
    assert not (stopped / "manifest.jsonl").exists()
    with (stopped / "train.jsonl").open("a") as notes:
        notes.write('{"id": "train-0000')  # killed while a note was written
    written[:] = []
    monkeypatch.setattr(soundfile, "write", lambda *a, **o: written.append(a[0]) or write_array(*a, **o))
    write_scenes(config, stopped, RATE)
    assert len(written) == 7  # three were there
    assert content(whole) == content(stopped)
    write_scenes(config, stopped, RATE)
    assert len(written) == 7


def test_other_scenes_are_refused(config, tmp_path):
    write_scenes(config, tmp_path, RATE)
    before = content(tmp_path)
    with pytest.raises(ConfigError, match="holds scenes of other recordings or settings"):
        write_scenes(replace(config, seed=6), tmp_path, RATE)
    assert content(tmp_path) == before


def test_a_recording_in_both_parts_is_not_trained_on(sounds_folder, tmp_path):
    rows = (sounds_folder / "manifest.csv").read_text().replace(",dog1,,", ",dog4,,")
    (tmp_path / "manifest.csv").write_text(rows)
    training, development = split_sounds(tmp_path)
    assert "dog1" not in {clip.id for clip in training}
    assert (len(training), len(development)) == (11, 4)


def test_notes_are_json(config, tmp_path):
    write_scenes(config, tmp_path, RATE)
    assert json.loads((tmp_path / "scenes.json").read_text())["train"] == 6
