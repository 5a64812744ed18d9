"""Scores of captions against references, without Java: BLEU, ROUGE-L, CIDEr-D, and how sure they are.

Everything here takes captions as lists of tokens, such as `tokenize` makes, one candidate a clip and one or more
references a clip, and gives (score of the collection, score of each clip). The numbers are those of pycocoevalcap, the
code behind the published tables (https://github.com/salaniz/pycocoevalcap), its conventions for empty captions and
zero counts included; tests/test_metrics.py compares the two. No score looks at the order of the clips.

Letters: S clips, n the order of an n-gram (n tokens in a row).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Tokens = Sequence[str]

# Abbreviations that keep their full stop; those that are words besides, and keep it with a capital only; those that
# keep it before a number; the words before which a single letter's full stop ends a sentence.
_ABBREVIATIONS = (
    r"adj|adm|adv|al|ala|alex|apr|asst|aug|ave|bhd|bldg|brig|bros|calif|capt|cf|cie|cmdr|co|col|comdr|conn|corp|cos|cpl|"
    r"ct|dak|dec|det|dr|drs|ens|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|gov|hon|inc|ind|insp|jan|jos|jr|jul|jun|kan|ky|"
    r"lt|ltd|maj|mar|md|messrs|mfg|mlle|mme|mo|mon|mont|mr|mrs|ms|msgr|mt|mtg|neb|nev|nov|oct|penn|pfc|ph\.d|ph|plc|"
    r"pres|prof|pte|pty|pvt|rd|rep|reps|rev|rt|sen|sens|sep|sept|seq|sfc|sgt|spc|sq|sr|st|ste|supt|sys|tel|thu|tue|"
    r"tues|va|vs|vt|wed|wis|wm|wyo"
)
_CAPITAL_ABBREVIATIONS = "Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"
_BEFORE_NUMBER = "art|ca|fig|nos?|op|pp|prop"
_SENTENCE_START = re.compile(
    r"(?:A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Now|Once|"
    r"One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You)\b"
)

_A, _L = r"[^\W_]", r"[^\W\d_]"  # a letter or digit; a letter
_NUMBERED = re.compile(rf"(?:{_BEFORE_NUMBER})\.", re.IGNORECASE)
_SINGLE_LETTER = re.compile(rf"{_L}\.")
_CLITIC = r"'(?:[sdm]|ll|re|ve)"
# What a token can be at one place; the longest whole match wins, the first of equals; the token is group 1.
_TOKENS = [
    re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    for ignore_case, pattern in (
        (True, rf"({_L}+?)n't"),  # do|n't
        (True, rf"({_L}+){_CLITIC}(?!{_L})"),  # dog|'s
        (True, rf"(can)not(?!{_A})|(?:(gon|wan)na|(got)ta|(gim|lem)me)(?!{_A})"),
        (True, r"('t)(?:is|was)(?!\w)"),
        (True, rf"({_L}(?:{_A}|_(?={_A}))*(?:[.!?]{_L}(?:{_A}|_(?={_A}))*)*)"),  # word, word.word
        (False, rf"({_A}+)"),  # 40s, 5pm
        (False, r"([+-]?(?:\d*(?:[.,:]\d+)+|\d+))"),  # 1,000 12:30 -0.5
        (False, rf"({_A}(?:{_A}|[.,])*(?:[-\u2010\u2011](?:(?:{_L}\.){{2,}}|{_A}+))+)"),  # high-pitched, 10-20
        (False, rf"({_A}+(?:-{_L}+){{0,2}}(?:/{_A}+(?:-{_L}+){{0,2}}){{1,2}})"),  # and/or, 1/2
        (False, rf"((?:{_L}\.)+)"),  # U.S., p.m., a single letter
        (True, rf"((?:{_ABBREVIATIONS})\.)|((?:{_BEFORE_NUMBER})\.)\d"),
        (False, rf"((?:{_CAPITAL_ABBREVIATIONS})\.)"),
        (True, rf"({_CLITIC}|'n'?)(?!{_L})|(n't|'em|'till?|'cause)"),
        (False, rf"('\d\ds?)(?!{_A}|[:.,-]\d)"),  # '80s
        (True, rf"([dol]'{_L}{_A}+(?:-{_A}+)*)|(c'mon|e'er)(?!{_L})|(ol')(?!{_L})"),  # o'clock
        (True, rf"([dly]')(?={_L})"),  # y'|all
        (False, rf"({_L}+[aeiouyAEIOUY]'[aeiouA-Z]{_L}*)"),  # ma'am
        (False, r"([A-Z]+(?:&[A-Z]+)+)"),  # R&B
        (False, r"(</?[A-Za-z][^<>]*>)"),
        (True, r"(https?://\S*[\w/])|([\w.-]+@[\w-]+(?:\.[\w-]+)+)|([#@][a-z]\w*)"),
        (False, r"([?!]{2,}|_+|\*+|-{2,4}(?!-)|-{5,}|'')"),
        (False, r"(.)"),
    )
]
_SPELT = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "¢": "cents"}
_REMOVED = frozenset([*".?!,:;-'\u2010\u2011", "--", "---", "----", "''"])
_CHARACTERS = str.maketrans(
    {"’": "'", "‛": "'", "…": " ", "\xad": "", "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "}
    | {"€": "$", "£": " # "}
    | dict.fromkeys('"`‘‚“”«»‹›–—―\u200b\ufeff', " ")  # quotation marks and dashes: removed in the end
)
_ENTITIES = {"&amp;": " & ", "&lt;": " < ", "&gt;": " > ", "&quot;": " ", "&apos;": " ' ", "&nbsp;": " "}


@lru_cache(maxsize=1 << 16)
def _split(piece: str) -> tuple[str, ...]:
    """Tokens of a piece of text without white space; what is removed is gone."""
    tokens, at = [], 0
    while at < len(piece):
        match = max((m for pattern in _TOKENS if (m := pattern.match(piece, at))), key=re.Match.end)
        group = match.lastindex or 0
        token, at = match[group], match.end(group)
        if token not in _REMOVED:
            tokens.append(_SPELT.get(token, token.lower()))
    return tuple(tokens)


def tokenize(text: str) -> list[str]:
    """The tokens of a caption in the manner of the Penn Treebank, lower-cased, without punctuation.

    What pycocoevalcap's PTBTokenizer gives (Stanford's PTBTokenizer, CoreNLP 3.4.1, with -lowerCase, less a list of
    punctuation marks): "The dog's high-pitched bark, (at 5 p.m.)" -> the dog 's high-pitched bark -lrb- at 5 p.m.
    -rrb-. Rules written from what that program answers; equal on every caption of AudioCaps and Clotho. English
    captions are what it is for: smileys and some forms of web addresses and telephone numbers come out otherwise. A
    caption is looked at alone, where that program reads on into the next one ("... the letter b." before "The ...").
    """
    text = text.translate(_CHARACTERS)
    if not text.isascii():  # emoji and the like are dropped
        text = "".join(c if c <= "\uffff" else " " for c in text)
    if "&" in text:
        for entity, meaning in _ENTITIES.items():
            text = text.replace(entity, meaning)
    pieces = text.split()
    tokens: list[str] = []
    for k, piece in enumerate(pieces):
        found = _split(piece)
        if piece[-1] == "." and k + 1 < len(pieces):  # what comes next decides
            after = pieces[k + 1]
            if after[0].isdigit() and _NUMBERED.fullmatch(piece):
                found = (piece.lower(),)
            elif found and _SINGLE_LETTER.fullmatch(found[-1]) and _SENTENCE_START.match(after):
                found = (*found[:-1], found[-1][0])
        tokens.extend(found)
    return tokens


class _Grams(NamedTuple):
    """How often each n-gram is in each caption: parallel arrays, one entry a pair, sorted by caption, then gram."""

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
    """values[k] where keys[k] (sorted, each once) is wanted; 0 where it is not there."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=values.dtype)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def _check(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    """ValueError or TypeError where the two do not belong together."""
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
    """What BLEU adds up over clips, (S, 2 orders + 2): matches and n-grams of each order, and the lengths c and r."""
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
    """BLEU-1 ... of counts (..., 2 orders + 2), of a clip or summed over clips: (..., orders).

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
    """How many different tokens the captions use."""
    return len({word for tokens in captions for word in tokens})


