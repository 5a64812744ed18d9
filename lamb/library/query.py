"""Queries in the aligned space: words as a vector to be compared with the mean of z_a. [O]

    q = Σ_t e_t / |e_t|^2,  of length 1

The aligner turns the mean of a clip's z_a towards the mean of its caption's input embeddings e_t, and its kernel sees
every token as a vector of length 1. In a mean of raw embeddings "a", "in" and "the" dominate, because the words that go
with every sound have the longest embeddings in a trained table. Dividing by the length gives all tokens the same
weight, and dividing twice gives longer ones less weight: they are weighted by how rare they are without a list of
frequencies (benchmarks/search.py compares the plain mean). The stop words of the full-text search (STOP) are left out.
"""

import hashlib
import re

import numpy as np
import torch

from ..model.lamb import LambModel

STOP = frozenset(
    word
    for line in (
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they",
        "this to was will with",
    )
    for word in line.split()
)


class Words:
    """Turns queries into vectors of the aligned space of `model`."""

    def __init__(self, model: LambModel):
        self.model = model

    @torch.inference_mode()
    def vector(self, query: str) -> np.ndarray:
        """The vector of `query` (D_llm,) with length 1; zeros if the tokenizer knows no part of it."""
        words = query.lower()
        kept = " ".join(word for word in words.split() if re.sub(r"\W", "", word) not in STOP)
        ids, mask = self.model.llm.tokenize([kept or words])  # (1, L)
        e = self.model.llm.embed(ids[mask]).float()  # (L, D_llm)
        q = (e / e.square().sum(-1, keepdim=True).clamp_min(1e-12)).sum(0)  # (D_llm,)
        return torch.nn.functional.normalize(q, dim=0).cpu().numpy()


@torch.inference_mode()
def space(model: LambModel) -> str:
    """A name for the aligned space of `model`: a hash of its adapter and embedding table."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in [*model.adapter.state_dict().values(), model.llm.embedding_matrix]:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
