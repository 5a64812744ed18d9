"""Queries in the aligned space: words as a vector to be compared with the mean of z_a. [O]

    q = Σ_t e_t / |e_t|^2,  of length 1

The aligner draws the mean of a clip's z_a to the mean of its caption's input embeddings e_t, in direction, and its
kernel sees every token as a vector of length 1. In a mean of raw embeddings "a", "in" and "the" prevail, as the longest
of a trained table are those of the words that go with every sound. Dividing by the length makes all tokens alike, and
dividing twice gives the less weight to a token the longer it is: a weighting by how common it is, without a list of
frequencies (benchmarks/search.py has the plain mean beside it). Words that a search leaves out everywhere (STOP, those
of the full-text search) are left out here too.
"""

import re

import numpy as np

from ..inference.engine import Runtime

STOP = frozenset(
    word
    for line in (
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they",
        "this to was will with",
    )
    for word in line.split()
)


class Words:
    """Words as vectors of a model's aligned space."""

    def __init__(self, runtime: Runtime):
        self.runtime = runtime

    def vector(self, query: str) -> np.ndarray:
        """The direction of `query` (D_llm,), of length 1; zeros where the tokenizer knows nothing of it."""
        words = query.lower()
        kept = " ".join(word for word in words.split() if re.sub(r"\W", "", word) not in STOP)
        [(ids, _)] = self.runtime.tokenize([kept or words])
        e = self.runtime.embed(ids)  # (L, D_llm)
        q = (e / np.maximum(np.square(e).sum(-1, keepdims=True), 1e-12)).sum(0)  # (D_llm,)
        return q / max(float(np.linalg.norm(q)), 1e-12)
