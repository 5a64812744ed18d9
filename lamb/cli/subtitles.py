"""`lamb caption --sdh`: descriptions for the deaf and hard of hearing, and the film whose subtitles they join."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .errors import say
from .options import refuse
from .output import Format

if TYPE_CHECKING:
    from ..inference.captions import Result


def film_of(merge: Path | None, sdh: bool, speech: bool, format: Format | None, output: Path | None) -> str | None:
    """The subtitles that descriptions are merged into."""
    if (merge or speech) and not sdh:
        refuse("--merge, --speech", "descriptions are what --sdh writes; add it.")
    if merge is None:
        return None
    from ..inference.subtitles import is_vtt, read

    film = read(merge)
    own = Format.vtt if is_vtt(film) else Format.srt
    if format not in (None, own):
        refuse("--format", f"{merge} is {own}, and what is merged into it too.")
    if output and output.exists() and output.samefile(merge):
        refuse("--output", f"{output} would replace the subtitles that are merged into.")
    return film


def described(results: Iterable[Result], speech: bool) -> Iterator[Result]:
    """The same results with descriptions for the deaf and hard of hearing as their segments."""
    from ..config import SdhConfig
    from ..inference.subtitles import sdh

    config = SdhConfig(speech=speech)
    return (sdh(result, config) for result in results)


def merged(film: str, results: Iterable[Result], failed: list[str]) -> str:
    """The subtitles `film` with the descriptions of the one result between their lines."""
    from ..config import SdhConfig
    from ..inference.captions import whole
    from ..inference.subtitles import merge

    [result] = results
    caption = whole(result)
    if failed:
        raise typer.Exit(1)  # the film's sound cannot be read: no file is better than one without descriptions
    text, crowded = merge(film, caption.segments, SdhConfig())
    if crowded:
        say("warning", f"{crowded} of {len(caption.segments)} descriptions find no room between the lines")
    return text
