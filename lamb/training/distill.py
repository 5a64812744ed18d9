"""Stage `distill` of the bundled model: an EfficientAT from random weights, taught by a published one. [O]

The teacher hears the very input that the student hears, scenes mixed from labelled recordings. What is asked of the
student, with h_k, t_k the feature maps of student and teacher after layer k, each channel standardised:

    hints    sum over k of smooth L1(h_k, t_k)          (after FitNets, arXiv 1412.6550)
    classes  binary cross entropy against the teacher's probabilities of its AudioSet classes
    frame    cross entropy of the student's frame head against which of our labels sound in a token
    clip     the same of its clip head for the whole scene

Hints at every depth give each layer an answer of its own, so that random weights come near the teacher within some
hundred steps on short stretches (`distill.crop`; there are no labels then); a second run adds the labels. Without a
teacher there are the labels alone. Nothing of the teacher is part of the result.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..audio.files import write as write_text
from ..config import ConfigError, TrainConfig
from ..data import loader
from ..model.encoders import build_encoder
from ..model.encoders.efficientat import EfficientAT, mean
from ..model.encoders.spec_augment import spec_augment
from ..model.losses import share_of
from .device import cpu_has_bfloat16
from .stage import Losses, Stage, param_groups

HINTS = (0, 1, 3, 6, 10, 12, 15, 16)  # layers: the first and last convolution, and blocks at every resolution
MEASURED = range(10**6, 10**6 + 3)  # batches that the spread of the teacher's channels is measured on
BANDS, STRETCH = 16, 30  # longest stretches of bands and of frames that are hidden
EMPTY = -1.40259  # (ln(1e-5) + 4.5) / 5: log mel of a band without any power


class Teacher:
    """A published EfficientAT that listens to the student's log mels."""

    def __init__(self, source: str, student: EfficientAT):
        try:
            self.net = EfficientAT.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ConfigError(f"distill.teacher: {error}") from None
        if not self.net.options["outputs"]:
            raise ConfigError(f"distill.teacher: {source}: has no AudioSet head; give an official checkpoint")
        self.net.eval().requires_grad_(False)
        self.missing = self.net.mels - student.mels
        differ = [key for key in ("width", "strides") if student.options[key] != self.net.options[key]]
        if differ or student.dim != self.net.dim or len(student.windows) != 1 or self.missing < 0:
            raise ConfigError(
                "model.encoder.options: feature maps are compared channel by channel, so it takes the teacher's "
                f"width ({self.net.options['width']}), strides and dim, one window, and at most {self.net.mels} mels"
            )

    @torch.no_grad()
    def __call__(self, log_mel: Tensor, valid: Tensor) -> tuple[list[Tensor], Tensor]:
        """log mels (B, 1, mels, F) of the teacher's lower bands, mask (B, F) -> the feature maps of HINTS
        (B, C_k, H_k, N_k), logits (B, classes)."""
        x = F.pad(log_mel, (0, 0, 0, self.missing), value=EMPTY)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=fast(x.device)):
            maps, mask = hinted(self.net, x, valid)
        return maps, self.net.classify(mean(maps[-1], mask))


