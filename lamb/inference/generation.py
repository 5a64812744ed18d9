"""From audio tokens to captions: a search over tokens, whose results become clean sentences with scores.

The Token Guide's bias is part of the logits that an engine hands out; see `search` for the loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import DecodeConfig
from .captions import Sound
from .search import Decoding, Filter, Found, NoRepeatNGram, beam_search, sample

if TYPE_CHECKING:
    from .engine import Runtime


@dataclass(frozen=True)
class Hypothesis:
    """One candidate caption."""

    text: str  # a clean sentence
    score: float  # mean log probability of its tokens and its end, under the guided model
    sounds: tuple[Sound, ...] = ()  # that it names, where they were weighed (lamb.inference.weighing)
    confidence: float | None = None  # of a caption whose sounds were weighed
    found: Found | None = None  # its tokens, of one that a search found


def generate(
    runtime: Runtime, decoding: Decoding, options: DecodeConfig, n_best: int = 1, seed: int | None = None
) -> list[list[Hypothesis]]:
    """For every clip of `decoding` its hypotheses, best first, at most `n_best`, by the rank of the search.

    Beam search with `options.beams` (1: greedy), or sampling where a `seed` is given. Repeated texts are dropped.
    """
    filters: list[Filter] = [NoRepeatNGram(options.no_repeat_ngram)] if options.no_repeat_ngram else []
    if runtime.config.extensions.one_mention.enabled:
        from ..extensions.one_mention import OneMention

        filters.append(OneMention(runtime.vocabulary))
    limits = {"eos": runtime.eos, "max_new_tokens": options.max_new_tokens}
    if seed is None:
        beams = max(options.beams, n_best)
        rows = beam_search(decoding, beams=beams, length_penalty=options.length_penalty, filters=filters, **limits)
    else:
        rows = sample(
            decoding,
            samples=n_best,
            seed=seed,
            temperature=options.temperature,
            top_p=options.top_p,
            filters=filters,
            **limits,
        )
    texts = iter(runtime.decode([found.ids for row in rows for found in row]))
    return [
        _distinct(Hypothesis(clean(next(texts)), found.score, found=found) for found in row)[:n_best] for row in rows
    ]


def clean(text: str) -> str:
    """One line, a capital first, a full stop last."""
    text = " ".join(text.split()).replace(" ,", ",").replace(" .", ".").rstrip(" ,;:-")
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def _distinct(hypotheses: Iterable[Hypothesis]) -> list[Hypothesis]:
    unique: dict[str, Hypothesis] = {}
    for hypothesis in hypotheses:
        unique.setdefault(hypothesis.text, hypothesis)
    return list(unique.values())
