"""`lamb train`: one stage of training, from a recipe to a folder (paper section 7; the first two are our choice).

Stages: `encoder` (a convolutional encoder learns to tag scenes), `language_model` (a small LLaMA learns to write
captions), `lamb` (the method: adapter, aligner, guide, and the language model with them). All run the same loop, `fit`.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from .alignment import gap
from .captioner import SILENCE, Captioner
from .checkpoint import save
from .config import ConfigError, OptimConfig, TrainConfig, read_recipe, to_dict
from .data import loader, scenes, sources
from .data.manifest import select
from .decode import clean
from .evaluate import fit_confidence, label_scores, names
from .llm import LanguageModel
from .losses import cross_entropy, loss_terms
from .model import build, build_encoder, caption_labels

Losses = dict[str, Tensor]


class TrainingError(ValueError):
    """Training that cannot go on: the step, the terms, and what is kept."""


def train(recipe: str | Path, overrides: list[str] | tuple[str, ...] = (), resume: bool = False) -> Path:
    """Run the stage that `recipe` describes; returns the folder of the result.

    Raises ConfigError for a recipe that cannot be used, and for a folder that already holds a run unless `resume`.
    """
    config = read_recipe(recipe, overrides)
    out = Path(config.out)
    if (out / "recipe.json").exists():
        if not resume:
            raise ConfigError(f"{out}: holds a run already; go on with --resume, or choose another out=FOLDER")
        if json.loads((out / "recipe.json").read_text()) != to_dict(config):
            raise ConfigError(f"{out}: was begun with another recipe; choose another out=FOLDER")
    if config.device not in ("auto", "cpu"):
        raise ConfigError(f"device: {config.device!r} is not there yet, training runs on the CPU; leave device out")
    torch.manual_seed(config.seed)
    if config.threads:
        torch.set_num_threads(config.threads)
    STAGES[config.stage](config, out)
    return out


def schedule(step: int, optim: OptimConfig) -> float:
    """Factor of the learning rate: a linear warm-up, then a cosine to 0. [P]"""
    if step < optim.warmup:
        return (step + 1) / optim.warmup
    progress = (step - optim.warmup) / max(1, optim.steps - optim.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def groups(named: Iterable[tuple[str, nn.Parameter]], lr: float, decay: float) -> list[dict[str, Any]]:
    """Parameter groups: no weight decay where ndim < 2. [O]"""
    trained = [p for _, p in named if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "lr": lr, "weight_decay": decay},
        {"params": [p for p in trained if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
    ]


def fit(
    config: TrainConfig,
    out: Path,
    model: nn.Module,
    parameters: list[dict[str, Any]],
    make: Callable[[int], Any],
    losses: Callable[[Any], Losses],
    check: Callable[[], dict[str, float]],
) -> None:
    """The loop: AdamW, cosine schedule, clipping, moving average, a log line a step, a state every `save_every` steps.

    Args:
        make: step -> batch, in a background process.
        losses: batch -> named terms to log; the term "loss" is minimised.
        check: numbers to log at every save, taken with the averaged weights.
    """
    optim, state_file, log_file = config.optim, out / "state.pt", out / "log.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "recipe.json", json.dumps(to_dict(config), indent=1))  # from here on, the folder holds a run
    optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.98))
    base = [group["lr"] for group in optimiser.param_groups]
    average = None
    if optim.average:
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(optim.average), use_buffers=True
        )
    first = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        first = state["step"]
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        if average:
            average.load_state_dict(state["average"])
        torch.set_rng_state(state["rng"])
    # the steps since the last state are done, and logged, once more
    logged = log_file.read_text().splitlines(keepends=True)[:first] if log_file.exists() else []
    _write(log_file, "".join(logged))
    console = Console(stderr=True)
    _overview(console, config, model, first)
    began = time.time()
    model.train()
    with log_file.open("a") as log, _progress(console) as progress:
        task = progress.add_task("", total=optim.steps, completed=first)
        for step, batch in enumerate(loader.background(make, first, optim.steps, config.data.workers), first):
            factor = schedule(step, optim)
            for group, lr in zip(optimiser.param_groups, base, strict=True):
                group["lr"] = lr * factor
            terms = losses(batch)
            optimiser.zero_grad(set_to_none=True)
            terms["loss"].backward()
            norm = nn.utils.clip_grad_norm_([p for g in parameters for p in g["params"]], optim.clip)
            if not torch.isfinite(terms["loss"] + norm):
                shown = {name: float(value.detach()) for name, value in {**terms, "norm": norm}.items()}
                raise TrainingError(f"step {step + 1}: loss or gradient is not finite: {shown}; the last state is kept")
            optimiser.step()
            if average:
                # a short memory at first, so that the random start is forgotten
                average.multi_avg_fn = torch.optim.swa_utils.get_ema_multi_avg_fn(
                    min(optim.average, (1 + step) / (10 + step))
                )
                average.update_parameters(model)
            line = {"step": step + 1, **{name: round(float(value.detach()), 4) for name, value in terms.items()}}
            line |= {"norm": round(float(norm), 3), "lr": base[0] * factor, "seconds": round(time.time() - began, 1)}
            done = step + 1 == optim.steps
            save_now = done or (step + 1) % config.save_every == 0
            if save_now:
                line |= _checked(model, average, check)
                console.print("  ".join(f"{name} {value:g}" for name, value in line.items() if name != "seconds"))
            progress.update(task, advance=1, description=f"loss {line['loss']:.3f}")
            log.write(json.dumps(line) + "\n")
            log.flush()  # before the state: a log may be ahead of it, never behind
            if save_now:
                state = {"step": step + 1, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
                state["rng"] = torch.get_rng_state()
                if average:
                    state["average"] = average.state_dict()
                _save(state, state_file)
    if average:
        model.load_state_dict(average.module.state_dict())
    model.eval()


def _overview(console: Console, config: TrainConfig, model: nn.Module, first: int) -> None:
    """What is about to happen: the parts with their parameters, and the steps."""
    table = Table("part", "trained", "frozen", box=SIMPLE_HEAD)
    for name, part in model.named_children():
        sizes = [(p.numel(), p.requires_grad) for p in part.parameters()]
        counts = (sum(n for n, trained in sizes if trained is kind) for kind in (True, False))
        table.add_row(name, *(f"{count:,}" for count in counts))
    console.print(table)
    steps = f"steps {first + 1} to {config.optim.steps}" if first else f"{config.optim.steps} steps"
    console.print(f"stage {config.stage}: {steps} of {config.optim.batch} clips -> {config.out}")


def _progress(console: Console) -> Progress:
    """A bar with the time left, where somebody looks."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _checked(model: nn.Module, average: Any, check: Callable[[], dict[str, float]]) -> dict[str, float]:
    """`check` with the averaged weights in the model's place."""
    own = {name: value.clone() for name, value in model.state_dict().items()} if average else {}
    if average:
        model.load_state_dict(average.module.state_dict())
    model.eval()
    with torch.no_grad():
        result = check()
    model.train()
    if average:
        model.load_state_dict(own)
    return result


