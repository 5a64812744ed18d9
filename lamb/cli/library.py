"""`lamb index` and `lamb search`: a collection of sounds that can be searched in words, or by a sound."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import DEFAULT_MODEL
from .errors import one_line_warnings, say
from .options import INPUT, MACHINE, MODEL_HELP, OUTPUT, Beams, Device, Quiet, Threads, option, refuse
from .terminal import print_table, progress_bar

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..library.index import Tally
    from ..library.library import Library, Match

FILTERS = "Where to look"


class SearchFormat(StrEnum):
    """The output formats: the writers of `lamb.library.formats`, and a table to read."""

    table = "table"
    jsonl = "jsonl"
    m3u = "m3u"
    audacity = "audacity"


Database = Annotated[Path, typer.Argument(metavar="DB", help="The folder of an index.", show_default=False)]
ItsModel = Annotated[
    str | None, option("NAME", MODEL_HELP, MACHINE, default=f"that of the index, else {DEFAULT_MODEL}")
]


def index(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="A folder, with all below it, or a manifest (.jsonl, .csv).", show_default=False
        ),
    ],
    to: Annotated[Path, option("DB", "The folder of the index.", OUTPUT)],
    beams: Beams = None,
    model: ItsModel = None,
    device: Device = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Index a collection of sounds for `lamb search`.

    The same command again brings the index up to date: what is new or has changed is heard, what is
    gone is taken out. It also goes on where a run was interrupted, even by kill -9.

    Exit code: 0 if everything succeeded; 1 if a recording could not be read (the others are indexed);
    2 if the command was wrong.

    \b
    Example:
      lamb index ~/sounds --to sounds.lamb
    """
    one_line_warnings(quiet)
    library = _library(to, model, device, threads)
    with progress_bar(None, quiet) as progress:
        tally = library.index(source, lambda tally: _moved(progress, tally), beams)
    for name, problem in tally.failed.items():
        say("error", problem if name in problem else f"{name}: {problem}")
    if not quiet:
        names = ("listed", "indexed", "unchanged", "moved", "removed", "segments")
        say("done", ", ".join(f"{getattr(tally, name)} {name}" for name in names if getattr(tally, name)))
    print(to)
    if tally.failed:
        raise typer.Exit(1)


def search(
    database: Database,
    query: Annotated[
        str | None, typer.Argument(metavar="QUERY", help="What is to be heard, in words.", show_default=False)
    ] = None,
    like: Annotated[str | None, option("FILE", "Look for sounds like this recording instead.", INPUT)] = None,
    limit: Annotated[int, option("N", "How many to show.", min=1, max=100_000)] = 20,
    format: Annotated[SearchFormat, option("NAME", f"{', '.join(SearchFormat)}.", OUTPUT)] = SearchFormat.table,
    folder: Annotated[str | None, option("DIR", "Only below this folder.", FILTERS)] = None,
    since: Annotated[
        str | None,
        option(
            "WHEN",
            "Only from here on: seconds into a recording (90, 1:30, 1:02:30), or a date of its file "
            "(2026-11-26, 2026-11-26T08:00).",
            FILTERS,
            "--from",
        ),
    ] = None,
    until: Annotated[str | None, option("WHEN", "Only up to here: the same.", FILTERS, "--to")] = None,
    min_confidence: Annotated[
        float | None, option("P", "Only where the caption is at least this sure.", FILTERS, min=0, max=1)
    ] = None,
    model: ItsModel = None,
    device: Device = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Find sounds in an index, by words or by a sound.

    \b
    Examples:
      lamb search sounds.lamb "glass breaks in a kitchen"
      lamb search sounds.lamb --like bark.wav --limit 5
      lamb search sounds.lamb thunder --format m3u > thunder.m3u
    """
    if (query is None) == (like is None):
        refuse("QUERY", "give either words or --like FILE.")
    where: dict[str, Any] = {"folder": folder, "min_confidence": min_confidence}
    where |= _when(since, "--from", "after", "since") | _when(until, "--to", "before", "until", end=True)
    one_line_warnings(quiet)
    library = _library(database, model, device, threads)
    found = library.search(query, limit, **where) if like is None else library.like(like, limit, **where)  # type: ignore[arg-type]
    _print(found, format)


def _library(folder: Path, model: str | None, device: str | None, threads: int | None) -> Library:
    from ..library.library import Library

    return Library(folder, model, device, threads=threads)


def _print(found: list[Match], format: SearchFormat) -> None:
    import sys

    from ..inference.captions import one_line, span
    from ..library.formats import WRITERS

    if format is SearchFormat.table:
        rows = []
        for match in found:
            sure = "" if match.confidence is None else f"{match.confidence:.2f}"
            rows.append((one_line(_from_here(match.file)), span(match.start, match.end), one_line(match.caption), sure))
        print_table(("file", "when", "caption", "confidence"), rows)
        return
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    for chunk in WRITERS[format](found):
        sys.stdout.write(chunk)


def _from_here(file: str) -> str:
    """A file below the working folder as seen from there, which is shorter; any other by its whole path."""
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else file


def _moved(progress: Progress, tally: Tally) -> None:
    """Move the bar of `lamb index`."""
    told = f"{tally.segments:,} segments" + (f", {len(tally.failed)} failed" if tally.failed else "")
    progress.update(progress.task_ids[0], total=tally.listed, completed=tally.done, description=told)


def _when(text: str | None, option: str, place: str, date: str, end: bool = False) -> dict[str, Any]:
    """A place in a recording in seconds, or a date in nanoseconds since 1970 (at its `end` if it names a day)."""
    if text is None:
        return {}
    if re.fullmatch(r"(\d+:){0,2}\d+(\.\d+)?", text):
        seconds = 0.0
        for part in text.split(":"):
            seconds = 60 * seconds + float(part)
        return {place: seconds}
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        remedy = "give seconds (90), a time (1:30) or a date (2026-11-26, 2026-11-26T08:00)"
        raise typer.BadParameter(f"{text!r} is neither a time nor a date; {remedy}.", param_hint=option) from None
    if end and len(text) <= 10:
        moment = moment.replace(hour=23, minute=59, second=59, microsecond=999_999)
    return {date: round(moment.timestamp() * 1e6) * 1000}
