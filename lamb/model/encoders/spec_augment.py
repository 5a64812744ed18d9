"""SpecAugment (arXiv 1904.08779): stretches of bands and of frames of a spectrogram are hidden in training.

Two stretches of up to 48 bands and two of up to 192 frames, as the authors' earlier captioner has them [A]. Our choice:
no stretch is longer than a fifth of the clip (of 10 s that is 200 frames), and what is hidden is 0, the mean of every
band after CED's BatchNorm; padding has no part in either.
"""

import torch
from torch import Tensor

STRETCHES = 2
BANDS, FRAMES = 48, 192  # longest stretch
SHARE = 0.2  # of a clip's frames, at most


def spec_augment(spectrogram: Tensor, frames: Tensor) -> Tensor:
    """(B, mels, F), of which frames (B,) are each clip's -> the same with zeros, drawn for each clip on its own.

    Drawn from PyTorch's CPU generator on any device, which training seeds with the step.
    """
    size, mels, length = spectrogram.shape
    bands = _stretches(torch.full((size,), mels), torch.full((size,), BANDS), mels)  # (B, mels)
    own = frames.cpu()
    times = _stretches(own, (SHARE * own).clamp(max=FRAMES), length)  # (B, F)
    hidden = bands[:, :, None] | times[:, None]  # (B, mels, F)
    return spectrogram.masked_fill(hidden.to(spectrogram.device), 0)


def _stretches(lengths: Tensor, longest: Tensor, size: int) -> Tensor:
    """(B, size), True in STRETCHES stretches of up to `longest` (B,) places among the first `lengths` (B,)."""
    width = torch.rand(len(lengths), STRETCHES) * longest[:, None]
    start = torch.rand(len(lengths), STRETCHES) * (lengths[:, None] - width)
    place = torch.arange(size)[:, None]  # (size, 1), against (B, 1, STRETCHES)
    return ((place >= start[:, None].floor()) & (place < (start + width)[:, None].floor())).any(2)
