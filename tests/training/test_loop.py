"""The loop on a stage of three weights, whose gradients are known, so that its steps can be followed by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lamb.config import DataConfig, OptimConfig, TrainConfig
from lamb.training.loop import fit
from lamb.training.stage import Losses, Stage
from lamb.training.state import EMA

LR = 0.01  # of the stage's group


class Toy(Stage):
    """Weights (1, 3) from 0, a gradient for each step, and a score for each check; the best weights are kept."""

    def __init__(self, gradients: list[list[float]], scores: list[float] | None = None, decay: float = 0.0):
        self.module = nn.Linear(3, 1, bias=False)
        nn.init.zeros_(self.module.weight)
        self.gradients, self.scores, self.decay = gradients, iter(scores or []), decay
        self.best: list[list[float]] = []

    @property
    def learnt(self) -> list[float]:
        return self.module.weight[0].tolist()

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.module.weight], "lr": LR, "weight_decay": self.decay}]

    def batch(self, index: int, share: Any) -> dict[str, Any]:
        return {"x": torch.tensor([self.gradients[index]])}

    def loss(self, forward: nn.Module, batch: dict[str, Any]) -> Losses:
        return {"loss": forward(batch["x"]).sum()}

    def check(self) -> dict[str, float]:
        return {"score": score} if (score := next(self.scores, None)) is not None else {}

    def save_best(self, write: bool) -> None:
        self.best.append(self.learnt)

    def save(self, write: bool) -> None:
        pass


def toy_config(out: Path, steps: int, **optim: Any) -> TrainConfig:
    """No warm-up; `optim.lr` is another one than the group's, and is not used."""
    optim = {"lr": 1.0, "steps": steps, "warmup": 0, **optim}
    return TrainConfig(out=str(out), device="cpu", save_every=1, data=DataConfig(workers=0), optim=OptimConfig(**optim))


def adamw(gradients: list[list[float]], decay: float = 0.0) -> list[np.ndarray]:
    """The weights after each step, from 0, by the formula of AdamW with our betas, on half a cosine."""
    w, m, v, found = np.zeros(3), np.zeros(3), np.zeros(3), []
    for k, gradient in enumerate(gradients):
        g, lr = np.array(gradient), LR * 0.5 * (1 + math.cos(math.pi * k / len(gradients)))
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
        step = (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.98 ** (k + 1))) + 1e-8)
        w = w - lr * decay * w - lr * step
        found.append(w)
    return found


SMALL = [[0.5, -0.2, 0.1], [-0.1, -0.3, 0.4], [0.2, 0.6, 0.0]]  # of norms below 1


def test_the_steps_are_those_of_adamw(tmp_path):
    stage = Toy(SMALL, decay=0.5)
    fit(toy_config(tmp_path, 3), stage)
    assert stage.learnt == pytest.approx(adamw(SMALL, decay=0.5)[-1], rel=1e-5)


@pytest.mark.parametrize("limit", [1.0, 0.5])
def test_a_huge_gradient_counts_as_one_of_the_largest_norm(tmp_path, limit):
    """Its direction stays, and the log has its own norm."""
    stage = Toy([[3000.0, 0.0, -4000.0], [0.1, 0.2, 0.3]])
    fit(toy_config(tmp_path, 2, grad_clip=limit), stage)
    cut = [[0.6 * limit, 0.0, -0.8 * limit], [0.1, 0.2, 0.3]]  # the norm of the second, 0.37, is below both
    assert stage.learnt == pytest.approx(adamw(cut)[-1], rel=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["norm"] for line in lines] == pytest.approx([5000, 0.14**0.5], abs=1e-4)


def test_two_steps_of_the_average():
    """By hand: the decay is 1/10 at step 0, and at step 1 the largest one, as 2/11 is above it."""
    model = nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([10.0, -1.0]))
    average = EMA(model, 0.15)
    for step, weights in enumerate(([20.0, 1.0], [40.0, 0.0])):
        with torch.no_grad():
            model.weight.copy_(torch.tensor(weights))
            model.num_batches_tracked += 3
        average.update(step)
    # 0.1 * (10, -1) + 0.9 * (20, 1) = (19, 0.8), then 0.15 * (19, 0.8) + 0.85 * (40, 0)
    assert average.tensors["weight"].tolist() == pytest.approx([36.85, 0.12], rel=1e-6)
    assert average.tensors["num_batches_tracked"] == 6, "a count is copied"
    average.swap()
    assert model.weight.tolist() == pytest.approx([36.85, 0.12], rel=1e-6)
    average.swap()
    assert model.weight.tolist() == [40.0, 0.0]


def test_a_run_ends_with_the_average_of_its_weights(tmp_path):
    """It is what the checks measure, while the optimiser goes on from the weights themselves."""
    stage = Toy(SMALL, scores=[1.0, 2.0, 3.0])
    fit(toy_config(tmp_path, 3, ema_decay=0.15), stage)
    average, averages = np.zeros(3), []
    for decay, own in zip((0.1, 0.15, 0.15), adamw(SMALL), strict=True):
        average = decay * average + (1 - decay) * own
        averages.append(average)
    np.testing.assert_allclose(stage.best, averages, rtol=1e-5)
    assert stage.learnt == pytest.approx(averages[-1], rel=1e-5)
    assert not stage.module.training


def test_the_best_model_stays_where_later_scores_fall(tmp_path):
    """Neither a lower score nor an equal one replaces it, nor does a run that goes on after a stop."""
    gradients, scores = SMALL + SMALL, [0.3, 0.9, 0.5, 0.9, 0.1, 0.8]
    expected = [pytest.approx(weights, rel=1e-5) for weights in adamw(gradients)[:2]]
    whole = Toy(gradients, scores)
    fit(toy_config(tmp_path / "whole", 6), whole)
    assert whole.best == expected

    stopped = Toy(gradients[:4], scores)  # its batches end at step 4
    with pytest.raises(IndexError):
        fit(toy_config(tmp_path / "stopped", 6), stopped)
    assert stopped.best == expected
    resumed = Toy(gradients, scores[4:])
    fit(toy_config(tmp_path / "stopped", 6), resumed)
    assert resumed.best == []
    assert resumed.learnt == whole.learnt


def test_without_a_score_no_model_is_the_best(tmp_path):
    stage = Toy(SMALL)
    fit(toy_config(tmp_path, 3), stage)
    assert stage.best == []


def test_tensorboard_gets_the_numbers_of_the_log(tmp_path):
    """Each step once, also where a run has gone on from a state that is behind the log."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(toy_config(tmp_path, 4), save_every=2)
    with pytest.raises(IndexError):
        fit(config, Toy(SMALL, scores=[0.5]))  # three steps, of which two are saved
    fit(config, Toy(SMALL + SMALL, scores=[0.25]))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert set(events.Tags()["scalars"]) == {"loss", "norm", "lr", "score"}
    for name in events.Tags()["scalars"]:
        logged = {line["step"]: line[name] for line in lines if name in line}
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in shown] == list(logged) == ([2, 4] if name == "score" else [1, 2, 3, 4])
        assert dict(shown) == pytest.approx(logged, rel=1e-6)
