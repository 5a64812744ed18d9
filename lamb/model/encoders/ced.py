"""CED: Consistent Ensemble Distillation (arXiv 2308.11957), the audio encoder of LAMB (paper section 1).

A vision transformer over patches of 16 mels x 16 frames of a log mel spectrogram. Front end, model and key
names are CED's; what is not is marked as our choice.
Letters: B clips, T samples, F frames, C chunks a clip, S chunks of all clips, P patches along time of a chunk,
L = 4 P, N tokens of the longest clip, D width.
"""

import math
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import published
from .base import Encoder
from .spec_augment import spec_augment
from .spectrum import power_spectrogram

SAMPLE_RATE, N_FFT, HOP, MELS, PATCH = 16000, 512, 160, 64, 16
ROWS = MELS // PATCH  # 4 rows of patches along frequency
HEAD_DIM = 64  # of every CED
TARGET_LENGTH = 1012  # frames a chunk, 10.12 s


@cache
def _window_and_mels(device: torch.device) -> tuple[Tensor, Tensor]:
    """Periodic Hann window (512,) and HTK mel matrix (64, 257): triangles over 0-8000 Hz, not normalised.

    No buffers: `model.to(bfloat16)` would round them, building the model on the meta device would lose them.
    """
    with torch.inference_mode(False):  # tensors made in inference mode, and kept, would break autograd later
        top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)  # mel = 2595 log10(1 + f / 700)
        edges = 700 * (10 ** (torch.linspace(0, top, MELS + 2) / 2595) - 1)  # (66,) Hz
        bins = torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)  # (257,) Hz
        low, centre, high = (edges[i : i + MELS, None] for i in range(3))  # (64, 1) each
        mels = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)
        return torch.hann_window(N_FFT, device=device), mels.to(device)


