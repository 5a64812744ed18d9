"""Channel dropout: in training, a clip lacks a share of the encoder's channels in all of its tokens. (our choice)

A frozen encoder answers more clearly to the recordings that it was trained on than to any others. With some of its
channels missing, the parts behind it learn to rely on less.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ChannelDropoutConfig


class ChannelDropout(nn.Module):
    """h_a (B, N_a, D), mask (B, N_a) -> h_a (B, N_a, D); the identity in evaluation."""

    def __init__(self, config: ChannelDropoutConfig) -> None:
        super().__init__()
        self.rate = config.rate

    def forward(self, h_a: Tensor, mask: Tensor) -> Tensor:
        if not self.training:
            return h_a
        return h_a * F.dropout(h_a.new_ones(len(h_a), 1, h_a.shape[2]), self.rate, self.training)  # (B, 1, D)
