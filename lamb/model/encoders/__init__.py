"""The audio encoders by name. A new one is one new file and one line here."""

from typing import Any

from ...config import ConfigError, EncoderConfig
from .ced import CED
from .efficientat import EfficientAT
from .huggingface import HuggingFaceEncoder

ENCODERS: dict[str, Any] = {
    "ced": CED,
    "efficientat": EfficientAT,
    "huggingface": HuggingFaceEncoder,
}


def build_encoder(config: EncoderConfig) -> Any:
    """The `Encoder` that `config` names: with the weights of `source`, or random; frozen, with LoRA or in full."""
    if config.name not in ENCODERS:
        raise ConfigError(f"encoder.name: {config.name!r} is not one of {', '.join(ENCODERS)}")
    kind = ENCODERS[config.name]
    if config.source is not None and config.options:
        raise ConfigError("encoder.options: the weights of encoder.source have their own; give one of the two")
    try:
        encoder = kind(**config.options) if config.source is None else kind.from_pretrained(config.source)
    except (TypeError, OSError, ValueError) as error:
        remedy = "" if config.source else "give the options of a new encoder, or the weights of one: encoder.source"
        raise ConfigError(f"encoder.{'source' if config.source else 'options'}: {error}", remedy) from None
    if config.train == "lora":
        try:
            encoder.add_lora(config.lora.rank, config.lora.alpha, config.lora.dropout)
        except NotImplementedError:
            raise ConfigError(f"encoder.train: {config.name} has no LoRA; choose frozen or full") from None
    elif config.train == "frozen":
        encoder.requires_grad_(False)
    elif not any(parameter.requires_grad for parameter in encoder.parameters()):
        raise ConfigError(f"encoder.train: {config.name} does not train; choose frozen")
    return encoder
