"""The audio encoders by name. A new one is one new file and one line here."""

from typing import Any

from .ced import CED
from .conv import ConvEncoder
from .efficientat import EfficientAT
from .huggingface import HuggingFaceEncoder

ENCODERS: dict[str, Any] = {
    "ced": CED,
    "conv": ConvEncoder,
    "efficientat": EfficientAT,
    "huggingface": HuggingFaceEncoder,
}
