"""Stage `language_model` of the bundled model: a tokenizer and a small LLaMA learn to write captions. [O]

It is not part of the paper, which takes LLaMA-2 as it is; stage `lamb` builds on its result.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..config import ConfigError, TrainConfig
from ..data import loader, scenes, sources
from ..inference.generation import clean
from ..model.lamb import caption_labels
from ..model.language_model import LanguageModel
from ..model.losses import cross_entropy, token_share
from .stage import Losses, Stage, caption_weights, param_groups


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
        prefix, mask = self.llm.prefix(nothing, nothing.new_ones(len(ids), 0).bool())
        return self.llm.logits(prefix, mask, ids)


def train_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer with <s> and </s>, as a `transformers` tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer(add_prefix_space=True)
    tokenizer.train_from_iterator(texts, vocabulary, 2, show_progress=False, special_tokens=["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>")
