"""Any folder of sounds with a caption table: CSV, TSV or JSONL, one row for each file or one for each caption.

A column names the file, relative to the table's folder (file, file_name, path ...); one or several hold captions
(caption, caption_1, caption_2, text, sentence ... or captions, a list, in CSV written as JSON). Other columns may give
the fields of `Clip`: id, start, duration, label or labels, split (by default train), source. The rest is ignored.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..manifest import Clip, ManifestError, parse, records, texts
from .published import Published

FILE_COLUMNS = ("file", "file_name", "filename", "path", "file_path", "filepath", "audio", "fname")
CAPTION_COLUMN = re.compile(r"(captions?|text|sentence|description)([ _-]?\d+)?")
LABEL_COLUMNS = ("labels", "label")
OTHER_COLUMNS = ("id", "start", "duration", "split", "source")
TABLES = (".csv", ".tsv", ".jsonl")


def folder(to: Path, audio: Path | None) -> Published:
    table = _table(audio or to, to / "manifest.jsonl")
    clips: dict[tuple[str, float, float | None], Clip] = {}
    for _, clip in records(table, lambda row: _clip(row, table.parent)):
        key = (clip.path, clip.start, clip.duration)
        if key in clips:  # one row for each caption
            clip = replace(clips[key], captions=clips[key].captions + clip.captions)
        clips[key] = clip
    return Published([clip if Path(clip.path).is_file() else replace(clip, path="") for clip in clips.values()])


def _table(place: Path, ours: Path) -> Path:
    """`place` itself, or the only table in it apart from `ours` of an earlier run."""
    if place.is_file():
        return place
    found = sorted(path for path in place.glob("*") if path.suffix.lower() in TABLES and path != ours)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ManifestError(
            f"{place}: needs exactly one caption table ({', '.join(TABLES)}), found {names}; give its folder, "
            "or the table itself, with --audio"
        )
    return found[0]


def _clip(row: Any, base: Path) -> Clip:
    if not isinstance(row, dict):
        raise ValueError("expected an object with a file and captions")
    values = {str(key).strip().lower(): value for key, value in row.items() if value not in ("", None)}
    file = next((values[column] for column in FILE_COLUMNS if column in values), None)
    if not isinstance(file, str):
        raise ValueError(f"no file is named; its column is one of {', '.join(FILE_COLUMNS)}")
    captions = [
        text.strip()
        for column, value in values.items()
        if CAPTION_COLUMN.fullmatch(column)
        for text in texts(column, value)
        if text.strip()
    ]
    labels = next((values[column] for column in LABEL_COLUMNS if column in values), ())
    known = {column: values[column] for column in OTHER_COLUMNS if column in values}
    id = f"{file}@{known['start']}" if "start" in known else file  # a file may have several clips
    return parse({"id": id, "split": "train", **known, "path": file, "captions": captions, "labels": labels}, base)
