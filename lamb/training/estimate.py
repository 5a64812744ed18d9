"""`lamb train --estimate`: what a step of a recipe takes, measured with a few blocks of its language model. [O]

A language model is a stack of equal blocks. A step is done with one and with BLOCKS of them, of random weights, on a
few clips of noise; what each further one adds is the same. Counted are the arithmetic (by PyTorch), the activations
that are kept for the backward pass, and the seconds on this machine. All three grow with the batch, too:

    block = (of BLOCKS - of one) / (BLOCKS - 1),   total = (of one + (blocks - 1) * block) * batch / CLIPS

Arithmetic and activations come out as a whole step has them; the seconds are as good as the machine is quiet.

Weights, gradients and AdamW's moments are counted exactly. With gradient checkpointing only the input of each block is
kept, and one block at a time is computed again; with `optim.shard`, each process holds its share of the blocks.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..config import ConfigError, TrainConfig
from ..data.loader import batch_of
from ..extensions import extend
from ..model import gguf
from ..model.encoders import build_encoder
from ..model.lamb import LambModel
from ..model.language_model import LanguageModel, dtype
from ..model.losses import loss_terms
from .device import device_of, precision_of

BLOCKS = 3
CLIPS = 4  # of noise, in the steps that are measured
SECONDS = 10.0  # of each, at most
CAPTION = "A dog barks while rain falls on a surface, then a siren wails in the distance and a man speaks."


@dataclass(frozen=True)
class Step:
    """What a step takes: its arithmetic, the activations that it keeps, its seconds, and the memory for weights."""

    flops: float
    kept: float  # bytes of activations
    seconds: float  # on this machine
    weights: float  # bytes of all parameters
    trained: float  # bytes of gradients, moments and average


@dataclass(frozen=True)
class Estimate:
    """Of the whole model, for the recipe's batch; bytes and seconds as in `Step`, and of each block of the LLM."""

    whole: Step
    block: Step
    blocks: int
    inputs: float  # bytes of a block's input, for the whole batch

    def memory(self, processes: int = 1, checkpointing: bool = False, shard: bool = False) -> float:
        """Bytes that each of `processes` needs: weights, what training adds to them, and its share of activations."""
        blocks = self.blocks * (self.block.weights + self.block.trained)
        held = self.whole.weights + self.whole.trained - (blocks * (1 - 1 / processes) if shard else 0)
        kept = self.whole.kept
        if checkpointing:
            kept += self.blocks * (self.inputs - self.block.kept) + self.block.kept
        return held + kept / processes


def estimate(config: TrainConfig) -> Estimate:
    """Measure steps on the device of `config` and extrapolate; ConfigError for a recipe of another stage."""
    if config.stage != "lamb" or config.init:
        raise ConfigError("--estimate: only for a recipe of stage lamb with a section `model`, without init")
    one, more = (_measured(config, blocks) for blocks in (1, BLOCKS))
    block = Step(*((getattr(more[0], f) - getattr(one[0], f)) / (BLOCKS - 1) for f in Step.__dataclass_fields__))
    scale, blocks = config.optim.batch / CLIPS, one[1]["blocks"]
    whole = Step(
        flops=(one[0].flops + (blocks - 1) * block.flops) * scale,
        kept=(one[0].kept + (blocks - 1) * block.kept) * scale,
        seconds=(one[0].seconds + (blocks - 1) * block.seconds) * scale,
        weights=one[0].weights + (blocks - 1) * block.weights,
        trained=one[0].trained + (blocks - 1) * block.trained,
    )
    block = replace(block, flops=block.flops * scale, kept=block.kept * scale, seconds=block.seconds * scale)
    return Estimate(whole, block, blocks, one[1]["inputs"] * scale)


