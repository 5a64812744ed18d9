"""The contract of an audio encoder: the only thing that the rest of `lamb` knows about one.

An encoder owns its front end, sample rate, stride and mask; nobody outside recomputes them (our choice).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Encoder(nn.Module):
    """h_a = E_a(x_a) (paper section 1): waveforms to time-ordered audio tokens.

    Letters: B batch, T samples, N tokens of the longest clip, D encoder width.
    """

    sample_rate: int  # Hz, of the waveform that `forward` expects
    frame_rate: float  # tokens a second
    dim: int  # D
    options: Mapping[str, Any] | None = None  # arguments that build it again; None: checkpoints refer to its source
    can_spec_augment = False  # whether it applies SpecAugment in training mode while `spec_augment` is set
    spec_augment = False

    def forward(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """waveform (B, T) float, mask (B, T) bool, True where the clip is -> tokens (B, N, D), mask (B, N) bool.

        A clip's tokens must not depend on its neighbours in the batch, nor on the amount of padding.
        """
        raise NotImplementedError

    def add_lora(self, rank: int, alpha: float, dropout: float) -> None:
        """Freeze the weights and add trainable low-rank updates. NotImplementedError where there are none."""
        raise NotImplementedError

    def merge_lora(self) -> None:
        """Fold the low-rank updates into the weights and remove them."""
        raise NotImplementedError
