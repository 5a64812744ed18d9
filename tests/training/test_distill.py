"""The stage in which an encoder learns from a published one: its losses, the teacher, two small runs in a row."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lamb.config import ConfigError, read_recipe
from lamb.data import loader
from lamb.model.encoders.efficientat import EfficientAT
from lamb.training.distill import DistillStage, Student, Teacher, _scale, feature_maps, hint_loss, tag_losses
from lamb.training.train import train

CPU = torch.device("cpu")
# the mels of a teacher of 128 bands up to 15 kHz, less the last 24
STUDENT = {
    "width": 0.1,
    "sample_rate": 16000,
    "window": 400,
    "hop": 160,
    "mels": 104,
    "f_max": 8102.128907291527,
    "relative": True,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small published network, with random weights."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    save_file({k: v.contiguous() for k, v in EfficientAT(width=0.1, outputs=5).state_dict().items()}, file)
    return file


def test_hints_count_every_channel_alike():
    torch.manual_seed(0)
    theirs = torch.randn(4, 3, 2, 10) * torch.tensor([0.1, 5.0, 1.0])[:, None, None]
    scale = _scale(theirs)
    assert hint_loss(theirs, theirs, scale) == 0
    off = torch.zeros_like(theirs)
    errors = []
    for channel in range(3):
        off[:] = theirs
        off[:, channel] += theirs[:, channel].std()
        errors.append(float(hint_loss(off, theirs, scale)))
    # an error of one spread counts 1/2, in one channel of three, less for the 3 % of the mean spread of the others
    assert errors[1] == pytest.approx(1 / 6, rel=0.1)
    assert max(errors) / min(errors) < 3
    far = hint_loss(theirs + 100 * theirs.std((0, 2, 3), keepdim=True), theirs, scale)
    assert float(far) < 100  # linear, not square


def test_labels_of_even_logits():
    target = torch.zeros(2, 6, 4)
    target[0, :3, 1] = 1
    target[1, 2:, :2] = 1
    terms = tag_losses(target, torch.zeros(2, 6, 5), torch.zeros(2, 4), torch.ones(2, 6, dtype=torch.bool))
    assert float(terms["frame"]) == pytest.approx(math.log(5))
    assert float(terms["clip"]) == pytest.approx(math.log(4))
    sure = torch.zeros(2, 6, 5)
    sure[0, :3, 1] = sure[0, 3:, 4] = sure[1, :2, 4] = sure[1, 2:, :2] = 50
    assert float(
        tag_losses(target, sure, torch.zeros(2, 4), torch.ones(2, 6, dtype=torch.bool))["frame"]
    ) == pytest.approx(math.log(2) / 3)


def test_a_teacher_hears_what_the_student_hears(teacher):
    net = EfficientAT.from_pretrained(teacher).eval()
    every = torch.ones(2, 32000, dtype=torch.bool)
    log_mel, valid = net.log_mel(torch.randn(2, 32000), every)
    maps = Teacher(str(teacher), net, CPU)(log_mel)
    with torch.no_grad():
        feature_map, _ = net.encode(log_mel, valid)
    assert len(maps) == len(net.features)
    tolerance = {"atol": 0.05 * float(feature_map.abs().max()), "rtol": 0}  # bfloat16, on processors that have it
    torch.testing.assert_close(maps[-1].float(), feature_map, **tolerance)
    # a student of fewer bands: what it cannot hear is silence to the teacher, whose rows above its own are left out
    student = EfficientAT(**STUDENT)
    log_mel, _ = student.log_mel(torch.zeros(1, 16000), torch.ones(1, 16000, dtype=torch.bool))
    whole, _ = net.log_mel(torch.zeros(1, 32000), torch.ones(1, 32000, dtype=torch.bool))
    expected, own = feature_maps(net, whole), feature_maps(student.eval(), log_mel)
    for one, other, shape in zip(Teacher(str(teacher), student, CPU)(log_mel), expected, own, strict=True):
        other = other[:, :, : shape.shape[2]].detach()
        assert one.shape == shape.shape
        torch.testing.assert_close(one.float(), other, atol=0.05 * float(other.abs().max()) + 1e-6, rtol=0)


def test_batch_norm_keeps_its_statistics():
    student = Student(EfficientAT(**STUDENT | {"labels": ("a",)}), fixed=True).train()
    before = {key: value.clone() for key, value in student.encoder.named_buffers()}
    assert student.encoder.training
    student(torch.randn(2, 1, 104, 64))
    assert all(torch.equal(value, before[key]) for key, value in student.encoder.named_buffers())
    Student(student.encoder, fixed=False).train()(torch.randn(2, 1, 104, 64))
    assert not all(torch.equal(value, before[key]) for key, value in student.encoder.named_buffers())


def settings(teacher: Path, **distill) -> dict:
    return {
        "model": {"encoder": {"name": "efficientat", "options": STUDENT}},
        "distill": {"teacher": str(teacher), **distill},
        "optim": {"steps": 4},
    }


def test_two_runs_in_a_row(recipe, tmp_path, teacher):
    first, second = tmp_path / "imitate", tmp_path / "encoder"
    train(recipe("distill", out=str(first), **settings(teacher, layerwise=True)))
    train(recipe("distill", out=str(second), init=str(first), **settings(teacher)))
    lines = [[json.loads(line) for line in (out / "log.jsonl").open()] for out in (first, second)]
    assert "hints" in lines[0][0]
    assert "frame" not in lines[0][0]
    assert "development_accuracy" not in lines[0][-1]
    assert {"hints", "frame", "clip"} <= lines[1][0].keys()
    assert 0 <= lines[1][-1]["development_accuracy"] <= 1
    encoder = EfficientAT.from_pretrained(second).eval()
    assert encoder.labels == ["dog", "rain", "rooster", "siren", "noise", "tone"]
    waveform, mask = torch.randn(1, 16000), torch.ones(1, 16000, dtype=torch.bool)
    assert encoder.tag(*encoder(waveform, mask)).shape == (1, 6)
    theirs = load_file(teacher)
    for key, value in encoder.state_dict().items():  # nothing of the teacher is in the result
        if key in theirs and value.dtype.is_floating_point and value.ndim > 1:
            assert not torch.equal(value, theirs[key])


def test_labels_alone(recipe, tmp_path, teacher):
    train(recipe("distill", out=str(tmp_path / "out"), **settings(teacher) | {"distill": {}}))
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").open()]
    assert {"frame", "clip"} <= lines[0].keys()
    assert "hints" not in lines[0]
    assert EfficientAT.from_pretrained(tmp_path / "out").labels[0] == "dog"


def test_heads_alone(recipe, tmp_path, teacher):
    layers, out = tmp_path / "layers", tmp_path / "heads"
    train(recipe("distill", out=str(layers), **settings(teacher)))
    train(recipe("distill", out=str(out), init=str(layers), **settings(teacher) | {"distill": {"heads": True}}))
    before, after = (load_file(folder / "model.safetensors") for folder in (layers, out))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f"heads.{head}.{kind}" for head in ("frame", "clip") for kind in ("weight", "bias")}
    lines = [json.loads(line) for line in (out / "log.jsonl").open()]
    assert {"frame", "clip"} <= lines[0].keys()
    assert "development_accuracy" in lines[-1]


@pytest.mark.parametrize("heads", [False, True])
def test_a_gpu_hears_the_scenes_itself(recipe, tmp_path, teacher, heads):
    """There a batch is scenes, and the loss makes of them what a background process makes on a CPU."""
    content = settings(teacher)
    if heads:
        train(recipe("distill", out=str(tmp_path / "layers"), **content))
        content |= {"distill": {"heads": True}, "init": str(tmp_path / "layers")}
    stage = DistillStage(read_recipe(recipe("distill", out=str(tmp_path / "out"), **content)))
    stage.module.eval()  # no dropout
    prepared = stage.batch(3, loader.WHOLE)
    stage.device = torch.device("meta")
    scenes = stage.batch(3, loader.WHOLE)
    stage.device = CPU
    assert "waveform" in scenes
    assert "waveform" not in prepared
    torch.manual_seed(3)
    assert stage.loss(stage.module, scenes) == stage.loss(stage.module, prepared)


def test_padding_is_no_part_of_the_frame_loss():
    target, logits = torch.zeros(2, 6, 4), torch.randn(2, 6, 5)
    target[:, :3, 1] = 1
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    other = torch.where(mask[..., None], logits, 99.0)
    clips = torch.randn(2, 4)
    assert tag_losses(target, logits, clips, mask) == tag_losses(target, other, clips, mask)
    alone = [
        tag_losses(target[k : k + 1], logits[k : k + 1], clips[k : k + 1], mask[k : k + 1])["frame"] for k in (0, 1)
    ]
    whole = float(tag_losses(target, logits, clips, mask)["frame"])
    assert whole == pytest.approx(float(6 * alone[0] + 4 * alone[1]) / 10, rel=1e-5)


def test_random_weights_come_near_the_teacher(recipe, tmp_path, teacher):
    optim = {"steps": 60, "lr": 2e-2, "warmup": 5, "batch": 8}
    content = settings(teacher, layerwise=True) | {"optim": optim, "save_every": 60}
    train(recipe("distill", out=str(tmp_path / "out"), **content))
    hints = [json.loads(line)["hints"] for line in (tmp_path / "out" / "log.jsonl").open()]
    assert sum(hints[-10:]) < 0.7 * sum(hints[:10])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distill": {"teacher": None, "layerwise": True}}, "distill.layerwise: takes a distill.teacher"),
        ({"distill": {"heads": True}}, "distill.heads: takes the encoder of `init`"),
        ({"distill": {"teacher": "nowhere.pt"}}, "distill.teacher: no EfficientAT"),
        ({"options": {"labels": ["dog"]}}, "model.encoder.options.labels"),
        ({"options": {"strides": [2, 2, 2, 2, 1]}}, r"the teacher's width \(0\.1\), strides and dim"),
        ({"options": {"width": 0.2}}, r"the teacher's width \(0\.1\)"),
        ({"options": {"dim": 32}}, "strides and dim"),
        ({"options": {"mels": 130}}, "at most 128 mels"),
        ({"options": {"window": [400, 800]}}, "one window"),
        ({"name": "conv"}, "only 'efficientat' is"),
    ],
)
def test_recipes_that_cannot_be(recipe, teacher, change, message):
    content = settings(teacher)
    content["distill"] |= change.get("distill", {})
    content["model"]["encoder"]["options"] = STUDENT | change.get("options", {})
    content["model"]["encoder"]["name"] = change.get("name", "efficientat")
    with pytest.raises(ConfigError, match=message):
        train(recipe("distill", **content))


def leave(encoder: EfficientAT, folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(encoder.options))
    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, folder / "model.safetensors")
    return str(folder)


def test_init(recipe, tmp_path, teacher):
    content = settings(teacher)
    other = leave(EfficientAT(**STUDENT | {"relative": False}), tmp_path / "other")
    config = read_recipe(recipe("distill", **content), [f"init={other}"])
    with pytest.raises(ConfigError, match=r"init: .*other options: labels, relative"):
        DistillStage(config)
    begun = EfficientAT(**STUDENT | {"labels": ("a", "b")})
    encoder = DistillStage(replace(config, init=leave(begun, tmp_path / "labels"))).module.encoder
    assert encoder.labels[0] == "dog"
    for key, value in begun.state_dict().items():
        assert key.startswith("heads.") or torch.equal(encoder.state_dict()[key], value)
    with pytest.raises(ConfigError, match="init: no EfficientAT"):
        DistillStage(replace(config, init="nowhere"))
