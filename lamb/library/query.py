"""Queries in the aligned space: words as a vector to be compared with the mean of z_a. [O]

The aligner draws the mean of a clip's z_a to the mean of its caption's input embeddings, in direction; its kernel sees
every token as a vector of length 1. So does a query here: z_t / |z_t| of each token, then the mean, of length 1. A
mean of raw embeddings is mostly that of "a", "in" and "the", whose embeddings are the longest of a trained table, and
finds nothing for a sentence (mAP 0.06 in place of 0.13, benchmarks/search.py).
"""

import hashlib

import numpy as np
import torch

from ..model.lamb import LambModel


class Words:
    """Words as vectors of `model`'s aligned space."""

    def __init__(self, model: LambModel):
        self.model = model

    @torch.inference_mode()
    def vector(self, query: str) -> np.ndarray | None:
        """The direction of `query` (D_llm,), of length 1; None where the tokenizer knows nothing of it."""
        ids, mask = self.model.llm.tokenize([query.lower()])  # (1, L)
        tokens = torch.nn.functional.normalize(self.model.llm.embed(ids[mask]).float(), dim=-1)  # (L, D_llm)
        if not len(tokens):
            return None
        return torch.nn.functional.normalize(tokens.mean(0), dim=0).cpu().numpy()


@torch.inference_mode()
def space(model: LambModel) -> str:
    """A name for the space that `model` puts sounds and words in: equal for the same adapter and embedding table."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in [*model.adapter.state_dict().values(), model.llm.table]:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
