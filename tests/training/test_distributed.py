"""Two processes learn what one learns, with the LLM whole or sharded: same gradients, same terms, same training run."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

from lamb.config import ConfigError, to_dict
from lamb.data.manifest import Clip, write
from lamb.inference.captioner import Captioner
from lamb.training.train import train

TESTS = Path(__file__).parents[1]
ALONE = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TWO = [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]


def run(*commands: list[Any]) -> list[str]:
    """Run the commands together; their outputs."""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([str(part) for part in command], env=environment, stdout=pipe, stderr=pipe, text=True)
        for command in commands
    ]
    try:
        texts = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.terminate()  # torchrun ends its own
    for process, (_, problems) in zip(processes, texts, strict=True):
        assert process.returncode == 0, problems[-3000:]
    return [out for out, _ in texts]


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], by: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=by, atol=by, msg=lambda m, n=name: n + m)


def test_gradients(make_config, tmp_path):
    """The global divergence and InfoNCE see all four clips, the cross entropies all tokens."""
    half = make_config(llm={"train": "lora", "dtype": "bfloat16"})  # frozen bf16 and trained fp32 in one shard
    for name, config in (("full", make_config()), ("lora", half)):
        (tmp_path / f"{name}.json").write_text(json.dumps(to_dict(config)))
    configs = [tmp_path / "full.json", tmp_path / "lora.json"]
    run([*ALONE, TESTS / "distributed_step.py", tmp_path / "one.pt", configs[0]])
    run([*TWO, TESTS / "distributed_step.py", tmp_path / "two.pt", *configs])
    one = torch.load(tmp_path / "one.pt")[0][False]
    full, lora = torch.load(tmp_path / "two.pt")
    assert {"aligner.log_scale", "guide.beta", "adapter.out.weight"} <= one["gradients"].keys()
    for found, expected in ((full[False], one), (full[True], one), (lora[True], lora[False])):
        torch.testing.assert_close(found["terms"], expected["terms"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["norm"], expected["norm"], rtol=1e-5, atol=1e-6)
        close(found["gradients"], expected["gradients"])
        close(found["clipped"], expected["clipped"])
    assert any("lora" in name for name in lora[True]["gradients"])
    for found in (full[True], lora[True]):
        sharded = {name for name, kind in found["kinds"].items() if kind == "DTensor"}
        assert sharded == {name for name in found["kinds"] if name.startswith("llm.model.model.layers.")}
        assert sharded


@pytest.fixture
def recipe(tmp_path: Path, llm_folder: Path, encoder_folder: Path) -> Path:
    """Twelve recordings of noise with captions; a step trains on four of the nine that are not for validation."""
    rng = np.random.default_rng(0)
    clips = []
    for n in range(12):
        soundfile.write(tmp_path / f"{n}.wav", 0.1 * rng.standard_normal(4000 + 400 * n), 16000)
        split = "train" if n < 9 else "val"
        caption = "Rain falls, then a siren wails." if n % 2 else "A dog barks."
        clips.append(Clip(f"{n}", str(tmp_path / f"{n}.wav"), captions=(caption,), split=split))
    write(clips, tmp_path / "manifest.jsonl")
    content = {
        "device": "cpu",
        "save_every": 2,
        "model": {
            "encoder": {"name": "efficientat", "source": str(encoder_folder), "train": "frozen"},
            "adapter": {"fusion_queries": 4, "semantic_queries": 2, "temporal_queries": 2, "head_dim": 16},
            "llm": {"source": str(llm_folder), "train": "full"},
            "decode": {"max_new_tokens": 4, "beams": 1},
        },
        "data": {"manifest": str(tmp_path / "manifest.jsonl"), "seconds": 1, "workers": 0},
        "optim": {"lr": 1e-3, "batch": 4, "steps": 4, "warmup": 1, "ema_decay": 0.9},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_a_sharded_run_resumed_on_two_nodes_equals_one_process(recipe, tmp_path):
    """The states of a sharded run are whole: those of one process, whatever number of processes goes on with them."""
    alone = train(recipe, [f"out={tmp_path / 'alone'}"])
    out = tmp_path / "shards"
    lamb = ["-m", "lamb", "train", recipe, f"out={out}", "optim.shard=true"]
    assert run([*TWO, *lamb]) == [f"{out}\n"]  # one of the two says so
    last, best = "state-00000004.pt", "best/model.safetensors"
    whole = torch.load(out / last)
    expected = torch.load(alone / last)
    for part in ("model", "ema"):
        close(whole[part], expected[part], 1e-4)
    moments = [sorted(m["exp_avg"].norm().item() for m in s["optimiser"]["state"].values()) for s in (whole, expected)]
    assert moments[0] == pytest.approx(moments[1], abs=1e-4)
    for name in ("model.safetensors", best):
        close(load_file(out / name), load_file(alone / name), 2e-3)  # in fp16
    assert Captioner.load(str(out / "best")).caption([tmp_path / "0.wav"])[0].ok

    (out / last).unlink()
    (out / "model.safetensors").unlink()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    node = [*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    node += ["--rdzv-endpoint", f"localhost:{port}", *lamb, "--resume"]
    assert sorted(run(node, node)) == ["", f"{out}\n"]
    again = torch.load(out / last)
    for part in ("model", "ema"):
        close(again[part], whole[part], 1e-6)
    close(load_file(out / "model.safetensors"), load_file(alone / "model.safetensors"), 2e-3)
    logs = [[json.loads(line)["loss"] for line in (folder / "log.jsonl").open()] for folder in (alone, out)]
    assert logs[1] == pytest.approx(logs[0], abs=2e-4)


def test_nothing_to_share_out(recipe, tmp_path):
    settings = ["optim.shard=true", f"out={tmp_path / 'out'}"]
    with pytest.raises(ConfigError, match=r"optim\.shard: there is only one process; start several with"):
        train(recipe, settings)
    with pytest.raises(ConfigError, match=r"optim\.shard: stage distill trains no large LLM"):
        train(recipe, [*settings, "stage=distill"])
    assert not (tmp_path / "out").exists()