def mean_length(captions: Sequence[Tokens]) -> float:
    """Mean number of tokens of a caption."""
    if not captions:
        raise ValueError("no captions to measure")
    return sum(map(len, captions)) / len(captions)


def _per_clip(values: ArrayLike, ndim: int = 1) -> Floats:
    """`values` as a finite array (S,) or, with `ndim` 2, (S, F), S > 0; ValueError for anything else."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or not array.size or not np.isfinite(array).all():
        raise ValueError(
            f"one finite score a clip is wanted; got an array of shape {array.shape} or one with nan or inf"
        )
    return array


def _resampled_sums(values: Floats, samples: int, seed: int) -> Floats:
    """(samples, ...) sums of as many values, drawn with replacement along the first axis."""
    random, clips = np.random.default_rng(seed), len(values)
    draws = (random.integers(0, clips, clips) for _ in range(samples))
    return np.stack([np.bincount(draw, minlength=clips) @ values for draw in draws])


Total = Callable[[Floats], Floats]
"""From sums over clips of what is counted in each, (..., F), to the score, (...,)."""


def confidence_interval(
    per_clip: ArrayLike, level: float = 0.95, samples: int = 1000, seed: int = 0, of: Total | None = None
) -> tuple[float, float]:
    """Bootstrap interval (low, high) of the mean of `per_clip`: other clips of the same kind, the same captioner.

    The percentiles (1 ± level) / 2 of the means of resampled clips (Efron 1979, "Bootstrap methods: another look at
    the jackknife"). Right for scores that are means over clips (ROUGE-L, CIDEr-D with its document frequencies held).
    One that is not, such as BLEU, is `of` counts: `per_clip` is then what is counted in each clip, (S, F), and `of` the
    score from the sums of the counts.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; a share between 0 and 1 is wanted, such as 0.95")
    values = _per_clip(per_clip, 1 if of is None else 2)
    sums = _resampled_sums(values, samples, seed)
    scores = sums / len(values) if of is None else of(sums)
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_test(
    a: ArrayLike, b: ArrayLike, samples: int = 10_000, seed: int = 0, of: Total | None = None
) -> tuple[float, float]:
    """(difference, p): mean of a - b over the clips that both scored, and how often chance alone gives as large a one.

    Paired bootstrap, two-sided: clips are resampled, the same for both, and p is the share of resampled differences
    at least as far from the one observed as that is from 0; the one observed is counted in (Efron and Tibshirani 1993,
    "An introduction to the bootstrap", 16.4). p is never below 1 / (samples + 1). With `of`, the difference is that of
    two scores of counts (see `confidence_interval`).
    """
    first, second = (_per_clip(values, 1 if of is None else 2) for values in (a, b))
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} and {len(second)} scores: both systems must be scored on the same clips")
    if of is None:
        observed = (first - second).mean()
        moved = _resampled_sums(first - second - observed, samples, seed) / len(first)
    else:
        sums, columns = _resampled_sums(np.concatenate([first, second], axis=1), samples, seed), first.shape[1]
        observed = of(first.sum(0)) - of(second.sum(0))
        moved = of(sums[:, :columns]) - of(sums[:, columns:]) - observed
    extreme = np.count_nonzero(np.abs(moved) >= np.abs(observed) * (1 - 1e-12))
    return float(observed), float((extreme + 1) / (samples + 1))
