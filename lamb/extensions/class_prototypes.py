"""Class prototypes: encoder tokens are shifted towards the prototypes of the classes that they resemble. (our choice)

With the linear head (w_c, b_c of class c) that the bundled model's encoder was trained with,

    h_a = h + sum_c p_c sqrt(D) w_c / |w_c|,   p = softmax(w h + b)

Where two sounds overlap, the shifted tokens are easier to tell apart than the tokens alone.
"""

import math
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ClassPrototypesConfig, ConfigError

HEADS = "heads.safetensors"  # written by stage `encoder` of `lamb train` beside the encoder


class ClassPrototypes(nn.Module):
    """h_a (B, N_a, D), mask (B, N_a) -> h_a (B, N_a, D); the head stays as it is."""

    def __init__(self, config: ClassPrototypesConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Linear(dim, config.labels).requires_grad_(False)

    def initialise(self) -> None:
        """Load the head from the encoder folder `config.source`. ConfigError if it has none of this shape."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = Path(self.config.source or "") / HEADS
        try:
            heads = load_file(file)
            self.head.load_state_dict({name: heads[f"frame.{name}"] for name in ("weight", "bias")})
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ConfigError(
                f"extensions.class_prototypes: {file} does not hold a head of {self.config.labels} outputs ({reason})",
                "set source to a folder that stage encoder of lamb train wrote, and labels to its labels and one more",
            ) from None

    def forward(self, h_a: Tensor, mask: Tensor) -> Tensor:
        probability = self.head(h_a).softmax(-1)  # (B, N_a, C)
        prototypes = F.normalize(self.head.weight, dim=1) * math.sqrt(h_a.shape[-1])  # (C, D)
        return h_a + probability @ prototypes
