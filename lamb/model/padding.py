"""Sequences of many lengths as one batch; the mask keeps the padding out of everything."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pad(rows: Sequence[np.ndarray | Tensor], value: float = 0) -> tuple[Tensor, Tensor]:
    """Arrays or tensors (N, ...) of many lengths N -> a batch (B, N, ...) padded at the end, and its mask (B, N)."""
    tensors = [torch.as_tensor(row) for row in rows]
    batch = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)  # (B, N, ...)
    lengths = torch.tensor([len(row) for row in tensors], device=batch.device)
    return batch, torch.arange(batch.shape[1], device=batch.device) < lengths[:, None]
