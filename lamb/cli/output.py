"""Where results go: standard output, one file, or a file for each recording; and what is never overwritten."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from itertools import chain, compress, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from ..errors import LambError
from .options import refuse
from .terminal import table

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..inference.captions import Result


class Format(StrEnum):
    """The output formats: the writers of `lamb.inference.captions`, and a table to read."""

    text = "text"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    srt = "srt"
    vtt = "vtt"
    audacity = "audacity"
    raven = "raven"
    label_studio = "label-studio"
    table = "table"


ONE_RECORDING = {Format.srt, Format.vtt, Format.audacity}  # times of several recordings would overlap in one file
SUFFIXES = {  # of the files that a format is written to; the first is that of --output-dir
    Format.text: (".txt",),
    Format.json: (".json",),
    Format.jsonl: (".jsonl",),
    Format.csv: (".csv",),
    Format.srt: (".srt",),
    Format.vtt: (".vtt",),
    Format.audacity: (".labels",),
    Format.raven: (".selections.txt",),
    Format.label_studio: (".label-studio.json",),
    Format.table: (".txt",),
}
BEGINNINGS = {  # of a former result; text and tables begin with anything
    Format.json: r"\s*\[",
    Format.jsonl: r"\{",
    Format.csv: r"file,duration,start,end,",
    Format.srt: r"1\r?\n\d+:\d\d:\d\d,\d{3} --> ",
    Format.vtt: r"WEBVTT",
    Format.audacity: r"\d+\.\d+\t\d+\.\d+\t",
    Format.raven: r"Selection\tView\t",
    Format.label_studio: r"\s*\[",
}
FIELDS = re.compile(r"\{(stem|name|parent)\}")


def format_of(output: Path | None, otherwise: Format = Format.text) -> Format:
    """The format that the name of an output file asks for, or `otherwise`."""
    name = output.name.lower() if output else ""
    found = [format for format, suffixes in SUFFIXES.items() if format != Format.table and name.endswith(suffixes)]
    return max(found, key=lambda format: len(SUFFIXES[format][0]), default=otherwise)


def is_template(output: Path | None) -> bool:
    """Whether an output path stands for one file per recording."""
    return output is not None and FIELDS.search(str(output)) is not None


def outputs_of(inputs: Sequence[Any], template: Path) -> list[Path]:
    """The output file of each input, by a template with {stem}, {name} or {parent}; no two are the same."""
    paths: dict[Path, str] = {}
    for source in inputs:
        file = Path(getattr(source, "name", source))
        path = Path(
            _filled(str(template), {"stem": file.stem, "name": file.name, "parent": file.resolve().parent.name})
        )
        if path in paths:
            refuse(
                "--output",
                f"{paths[path]} and {file} would both be written to {path}; "
                "give --output with {parent}/{stem} or {name}.",
            )
        paths[path] = str(file)
    return list(paths)


def targets_of(
    inputs: list[Any], target: Path | None, format: Format, option: str, skip_existing: bool
) -> tuple[list[Any], Sequence[Path | None]]:
    """The inputs to caption, and where their results go: one output for all, or the file of each.

    Args:
        option: the one that named `target`, for the message.
        skip_existing: leave out the inputs whose own file exists.
    """
    each = is_template(target)
    if skip_existing and not each:
        refuse("--skip-existing", "it needs one file per recording; see --output-dir.")
    if format in ONE_RECORDING and len(inputs) > 1 and not each:
        why = f"{format} has the times of one recording; add --output-dir DIR for one file per recording."
        refuse("--format", why)
    targets: Sequence[Path | None] = outputs_of(inputs, target) if target and each else [target]
    if skip_existing:
        new = [not path.exists() for path in targets if path]
        inputs, targets = list(compress(inputs, new)), list(compress(targets, new))
    for path in filter(None, targets):
        refuse_to_replace(path, inputs, BEGINNINGS.get(format), option)
    return inputs, targets


def _filled(template: str, parts: dict[str, str]) -> str:
    return FIELDS.sub(lambda match: parts[match[1]], template)


def refuse_to_replace(target: Path, inputs: Iterable[Any], beginning: str | None, option: str = "--output") -> None:
    """Refuse a target that is an input, a recording, or a file that does not look like a former result.

    Args:
        beginning: a regular expression that a former result begins with; None: any text in a file called `.txt`.
    """
    from ..audio.files import SUFFIXES as RECORDINGS

    def wrong(why: str) -> None:
        refuse(option, f"{target} {why}; choose another name.")

    if target.suffix.lower() in RECORDINGS:
        wrong("is named like a recording")
    if not target.is_file():  # a new file, a device or a pipe
        return
    if any(isinstance(source, str | os.PathLike) and _same(source, target) for source in inputs):
        wrong("is an input")
    with target.open("rb") as file:
        start = file.read(4096)
    try:
        text = start.decode("utf-8", errors="strict" if len(start) < 4096 else "ignore")
    except UnicodeDecodeError:
        text = "\0"
    known = re.match(beginning, text) if beginning else target.suffix.lower() in (".txt", "")
    if start and ("\0" in text or not known):
        wrong("exists and is not a former result of this command")


def _same(one: str | os.PathLike[str], other: Path) -> bool:
    return os.path.exists(one) and os.path.samefile(one, other)


@contextmanager
def destination(output: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that gets its name only when complete; UTF-8, and file names byte for byte."""
    from ..audio.files import replacing

    if output is None:
        if sys.__stdout__ is None:
            raise LambError("standard output is closed", "give --output FILE")
        stdout = cast("Any", sys.stdout)
        stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
        yield stdout
    elif not output.resolve().parent.is_dir():
        refuse("--output", f"there is no folder {output.parent}.")
    else:
        with replacing(output) as part, part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file


def write(results: Iterable[Result], format: Format, out: TextIO, progress: Progress) -> None:
    """Write each result as soon as it is there."""
    from ..inference.captions import WRITERS, Writer
    from ..inference.label_studio import write_label_studio

    more: dict[str, Writer] = {Format.label_studio: write_label_studio, Format.table: partial(_write_table, out)}
    writers: dict[str, Writer] = {**WRITERS, **more}
    writer = writers[format]
    shared = out.isatty() and not progress.disable  # one terminal shows both: the bar makes way for captions
    for chunk in writer(results):
        if shared:
            progress.stop()
        out.write(chunk)
        out.flush()
        if shared:
            progress.start()


def _write_table(out: TextIO, results: Iterable[Result]) -> Iterator[str]:
    """A writer like those of `lamb.inference.captions`, of a table to read; it needs all results at once."""
    from ..inference.captions import one_line, span, whole

    rows: list[tuple[str, str, str, str]] = []
    for result in map(whole, results):
        length = "" if result.duration is None else f"{result.duration:.1f} s"
        lines: list[tuple[str, str, float | None]]
        if result.error is not None:
            lines = [("", "(failed)", None)]
        elif result.segments:
            lines = [(span(s.start, s.end), s.caption, s.confidence) for s in result.segments]
        else:
            lines = [(length, text, None) for text, _ in result.n_best()]
            lines[0] = (length, result.text, result.confidence)
        names = chain([one_line(result.file)], repeat(""))
        for name, (time, text, confidence) in zip(names, lines, strict=False):
            rows.append((name, time, one_line(text), "" if confidence is None else f"{confidence:.2f}"))
    yield table(out, ("file", "length", "caption", "confidence"), rows)
