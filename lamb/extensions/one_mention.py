"""One mention: no word that names a sound is generated twice in a caption. (our choice)

A small model that hears one sound change reports two sounds of one kind, as in "a baby cries with a baby crying". Words
of fewer than four letters, and those that two different sounds may share, can come again: "a person coughs, then a
person sneezes".
"""

from collections.abc import Mapping

import numpy as np

WORD_STARTS = ("\u0120", "\u2581")  # what a tokenizer writes for the blank before a word: byte-level BPE, SentencePiece
# words of four letters and more that captions of two different sounds may share
SHARED = frozenset(
    word
    for line in (
        "then with while background distance followed before after several times person people someone another water",
        "sound sounds loudly steadily being into onto over their that from slowly quickly once twice three many",
    )
    for word in line.split()
)


class OneMention:
    """Filter of `lamb.inference.search`: no token among ids (R, L) that begins such a word has a chance again in
    log probabilities (R, V)."""

    def __init__(self, vocabulary: Mapping[str, int]):
        """`vocabulary`: the number of each token."""
        words = ((number, token[:1] in WORD_STARTS, token[1:].lower()) for token, number in vocabulary.items())
        self.once = np.zeros(max(vocabulary.values()) + 2, bool)  # (tokens + 1,): the last is for those without a name
        for number, starts, word in words:
            self.once[number] = starts and len(word) > 3 and word.isalpha() and word not in SHARED

    def __call__(self, ids: np.ndarray, log_p: np.ndarray) -> None:
        row, place = np.nonzero(self.once.take(ids, mode="clip"))
        log_p[row, ids[row, place]] = -np.inf
