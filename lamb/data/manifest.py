"""The list of clips that everything is trained and evaluated on: one `Clip` a line of JSONL or CSV."""

import csv
import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ManifestError(ValueError):
    """A manifest that cannot be used: the file, the line, what is wrong."""


@dataclass(frozen=True)
class Clip:
    """A stretch of a recording with what people say of it."""

    id: str
    path: str  # of the recording; relative to the manifest's folder, made absolute when read
    start: float = 0.0  # seconds
    duration: float | None = None  # seconds; None: to the end
    captions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()  # what is heard, as classes; empty where there are none
    split: str = ""  # train, development, test ...
    source: str = ""  # the original recording; clips of one source never lie in two splits


_FIELDS = {f.name for f in dataclasses.fields(Clip)}
_LISTS = ("captions", "labels")


def read(path: str | Path, split: str | None = None) -> list[Clip]:
    """The clips of a JSONL or CSV manifest (lists in CSV are JSON), of one split where asked; else ManifestError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such manifest") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read as a manifest: {error}") from None
    if path.suffix == ".csv":
        rows: Iterable[tuple[int, Any]] = enumerate(csv.DictReader(text.splitlines()), 2)
    else:
        rows = ((n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip())
    clips = []
    for number, row in rows:
        try:
            clips.append(_clip(json.loads(row) if isinstance(row, str) else row, path.parent))
        except (ValueError, TypeError, KeyError) as error:
            raise ManifestError(f"{path}, line {number}: {error}") from None
    if not clips:
        raise ManifestError(f"{path}: no clips")
    if len({clip.id for clip in clips}) < len(clips):
        raise ManifestError(f"{path}: two clips have the same id")
    chosen = [clip for clip in clips if split is None or clip.split == split]
    if not chosen:
        raise ManifestError(f"{path}: no clips of split {split!r}; there are {sorted({c.split for c in clips})}")
    return chosen


def _clip(row: Any, folder: Path) -> Clip:
    if not isinstance(row, dict):
        raise ValueError("expected an object with the keys id and path")
    unknown = set(row) - _FIELDS
    if unknown:
        raise ValueError(f"unknown keys {sorted(map(str, unknown))}; known: {sorted(_FIELDS)}")
    values = {k: v for k, v in row.items() if v not in ("", None)}
    for key in ("id", "path"):
        if not isinstance(values.get(key), str):
            raise ValueError(f"{key} is missing or not a text")
    for key in _LISTS:
        value = values.get(key, ())
        if isinstance(value, str):
            value = json.loads(value) if value.startswith("[") else [value]
        if not all(isinstance(item, str) for item in value):
            raise ValueError(f"{key} is not a list of texts")
        values[key] = tuple(value)
    for key in ("start", "duration"):
        if key in values:
            values[key] = float(values[key])
    values["path"] = str(folder / values["path"])  # an absolute path stays as it is
    return Clip(**values)


def write(clips: Iterable[Clip], path: str | Path) -> None:
    """A JSONL manifest; whole or not at all."""
    path = Path(path)
    partial = path.with_name(path.name + ".part")
    with partial.open("w", encoding="utf-8") as file:
        for clip in clips:
            file.write(json.dumps(dataclasses.asdict(clip), ensure_ascii=False) + "\n")
    partial.replace(path)
