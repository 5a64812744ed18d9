"""Our extensions of LAMB, which the paper does not have: one file and one config dataclass each, off by default.

`lamb.model` knows nothing of them. This file is the one place where they are plugged in: `extend` adds to a model those
that its config switches on; `logits_processors` and `reranker` are for `lamb.inference.generation`.
"""

from pathlib import Path
from typing import Any

import torch

from ..config import LambConfig
from ..model import checkpoint
from ..model.encoders import build_encoder
from ..model.lamb import LambModel
from ..model.language_model import LanguageModel
from .channel_dropout import ChannelDropout
from .class_prototypes import ClassPrototypes
from .one_mention import OneMention
from .positional_encoding import PositionalEncoding
from .reranking import Reranker
from .residual_guide import ResidualGuide


def extend(model: LambModel) -> LambModel:
    """`model` with the extensions that its config switches on; its state dict then holds their tensors too."""
    extensions = model.config.extensions
    if extensions.channel_dropout.rate:
        model.extensions["channel_dropout"] = ChannelDropout(extensions.channel_dropout)
    if extensions.class_prototypes.enabled:
        model.extensions["class_prototypes"] = ClassPrototypes(model.encoder.frame_head)
    if extensions.positional_encoding.enabled:
        model.extensions["positional_encoding"] = PositionalEncoding()
    if extensions.residual_guide.enabled and model.guide is not None:
        model.guide = ResidualGuide(model.config.guide, extensions.residual_guide)
    return model


def build(config: LambConfig, device: str | torch.device = "cpu") -> LambModel:
    """A new model to train on `device`, where it is still to be moved: encoder and LLM come from their sources."""
    encoder = build_encoder(config.encoder)  # before the LLM: with a seed, the order decides the random weights
    model = extend(LambModel(config, encoder, LanguageModel.from_pretrained(config.llm, device)))
    model.initialise()
    return model


def load(name: str | Path, device: str = "cpu") -> LambModel:
    """`lamb.model.checkpoint.load` of a model with its extensions."""
    return checkpoint.load(name, device, extend)


def logits_processors(model: LambModel) -> list[Any]:
    """What the extensions do to the logits of every decoding step, after the guide."""
    if not model.config.extensions.one_mention.enabled:
        return []
    return [OneMention(model.llm.tokenizer, len(model.llm.embedding_matrix))]


def reranker(model: LambModel) -> Reranker | None:
    """What chooses among the hypotheses of a beam search; None: their own scores do."""
    config = model.config.extensions.reranking
    return Reranker(model, config) if config.weight else None
