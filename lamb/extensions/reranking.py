"""Re-ranking: the aligned embedding space has a say in which hypothesis of a beam search is the best. (our choice)

    value = log p + weight * cos(mean z_a, mean z_t)

log p is the mean log probability of the tokens of a hypothesis and z_t their input embeddings. A language model rather
repeats the loudest sound than names a doubtful one; the similarity favours captions that name everything in the audio.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config import RerankingConfig


class Reranker:
    """Hypotheses in the order of their values; `runtime` is the `lamb.inference.engine.Runtime` that found them."""

    def __init__(self, runtime: Any, config: RerankingConfig):
        self.runtime, self.weight = runtime, config.weight

    def ranked(self, z_a: np.ndarray, mask: np.ndarray, found: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """z_a (B, N, D_llm), mask (B, N), the hypotheses (`text`, `score`) of each clip -> the same, best first."""
        rows = []
        for audio, there, hypotheses in zip(z_a, mask, found, strict=True):
            a = audio[there].mean(0)  # (D_llm,)
            tokens = self.runtime.tokenize([hypothesis.text or "." for hypothesis in hypotheses])
            texts = [self.runtime.embed(ids).mean(0) for ids, _ in tokens]
            value = {h: h.score + self.weight * _cosine(a, t) for h, t in zip(hypotheses, texts, strict=True)}
            rows.append(sorted(hypotheses, key=lambda h: -value[h]))
        return rows


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-8))