def hinted(net: EfficientAT, log_mel: Tensor, valid: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """The feature maps of HINTS, the last of which is the network's, and the mask of that."""
    maps, mask = [], None
    for k, (x, mask) in enumerate(net.layers(log_mel, valid)):  # noqa: B007  the last mask is asked for
        if k in HINTS:
            maps.append(x)
    return maps, mask


class Student(nn.Module):
    """The encoder with a head for the teacher's classes, which is left behind."""

    def __init__(self, encoder: EfficientAT, classes: int):
        super().__init__()
        self.encoder = encoder
        self.classes = nn.Linear(encoder.dim, classes) if classes else nn.Identity()
        self.dropout = nn.Dropout(0.2)

    def forward(self, log_mel: Tensor, valid: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]:
        """log mels (B, 1, mels, F), mask (B, F) -> the feature maps of HINTS, logits: frame (B, N, labels + 1) with
        its mask (B, N), clip (B, labels), the teacher's classes (B, classes)."""
        maps, mask = hinted(self.encoder, log_mel, valid)
        tokens = self.encoder.tokens(maps[-1])  # (B, N, D)
        present = valid.new_ones(tokens.shape[:2]) if mask is None else mask[:, 0, 0]
        clip = (tokens * present[..., None]).sum(1) / present.sum(1, keepdim=True)  # (B, D)
        heads = self.encoder.heads
        frames, clips = heads["frame"](self.dropout(tokens)), heads["clip"](self.dropout(clip))
        return maps, frames, present, clips, self.classes(clip)


def fast(device: torch.device) -> bool:
    """Whether bfloat16 is quick on `device`, where a teacher's opinion need not be more exact."""
    return device.type != "cpu" or cpu_has_bfloat16()


class DistillStage(Stage):
    """See above. With `init`, the student begins with the weights of the encoder in that folder; its heads are new
    where that was trained on other labels."""

    module: Student

    def __init__(self, config: TrainConfig):
        self.config, options = config, config.model.encoder.options
        if config.model.encoder.name != "efficientat":
            raise ConfigError(
                f"model.encoder.name: {config.model.encoder.name!r} is not taught here, only 'efficientat' is"
            )
        if config.distill.teacher is None and config.distill.crop:
            raise ConfigError("distill.crop: stretches have no labels, and no distill.teacher is there to ask either")
        if "labels" in options:
            raise ConfigError("model.encoder.options.labels: this stage finds out the labels itself; leave it out")
        rate = options.get("sample_rate", 16000)
        self.maker, development = loader.scene_maker(config, rate)
        self.labels = self.maker.labels
        described = {**options, "sample_rate": rate, "labels": self.labels}
        encoder = build_encoder(replace(config.model.encoder, source=None, train="full", options=described))
        if config.init is not None:
            _begin_with(encoder, config.init)
        self.teacher = Teacher(config.distill.teacher, encoder) if config.distill.teacher else None
        self.module = Student(encoder, self.teacher.net.options["outputs"] if self.teacher else 0)
        if self.teacher:
            silence = torch.zeros(1, 1, encoder.mels, 64), torch.ones(1, 64, dtype=torch.bool)
            with torch.no_grad():
                maps, _ = hinted(encoder.eval(), *silence)
            self.rows = [t.shape[2] for t in maps]  # H_k of the student: the lower ones of the teacher's
            seen = [self.batch(index, loader.WHOLE)["hints"] for index in MEASURED]
            self.scale = [_scale(hints) for hints in zip(*seen, strict=True)]
        bank = loader.recordings(development, rate)
        self.development = [(label, x.samples) for label, found in bank.items() for source in found for x in source]

    def param_groups(self) -> list[dict[str, Any]]:
        return param_groups(self.module.named_parameters(), self.config.optim.lr, self.config.optim.weight_decay)

    def batch(self, index: int, share: loader.Share) -> dict[str, Any]:
        """Log mels, partly hidden, what the teacher says of them, and which events they hold."""
        batch = loader.scene_batch(self.maker, self.config.optim.batch, index, share)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(index)
            log_mel, valid = self.module.encoder.log_mel(batch["waveform"], batch["mask"])
            if self.config.distill.crop:
                log_mel, valid = stretches(log_mel, valid, self.config.distill.crop)
            log_mel = spec_augment(log_mel[:, 0], valid.sum(1), bands=BANDS, stretch=STRETCH, fill=None)[:, None]
            made = {"log_mel": log_mel, "valid": valid, "events": batch["events"]}
            if self.teacher:
                maps, made["classes"] = self.teacher(log_mel, valid)
                made["hints"] = [t[:, :, :rows].bfloat16() for t, rows in zip(maps, self.rows, strict=True)]
        return made

    def loss(self, forward: nn.Module, batch: dict[str, Any]) -> Losses:
        encoder, weights = self.module.encoder, self.config.distill
        device = next(encoder.parameters()).device
        log_mel, valid = batch["log_mel"].to(device), batch["valid"].to(device)
        maps, frames, present, clips, classes = forward(log_mel, valid)
        terms: Losses = {}
        loss = torch.zeros((), device=device)
        if self.teacher:
            likely = batch["classes"].to(device).sigmoid()
            terms["classes"] = F.binary_cross_entropy_with_logits(classes.float(), likely)
            hints = [
                hint_loss(ours, theirs.to(device), *scale, valid)
                for ours, theirs, scale in zip(maps, batch["hints"], self.scale, strict=True)
            ]
            terms["hints"] = torch.stack(hints).sum()
            loss = weights.hints * terms["hints"] + weights.classes * terms["classes"]
        if not weights.crop:
            target = loader.activity(batch["events"], self.labels, frames.shape[1], encoder.frame_rate)
            terms |= tag_losses(target.to(device), frames.float(), present, clips.float())
            loss = loss + terms["frame"] + terms["clip"]
        return {"loss": loss, **terms}

    def check(self) -> dict[str, float]:
        """The share of development recordings whose label the clip head gives the highest probability."""
        right, encoder = 0, self.module.encoder
        device = next(encoder.parameters()).device
        for k in range(0, len(self.development), 32):
            part = self.development[k : k + 32]
            waveform, mask = loader.pad([x.astype("float32") / 32767 for _, x in part])
            tags = encoder.tag(*encoder(waveform.to(device), mask.to(device)))
            right += sum(self.labels[n] == label for n, (label, _) in zip(tags.argmax(1), part, strict=True))
        return {"development_accuracy": right / len(self.development)}

    def save(self, write: bool) -> None:
        """The encoder with its heads, as `EfficientAT.from_pretrained` reads it."""
        from safetensors.torch import save_file

        if not write:
            return
        out, encoder = Path(self.config.out), self.module.encoder
        write_text(out / "config.json", json.dumps(encoder.options))
        save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, out / "model.safetensors")


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


