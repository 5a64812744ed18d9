"""Scores of captions against references, without Java: BLEU, ROUGE-L and CIDEr-D.

All functions take captions as lists of tokens, as `tokenizer.tokenize` makes them, with one candidate and one or more
references per clip, and return (score of the collection, score of each clip). The numbers equal those of pycocoevalcap,
the code behind the published tables (https://github.com/salaniz/pycocoevalcap), including its conventions for empty
captions and zero counts; tests/evaluation/test_metrics.py compares the two. No score depends on the order of the clips.

Letters: S clips, n the order of an n-gram (n tokens in a row).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Tokens = Sequence[str]


class _Grams(NamedTuple):
    """The number of times each n-gram occurs in each caption: parallel arrays, sorted by caption, then gram."""

    caption: Ints
    gram: Ints  # numbers below `kinds`
    times: Ints
    kinds: int


def _ngrams(captions: Sequence[Tokens], orders: int) -> list[_Grams]:
    """The n-grams of `captions` for n = 1 ... `orders`."""
    numbers: dict[str, int] = {}
    words = np.array([numbers.setdefault(word, len(numbers)) for tokens in captions for word in tokens], dtype=np.int64)
    lengths = np.array([len(tokens) for tokens in captions], dtype=np.int64)
    caption = np.repeat(np.arange(len(captions)), lengths)
    end = np.cumsum(lengths)[caption]  # where the caption of each word ends
    start, gram, kinds = np.arange(len(words)), words, max(len(numbers), 1)
    found = []
    for n in range(1, orders + 1):
        if n > 1:  # gram: the number of the n-gram that starts at word `start`, from that of the (n-1)-gram there
            inside = start + n <= end[start]
            start = start[inside]
            longer = gram[inside] * len(numbers) + words[start + n - 1]
            different, gram = np.unique(longer, return_inverse=True)
            kinds = max(len(different), 1)
        pair, count = np.unique(caption[start] * kinds + gram, return_counts=True)
        found.append(_Grams(pair // kinds, pair % kinds, count, kinds))
    return found


def _look_up(keys: Ints, values: NDArray, wanted: Ints) -> NDArray:
    """For each key that is wanted, values[k] of the same keys[k] (sorted, without repeats), or 0 without one."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=values.dtype)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def _check(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    """Raise ValueError or TypeError if candidates and references do not fit together."""
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates for the references of {len(references)} clips")
    if not candidates:
        raise ValueError("no captions to score")
    for k, (candidate, group) in enumerate(zip(candidates, references, strict=True)):
        if not group:
            raise ValueError(f"clip {k}: no reference")
        if isinstance(candidate, str) or any(isinstance(tokens, str) for tokens in group):
            raise TypeError(f"clip {k}: a text where a list of tokens is wanted; tokenize(text) makes one")


def bleu(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]], orders: int = 4
) -> tuple[Floats, Floats]:
    """BLEU-1 ... BLEU-`orders`: shape (orders,) for the collection, (orders, S) for each clip.

    BLEU-N = BP (p_1 ... p_N)^(1/N); p_n: share of the candidates' n-grams that are in a reference of their clip, each
    counted at most as often as in the reference that has it most; BP = exp(min(0, 1 - r/c)) with c the candidates'
    length and r that of the nearest reference in length (the shorter of two). Papineni et al. 2002, "BLEU: a method for
    automatic evaluation of machine translation". For the collection, counts and lengths are summed first.
    """
    counts = bleu_counts(candidates, references, orders)
    return bleu_of(counts.sum(0)), bleu_of(counts).T


def bleu_counts(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]], orders: int = 4) -> Floats:
    """The counts of BLEU per clip, (S, 2 orders + 2): matches and n-grams of each order, and the lengths c and r."""
    _check(candidates, references)
    clips = len(candidates)
    texts, clip = _joined(candidates, references)
    length = np.array([len(candidate) for candidate in candidates], dtype=np.int64)
    nearest = [min((abs(len(r) - c), len(r)) for r in group)[1] for c, group in zip(length, references, strict=True)]
    matches, possible = np.zeros((orders, clips)), np.zeros((orders, clips))
    for n, grams in enumerate(_ngrams(texts, orders)):
        own = grams.caption < clips  # candidates come first
        pair = clip[grams.caption] * grams.kinds + grams.gram
        keys, place = np.unique(pair[~own], return_inverse=True)
        most = np.zeros(len(keys), dtype=np.int64)
        np.maximum.at(most, place, grams.times[~own])
        clipped = np.minimum(grams.times[own], _look_up(keys, most, pair[own]))
        matches[n] = np.bincount(grams.caption[own], clipped, minlength=clips)
        possible[n] = np.maximum(length - n, 0)
    return np.stack([*matches, *possible, length, nearest], axis=1)


def bleu_of(counts: Floats) -> Floats:
    """BLEU-1 ... BLEU-`orders` from counts (..., 2 orders + 2), of one clip or summed over clips: (..., orders).

    As in pycocoevalcap, 1e-15 is added to a number of matches and 1e-9 to what it is divided by.
    """
    tiny, small, orders = 1e-15, 1e-9, counts.shape[-1] // 2 - 1
    matches, possible, c, r = np.split(counts, [orders, 2 * orders, 2 * orders + 1], axis=-1)
    precision = np.cumprod((matches + tiny) / (possible + small), axis=-1)
    brevity = np.exp(np.minimum(0, 1 - (r + small) / (c + tiny)))
    return precision ** (1 / np.arange(1, orders + 1)) * brevity


def _joined(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[list[Tokens], Ints]:
    """All candidates, then all references, and the clip of each."""
    texts = [*candidates, *(tokens for group in references for tokens in group)]
    numbers = np.arange(len(candidates))
    return texts, np.concatenate([numbers, np.repeat(numbers, [len(group) for group in references])])


def _common_subsequence(a: Tokens, places: dict[str, int], length: int) -> int:
    """Length of the longest common subsequence of `a` and a caption of `length` tokens, places[w] having a bit set
    wherever the caption has the token w. A bit of `row` that is 0 is a place where the table's row grows (Hyyrö 2004,
    "Bit-parallel LCS-length computation revisited")."""
    row = full = (1 << length) - 1
    for word in a:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return length - row.bit_count()


def rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[float, Floats]:
    """ROUGE-L: the mean over clips, and (S,).

    F = (1 + b²) P R / (R + b² P), b = 1.2, where L is the length of the longest common subsequence with a reference, P
    the greatest L / length of the candidate and R the greatest L / length of a reference, not always the same
    reference's. Lin 2004, "ROUGE: a package for automatic evaluation of summaries"; b and the maxima as in
    pycocoevalcap. As there, an empty caption counts as one empty token: 1 against another empty one, else 0.
    """
    _check(candidates, references)
    scores = np.zeros(len(candidates))
    for k, (words, group) in enumerate(zip(candidates, references, strict=True)):
        candidate = words or [""]
        places: dict[str, int] = {}
        for i, word in enumerate(candidate):
            places[word] = places.get(word, 0) | 1 << i
        precision = recall = 0.0
        for reference in group:
            common = _common_subsequence(reference or [""], places, len(candidate))
            precision = max(precision, common / len(candidate))
            recall = max(recall, common / max(len(reference), 1))
        if precision:
            scores[k] = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    return float(scores.mean()), scores


def cider_d(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]], orders: int = 4, sigma: float = 6.0
) -> tuple[float, Floats]:
    """CIDEr-D: the mean over clips, and (S,).

    For n = 1 ... 4, g(x) is the vector of a caption's n-gram counts, each times log(S / number of clips with the n-gram
    in a reference); the score is 10 times the mean over n and references r of
    min(g(c), g(r)) · g(r) / (|g(c)| |g(r)|) · exp(-(l_c - l_r)² / (2 sigma²)). Vedantam et al. 2015, "CIDEr:
    consensus-based image description evaluation", section 5 (without stemming). This is what pycocoevalcap calls
    "CIDEr", in its unit (0-10; what papers print as 0.9 or as 90 is 0.9 here). As there, l is the number of
    2-grams, an n-gram that no reference has counts as in one clip, and with one clip alone every score is 0: the score
    of a clip depends on the collection that it is in.
    """
    _check(candidates, references)
    clips = len(candidates)
    texts, clip = _joined(candidates, references)
    length = np.maximum(np.array([len(tokens) for tokens in texts]) - 1, 0)
    similarity = np.zeros(len(texts))
    for grams in _ngrams(texts, orders):
        own = grams.caption < clips
        pair = clip[grams.caption] * grams.kinds + grams.gram  # a clip and an n-gram, as one number
        frequency = np.bincount(np.unique(pair[~own]) % grams.kinds, minlength=grams.kinds)  # (kinds,)
        weight = grams.times * (np.log(clips) - np.log(np.maximum(frequency, 1)))[grams.gram]
        norm = np.sqrt(np.bincount(grams.caption, weight**2, minlength=len(texts)))
        shared = np.minimum(_look_up(pair[own], weight[own], pair[~own]), weight[~own]) * weight[~own]
        product = np.bincount(grams.caption[~own], shared, minlength=len(texts))
        norms = norm[clip] * norm
        similarity += np.divide(product, norms, out=np.zeros(len(texts)), where=norms > 0)
    similarity *= np.exp(-((length[clip] - length) ** 2) / (2 * sigma**2)) * 10 / orders
    sums = np.bincount(clip[clips:], similarity[clips:], minlength=clips)
    scores = sums / np.array([len(group) for group in references])
    return float(scores.mean()), scores


def vocabulary_size(captions: Iterable[Tokens]) -> int:
    """The number of different tokens in the captions."""
    return len({word for tokens in captions for word in tokens})
