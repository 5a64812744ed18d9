"""When each word of a caption was heard: the Token Guide's scores of a stretch alone. [O]

    support(word, stretch) = log softmax_v( bias_v(z_a of the stretch) )  at the word's first token

The guide (paper, section 4) scores every entry of the vocabulary by its distance to z_a. The encoder's tokens, which
are in the order of time, are cut into stretches of a second. Each stretch goes through the adapter alone, and a word
was heard where the guide expects it most. This found the right one of two sounds in sequence more often than the
probability of the word by the language model, and more often than hiding a stretch, for hiding one of three barks
changes little (benchmarks/explain.py).

Letters: N_a encoder tokens, D encoder width, W words, K stretches, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import DecodeConfig, ExplainConfig
from ..errors import LambError
from .captions import SILENCE
from .engine import Engine, pad
from .recording import Source, has_sound, name_of, windows
from .search import log_softmax

if TYPE_CHECKING:
    from .picture import Picture


class ExplainError(LambError, ValueError):
    """A recording whose caption cannot be explained: its name, the reason and the remedy."""


@dataclass(frozen=True)
class Word:
    """A word of the caption, and the stretch (seconds) that supports it best."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Explanation:
    """A caption, its words, the stretches (seconds), and the `support` (W, K) of each word by each stretch."""

    file: str
    duration: float
    caption: str
    words: tuple[Word, ...]
    stretches: tuple[tuple[float, float], ...]
    support: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that `lamb explain` prints."""
        return {
            "file": self.file,
            "duration": round(self.duration, 3),
            "caption": self.caption,
            "words": [{"word": w.text, "start": round(w.start, 2), "end": round(w.end, 2)} for w in self.words],
            "stretches": [[round(a, 2), round(b, 2)] for a, b in self.stretches],
            "support": np.round(self.support, 3).tolist(),
        }


def explain(
    engine: Engine,
    source: Source,
    options: DecodeConfig,
    config: ExplainConfig | None = None,
    listen: Callable[[np.ndarray], None] = lambda x: None,
    text: str | None = None,
) -> Explanation:
    """When the words of the caption of `source`, or of `text` in its place, were heard.

    `listen` is called with the samples, in order. Raises AudioError for a recording that cannot be read, ExplainError
    for silence, for a recording that is too long, and for a model without a guide.
    """
    config = config or ExplainConfig()
    file, parts, times, duration, end = name_of(source), [], [], 0.0, 0.0
    for start, x in windows(source, engine.sample_rate, options):
        duration = start + len(x) / engine.sample_rate
        if duration > config.longest:
            remedy = "explain a part of it, as a clip of a manifest, or use: lamb caption --timeline"
            raise ExplainError(f"{file}: longer than {config.longest:g} s", remedy)
        listen(x[len(x) - round((duration - end) * engine.sample_rate) :])
        end = duration
        if has_sound(start, x, engine.sample_rate):
            [h_a] = engine.encode([x], 1)
            parts.append(h_a)
            times.append(start + (np.arange(len(h_a)) + 0.5) * (duration - start) / len(h_a))
    if not engine.runtime.config.guide.enabled:
        raise ExplainError("this model has no Token Guide, whose scores tell when a word was heard", "choose another")
    if not parts:
        raise ExplainError(f"{file}: {SILENCE} There is nothing to explain", "give a recording with some sound")
    h_a, time = np.concatenate(parts), np.concatenate(times)  # (N_a, D), (N_a,) seconds
    if text is None:
        [[best, *_]] = engine.describe([h_a], options)
        text = best.text
    words = [(m[0], m.start()) for m in re.finditer(r"[^\W_]+(?:['-][^\W_]+)*", text)]
    stretches = _stretches(duration, config)
    tokens = [h_a[(time >= a) & (time < b)] for a, b in stretches]
    support = _support(engine, tokens, text, [place for _, place in words], options)  # (W, K)
    chosen = [stretches[k] for k in support.argmax(1)]
    return Explanation(
        file=file,
        duration=duration,
        caption=text,
        words=tuple(Word(word, *span) for (word, _), span in zip(words, chosen, strict=True)),
        stretches=tuple(stretches),
        support=support,
    )


def draw(found: Explanation, picture: Picture) -> None:
    """Draw the words over time below the spectrogram of `picture`, which has taken the samples of the recording.

    Each row is a word. The darker a stretch, the better it supports the word; a frame marks the best one.
    """
    upper, lower = picture.figure.subplots(2, 1, sharex=True, height_ratios=[3, 4])
    picture.draw_spectrogram(upper)
    upper.set_title(found.caption, loc="left", parse_math=False)
    # the stretches overlap, so each is drawn around its middle
    edges = [0.0, *((a + b) / 2 for a, b in pairwise((a + b) / 2 for a, b in found.stretches)), found.duration]
    low, high = found.support.min(1, keepdims=True), found.support.max(1, keepdims=True)
    shades = (found.support - low) / np.maximum(high - low, 1e-6)  # (W, K) in 0 to 1
    lower.pcolormesh(edges, np.arange(len(found.words) + 1) - 0.5, shades, cmap="Greens", vmin=0, vmax=1.2)
    for row, word in enumerate(found.words):
        lower.broken_barh([(word.start, word.end - word.start)], (row - 0.45, 0.9), facecolor="none", edgecolor="0.1")
    lower.set_yticks(range(len(found.words)), [word.text for word in found.words], parse_math=False)
    lower.set_ylim(len(found.words) - 0.5, -0.5)
    lower.set_xlim(0, found.duration)
    lower.set_xlabel("seconds")
    picture.save()


def _stretches(duration: float, config: ExplainConfig) -> list[tuple[float, float]]:
    """Stretches of `config.stretch` seconds, one every `config.hop` seconds; the last one ends with the recording."""
    last = max(0.0, duration - config.stretch)
    starts = [*np.arange(0.0, last - config.hop / 2, config.hop).tolist(), last]
    return [(start, min(duration, start + config.stretch)) for start in starts]


def _support(
    engine: Engine, parts: Sequence[np.ndarray], text: str, places: Sequence[int], options: DecodeConfig
) -> np.ndarray:
    """Support (W, K) by the stretches, each with tokens h_a (N_a, D), of the words that begin at `places` in `text`.

    A stretch of silence, which has no tokens, gets the lowest support of all.
    """
    [(ids, spans)] = engine.runtime.tokenize([text])
    words = [ids[next(k for k, (_, end) in enumerate(spans) if end > place)] for place in places]
    support = np.full((len(places), len(parts)), -np.inf)
    heard = [k for k, h_a in enumerate(parts) if len(h_a)]
    tokens = engine.audio_tokens([parts[k] for k in heard], options.batch_size)  # z_a (N, D_llm) of each
    for k, z_a in zip(heard, tokens, strict=True):
        bias = engine.runtime.bias(*pad([z_a]))  # (1, V)
        assert bias is not None
        support[:, k] = log_softmax(bias[0])[words]
    return np.maximum(support, support[np.isfinite(support)].min() if words else 0.0)
