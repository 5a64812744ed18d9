"""The training loop of every stage: AdamW and a cosine schedule [P], gradient clipping and a moving average [O].

A step is a function of (weights, optimiser, seed, step number) and of nothing else: the number seeds the batch and the
dropout. A run that was killed continues from its last state and, on a CPU, ends with the same weights bit for bit.

Under `torchrun`, each process makes its share of every batch, and the gradients are averaged (DDP, by `accelerate`).
Terms that compare the clips of a batch (`lamb.model.losses`) gather them from all processes first, so that several
processes learn what one would. `sharding` splits an LLM that is too large for one GPU; saved states are whole anyway.
With `optim.accumulate`, a step adds up the gradients of several batches. The global divergence and InfoNCE still see
one batch at a time: more processes, not more accumulation, give them more clips to compare.
"""

import json
import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from ..audio.files import write
from ..config import ConfigError, OptimConfig, TrainConfig
from ..data import loader
from . import sharding
from .device import TrainingError, device_of, is_first_process, precision_of
from .run_log import RunLog, overview, progress_bar
from .stage import Losses, Stage
from .state import EMA, RunState, run_facts


def fit(config: TrainConfig, stage: Stage) -> None:
    """Train `stage.module` in place, and write recipe.json, log.jsonl and states into the folder `config.out`.

    The module ends with its averaged weights, in evaluation mode. Raises TrainingError if a loss or a gradient is not
    finite, or if a state cannot be read or written.
    """
    from accelerate import Accelerator
    from accelerate.utils import gather_object

    # The model on its device, in DDP if there are several processes, with its optimiser
    out, model = Path(config.out), stage.module
    optim, check_every = in_steps(config, stage.epoch)
    accelerator = Accelerator(cpu=device_of(config).type == "cpu", mixed_precision=precision_of(config))
    process, processes, first_process = accelerator.process_index, accelerator.num_processes, is_first_process()
    groups = [{**g, "params": kind} for g in stage.param_groups() for kind in sharding.apart(g["params"])]
    optimiser: Any = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    peak = [group["lr"] for group in optimiser.param_groups]
    forward, optimiser = accelerator.prepare(model, optimiser)

    # The state to continue from
    state = RunState(model, optimiser, EMA(model, optim.ema_decay) if optim.ema_decay else None)
    state.resume(out)
    if len(set(gather_object([state.step]))) > 1:
        raise TrainingError(f"{out}: the processes find different states there; use a folder that all nodes share")
    if first_process:
        out.mkdir(parents=True, exist_ok=True)
        write(out / "recipe.json", json.dumps(run_facts(config), indent=1))  # from here on, the folder holds a run

    first, accumulate = state.step, optim.accumulate
    batches = loader.background(
        lambda index: stage.batch(index, (process, processes)),
        first * accumulate,
        optim.steps * accumulate,
        config.data.workers,
    )
    console = Console(stderr=True, quiet=not first_process)
    overview(console, config, stage, optim, first, processes)
    began = time.time()
    model.train()
    with RunLog(out, first, first_process) as log, progress_bar(console) as bar:
        task = bar.add_task("", total=optim.steps, completed=first)
        for step in range(first, optim.steps):
            torch.manual_seed(int(np.random.SeedSequence((config.seed, step, process)).generate_state(1)[0]))
            factor = schedule(step, optim)
            for group, lr in zip(optimiser.param_groups, peak, strict=True):
                group["lr"] = lr * factor

            # Gradients of `accumulate` batches; the processes average theirs at the last one
            optimiser.zero_grad(set_to_none=True)
            terms: dict[str, Tensor] = {}
            parts = [next(batches) for _ in range(accumulate)]
            for part, (batch, weight) in enumerate(zip(parts, stage.weights(parts), strict=True)):
                with nullcontext() if part + 1 == accumulate else accelerator.no_sync(forward):
                    losses = stage.loss(forward, {**batch, "weight": weight})
                    accelerator.backward(losses["loss"] / accumulate)
                for name, value in losses.items():
                    terms[name] = terms.get(name, 0) + value.detach().float() / accumulate
            terms["norm"] = sharding.clip_grad_norm(trained, optim.grad_clip)
            shown = _means(accelerator, terms)
            if not all(map(math.isfinite, shown.values())):
                raise TrainingError(
                    f"step {step + 1}: a loss or the gradient is not finite: {shown}; the last state is kept; "
                    f"the clips of this step: {[name for b in parts for name in b.get('ids') or b.get('captions', ())]}"
                )
            optimiser.step()
            if state.ema:
                state.ema.update(step)
            state.step = step + 1

            # Log, check, save
            line = {"step": step + 1, **{name: round(value, 4) for name, value in shown.items()}}
            line |= {"lr": peak[0] * factor, "seconds": round(time.time() - began, 1)}
            check_now = step + 1 == optim.steps or (step + 1) % check_every == 0
            if check_now:
                line |= _check(stage, state, first_process)
                console.print("  ".join(f"{name} {value:g}" for name, value in line.items() if name != "seconds"))
            rate = (step + 1 - first) * optim.batch * accumulate / (time.time() - began)
            bar.update(task, advance=1, description=f"loss {shown['loss']:.3f}, {rate:.0f} clips/s")
            log.write(line)  # before the state: a log may be ahead of it, never behind
            if check_now or (step + 1) % config.save_every == 0:
                state.save(out, config.keep_states, write=first_process)
                accelerator.wait_for_everyone()
    if state.ema:
        state.ema.swap()
    model.eval()


def in_steps(config: TrainConfig, epoch: int) -> tuple[OptimConfig, int]:
    """`config.optim` with `steps` and `warmup`, where the recipe counts in epochs; and the steps between two checks.

    Args:
        epoch: batches of an epoch.
    """
    optim = config.optim
    if not optim.epochs:
        return optim, config.save_every
    if not epoch:
        raise ConfigError("optim.epochs: only the clips of data.manifest have epochs", "give optim.steps")
    steps, warmup = (epochs * epoch // optim.accumulate for epochs in (optim.epochs, optim.warmup_epochs))
    return replace(optim, steps=steps, warmup=warmup), epoch // optim.accumulate


def schedule(step: int, optim: OptimConfig) -> float:
    """The factor of the learning rate: a linear warm-up, then a cosine to 0. [P]"""
    if step < optim.warmup:
        return (step + 1) / optim.warmup
    progress = (step - optim.warmup) / max(1, optim.steps - optim.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _check(stage: Stage, state: RunState, first_process: bool) -> dict[str, float]:
    """What `stage.check` measures with the averaged weights, in the first process; the best model is saved."""
    from accelerate.utils import broadcast_object_list

    with state.averaged(), torch.no_grad():
        with sharding.gathered(stage.module):
            checked = stage.check() if first_process else {}
        (score,) = broadcast_object_list([next(iter(checked.values()), -math.inf)])
        if score > state.best:
            state.best = score
            stage.save_best(write=first_process)
    return checked


def _means(accelerator: Any, terms: Losses) -> dict[str, float]:
    """The terms as numbers, averaged over the processes."""
    stacked = torch.stack([value.detach().float() for value in terms.values()])
    return dict(zip(terms, accelerator.reduce(stacked, "mean").tolist(), strict=True))