def _save(state: Any, path: Path) -> None:
    """Whole or not at all."""
    partial_path = path.with_name(path.name + ".part")
    with partial_path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial_path.replace(path)


def _write(path: Path, text: str) -> None:
    partial_path = path.with_name(path.name + ".part")
    partial_path.write_text(text)
    partial_path.replace(path)


def _scenes(config: TrainConfig, sample_rate: int) -> tuple[scenes.SceneMaker, list[Any]]:
    """A maker of scenes from the training recordings, and the development clips."""
    if config.data.sounds is None:
        raise ConfigError("data.sounds: the folder of labelled recordings is missing from the recipe")
    clips = sources.sounds(config.data.sounds)
    for split in ("train", "development"):
        select(clips, split, Path(config.data.sounds))
    unknown = {label for clip in clips for label in clip.labels} - scenes.PHRASES.keys()
    if unknown:
        raise ConfigError(
            f"{config.data.sounds}: labels without phrases for a caption: {', '.join(sorted(unknown))}; "
            "write them into lamb/data/phrases.py, and their words into lamb/evaluate.py"
        )
    bank = loader.recordings([clip for clip in clips if clip.split == "train"], sample_rate)
    maker = scenes.SceneMaker(bank, sample_rate, config.data.seconds, config.seed)
    return maker, [clip for clip in clips if clip.split == "development"]


