"""SpecAugment (arXiv 1904.08779): stretches of bands and of frames of a spectrogram are hidden in training.

By default two stretches of up to 48 bands and two of up to 192 frames, as in the authors' earlier captioner [A]. Our
choice: no stretch of frames is longer than a fifth of the clip (200 frames of 10 s), and all lie within the clip.
"""

import torch
from torch import Tensor

STRETCHES = 2  # of bands, and as many of frames
BANDS, FRAMES = 48, 192  # longest stretch
SHARE = 0.2  # longest stretch of frames, as a share of the clip's frames


def spec_augment(
    spectrogram: Tensor, frames: Tensor, *, bands: int = BANDS, stretch: int = FRAMES, fill: float | None = 0.0
) -> Tensor:
    """Hide parts of (B, mels, F), of which the first frames (B,) belong to each clip; every clip has its own draws.

    The draws come from PyTorch's CPU generator on any device, which training seeds at every step.

    Args:
        bands, stretch: the longest stretch of bands and of frames.
        fill: the value of what is hidden, such as 0, the mean of every band after CED's BatchNorm; None: each clip's
            own mean.
    """
    size, mels, length = spectrogram.shape
    own = frames.cpu()
    rows = _stretches(torch.full((size,), mels), torch.full((size,), bands), mels)  # (B, mels)
    columns = _stretches(own, (SHARE * own).clamp(max=stretch), length)  # (B, F)
    hidden = (rows[:, :, None] | columns[:, None]).to(spectrogram.device)  # (B, mels, F)
    if fill is not None:
        return spectrogram.masked_fill(hidden, fill)
    own_frames = torch.arange(length, device=frames.device) < frames[:, None]  # (B, F)
    mean = (spectrogram * own_frames[:, None]).sum((1, 2)) / (mels * frames)  # (B,)
    return torch.where(hidden, mean[:, None, None], spectrogram)


def _stretches(lengths: Tensor, longest: Tensor, size: int) -> Tensor:
    """(B, size), True in STRETCHES stretches of up to `longest` (B,) places among the first `lengths` (B,)."""
    width = torch.rand(len(lengths), STRETCHES) * longest[:, None]
    start = torch.rand(len(lengths), STRETCHES) * (lengths[:, None] - width)
    place = torch.arange(size)[:, None]  # (size, 1), against (B, 1, STRETCHES)
    return ((place >= start[:, None].floor()) & (place < (start + width)[:, None].floor())).any(2)
