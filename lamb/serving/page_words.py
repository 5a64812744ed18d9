"""The words under a caption on the page: each is a button that plays the stretch in which it was heard."""

from html import escape

import numpy as np

from ..inference.captioner import Captioner
from ..inference.captions import span
from ..inference.explain import ExplainError, explain


def words_heard(captioner: Captioner, x: np.ndarray, rate: int, caption: str) -> str:
    """The words of `caption` for samples `x` (T,) at `rate` Hz, as HTML; empty if they cannot be explained."""
    try:
        found = explain(captioner.engine, (x, rate), captioner.options, text=caption)
    except ExplainError:  # silence, a recording that is too long, a model without a guide
        return ""
    words = " ".join(
        f'<button type="button" data-start="{word.start:.3f}" data-end="{word.end:.3f}" '
        f'title="{span(word.start, word.end)}">{escape(word.text)}</button>'
        for word in found.words
    )
    return f"""<div class="lamb"><h3>When the words were heard</h3>
<p class="lamb-files">{words}</p>
<p class="lamb-note">A click plays the second in which the Token Guide expects the word most.</p></div>"""
