"""The contract of an audio encoder: the only thing that the rest of `lamb` knows about one.

An encoder owns its front end, sample rate, stride and mask; nobody outside recomputes them (our choice).
"""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """h_a = E_a(x_a) (paper section 1): waveforms to time-ordered audio tokens.

    Letters: B batch, T samples, N tokens of the longest clip, D encoder width. An encoder may have a method
    `draw`, which makes tokens (B, N, D) easier to read; `LambModel.audio_tokens` calls it before the adapter.
    """

    sample_rate: int  # Hz, of the waveform that `forward` expects
    frame_rate: float  # tokens a second
    dim: int  # D

    def __call__(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """waveform (B, T) float, mask (B, T) bool, True where the clip is -> tokens (B, N, D), mask (B, N) bool.

        A clip's tokens must not depend on its neighbours in the batch, nor on the amount of padding.
        """
        ...
