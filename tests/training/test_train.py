"""Training: schedule, groups, the three stages from sounds to captions, and runs that stop and go on."""

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ENCODER
from safetensors.torch import load_file

from lamb.config import ConfigError, DataConfig, OptimConfig, TrainConfig
from lamb.data.manifest import ManifestError
from lamb.inference.captioner import Captioner
from lamb.training import device, distill, loop
from lamb.training import train as training
from lamb.training.device import TrainingError, memory, precision_of, require_memory
from lamb.training.lamb_stage import LambStage
from lamb.training.loop import schedule
from lamb.training.stage import param_groups
from lamb.training.train import train

SMALL = {"name": "efficientat", "options": ENCODER}


def encoder_recipe(recipe: Callable[..., Path], **sections: Any) -> Path:
    """Stage `distill` without a teacher: from labels alone."""
    return recipe("distill", model={"encoder": SMALL}, **sections)


def lines(out: Path) -> list[dict[str, Any]]:
    """The log without the times."""
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in (out / "log.jsonl").read_text().splitlines()
    ]


def test_schedule():
    optim = OptimConfig(steps=12, warmup=4)
    factors = [schedule(step, optim) for step in range(12)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.5)  # half way from 4 to 12
    assert factors[11] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert schedule(12, optim) == pytest.approx(0)
    assert schedule(0, OptimConfig(steps=1, warmup=0)) == 1


def test_memory_that_is_certain(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.Linear(10, 10, dtype=torch.bfloat16))
    model[1].requires_grad_(False)
    config, averaged = TrainConfig(), TrainConfig(optim=OptimConfig(ema_decay=0.9))
    # 110 parameters of 4 bytes: weight, gradient, two moments, perhaps an average; 110 frozen of 2 bytes
    assert memory(model, config) == 110 * 4 * 4 + 110 * 2
    assert memory(model, averaged) == 110 * 4 * 5 + 110 * 2
    size = SimpleNamespace(total_memory=2000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: size)
    require_memory(model, config, torch.device("cpu"))
    require_memory(model, config, torch.device("cuda"))
    with pytest.raises(
        TrainingError, match=r"the GPU has .* the model alone, without any clip, needs .*: use a smaller optim\.batch"
    ):
        require_memory(model, averaged, torch.device("cuda"))


def test_a_full_gpu_is_told_with_advice(recipe, monkeypatch):
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setitem(training.STAGES, "distill", full)
    with pytest.raises(TrainingError, match=r"memory is full \(CUDA out of memory\): .*model\.llm\.train=lora"):
        train(encoder_recipe(recipe))


def test_no_decay_below_two_dimensions():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2), torch.nn.Linear(2, 2))
    model[2].requires_grad_(False)
    matrices, others = param_groups(model.named_parameters(), 0.1, 0.5)
    assert [id(p) for p in matrices["params"]] == [id(model[0].weight)]
    assert {id(p) for p in others["params"]} == {id(model[0].bias), id(model[1].weight), id(model[1].bias)}
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.5, 0)
    assert matrices["lr"] == others["lr"] == 0.1


def test_bfloat16_only_where_it_can_be(monkeypatch):
    on_cpu = TrainConfig(device="cpu", precision="bfloat16")
    assert precision_of(TrainConfig(device="cpu")) == "no"
    for can, precision in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(device, "cpu_has_bfloat16", lambda can=can: can)
        with nullcontext() if can else pytest.warns(UserWarning, match="no units for bfloat16; training in float32"):
            assert precision_of(on_cpu) == precision


def rates(config: TrainConfig) -> dict[str, float]:
    """Peak learning rates of the scalars with one of their own."""
    torch.manual_seed(0)
    stage = LambStage(config)
    names = {id(p): name for name, p in stage.module.named_parameters()}
    return {names[id(group["params"][0])]: group["lr"] for group in stage.param_groups() if len(group["params"]) == 1}


def lamb_config(make_config: Callable[..., Any], data: Path, lr: float, **model: Any) -> TrainConfig:
    return TrainConfig(
        model=make_config(**model), data=DataConfig(sounds=str(data / "sounds"), seconds=1), optim=OptimConfig(lr=lr)
    )


