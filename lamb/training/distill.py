"""Stage `distill` of the bundled model: an EfficientAT from random weights, taught by a published one. [O]

The teacher hears the very input that the student hears, scenes mixed from labelled recordings. Letters: f_k is layer k
of the student, t_k what comes out of layer k of the teacher, t_0 the log mels. Every channel is divided by its spread.

    hints    sum over k of smooth L1(f_k(... f_1(t_0)), t_k)      (after FitNets, arXiv 1412.6550)
    frame    cross entropy of the student's frame head against which of our labels sound in a token
    clip     the same of its clip head for the whole scene

With `distill.layerwise`, a first run has hints alone and gives every layer what the teacher's layer got:

    hints    sum over k of smooth L1(f_k(t_{k-1}), t_k)

So each layer has a small problem of its own, and random weights come near the teacher within some hundred steps. A
second run (`init`) takes the layers together and adds the labels. There BatchNorm keeps the statistics that it has:
those of each batch would be noise, and the teacher's do not change either. Without a teacher there are the labels
alone. With `distill.heads`, a last run keeps the layers of `init`, and the heads alone learn, from the tokens that the
encoder gives when it is used: nothing of the scene is hidden. Nothing of the teacher is part of the result.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ConfigError, TrainConfig
from ..data import loader
from ..model.encoders import build_encoder
from ..model.encoders.efficientat import Convolution, EfficientAT, pooled
from ..model.encoders.spec_augment import spec_augment
from .device import cpu_has_bfloat16, device_of
from .stage import Losses, Stage, param_groups

HINTS = (3, 6, 10, 12, 15, 16)  # layers that the teacher is asked for, where it is not for all of them
MEASURED = 10**6  # number of the batch that the spread of the teacher's channels is measured on
BANDS, STRETCH = 16, 30  # longest stretches of bands and of frames that are hidden
EPSILON = 1e-3
EMPTY = -1.40259  # (ln(1e-5) + 4.5) / 5: log mel of a band without any power


class Teacher:
    """A published EfficientAT that listens to the student's log mels."""

    def __init__(self, source: str, student: EfficientAT, device: torch.device):
        try:
            self.net = EfficientAT.from_pretrained(source).to(device)
        except (OSError, ValueError) as error:
            raise ConfigError(f"distill.teacher: {error}") from None
        self.net.eval().requires_grad_(False)
        self.missing = self.net.mels - student.mels
        differ = [key for key in ("width", "strides") if student.options[key] != self.net.options[key]]
        if differ or student.dim != self.net.dim or len(student.windows) != 1 or self.missing < 0:
            raise ConfigError(
                "model.encoder.options: feature maps are compared channel by channel, so it takes the teacher's "
                f"width ({self.net.options['width']}), strides and dim, one window, and at most {self.net.mels} mels"
            )

    @torch.no_grad()
    def __call__(self, log_mel: Tensor) -> list[Tensor]:
        """log mels (B, 1, mels, F) of the teacher's lower bands -> the feature maps of its layers, the rows that the
        student has: (B, C_k, H_k, N_k)."""
        rows, height = log_mel.shape[2], self.net.mels
        x = F.pad(log_mel, (0, 0, 0, self.missing), value=EMPTY)
        maps = []
        with torch.autocast(x.device.type, torch.bfloat16, enabled=fast(x.device)):
            for y in feature_maps(self.net, x):
                if y.shape[2] < height:
                    rows, height = (rows + 1) // 2, y.shape[2]  # a stride of 2
                maps.append(y[:, :, :rows])
        return maps


def feature_maps(net: EfficientAT, log_mel: Tensor) -> list[Tensor]:
    """log mels (B, 1, mels, F), all of it clip -> what comes out of each layer (B, C_k, H_k, N_k)."""
    return [x for x, _ in net.layers(log_mel, torch.ones(1, dtype=torch.bool))]


class Student(nn.Module):
    """The encoder as it is trained: with dropout before its heads, and BatchNorm that may keep its statistics."""

    def __init__(self, encoder: EfficientAT, fixed: bool):
        super().__init__()
        self.encoder, self.fixed = encoder, fixed
        self.dropout = nn.Dropout(0.2)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(mode and not self.fixed)
        return self

    def forward(
        self, log_mel: Tensor, given: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        """log mels (B, 1, mels, F) -> the feature maps of all layers, logits of the heads: frame (B, N, labels + 1),
        clip (B, labels). With the feature maps that each layer is `given`: those that come of them, and no logits."""
        if given is not None:
            return [layer(x, None)[0] for layer, x in zip(self.encoder.features, given, strict=True)], None, None
        maps = feature_maps(self.encoder, log_mel)
        tokens = self.encoder.tokens(maps[-1])  # (B, N, D)
        return maps, *label(self.encoder, self.dropout, tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))


