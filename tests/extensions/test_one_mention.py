"""One mention: which tokens may come again."""

import numpy as np

from lamb.extensions.one_mention import OneMention

TOKENS = (  # the start of a word is marked as byte-level BPE and SentencePiece do
    "</s>",
    "\u0120a",
    "\u0120baby",
    "\u0120cries",
    "\u0120person",
    "\u0120then",
    "ing",
    "\u0120cow",
    "\u2581waves",
)


def test_words_of_sounds_are_excluded_once_they_are_generated():
    width = len(TOKENS) + 2  # a matrix may have more rows than the tokenizer has tokens
    once = OneMention({token: number for number, token in enumerate(TOKENS)})
    log_p = np.zeros((3, width))
    once(np.array([[1, 2, 3, 5], [1, 4, 8, 7], [0, 6, width - 1, width - 2]]), log_p)
    excluded = [{TOKENS[k] for k in np.nonzero(np.isinf(row))[0]} for row in log_p]
    assert excluded == [{"\u0120baby", "\u0120cries"}, {"\u2581waves"}, set()]
    log_p = np.zeros((3, width))
    once(np.zeros((3, 0), np.int64), log_p)
    assert not log_p.any()  # nothing generated yet