@pytest.mark.parametrize("beta", [0.5, -0.5, 0.0])
def test_the_rate_of_beta_is_positive_whatever_beta_is_and_follows_the_recipe(make_config, data, beta):
    model = {"guide": {"beta": beta}, "extensions": {"residual_guide": {"enabled": True}}}
    slow, fast = (rates(lamb_config(make_config, data, lr, **model)) for lr in (3e-6, 3e-4))
    assert slow.keys() >= {"guide.beta", "guide.gamma", "aligner.log_scale"}
    for name in ("guide.beta", "guide.gamma", "aligner.log_scale"):
        assert 0 < slow[name] == pytest.approx(fast[name] / 100)
    if beta:
        assert slow["guide.beta"] == pytest.approx(10 * 3e-6 * 0.5)


@pytest.mark.parametrize("beta", [0.3, -0.3, 0.0])
def test_beta_descends(make_config, data, beta):
    """One step of AdamW against its gradient, from either side of 0 and from 0 itself."""
    stage = LambStage(lamb_config(make_config, data, 1e-3, guide={"beta": beta}))
    (group,) = [g for g in stage.param_groups() if g["params"][0] is stage.module.guide.beta]
    optimiser = torch.optim.AdamW([group])
    stage.module.guide.beta.grad = torch.tensor(1.0)
    optimiser.step()
    assert stage.module.guide.beta.item() < beta - 1e-6


def test_accumulated_batches_are_a_mean_over_tokens(make_config, data):
    """Batches of a short and of a long caption: the same as one batch of both."""
    stage = LambStage(lamb_config(make_config, data, 1e-3, aligner={"enabled": False}))
    stage.module.eval()
    x, mask = torch.randn(2, 8000), torch.ones(2, 8000, dtype=torch.bool)
    captions = ["A dog.", "Rain falls, then a siren wails while a man speaks."]
    both = stage.loss(stage.module, {"waveform": x, "mask": mask, "captions": captions})
    each = [{"waveform": x[k : k + 1], "mask": mask[k : k + 1], "captions": captions[k : k + 1]} for k in range(2)]
    weights = stage.weights(each)
    assert sum(weights) == pytest.approx(2)
    assert weights[0] < 0.7
    for term in ("plain", "guided"):
        parts = [stage.loss(stage.module, {**b, "weight": w})[term] for b, w in zip(each, weights, strict=True)]
        torch.testing.assert_close(sum(parts) / 2, both[term])


@pytest.fixture
def stages(recipe, tmp_path) -> dict[str, Path]:
    """The results of the three stages, each built on those before."""
    out = {stage: tmp_path / stage for stage in ("encoder", "language_model", "lamb")}
    train(encoder_recipe(recipe, out=str(out["encoder"])))
    prompt = {"prompt": "<audio>{instruction}", "instruction": "Describe:"}
    size = {"vocabulary": 320, "width": 32, "layers": 1, "heads": 2, "mlp": 48}
    train(recipe("language_model", out=str(out["language_model"]), language_model=size, model={"llm": prompt}))
    model = {
        "encoder": {"name": "efficientat", "source": str(out["encoder"]), "train": "frozen"},
        "adapter": {"fusion_queries": 4, "semantic_queries": 2, "temporal_queries": 2, "head_dim": 16},
        "llm": {"source": str(out["language_model"]), "train": "full", **prompt},
        "decode": {"max_new_tokens": 6, "beams": 2},
    }
    train(recipe("lamb", out=str(out["lamb"]), model=model, card={"licence": "none"}))
    return out