class Heads(nn.Module):
    """The label heads alone, where the layers of an encoder stay as they are."""

    def __init__(self, encoder: EfficientAT):
        super().__init__()
        encoder.requires_grad_(False).heads.requires_grad_(True)
        self.encoder, self.dropout = encoder, nn.Dropout(0.2)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, N, D), mask (B, N) -> logits of the heads: frame (B, N, labels + 1), clip (B, labels)."""
        return label(self.encoder, self.dropout, tokens, mask)


def label(encoder: EfficientAT, dropout: nn.Module, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of both heads of tokens (B, N, D), mask (B, N), whose channels `dropout` hides."""
    heads = encoder.heads
    return heads["frame"](dropout(tokens)), heads["clip"](dropout(pooled(tokens, mask)))


def fast(device: torch.device) -> bool:
    """Whether bfloat16 is quick on `device`, where a teacher's opinion need not be more exact."""
    return device.type != "cpu" or cpu_has_bfloat16()


class DistillStage(Stage):
    """See above. With `init`, the student begins with the weights of the encoder in that folder; its heads are new
    where that was trained on other labels."""

    module: Student | Heads

    def __init__(self, config: TrainConfig):
        self.config, options = config, config.model.encoder.options
        self.device = device_of(config)
        if config.model.encoder.name != "efficientat":
            raise ConfigError(
                f"model.encoder.name: {config.model.encoder.name!r} is not taught here, only 'efficientat' is"
            )
        if config.distill.teacher is None and config.distill.layerwise:
            raise ConfigError("distill.layerwise: takes a distill.teacher to imitate")
        if config.distill.heads and (config.init is None or config.distill.teacher is not None):
            raise ConfigError("distill.heads: takes the encoder of `init`, and no distill.teacher")
        if "labels" in options:
            raise ConfigError("model.encoder.options.labels: this stage finds out the labels itself; leave it out")
        rate = options.get("sample_rate", 16000)
        self.maker, development = loader.scene_maker(config, rate)
        self.labels = self.maker.labels
        described = {**options, "sample_rate": rate, "labels": self.labels}
        encoder = build_encoder(replace(config.model.encoder, source=None, train="full", options=described))
        if config.init is not None:
            _begin_with(encoder, config.init)
        self.teacher = Teacher(config.distill.teacher, encoder, self.device) if config.distill.teacher else None
        self.module = Heads(encoder) if config.distill.heads else Student(encoder, fixed=config.init is not None)
        if config.distill.heads:
            self.frozen = copy.deepcopy(encoder).eval().to(self.device)  # what batches are encoded with
        self.hints = range(len(encoder.features)) if config.distill.layerwise else HINTS
        if self.teacher:
            seen = self._heard(self.batch(MEASURED, loader.WHOLE))
            hints = [t.float() for t in seen["hints"]]
            self.scale = [_scale(t) for t in hints]
            if config.distill.layerwise and config.init is None:
                _calibrate(encoder, seen["log_mel"], hints)
        bank = loader.recordings(development, rate)
        self.development = [(label, x.samples) for label, found in bank.items() for source in found for x in source]

    def param_groups(self) -> list[dict[str, Any]]:
        return param_groups(self.module.named_parameters(), self.config.optim.lr, self.config.optim.weight_decay)

    def batch(self, index: int, share: loader.Share) -> dict[str, Any]:
        """Log mels, partly hidden, what the teacher makes of them, and which events they hold.

        A scene is followed by silence, up to the length of the longest. For the heads alone: tokens and their mask, of
        scenes without this silence. Where a GPU trains: the scenes themselves."""
        batch = loader.scene_batch(self.maker, self.config.optim.batch, index, share)
        if self.device.type != "cpu":  # which computes the rest in less time than a background process would
            return batch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(index)
            return self._heard(batch)

    @torch.no_grad()
    def _heard(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the loss takes of a batch: of scenes that are still "waveform" and "mask" (B, T), see `batch`."""
        if "waveform" not in batch:
            return batch
        encoder, batch = self.module.encoder, dict(batch)
        waveform, mask = batch.pop("waveform").to(self.device), batch.pop("mask").to(self.device)
        if self.config.distill.heads:
            batch["tokens"], batch["mask"] = self.frozen(waveform, mask)
            return batch
        log_mel, valid = encoder.log_mel(waveform, torch.ones_like(mask))
        log_mel = spec_augment(log_mel[:, 0], valid.sum(1), bands=BANDS, stretch=STRETCH, fill=None)[:, None]
        batch["log_mel"] = log_mel
        if self.teacher:
            maps = self.teacher(log_mel)
            batch["hints"] = [maps[k].bfloat16() for k in self.hints]
        return batch

    def loss(self, forward: nn.Module, batch: dict[str, Any]) -> Losses:
        batch = self._heard(batch)
        if self.config.distill.heads:
            frames, clips = forward(batch["tokens"], batch["mask"])
            tags = self._tag_losses(batch, frames, clips, batch["mask"])
            return {"loss": tags["frame"] + tags["clip"], **tags}
        log_mel, hints = batch["log_mel"], batch.get("hints", ())
        layerwise = self.config.distill.layerwise
        maps, frames, clips = forward(log_mel, [log_mel, *(t.float() for t in hints[:-1])] if layerwise else None)
        terms: Losses = {}
        loss = torch.zeros((), device=self.device)
        if self.teacher:
            pairs = zip(self.hints, hints, self.scale, strict=True)
            terms["hints"] = torch.stack([hint_loss(maps[k], t, scale) for k, t, scale in pairs]).sum()
            loss = self.config.distill.hints * terms["hints"]
        if not layerwise:
            whole = torch.ones(frames.shape[:2], dtype=torch.bool, device=self.device)
            terms |= self._tag_losses(batch, frames, clips, whole)
            loss = loss + terms["frame"] + terms["clip"]
        return {"loss": loss, **terms}

    def _tag_losses(self, batch: dict[str, Any], frames: Tensor, clips: Tensor, mask: Tensor) -> Losses:
        """`tag_losses` of the logits of a batch."""
        target = loader.activity(batch["events"], self.labels, frames.shape[1], self.module.encoder.frame_rate)
        return tag_losses(target.to(frames.device), frames.float(), clips.float(), mask)

    def check(self) -> dict[str, float]:
        """The share of development recordings whose label the clip head gives the highest probability; {} before it
        learns."""
        if self.config.distill.layerwise:
            return {}
        right, encoder = 0, self.module.encoder
        for k in range(0, len(self.development), 32):
            part = self.development[k : k + 32]
            waveform, mask = loader.pad([x.astype("float32") / 32767 for _, x in part])
            tags = encoder.tag(*encoder(waveform.to(self.device), mask.to(self.device)))
            right += sum(self.labels[n] == label for n, (label, _) in zip(tags.argmax(1), part, strict=True))
        return {"development_accuracy": right / len(self.development)}

    def save(self, write: bool) -> None:
        """The encoder with its heads, as `EfficientAT.from_pretrained` reads it."""
        if write:
            self.module.encoder.save(self.config.out)


def _begin_with(encoder: EfficientAT, folder: str) -> None:
    """Put the weights of the encoder in `folder` into `encoder`; ConfigError where it is another network."""
    try:
        other = EfficientAT.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"init: {error}") from None
    differ = sorted(key for key, value in other.options.items() if encoder.options[key] != value)
    if set(differ) - {"labels"}:
        raise ConfigError(f"init: {folder}: is an encoder of other options: {', '.join(differ)}; give the same ones")
    weights = {key: value for key, value in other.state_dict().items() if not differ or not key.startswith("heads.")}
    encoder.load_state_dict({**encoder.state_dict(), **weights})


def _scale(maps: Tensor) -> Tensor:
    """One over the spread of each channel of feature maps (B, C, H, N): (1, C, 1, 1)."""
    spread = maps.std((0, 2, 3), keepdim=True)
    return 1 / (spread + 0.03 * spread.mean())  # a channel that hardly ever moves is not blown up


@torch.no_grad()
def _calibrate(encoder: EfficientAT, log_mel: Tensor, hints: Sequence[Tensor]) -> None:
    """Let the last BatchNorm of every layer begin with the mean and the spread that its channels should get."""
    for layer, given, t in zip(encoder.features, [log_mel, *hints], hints, strict=False):
        added = t - given if getattr(layer, "residual", False) else t
        norm: Any = layer[1] if isinstance(layer, Convolution) else layer.block[-1][1]  # type: ignore[index,union-attr]
        norm.weight.copy_(added.std((0, 2, 3)) + EPSILON)
        norm.bias.copy_(added.mean((0, 2, 3)))


def hint_loss(ours: Tensor, theirs: Tensor, scale: Tensor) -> Tensor:
    """Smooth L1 between feature maps (B, C, H, N), each channel times its scale (1, C, 1, 1)."""
    return F.smooth_l1_loss(ours.float() * scale, theirs.float() * scale)


def tag_losses(target: Tensor, frames: Tensor, clips: Tensor, mask: Tensor) -> Losses:
    """Cross entropy of the heads: what sounds (B, N, labels), frame logits (B, N, labels + 1), clip logits (B, labels),
    and which tokens are of the clip (B, N). Several labels at once share the probability alike."""
    heard = target.amax(1)  # (B, labels)
    target = torch.cat([target, (target.sum(2, keepdim=True) == 0).float()], 2)  # (B, N, labels + 1)
    wanted = target / target.sum(2, keepdim=True)
    frame = -(wanted * frames.log_softmax(2)).sum(2)[mask].mean()
    clip = F.cross_entropy(clips, heard / heard.sum(1, keepdim=True), label_smoothing=0.05)
    return {"frame": frame, "clip": clip}
