"""The first two stages of the bundled model: an encoder that tags scenes, a language model that writes captions. [O]

Neither is part of the paper, which takes CED and LLaMA-2 as they are; stage `lamb` builds on their results.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..audio.files import write as write_text
from ..config import ConfigError, TrainConfig
from ..data import loader, scenes, sources
from ..inference.generation import clean
from ..model.encoders import build_encoder
from ..model.encoders.conv import ConvEncoder
from ..model.encoders.spec_augment import spec_augment
from ..model.lamb import caption_labels
from ..model.language_model import LanguageModel
from ..model.losses import cross_entropy, share_of, token_share
from ..model.padding import pad
from .stage import Losses, Stage, caption_weights, param_groups

HEADS = "heads.safetensors"  # the heads that an encoder was trained with, beside its weights


class EncoderStage(Stage):
    """Stage `encoder`: cross entropy against what sounds, for every token and for the clip, on mixed scenes.

    With `init`, branches are added to the encoder in that folder. Its own branches stay as they are, and so do its
    heads, which the new ones learn to answer to: the heads read the mean of all branches.
    """

    module: "Tagger"

    def __init__(self, config: TrainConfig):
        self.config = config
        if config.model.encoder.name != "conv":
            raise ConfigError(f"model.encoder.name: {config.model.encoder.name!r} is not trained here, only 'conv' is")
        if "labels" in config.model.encoder.options:
            raise ConfigError("model.encoder.options.labels: this stage finds out the labels itself; leave it out")
        if config.init is None:
            encoder = build_encoder(replace(config.model.encoder, source=None, train="full"))
        else:
            encoder = grown_encoder(Path(config.init), config.model.encoder.options)
        self.maker, development = loader.scene_maker(config, encoder.sample_rate)
        self.module = Tagger(encoder, len(self.maker.labels))
        if config.init is not None:
            load_heads(self.module, Path(config.init))
        bank = loader.recordings(development, encoder.sample_rate)
        self.development = [(label, x.samples) for label, found in bank.items() for source in found for x in source]

    def param_groups(self) -> list[dict[str, Any]]:
        return param_groups(self.module.named_parameters(), self.config.optim.lr, self.config.optim.weight_decay)

    def batch(self, index: int, share: loader.Share) -> dict[str, Any]:
        return loader.scene_batch(self.maker, self.config.optim.batch, index, share)

    def loss(self, forward: nn.Module, batch: dict[str, Any]) -> Losses:
        device, frame_rate = self.module.clip.weight.device, self.module.encoder.frame_rate
        frames, mask, clip = forward(batch["waveform"].to(device), batch["mask"].to(device))
        frames, clip = frames.float(), clip.float()
        target = loader.activity(batch["events"], self.maker.labels, frames.shape[1], frame_rate)  # (B, N, C)
        target = target.to(device).repeat(len(frames) // len(target), 1, 1)  # (R * B, N, C), once for each branch
        nothing = (target.sum(2, keepdim=True) == 0).float()
        target = torch.cat([target, nothing], 2)  # (R * B, N, C + 1)
        wanted = target / target.sum(2, keepdim=True)
        frame_loss = share_of(mask.sum()) * -(wanted * frames.log_softmax(2)).sum(2)[mask].mean()
        present = target[..., :-1].amax(1)  # (R * B, C)
        clip_loss = F.cross_entropy(clip, present / present.sum(1, keepdim=True), label_smoothing=0.05)
        return {"loss": frame_loss + clip_loss, "frame": frame_loss, "clip": clip_loss}

    def check(self) -> dict[str, float]:
        """The share of development recordings whose label the clip head gives the highest logit."""
        right, device = 0, self.module.clip.weight.device
        for k in range(0, len(self.development), 32):
            part = self.development[k : k + 32]
            waveform, mask = pad([x.astype("float32") / 32767 for _, x in part])
            _, _, logits = self.module(waveform.to(device), mask.to(device))
            right += sum(self.maker.labels[n] == label for n, (label, _) in zip(logits.argmax(1), part, strict=True))
        return {"development_accuracy": right / len(self.development)}

    def save(self, write: bool) -> None:
        """The encoder with the frame head inside, as `ConvEncoder.from_pretrained` reads it; both heads beside it."""
        from safetensors.torch import save_file

        if not write:
            return
        out, tagger = Path(self.config.out), self.module
        head = {f"head.{k}": v for k, v in tagger.frame.state_dict().items()}
        weights = {k: v.contiguous() for k, v in {**tagger.encoder.state_dict(), **head}.items()}
        write_text(out / "config.json", json.dumps({**tagger.encoder.options, "labels": self.maker.labels}))
        save_file(weights, out / "model.safetensors")
        heads = {k: v.contiguous() for k, v in tagger.state_dict().items() if not k.startswith("encoder.")}
        save_file(heads, out / HEADS)


class Tagger(nn.Module):
    """The encoder with a linear head on its tokens and one on their mean.

    In training the heads read the tokens of each of the R branches that learn, R times the batch; in evaluation they
    read the encoder's tokens, the mean of all branches.
    """

    def __init__(self, encoder: Any, labels: int):
        super().__init__()
        self.encoder = encoder
        self.trained = [branch for branch in encoder.branches if branch.frequency_embedding.requires_grad]
        self.frame = nn.Linear(encoder.dim, labels + 1)  # the last: nothing sounds
        self.clip = nn.Linear(encoder.dim, labels)
        self.dropout = nn.Dropout(0.2)

    def forward(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T), (B, T) -> frame logits (R * B, N, C + 1), their mask (R * B, N), clip logits (R * B, C); R = 1 in
        evaluation."""
        if self.training:
            heard = []
            for branch in self.trained:
                log_mel, valid = branch.log_mel(waveform, mask)  # (B, F, mels), (B, F)
                seen = spec_augment(log_mel.transpose(1, 2), valid.sum(1), bands=10, stretch=30, fill=None)
                heard.append(branch.encode(seen.transpose(1, 2), valid))
            tokens, mask = (torch.cat(parts) for parts in zip(*heard, strict=True))
        else:
            tokens, mask = self.encoder(waveform, mask)
        pooled = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # (R * B, D)
        return self.frame(self.dropout(tokens)), mask, self.clip(self.dropout(pooled))


