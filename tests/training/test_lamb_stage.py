"""Stage `lamb`: the rates of its parts, its best model, and the confidence that it calibrates at the end."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from lamb.config import DataConfig, OptimConfig, TrainConfig, WeighConfig, to_dict
from lamb.inference.captioner import Captioner
from lamb.inference.confidence import fit_confidence
from lamb.training import lamb_stage
from lamb.training.lamb_stage import SCALARS, LambStage
from lamb.training.train import train


@pytest.mark.parametrize("llm_lr", [1e-5, None])
def test_language_model_and_encoder_have_a_rate_of_their_own(make_config, sounds_folder, llm_lr):
    """`optim.llm_lr`, or that of the rest where it is not given; every trained parameter is in one group."""
    optim = OptimConfig(lr=1e-3, llm_lr=llm_lr)
    model = make_config(encoder={"train": "full"})
    stage = LambStage(TrainConfig(model=model, data=DataConfig(sounds=str(sounds_folder)), optim=optim))
    names = {id(p): name for name, p in stage.module.named_parameters() if p.requires_grad}
    found = [(names[id(p)], group["lr"]) for group in stage.param_groups() for p in group["params"]]
    assert sorted(name for name, _ in found) == sorted(names.values())
    bases = {name: lr for name, lr in found if name.startswith(("llm.", "encoder."))}
    assert {name.partition(".")[0] for name in bases} == {"llm", "encoder"}
    assert set(bases.values()) == {llm_lr or 1e-3}
    assert {lr for name, lr in found if name not in bases and name not in SCALARS} == {1e-3}


def test_the_folder_best_has_the_model_of_the_best_check(recipe, make_config, tmp_path, monkeypatch):
    scores = iter([0.2, 0.6, 0.4])
    monkeypatch.setattr(lamb_stage.LabelledScenes, "check", lambda self: {"named": next(scores)})
    train(recipe("lamb", model=to_dict(make_config()), optim={"steps": 3}, save_every=1, keep_states=3))
    out = tmp_path / "out"
    averages = [torch.load(out / f"state-{step:08d}.pt")["ema"] for step in (1, 2, 3)]
    for folder, average in ((out / "best", averages[1]), (out, averages[2])):
        stored = load_file(folder / "model.safetensors")
        learnt = [name for name in stored if name in average and not name.startswith("encoder.")]
        assert {name.partition(".")[0] for name in learnt} == {"adapter", "aligner", "guide", "llm"}
        for name in learnt:
            assert torch.equal(stored[name], average[name].half()), name
    assert not torch.equal(averages[1]["adapter.out.weight"].half(), averages[2]["adapter.out.weight"].half())
    assert Captioner.load(str(out / "best"), "cpu")


@pytest.fixture
def stage(make_config, sounds_folder, tmp_path) -> LambStage:
    """Its four development recordings are a dog, of which nothing is heard, rain, a siren and a rooster."""
    shutil.copytree(sounds_folder, tmp_path / "sounds")
    soundfile.write(tmp_path / "sounds" / "dog4.wav", np.zeros(8000), 16000)
    model = make_config(decode={"beams": 6, "confidence": [0.5, 3.0]})
    data = DataConfig(sounds=str(tmp_path / "sounds"), seconds=1)
    torch.manual_seed(2)  # with a narrower search it would say other captions
    stage = LambStage(TrainConfig(out=str(tmp_path / "out"), model=model, data=data))
    stage.module.eval()
    return stage


def stored_confidence(stage: LambStage) -> list[float]:
    """That in the configuration of the model that the stage saves."""
    stage.save(write=True)
    with open(f"{stage.config.out}/lamb.json") as file:
        return json.load(file)["config"]["decode"]["confidence"]


def test_the_confidence_is_calibrated_on_the_development_recordings(stage, monkeypatch):
    """With the search that will be used, and without recordings that the model calls silent."""
    assert [clip.labels[0] for clip in stage.data.development] == ["dog", "rain", "siren", "rooster"]
    monkeypatch.setattr(lamb_stage, "names", lambda caption, label: label in ("dog", "rain"))
    silent, *heard = Captioner(stage.module).caption(stage.data.development)
    assert silent.text == "Silence."
    expected = fit_confidence([result.score for result in heard], [True, False, False])
    assert stored_confidence(stage) == pytest.approx(expected)


def test_the_confidence_stays_where_sounds_are_weighed(stage):
    """`scripts/fit_weighing.py` fits it there."""
    config = stage.module.config
    stage.module.config = replace(config, decode=replace(config.decode, weigh=WeighConfig(enabled=True)))
    assert stored_confidence(stage) == [0.5, 3.0]
