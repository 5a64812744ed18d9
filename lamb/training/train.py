"""`lamb train`: one stage of training, from a recipe to a folder (paper section 7; the first two are our choice).

Stages: `encoder` (a convolutional encoder learns to tag scenes), `language_model` (a small LLaMA learns to write
captions), `lamb` (the method: adapter, aligner, guide, and the language model with them). All run the same loop, `fit`.
"""

import json
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..audio import reader as audio
from ..config import ConfigError, LambConfig, TrainConfig, read_recipe
from ..data import leakage, loader, manifest, scenes, sources
from ..data.labels import names
from ..data.manifest import Clip
from ..data.render import split_sounds
from ..evaluation import metrics
from ..evaluation.gap import scores as gap_scores
from ..evaluation.labels import label_scores
from ..inference.captioner import SILENCE, Captioner
from ..inference.confidence import fit_confidence
from ..inference.generation import clean
from ..model import sharding
from ..model.aligner import gap
from ..model.checkpoint import load, save
from ..model.encoders.conv import ConvEncoder
from ..model.lamb import LambModel, build, build_encoder, caption_labels
from ..model.language_model import LanguageModel
from ..model.losses import cross_entropy, loss_terms, share_of, token_share
from .loop import (
    LESS_MEMORY,
    Losses,
    TrainingError,
    device_of,
    fit,
    groups,
    is_first_process,
    require_memory,
    run_facts,
    write,
)

HEADS = "heads.safetensors"  # that an encoder was trained with, beside its weights


def train(recipe: str | Path, overrides: list[str] | tuple[str, ...] = (), resume: bool = False) -> Path:
    """Run the stage that `recipe` describes; returns the folder of the result.

    Raises ConfigError for a recipe that cannot be used, and for a folder that already holds a run unless `resume`.
    """
    config = read_recipe(recipe, overrides)
    out = Path(config.out)
    if (out / "recipe.json").exists():
        if not resume:
            raise ConfigError(f"{out}: holds a run already; go on with --resume, or choose another out=FOLDER")
        begun, now = json.loads((out / "recipe.json").read_text()), run_facts(config)
        if begun.pop("lists", None) != now.pop("lists"):
            raise ConfigError(f"{out}: was begun with another list of recordings; choose another out=FOLDER")
        if begun != now:
            raise ConfigError(f"{out}: was begun with another recipe; choose another out=FOLDER")
    torch.manual_seed(config.seed)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.optim.shard and config.stage != "lamb":
        raise ConfigError(f"optim.shard: stage {config.stage} trains no large LLM; leave it out")
    try:
        STAGES[config.stage](config, out)
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(".")[0]
        raise TrainingError(f"the GPU's memory is full ({reason}): {LESS_MEMORY}") from None
    return out


def _scenes(config: TrainConfig, sample_rate: int) -> tuple[scenes.SceneMaker, list[Any]]:
    """A maker of scenes from the training recordings, and the development clips."""
    if config.data.sounds is None:
        raise ConfigError("data.sounds: the folder of labelled recordings is missing from the recipe")
    training, development = split_sounds(config.data.sounds)
    bank = loader.recordings(training, sample_rate)
    return scenes.SceneMaker(bank, sample_rate, config.data.seconds, config.seed, config.data.shares), development


