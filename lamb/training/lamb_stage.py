"""Stage `lamb`, the method itself: adapter, aligner and guide learn, encoder and LLM as their configs say (section 7).

It trains on captioned recordings (`data.manifest`), as in the paper, or on scenes mixed from labelled recordings
(`data.sounds`), as the bundled model does. [O]
"""

import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..audio import reader as audio
from ..config import ConfigError, LambConfig, TrainConfig
from ..data import leakage, loader, manifest
from ..data.vocabulary import names
from ..evaluation import metrics
from ..evaluation.gap import scores as gap_scores
from ..evaluation.labels import label_scores
from ..evaluation.tokenizer import tokenize
from ..extensions import build, load
from ..inference.captioner import Captioner
from ..inference.captions import SILENCE
from ..inference.confidence import fit_confidence
from ..inference.recording import heard
from ..model.aligner import gap
from ..model.checkpoint import save
from ..model.lamb import LambModel
from ..model.losses import cross_entropy, loss_terms
from ..model.token_guide import initial_beta
from . import sharding
from .device import TrainingError, device_of, require_memory
from .stage import Losses, Stage, caption_weights, param_groups

CHECKED = 200  # clips, at most, that are captioned at a check
# Learning rates of the scalars that have one of their own, in units of optim.lr: the guide's beta (relative to its
# size), gamma of a residual guide, and the logarithm of InfoNCE's scale. [O]
SCALARS = {"guide.beta": 10.0, "guide.gamma": 3.0, "aligner.log_scale": 1.0}


