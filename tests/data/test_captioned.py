"""Training on captioned recordings from a manifest."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import save_file

from lamb.audio.reader import AudioError, AudioWarning
from lamb.config import ConfigError, TrainConfig, read_recipe
from lamb.data.loader import ClipReader, TokenCache, batch_of, clip_batch
from lamb.data.manifest import Clip, ManifestError, write
from lamb.inference.captioner import Captioner
from lamb.inference.engine import Engine
from lamb.inference.recording import hear, heard
from lamb.model.encoders.efficientat import EfficientAT
from lamb.training import lamb_stage
from lamb.training.device import TrainingError
from lamb.training.lamb_stage import LambStage, new_model
from lamb.training.train import train

RATE = 16000


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """12 recordings of 0.3 to 2.5 s; sample number k of recording n has the value (n + 1) / 20 + k / 1e6."""
    folder = tmp_path_factory.mktemp("clips")
    found = []
    for n in range(12):
        size = int((0.3 + 0.2 * n) * RATE)
        path = folder / f"{n:02d}.wav"
        soundfile.write(path, (n + 1) / 20 + np.arange(size) / 1e6, RATE, subtype="FLOAT")
        split = "train" if n < 9 else "val"
        found.append(Clip(f"{n}", str(path), duration=size / RATE, captions=(f"A {n}.", f"B {n}."), split=split))
    return found


def test_a_reader_crops_and_draws_captions(clips, tmp_path):
    """A parabola around a constant tells its crop and its gain: x[k] - x[0] = gain (2 start k + k^2) / size^2."""
    size = int(2.5 * RATE)
    soundfile.write(tmp_path / "long.wav", 0.1 + np.square(np.arange(size) / size) / 2, RATE, subtype="FLOAT")
    long = Clip("long", str(tmp_path / "long.wav"), duration=2.5, captions=("A 11.", "B 11."))
    reader = ClipReader([*clips[:11], long], RATE, 1.0, seed=0, gain=6.0)
    seen: set[str] = set()
    starts = set()
    half, end = RATE // 2, RATE - 1
    for epoch in range(12):
        (x,), caption = reader.read(11, epoch)
        assert len(x) == RATE  # 2.5 s are cut to 1
        assert x.mean() == pytest.approx(0, abs=1e-6)
        seen.add(caption)
        ratio = float(x[end] - x[0]) / float(x[half] - x[0])
        start = (end**2 - ratio * half**2) / (2 * (ratio * half - end))
        gain = float(x[end] - x[0]) * 2 * size**2 / (2 * start * end + end**2)
        assert 0.999 * 10 ** (-6 / 20) <= gain <= 10 ** (6 / 20) * 1.001
        starts.add(round(start))
        (again,), same = reader.read(11, epoch)
        assert same == caption
        np.testing.assert_array_equal(again, x)
    assert seen == {"A 11.", "B 11."}
    assert len(starts) > 6
    assert 0 <= min(starts) <= max(starts) <= 1.5 * RATE + 1
    assert len(reader.read(0, 0)[0][0]) == pytest.approx(0.3 * RATE, abs=1)  # a shorter one stays whole


def test_an_epoch_has_every_clip_once_and_neighbours_in_length(clips):
    reader = ClipReader(clips, RATE, 5.0, seed=0)
    order = reader.order(0, 3)
    assert sorted(order.flatten()) == list(range(12))
    assert all(row.max() - row.min() == 2 for row in order)  # sorted by length, they lie side by side
    assert not np.array_equal(order, reader.order(1, 3))
    assert reader.order(0, 5).shape == (2, 5)


def test_the_order_of_an_epoch_is_made_once(clips, monkeypatch):
    reader, made = ClipReader(clips, RATE, 5.0, seed=0), []
    lexsort = np.lexsort
    monkeypatch.setattr(np, "lexsort", lambda keys: made.append(1) or lexsort(keys))
    first = [reader.order(0, 3) for _ in range(4)][-1]
    assert len(made) == 1
    reader.order(1, 3)
    np.testing.assert_array_equal(reader.order(0, 3), first)
    assert len(made) == 3, "the one before is not kept"


def test_processes_share_a_batch(clips):
    reader = ClipReader(clips, RATE, 1.0, seed=0)
    whole = clip_batch(reader, 4, 5)
    parts = [clip_batch(reader, 4, 5, (number, 2)) for number in range(2)]
    assert [*parts[0]["captions"], *parts[1]["captions"]] == whole["captions"]
    for k, part in enumerate(parts):
        length = part["waveform"].shape[2]
        torch.testing.assert_close(part["waveform"], whole["waveform"][2 * k : 2 * k + 2, :, :length])
    with pytest.raises(ValueError, match="4 clips cannot be divided equally among 3 processes"):
        clip_batch(reader, 4, 0, (0, 3))


def test_an_unreadable_clip_is_named_and_another_stands_in(clips, tmp_path):
    bad = Clip("bad", str(tmp_path / "gone.wav"), duration=1.0, captions=("Gone.",))
    reader = ClipReader([*clips[:3], bad], RATE, 1.0, seed=0)
    for step in range(8):
        batch = clip_batch(reader, 2, step)
        assert len(batch["captions"]) == 2
        assert "Gone." not in batch["captions"]
    assert any("gone.wav" in problem for step in range(8) for problem in clip_batch(reader, 2, step)["unreadable"])
    with pytest.raises(AudioError, match=r"gone\.wav"):
        clip_batch(ClipReader([bad] * 2, RATE, 1.0, seed=0), 2, 0)


@pytest.fixture
def recipe(clips: list[Clip], tmp_path: Path, llm_folder: Path, encoder_folder: Path) -> Callable[..., Path]:
    def make(extra: list[Clip] | None = None, **data: Any) -> Path:
        write([*clips, *(extra or [])], tmp_path / "manifest.jsonl")
        content = {
            "out": str(tmp_path / "out"),
            "save_every": 2,
            "model": {
                "encoder": {"name": "efficientat", "source": str(encoder_folder), "train": "frozen"},
                "adapter": {"fusion_queries": 4, "semantic_queries": 2, "temporal_queries": 2, "head_dim": 16},
                "llm": {"source": str(llm_folder), "train": "lora"},
                "decode": {"max_new_tokens": 4, "beams": 1},
            },
            "data": {"manifest": str(tmp_path / "manifest.jsonl"), "seconds": 1, "workers": 0, **data},
            "optim": {"lr": 1e-3, "batch": 3, "steps": 4, "warmup": 1},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return make


def test_training_on_a_manifest(recipe, clips):
    out = train(recipe(), ["optim.accumulate=2"])
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert {"cs_global", "guided", "plain", "beta", "l2", "cosine"} <= log[0].keys()
    assert {"cider_d", "val_plain", "val_guided", "gap_l2", "gap_cs_token", "gap_text_to_audio_r1"} <= log[1].keys()
    assert "cider_d" not in log[0]
    for model in (out, out / "best"):
        assert Captioner.load(str(model)).caption([clips[0].path])[0].ok
    assert sorted(path.name for path in out.glob("*.pt")) == ["state-00000002.pt", "state-00000004.pt"]


def test_epochs_are_as_many_steps_as_the_clips_give(recipe):
    """9 clips in batches of 3, two batches a step: three steps in two epochs."""
    out = train(recipe(), ["optim.accumulate=2", "optim.epochs=4", "optim.warmup_epochs=2", "save_every=3"])
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in log[:4]] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])
    assert len(log) == 6
    assert train(recipe(), ["optim.accumulate=2", "optim.epochs=4", "save_every=3"], resume=True) == out


def test_every_epoch_is_checked_and_saved(recipe, capsys):
    """Three steps an epoch; a state also every two steps, without a check."""
    out = train(recipe(), ["optim.epochs=2", "optim.warmup_epochs=1", "keep_states=9"])
    log = [json.loads(line) for line in (out / "log.jsonl").open()]
    assert [line["step"] for line in log if "cider_d" in line] == [3, 6]
    assert sorted(path.name for path in out.glob("*.pt")) == [f"state-0000000{step}.pt" for step in (2, 3, 4, 6)]
    shown = capsys.readouterr().err
    assert "9 clips to train on, 3 to check on" in shown
    assert "9: " in shown  # what it says of a clip
    with pytest.raises(ConfigError, match="9 captioned clips of split 'train', fewer than a step takes"):
        train(recipe(), ["optim.epochs=2", "optim.accumulate=4", f"out={out}2"])


def test_spec_augment_is_drawn_again_by_a_resumed_run(recipe, tmp_path):
    ced = "{name: ced, options: {dim: 64, heads: 1, depth: 1}, train: lora}"
    settings = [f"model.encoder={ced}", "model.llm.train=full", "data.spec_augment=true"]
    whole = train(recipe(), [*settings, f"out={tmp_path / 'whole'}"])
    plain = train(recipe(), [*settings[:2], f"out={tmp_path / 'plain'}"])
    losses = [[json.loads(line)["loss"] for line in (out / "log.jsonl").open()] for out in (whole, plain)]
    assert all(a != b for a, b in zip(*losses, strict=True))
    weights = (whole / "model.safetensors").read_bytes()
    (whole / "state-00000004.pt").unlink()
    train(recipe(), [*settings, f"out={whole}"], resume=True)
    assert (whole / "model.safetensors").read_bytes() == weights


def test_a_clip_that_is_a_part_is_checked_as_that_part(recipe, clips, monkeypatch):
    """A check encodes that stretch of the recording, and of another clip the whole recording."""
    heard: list[np.ndarray] = []
    real = Engine.encode

    def listen(self: Engine, waveforms: Any, size: int) -> Any:
        heard.extend(waveforms)
        return real(self, waveforms, size)

    monkeypatch.setattr(Engine, "encode", listen)
    part = Clip("part", clips[11].path, start=0.5, duration=1.0, captions=("Part.",), split="part")
    file = Clip("file", clips[10].path, captions=("File.",), split="part")
    train(recipe([part, file], validation="part"), ["optim.steps=1"])
    expected = {RATE: 12 / 20 + 0.5 * RATE / 1e6, int(2.3 * RATE): 11 / 20}  # samples: the first one of them
    assert {len(x) for x in heard} == set(expected)
    for x in heard:
        assert x[0] == pytest.approx(expected[len(x)], abs=1e-4)


def test_spec_augment_wants_an_encoder_that_learns(recipe):
    with pytest.raises(ConfigError, match=r"data\.spec_augment: the encoder efficientat has none, only ced"):
        train(recipe(spec_augment=True))
    ced = "{name: ced, options: {dim: 64, heads: 1, depth: 1}, train: frozen}"
    with pytest.raises(ConfigError, match=r"a frozen encoder cannot use it; set model\.encoder\.train=lora"):
        train(recipe(spec_augment=True), [f"model.encoder={ced}"])


def test_kill_9_at_any_moment(recipe, tmp_path):
    """A real process, killed at random, begun again: the weights of a run that was left alone, bit for bit."""
    path = recipe(workers=1)
    settings = ["optim.steps=12", "optim.ema_decay=0.9"]
    whole = train(path, [*settings, f"out={tmp_path / 'whole'}"])
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "lamb", "train", str(path), *settings, f"out={out}", "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    rng = np.random.default_rng()
    done = 0
    for _ in range(3):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        log = out / "log.jsonl"
        began = time.monotonic()
        # once a step is done, or a while after the start
        while time.monotonic() - began < 60 and not (log.exists() and len(log.read_text().splitlines()) > done):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
        done = len(log.read_text().splitlines()) // 2 * 2 if log.exists() else 0
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    drop = lambda file: [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in file.open()]
    assert drop(out / "log.jsonl") == drop(whole / "log.jsonl")


def test_what_changed_or_broke_is_told_and_nothing_overwritten(recipe, clips, tmp_path, monkeypatch):
    out = train(recipe())
    newest = out / "state-00000004.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(
        TrainingError, match=r"state-00000004\.pt: the state cannot be read .*continue from state-00000002"
    ):
        train(recipe(), resume=True)
    newest.unlink()
    before = {file.name: file.read_bytes() for file in out.glob("*.pt")}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(TrainingError, match=r"cannot be written .*no room left.* the last one is kept"):
            train(recipe(), resume=True)
    assert {file.name: file.read_bytes() for file in out.glob("*.pt*")} == before
    more = Clip("more", clips[0].path, captions=("More.",), split="train")
    with pytest.raises(ConfigError, match="started with another list of recordings"):
        train(recipe([more]), resume=True)
    assert {file.name: file.read_bytes() for file in out.glob("*.pt*")} == before


def test_cached_tokens_train_as_the_sound_would(recipe, tmp_path):
    """Clips that are not cropped: the same losses from tokens as from waveforms; and nothing is encoded twice."""
    settings = ["data.seconds=5", "optim.batch=1", "optim.steps=3"]
    heard = train(recipe(), [*settings, f"out={tmp_path / 'heard'}"])
    cache = f"data.cache={tmp_path / 'cache'}"
    first = train(recipe(), [*settings, cache, f"out={tmp_path / 'first'}"])
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.npy")}
    assert len(files) == 9
    second = train(recipe(), [*settings, cache, f"out={tmp_path / 'second'}"])
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*") if file.is_file()} == files
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    terms = [[json.loads(x)["plain"] for x in (out / "log.jsonl").open()] for out in (heard, first)]
    assert terms[0] == pytest.approx(terms[1], abs=2e-4)


def test_a_constant_changes_nothing_that_training_hears(recipe, clips, tmp_path):
    """A microphone's offset is taken away before the encoder, in training and its cache as in use."""
    shifted = []
    for clip in clips:
        x, _ = soundfile.read(clip.path, dtype="float32")
        path = tmp_path / Path(clip.path).name
        soundfile.write(path, x + 0.25, RATE, subtype="FLOAT")
        shifted.append(replace(clip, path=str(path)))
    one, other = (ClipReader(found, RATE, 1.0, seed=0) for found in (clips, shifted))
    for number in range(12):
        np.testing.assert_allclose(one.read(number, 0)[0][0], other.read(number, 0)[0][0], atol=1e-6)
    heard: list[list[np.ndarray]] = [[], []]
    for kept, found in zip(heard, (clips, shifted), strict=True):

        def encode(x: torch.Tensor, mask: torch.Tensor, kept: list[np.ndarray] = kept) -> Any:
            x, mask = x[:, 0], mask[:, 0]  # (B, T): one window a clip
            kept += [row[there].numpy() for row, there in zip(x, mask, strict=True)]
            return x[..., None], mask

        TokenCache(tmp_path / "cache", "encoder").fill(found, 1.0, RATE, encode)
    assert len(heard[0]) == len(heard[1]) == 12
    for x, y in zip(*heard, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_training_hears_what_inference_hears(make_model, tmp_path):
    """A clip of 3.3 s in windows of 1 s, one of them silent: the same tokens, alone and beside a shorter clip."""
    rng = np.random.default_rng(0)
    x = 0.1 * rng.standard_normal(int(3.3 * RATE)).astype(np.float32)
    x[RATE : 2 * RATE] = 0
    found = []
    for name, samples in (("long", x), ("short", x[: RATE // 2]), ("silent", np.zeros(RATE, np.float32))):
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE, subtype="FLOAT")
        found.append(Clip(name, str(tmp_path / f"{name}.wav"), captions=("A sound.",)))
    model = make_model(decode={"window": 1.0, "hop": 1.0})
    options = model.config.decode
    reader = ClipReader(found, RATE, 30.0, seed=0, cut=partial(heard, sample_rate=RATE, options=options))
    batch, mask = batch_of([reader.read(number, 0)[0] for number in range(2)])
    assert batch.shape == (2, 3, RATE)
    with torch.no_grad():
        h_a, valid = model.encode(batch, mask)
    (recordings,) = hear(Engine(model), found[:2], options)
    for row, there, recording in zip(h_a, valid, recordings, strict=True):
        torch.testing.assert_close(row[there], torch.as_tensor(recording.h_a), atol=1e-5, rtol=1e-4)
    with pytest.raises(AudioError, match=r"silent\.wav: holds no sound; leave it out"):
        reader.read(2, 0)


def test_a_cache_wants_a_frozen_encoder_and_readable_clips(recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.cache: only the tokens of a frozen encoder can be kept"):
        train(recipe(), ["model.encoder.train=full", f"data.cache={tmp_path / 'cache'}"])
    bad = [Clip("bad", str(tmp_path / "gone.wav"), captions=("Gone.",), split="train")]
    with pytest.warns(AudioWarning, match=r"left out: .*gone\.wav: does not exist"):
        out = train(recipe(bad, cache=str(tmp_path / "cache")))
    assert (out / "lamb.json").exists()


def test_too_many_unreadable_clips_stop_the_training(recipe, tmp_path):
    bad = [Clip(f"bad{n}", str(tmp_path / f"gone{n}.wav"), captions=("Gone.",), split="train") for n in range(3)]
    with pytest.warns(AudioWarning, match="left out: .*gone"):
        train(recipe(bad, unreadable=0.25))
    problem = r"2 of 12 clips cannot be read, a larger share than data\.unreadable=0\.05:\n.*gone"
    with pytest.warns(AudioWarning), pytest.raises(TrainingError, match=problem):
        train(recipe(bad, unreadable=0.05), [f"out={tmp_path / 'second'}", "optim.steps=40"])


def test_each_of_several_processes_counts_the_unreadable_clips_of_its_own_share(recipe):
    """A process with one clip of a batch of 3 hears 3 of the 9 clips in an epoch, so one that is bad is the limit."""
    stage = LambStage(read_recipe(recipe(unreadable=0.3)))
    with pytest.warns(AudioWarning), pytest.raises(TrainingError, match="2 of 3 clips cannot be read"):
        stage.loss(stage.module, {"ids": ["a"], "unreadable": ["bad 1", "bad 2"]})


def test_all_held_clips_are_validated_as_they_are(recipe, monkeypatch):
    """3 held clips in batches of 2, each clip at its own level and of equal weight."""
    stage = LambStage(read_recipe(recipe(gain=20.0), ["optim.batch=2"]))
    heard, losses = [], []
    monkeypatch.setattr(lamb_stage, "cross_entropy", lambda *given: losses.append(len(heard[-1])) or losses[-1])
    stage.module.register_forward_pre_hook(lambda module, given: heard.append(given[0]))
    found = stage.data._validation_loss()
    assert [len(x) for x in heard] == [2, 1]
    levels = [float(x.abs().max()) for x in torch.cat(heard)]
    assert levels == pytest.approx([levels[0]] * 3, rel=1e-3)  # as all recordings rise equally
    assert found["val_plain"] == pytest.approx((2 * 2 + 1) / 3)


def test_label_heads_that_no_loss_reaches_do_not_learn(make_config, encoder_folder, tmp_path):
    """DDP would wait for their gradient."""
    encoder = EfficientAT(**{**EfficientAT.from_pretrained(encoder_folder).options, "labels": ["dog", "rain"]})
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "config.json").write_text(json.dumps(encoder.options))
    save_file(encoder.state_dict(), tmp_path / "e" / "model.safetensors")
    for enabled, learn in ((False, set()), (True, {"frame"})):
        model = make_config(
            encoder={"source": str(tmp_path / "e"), "train": "full"},
            extensions={"class_prototypes": {"enabled": enabled}},
        )
        heads = new_model(TrainConfig(out="x", model=model)).encoder.heads
        assert {name for name, head in heads.items() if head.weight.requires_grad} == learn


def test_manifests_that_cannot_be_used(recipe, clips, tmp_path):
    with pytest.raises(ConfigError, match="9 captioned clips of split 'train', fewer than a step takes"):
        train(recipe(), ["optim.batch=10"])
    leak = Clip("leak", clips[0].path, captions=("Known.",), split="val")
    with pytest.raises(ManifestError, match="1 training clips are recordings that are used for evaluation: 0 "):
        train(recipe([leak]))
    assert not (tmp_path / "out").exists()
