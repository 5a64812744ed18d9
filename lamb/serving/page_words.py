"""On the page, under a caption: what the Token Guide does to it, and when each of its words was heard."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import numpy as np
import torch

from ..inference.captioner import Captioner
from ..inference.captions import span
from ..inference.explain import ExplainError, explain
from ..inference.recording import hear
from ..model.padding import pad

WORDS = 8  # that are shown of those which the guide raises


@dataclass(frozen=True)
class Guided:
    """What the Token Guide does to one recording."""

    without: str  # the caption without it
    words: tuple[tuple[str, float], ...]  # that it raises most, with what it adds to their logits


def guided(captioner: Captioner, x: np.ndarray) -> Guided | None:
    """What the guide does to samples `x` (T,), at `captioner`'s strength; None: no guide, or only silence."""
    engine, model, options = captioner.engine, captioner.model, captioner.options
    ((recording,),) = hear(engine, [(x, engine.sample_rate)], options)
    if model.guide is None or recording.h_a is None:
        return None
    [[without]] = engine.describe([recording.h_a], replace(options, guide=0.0))
    with torch.inference_mode():
        z_a, mask = pad(engine.audio_tokens([recording.h_a], 1))  # (1, N, D_llm), (1, N)
        matrix = model.llm.embedding_matrix
        bias = options.guide * model.guide(z_a.to(model.device), mask.to(model.device), matrix)[0, 0]  # (V,)
    return Guided(without.text, tuple(_words(model.llm.tokenizer, bias)))


def _words(tokenizer: Any, bias: torch.Tensor) -> Iterable[tuple[str, float]]:
    """The words (entries of the vocabulary that begin one) with the largest `bias` (V,), and that."""
    found: dict[str, float] = {}
    for entry in bias.argsort(descending=True).tolist():
        token = tokenizer.convert_ids_to_tokens(entry)
        word = token[1:].lower() if token and token[0] in "Ġ▁" else ""
        if len(word) > 1 and word.isalpha():
            found.setdefault(word, float(bias[entry]))
        if len(found) == WORDS:
            break
    return found.items()


def effect_as_html(text: str, effect: Guided | None, strength: float) -> str:
    """The captions `text` and that without the guide side by side, and the words that it raises."""
    if effect is None:
        return ""
    top = max([value for _, value in effect.words] + [1e-9])
    words = "".join(
        f'<li><i style="width:{max(0.0, 100 * value / top):.1f}%"></i>'
        f"<span>{escape(word)}</span><span>{value:+.2f}</span></li>"
        for word, value in effect.words
    )
    return f"""<h3>Effect of the Token Guide</h3>
<div class="lamb-pair"><div><p class="lamb-note">without the guide</p>{escape(effect.without)}</div>
<div><p class="lamb-note">at strength {strength:g}</p>{escape(text)}</div></div>
<p class="lamb-note">The words whose logits the guide raises most, and by how much.</p>
<ol class="lamb-words">{words}</ol>"""


def words_heard(captioner: Captioner, x: np.ndarray, rate: int, caption: str) -> str:
    """The words of `caption` for samples `x` (T,) at `rate` Hz, each a button that plays the stretch it was heard in.

    Nothing where they cannot be explained.
    """
    try:
        found = explain(captioner.engine, (x, rate), captioner.options, text=caption)
    except ExplainError:  # silence, a recording that is too long, a model without a guide
        return ""
    words = " ".join(
        f'<button type="button" data-start="{word.start:.3f}" data-end="{word.end:.3f}" '
        f'title="{span(word.start, word.end)}">{escape(word.text)}</button>'
        for word in found.words
    )
    return f"""<h3>When the words were heard</h3>
<p class="lamb-heard">{words}</p>
<p class="lamb-note">Click on a word to play the second in which the Token Guide expects it most.</p>"""