class Tagger(nn.Module):
    """The encoder with a linear head on its tokens and one on their mean; the heads are thrown away afterwards."""

    def __init__(self, encoder: Any, labels: int):
        super().__init__()
        self.encoder = encoder
        self.frame = nn.Linear(encoder.dim, labels + 1)  # the last: nothing sounds
        self.clip = nn.Linear(encoder.dim, labels)
        self.dropout = nn.Dropout(0.2)

    def forward(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T), (B, T) -> frame logits (B, N, C + 1), their mask (B, N), clip logits (B, C)."""
        log_mel, valid = self.encoder.log_mel(waveform, mask)
        if self.training:
            log_mel = band_mask(log_mel)
        tokens, mask = self.encoder.encode(log_mel, valid)
        pooled = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # (B, D)
        return self.frame(self.dropout(tokens)), mask, self.clip(self.dropout(pooled))


def band_mask(log_mel: Tensor, bands: int = 12, frames: int = 40) -> Tensor:
    """SpecAugment on (B, frames, mels): a stretch of bands and one of frames of every clip set to its mean. [A]"""
    size, length, mels = log_mel.shape
    mean = log_mel.mean((1, 2), keepdim=True)
    for axis, most, n in ((2, bands, mels), (1, frames, length)):
        width = torch.rand(size) * most
        start = torch.rand(size) * (n - width).clamp_min(0)
        index = torch.arange(n)
        hidden = (index >= start[:, None]) & (index < (start + width)[:, None])  # (B, n)
        log_mel = torch.where(hidden[:, None] if axis == 2 else hidden[..., None], mean, log_mel)
    return log_mel


def train_encoder(config: TrainConfig, out: Path) -> None:
    """Stage `encoder`: cross entropy against what sounds, of every token and of the clip, on mixed scenes. [O]"""
    from safetensors.torch import save_file

    if config.model.encoder.name != "conv":
        raise ConfigError(f"model.encoder.name: {config.model.encoder.name!r} is not trained here, only 'conv' is")
    encoder = build_encoder(replace(config.model.encoder, source=None, train="full"))
    maker, development = _scenes(config, encoder.sample_rate)
    tagger = Tagger(encoder, len(maker.labels))
    optim = config.optim

    def losses(batch: dict[str, Any]) -> Losses:
        frames, mask, clip = tagger(batch["waveform"], batch["mask"])
        target = loader.activity(batch["events"], maker.labels, frames.shape[1], encoder.frame_rate)  # (B, N, C)
        nothing = (target.sum(2, keepdim=True) == 0).float()
        target = torch.cat([target, nothing], 2)
        share = target / target.sum(2, keepdim=True)
        frame_loss = -(share * frames.log_softmax(2)).sum(2)[mask].mean()
        present = target[..., :-1].amax(1)
        clip_loss = F.cross_entropy(clip, present / present.sum(1, keepdim=True), label_smoothing=0.05)
        return {"loss": frame_loss + clip_loss, "frame": frame_loss, "clip": clip_loss}

    bank = loader.recordings(development, encoder.sample_rate)
    clips = [(label, x) for label, found in bank.items() for x in found]

    def check() -> dict[str, float]:
        right = 0
        for k in range(0, len(clips), 32):
            part = clips[k : k + 32]
            _, _, logits = tagger(*loader.pad([x.astype("float32") / 32767 for _, x in part]))
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
    _write(out / "config.json", json.dumps(encoder.options))
    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, out / "model.safetensors")


def train_language_model(config: TrainConfig, out: Path) -> None:
    """Stage `language_model`: a tokenizer and a small LLaMA, from scratch, on written and composed captions. [O]"""
    from transformers import LlamaConfig, LlamaForCausalLM

    if config.data.texts is None:
        raise ConfigError("data.texts: the folder of caption texts is missing from the recipe")
    held = [clip for clip in sources.sounds(config.data.sounds) if clip.split != "train"] if config.data.sounds else []
    texts = [clean(t) for t in sources.caption_texts(config.data.texts, {c for clip in held for c in clip.captions})]
    batch = partial(_text_batch, texts, config.seed, config.data.composed, config.optim.batch)
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

    def loss(captions: list[str]) -> Tensor:
        ids, mask = llm.tokenize(captions)
        prefix, prefix_mask = llm.prefix(torch.zeros(len(ids), 0, llm.dim), torch.ones(len(ids), 0, dtype=torch.bool))
        return cross_entropy(llm.logits(prefix, prefix_mask, ids), caption_labels(ids, mask, tokenizer.eos_token_id))

    fit(
        config,
        out,
        llm,
        groups(llm.named_parameters(), config.optim.lr, config.optim.weight_decay),
        batch,
        lambda captions: {"loss": loss(captions)},
        lambda: {"held_out": float(loss([clean(c) for clip in held for c in clip.captions]))} if held else {},
    )
    llm.model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _text_batch(texts: list[str], seed: int, composed: float, size: int, step: int) -> list[str]:
    rng = np.random.default_rng((seed, step))
    return [
        scenes.caption(rng) if rng.random() < composed else texts[int(rng.integers(len(texts)))] for _ in range(size)
    ]


def train_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer with <s> and </s>, as a `transformers` tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer(add_prefix_space=True)
    tokenizer.train_from_iterator(texts, vocabulary, 2, show_progress=False, special_tokens=["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>")


def train_lamb(config: TrainConfig, out: Path) -> None:
    """Stage `lamb`: adapter, aligner and guide learn, encoder and LLM as their configs say, on mixed scenes."""
    model = build(config.model)
    maker, development = _scenes(config, model.encoder.sample_rate)
    optim = config.optim
    base_lr = optim.lr if optim.llm_lr is None else optim.llm_lr
    own = [(n, p) for n, p in model.named_parameters() if not n.startswith(("llm.", "encoder.")) and n != "guide.beta"]
    bases = [(n, p) for n, p in model.named_parameters() if n.startswith(("llm.", "encoder."))]
    parameters = [*groups(own, optim.lr, optim.weight_decay), *groups(bases, base_lr, optim.weight_decay)]
    if model.guide is not None:
        lr = optim.beta_lr * float(model.guide.beta.detach())
        parameters.append({"params": [model.guide.beta], "lr": lr, "weight_decay": 0.0})

    def losses(batch: dict[str, Any]) -> Losses:
        ids, mask = model.llm.tokenize(batch["captions"])
        output = model(batch["waveform"], batch["mask"], ids, mask)
        terms = loss_terms(model, output)
        terms |= gap(output.z_a, output.z_a_mask, output.z_t, output.z_t_mask)
        return terms if model.guide is None else {**terms, "beta": model.guide.beta}

    chosen = development[:: max(1, len(development) // 200)]

    def check() -> dict[str, float]:
        captioner = Captioner(model, replace(config.model.decode, beams=1))
        return {"named": label_scores(chosen, list(captioner.stream([c.path for c in chosen])))["label_named"]}

    fit(config, out, model, parameters, partial(loader.scene_batch, maker, optim.batch), losses, check)
    # the confidence is calibrated on the development clips with the search that will be used
    results = Captioner(model).caption([clip.path for clip in development])
    said = [(c, r) for c, r in zip(development, results, strict=True) if r.ok and r.text != SILENCE.text]
    right = [names(result.text, clip.labels[0]) for clip, result in said]
    confidence = fit_confidence([result.score or 0.0 for _, result in said], right)
    # a language model with LoRA, or frozen, stays where it is: only what was trained is written
    standalone = config.model.llm.train == "full" and hasattr(model.encoder, "options")
    save(model, out, standalone=standalone, card=config.card, half=True, decode={"confidence": confidence})


STAGES: dict[str, Callable[[TrainConfig, Path], None]] = {
    "encoder": train_encoder,
    "language_model": train_language_model,
    "lamb": train_lamb,
}
