"""What a stage of training provides to the loop in `loop.py`.

The stages are in `distill.py`, `language_model_stage.py` and `lamb_stage.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from ..data.loader import Share
from ..model.language_model import LanguageModel
from ..model.losses import weights_of

Losses = dict[str, Tensor]


class Stage(ABC):
    """One stage of training: a module that learns, its batches and its loss. Built from a TrainConfig."""

    module: nn.Module  # trained in place
    epoch: int = 0  # batches of an epoch; 0 where the data has no epochs
    clips: tuple[int, int] | None = None  # how many clips there are to train on and to check on, to be shown

    @abstractmethod
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of AdamW, each with its peak learning rate."""

    @abstractmethod
    def batch(self, index: int, share: Share) -> dict[str, Any]:
        """This process's share of batch number `index`, a function of the seed and `index`; made in the background."""

    def weights(self, batches: Sequence[dict[str, Any]]) -> list[float]:
        """What each of the batches of a step counts (`optim.accumulate`), 1 on average."""
        return [1.0] * len(batches)

    @abstractmethod
    def loss(self, forward: nn.Module, batch: dict[str, Any]) -> Losses:
        """Named terms to log; "loss" is minimised. `forward` is `module`, wrapped in DDP if there are processes.

        `batch["weight"]` is the batch's number among `weights`.
        """

    def check(self) -> dict[str, float]:
        """Numbers to log, measured with the averaged weights, in the first process only. The first one is the score
        that `save_best` goes by, higher is better."""
        return {}

    def save_best(self, write: bool) -> None:  # noqa: B027  a stage without a score has nothing to do here
        """Called where the score is the highest so far, in every process; only the one with `write` writes files."""

    @abstractmethod
    def save(self, write: bool) -> None:
        """Write the result into `config.out`; called as `save_best` is, at the end."""


def caption_weights(llm: LanguageModel, batches: Sequence[dict[str, Any]]) -> list[float]:
    """The `weights` of batches whose loss is a mean over the tokens of their captions and the ends of these."""
    if len(batches) == 1:
        return [1.0]
    counts = [int(llm.tokenize(batch["captions"])[1].sum()) + len(batch["captions"]) for batch in batches]
    return weights_of(counts, llm.embedding_matrix.device)


def param_groups(named: Iterable[tuple[str, nn.Parameter]], lr: float, decay: float) -> list[dict[str, Any]]:
    """Groups of the parameters that learn: those with fewer than 2 dimensions have no weight decay. [O]"""
    trained = [p for _, p in named if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "lr": lr, "weight_decay": decay},
        {"params": [p for p in trained if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
    ]