def text(found: Estimate, config: TrainConfig) -> str:
    """What `lamb train --estimate` prints."""
    gb, whole = 1e9, found.whole
    lines = [
        f"a step of {config.optim.batch} clips of {min(SECONDS, config.data.seconds):g} s "
        f"(extrapolated to the {found.blocks} blocks of the LLM):",
        f"  weights                      {whole.weights / gb:8.2f} GB",
        f"  gradients, moments, average  {whole.trained / gb:8.2f} GB",
        f"  activations                  {whole.kept / gb:8.2f} GB",
        f"  arithmetic                   {whole.flops / 1e12:8.2f} Tflop",
        f"  on this machine              {whole.seconds:8.2f} s",
        "memory of each process:",
    ]
    for processes in (1, 8):
        for checkpointing in (False, True):
            for shard in (False, True) if processes > 1 else (False,):
                how = [f"{processes} process" + ("es" if processes > 1 else "")]
                how += ["gradient checkpointing"] * checkpointing + ["shard"] * shard
                lines.append(f"  {', '.join(how):45} {found.memory(processes, checkpointing, shard) / gb:7.2f} GB")
    return "\n".join(lines)


def _measured(config: TrainConfig, blocks: int) -> tuple[Step, dict[str, Any]]:
    """A step with so many blocks, on CLIPS clips; and the number of blocks and a block's input in the real model."""
    device = device_of(config)
    torch.manual_seed(config.seed)
    llm, facts = _shortened(config, blocks, device)
    model = extend(LambModel(config.model, build_encoder(config.model.encoder), llm)).to(device).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trained = [p for p in model.parameters() if p.requires_grad]
    rate = model.encoder.sample_rate
    noise = torch.randn(round(min(SECONDS, config.data.seconds) * rate)).numpy()
    sound, mask = (x.to(device) for x in batch_of([[noise]] * CLIPS))
    ids, ids_mask = model.llm.tokenize([CAPTION] * CLIPS)
    lengths: list[int] = []
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}  # parameters are no activations

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision_of(config) == "bf16"):
            output = model(sound, mask, ids, ids_mask)
        prompt = len(llm.before) + len(llm.after)
        lengths.append(prompt + output.z_a.shape[1] + ids.shape[1])
        loss_terms(model, output)["loss"].backward()
        for parameter in trained:
            parameter.grad = None

    with FlopCounterMode(display=False) as counter:
        step()
    kept = _kept(step, own)
    seconds = min(_timed(step, device) for _ in range(5))
    size = 2 if precision_of(config) == "bf16" else 4
    facts["inputs"] = CLIPS * lengths[0] * llm.dim * size
    copies = 3 + bool(config.optim.ema_decay)
    return Step(
        flops=counter.get_total_flops(),
        kept=kept,
        seconds=seconds,
        weights=sum(p.numel() * p.element_size() for p in model.parameters()),
        trained=copies * sum(p.numel() * p.element_size() for p in trained),
    ), facts


def _shortened(config: TrainConfig, blocks: int, device: torch.device) -> tuple[LanguageModel, dict[str, Any]]:
    """The recipe's LLM with so many blocks and random weights, and how many it has in truth."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = config.model.llm.source
    if source is None:
        raise ConfigError("llm.source: give a hub id or a folder")
    place = gguf.folder_of(source) if source.endswith(".gguf") else source
    try:
        architecture = AutoConfig.from_pretrained(place, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"llm {source}: its configuration cannot be loaded; give a folder or a hub id") from error
    facts = {"blocks": architecture.num_hidden_layers}
    architecture.num_hidden_layers = blocks
    with device:
        model = AutoModelForCausalLM.from_config(architecture, dtype=dtype(config.model.llm.dtype, device))
    return LanguageModel(model, tokenizer, config.model.llm), facts


def _kept(step: Any, own: set[int]) -> float:
    """Bytes of the tensors that `step` keeps for its backward pass, each storage once, without parameters."""
    seen: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address comes again

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own and storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(x.detach())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        step()
    return sum(seen.values())


def _timed(step: Any, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
