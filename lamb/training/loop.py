"""The training loop of every stage: AdamW, a cosine schedule [P], clipping, a moving average, on one process or many.

A step is a pure function of (weights, optimiser, seed, step): batches and dropout are seeded by the step's number, so a
run that was killed goes on from its last state and ends, on a CPU, with the same weights bit for bit.

Under `torchrun` each process makes its share of every batch, and the gradients are averaged (DDP, by `accelerate`).
Terms over the whole batch (`lamb.model.losses`) gather it first, so that the processes learn what one process would.
`lamb.model.sharding` shares out an LLM that is too large for each; a state is whole all the same.
With `optim.accumulate` a step sums the gradients of several batches. The global divergence and InfoNCE still see one
batch at a time: more processes, not more accumulation, give them more clips to compare.
"""

import hashlib
import json
import math
import os
import pickle
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from ..config import OptimConfig, TrainConfig, to_dict
from ..data import loader
from ..errors import LambError
from ..model import sharding

Losses = dict[str, Tensor]
WAIT = timedelta(hours=2)  # of the others while the first process checks and saves; 10 minutes by default on GPUs
LESS_MEMORY = (
    "a smaller optim.batch (with optim.accumulate), model.llm.train=lora, no optim.average, a smaller LLM, or several "
    "GPUs with optim.shard=true"
)


class TrainingError(LambError, ValueError):
    """Training that cannot go on: the step, the terms, and what is kept."""


def device_of(config: TrainConfig) -> torch.device:
    """Where this process trains: its own GPU if there is one, unless the recipe says cpu."""
    from accelerate import PartialState

    cpu = config.device == "cpu" or not torch.cuda.is_available()
    return PartialState(cpu=cpu, timeout=WAIT).device


def cpu_has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16, rather than PyTorch in its place, which is slow."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def precision_of(config: TrainConfig) -> Literal["no", "bf16"]:
    """What autocast computes in: bf16 on a GPU; on a CPU if the recipe says so and the CPU can."""
    if device_of(config).type != "cpu":
        return "bf16"
    if config.precision == "auto":
        return "no"
    if not cpu_has_bfloat16():
        warnings.warn("precision: this CPU has no units for bfloat16; training in float32", stacklevel=2)
        return "no"
    return "bf16"


def is_first_process() -> bool:
    """Whether this is the process that checks, writes and prints; every one is that trains alone."""
    from accelerate import PartialState

    return PartialState().is_main_process


