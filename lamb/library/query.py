"""Queries in the aligned space: words as a vector to be compared with the mean of z_a. [O]

    q = Σ_t e_t / |e_t|^2,  of length 1

The aligner turns the mean of a clip's z_a towards the mean of its caption's input embeddings e_t, and its kernel sees
every token as a vector of length 1. In a mean of raw embeddings "a", "in" and "the" dominate, because the words that go
with every sound have the longest embeddings in a trained table. Dividing by the length gives all tokens the same
weight, and dividing twice gives longer ones less weight: they are weighted by how rare they are without a list of
frequencies (benchmarks/search.py compares the plain mean). The stop words of the full-text search (STOP) are left out.
"""

import re
from collections.abc import Sequence

import numpy as np

from ..data.vocabulary import SAME, mentions
from ..inference.engine import Runtime
from ..inference.weighing import below

STOP = frozenset(
    word
    for line in (
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they",
        "this to was will with",
    )
    for word in line.split()
)


def kinds(query: str, labels: Sequence[str]) -> np.ndarray:
    """The K kinds of sound that `query` names, as which of the C `labels` of an encoder are of each: 0 or 1 (K, C).

    Of an upper class ("an animal") it is all labels below it. Kinds of which the encoder has no label are left out.
    """
    named = dict.fromkeys(below(mention.labels) for mention in mentions(query))
    rows = [[float(SAME.get(label, label) in one) for label in labels] for one in named]
    rows = [row for row in rows if any(row)]
    return np.array(rows, np.float32).reshape(len(rows), len(labels))


class Words:
    """Turns queries into vectors of a model's aligned space."""

    def __init__(self, runtime: Runtime):
        self.runtime = runtime

    def vector(self, query: str) -> np.ndarray:
        """The vector of `query` (D_llm,) with length 1; zeros if the tokenizer knows no part of it."""
        words = query.lower()
        kept = " ".join(word for word in words.split() if re.sub(r"\W", "", word) not in STOP)
        [(ids, _)] = self.runtime.tokenize([kept or words])
        e = self.runtime.embed(ids)  # (L, D_llm)
        q = (e / np.maximum(np.square(e).sum(-1, keepdims=True), 1e-12)).sum(0)  # (D_llm,)
        return q / max(float(np.linalg.norm(q)), 1e-12)