def grown_encoder(folder: Path, options: Mapping[str, Any]) -> ConvEncoder:
    """The encoder in `folder`, frozen, with new branches that have the windows `options["n_fft"]`."""
    try:
        old = ConvEncoder.from_pretrained(folder)
    except ValueError as error:
        raise ConfigError(f"init: {error}") from None
    windows = options.get("n_fft", [])
    if set(options) != {"n_fft"} or not windows:
        raise ConfigError("model.encoder.options: with init, give only n_fft, the windows of the branches to add")
    windows = [windows] if isinstance(windows, int) else windows
    encoder = ConvEncoder(**{**old.options, "n_fft": [*old.options["n_fft"], *windows], "labels": 0})
    encoder.branches[: len(old.branches)].load_state_dict(old.branches.state_dict())
    encoder.branches[: len(old.branches)].requires_grad_(False)
    return encoder


def load_heads(tagger: Tagger, folder: Path) -> None:
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


class LanguageModelStage(Stage):
    """Stage `language_model`: a tokenizer and a small LLaMA, from scratch, on written and composed captions."""

    module: "Writer"

    def __init__(self, config: TrainConfig):
        from transformers import LlamaConfig, LlamaForCausalLM

        self.config, data, size = config, config.data, config.language_model
        if data.texts is None:
            raise ConfigError("data.texts: the folder of caption texts is missing from the recipe")
        clips = [clip for folder in sources.folders(data.sounds) for clip in sources.sounds(folder)]
        held = [clip for clip in clips if clip.split != "train"]
        self.held_out = [clean(caption) for clip in held for caption in clip.captions]
        self.texts = [clean(t) for t in sources.caption_texts(data.texts, {c for clip in held for c in clip.captions})]
        first = [text for step in range(400) for text in self.batch(step, loader.WHOLE)["captions"]]
        tokenizer = train_tokenizer(first, size.vocabulary)
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
        self.llm = LanguageModel(LlamaForCausalLM(architecture), tokenizer, replace(config.model.llm, train="full"))
        self.module = Writer(self.llm)

    def param_groups(self) -> list[dict[str, Any]]:
        return param_groups(self.module.named_parameters(), self.config.optim.lr, self.config.optim.weight_decay)

    def batch(self, index: int, share: loader.Share) -> dict[str, Any]:
        """Captions: the share `data.composed` is composed from the phrase bank, the rest is drawn from the texts."""
        rng, data, size = np.random.default_rng((self.config.seed, index)), self.config.data, self.config.optim.batch
        captions = [
            scenes.caption(rng, data.shares, data.parents)
            if rng.random() < data.composed
            else self.texts[int(rng.integers(len(self.texts)))]
            for _ in range(size)
        ]
        return {"captions": [captions[k] for k in loader.part_of(size, share)]}

    def weights(self, batches: Sequence[dict[str, Any]]) -> list[float]:
        return caption_weights(self.llm, batches)

    def loss(self, forward: nn.Module, batch: dict[str, Any]) -> Losses:
        ids, mask = self.llm.tokenize(batch["captions"])
        labels = caption_labels(ids, mask, self.llm.tokenizer.eos_token_id)
        return {"loss": batch.get("weight", 1.0) * token_share(labels) * cross_entropy(forward(ids), labels)}

    def check(self) -> dict[str, float]:
        """The cross entropy of the captions of recordings that are held out; {} where there are none."""
        if not self.held_out:
            return {}
        ids, mask = self.llm.tokenize(self.held_out)
        labels = caption_labels(ids, mask, self.llm.tokenizer.eos_token_id)
        return {"held_out": float(cross_entropy(self.module(ids), labels))}

    def save(self, write: bool) -> None:
        if write:
            self.llm.model.save_pretrained(self.config.out)
            self.llm.tokenizer.save_pretrained(self.config.out)


class Writer(nn.Module):
    """The language model with its prompt and no audio: caption ids (B, L) -> logits (B, L + 1, V)."""

    def __init__(self, llm: LanguageModel):
        super().__init__()
        self.llm = llm

    def forward(self, ids: Tensor) -> Tensor:
        nothing = self.llm.embedding_matrix.new_zeros(len(ids), 0, self.llm.dim)
        prefix, mask = self.llm.prefix(nothing, nothing.new_ones(len(ids), 0, dtype=torch.bool))
        return self.llm.logits(prefix, mask, ids)


def train_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer with <s> and </s>, as a `transformers` tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer(add_prefix_space=True)
    tokenizer.train_from_iterator(texts, vocabulary, 2, show_progress=False, special_tokens=["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>")