def test_three_stages_from_sounds_to_captions(stages, data):
    assert [line["step"] for line in lines(stages["encoder"])] == [1, 2, 3, 4, 5]
    assert {"loss", "frame", "clip", "norm", "lr"} <= lines(stages["encoder"])[0].keys()
    assert 0 <= lines(stages["encoder"])[-1]["development_accuracy"] <= 1
    assert lines(stages["language_model"])[1]["held_out"] > 0
    vocabulary = (stages["language_model"] / "tokenizer.json").read_text()
    assert "learn" not in vocabulary  # the development captions are held out of the tokenizer too
    last = lines(stages["lamb"])[-1]
    assert {"cs_global", "cs_token", "infonce", "guided", "plain", "beta", "l2", "cosine", "named"} <= last.keys()

    captioner = Captioner.load(str(stages["lamb"]))
    (caption,) = captioner.caption([data / "sounds" / "dog1.wav"])
    assert caption.ok
    assert caption.text.endswith(".")
    assert 0 <= caption.confidence <= 1
    assert json.loads((stages["lamb"] / "lamb.json").read_text())["card"] == {"licence": "none"}


def test_what_is_frozen_stays(stages):
    before = load_file(stages["encoder"] / "model.safetensors")
    after = load_file(stages["lamb"] / "model.safetensors")  # in fp16
    weights = [name for name in before if "num_batches" not in name]
    assert len(weights) > 10
    for name in weights:
        assert torch.equal(after[f"encoder.{name}"], before[name].half()), name
    state = torch.load(stages["lamb"] / "state-00000005.pt")
    parameters = {name for name in state["model"] if "running" not in name and "num_batches" not in name}
    assert {name.partition(".")[0] for name in parameters} == {"adapter", "aligner", "guide", "llm"}


class Killed(Exception):
    pass


