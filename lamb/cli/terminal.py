"""What is shown on a terminal: tables, progress, JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

MIN_WIDTH = 60  # columns of a table; a narrower terminal wraps its lines
NUMERIC = {"length", "confidence", "parameters", "trained", "difference", "p", "95 % interval"}


def progress_bar(total: int | None, quiet: bool) -> Progress:
    """A progress bar on standard error that leaves nothing behind; disabled if `quiet` or not on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    progress = Progress(
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        disable=quiet or not sys.stderr.isatty(),
    )
    progress.add_task("", total=total)
    return progress


def table(out: TextIO, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as wide as `out` can show; without a header if no column has a name; numbers are aligned right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=out)
    console = Console(file=out, width=max(console.width, MIN_WIDTH))
    shown = Table(box=SIMPLE_HEAD, show_header=any(columns), pad_edge=False)
    rows = list(rows)
    for column in columns:
        numeric = column.startswith("score") or column in NUMERIC
        # names can be copied, while there is room for them
        short = column == "file" and all(len(row[0]) <= min(40, console.width // 3) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=short)
    for row in rows:
        shown.add_row(*map(Text, row))  # not str: a file name is not markup
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table to standard output."""
    sys.stdout.write(table(sys.stdout, columns, rows))


def cell(value: object) -> str:
    """A value as a table shows it: yes, no, 0.1234, 1,234,567, or its text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)


def print_json(value: object) -> None:
    """Print a value as indented JSON to standard output."""
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
