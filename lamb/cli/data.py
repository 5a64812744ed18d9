"""`lamb data`: collections of captioned sound as manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import say
from .options import option
from .terminal import print_table


def data(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="audiocaps, clotho, wavcaps (or wavcaps-audioset, -bbc, -freesound, -soundbible), macs, esc50, "
            "urbansound8k, or folder: any folder with a table of captions.",
        ),
    ],
    to: Annotated[Path | None, option("DIR", "The folder to create.", default="data/NAME")] = None,
    audio: Annotated[
        Path | None, option("DIR", "A folder with the recordings; without it they are downloaded.")
    ] = None,
    without: Annotated[
        list[Path] | None,
        option(
            "DIR",
            "Remove recordings from the training part that the evaluation part of this folder contains; "
            "may be repeated.",
        ),
    ] = None,
) -> None:
    """Download a collection of captioned recordings.

    Writes the recordings and a manifest into a folder.

    Example: lamb data clotho --to data/clotho
    """
    from ..data.collections import prepare

    done = prepare(name, to or Path("data") / name, audio, without or ())
    total = len(done.clips) + len(done.missing) + len(done.leaked)
    if done.missing:
        where = done.manifest.with_name("missing.txt")
        say("warning", f"{len(done.missing)} of {total} recordings are missing and were left out; {where} lists them")
    if done.leaked:
        say("warning", f"{len(done.leaked)} training clips were left out because they are also evaluated on")
    rows = []
    for split in dict.fromkeys(clip.split for clip in done.clips):
        clips = [clip for clip in done.clips if clip.split == split]
        rows.append((split, f"{len(clips):,}", f"{sum(len(clip.captions) for clip in clips):,}"))
    print_table(("split", "clips", "captions"), rows)
    print(done.manifest)
