"""Class prototypes: encoder tokens are shifted towards the prototypes of the classes that they resemble. (our choice)

With the linear classifier of tokens (w_c, b_c of class c) that the encoder was trained with,

    h_a = h + sum_c p_c sqrt(D) w_c / |w_c|,   p = softmax(w h + b)

Where two sounds overlap, the shifted tokens are easier to tell apart than the tokens alone.
"""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ConfigError


class ClassPrototypes(nn.Module):
    """h_a (B, N_a, D), mask (B, N_a) -> h_a (B, N_a, D), with the encoder's own `head`, D -> classes.

    ConfigError for an encoder without one.
    """

    def __init__(self, head: nn.Linear | None) -> None:
        super().__init__()
        if head is None:
            raise ConfigError("extensions.class_prototypes: the encoder has no label heads", "switch it off")
        self.head = head

    def forward(self, h_a: Tensor, mask: Tensor) -> Tensor:
        probability = self.head(h_a).softmax(-1)  # (B, N_a, C)
        prototypes = F.normalize(self.head.weight, dim=1)  # (C, D)
        return h_a + probability @ prototypes * math.sqrt(h_a.shape[-1])
