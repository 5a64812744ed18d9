"""Small residual convolutional networks on log mels: the bundled model's encoder (our choice; the paper uses CED).

A branch: log mel (B, 1, frames, mels) -> stem -> residual stages -> mean + max over frequency -> LayerNorm: (B, N, D).
The level of a clip does not matter: the log mel is taken relative to the clip's own peak, at most 80 dB below it.
A spectrogram is sharp in time or in frequency, not in both, so there can be several branches, each with a window of its
own length. They learn independently of each other except for the head that they share (`lamb.training.tiny.Tagger`),
which makes their tokens comparable: the mean of the branches' tokens is an ensemble.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Encoder
from .spectrum import power_spectrogram

RANGE_DB = 80.0  # what lies further below the clip's peak is floor


def mel_matrix(sample_rate: int, n_fft: int, mels: int) -> Tensor:
    """Triangular HTK mel filters from 0 Hz to the Nyquist frequency, peak 1: (n_fft // 2 + 1, mels)."""
    top = 2595.0 * torch.log10(torch.tensor(1.0 + sample_rate / 2 / 700.0, dtype=torch.float64))
    edges = 700.0 * (10.0 ** (torch.linspace(0, 1, mels + 2, dtype=torch.float64) * top / 2595.0) - 1.0)
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp_min(0).float()


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut; the first one strides. Positions beyond a clip's end stay zero."""

    def __init__(self, dim_in: int, dim: int, stride: tuple[int, int]):
        super().__init__()
        self.conv1 = nn.Conv2d(dim_in, dim, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(dim)
        self.shortcut: nn.Module = nn.Identity()
        if dim_in != dim or stride != (1, 1):
            self.shortcut = nn.Conv2d(dim_in, dim, 1, stride, bias=False)
        self.stride = stride[0]

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x (B, C, frames, mels), mask (B, 1, frames, 1), None where all is clip."""
        mask = None if mask is None else mask[:, :, :: self.stride]  # (B, 1, frames / stride, 1)
        h = _kept(F.relu(self.norm1(self.conv1(x))), mask)
        return _kept(F.relu(self.norm2(self.conv2(h)) + self.shortcut(x)), mask), mask


def _kept(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (B, C, frames, mels) with zeros beyond a clip's end, mask (B, 1, frames, 1)."""
    return x if mask is None else x * mask


class Branch(nn.Module):
    """One network on the log mel of windows of `n_fft` samples; the arguments are those of `ConvEncoder`."""

    window: Tensor
    mel: Tensor

    def __init__(self, sample_rate: int, widths: Sequence[int], mels: int, n_fft: int, hop: int):
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.stem = nn.Conv2d(1, widths[0], 5, 2, 2, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        strides = [(1, 1), (2, 2), (2, 2)] + [(1, 2)] * len(widths)
        # a convolution is blind to the frequency that it looks at: a learnt embedding of it is added once
        self.frequency_embedding = nn.Parameter(torch.zeros(1, widths[0], 1, (mels + 1) // 2))
        self.blocks = nn.ModuleList(
            Block(i, o, s) for i, o, s in zip((widths[0], *widths), widths, strides, strict=False)
        )
        self.norm = nn.LayerNorm(widths[-1])
        self.hops = 2 * math.prod(time for time, _ in strides[: len(widths)])  # that a token stands for
        # not parameters and cheap to make: kept out of the checkpoint
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("mel", mel_matrix(sample_rate, n_fft, mels), persistent=False)
        # Channels-last convolutions are the faster ones on a CPU. oneDNN 3.12 corrupts the heap in the backward pass of
        # a strided one on processors without AVX-512, if its channels are no multiple of 8.
        plain = any(width % 8 for width in widths)
        self.layout = torch.contiguous_format if plain else torch.channels_last
        self.to(memory_format=self.layout)  # type: ignore[call-overload]

    def log_mel(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T), (B, T) -> log mel (B, frames, mels) in about [-2, 2], mask (B, frames); frames = T // hop + 1."""
        with torch.autocast(waveform.device.type, enabled=False):
            signal = waveform.float() * mask
            signal = F.pad(signal, (self.n_fft // 2, self.n_fft // 2))  # frames are centred
            power = power_spectrogram(signal, self.window, self.hop).transpose(1, 2)  # (B, frames, bins)
            decibel = 10 * torch.log10((power @ self.mel).clamp_min(1e-10))  # (B, frames, mels)
        frames = mask.sum(1) // self.hop + 1
        valid = torch.arange(decibel.shape[1], device=decibel.device) < frames[:, None]  # (B, frames)
        peak = decibel.masked_fill(~valid[..., None], -torch.inf).amax((1, 2), keepdim=True)
        return ((decibel - peak).clamp_min(-RANGE_DB) + RANGE_DB / 2) / (RANGE_DB / 4), valid

    def forward(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T), (B, T) -> tokens (B, N, D), mask (B, N)."""
        return self.encode(*self.log_mel(waveform, mask))

    def encode(self, log_mel: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """log mel (B, frames, mels), mask (B, frames) -> tokens (B, N, D), mask (B, N)."""
        x = log_mel[:, None].contiguous(memory_format=self.layout)  # (B, 1, frames, mels)
        m = None if valid.all() else valid[:, None, :, None].to(x.dtype)  # (B, 1, frames, 1)
        x = self.stem(_kept(x, m))  # (B, C, frames / 2, mels / 2)
        m = None if m is None else m[:, :, ::2].to(x.dtype)  # under autocast all of it in bfloat16
        x = _kept(F.relu(self.stem_norm(x) + self.frequency_embedding.to(x.dtype)), m)
        for block in self.blocks:
            x, m = block(x, m)
        tokens = x.mean(3) + x.amax(3)  # (B, D, N)
        present = valid.new_ones(tokens.shape[0], tokens.shape[2]) if m is None else m[:, 0, :, 0] > 0  # (B, N)
        return self.norm(tokens.transpose(1, 2)), present


class ConvEncoder(Encoder):
    """waveform (B, T) at 16 kHz, mask (B, T) -> tokens (B, N, D), mask (B, N); see `Encoder`.

    Args:
        widths: channels of the stages; the last one is D. Every stage but the first halves the frequency axis;
            time is halved by the stem and by the first two of them, so a token stands for 8 hops.
        mels, hop: of the log mel front end, in bands and samples.
        n_fft: length of its window in samples; several give a branch each.
        labels: what `frame_head`, which stage encoder of `lamb train` makes, tells apart besides its last output,
            "nothing sounds": their names, or the number of all outputs where nobody noted the names; 0: no such head.
    """

    sample_rate = 16000

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256),
        mels: int = 64,
        n_fft: int | Sequence[int] = 1024,
        hop: int = 320,
        labels: int | Sequence[str] = 0,
    ):
        super().__init__()
        windows = [n_fft] if isinstance(n_fft, int) else list(n_fft)
        if not windows:
            raise ValueError("n_fft: give the length of one window at least")
        self.options: dict[str, Any] = {"widths": list(widths), "mels": mels, "n_fft": windows, "hop": hop}
        self.labels = [] if isinstance(labels, int) else list(labels)
        outputs = labels if isinstance(labels, int) else len(labels) + 1
        if outputs:
            self.options["labels"] = self.labels or outputs
        self.dim = widths[-1]
        branches = [Branch(self.sample_rate, widths, mels, n, hop) for n in windows]
        self.branches = nn.ModuleList(branches)
        self.head = nn.Linear(self.dim, outputs) if outputs else None
        self.frame_rate = self.sample_rate / hop / branches[0].hops

    @property
    def frame_head(self) -> nn.Linear | None:
        return self.head

    def tag(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """How probable each of `labels` is in a clip, the mean over its tokens (B, N, D), mask (B, N): (B, labels)."""
        probability = self.tag_frames(tokens)[..., :-1] * mask[..., None]
        return probability.sum(1) / mask.sum(1, keepdim=True)

    def tag_frames(self, tokens: Tensor) -> Tensor:
        """The same for every token: (B, N, D) -> (B, N, labels + 1), of sum 1; the last: nothing sounds."""
        assert self.head is not None
        return self.head(tokens).float().softmax(-1)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "ConvEncoder":
        """The encoder that `lamb train` (stage encoder) left in the folder `source`; strict."""
        import json

        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(source)
        try:
            options = json.loads((folder / "config.json").read_text())
            weights = load_file(folder / "model.safetensors")
            encoder = cls(**options)
            encoder.load_state_dict(weights)
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{folder}: not a convolutional encoder saved by lamb ({error}); give the folder that stage encoder "
                "of lamb train left"
            ) from None
        return encoder

    def forward(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        tokens, masks = zip(*(branch(waveform, mask) for branch in self.branches), strict=True)
        return torch.stack(tokens).mean(0), masks[0]