def _scale(hints: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Mean and spread of each channel of a teacher's feature maps (B, C, H, N): (1, C, 1, 1) each."""
    values = torch.cat([t.float().transpose(0, 1).flatten(1) for t in hints], 1)  # (C, positions)
    spread = values.std(1) + 0.03 * values.std()  # a channel that hardly ever moves is not blown up
    return values.mean(1)[None, :, None, None], spread[None, :, None, None]


def hint_loss(ours: Tensor, theirs: Tensor, centre: Tensor, spread: Tensor, valid: Tensor) -> Tensor:
    """Smooth L1 between feature maps (B, C, H, N), where the clip is: mask (B, F) of the log mel.

    Each channel is standardised, ours by the batch, so that only its course counts and no scale has to be learnt.
    """
    stride = round(valid.shape[1] / ours.shape[3])
    inside = valid[:, ::stride][:, None, None, : ours.shape[3]].float()  # (B, 1, 1, N)
    ours = F.batch_norm(ours.float(), None, None, training=True)
    error = F.smooth_l1_loss(ours, (theirs.float() - centre) / spread, reduction="none")
    return (error * inside).mean() / inside.mean()


def tag_losses(target: Tensor, frames: Tensor, present: Tensor, clips: Tensor) -> Losses:
    """Cross entropy of the heads: what sounds (B, N, labels), frame logits (B, N, labels + 1) with their mask (B, N),
    clip logits (B, labels). Several labels at once share the probability alike."""
    heard = target.amax(1)  # (B, labels)
    target = torch.cat([target, (target.sum(2, keepdim=True) == 0).float()], 2)  # (B, N, labels + 1)
    wanted = target / target.sum(2, keepdim=True)
    frame = share_of(present.sum()) * -(wanted * frames.log_softmax(2)).sum(2)[present].mean()
    clip = F.cross_entropy(clips, heard / heard.sum(1, keepdim=True), label_smoothing=0.05)
    return {"frame": frame, "clip": clip}


def stretches(log_mel: Tensor, valid: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """A random stretch of `frames` of each clip: (B, 1, mels, F), mask (B, F) -> (B, 1, mels, frames), mask."""
    spare = (valid.sum(1) - frames).clamp(min=0)
    start = (torch.rand(len(spare)) * (spare + 1)).long()
    padded = F.pad(log_mel, (0, frames))
    cut = torch.stack([x[..., k : k + frames] for x, k in zip(padded, start.tolist(), strict=True)])
    return cut, valid.new_ones(len(cut), frames)
