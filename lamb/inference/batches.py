"""Sounds and tokens of any lengths through the model, in padded batches of similar length, results in input order."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..config import DecodeConfig
from ..model.lamb import LambModel
from .generation import Hypothesis, generate
from .weighing import Weigher

Item = TypeVar("Item", np.ndarray, Tensor)
Result = TypeVar("Result")
SILENCE = Hypothesis("Silence.", 0.0)  # measured, not guessed: see lamb.audio.reader.SILENCE_DBFS


def encode(model: LambModel, waveforms: Sequence[np.ndarray], size: int) -> list[Tensor]:
    """Samples (T,) at the encoder's rate -> tokens h_a (N_a, D) of each, `size` at a time."""

    @torch.inference_mode()
    def part(batch: list[np.ndarray]) -> list[Tensor]:
        lengths = torch.tensor([len(x) for x in batch])
        waveform = torch.zeros(len(batch), int(lengths.max()))  # (B, T)
        for row, x in zip(waveform, batch, strict=True):
            row[: len(x)] = torch.from_numpy(x)
        mask = torch.arange(waveform.shape[1]) < lengths[:, None]
        h_a, valid = model.encode(waveform.to(model.device), mask.to(model.device))  # (B, N_a, D), (B, N_a)
        return [row[row_mask] for row, row_mask in zip(h_a, valid, strict=True)]

    return _by_length(waveforms, size, part)


def describe(
    model: LambModel, tokens: Sequence[Tensor], options: DecodeConfig, n_best: int = 1, seed: int | None = None
) -> list[list[Hypothesis]]:
    """Tokens h_a (N_a, D) -> the hypotheses of each, best first, `options.batch_size` at a time."""

    @torch.inference_mode()
    def part(batch: list[Tensor]) -> list[list[Hypothesis]]:
        h_a = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)  # (B, N_a, D)
        lengths = torch.tensor([len(x) for x in batch], device=h_a.device)
        mask = torch.arange(h_a.shape[1], device=h_a.device) < lengths[:, None]  # (B, N_a)
        z_a, valid = model.audio_tokens(h_a, mask)
        if not options.weigh.enabled or seed is not None:
            return generate(model, z_a, valid, options, n_best, seed)
        found = generate(model, z_a, valid, options, max(options.beams, n_best))
        return [row[:n_best] for row in Weigher(model, options).choose(h_a, mask, z_a, valid, found)]

    return _by_length(tokens, options.batch_size, part)


def _by_length(items: Sequence[Item], size: int, part: Callable[[list[Item]], list[Result]]) -> list[Result]:
    results: dict[int, Result] = {}
    order = sorted(range(len(items)), key=lambda k: len(items[k]))
    for begin in range(0, len(order), size):
        batch = order[begin : begin + size]
        results.update(zip(batch, part([items[k] for k in batch]), strict=True))
    return [results[k] for k in range(len(items))]
