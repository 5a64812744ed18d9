"""Positional encoding: sinusoids of their time are added to the encoder's tokens. (our choice)

For encoders whose tokens do not carry their position, such as convolutional ones; CED has learnt position embeddings.
A quarter of the dimensions each is the sine and the cosine of the position relative to the clip's length N,

    pi * (i + 1/2) / N * 16^k      k from 0 to 1: periods from twice the clip to an eighth of it

and as much of the position in tokens,

    2 pi * (i + 1/2) / (4 * 64^k)  k from 0 to 1: periods from 4 to 256 tokens
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PositionalEncoding(nn.Module):
    """h_a (B, N_a, D), mask (B, N_a) -> h_a (B, N_a, D)."""

    def forward(self, h_a: Tensor, mask: Tensor) -> Tensor:
        return h_a + sinusoids(mask, h_a.shape[-1])


def sinusoids(mask: Tensor, dim: int) -> Tensor:
    """The encoding of tokens with mask (B, N): (B, N, dim)."""
    index = torch.arange(mask.shape[1], device=mask.device) + 0.5  # (N,)
    steps = torch.linspace(0, 1, dim // 4, device=mask.device)
    relative = index[:, None] / mask.sum(1)[:, None, None] * torch.pi * 16**steps  # (B, N, dim / 4)
    absolute = (index[:, None] * 2 * torch.pi / (4 * 64**steps)).expand_as(relative)
    encoding = torch.cat([relative.sin(), relative.cos(), absolute.sin(), absolute.cos()], -1)
    return F.pad(encoding, (0, dim % 4))
