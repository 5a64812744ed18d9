"""One mention: no word that names a sound is generated twice in a caption. (our choice)

A small model that hears one sound change reports two sounds of one kind, as in "a baby cries with a baby crying". Words
of fewer than four letters, and those that two different sounds may share, can come again: "a person coughs, then a
person sneezes".
"""

from typing import Any

import torch
from torch import Tensor

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
    """Logits processor: excludes the tokens among input_ids (R, L) that begin such a word from the scores (R, V)."""

    def __init__(self, tokenizer: Any, vocabulary: int):
        self.once = torch.zeros(vocabulary, dtype=torch.bool)  # (V,)
        for token, number in tokenizer.get_vocab().items():
            word = token[1:].lower()
            self.once[number] = token[:1] in WORD_STARTS and len(word) > 3 and word.isalpha() and word not in SHARED

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        generated = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)  # (R, V)
        generated.scatter_(1, input_ids, True)
        return scores.masked_fill(generated & self.once.to(scores.device), -torch.inf)
