"""One training step's gradients on this process's share of a fixed batch; run by test_distributed.py under torchrun.

distributed_step.py OUT CONFIG...    for each CONFIG in DDP, and in several processes also sharded
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from conftest import SENTENCES

from lamb.config import LambConfig, from_dict
from lamb.data.loader import part_of
from lamb.extensions import build
from lamb.model.losses import loss_terms
from lamb.training.sharding import clip_grad_norm, shard, to_cpu


def step(accelerator: Accelerator, config: LambConfig, sharded: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build(config).train()
    if sharded:
        shard(model, model.llm.model, accelerator.device)
    forward = accelerator.prepare(model)
    waveform = torch.randn(4, 8000)
    mask = torch.arange(8000) < torch.tensor([8000, 6000, 7000, 3000])[:, None]
    captions = SENTENCES[:4]  # of different lengths, so that the processes have different numbers of tokens
    part = list(part_of(4, (accelerator.process_index, accelerator.num_processes)))
    ids, ids_mask = model.llm.tokenize([captions[k] for k in part])
    torch.manual_seed(accelerator.process_index)  # for dropout
    output = forward(waveform[part], mask[part], ids, ids_mask)
    terms = loss_terms(model, output)
    accelerator.backward(terms["loss"])
    gradients = to_cpu({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, keep=True)
    gradients = {name: gradient.clone() for name, gradient in gradients.items()}
    norm = clip_grad_norm(model.parameters(), 0.1)
    clipped = to_cpu({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, keep=True)
    values = accelerator.reduce(torch.stack([*terms.values()]).detach(), "mean")
    # the embedding table, the adapter, the aligner and beta stay whole in every process
    kinds = {name: type(p.data).__name__ for name, p in model.named_parameters()}
    return {"gradients": gradients, "clipped": clipped, "norm": norm.detach(), "terms": values, "kinds": kinds}


def main() -> None:
    accelerator = Accelerator(cpu=True)
    configs = [from_dict(LambConfig, json.loads(Path(path).read_text())) for path in sys.argv[2:]]
    modes = [False, True] if accelerator.num_processes > 1 else [False]
    found = [{sharded: step(accelerator, config, sharded) for sharded in modes} for config in configs]
    if accelerator.is_main_process:
        torch.save(found, sys.argv[1])


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