class LoRA(nn.Module):
    """Low-rank update x -> (alpha / rank) W_up W_down dropout(x); W_up starts at zero: no change at first."""

    def __init__(self, dim: int, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(dim, rank, bias=False)
        self.up = nn.Linear(rank, dim, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.up(self.down(self.dropout(x)))

    def matrix(self) -> Tensor:
        """The update as one matrix (D, D), without dropout."""
        return self.scale * self.up.weight @ self.down.weight


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv (rows q, k, v), and after `add_lora` LoRA on q and v."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.lora = nn.ModuleDict()  # "q" and "v", or empty

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (S, L, D), mask (S, 1, 1, L) True for the keys to attend to -> (S, L, D)."""
        parts = dict(zip("qkv", self.qkv(x).chunk(3, dim=-1), strict=True))  # (S, L, D) each
        for name, lora in self.lora.items():
            parts[name] = parts[name] + lora(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts.values())
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (S, heads, L, D / heads)
        return self.proj(x.transpose(1, 2).flatten(2))  # (S, L, D)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        layers = OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, dim))
        self.mlp = nn.Sequential(layers)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class CED(Encoder):
    """Waveform at 16 kHz -> tokens at 6.25 Hz; see `Encoder`.

    A last incomplete patch of 16 frames is dropped, as in CED, unless it is a clip's only one: then it is
    filled with zeros (our choice).
    The BatchNorm always uses its running statistics; nothing else of the base depends on the training mode.
    """

    sample_rate = SAMPLE_RATE  # Hz
    frame_rate = SAMPLE_RATE / HOP / PATCH  # tokens a second
    can_spec_augment = True

    def __init__(
        self,
        dim: int,
        heads: int,
        depth: int = 12,
        mlp_ratio: float = 4,
        outputs: int = 527,
        target_length: int = TARGET_LENGTH,
    ) -> None:
        """Random weights. `outputs`: AudioSet classes of the head; `target_length`: frames a chunk."""
        super().__init__()
        self.options = {  # what builds this architecture again, for a checkpoint
            "dim": dim,
            "heads": heads,
            "depth": depth,
            "mlp_ratio": mlp_ratio,
            "outputs": outputs,
            "target_length": target_length,
        }
        self.dim = dim
        self.target_length = target_length
        self.init_bn = nn.BatchNorm1d(MELS)  # CED's BatchNorm2d over (B, 64, F, 1), without the 1
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(1, dim, PATCH, stride=PATCH)))
        self.time_pos_embed = nn.Parameter(0.02 * torch.randn(1, dim, 1, target_length // PATCH))
        self.freq_pos_embed = nn.Parameter(0.02 * torch.randn(1, dim, ROWS, 1))
        self.blocks = nn.ModuleList(Block(dim, heads, int(mlp_ratio * dim)) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.outputlayer = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, outputs))
        self.outputlayer.requires_grad_(False)  # no part of the tokens: nothing here trains it
        self.train(self.training)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """A CED with the weights, and of the architecture, of a checkpoint.

        source: hub id ("mispeech/ced-base"), folder with model.safetensors, such a file, or original .pt file.
        ValueError: not a CED checkpoint, or missing or unexpected keys. FileNotFoundError: no such file.
        ConnectionError: the hub does not have it or cannot be reached.
        """
        file = published.locate(source, "CED", "mispeech/ced-base")
        state = _our_names(published.read(file, "CED"))
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        try:
            dim, positions = shapes["patch_embed.proj.weight"][0], shapes["time_pos_embed"][-1]
            model = cls(
                dim=dim,
                heads=dim // HEAD_DIM,
                depth=len({key.split(".")[1] for key in shapes if key.startswith("blocks.")}),
                mlp_ratio=shapes["blocks.0.mlp.fc1.weight"][0] / dim,
                outputs=shapes["outputlayer.1.weight"][0],
                # 1012 frames are 63 patches and 4 frames; the rest cannot be seen in the shapes
                target_length=TARGET_LENGTH if positions == TARGET_LENGTH // PATCH else positions * PATCH,
            )
        except KeyError as error:
            raise ValueError(
                f"{file} is not a CED checkpoint: it has no {error}, only {published.some(shapes)}. "
                "Give a checkpoint of the mispeech/ced-* family"
            ) from None
        published.load(model, state, file, "CED", "mispeech/ced-*")
        return model

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the BatchNorm, whose statistics stay those of the checkpoint."""
        super().train(mode)
        self.init_bn.eval()
        return self

    def log_mel(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Log mel spectrogram in dB, float32: waveform (B, T), lengths (B,) samples -> (B, 64, T // 160 + 1).

        10 log10(max(mel power, 1e-10)), at most 120 dB below the clip's own peak; centred frames, each clip
        reflected at its own ends. So neither padding nor neighbours change the lengths // 160 + 1 frames of a
        clip; the frames after them mean nothing. A clip needs at least 257 samples.
        """
        window, mels = _window_and_mels(waveform.device)
        last = lengths[:, None] - 1
        at = (_positions(waveform.shape[1] + N_FFT, waveform) - N_FFT // 2).abs()  # reflects the start
        at = (last - (last - at).abs()).clamp(min=0)  # (B, T + 512): reflects the end
        with torch.autocast(waveform.device.type, enabled=False):
            framed = waveform.float().gather(1, at)  # (B, T + 512)
            power = power_spectrogram(framed, window, HOP)  # (B, 257, F)
            db = 10 * (mels @ power).clamp(min=1e-10).log10()  # (B, 64, F)
        padding = _positions(db.shape[2], db) >= (lengths // HOP + 1)[:, None, None]  # (B, 1, F)
        peak = db.masked_fill(padding, -torch.inf).amax(dim=(1, 2), keepdim=True)  # (B, 1, 1)
        return db.maximum(peak - 120)

    def encode(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens: waveform (B, T), mask (B, T) -> tokens (B, 4, N, D), low frequency first, mask (B, N).

        A clip beyond `target_length` frames is cut into chunks of that many; each attends to itself only and
        starts at time position 0, and their tokens follow each other. Padding is masked in the attention, also
        in the last chunk (our choice; CED pads that with zeros, unmasked). Tokens of padding are zero.
        """
        lengths = mask.sum(1)
        frames = lengths // HOP + 1  # (B,)
        mel = self.init_bn(self.log_mel(waveform, lengths).to(self.time_pos_embed.dtype))  # (B, 64, F)
        if self.spec_augment and self.training:
            mel = spec_augment(mel, frames)
        mel = mel.masked_fill(_positions(mel.shape[2], mel) >= frames[:, None, None], 0)

        width = min(self.target_length, max(mel.shape[2], PATCH))  # frames a chunk
        mel = F.pad(mel, (0, -mel.shape[2] % width))
        chunks = mel.unflatten(2, (-1, width)).transpose(1, 2)  # (B, C, 64, width)
        start = width * _positions(chunks.shape[1], mel)
        patches = (frames[:, None] - start).clamp(0, width) // PATCH  # (B, C) whole patches of each chunk
        patches[:, 0].clamp_(min=1)

        used = patches > 0  # (B, C)
        tokens = self._transform(chunks[used], patches[used])  # (S, 4, P, D)
        slots = tokens.new_zeros(*used.shape, *tokens.shape[1:]).index_put((used,), tokens)  # (B, C, 4, P, D)
        # Only a clip's last chunk is not full, hence its tokens are the first ones of the joined chunks.
        total = patches.sum(1)
        joined = slots.transpose(1, 2).flatten(2, 3)[:, :, : int(total.max())]  # (B, 4, N, D)
        present = _positions(joined.shape[2], mel) < total[:, None]  # (B, N)
        return joined.masked_fill(~present[:, None, :, None], 0), present

    def _transform(self, mel: Tensor, patches: Tensor) -> Tensor:
        """Normalised chunks (S, 64, width), of which patches (S,) >= 1 are audio -> tokens (S, 4, P, D)."""
        x = self.patch_embed(mel[:, None])  # (S, D, 4, P)
        columns = x.shape[3]
        x = x + self.time_pos_embed[..., :columns] + self.freq_pos_embed
        x = x.flatten(2).transpose(1, 2)  # (S, L, D), frequency-major
        mask = _positions(columns, x) < patches[:, None]  # (S, P)
        mask = mask.repeat(1, ROWS)[:, None, None]  # (S, 1, 1, L)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x).unflatten(1, (ROWS, columns))

    def forward(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Means of the 4 frequency rows (our choice): (B, T), (B, T) bool -> tokens (B, N, D), mask (B, N)."""
        tokens, present = self.encode(waveform, mask)
        return tokens.mean(1), present

    def add_lora(self, rank: int, alpha: float, dropout: float) -> None:
        """Freezes the base and adds trainable low-rank updates to q and v of every block (paper section 1).

        Their keys are `blocks.{i}.attn.lora.{q,v}.{down,up}.weight`.
        """
        self.requires_grad_(False)
        for attn in self._attentions():
            for name in ("q", "v"):
                attn.lora[name] = LoRA(self.dim, rank, alpha, dropout).to(attn.qkv.weight)
        self.train(self.training)

    @torch.no_grad()
    def merge_lora(self) -> None:
        """Folds the low-rank updates into the q and v rows of qkv and removes them."""
        for attn in self._attentions():
            rows = dict(zip("qkv", attn.qkv.weight.chunk(3), strict=True))  # views, (D, D) each
            for name, lora in attn.lora.items():
                rows[name] += cast(LoRA, lora).matrix()
            attn.lora.clear()

    def _attentions(self) -> list[Attention]:
        return [module for module in self.modules() if isinstance(module, Attention)]


def _positions(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device)


def _our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Key names of the hub's files and of the original .pt files -> those of this module."""
    names = {key: key.removeprefix("encoder.").replace("init_bn.1.", "init_bn.") for key in state}
    return {name: state[key] for key, name in names.items() if not name.startswith("front_end.")}