class LambStage(Stage):
    """The model, its data and its objective (`lamb.model.losses`)."""

    module: LambModel

    def __init__(self, config: TrainConfig):
        self.config, self.module = config, new_model(config)
        if config.data.manifest:
            self.data: CaptionedClips | LabelledScenes = CaptionedClips(config, self.module)
        else:
            self.data = LabelledScenes(config, self.module)
        self.epoch, self.clips = self.data.epoch, self.data.clips
        self.unreadable: set[str] = set()  # clips that have been reported
        self.heard = 0  # clips, by this process

    def param_groups(self) -> list[dict[str, Any]]:
        model, optim = self.module, self.config.optim
        named = list(model.named_parameters())
        own = [(n, p) for n, p in named if not n.startswith(("llm.", "encoder.")) and n not in SCALARS]
        bases = [(n, p) for n, p in named if n.startswith(("llm.", "encoder."))]
        groups = param_groups(own, optim.lr, optim.weight_decay)
        groups += param_groups(bases, optim.lr if optim.llm_lr is None else optim.llm_lr, optim.weight_decay)
        for name, parameter in named:
            if name in SCALARS:
                scale = self._size_of_beta() if name == "guide.beta" else 1.0
                groups.append({"params": [parameter], "lr": SCALARS[name] * scale * optim.lr, "weight_decay": 0.0})
        return groups

    def _size_of_beta(self) -> float:
        """|beta|, or a tenth of what a new guide would start with if that is more: a beta of 0 can learn too."""
        model = self.module
        assert model.guide is not None
        new = initial_beta(model.llm.embedding_matrix.detach(), model.token_norm(), model.config.guide)
        return max(abs(float(model.guide.beta.detach())), 0.1 * new)

    def batch(self, index: int, share: loader.Share) -> dict[str, Any]:
        return self.data.batch(index, share)

    def weights(self, batches: Sequence[dict[str, Any]]) -> list[float]:
        return caption_weights(self.module.llm, batches)

    def loss(self, forward: nn.Module, batch: dict[str, Any]) -> Losses:
        if self.clips:
            clips, here = self.clips[0], len(batch["ids"])  # of optim.batch, which all processes share
            self.heard += here
            had = min(clips, max(self.heard, clips * here // self.config.optim.batch))
            leave_out(batch["unreadable"], self.unreadable, self.config, had)
        model = self.module
        ids, mask = model.llm.tokenize(batch["captions"])
        sound, sound_mask = batch["waveform"].to(model.device), batch["mask"].to(model.device)
        output = forward(sound, sound_mask, ids, mask, batch.get("encoded", False))
        terms = loss_terms(model, output, batch.get("weight", 1.0))
        terms |= gap(output.z_a, output.z_a_mask, output.z_t, output.z_t_mask)
        if model.guide is not None:  # beta, and gamma of a residual guide
            terms |= dict(model.guide.named_parameters())
        return terms

    def check(self) -> dict[str, float]:
        return self.data.check()

    def save_best(self, write: bool) -> None:
        self._save(Path(self.config.out) / "best", write)

    def save(self, write: bool) -> None:
        with sharding.gathered(self.module):
            decode = self.data.decode_options() if write else {}
        self._save(Path(self.config.out), write, decode)

    def _save(self, folder: Path, write: bool, decode: dict[str, Any] | None = None) -> None:
        """Write the model into `folder`, with the parts that cannot be found again by the name of their source."""
        encoder, llm = self.module.encoder, self.module.config.llm
        stored = {"encoder", "llm"} if llm.train == "full" or llm.source is None else set()
        if _is_local(self.module.config.encoder.source):
            stored.add("encoder")
        if encoder.options is None:  # such an encoder has a source that will be there
            stored = set()
        save(self.module, folder, stored=stored, card=self.config.card, half=True, decode=decode, write=write)


def _is_local(source: str | None) -> bool:
    """Whether a source is a path of this machine, or nothing; else it has a name on the hub or in a package."""
    return source is None or Path(source).exists()


def new_model(config: TrainConfig) -> LambModel:
    """The model to train, on its device; what learns in float32, and sharded where the recipe says so."""
    device = device_of(config)
    if config.init is None:
        model = build(config.model, device)
    elif config.model == LambConfig():
        model = load(config.init, str(device))
    else:
        raise ConfigError("init: brings its own model; leave out the section `model`, or init")
    if config.data.spec_augment:
        if not model.encoder.can_spec_augment:
            raise ConfigError(
                f"data.spec_augment: the encoder {model.config.encoder.name} has none, only ced has; leave it out"
            )
        if model.config.encoder.train == "frozen":
            raise ConfigError("data.spec_augment: a frozen encoder cannot use it; set model.encoder.train=lora")
        model.encoder.spec_augment = True
    for part, weight in ((model.aligner, model.config.loss.alignment), (model.guide, model.config.loss.guided)):
        if part is not None and not weight:
            part.requires_grad_(False)  # no loss reaches it, and DDP would wait for its gradient
    if (heads := getattr(model.encoder, "heads", None)) is not None:  # of labels; no loss of this stage reaches them
        for name, head in heads.items():
            if name != "frame" or not model.config.extensions.class_prototypes.enabled:
                head.requires_grad_(False)
    prepare(model, device)
    if config.optim.checkpointing:
        model.llm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.optim.shard:
        sharding.shard(model, model.llm.model, device)
    require_memory(model, config, device)
    return model.to(device)


def prepare(model: LambModel, device: torch.device) -> None:
    """What learns is held in float32; on a CPU, the LLM's attention is computed in the way that trains fastest."""
    for parameter in model.parameters():
        if parameter.requires_grad:  # in bf16 most steps of 5e-5 would round to nothing
            parameter.data = parameter.data.float()
    if device.type == "cpu":  # its fused attention goes backwards five times slower
        model.llm.model.set_attn_implementation("eager")


class CaptionedClips:
    """Captioned recordings of a manifest (`data.manifest`), checked on its validation split."""

    def __init__(self, config: TrainConfig, model: LambModel):
        self.config, self.model = config, model
        path, data, optim = Path(config.data.manifest or ""), config.data, config.optim
        clips = [clip for clip in manifest.read(path, data.split) if clip.captions]
        self.held = [c for c in manifest.read(path, data.validation) if c.captions] if data.validation else []
        leakage.check(clips, [clip for clip in manifest.read(path) if clip.split != data.split])
        tokens, rate, decode = None, model.encoder.sample_rate, model.config.decode
        cut = partial(heard, sample_rate=rate, options=decode)  # what inference would encode
        if data.cache:
            if model.config.encoder.train != "frozen":
                raise ConfigError(
                    "data.cache: only the tokens of a frozen encoder can be kept; set model.encoder.train=frozen"
                )
            cache = loader.TokenCache.of(data.cache, model.encoder, (decode.window, decode.hop))
            every = len(clips)
            clips, tokens, problems = cache.fill(clips, data.seconds, rate, self._encode, cut)
            leave_out(problems, set(), config, every)
        if len(clips) < optim.batch * optim.accumulate:
            raise ConfigError(f"{path}: {len(clips)} captioned clips of split {data.split!r}, fewer than a step takes")
        self.reader = loader.ClipReader(clips, rate, data.seconds, config.seed, tokens, cut, data.gain)
        self.epoch, self.clips = len(clips) // optim.batch, (len(clips), len(self.held))

    def batch(self, index: int, share: loader.Share) -> dict[str, Any]:
        return loader.clip_batch(self.reader, self.config.optim.batch, index, share)

    def check(self) -> dict[str, float]:
        """CIDEr-D of greedy captions, losses and modality gap on the validation split; {} without one."""
        if not self.held:
            return {}
        chosen = self.held[:: max(1, len(self.held) // CHECKED)]
        captioner = Captioner(self.model, replace(self.model.config.decode, beams=1))
        results = captioner.caption(chosen)
        for result, clip in list(zip(results, chosen, strict=True))[:3]:
            print(f"{clip.id}: {result.text or result.error} ({clip.captions[0]})", file=sys.stderr)
        texts = [tokenize(result.text) for result in results]  # empty for a file that cannot be read
        references = [[tokenize(text) for text in clip.captions] for clip in chosen]
        cider_d = metrics.cider_d(texts, references)[0]
        return {"cider_d": cider_d, **self._validation_loss(), **gap_scores(self.model, chosen)}

    def decode_options(self) -> dict[str, Any]:
        """Decoding options found at the end of training: none."""
        return {}

    def _validation_loss(self) -> dict[str, float]:
        """Cross entropies of a caption of each held clip, raw and guided: of batches, weighted by their clips."""
        sums: dict[str, float] = {}
        size = self.config.optim.batch
        parts = [self.held[k : k + size] for k in range(0, len(self.held), size)]
        for part in parts:
            fixed = replace(self.reader, clips=part, tokens=None, gain=0.0)
            batch = loader.clip_batch(fixed, len(part), 0)  # the crops and captions of epoch 0, at every check
            ids, mask = self.model.llm.tokenize(batch["captions"])
            device = self.model.device
            output = self.model(batch["waveform"].to(device), batch["mask"].to(device), ids, mask)
            share = len(part) / len(self.held)
            plain = float(cross_entropy(output.logits, output.labels))
            sums["val_plain"] = sums.get("val_plain", 0) + share * plain
            if output.bias is not None:
                guided = float(cross_entropy(output.logits, output.labels, output.bias))
                sums["val_guided"] = sums.get("val_guided", 0) + share * guided
        return sums

    @torch.no_grad()
    def _encode(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The frozen encoder in evaluation mode, for the cache: (B, T), (B, T) -> (B, N, D), (B, N)."""
        self.model.eval()
        return self.model.encode(waveform.to(self.model.device), mask.to(self.model.device))


class LabelledScenes:
    """Scenes mixed from the labelled recordings of `data.sounds`, checked on its development recordings. [O]"""

    epoch, clips = 0, None

    def __init__(self, config: TrainConfig, model: LambModel):
        for name in ("cache", "gain"):
            if getattr(config.data, name):
                raise ConfigError(f"data.{name}: only the clips of data.manifest can have it", "leave it out")
        self.config, self.model = config, model
        self.maker, self.development = loader.scene_maker(config, model.encoder.sample_rate)
        self.early = model.config.encoder.train == "frozen" and model.device.type == "cpu"  # encoded in the background
        if self.early:
            model.encoder.eval()

    def batch(self, index: int, share: loader.Share) -> dict[str, Any]:
        batch = loader.scene_batch(self.maker, self.config.optim.batch, index, share)
        if self.early:
            with torch.no_grad():
                batch["waveform"], batch["mask"] = self.model.encode(batch["waveform"], batch["mask"])
        return {**batch, "encoded": self.early}

    def check(self) -> dict[str, float]:
        """The share of development recordings whose label the greedy caption names, and the modality gap."""
        chosen = self.development[:: max(1, len(self.development) // CHECKED)]
        captioner = Captioner(self.model, replace(self.model.config.decode, beams=1))
        named = label_scores(chosen, list(captioner.stream(chosen)))["label_named"]
        return {"named": named, **gap_scores(self.model, chosen)}

    def decode_options(self) -> dict[str, Any]:
        """The confidence, calibrated on the development recordings with the search that will be used; nothing where
        sounds are weighed, which `scripts/fit_weighing.py` fits."""
        if self.model.config.decode.weigh.enabled:
            return {}
        results = Captioner(self.model).caption(self.development)
        said = [(c, r) for c, r in zip(self.development, results, strict=True) if r.ok and r.text != SILENCE]
        right = [names(result.text, clip.labels[0]) for clip, result in said]
        return {"confidence": fit_confidence([result.score or 0.0 for _, result in said], right)}


def leave_out(problems: Iterable[str], known: set[str], config: TrainConfig, clips: int) -> None:
    """Warn of clips that cannot be read and add them to those `known`; TrainingError if these are too many of all."""
    for problem in sorted(set(problems) - known):
        warnings.warn(f"left out: {problem}", audio.AudioWarning, stacklevel=2)
    known.update(problems)
    if len(known) > math.ceil(config.data.unreadable * clips):
        listed = "\n".join([*sorted(known)[:20], *(["..."] if len(known) > 20 else [])])
        raise TrainingError(
            f"{len(known)} of {clips} clips cannot be read, a larger share than data.unreadable="
            f"{config.data.unreadable:g}:\n{listed}"
        )
