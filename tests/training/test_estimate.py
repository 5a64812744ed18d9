"""`lamb train --estimate`: a few blocks tell what all of them take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, LlamaForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer
from typer.testing import CliRunner

from lamb.cli.app import app
from lamb.config import ConfigError, OptimConfig, TrainConfig, read_recipe, to_dict
from lamb.training import estimate as estimating
from lamb.training.estimate import estimate
from lamb.training.lamb_stage import new_model
from lamb.training.loop import in_steps


@pytest.fixture
def recipe(tmp_path: Path, llm_folder: Path, make_config: Callable[..., Any]) -> Path:
    """A recipe around a LLaMA of six blocks, of which only the configuration and the tokenizer exist."""
    import shutil

    shutil.copytree(llm_folder, tmp_path / "llm")
    (tmp_path / "llm" / "model.safetensors").unlink()
    architecture = AutoConfig.from_pretrained(llm_folder)
    architecture.num_hidden_layers = 6
    architecture.save_pretrained(tmp_path / "llm")
    model = to_dict(make_config(llm={"source": str(tmp_path / "llm"), "train": "lora"}))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": model, "data": {"seconds": 1}, "optim": {"batch": 8, "ema_decay": 0.9}}))
    return path


def test_five_blocks_tell_what_six_take(recipe):
    """Arithmetic, activations and weights of a real step of all blocks, for more clips than were measured."""
    config = read_recipe(recipe, ["optim.batch=12"])
    found = estimate(config)
    model, blocks = estimating._shortened(config, 6)
    whole = estimating._measured(model, config, config.optim.batch)
    assert blocks == found.blocks == 6
    assert found.whole.flops == pytest.approx(whole.flops, rel=0.02)
    assert found.whole.kept == pytest.approx(whole.kept, rel=0.02)
    assert (found.whole.weights, found.whole.trained) == pytest.approx((whole.weights, whole.trained))
    assert found.whole.seconds > 0


def test_memory_of_several_processes(recipe):
    found = estimate(read_recipe(recipe))
    one = found.memory()
    assert one == pytest.approx(found.whole.weights + found.whole.trained + found.whole.kept)
    shards = 6 * (found.block.weights + found.block.trained)
    assert found.memory(8) - found.memory(8, shard=True) == pytest.approx(shards * 7 / 8)
    assert found.memory(checkpointing=True) < one - 3 * found.block.kept


def test_checkpointing_keeps_less_and_changes_nothing(recipe, tmp_path, llm_folder):
    """The same gradients, and the activations that the estimate says."""
    LlamaForCausalLM(AutoConfig.from_pretrained(tmp_path / "llm")).save_pretrained(tmp_path / "llm")
    found = estimate(read_recipe(recipe, ["model.llm.lora.dropout=0"]))
    kept, gradients = [], []
    for setting in ("false", "true"):
        config = read_recipe(recipe, [f"optim.checkpointing={setting}", "model.llm.lora.dropout=0"])
        torch.manual_seed(0)
        model = new_model(config).train()
        x, mask = torch.randn(8, 16000), torch.ones(8, 16000, dtype=torch.bool)
        ids, ids_mask = model.llm.tokenize([estimating.CAPTION] * 8)

        def step(model: Any = model, inputs: Any = (x, mask, ids, ids_mask)) -> None:
            model(*inputs).logits.square().mean().backward()

        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept.append(estimating._kept(step, own))
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
    saved = 6 * (found.block.kept - found.whole.inputs)
    assert kept[0] - kept[1] == pytest.approx(saved, rel=0.15)


def test_checkpointing_of_a_frozen_language_model(recipe):
    """Its blocks are computed again although they do not learn, and their dropout stays off."""
    LlamaForCausalLM(AutoConfig.from_pretrained(recipe.parent / "llm")).save_pretrained(recipe.parent / "llm")
    model = new_model(read_recipe(recipe, ["optim.checkpointing=true", "model.llm.train=frozen"])).train()
    blocks = [m for m in model.llm.modules() if isinstance(m, GradientCheckpointingLayer)]
    assert blocks
    assert [m for m in model.llm.modules() if m.training] == blocks
    calls = []
    for block in blocks:
        again = block._gradient_checkpointing_func
        block._gradient_checkpointing_func = lambda *given, again=again: calls.append(1) or again(*given)
    ids, ids_mask = model.llm.tokenize([estimating.CAPTION])
    model(torch.randn(1, 16000), torch.ones(1, 16000, dtype=torch.bool), ids, ids_mask).logits.sum().backward()
    assert len(calls) == len(blocks)
    model.eval()
    assert not any(m.training for m in model.llm.modules())


def test_epochs_are_of_a_manifest(recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"only the clips of data\.manifest have epochs; give optim\.steps"):
        in_steps(TrainConfig(out=str(tmp_path), optim=OptimConfig(epochs=3)), 0)


def test_the_command(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["train", str(recipe), "--estimate"])
    assert done.exit_code == 0, done.output
    assert "a step of 8 clips of 1 s (extrapolated to the 6 blocks of the LLM)" in done.output
    assert "8 processes, gradient checkpointing, shard" in done.output
    assert not Path("runs/lamb").exists()


@pytest.mark.parametrize("config", [TrainConfig(stage="distill"), TrainConfig(init="tiny")])
def test_what_cannot_be_estimated(config):
    with pytest.raises(ConfigError, match="--estimate: only for a recipe of stage lamb with a section `model`"):
        estimate(config)
