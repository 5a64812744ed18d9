"""`lamb explain`: when each word of a caption was heard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..config import DEFAULT_MODEL
from .errors import one_line_warnings
from .options import OUTPUT, AsJson, Beams, Device, Model, Threads, option
from .terminal import print_json, print_table


def explain(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A recording of up to a minute.", show_default=False)],
    plot: Annotated[
        Path | None, option("FILE", "Also draw the words below the spectrogram (png, pdf, svg).", OUTPUT)
    ] = None,
    as_json: AsJson = False,
    beams: Beams = None,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Show when each word of a caption was heard.

    A word was heard in the stretch after which the Token Guide expects it most.

    \b
    Examples:
      lamb explain street.wav
      lamb explain street.wav --plot street.png --json
    """
    from dataclasses import replace

    from ..inference.captions import span
    from ..inference.explain import draw, explain
    from ..inference.picture import Picture
    from .caption import load_captioner

    one_line_warnings(quiet=False)
    captioner = load_captioner(model, device, threads)
    options = replace(captioner.options, beams=beams or captioner.options.beams)
    picture = Picture(captioner.engine.sample_rate, plot) if plot else None
    listen = picture.listen if picture else lambda x: None
    found = explain(captioner.engine, file, options, listen=listen)
    if picture:
        draw(found, picture)
    if as_json:
        print_json(found.to_dict())
        return
    print(found.caption)
    print_table(("word", "when"), [(word.text, span(word.start, word.end)) for word in found.words])
