"""Where a process trains and in which precision, and whether the model fits there at all."""

import warnings
from datetime import timedelta
from typing import Literal

import torch
from torch import nn

from ..config import TrainConfig
from ..errors import LambError
from . import sharding

WAIT = timedelta(hours=2)  # for the first process while it checks and saves; the default on GPUs is 10 minutes
LESS_MEMORY = (
    "a smaller optim.batch (with optim.accumulate), model.llm.train=lora, no optim.ema_decay, a smaller LLM, or "
    "several GPUs with optim.shard=true"
)


class TrainingError(LambError, ValueError):
    """Training that cannot continue: what is wrong, what was kept and the remedy."""


def device_of(config: TrainConfig) -> torch.device:
    """The device of this process: its own GPU if there is one, unless the recipe says cpu."""
    from accelerate import PartialState

    cpu = config.device == "cpu" or not torch.cuda.is_available()
    return PartialState(cpu=cpu, timeout=WAIT).device


def is_first_process() -> bool:
    """Whether this process is the one that checks, writes and prints. True where only one process trains."""
    from accelerate import PartialState

    return PartialState().is_main_process


def cpu_has_bfloat16() -> bool:
    """Whether the CPU itself computes in bfloat16. PyTorch's emulation of it is very slow."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def precision_of(config: TrainConfig) -> Literal["no", "bf16"]:
    """The precision of autocast: bf16 on a GPU; on a CPU only if the recipe asks for it and the CPU has it."""
    if device_of(config).type != "cpu":
        return "bf16"
    if config.precision == "auto":
        return "no"
    if not cpu_has_bfloat16():
        warnings.warn("precision: this CPU has no units for bfloat16; training in float32", stacklevel=2)
        return "no"
    return "bf16"


def memory(model: nn.Module, config: TrainConfig) -> int:
    """Bytes that a process needs at least: all weights; for trained ones also gradient, AdamW's moments and average."""
    copies = 4 + bool(config.optim.ema_decay)
    parts = [(sharding.own(p), p.requires_grad) for p in model.parameters()]
    return sum(p.numel() * p.element_size() * (copies if trained else 1) for p, trained in parts)


def require_memory(model: nn.Module, config: TrainConfig, device: torch.device) -> None:
    """Raise TrainingError if the GPU is plainly too small, before the model is moved there."""
    if device.type != "cuda":
        return
    there, needed = torch.cuda.get_device_properties(device).total_memory, memory(model, config)
    if needed > there:
        raise TrainingError(
            f"the GPU has {there / 1e9:.0f} GB, but the model alone, without any clip, needs {needed / 1e9:.0f}: "
            f"use {LESS_MEMORY}"
        )
