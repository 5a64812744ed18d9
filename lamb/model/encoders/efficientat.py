"""EfficientAT: a MobileNetV3 on log mels, taught by transformers (arXiv 2211.04772); a fast encoder (our choice).

    log mel (B, 1, mels, F) -> convolution -> 15 inverted residual blocks -> 1x1 convolution (B, D, H, N)
    -> mean over frequency: tokens (B, N, D)

Official checkpoints (mn04 to mn20, trained on AudioSet) load as they are: front end, network and key names are
theirs. A network with another front end is built from its options; the bundled model has one, at 16 kHz.

Beyond a clip's end every convolution sees zeros, as it would if the clip were alone, and no mean counts what lies
there. So neither padding nor the neighbours in a batch change a clip's tokens.
Letters: B clips, T samples, F frames, C channels, H rows of the feature map along frequency, N tokens of the longest
clip, D width.
"""

import json
import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ...audio.files import replacing, write
from ..mel import mel_matrix
from . import published
from .base import Encoder
from .spectrum import power_spectrogram

# (in, kernel, expanded, out, squeeze-and-excitation, activation, stride) at width 1: MobileNetV3-Large
BLOCKS: list[tuple[int, int, int, int, bool, type[nn.Module], int]] = [
    (16, 3, 16, 16, False, nn.ReLU, 1),
    (16, 3, 64, 24, False, nn.ReLU, 2),
    (24, 3, 72, 24, False, nn.ReLU, 1),
    (24, 5, 72, 40, True, nn.ReLU, 2),
    (40, 5, 120, 40, True, nn.ReLU, 1),
    (40, 5, 120, 40, True, nn.ReLU, 1),
    (40, 3, 240, 80, False, nn.Hardswish, 2),
    (80, 3, 200, 80, False, nn.Hardswish, 1),
    (80, 3, 184, 80, False, nn.Hardswish, 1),
    (80, 3, 184, 80, False, nn.Hardswish, 1),
    (80, 3, 480, 112, True, nn.Hardswish, 1),
    (112, 3, 672, 112, True, nn.Hardswish, 1),
    (112, 5, 672, 160, True, nn.Hardswish, 2),
    (160, 5, 960, 160, True, nn.Hardswish, 1),
    (160, 5, 960, 160, True, nn.Hardswish, 1),
]
OFFICIAL = "EfficientAT (mn04 to mn20)"