class Tagger(nn.Module):
    """The encoder with a linear head on its tokens, which it keeps to draw them by, and one on their mean.

    In training every trunk that learns answers for itself, R trunks R times the batch; in evaluation the mean of all.
    """

    def __init__(self, encoder: Any, labels: int):
        super().__init__()
        self.encoder = encoder
        self.trained = [trunk for trunk in encoder.trunks if trunk.place.requires_grad]
        self.frame = nn.Linear(encoder.dim, labels + 1)  # the last: nothing sounds
        self.clip = nn.Linear(encoder.dim, labels)
        self.dropout = nn.Dropout(0.2)

    def forward(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T), (B, T) -> frame logits (R * B, N, C + 1), their mask (R * B, N), clip logits (R * B, C); R = 1 in
        evaluation."""
        if self.training:
            heard = []
            for trunk in self.trained:
                log_mel, valid = trunk.log_mel(waveform, mask)
                heard.append(trunk.encode(band_mask(log_mel, valid), valid))
            tokens, mask = (torch.cat(parts) for parts in zip(*heard, strict=True))
        else:
            tokens, mask = self.encoder(waveform, mask)
        pooled = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # (R * B, D)
        return self.frame(self.dropout(tokens)), mask, self.clip(self.dropout(pooled))


def band_mask(log_mel: Tensor, valid: Tensor, bands: int = 10, frames: int = 30, times: int = 2) -> Tensor:
    """SpecAugment on (B, frames, mels), mask (B, frames): bands and stretches of a clip, `times` each, set to its
    mean. [A]"""
    size, length, mels = log_mel.shape
    mean = ((log_mel * valid[..., None]).sum((1, 2)) / (valid.sum(1) * mels))[:, None, None]
    for axis, most, n in ((2, bands, mels), (1, frames, length)) * times:
        width = torch.rand(size) * most
        start = torch.rand(size) * (n - width).clamp_min(0)
        index = torch.arange(n)
        hidden = ((index >= start[:, None]) & (index < (start + width)[:, None])).to(log_mel.device)  # (B, n)
        log_mel = torch.where(hidden[:, None] if axis == 2 else hidden[..., None], mean, log_mel)
    return log_mel


def train_encoder(config: TrainConfig, out: Path) -> None:
    """Stage `encoder`: cross entropy against what sounds, of every token and of the clip, on mixed scenes. [O]

    With `init`, trunks are added to the encoder in that folder. Its own stay as they are, and so do its heads, which
    the new ones learn to answer to: the mean of all is what the heads read.
    """
    from safetensors.torch import save_file

    if config.model.encoder.name != "conv":
        raise ConfigError(f"model.encoder.name: {config.model.encoder.name!r} is not trained here, only 'conv' is")
    if "labels" in config.model.encoder.options:
        raise ConfigError("model.encoder.options.labels: is what this stage finds out; leave it out")
    if config.init is None:
        encoder = build_encoder(replace(config.model.encoder, source=None, train="full"))
    else:
        encoder = _grown(Path(config.init), config.model.encoder.options)
    maker, development = _scenes(config, encoder.sample_rate)
    tagger = Tagger(encoder, len(maker.labels))
    if config.init is not None:
        _put_heads(tagger, Path(config.init))
    optim = config.optim

    def losses(forward: nn.Module, batch: dict[str, Any]) -> Losses:
        device = tagger.clip.weight.device
        frames, mask, clip = forward(batch["waveform"].to(device), batch["mask"].to(device))
        frames, clip = frames.float(), clip.float()
        target = loader.activity(batch["events"], maker.labels, frames.shape[1], encoder.frame_rate)  # (B, N, C)
        target = target.to(device).repeat(len(frames) // len(target), 1, 1)  # once for each trunk
        nothing = (target.sum(2, keepdim=True) == 0).float()
        target = torch.cat([target, nothing], 2)
        share = target / target.sum(2, keepdim=True)
        frame_loss = share_of(mask.sum()) * -(share * frames.log_softmax(2)).sum(2)[mask].mean()
        present = target[..., :-1].amax(1)
        clip_loss = F.cross_entropy(clip, present / present.sum(1, keepdim=True), label_smoothing=0.05)
        return {"loss": frame_loss + clip_loss, "frame": frame_loss, "clip": clip_loss}

    bank = loader.recordings(development, encoder.sample_rate)
    clips = [(label, x) for label, found in bank.items() for source in found for x in source]

    def check() -> dict[str, float]:
        right = 0
        for k in range(0, len(clips), 32):
            part = clips[k : k + 32]
            waveform, mask = loader.pad([x.astype("float32") / 32767 for _, x in part])
            device = tagger.clip.weight.device
            _, _, logits = tagger(waveform.to(device), mask.to(device))
            right += sum(maker.labels[n] == label for n, (label, _) in zip(logits.argmax(1), part, strict=True))
        return {"development_accuracy": right / len(clips)}

    fit(
        config,
        out,
        tagger,
        groups(tagger.named_parameters(), optim.lr, optim.weight_decay),
        partial(loader.scene_batch, maker, optim.batch),
        losses,
        check,
    )
    if is_first_process():
        head = {f"head.{k}": v for k, v in tagger.frame.state_dict().items()}
        weights = {k: v.contiguous() for k, v in {**encoder.state_dict(), **head}.items()}
        write(out / "config.json", json.dumps({**encoder.options, "labels": tagger.frame.out_features}))
        save_file(weights, out / "model.safetensors")
        heads = {k: v.contiguous() for k, v in tagger.state_dict().items() if not k.startswith("encoder.")}
        save_file(heads, out / HEADS)


def _grown(folder: Path, options: Mapping[str, Any]) -> ConvEncoder:
    """The encoder in `folder`, frozen, with new trunks that have the windows `options["n_fft"]`."""
    try:
        old = ConvEncoder.from_pretrained(folder)
    except ValueError as error:
        raise ConfigError(f"init: {error}") from None
    windows = options.get("n_fft", [])
    if set(options) != {"n_fft"} or not windows:
        raise ConfigError("model.encoder.options: with init, give n_fft, the windows of the trunks to add, and no more")
    windows = [windows] if isinstance(windows, int) else windows
    encoder = ConvEncoder(**{**old.options, "n_fft": [*old.options["n_fft"], *windows], "labels": 0})
    encoder.trunks[: len(old.trunks)].load_state_dict(old.trunks.state_dict())
    encoder.trunks[: len(old.trunks)].requires_grad_(False)
    return encoder


def _put_heads(tagger: Tagger, folder: Path) -> None:
    """The heads of the encoder in `folder`, frozen."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        heads = load_file(folder / HEADS)
        for name in ("frame", "clip"):
            head = getattr(tagger, name)
            head.load_state_dict({key: heads[f"{name}.{key}"] for key in ("weight", "bias")})
            head.requires_grad_(False)
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"init: {folder / HEADS}: not the heads of an encoder of these labels ({reason}); give the folder that "
            "stage encoder of lamb train left for the same recordings"
        ) from None


