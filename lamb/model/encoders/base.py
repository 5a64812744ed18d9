"""The contract of an audio encoder: the only thing that the rest of `lamb` knows about one.

An encoder owns its front end, sample rate, stride and mask; nobody outside recomputes them (our choice).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class Encoder(nn.Module):
    """h_a = E_a(x_a) (paper section 1): waveforms to time-ordered audio tokens.

    Letters: B batch, T samples, N tokens of the longest clip, D encoder width.
    """

    sample_rate: int  # Hz, of the waveform that `forward` expects
    frame_rate: float  # tokens a second
    dim: int  # D
    options: dict[str, Any] | None = None  # arguments that build it again; None: checkpoints refer to its source
    labels: Sequence[str] = ()  # what `tag` tells apart; empty: it has no label heads
    can_spec_augment = False  # whether it applies SpecAugment in training mode while `spec_augment` is set
    spec_augment = False

    def forward(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """waveform (B, T) float, mask (B, T) bool, True where the clip is -> tokens (B, N, D), mask (B, N) bool.

        A clip's tokens must not depend on its neighbours in the batch, nor on the amount of padding.
        """
        raise NotImplementedError

    @property
    def frame_head(self) -> nn.Linear | None:
        """The linear classifier of tokens that it was trained with, D -> classes; None where there is none."""
        return None

    def tag(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """How probable each of `labels` is in a clip: tokens (B, N, D), mask (B, N) -> (B, labels)."""
        raise NotImplementedError

    def tag_frames(self, tokens: Tensor) -> Tensor:
        """The same for every token: (B, N, D) -> (B, N, labels + 1); the last is that nothing sounds."""
        raise NotImplementedError

    def add_lora(self, rank: int, alpha: float, dropout: float) -> None:
        """Freeze the weights and add trainable low-rank updates. NotImplementedError where there are none."""
        raise NotImplementedError

    def merge_lora(self) -> None:
        """Fold the low-rank updates into the weights and remove them."""
        raise NotImplementedError
