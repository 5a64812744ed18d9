"""Our extensions of LAMB, which the paper does not have: one file and one config dataclass each, off by default.

`lamb.model` knows nothing of them. `extend` adds to a model the networks that its config switches on. What only
chooses among tokens and captions, `one_mention` and `reranking`, is NumPy, and `lamb.inference` asks for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..config import LambConfig

if TYPE_CHECKING:  # captions can be made without PyTorch
    import torch

    from ..model.lamb import LambModel


def extend(model: LambModel) -> LambModel:
    """`model` with the extensions that its config switches on; its state dict then holds their tensors too."""
    from .channel_dropout import ChannelDropout
    from .class_prototypes import ClassPrototypes
    from .positional_encoding import PositionalEncoding
    from .residual_guide import ResidualGuide

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
    from ..model.encoders import build_encoder
    from ..model.lamb import LambModel
    from ..model.language_model import LanguageModel

    encoder = build_encoder(config.encoder)  # before the LLM: with a seed, the order decides the random weights
    model = extend(LambModel(config, encoder, LanguageModel.from_pretrained(config.llm, device)))
    model.initialise()
    return model


def load(name: str | Path, device: str = "cpu") -> LambModel:
    """`lamb.model.checkpoint.load` of a model with its extensions."""
    from ..model import checkpoint

    return checkpoint.load(name, device, extend)