def train_language_model(config: TrainConfig, out: Path) -> None:
    """Stage `language_model`: a tokenizer and a small LLaMA, from scratch, on written and composed captions. [O]"""
    from transformers import LlamaConfig, LlamaForCausalLM

    if config.data.texts is None:
        raise ConfigError("data.texts: the folder of caption texts is missing from the recipe")
    held = [clip for clip in sources.sounds(config.data.sounds) if clip.split != "train"] if config.data.sounds else []
    texts = [clean(t) for t in sources.caption_texts(config.data.texts, {c for clip in held for c in clip.captions})]
    batch = partial(_text_batch, texts, config)
    size = config.language_model
    tokenizer = train_tokenizer([text for step in range(400) for text in batch(step)], size.vocabulary)
    architecture = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    llm = LanguageModel(LlamaForCausalLM(architecture), tokenizer, replace(config.model.llm, train="full"))

    writer = Writer(llm)

    def losses(forward: nn.Module, captions: list[str]) -> Losses:
        ids, mask = llm.tokenize(captions)
        labels = caption_labels(ids, mask, tokenizer.eos_token_id)
        return {"loss": token_share(labels) * cross_entropy(forward(ids), labels)}

    def check() -> dict[str, float]:
        captions = [clean(c) for clip in held for c in clip.captions]
        if not captions:
            return {}
        ids, mask = llm.tokenize(captions)
        return {"held_out": float(cross_entropy(writer(ids), caption_labels(ids, mask, tokenizer.eos_token_id)))}

    fit(
        config,
        out,
        writer,
        groups(llm.named_parameters(), config.optim.lr, config.optim.weight_decay),
        batch,
        losses,
        check,
    )
    if is_first_process():
        llm.model.save_pretrained(out)
        tokenizer.save_pretrained(out)


