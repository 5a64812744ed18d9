"""The model as inference runs it: sounds and tokens of any lengths, in padded batches of similar length. [O]

NumPy arrays and hypotheses go in and out, in the order of the input, so that nothing else in this room needs PyTorch.

Letters: T samples, N_a encoder tokens, D encoder width, N audio tokens, D_llm LLM width.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..audio.reader import centred
from ..config import DecodeConfig
from ..data.vocabulary import mentions
from ..model.lamb import LambModel
from ..model.padding import pad
from .generation import Hypothesis, generate
from .weighing import Weigher

Result = TypeVar("Result")


class Engine:
    """A `LambModel` on its device: sound -> h_a -> z_a -> hypotheses, one method a step."""

    def __init__(self, model: LambModel):
        self.model = model

    @property
    def sample_rate(self) -> int:
        """Hz of the samples that `encode` expects."""
        return self.model.encoder.sample_rate

    @property
    def frame_rate(self) -> float:
        """Encoder tokens per second."""
        return self.model.encoder.frame_rate

    @property
    def dim(self) -> int:
        """D, the width of an encoder token."""
        return self.model.encoder.dim

    @torch.inference_mode()
    def encode(self, waveforms: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
        """Samples (T,) at `sample_rate`, centred -> encoder tokens h_a (N_a, D) of each, `size` waveforms at a time."""
        waveforms = [centred(x) for x in waveforms]
        return _by_length(waveforms, size, lambda batch: _rows(*self.model.encode(*self._padded(batch))))

    @torch.inference_mode()
    def audio_tokens(self, tokens: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
        """Encoder tokens h_a (N_a, D) -> audio tokens z_a (N, D_llm) of each, `size` at a time."""
        return _by_length(tokens, size, lambda batch: _rows(*self.model.audio_tokens(*self._padded(batch))))

    @torch.inference_mode()
    def describe(
        self, tokens: Sequence[np.ndarray], options: DecodeConfig, n_best: int = 1, seed: int | None = None
    ) -> list[list[Hypothesis]]:
        """Encoder tokens h_a (N_a, D) -> the hypotheses of each, best first, `options.batch_size` at a time.

        After the best one follow alternatives that name other sounds (see `varied`).
        """

        def part(batch: list[np.ndarray]) -> list[list[Hypothesis]]:
            h_a, h_a_mask = self._padded(batch)  # (B, N_a, D), (B, N_a)
            z_a, mask = self.model.audio_tokens(h_a, h_a_mask)  # (B, N, D_llm), (B, N)
            if seed is not None or (n_best == 1 and not options.weigh.enabled):
                return generate(self.model, z_a, mask, options, n_best, seed)
            found = generate(
                self.model, z_a, mask, options, max(options.beams, n_best), scored=not options.weigh.enabled
            )
            if options.weigh.enabled:
                found = Weigher(self.model, options).choose(h_a, h_a_mask, z_a, mask, found)
            return [varied(row, n_best) for row in found]

        return _by_length(tokens, options.batch_size, part)

    def _padded(self, batch: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """(N, ...) each -> (B, N, ...) and the mask (B, N), on the model's device."""
        x, mask = pad(batch)
        return x.to(self.model.device), mask.to(self.model.device)


def varied(hypotheses: Sequence[Hypothesis], n: int) -> list[Hypothesis]:
    """The first of the hypotheses, and `n` - 1 alternatives in the order of their scores.

    Those that name other sounds than all before them come before mere rewordings.
    """
    named: set[frozenset[str]] = set()
    others: list[Hypothesis] = []
    again: list[Hypothesis] = []
    for hypothesis in hypotheses:
        sounds = frozenset().union(*(mention.labels for mention in mentions(hypothesis.text)))
        (again if sounds in named else others).append(hypothesis)
        named.add(sounds)
    best, *chosen = [*others, *again][:n]
    return [best, *sorted(chosen, key=lambda hypothesis: -hypothesis.score)]


def _rows(x: Tensor, mask: Tensor) -> list[np.ndarray]:
    """(B, N, D), mask (B, N) -> the valid rows (N, D) of each, as float32."""
    rows, valid = x.float().cpu(), mask.cpu()
    return [row[there].numpy() for row, there in zip(rows, valid, strict=True)]


def _by_length(
    items: Sequence[np.ndarray], size: int, part: Callable[[list[np.ndarray]], list[Result]]
) -> list[Result]:
    """`part` of all items, called with `size` of similar length at a time; results in the order of the items."""
    results: dict[int, Result] = {}
    order = sorted(range(len(items)), key=lambda k: len(items[k]))
    for begin in range(0, len(order), size):
        batch = order[begin : begin + size]
        results.update(zip(batch, part([items[k] for k in batch]), strict=True))
    return [results[k] for k in range(len(items))]
