"""Manifests, the lists of clips for training and evaluation: one `Clip` for each line of JSONL or row of CSV."""

import codecs
import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from ..audio.files import replacing
from ..errors import LambError

T = TypeVar("T")


class ManifestError(LambError, ValueError):
    """A manifest or table that cannot be used: the file, the line and the problem."""


@dataclass(frozen=True)
class Clip:
    """A recording, or a stretch of one, with its captions and labels."""

    id: str
    path: str  # of the recording; relative to the manifest's folder, made absolute when read
    start: float = 0.0  # seconds
    duration: float | None = None  # seconds; None: to the end
    captions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()  # classes of the sounds; empty if unknown
    split: str = ""  # train, development, test ...
    source: str = ""  # the original recording, such as youtube:ID; a source is in one split only
    description: str = ""  # of a labelled recording in its collection: "a dog howling"


_FIELDS = {f.name for f in dataclasses.fields(Clip)}
_LISTS = ("captions", "labels")
_NUMBERS = ("start", "duration")
ALIASES = {"file": "path", "file_name": "path", "filename": "path", "caption": "captions", "label": "labels"}


def read(path: str | Path, split: str | None = None) -> list[Clip]:
    """The clips of a JSONL or CSV manifest (lists in CSV are JSON), or of one split of it. Raises ManifestError."""
    path = Path(path).absolute()
    clips: list[Clip] = []
    lines: dict[str, int] = {}
    for number, clip in records(path, lambda row: parse(row, path.parent)):
        if clip.id in lines:
            problem = f"the id {clip.id!r} is also in line {lines[clip.id]}; each clip needs its own id"
            raise ManifestError(f"{path}, line {number}: {problem}")
        lines[clip.id] = number
        clips.append(clip)
    return select(clips, split, path)


def text_of(path: Path, encoding: str | None = None) -> str:
    """The text of a table or manifest in UTF-8 or UTF-16, or in `encoding`. Raises ManifestError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"{path}: does not exist", "check the path") from None
    except OSError as error:
        raise ManifestError(
            f"{path}: cannot be read ({error.strerror})", "check the path and its permissions"
        ) from None
    try:
        return content.decode(encoding or encoding_of(content))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        remedy = f"save it as UTF-8, for instance with: iconv -f cp1252 -t utf-8 {path.name} > utf8{path.suffix}"
        raise ManifestError(f"{path}, line {line}: neither UTF-8 nor UTF-16", remedy) from None


def encoding_of(head: bytes) -> str:
    """The encoding of a text that begins so: UTF-16 by its mark, else UTF-8."""
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def rows(lines: Iterable[str], name: str | Path) -> Iterator[tuple[int, Any]]:
    """The line number and content of each row that is not blank, of the lines of the file `name`.

    A row of CSV and TSV is a dict of texts, one of JSONL whatever its JSON says. A CSV file may separate its columns by
    commas, semicolons or tabs; the first line decides. Raises ManifestError.
    """
    lines, suffix = iter(lines), os.path.splitext(name)[1].lower()
    if suffix not in (".csv", ".tsv"):
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ManifestError(f"{name}, line {number}: {error}") from None
                yield number, row
        return
    head = next(lines, "")
    delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=head.count)
    reader = csv.DictReader(chain([head], lines), delimiter=delimiter)
    try:
        for row in reader:
            if None in row:
                raise ManifestError(f"{name}, line {reader.line_num}: more cells than the header names")
            yield reader.line_num, row
    except csv.Error as error:
        raise ManifestError(f"{name}, line {reader.reader.line_num}: {error}") from None


def records(path: Path, make: Callable[[Any], T], encoding: str | None = None) -> Iterator[tuple[int, T]]:
    """The line number of each row and the result of `make` for it; a ValueError of `make` becomes a ManifestError."""
    # a StringIO breaks lines as csv wants it: a caption may hold other characters that Unicode calls line breaks
    for number, row in rows(io.StringIO(text_of(path, encoding), newline=""), path):
        try:
            made = make(row)
        except ValueError as error:
            raise ManifestError(f"{path}, line {number}: {error}") from None
        yield number, made


def table(path: Path, columns: Collection[str], encoding: str | None = None) -> Iterator[tuple[int, dict[str, str]]]:
    """The line number and the cells of each row of a CSV file. Raises ManifestError if one of `columns` is missing."""
    return records(path, lambda row: with_columns(row, columns), encoding)


def with_columns(row: dict[str, str], columns: Collection[str]) -> dict[str, str]:
    """`row`; ValueError if it lacks one of `columns`."""
    if absent := [column for column in columns if row.get(column) is None]:
        raise ValueError(f"no {', '.join(absent)}")
    return row


def select(clips: list[Clip], split: str | None, path: Path) -> list[Clip]:
    """The clips of `split` (or of several, separated by commas), or all. Raises ManifestError if there are none."""
    if not clips:
        raise ManifestError(f"{path}: no clips")
    chosen = [clip for clip in clips if split is None or clip.split in split.split(",")]
    if not chosen:
        raise ManifestError(f"{path}: no clips of split {split!r}; there are {sorted({c.split for c in clips})}")
    return chosen


def parse(row: Any, folder: Path) -> Clip:
    """A row as a clip; its path is relative to `folder`. Raises ValueError for anything that is not a field of a clip.

    Other common names of the fields are accepted (`ALIASES`), in any case. Without an id, the path is the id.
    """
    if not isinstance(row, dict):
        raise ValueError("expected an object with the keys id and path")
    row = renamed(row)
    if isinstance(row.get("id"), int) and not isinstance(row["id"], bool):
        row["id"] = str(row["id"])
    row.setdefault("id", row.get("path"))
    unknown = set(row) - _FIELDS
    if unknown:
        raise ValueError(f"unknown keys {sorted(map(str, unknown))}; known: {sorted(_FIELDS)}")
    values = {k: v for k, v in row.items() if v not in ("", None)}
    for key in ("path", "id"):
        if key not in values:
            raise ValueError(f"{key} is missing")
    for key in values.keys() - {*_LISTS, *_NUMBERS}:
        if not isinstance(values[key], str):
            raise ValueError(f"{key} is not a text")
    for key in _LISTS:
        values[key] = tuple(text for text in texts(key, values.get(key, ())) if text.strip())
    for key in _NUMBERS:
        if key in values:
            values[key] = _seconds(key, values[key])
    values["path"] = str(folder / values["path"])  # an absolute path stays as it is
    return Clip(**values)


def texts(key: str, value: Any) -> Sequence[str]:
    """The texts in the field `key`: a list, also written as JSON, or a single text; ValueError for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.startswith("[") else [value]
        except json.JSONDecodeError as error:
            raise ValueError(f"{key}: {error}") from None
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{key} is not a list of texts")
    return value


def renamed(row: dict[Any, Any]) -> dict[Any, Any]:
    """The same row with the names of the fields as `Clip` has them."""
    names = {key: str(key).strip().lower() for key in row}
    return {ALIASES.get(name, name) if name in {*_FIELDS, *ALIASES} else key: row[key] for key, name in names.items()}


def _seconds(key: str, value: Any) -> float:
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0) or (key == "duration" and seconds == 0):
        raise ValueError(f"{key} is {value!r}, not a number of seconds")
    return seconds


def write(clips: Iterable[Clip], path: str | Path) -> None:
    """Write a JSONL manifest, whole or not at all."""
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        for clip in clips:
            file.write(json.dumps(dataclasses.asdict(clip), ensure_ascii=False) + "\n")
