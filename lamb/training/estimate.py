"""`lamb train --estimate`: what a step of a recipe takes, measured with a few blocks of its language model. [O]

A language model is a stack of equal blocks, and a batch a row of equal clips. A step is done with one and with BLOCKS
blocks of random weights, on few and on more clips of noise. Counted are the arithmetic (by PyTorch), the activations
that are kept for the backward pass, and the seconds on this machine. Each is a plane over the two numbers, with a part
that no clip adds to, such as weights that are cast or distances to the whole vocabulary:

    y(blocks, clips) = a + b (blocks - 1) + c clips + d (blocks - 1) clips

Four steps give the four numbers. Arithmetic and activations come out as a whole step has them; the seconds are as good
as the machine is quiet.

Weights, gradients and AdamW's moments are counted exactly. With gradient checkpointing only the input of each block is
kept, and one block at a time is computed again; with `optim.shard`, each process holds its share of the blocks.
"""

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
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
from .lamb_stage import prepare

BLOCKS = 5
CLIPS = 2, 8  # of noise, in the steps that are measured
TIMES, PATIENCE = 9, 20.0  # a step is timed so often, or for so many seconds; the fastest counts
SECONDS = 10.0  # of each, at most
# 20 words, as many as the longest of 32 captions of AudioCaps has (median)
CAPTION = "A dog barks while rain falls on a surface, then a siren wails in the distance and a man speaks."


@dataclass(frozen=True)
class Step:
    """What a step takes: its arithmetic, its seconds, and the memory for activations and weights."""

    flops: float
    kept: float  # bytes of activations
    seconds: float  # on this machine
    weights: float  # bytes of all parameters
    trained: float  # bytes of gradients, moments and average
    inputs: float  # bytes of a block's input


@dataclass(frozen=True)
class Estimate:
    """Of a step of the whole model and of each block of the LLM, for the recipe's batch."""

    whole: Step
    block: Step
    blocks: int

    def memory(self, processes: int = 1, checkpointing: bool = False, shard: bool = False) -> float:
        """Bytes that each of `processes` needs: weights, what training adds to them, and its share of activations."""
        blocks = self.blocks * (self.block.weights + self.block.trained)
        held = self.whole.weights + self.whole.trained - (blocks * (1 - 1 / processes) if shard else 0)
        kept = self.whole.kept
        if checkpointing:
            kept += self.blocks * (self.whole.inputs - self.block.kept) + self.block.kept
        return held + kept / processes


def estimate(config: TrainConfig) -> Estimate:
    """Measure steps on the device of `config` and extrapolate; ConfigError for a recipe of another stage."""
    if config.stage != "lamb" or config.init:
        raise ConfigError("--estimate: only for a recipe of stage lamb with a section `model`, without init")
    of_batch = []  # a step on the whole batch, of one block and of BLOCKS
    for number in (1, BLOCKS):
        model, blocks = _shortened(config, number)
        of_batch.append(_along([_measured(model, config, n) for n in CLIPS], CLIPS, config.optim.batch))
    block = Step(*((b - a) / (BLOCKS - 1) for a, b in zip(*map(astuple, of_batch), strict=True)))
    return Estimate(_along(of_batch, (1, BLOCKS), blocks), block, blocks)


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


def _along(steps: Sequence[Step], at: tuple[int, int], to: int) -> Step:
    """The step at `to` on the line through two steps, which are `at` two numbers of clips or of blocks."""
    share = (to - at[0]) / (at[1] - at[0])
    return Step(*(a + share * (b - a) for a, b in zip(*map(astuple, steps), strict=True)))


def _shortened(config: TrainConfig, blocks: int) -> tuple[LambModel, int]:
    """The recipe's model with so many blocks in its LLM, of random weights; and how many there are in truth."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    device, source = device_of(config), config.model.llm.source
    if source is None:
        raise ConfigError("llm.source: give a hub id or a folder")
    place = gguf.folder_of(source) if source.endswith(".gguf") else source
    try:
        architecture = AutoConfig.from_pretrained(place, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"llm {source}: its configuration cannot be loaded; give a folder or a hub id") from error
    whole, architecture.num_hidden_layers = architecture.num_hidden_layers, blocks
    torch.manual_seed(config.seed)
    with device:
        llm = AutoModelForCausalLM.from_config(architecture, dtype=dtype(config.model.llm.dtype, device))
    wrapped = LanguageModel(llm, tokenizer, config.model.llm)
    model = extend(LambModel(config.model, build_encoder(config.model.encoder), wrapped)).to(device).train()
    prepare(model, device)
    return model, whole


def _measured(model: LambModel, config: TrainConfig, clips: int) -> Step:
    """A step on so many clips of noise."""
    device, llm = model.device, model.llm
    trained = [p for p in model.parameters() if p.requires_grad]
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}  # parameters are no activations
    noise = torch.randn(round(min(SECONDS, config.data.seconds) * model.encoder.sample_rate)).numpy()
    sound, mask = (x.to(device) for x in batch_of([[noise]] * clips))
    ids, ids_mask = llm.tokenize([CAPTION] * clips)
    lengths: list[int] = []

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision_of(config) == "bf16"):
            output = model(sound, mask, ids, ids_mask)
        lengths.append(len(llm.before) + len(llm.after) + output.z_a.shape[1] + ids.shape[1])
        loss_terms(model, output)["loss"].backward()
        for parameter in trained:
            parameter.grad = None

    with FlopCounterMode(display=False) as counter:
        step()
    copies = 3 + bool(config.optim.ema_decay)
    return Step(
        flops=counter.get_total_flops(),
        kept=_kept(step, own),
        seconds=_fastest(step, device),
        weights=sum(p.numel() * p.element_size() for p in model.parameters()),
        trained=copies * sum(p.numel() * p.element_size() for p in trained),
        inputs=clips * lengths[0] * llm.dim * (2 if precision_of(config) == "bf16" else 4),
    )


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


def _fastest(step: Any, device: torch.device) -> float:
    """Seconds of the fastest of several steps."""
    seconds: list[float] = []
    while len(seconds) < TIMES and sum(seconds) < PATIENCE:
        _wait_for(device)
        began = time.perf_counter()
        step()
        _wait_for(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
