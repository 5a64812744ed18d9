"""The state of a run on disk, from which it continues after a stop, and the moving average of its weights."""

import hashlib
import json
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..audio.files import replacing
from ..config import ConfigError, TrainConfig, from_dict, to_dict
from ..data import sources
from ..errors import reason
from . import sharding
from .device import TrainingError


def run_facts(config: TrainConfig) -> dict[str, Any]:
    """The recipe and the check sums of the lists of recordings: what must not change when a run is resumed."""
    data = config.data
    tables = [Path(folder) / "manifest.csv" for folder in sources.folders(data.sounds)]
    lists = [Path(data.manifest)] if data.manifest else tables
    sums = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in lists if path.is_file()}
    return {**to_dict(config), "lists": sums}


def require_same_recipe(config: TrainConfig) -> None:
    """Raise ConfigError if `config.out` holds a run that was started with another recipe or list of recordings.

    It may go on on another device, with other numbers of threads and of background processes."""
    started = Path(config.out) / "recipe.json"
    if not started.exists():
        return
    before, now = json.loads(started.read_text()), run_facts(config)
    lists = before.pop("lists", None)
    try:  # an option that is new since has its default
        then = from_dict(TrainConfig, before)
    except ConfigError:  # an option that is no longer there
        then = None
    if then is None or _elsewhere(then) != _elsewhere(config) or lists != now["lists"]:
        what = "recipe" if lists == now["lists"] else "list of recordings"
        raise ConfigError(f"{config.out}: was started with another {what}; remove it, or choose another out=FOLDER")


def _elsewhere(config: TrainConfig) -> TrainConfig:
    """The same run on any machine."""
    return replace(config, device="auto", threads=None, data=replace(config.data, workers=1))


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes: all except frozen parameters, which need neither a state nor an average."""
    state = model.state_dict(keep_vars=True)
    return {n: t.detach() for n, t in state.items() if t.requires_grad or not isinstance(t, nn.Parameter)}


def _fill(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy `state` into the trained tensors of `model`; ValueError if it holds others."""
    tensors = trained_tensors(model)
    if state.keys() != tensors.keys():
        raise ValueError("it holds other tensors than the model trains")
    for name, tensor in tensors.items():
        tensor.copy_(state[name])


class EMA:
    """An exponential moving average of a model's trained tensors w: a = d a + (1 - d) w at every step t.

    d = min(decay, (1 + t) / (10 + t)) is small at first, so that the average forgets the random start.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.tensors = {name: value.clone() for name, value in trained_tensors(model).items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in trained_tensors(self.model).items():
            if value.is_floating_point():
                self.tensors[name].lerp_(value, 1 - decay)
            else:
                self.tensors[name].copy_(value)

    def swap(self) -> None:
        """Exchange the average and the model's own weights."""
        own = {name: value.clone() for name, value in trained_tensors(self.model).items()}
        _fill(self.model, self.tensors)
        self.tensors = own


@dataclass
class RunState:
    """All that a run needs to continue: weights, optimiser, average, the steps done and the best score of a check."""

    model: nn.Module
    optimiser: Any
    ema: EMA | None
    step: int = 0
    best: float = -math.inf

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights and is in evaluation mode."""
        if self.ema:
            self.ema.swap()
        self.model.eval()
        yield
        self.model.train()
        if self.ema:
            self.ema.swap()

    def save(self, out: Path, keep: int, write: bool) -> None:
        """Write state-STEP.pt, whole or not at all, and remove all but the last `keep` states.

        Every process calls this, for its part of a sharded model; only the one with `write` writes.
        """
        state = {
            "step": self.step,
            "best": self.best,
            "model": trained_tensors(self.model),
            "optimiser": self.optimiser.state_dict(),
            "ema": self.ema.tensors if self.ema else {},
        }
        if sharding.is_sharded(self.model):
            state = sharding.to_cpu(state, keep=write)
        if not write:
            return
        path = out / f"state-{self.step:08d}.pt"
        try:
            with replacing(path, durable=True) as part, part.open("wb") as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as error:
            raise TrainingError(f"{path}: the state cannot be written ({error}); the last one is kept") from None
        for old in _states(out)[:-keep]:
            old.unlink()

    def resume(self, out: Path) -> None:
        """Load the last state in `out`, if there is one; TrainingError if it cannot be read or does not fit."""
        states = _states(out)
        if not states:
            return
        try:
            state = torch.load(states[-1], weights_only=True, map_location="cpu")
            own = trained_tensors(self.model)
            for part in ("model", "ema"):
                for name, value in state[part].items():
                    if value.shape != own[name].shape:
                        raise ValueError(f"{name} has another shape")
                    state[part][name] = sharding.cut_as(value, own[name])
            trained = [p for group in self.optimiser.param_groups for p in group["params"]]
            for number, moments in state["optimiser"]["state"].items():
                for name, value in moments.items():
                    if name != "step":
                        moments[name] = sharding.cut_as(value, trained[number])
            _fill(self.model, state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            if self.ema:
                self.ema.tensors = state["ema"]
            self.step, self.best = int(state["step"]), float(state["best"])
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
            remedy = f"remove it to continue from {states[-2].name}" if len(states) > 1 else "remove it to start again"
            raise TrainingError(f"{states[-1]}: the state cannot be read ({reason(error)}); {remedy}") from None


def _states(out: Path) -> list[Path]:
    """The saved states, the oldest first."""
    return sorted(out.glob("state-*.pt"))
