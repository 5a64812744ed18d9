"""Re-ranking: the aligned embedding space has a say in which hypothesis of a beam search is the best. (our choice)

    value = log p + weight * cos(mean z_a, mean z_t)

log p is the mean log probability of the tokens of a hypothesis and z_t their input embeddings. A language model rather
repeats the loudest sound than names a doubtful one; the similarity favours captions that name everything in the audio.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import RerankingConfig
from ..model.aligner import pool
from ..model.lamb import LambModel


class Reranker:
    """The values of hypotheses, by which they are sorted."""

    def __init__(self, model: LambModel, config: RerankingConfig):
        self.llm, self.weight = model.llm, config.weight

    def values(self, z_a: Tensor, mask: Tensor, found: Sequence[Sequence[tuple[str, float]]]) -> list[list[float]]:
        """z_a (B, N, D_llm), mask (B, N), (text, log p) of each clip's hypotheses -> the value of each."""
        texts = [text or "." for hypotheses in found for text, _ in hypotheses]  # C of all clips
        clip = torch.tensor([row for row, hypotheses in enumerate(found) for _ in hypotheses], device=z_a.device)
        ids, text_mask = self.llm.tokenize(texts)  # (C, L)
        z_t = pool(self.llm.embed(ids), text_mask)  # (C, D_llm)
        cosine = iter(torch.cosine_similarity(pool(z_a, mask)[clip], z_t).tolist())
        return [[log_p + self.weight * next(cosine) for _, log_p in hypotheses] for hypotheses in found]
