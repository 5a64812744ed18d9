"""`lamb gap`: the distance between a model's audio tokens and its text embeddings."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .errors import loading, one_line_warnings
from .options import OUTPUT, AsJson, ModelName, Split, flag, option, refuse
from .terminal import cell, print_json, print_table


class Vectors(StrEnum):
    """The vectors that `lamb gap --plot` draws."""

    unit = "unit"
    raw = "raw"
    both = "both"


def gap(
    model: ModelName,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="A manifest with captions (JSONL, CSV), or a folder of labelled recordings."
        ),
    ],
    split: Split = None,
    against: Annotated[str | None, option("MODEL", "A second model, for comparison.")] = None,
    plot: Annotated[Path | None, option("FILE", "Draw both sets of embeddings (.png, .svg or .pdf).", OUTPUT)] = None,
    umap: Annotated[bool, flag("--umap", panel=OUTPUT, help="Project with UMAP instead of PCA.")] = False,
    vectors: Annotated[
        Vectors | None,
        option(
            "KIND",
            "unit, raw or both: vectors of length 1 show the gap, while raw ones mainly show that audio and text "
            "differ in length.",
            OUTPUT,
            default="unit",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure and draw the modality gap of a model.

    The gap is the distance between the audio tokens and the text embeddings of the same clips.
    """
    if (umap or vectors) and plot is None:
        refuse("--umap, --vectors", "these options need --plot FILE.")
    from ..data import sources
    from ..evaluation import gap
    from ..inference.captioner import Captioner
    from ..inference.picture import check

    one_line_warnings(quiet=False)
    if plot:
        check(plot, umap)
    clips = sources.clips(data, split)
    panels = []
    for name in filter(None, (model, against)):
        with loading():
            captioner = Captioner.load(name, engine="torch")
        panels.append((name, gap.embed(captioner.model, clips)))
    found = [{"model": name, **gap.measures(embeddings)} for name, embeddings in panels]
    if plot:
        gap.picture(panels, plot, umap, vectors.value if vectors else "unit")
    if as_json:
        print_json(found)
    else:
        rows = [[key, *(cell(own[key]) for own in found)] for key in found[0] if key != "model"]
        print_table(("measure", *(name for name, _ in panels)), rows)
    if any(embeddings.failed for _, embeddings in panels):
        raise typer.Exit(1)