def channels(count: float) -> int:
    """The nearest multiple of 8, at least 8 and never below nine tenths of `count`."""
    rounded = max(8, int(count + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * count else rounded


@cache
def _mel(sample_rate: int, n_fft: int, mels: int, f_max: float) -> Tensor:
    with torch.inference_mode(False):  # kept: a tensor made in inference mode would break autograd later
        return torch.from_numpy(mel_matrix(sample_rate, n_fft, mels, f_max))


@cache
def _hann(window: int, size: int) -> Tensor:
    """A symmetric Hann window in the middle of a transform of `size` samples: (size,)."""
    with torch.inference_mode(False):
        before = (size - window) // 2
        return F.pad(torch.hann_window(window, periodic=False), (before, size - window - before))


class Convolution(nn.Sequential):
    """Convolution, BatchNorm and activation, "same" zero padding. Positions beyond a clip's end are hidden from it."""

    def __init__(
        self,
        dim_in: int,
        dim: int,
        kernel: int,
        stride: tuple[int, int] = (1, 1),
        groups: int = 1,
        activation: type[nn.Module] | None = None,
    ):
        layers: list[nn.Module] = [
            nn.Conv2d(dim_in, dim, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
            nn.BatchNorm2d(dim, eps=1e-3, momentum=0.01),
        ]
        super().__init__(*layers, *([activation()] if activation else []))
        self.wide, self.stride = kernel > 1, stride

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """x (B, C, H, F), mask (B, 1, 1, F) or None where all is clip -> (B, C', H', F'), mask (B, 1, 1, F')."""
        if self.wide and mask is not None:
            x = x * mask.to(x.dtype)
            mask = mask[..., :: self.stride[1]]
        conv, norm = cast(nn.Conv2d, self[0]), cast(nn.BatchNorm2d, self[1])
        if norm.training:
            x = norm(conv(x))
        else:  # BatchNorm is linear now, and folded into the convolution
            scale = norm.weight / (cast(Tensor, norm.running_var) + norm.eps).sqrt()  # (C',)
            bias = norm.bias - cast(Tensor, norm.running_mean) * scale
            x = F.conv2d(x, conv.weight * scale[:, None, None, None], bias, conv.stride, conv.padding, 1, conv.groups)
        for layer in list(self)[2:]:
            x = layer(x)
        return x, mask


class SqueezeExcitation(nn.Module):
    """Every channel times a gate in (0, 1) made of the means of all channels over the clip."""

    def __init__(self, dim: int):
        super().__init__()
        gate: Any = nn.Module()
        gate.fc1 = nn.Linear(dim, channels(dim / 4))
        gate.fc2 = nn.Linear(channels(dim / 4), dim)
        self.conc_se_layers = nn.ModuleList([gate])  # the official name; the list is of one

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        gate: Any = self.conc_se_layers[0]
        opened = gate.fc2(F.relu(gate.fc1(mean(x, mask)))).sigmoid()  # (B, C)
        return x * opened[:, :, None, None].to(x.dtype), mask


def mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (B, C, H, F) averaged over frequency and the frames of the clip, mask (B, 1, 1, F) or None: (B, C) float32."""
    by_frame = x.float().mean(2)  # (B, C, F)
    if mask is None:
        return by_frame.mean(2)
    valid = mask[:, 0].float()  # (B, 1, F)
    return (by_frame * valid).sum(2) / valid.sum(2)


class InvertedResidual(nn.Module):
    """1x1 convolution to the expanded width, depthwise convolution, gate, 1x1 convolution back; and the input added."""

    def __init__(
        self,
        dim_in: int,
        kernel: int,
        expanded: int,
        dim: int,
        gated: bool,
        activation: type[nn.Module],
        stride: tuple[int, int],
    ):
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != dim_in:
            layers.append(Convolution(dim_in, expanded, 1, activation=activation))
        layers.append(Convolution(expanded, expanded, kernel, stride, expanded, activation))
        if gated:
            layers.append(SqueezeExcitation(expanded))
        layers.append(Convolution(expanded, dim, 1))
        self.block = nn.Sequential(*layers)
        self.residual = stride == (1, 1) and dim_in == dim

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        h = x
        for layer in self.block:
            h, mask = layer(h, mask)
        return x + h if self.residual else h, mask


class EfficientAT(Encoder):
    """waveform (B, T), mask (B, T) -> tokens (B, N, D), mask (B, N); see `Encoder`.

    Args:
        width: factor of all channels; mn04 has 0.4, mn10 1.0, mn20 2.0.
        sample_rate: Hz.
        window, hop: of the front end in samples. Several windows give as many log mels, which are the channels of the
            input: a short window is sharp in time, a long one in frequency.
        mels, f_max: bands, up to a frequency in Hz.
        strides: in time, of the first convolution and of the four blocks that halve the frequency axis. A token stands
            for their product in frames.
        dim: D; None: six times the channels of the last block, as published.
        outputs: classes of the AudioSet head, which has no part in the tokens; 0: no such head.
        relative: divide a clip by its own peak first, so that its level does not matter, and end in a LayerNorm (our
            choice); False: as published.
        labels: what the heads that stage distill of `lamb train` makes tell apart; none: no such heads.
    """

    def __init__(
        self,
        width: float = 1.0,
        sample_rate: int = 32000,
        window: int | Sequence[int] = 800,
        hop: int = 320,
        mels: int = 128,
        f_max: float = 15000,
        strides: Sequence[int] = (2, 2, 2, 2, 2),
        dim: int | None = None,
        outputs: int = 0,
        relative: bool = False,
        labels: Sequence[str] = (),
    ):
        super().__init__()
        self.windows = [window] if isinstance(window, int) else list(window)
        if not self.windows or len(strides) != 5:
            raise ValueError("give one window at least and five strides")
        self.options: dict[str, Any] = {  # what builds this architecture again, for a checkpoint
            "width": width,
            "sample_rate": sample_rate,
            "window": self.windows,
            "hop": hop,
            "mels": mels,
            "f_max": f_max,
            "strides": list(strides),
            "dim": dim,
            "outputs": outputs,
            "relative": relative,
            "labels": list(labels),
        }
        self.sample_rate, self.hop, self.mels, self.f_max = sample_rate, hop, mels, f_max
        self.relative, self.labels = relative, list(labels)
        self.frame_rate = sample_rate / hop / math.prod(strides)

        def wide(count: int) -> int:
            return channels(count * width)

        time = iter(strides)
        last = wide(BLOCKS[-1][3])
        self.dim = dim or 6 * last
        layers: list[nn.Module] = [Convolution(len(self.windows), wide(16), 3, (2, next(time)), 1, nn.Hardswish)]
        for dim_in, kernel, expanded, out, gated, activation, stride in BLOCKS:
            both = (1, 1) if stride == 1 else (2, next(time))
            layers.append(InvertedResidual(wide(dim_in), kernel, wide(expanded), wide(out), gated, activation, both))
        layers.append(Convolution(last, self.dim, 1, activation=nn.Hardswish))
        self.features = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        self.classifier = nn.ModuleDict()  # numbered as published: between them are activation and dropout
        if outputs:
            hidden = channels(1280 * width)
            self.classifier.update({"2": nn.Linear(self.dim, hidden), "5": nn.Linear(hidden, outputs)})
            self.classifier.requires_grad_(False)  # nothing here trains it
        self.norm = nn.LayerNorm(self.dim) if relative else nn.Identity()
        self.heads = nn.ModuleDict()
        if labels:  # the last output of the frame head: nothing sounds
            self.heads.update({"frame": nn.Linear(self.dim, len(labels) + 1), "clip": nn.Linear(self.dim, len(labels))})
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the faster one on a CPU

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """The network, with its weights, of an official checkpoint or of a folder that `lamb train` left.

        source: an official .pt file (such as mn10_as_mAP_471.pt), its https:// address, a .safetensors file with the
        same keys, the hub id of a repository that holds one (OWNER/NAME, or OWNER/NAME/FILE), or a folder with
        config.json and model.safetensors.
        ValueError: not such a checkpoint, or missing or unexpected keys. FileNotFoundError: no such file.
        ConnectionError: the hub does not have it or cannot be reached.
        """
        file = published.locate(source, OFFICIAL, "OWNER/NAME/mn10_as_mAP_471.pt")
        config = file.with_name("config.json")
        state = published.read(file, OFFICIAL)
        if Path(source).is_dir() and config.is_file():
            try:
                model = cls(**json.loads(config.read_text()))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{config}: does not describe an EfficientAT encoder: {error}") from None
        else:
            model = cls(**_official_options(state, file))
        published.load(model, state, file, "EfficientAT", "mn04_as to mn20_as")
        return model

    def save(self, folder: str | Path) -> None:
        """Write the network into `folder`, which there must be, as `from_pretrained` reads it: each file whole."""
        folder = Path(folder)
        write(folder / "config.json", json.dumps(self.options))
        with replacing(folder / "model.safetensors") as part:
            save_file({name: value.contiguous() for name, value in self.state_dict().items()}, part)

    def log_mel(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T), (B, T) -> log mels (B, windows, mels, F) float32, their mask (B, F); F = (T - 1) // hop + 1.

        Pre-emphasis y[t] = x[t + 1] - 0.97 x[t], centred symmetric Hann windows, power, mel bands, and
        (ln(power + 1e-5) + 4.5) / 5. A clip is reflected at its own ends, and followed by zeros where it is shorter
        than half a window (our choice).
        """
        lengths = mask.sum(1).clamp(min=2)
        last = lengths[:, None] - 2  # (B, 1): the last difference between two samples of the clip
        with torch.autocast(waveform.device.type, enabled=False):
            signal = F.pad(waveform.float() * mask, (0, 2))
            if self.relative:
                signal = signal / signal.abs().amax(1, keepdim=True).clamp_min(1e-5)
            signal = signal[:, 1:] - 0.97 * signal[:, :-1]  # (B, T + 1)
            mel = torch.stack([self._power(signal, last, window) for window in self.windows], 1)
        mel = mel[..., : (waveform.shape[1] - 1) // self.hop + 1]  # (B, windows, mels, F)
        valid = torch.arange(mel.shape[3], device=mel.device) < ((lengths - 1) // self.hop + 1)[:, None]  # (B, F)
        return ((mel + 1e-5).log() + 4.5) / 5, valid

    def _power(self, signal: Tensor, last: Tensor, window: int) -> Tensor:
        """Power in the mel bands: signal (B, T), its last sample (B, 1) -> (B, mels, F)."""
        size = 1 << (window - 1).bit_length()  # of the transform; 1024 as published
        at = torch.arange(-(size // 2), signal.shape[1] + size // 2, device=signal.device)[None].abs()
        at = last - (last - at).abs()  # (B, T + size): reflected at both ends
        framed = torch.where(at >= 0, signal.gather(1, at.clamp(min=0)), 0)
        power = power_spectrogram(framed, _hann(window, size).to(signal.device), self.hop)  # (B, bins, F)
        return _mel(self.sample_rate, size, self.mels, self.f_max).to(signal.device) @ power

    def layers(self, log_mel: Tensor, valid: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What comes out of each layer of `features`: log mels (B, windows, mels, F), mask (B, F) -> feature map
        (B, C_k, H_k, F_k), and its mask (B, 1, 1, F_k), None where all is clip."""
        x = log_mel.contiguous(memory_format=torch.channels_last)
        mask = None if valid.all() else valid[:, None, None]  # (B, 1, 1, F)
        for layer in self.features:
            x, mask = layer(x, mask)
            yield x, mask

    def encode(self, log_mel: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """log mels (B, windows, mels, F), mask (B, F) -> feature map (B, D, H, N), zero in padding, mask (B, N)."""
        for x, mask in self.layers(log_mel, valid):  # noqa: B007  the last one counts
            pass
        if mask is None:
            return x, valid.new_ones(len(x), x.shape[3])
        return x * mask.to(x.dtype), mask[:, 0, 0]

    def tokens(self, feature_map: Tensor) -> Tensor:
        """Feature map (B, D, H, N) -> tokens (B, N, D)."""
        return self.norm(feature_map.float().mean(2).transpose(1, 2))

    def forward(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        feature_map, present = self.encode(*self.log_mel(waveform, mask))
        return self.tokens(feature_map), present

    def classify(self, embedding: Tensor) -> Tensor:
        """The AudioSet head on a feature map's `mean` (B, D) -> logits (B, outputs)."""
        return self.classifier["5"](F.hardswish(self.classifier["2"](embedding)))

    @property
    def frame_head(self) -> nn.Linear | None:
        return cast(nn.Linear, self.heads["frame"]) if self.labels else None

    def tag(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """How probable each of `labels` is in a clip: tokens (B, N, D), mask (B, N) -> (B, labels), of sum 1."""
        return self.heads["clip"](pooled(tokens, mask)).float().softmax(-1)

    def tag_frames(self, tokens: Tensor) -> Tensor:
        """The same for every token: (B, N, D) -> (B, N, labels + 1), of sum 1; the last: nothing sounds."""
        return self.heads["frame"](tokens).float().softmax(-1)


def pooled(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean of each clip's tokens: (B, N, D), mask (B, N) -> (B, D)."""
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _official_options(state: dict[str, Tensor], file: Path) -> dict[str, Any]:
    """What builds the network that an official checkpoint is of; ValueError for any other file."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    try:
        outputs = shapes["classifier.5.weight"][0]
        seen = [shapes[f"{key}.weight"][0] for key in ("features.0.0", "features.15.block.3.0", "classifier.2")]
    except KeyError as error:
        raise ValueError(
            f"{file} is not a checkpoint of {OFFICIAL}: it has no {error}, only {published.some(shapes)}. Give an "
            "official one with an MLP head, or the folder that stage distill of lamb train left"
        ) from None
    for tenth in range(1, 51):
        width = tenth / 10
        if [channels(count * width) for count in (16, 160, 1280)] == seen:
            return {"width": width, "outputs": outputs}
    raise ValueError(f"{file} is not a checkpoint of {OFFICIAL}: no width gives {seen} channels")