def schedule(step: int, optim: OptimConfig) -> float:
    """Factor of the learning rate: a linear warm-up, then a cosine to 0. [P]"""
    if step < optim.warmup:
        return (step + 1) / optim.warmup
    progress = (step - optim.warmup) / max(1, optim.steps - optim.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def groups(named: Iterable[tuple[str, nn.Parameter]], lr: float, decay: float) -> list[dict[str, Any]]:
    """Parameter groups: no weight decay where ndim < 2. [O]"""
    trained = [p for _, p in named if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "lr": lr, "weight_decay": decay},
        {"params": [p for p in trained if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
    ]


def _learning(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes: all but the frozen parameters. What is frozen needs no state, no average."""
    state = model.state_dict(keep_vars=True)
    return {n: t.detach() for n, t in state.items() if t.requires_grad or not isinstance(t, nn.Parameter)}


def _put(state: dict[str, Tensor], model: nn.Module) -> None:
    """Load what `_learning` gave; ValueError when the model learns other tensors."""
    learning = _learning(model)
    if state.keys() != learning.keys():
        raise ValueError("it holds other tensors than the model learns")
    for name, tensor in learning.items():
        tensor.copy_(state[name])


class _Average:
    """An exponential moving average of a model's weights and buffers; short memory at first, to forget the start."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.state = {name: value.clone() for name, value in _learning(model).items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in _learning(self.model).items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)

    def swap(self) -> None:
        """Put the average in the model's place, and the model's weights here."""
        own = {name: value.clone() for name, value in _learning(self.model).items()}
        _put(self.state, self.model)
        self.state = own


def fit(
    config: TrainConfig,
    out: Path,
    model: nn.Module,
    parameters: list[dict[str, Any]],
    make: Callable[[int, loader.Share], Any],
    losses: Callable[[nn.Module, Any], Losses],
    check: Callable[[], dict[str, float]],
    keep: Callable[[], object] | None = None,
    epoch: int = 0,
    clips: tuple[int, int] | None = None,
) -> None:
    """Train `model` in place and write recipe.json, log.jsonl and, every `save_every` steps, a state into `out`.

    Args:
        parameters: groups for AdamW.
        make: (batch number, share) -> this process's part of a batch, in a background process.
        losses: (model to call, batch) -> named terms to log; the term "loss" is minimised.
        check: numbers to log, taken with the averaged weights by the first process: at the end of every epoch where
            the recipe counts in epochs (then also a state is saved), else at every save.
        keep: called by every process where the first of these numbers is the highest so far, with the averaged
            weights in `model`.
        epoch: batches of an epoch, where the data has epochs.
        clips: how many to train on and to check on, to show before the start.

    TrainingError when a term or gradient is not finite, or a state cannot be written or read.
    """
    from accelerate import Accelerator
    from accelerate.utils import gather_object

    optim = config.optim
    check_every = config.save_every
    if optim.epochs:
        check_every = epoch // optim.accumulate
        optim = replace(optim, steps=optim.epochs * check_every, warmup=optim.warmup_epochs * check_every)
    on_cpu = device_of(config).type == "cpu"
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision_of(config))
    share = (accelerator.process_index, accelerator.num_processes)
    first_process = accelerator.is_main_process
    parameters = [{**group, "params": kind} for group in parameters for kind in sharding.apart(group["params"])]
    trained = [p for group in parameters for p in group["params"]]
    optimiser: Any = torch.optim.AdamW(parameters, betas=(0.9, 0.98))
    base = [group["lr"] for group in optimiser.param_groups]
    prepared, optimiser = accelerator.prepare(model, optimiser)
    average = _Average(model, optim.average) if optim.average else None
    first, best = _resume(out, model, optimiser, average)
    if len(set(gather_object([first]))) > 1:
        raise TrainingError(f"{out}: not every process finds the same states there; give a folder that all nodes share")
    if first_process:
        out.mkdir(parents=True, exist_ok=True)
        write(out / "recipe.json", json.dumps(run_facts(config), indent=1))  # from here on, the folder holds a run
    console = Console(stderr=True, quiet=not first_process)
    _overview(console, config, model, f"{first} to {optim.steps}" if first else f"{optim.steps}", share[1], clips)
    batches = loader.background(
        lambda index: make(index, share), first * optim.accumulate, optim.steps * optim.accumulate, config.data.workers
    )
    began = time.time()
    model.train()
    with _Log(out, first, first_process) as log, _progress(console) as progress:
        task = progress.add_task("", total=optim.steps, completed=first)
        for step in range(first, optim.steps):
            torch.manual_seed(int(np.random.SeedSequence((config.seed, step, share[0])).generate_state(1)[0]))
            factor = schedule(step, optim)
            for group, lr in zip(optimiser.param_groups, base, strict=True):
                group["lr"] = lr * factor
            optimiser.zero_grad(set_to_none=True)
            total, batch = _gradients(accelerator, prepared, losses, batches, optim.accumulate)
            norm = sharding.clip_grad_norm(trained, optim.clip)
            shown = _means(accelerator, {**total, "norm": norm})
            if not all(map(math.isfinite, shown.values())):
                named = batch.get("ids", batch.get("captions")) if isinstance(batch, dict) else batch
                raise TrainingError(
                    f"step {step + 1}: loss or gradient is not finite: {shown}; the last state is kept; "
                    f"its clips: {named}"
                )
            optimiser.step()
            if average:
                average.update(step)
            line = {"step": step + 1, **{name: round(value, 4) for name, value in shown.items()}}
            line |= {"lr": base[0] * factor, "seconds": round(time.time() - began, 1)}
            check_now = step + 1 == optim.steps or (step + 1) % check_every == 0
            if check_now:
                checked, best = _check(model, average, check, keep, best, first_process)
                line |= checked
                console.print("  ".join(f"{name} {value:g}" for name, value in line.items() if name != "seconds"))
            rate = (step + 1 - first) * optim.batch * optim.accumulate / (time.time() - began)
            progress.update(task, advance=1, description=f"loss {shown['loss']:.3f}, {rate:.0f} clips/s")
            log.write(line)  # before the state: a log may be ahead of it, never behind
            if check_now or (step + 1) % config.save_every == 0:
                state = _state(step + 1, best, model, optimiser, average, first_process)
                if first_process:
                    _save(state, out, config.keep_states)
                accelerator.wait_for_everyone()
    if average:
        average.swap()
    model.eval()


def _gradients(
    accelerator: Any, model: nn.Module, losses: Callable[[nn.Module, Any], Losses], batches: Iterator[Any], parts: int
) -> tuple[Losses, Any]:
    """Add up the gradients of the next `parts` batches, over the processes at the last: mean terms, last batch."""
    total: Losses = {}
    for part in range(parts):
        batch = next(batches)
        with nullcontext() if part + 1 == parts else accelerator.no_sync(model):
            terms = losses(model, batch)
            accelerator.backward(terms["loss"] / parts)
        for name, value in terms.items():
            total[name] = total.get(name, 0) + value.detach().float() / parts
    return total, batch


def run_facts(config: TrainConfig) -> dict[str, Any]:
    """The recipe and the check sums of the lists it trains on: what must be the same when a run goes on."""
    data = config.data
    lists = [Path(data.manifest)] if data.manifest else [Path(data.sounds) / "manifest.csv"] if data.sounds else []
    sums = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in lists if path.is_file()}
    return {**to_dict(config), "lists": sums}


def _check(
    model: nn.Module,
    average: _Average | None,
    check: Callable[[], dict[str, float]],
    keep: Callable[[], object] | None,
    best: float,
    first_process: bool,
) -> tuple[dict[str, float], float]:
    """What `check` says of the averaged weights, in the first process; and the best first number so far, kept."""
    from accelerate.utils import broadcast_object_list

    with _averaged(model, average), torch.no_grad():
        with sharding.gathered(model):
            checked = check() if first_process else {}
        number = next(iter(checked.values()), -math.inf)
        (better,) = broadcast_object_list([number > best])
        if keep and better:
            keep()
            best = number
    return checked, best


def _state(
    step: int, best: float, model: nn.Module, optimiser: Any, average: _Average | None, first_process: bool
) -> dict[str, Any]:
    """All that a run goes on with; of a sharded model whole, in the first process."""
    state = {"step": step, "best": best, "model": _learning(model), "optimiser": optimiser.state_dict()}
    if average:
        state["average"] = average.state
    return sharding.to_cpu(state, keep=first_process) if sharding.is_sharded(model) else state


def _states(out: Path) -> list[Path]:
    """The saved states, the oldest first."""
    return sorted(out.glob("state-*.pt"))


def _resume(out: Path, model: nn.Module, optimiser: Any, average: _Average | None) -> tuple[int, float]:
    """Load the last state of a run that stopped: the step to go on with and the best check; (0, -inf) without one."""
    states = _states(out)
    if not states:
        return 0, -math.inf
    try:
        state = torch.load(states[-1], weights_only=True, map_location="cpu")
        learning = _learning(model)
        for name, value in (state["model"] | state.get("average", {})).items():
            if value.shape != learning[name].shape:
                raise ValueError(f"{name} has another shape")
        _put({name: sharding.cut_as(value, learning[name]) for name, value in state["model"].items()}, model)
        trained = [p for group in optimiser.param_groups for p in group["params"]]
        for number, moments in state["optimiser"]["state"].items():
            for name, value in moments.items():
                if name != "step":
                    moments[name] = sharding.cut_as(value, trained[number])
        optimiser.load_state_dict(state["optimiser"])
        if average:
            average.state = {name: sharding.cut_as(value, learning[name]) for name, value in state["average"].items()}
        return int(state["step"]), float(state["best"])
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        remedy = f"remove it to go on from {states[-2].name}" if len(states) > 1 else "remove it to begin again"
        raise TrainingError(f"{states[-1]}: the state cannot be read ({reason}); {remedy}") from None


def memory(model: nn.Module, config: TrainConfig) -> int:
    """Bytes that a process needs for certain: weights; of what is trained also gradient, AdamW's moments, average."""
    copies = 4 + bool(config.optim.average)
    parts = [(sharding.own(p), p.requires_grad) for p in model.parameters()]
    return sum(p.numel() * p.element_size() * (copies if trained else 1) for p, trained in parts)


def require_memory(model: nn.Module, config: TrainConfig, device: torch.device) -> None:
    """TrainingError when the GPU is plainly too small, before the model is moved there."""
    if device.type != "cuda":
        return
    there, needed = torch.cuda.get_device_properties(device).total_memory, memory(model, config)
    if needed > there:
        raise TrainingError(
            f"the GPU has {there / 1e9:.0f} GB, the model without any clip needs {needed / 1e9:.0f}: {LESS_MEMORY}"
        )


def _overview(
    console: Console,
    config: TrainConfig,
    model: nn.Module,
    steps: str,
    processes: int,
    clips: tuple[int, int] | None,
) -> None:
    """What is about to happen: the parts with their parameters, the clips, the steps, the memory that is certain."""
    table = Table("part", "trained", "frozen", box=SIMPLE_HEAD)
    for name, part in model.named_children():
        counts = {True: 0, False: 0}
        for p in part.parameters():
            counts[p.requires_grad] += p.numel()
        table.add_row(name, f"{counts[True]:,}", f"{counts[False]:,}")
    console.print(table)
    if clips:
        console.print(f"{clips[0]:,} clips to train on, {clips[1]:,} to check on")
    optim = config.optim
    each = f"{optim.batch * optim.accumulate} clips each" + (f" in {processes} processes" if processes > 1 else "")
    console.print(f"stage {config.stage}: steps {steps}, {each} -> {config.out}")
    needed = f"{memory(model, config) / 1e9:.2f} GB" + (" in each process" if processes > 1 else "")
    console.print(f"memory for weights, gradients and optimiser: {needed}, and what the clips take")


def _progress(console: Console) -> Progress:
    """A bar with the time left, where somebody looks."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=console.quiet or not console.is_terminal)


class _Log:
    """log.jsonl, a line a step, and TensorBoard's files where that is installed; cut to the step of a resumed run."""

    def __init__(self, out: Path, first: int, active: bool):
        self.file: Any = None
        self.board: Any = None
        if not active:
            return
        path = out / "log.jsonl"
        # the steps since the last state are done, and logged, once more
        logged = path.read_text().splitlines(keepends=True)[:first] if path.exists() else []
        write(path, "".join(logged))
        self.file = path.open("a")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=first)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        for sink in filter(None, (self.file, self.board)):
            sink.close()

    def write(self, line: dict[str, Any]) -> None:
        if self.file:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        if self.board:
            for name, value in line.items():
                if name not in ("step", "seconds") and isinstance(value, int | float):
                    self.board.add_scalar(name, value, line["step"])


def _means(accelerator: Any, terms: dict[str, Tensor]) -> dict[str, float]:
    """The terms as numbers, averaged over the processes."""
    stacked = torch.stack([value.detach().float() for value in terms.values()])
    return dict(zip(terms, accelerator.reduce(stacked, "mean").tolist(), strict=True))


@contextmanager
def _averaged(model: nn.Module, average: _Average | None) -> Iterator[None]:
    """The averaged weights in the model's place, in evaluation mode."""
    if average:
        average.swap()
    model.eval()
    yield
    model.train()
    if average:
        average.swap()


def _save(state: dict[str, Any], out: Path, keep: int) -> None:
    """A state, whole or not at all; the last `keep` stay."""
    path = out / f"state-{state['step']:08d}.pt"
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise TrainingError(f"{path}: the state cannot be written ({error}); the last one is kept") from None
    for old in _states(out)[:-keep]:
        old.unlink()


def write(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
