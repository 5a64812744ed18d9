"""The training loop of every stage: AdamW, a cosine schedule [P], clipping, a moving average, on one process or many.

A step is a pure function of (weights, optimiser, seed, step): batches and dropout are seeded by the step's number, so a
run that was killed goes on from its last state and ends, on a CPU, with the same weights bit for bit.

Under `torchrun` each process makes its share of every batch, and the gradients are averaged (DDP, by `accelerate`).
Terms over the whole batch (`lamb.losses`) gather it first, so that the processes learn what one process would.
With `optim.accumulate` a step sums the gradients of several batches. The global divergence and InfoNCE still see one
batch at a time: more processes, not more accumulation, give them more clips to compare.
"""

import hashlib
import json
import math
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from .config import OptimConfig, TrainConfig, to_dict
from .data import loader

Losses = dict[str, Tensor]


class TrainingError(ValueError):
    """Training that cannot go on: the step, the terms, and what is kept."""


def device_of(config: TrainConfig) -> torch.device:
    """Where this process trains: its own GPU if there is one, unless the recipe says cpu."""
    from accelerate import PartialState

    return PartialState(cpu=config.device == "cpu" or not torch.cuda.is_available()).device


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
    if state.keys() != _learning(model).keys():
        raise ValueError("it holds other tensors than the model learns")
    model.load_state_dict(state, strict=False)


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
) -> bool:
    """Train `model` in place and write recipe.json, log.jsonl and, every `save_every` steps, a state into `out`.

    Args:
        parameters: groups for AdamW.
        make: (batch number, share) -> this process's part of a batch, in a background process.
        losses: (model to call, batch) -> named terms to log; the term "loss" is minimised.
        check: numbers to log at every save, taken with the averaged weights by the first process.
        keep: called where the first of these numbers is the highest so far, with the averaged weights in `model`.
        epoch: batches of an epoch, where the data has epochs.

    Returns whether this is the first process, the one that writes the result. Raises TrainingError when a term or
    gradient is not finite, or a state cannot be written or read.
    """
    from accelerate import Accelerator

    optim = config.optim
    if optim.epochs:
        steps = epoch // optim.accumulate
        optim = replace(optim, steps=optim.epochs * steps, warmup=optim.warmup_epochs * steps)
    on_cpu = device_of(config).type == "cpu"
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no" if on_cpu else "bf16")
    share = (accelerator.process_index, accelerator.num_processes)
    first_process = accelerator.is_main_process
    optimiser: Any = torch.optim.AdamW(parameters, betas=(0.9, 0.98))
    base = [group["lr"] for group in optimiser.param_groups]
    prepared, optimiser = accelerator.prepare(model, optimiser)
    average = _Average(model, optim.average) if optim.average else None
    first, best = _resume(out, model, optimiser, average)
    if first_process:
        out.mkdir(parents=True, exist_ok=True)
        write(out / "recipe.json", json.dumps(run_facts(config), indent=1))  # from here on, the folder holds a run
    console = Console(stderr=True, quiet=not first_process)
    _overview(console, config, model, f"{first} to {optim.steps}" if first else f"{optim.steps}", share[1])
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
            norm = accelerator.clip_grad_norm_([p for g in parameters for p in g["params"]], optim.clip)
            shown = _means(accelerator, {**total, "norm": norm})
            if not all(map(math.isfinite, shown.values())):
                clips = batch.get("ids", batch.get("captions")) if isinstance(batch, dict) else batch
                raise TrainingError(
                    f"step {step + 1}: loss or gradient is not finite: {shown}; the last state is kept; "
                    f"its clips: {clips}"
                )
            optimiser.step()
            if average:
                average.update(step)
            line = {"step": step + 1, **{name: round(value, 4) for name, value in shown.items()}}
            line |= {"lr": base[0] * factor, "seconds": round(time.time() - began, 1)}
            save_now = step + 1 == optim.steps or (step + 1) % config.save_every == 0
            if save_now and first_process:
                with _averaged(model, average), torch.no_grad():
                    checked = check()
                    first_number = next(iter(checked.values()), -math.inf)
                    if keep and first_number > best:
                        best = first_number
                        keep()
                line |= checked
                console.print("  ".join(f"{name} {value:g}" for name, value in line.items() if name != "seconds"))
            rate = (step + 1 - first) * optim.batch * optim.accumulate / (time.time() - began)
            progress.update(task, advance=1, description=f"loss {shown['loss']:.3f}, {rate:.0f} clips/s")
            log.write(line)  # before the state: a log may be ahead of it, never behind
            if save_now and first_process:
                state = {
                    "step": step + 1,
                    "best": best,
                    "model": _learning(model),
                    "optimiser": optimiser.state_dict(),
                }
                if average:
                    state["average"] = average.state
                _save(state, out, config.keep_states)
            if save_now:
                accelerator.wait_for_everyone()
    if average:
        average.swap()
    model.eval()
    return first_process


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
        _put(state["model"], model)
        optimiser.load_state_dict(state["optimiser"])
        if average:
            average.state = {name: value.to(average.state[name].device) for name, value in state["average"].items()}
        return int(state["step"]), float(state["best"])
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        remedy = f"remove it to go on from {states[-2].name}" if len(states) > 1 else "remove it to begin again"
        raise TrainingError(f"{states[-1]}: the state cannot be read ({reason}); {remedy}") from None


def _overview(console: Console, config: TrainConfig, model: nn.Module, steps: str, processes: int) -> None:
    """What is about to happen: the parts with their parameters, the steps and the memory that is certain."""
    table = Table("part", "trained", "frozen", box=SIMPLE_HEAD)
    needed = 0
    for name, part in model.named_children():
        counts = {True: 0, False: 0}
        for p in part.parameters():
            counts[p.requires_grad] += p.numel()
            # weights; of what is trained also the gradient, AdamW's two moments and the average
            needed += p.numel() * (p.element_size() * (1 + p.requires_grad) + 8 * p.requires_grad)
            needed += p.numel() * p.element_size() * bool(config.optim.average) * p.requires_grad
        table.add_row(name, f"{counts[True]:,}", f"{counts[False]:,}")
    console.print(table)
    optim = config.optim
    clips = f"{optim.batch * optim.accumulate} clips" + (f" in {processes} processes" if processes > 1 else "")
    console.print(f"stage {config.stage}: steps {steps}, {clips} each -> {config.out}")
    console.print(f"memory for weights, gradients and optimiser: {needed / 1e9:.2f} GB, and what the clips take")
    device = next(model.parameters()).device
    if device.type == "cuda" and needed > torch.cuda.get_device_properties(device).total_memory:
        raise TrainingError(
            f"the GPU has {torch.cuda.get_device_properties(device).total_memory / 1e9:.0f} GB, the model alone needs "
            f"{needed / 1e9:.0f}: train less of it (model.llm.train=lora), a smaller LLM, or without optim.average"
        )


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
