"""The other networks of a model as graphs: encoder, label heads, adapter, Token Guide.

Lengths stand for masks: a clip is at the beginning of its row. Letters: B clips, T samples, N_a encoder tokens, D
encoder width, N audio tokens, D_llm LLM width, C labels, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.encoders.ced import CED, PATCH
from ..model.encoders.efficientat import EfficientAT
from ..model.lamb import LambModel
from .llama import UnsupportedModelError


class EncoderGraph(nn.Module):
    """The samples (1, T) of one clip -> its encoder tokens h_a (1, N_a, D). There is no padding, hence no mask."""

    def __init__(self, model: LambModel):
        super().__init__()
        self.encoder = model.encoder
        if not isinstance(model.encoder, CED | EfficientAT):
            raise UnsupportedModelError(
                f"an encoder of the kind {model.config.encoder.name!r} has no ONNX graph",
                "export a model with efficientat or ced, or stay with PyTorch (engine torch)",
            )

    def forward(self, waveform: Tensor) -> Tensor:
        if isinstance(self.encoder, CED):
            return ced(self.encoder, waveform)
        return self.encoder(waveform, torch.ones_like(waveform, dtype=torch.bool))[0]


def ced(encoder: CED, waveform: Tensor) -> Tensor:
    """`CED.forward` of one clip (1, T), without a choice that depends on its length."""
    mel = encoder.init_bn(encoder.log_mel(waveform, torch.ones_like(waveform, dtype=torch.long).sum(1)))  # (1, 64, F)
    frames: Any = torch.as_tensor(mel.shape[2])  # a tensor, so that a trace keeps it open
    width: Any = frames.clamp(PATCH, encoder.target_length)  # frames a chunk
    chunks = (frames + width - 1) // width  # C
    mel = F.pad(mel, (0, encoder.target_length))[:, :, : chunks * width]
    mel = mel[0].reshape(mel.shape[1], chunks, width).transpose(0, 1)  # (C, 64, width)
    patches = torch.minimum(frames - width * torch.arange(chunks), width) // PATCH  # (C,) whole ones of each chunk
    # what comes of a last chunk without a whole patch is cut off; a clip has one at least
    tokens = encoder._transform(mel, patches.clamp_min(1)).mean(1)  # (C, P, D)
    return tokens.flatten(0, 1)[: patches.sum().clamp_min(1)][None]


class AdapterGraph(nn.Module):
    """h_a (B, N_a, D), lengths (B,) -> z_a (B, N, D_llm), its mask (B, N)."""

    def __init__(self, model: LambModel):
        super().__init__()
        self.adapter, self.extensions = model.adapter, model.extensions

    def forward(self, h_a: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        mask = _mask(lengths, h_a)
        for extension in self.extensions.values():
            h_a = extension(h_a, mask)  # (B, N_a, D)
        return self.adapter(h_a, mask)


class LabelsGraph(nn.Module):
    """h_a (B, N_a, D), lengths (B,) -> how probable each label is in the clip (B, C), in each token (B, N_a, C + 1)."""

    def __init__(self, model: LambModel):
        super().__init__()
        self.encoder = model.encoder

    def forward(self, h_a: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder.tag(h_a, _mask(lengths, h_a)), self.encoder.tag_frames(h_a)


class GuideGraph(nn.Module):
    """Audio tokens z_a (B, N, D_llm), lengths (B,) -> the bias (B, V) of the first step."""

    def __init__(self, model: LambModel):
        super().__init__()
        self.guide, self.embedding = model.guide, model.llm.embedding_matrix

    def forward(self, z_a: Tensor, lengths: Tensor) -> Tensor:
        assert self.guide is not None
        return self.guide(z_a, _mask(lengths, z_a), self.embedding)[:, 0]


def _mask(lengths: Tensor, x: Tensor) -> Tensor:
    """lengths (B,), x (B, N, ...) -> (B, N), True where the clip is."""
    return torch.arange(x.shape[1], device=x.device) < lengths[:, None]
