"""The other networks of a model as graphs: encoder, adapter with label heads, Token Guide.

Lengths stand for masks: a clip is at the beginning of its row. Letters: B clips, T samples, N_a encoder tokens, D
encoder width, N audio tokens, D_llm LLM width, C labels, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.encoders.ced import CED, HOP, PATCH
from ..model.encoders.conv import ConvEncoder
from ..model.encoders.efficientat import EfficientAT
from ..model.lamb import LambModel
from .llama import UnsupportedModelError


class EncoderGraph(nn.Module):
    """Samples (B, T), lengths (B,) -> encoder tokens h_a (B, N_a, D), their mask (B, N_a)."""

    def __init__(self, model: LambModel):
        super().__init__()
        self.encoder = model.encoder
        if not isinstance(model.encoder, CED | ConvEncoder | EfficientAT):
            raise UnsupportedModelError(
                f"an encoder of the kind {model.config.encoder.name!r} has no ONNX graph",
                "export a model with conv, efficientat or ced, or stay with PyTorch (engine torch)",
            )

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.encoder, CED):
            return ced(self.encoder, waveform, lengths)
        return self.encoder(waveform, _mask(lengths, waveform))


def ced(encoder: CED, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """`CED.forward` without a choice that depends on the numbers: every chunk of the batch is computed."""
    frames = lengths // HOP + 1  # (B,)
    mel = encoder.init_bn(encoder.log_mel(waveform, lengths))  # (B, 64, F)
    place = torch.arange(mel.shape[2], device=mel.device)
    mel = mel.masked_fill(place >= frames[:, None, None], 0)
    longest = torch.as_tensor(mel.shape[2])
    width = longest.clamp(PATCH, encoder.target_length)  # frames a chunk
    chunks = (longest + width - 1) // width  # C
    mel = F.pad(mel, (0, encoder.target_length))[:, :, : chunks * width]
    mel = mel.reshape(mel.shape[0], mel.shape[1], chunks, width).transpose(1, 2)  # (B, C, 64, width)
    patches = torch.minimum((frames[:, None] - width * torch.arange(chunks)).clamp_min(0), width) // PATCH  # (B, C)
    first = (torch.arange(chunks) == 0).long()
    patches = torch.maximum(patches, first)  # a clip has one at least
    # a chunk without a patch attends to its first one, and what comes of it is hidden
    tokens = encoder._transform(mel.flatten(0, 1), patches.flatten().clamp_min(1))  # (B C, 4, P, D)
    tokens = tokens.mean(1).reshape(mel.shape[0], -1, encoder.dim)  # (B, C P, D)
    total = patches.sum(1)  # (B,)
    present = torch.arange(tokens.shape[1]) < total[:, None]  # (B, N_a)
    return tokens.masked_fill(~present[..., None], 0), present


class AdapterGraph(nn.Module):
    """h_a (B, N_a, D), lengths (B,) -> z_a (B, N, D_llm), its mask (B, N); and what the label heads say of the clip
    (B, C) and of every token (B, N_a, C + 1), where the encoder has such heads."""

    def __init__(self, model: LambModel):
        super().__init__()
        self.encoder, self.adapter, self.extensions = model.encoder, model.adapter, model.extensions

    def forward(self, h_a: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        mask = _mask(lengths, h_a)
        tags = (self.encoder.tag(h_a, mask), self.encoder.tag_frames(h_a)) if self.encoder.labels else ()
        for extension in self.extensions.values():
            h_a = extension(h_a, mask)  # (B, N_a, D)
        return *self.adapter(h_a, mask), *tags


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