class Writer(nn.Module):
    """The language model with its prompt and no audio: caption ids (B, L) -> logits (B, L + 1, V)."""

    def __init__(self, llm: LanguageModel):
        super().__init__()
        self.llm = llm

    def forward(self, ids: Tensor) -> Tensor:
        nothing = self.llm.table.new_zeros(len(ids), 0, self.llm.dim)
        prefix, mask = self.llm.prefix(nothing, nothing.new_ones(len(ids), 0, dtype=torch.bool))
        return self.llm.logits(prefix, mask, ids)


def _text_batch(texts: list[str], config: TrainConfig, step: int, share: loader.Share = loader.WHOLE) -> list[str]:
    rng, data, size = np.random.default_rng((config.seed, step)), config.data, config.optim.batch
    batch = [
        scenes.caption(rng, data.shares) if rng.random() < data.composed else texts[int(rng.integers(len(texts)))]
        for _ in range(size)
    ]
    return [batch[k] for k in loader.part_of(size, share)]


def train_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer with <s> and </s>, as a `transformers` tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer(add_prefix_space=True)
    tokenizer.train_from_iterator(texts, vocabulary, 2, show_progress=False, special_tokens=["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>")


def train_lamb(config: TrainConfig, out: Path) -> None:
    """Stage `lamb`: adapter, aligner and guide learn, encoder and LLM as their configs say.

    On captioned recordings (`data.manifest`) or on scenes mixed from labelled ones (`data.sounds`).
    """
    model = _new_model(config)
    clips = None
    if config.data.manifest:
        make, check, finish, epoch, clips = _captioned(config, model)
    elif config.optim.epochs:
        raise ConfigError("optim.epochs: scenes have no epochs, only a manifest has; give optim.steps")
    else:
        make, check, finish, epoch = *_labelled(config, model), 0
    optim = config.optim
    base_lr = optim.lr if optim.llm_lr is None else optim.llm_lr
    scalars = ("guide.beta", "guide.gamma", "aligner.log_scale")
    own = [(n, p) for n, p in model.named_parameters() if not n.startswith(("llm.", "encoder.")) and n not in scalars]
    bases = [(n, p) for n, p in model.named_parameters() if n.startswith(("llm.", "encoder."))]
    parameters = [*groups(own, optim.lr, optim.weight_decay), *groups(bases, base_lr, optim.weight_decay)]
    if model.guide is not None:
        lr = optim.beta_lr * float(model.guide.beta.detach())
        parameters.append({"params": [model.guide.beta], "lr": lr, "weight_decay": 0.0})
        if model.guide.gamma is not None:
            parameters.append({"params": [model.guide.gamma], "lr": optim.gamma_lr, "weight_decay": 0.0})
    if model.aligner is not None and "infonce" in model.aligner.weights:
        scale = {"params": [model.aligner.log_scale], "lr": optim.temperature_lr, "weight_decay": 0.0}
        parameters.append(scale)

    unreadable: set[str] = set()

    def losses(forward: nn.Module, batch: dict[str, Any]) -> Losses:
        new = set(batch.get("unreadable", ())) - unreadable
        unreadable.update(new)
        if new:
            _left_out(new, config, unreadable)
        ids, mask = model.llm.tokenize(batch["captions"])
        sound, sound_mask = batch["waveform"].to(model.device), batch["mask"].to(model.device)
        output = forward(sound, sound_mask, ids, mask, batch.get("encoded", False))
        terms = loss_terms(model, output)
        terms |= gap(output.z_a, output.z_a_mask, output.z_t, output.z_t_mask)
        if model.guide is not None:
            terms["beta"] = model.guide.beta
            if model.guide.gamma is not None:
                terms["gamma"] = model.guide.gamma
        return terms

    # a language model with LoRA, or frozen, stays where it is: only what was trained is written
    nowhere = None in (model.config.encoder.source, model.config.llm.source)
    standalone = (model.config.llm.train == "full" or nowhere) and hasattr(model.encoder, "options")
    keep = partial(save, model, standalone=standalone, card=config.card, half=True, write=is_first_process())
    fit(config, out, model, parameters, make, losses, check, lambda: keep(out / "best"), epoch, clips)
    with sharding.gathered(model):
        decode = finish() if is_first_process() else {}
    keep(out, decode=decode)


def _new_model(config: TrainConfig) -> LambModel:
    """The model to train, on its device, what learns in float32, and sharded where the recipe says so."""
    device = device_of(config)
    if config.init is None:
        model = build(config.model, device)
    elif config.model == LambConfig():
        model = load(config.init, str(device))
    else:
        raise ConfigError("init: brings its own model; leave the section `model` out, or init")
    if config.data.spec_augment:
        if not hasattr(model.encoder, "spec_augment"):
            raise ConfigError(
                f"data.spec_augment: encoder {model.config.encoder.name} has none, only ced; leave it out"
            )
        if model.config.encoder.train == "frozen":
            raise ConfigError("data.spec_augment: a frozen encoder hears as in use; set model.encoder.train=lora")
        model.encoder.spec_augment = True
    for part, weight in ((model.aligner, model.config.loss.alignment), (model.guide, model.config.loss.guided)):
        if part is not None and not weight:
            part.requires_grad_(False)  # no loss reaches it, and DDP would wait for its gradient
    for parameter in model.parameters():
        if parameter.requires_grad:  # in bf16 most steps of 5e-5 would round to nothing
            parameter.data = parameter.data.float()
    if config.optim.shard:
        sharding.shard(model, model.llm.model, device)
    require_memory(model, config, device)
    return model.to(device)


def _sound(clip: Clip, sample_rate: int) -> audio.Source:
    """What the captioner is to hear: the file, or the part of it that is the clip."""
    if not clip.start and clip.duration is None:
        return clip.path
    try:
        return audio.load(clip.path, sample_rate, clip.start, clip.duration), sample_rate
    except audio.AudioError:
        return clip.path  # cannot be read there either, and says why


def _validation_loss(
    model: LambModel, held: list[Clip], reader: loader.ClipReader, config: TrainConfig
) -> dict[str, float]:
    """Cross entropies of a caption of each held clip, raw and guided, as means over their batches."""
    sums: dict[str, float] = {}
    fixed = replace(reader, clips=held, tokens=None)
    size = min(config.optim.batch, len(held))
    batches = len(held) // size
    for k in range(batches):
        batch = loader.clip_batch(fixed, size, k)  # the crops and captions of epoch 0, at every check
        ids, mask = model.llm.tokenize(batch["captions"])
        output = model(batch["waveform"].to(model.device), batch["mask"].to(model.device), ids, mask)
        sums["val_plain"] = sums.get("val_plain", 0) + float(cross_entropy(output.logits, output.labels)) / batches
        if output.bias is not None:
            guided = float(cross_entropy(output.logits, output.labels, output.bias))
            sums["val_guided"] = sums.get("val_guided", 0) + guided / batches
    return sums


def _left_out(problems: Iterable[str], config: TrainConfig, so_far: Collection[str] = ()) -> None:
    """Name the clips that cannot be read; TrainingError when there are more than the recipe allows."""
    problems = list(problems)
    for problem in problems:
        warnings.warn(f"left out: {problem}", audio.AudioWarning, stacklevel=2)
    every = sorted({*problems, *so_far})
    if len(every) > config.data.unreadable:
        listed = "\n".join(every)
        raise TrainingError(f"more than data.unreadable={config.data.unreadable} clips cannot be read:\n{listed}")


def _encoding(model: LambModel) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The frozen encoder as in training: in evaluation mode, without gradients."""

    def encode(waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        model.eval()
        with torch.no_grad():
            return model.encode(waveform.to(model.device), mask.to(model.device))

    return encode


def _labelled(config: TrainConfig, model: LambModel) -> tuple[Any, Any, Any]:
    """Scenes to train on, the check on development recordings, and the calibrated confidence at the end."""
    maker, development = _scenes(config, model.encoder.sample_rate)
    chosen = development[:: max(1, len(development) // 200)]

    def check() -> dict[str, float]:
        captioner = Captioner(model, replace(model.config.decode, beams=1))
        named = label_scores(chosen, list(captioner.stream([c.path for c in chosen])))["label_named"]
        return {"named": named, **gap_scores(model, chosen)}

    def finish() -> dict[str, Any]:
        # the confidence is calibrated on the development clips with the search that will be used
        results = Captioner(model).caption([clip.path for clip in development])
        said = [(c, r) for c, r in zip(development, results, strict=True) if r.ok and r.text != SILENCE.text]
        right = [names(result.text, clip.labels[0]) for clip, result in said]
        return {"confidence": fit_confidence([result.score or 0.0 for _, result in said], right)}

    return partial(loader.scene_batch, maker, config.optim.batch), check, finish


def _captioned(config: TrainConfig, model: LambModel) -> tuple[Any, Any, Any, int, tuple[int, int]]:
    """Captioned clips to train on, the check on the validation split, nothing at the end, batches of an epoch, and
    how many clips there are to train and to check on."""
    path, data = Path(config.data.manifest or ""), config.data
    clips = [clip for clip in manifest.read(path, data.split) if clip.captions]
    held = [clip for clip in manifest.read(path, data.validation) if clip.captions] if data.validation else []
    if len(clips) < config.optim.batch * config.optim.accumulate:
        raise ConfigError(f"{path}: {len(clips)} captioned clips of split {data.split!r}, fewer than a step takes")
    leakage.check(clips, [clip for clip in manifest.read(path) if clip.split != data.split])
    chosen = held[:: max(1, len(held) // 200)]

    def check() -> dict[str, float]:
        if not chosen:
            return {}
        captioner = Captioner(model, replace(model.config.decode, beams=1))
        results = captioner.caption(_sound(clip, model.encoder.sample_rate) for clip in chosen)
        for result, clip in list(zip(results, chosen, strict=True))[:3]:
            print(f"{clip.id}: {result.text or result.error} ({clip.captions[0]})", file=sys.stderr)
        texts = [metrics.tokenize(result.text) for result in results]  # nothing for a file that cannot be read
        references = [[metrics.tokenize(text) for text in clip.captions] for clip in chosen]
        cider_d = metrics.cider_d(texts, references)[0]
        return {"cider_d": cider_d, **_validation_loss(model, held, reader, config), **gap_scores(model, chosen)}

    tokens = None
    if data.cache:
        if model.config.encoder.train != "frozen":
            raise ConfigError("data.cache: tokens can be kept only of a frozen encoder; set model.encoder.train=frozen")
        cache = loader.TokenCache.of(data.cache, model.encoder)
        clips, tokens, problems = cache.fill(clips, data.seconds, model.encoder.sample_rate, _encoding(model))
        _left_out(problems, config)
    reader = loader.ClipReader(clips, model.encoder.sample_rate, data.seconds, config.seed, tokens)
    make = partial(loader.clip_batch, reader, config.optim.batch)
    return make, check, dict, len(clips) // config.optim.batch, (len(clips), len(held))


STAGES: dict[str, Callable[[TrainConfig, Path], None]] = {
    "encoder": train_encoder,
    "language_model": train_language_model,
    "lamb": train_lamb,
}
