"""The search tab of the page: it shows moments of an indexed collection, each with its caption and a player.

Only recordings in the index are read, at most LONGEST seconds of each, and they are sent as part of the HTML.
"""

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

from ..audio import reader as audio
from ..audio import sandbox
from ..config import DecodeLimits
from ..errors import LambError
from ..inference.captions import span
from ..library.library import Library, Match

SHOWN = 10  # moments
LONGEST = 10.0  # seconds of a moment that can be played


def add_search(library: Library, limits: dict[str, Any]) -> None:
    """Add the tab to the Gradio Blocks in whose context it is called; `limits` are those of the page's events."""
    import gradio as gr

    with gr.Tab("Search"):
        query = gr.Textbox(
            label=f"What is to be heard, among {len(library.store):,} moments", submit_btn="Search", elem_id="query"
        )
        found = gr.HTML(elem_id="found", min_height=80)
        query.submit(lambda text: found_as_html(library, text), query, found, **limits)


def found_as_html(library: Library, query: str) -> str:
    """The results for `query`, or the error, as HTML."""
    try:
        matches = library.search(query[:500], SHOWN)
    except LambError as error:
        return f'<p class="lamb-error" role="alert">{escape(str(error))}.</p>'
    return f'<div class="lamb"><ol class="lamb-found">{"".join(map(_row, matches))}</ol></div>'


def _row(match: Match) -> str:
    sure = "" if match.confidence is None else f", {match.confidence:.0%} sure"
    return f"""<li><p class="lamb-caption">{escape(match.caption)}</p>
<p class="lamb-note">{escape(Path(match.file).name)} {span(match.start, match.end)}{sure}</p>
{_player(match)}</li>"""


def _player(match: Match) -> str:
    import soundfile

    try:
        seconds = min(LONGEST, max(match.end - match.start, audio.MIN_DURATION))
        x = sandbox.load(match.file, 16_000, match.start, seconds, DecodeLimits())
    except LambError as error:
        return f'<p class="lamb-note">cannot be played: {escape(error.problem)}</p>'
    file = io.BytesIO()
    soundfile.write(file, x, 16_000, format="FLAC")
    content = base64.b64encode(file.getvalue()).decode()
    return f'<audio controls preload="metadata" src="data:audio/flac;base64,{content}"></audio>'