def kill_before(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run dies when `step` (from 0) begins."""
    real = loop.schedule

    def stop(now: int, optim: OptimConfig) -> float:
        if now == step:
            raise Killed
        return real(now, optim)

    monkeypatch.setattr(loop, "schedule", stop)


def kill_in_save(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run dies in the middle of writing the state of `step` (from 1)."""
    real = torch.save

    def stop(state: Any, file: Any) -> None:
        if state["step"] == step:
            file.write(b"half a state")
            raise Killed
        real(state, file)

    monkeypatch.setattr(torch, "save", stop)


def run_and_kill(path: Path, kill: Callable[[int, pytest.MonkeyPatch], None], step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill(step, patch)
        with pytest.raises(Killed):
            train(path)


@pytest.mark.parametrize(
    ("kill", "step"),
    [
        (kill_before, 0),
        (kill_before, 1),
        (kill_before, 2),
        (kill_before, 3),
        (kill_in_save, 2),
        (kill_in_save, 4),
        (kill_in_save, 5),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(recipe, tmp_path, kill, step):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(encoder_recipe(recipe, out=str(whole)))
    path = encoder_recipe(recipe, out=str(broken))
    run_and_kill(path, kill, step)
    assert not (broken / "model.safetensors").exists()
    torch.rand(7)  # another process has another random state
    train(path, resume=True)
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    assert lines(whole) == lines(broken)


def test_a_resumed_lamb_run_equals_an_uninterrupted_one(recipe, tmp_path, llm_folder, encoder_folder):
    model = {
        "encoder": {"name": "efficientat", "source": str(encoder_folder), "train": "frozen"},
        "adapter": {"fusion_queries": 4, "semantic_queries": 2, "temporal_queries": 2, "head_dim": 16},
        "llm": {"source": str(llm_folder), "train": "lora"},  # its dropout draws random numbers
        "decode": {"max_new_tokens": 4, "beams": 1},
    }
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(recipe("lamb", out=str(whole), model=model))
    path = recipe("lamb", out=str(broken), model=model)
    run_and_kill(path, kill_before, 3)
    train(path, resume=True)
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    assert lines(whole) == lines(broken)


def test_a_finished_run_can_be_resumed(recipe, tmp_path):
    path = encoder_recipe(recipe)
    out = train(path)
    before, log = (out / "model.safetensors").read_bytes(), lines(out)
    (out / "model.safetensors").unlink()  # killed after the last state
    train(path, resume=True)
    assert (out / "model.safetensors").read_bytes() == before
    assert lines(out) == log


def test_batches_from_a_background_process_train_the_same(recipe, tmp_path):
    inside = train(encoder_recipe(recipe, out=str(tmp_path / "inside")))
    outside = train(encoder_recipe(recipe, out=str(tmp_path / "outside")), ["data.workers=1"])
    assert (inside / "model.safetensors").read_bytes() == (outside / "model.safetensors").read_bytes()


def test_an_existing_run_is_not_touched(recipe, tmp_path):
    path = encoder_recipe(recipe, optim={"steps": 1})
    out = train(path)
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    with pytest.raises(ConfigError, match="holds a run already; continue it with --resume"):
        train(path)
    with pytest.raises(ConfigError, match="was started with another recipe"):
        train(path, ["optim.steps=2"], resume=True)
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} == before


def test_a_run_of_an_older_version_or_another_machine_goes_on(recipe):
    """An option that has come since was at its default then; one that is gone makes it another recipe."""
    path = encoder_recipe(recipe, optim={"steps": 1})
    out = train(path)
    started = json.loads((out / "recipe.json").read_text())
    del started["data"]["plain"]
    (out / "recipe.json").write_text(json.dumps(started))
    train(path, ["device=auto", "data.workers=1"], resume=True)
    with pytest.raises(ConfigError, match="another recipe"):
        train(path, ["data.plain=0.5"], resume=True)
    started["data"]["gone"] = 1
    (out / "recipe.json").write_text(json.dumps(started))
    with pytest.raises(ConfigError, match="another recipe"):
        train(path, resume=True)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_the_run(recipe, tmp_path, where, monkeypatch):
    calls = 0

    class Broken(distill.Student):
        def forward(self, *inputs: Any) -> Any:
            nonlocal calls
            maps, frames, clip = super().forward(*inputs)
            calls += self.training
            if calls == 4 and self.training:
                # the square root of 0 is finite, its slope is not
                clip = clip * math.nan if where == "loss" else clip + (0 * clip).sqrt()
            return maps, frames, clip

    monkeypatch.setattr(distill, "Student", Broken)
    path = encoder_recipe(recipe)
    with pytest.raises(
        TrainingError,
        match=r"step 4: .*'frame': .*'clip': .*'norm': nan.*last state is kept; the clips of this step: \[",
    ):
        train(path)
    state = torch.load(tmp_path / "out" / "state-00000002.pt")
    assert state["step"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize(
    ("stage", "overrides", "problem"),
    [
        ("distill", ["data.sounds=null"], "data.sounds: the folder of labelled recordings is missing"),
        ("lamb", ["model.llm.sorce=x"], "model.llm.sorce: unknown key; did you mean 'source'"),
        ("lamb", ["model.encoder.train=frozen"], "llm.source: give a hub id or a folder"),
        ("language_model", ["data.texts=null"], "data.texts: the folder of caption texts is missing"),
        ("distill", ["model.encoder.name=ced"], "model.encoder.name: 'ced' is not taught here"),
        ("distill", ["model.encoder.options.depth=3"], "encoder.options: .*depth"),
        ("distill", ["model.encoder.options.labels=[a]"], "encoder.options.labels: this stage finds out the labels"),
    ],
)
def test_recipes_that_cannot_be_used_leave_no_folder(recipe, tmp_path, stage, overrides, problem):
    path = recipe(stage, model={"encoder": SMALL})
    with pytest.raises(ConfigError, match=problem):
        train(path, overrides)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("a.wav,dog,1,,,,a,,\n", "no clips of split 'development'"),
        ("a.wav,dog,4,,,,a,,\n", "no clips of split 'train'"),
        ("", "no clips"),
        ("a.wav,unicorn,1,,,,a,,\nb.wav,dog,4,,,,b,,\n", "labels without phrases for a caption: unicorn"),
    ],
)
def test_sounds_that_cannot_be_used(recipe, tmp_path, rows, problem):
    (tmp_path / "manifest.csv").write_text("file,label,fold,licence,title,author,source,clotho_split,captions\n" + rows)
    with pytest.raises((ConfigError, ManifestError), match=problem):
        train(encoder_recipe(recipe), [f"data.sounds={tmp_path}"])
    assert not (tmp_path / "out").exists()
