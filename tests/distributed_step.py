"""One training step's gradients on this process's share of a fixed batch; run by test_distributed.py under torchrun."""

import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from conftest import SENTENCES

from lamb.config import LambConfig, from_dict
from lamb.data.loader import part_of
from lamb.losses import loss_terms
from lamb.model import build


def main() -> None:
    import json

    config = from_dict(LambConfig, json.loads(Path(sys.argv[1]).read_text()))
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = build(config).train()
    forward = accelerator.prepare(model)
    waveform = torch.randn(4, 8000)
    mask = torch.arange(8000) < torch.tensor([8000, 6000, 7000, 3000])[:, None]
    captions = SENTENCES[:4]  # of different lengths, so that the processes have different numbers of tokens
    part = list(part_of(4, (accelerator.process_index, accelerator.num_processes)))
    ids, ids_mask = model.llm.tokenize([captions[k] for k in part])
    output = forward(waveform[part], mask[part], ids, ids_mask)
    terms = loss_terms(model, output)
    accelerator.backward(terms["loss"])
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if accelerator.is_main_process:
        values = accelerator.reduce(torch.stack(list(terms.values())).detach(), "mean")
        torch.save({"gradients": gradients, "terms": values}, sys.argv[2])
    else:
        accelerator.reduce(torch.stack(list(terms.values())).detach(), "mean")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
