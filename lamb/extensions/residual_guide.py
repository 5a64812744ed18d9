"""Residual guide: a Token Guide that subtracts the generated tokens from the audio evidence. (our choice)

After the tokens y_1 .. y_t the bias of the next token is

    bias_t = bias - gamma * beta * 2 (sum_{j<=t} e_yj)·(e_v - mean_v e_v)

For squared L2 and mean this is exactly the bias of z̄ - gamma sum_j e_yj; the other scores get the same term. gamma is
learnt from 0, where the guide is the paper's. Audio and caption live in one space, so what remains of a mixture once
its loud sound is named points to the other sound.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import GuideConfig, ResidualGuideConfig
from ..model.token_guide import TokenGuide


class ResidualGuide(TokenGuide):
    """A `TokenGuide` whose bias changes from step to step; evaluation multiplies gamma by `strength`."""

    def __init__(self, config: GuideConfig, residual: ResidualGuideConfig) -> None:
        super().__init__(config)
        self.strength = residual.strength
        self.gamma = nn.Parameter(torch.tensor(0.0))

    @property
    def residual(self) -> float:
        return -2 * self.strength * self.gamma.item() * self.beta.item()

    def steps(self, bias: Tensor, tokens: Tensor, embedding_matrix: Tensor, last: bool = False) -> Tensor:
        strength = 1.0 if self.training else self.strength
        with torch.autocast(tokens.device.type, enabled=False):
            tokens, matrix = tokens.float(), embedding_matrix.float()
            # (B, 1 or L + 1, D)
            generated = tokens.sum(1, keepdim=True) if last else F.pad(tokens.cumsum(1), (0, 0, 1, 0))
            scores = generated @ (matrix - matrix.mean(0)).mT  # (B, 1 or L + 1, V)
            return bias + strength * (-2 * self.gamma * self.beta * scores)
