"""What the recipes in this repository are trained on, read as it lies in a folder.

`sounds` reads the project's folder of labelled recordings (ESC-50, UrbanSound8K and RAVDESS clips); `caption_texts` the
caption tables of AudioCaps and Clotho, `caption_table` one of them as clips without audio. What was published as
evaluation material stays out of training. Collections that `lamb data` fetches are in `lamb/data/collections`.
"""

from collections.abc import Collection
from pathlib import Path

from ..config import ConfigError
from .leakage import leaked
from .manifest import Clip, ManifestError, parse, read, select, table
from .phrases import PHRASES

CLOTHO_PARTS = {
    "train": "development",
    "valid": "validation",
    "test": "evaluation",
    "development": "development",
    "validation": "validation",
    "evaluation": "evaluation",
}  # in names of files and folders -> as published
DEVELOPMENT_FOLDS = {"4", "us8k-fold3", *(f"ravdess-actor{n}" for n in range(17, 21))}


def clips(data: str | Path, split: str | None = None) -> list[Clip]:
    """A manifest (JSONL, CSV), a folder with manifest.jsonl (as `lamb data` makes) or of labelled recordings, or a
    caption table of AudioCaps or Clotho without audio. ManifestError for anything else."""
    path = Path(data)
    if path.is_dir():
        manifest = path / "manifest.jsonl"
        return read(manifest, split) if manifest.is_file() else select(sounds(path), split, path)
    if path.suffix.lower() == ".csv" and path.is_file():
        _, first = next(table(path, ()), (0, {}))
        if "path" not in first and ("caption" in first or "caption_1" in first):
            return select(caption_table(path), split, path)
    return read(path, split)


def sounds(folder: str | Path) -> list[Clip]:
    """The labelled recordings of `folder`/manifest.csv, in splits "train" and "development" as its README says."""
    path = Path(folder) / "manifest.csv"
    clips = []
    for number, row in table(path, ("file", "label", "fold", "source", "captions")):
        values = {
            "id": Path(row["file"]).stem,
            "path": row["file"],
            "captions": row["captions"],
            "labels": row["label"],
            "split": "development" if row["fold"] in DEVELOPMENT_FOLDS else "train",
            # RAVDESS gives one address for all its clips; what some of them share is the speaker
            "source": row["fold"] if row["fold"].startswith("ravdess-") else row["source"],
        }
        try:
            clips.append(parse(values, path.parent))
        except ValueError as error:
            raise ManifestError(f"{path}, line {number}: {error}") from None
    return clips


def split_sounds(folder: str | Path) -> tuple[list[Clip], list[Clip]]:
    """Training and development recordings of `folder`, without training recordings that are in development as well.

    Raises ManifestError for a missing split, ConfigError for a label for which no caption can be composed.
    """
    clips = sounds(folder)
    training, development = (select(clips, split, Path(folder)) for split in ("train", "development"))
    unknown = {label for clip in clips for label in clip.labels} - PHRASES.keys()
    if unknown:
        raise ConfigError(
            f"{folder}: labels without phrases for a caption: {', '.join(sorted(unknown))}; "
            "write them into lamb/data/phrases.py, and their words into lamb/data/labels.py"
        )
    # ESC-50 and UrbanSound8K share a few recordings
    same = {clip.id for clip in leaked(training, [clip.source for clip in development])}
    return [clip for clip in training if clip.id not in same], development


def caption_texts(folder: str | Path, without: Collection[str] = ()) -> list[str]:
    """Training captions of AudioCaps and Clotho in `folder`, less the texts in `without` (evaluation captions)."""
    held = {text.strip() for text in without}
    files = [Path(folder) / f"{name}_train.csv" for name in ("audiocaps", "clotho")]
    texts = [row["caption"].strip() for file in files for _, row in table(file, ("caption",))]
    return [text for text in texts if text and text not in held]


def caption_table(path: str | Path) -> list[Clip]:
    """The clips of a caption table as AudioCaps (a row a caption) or Clotho (a row a clip) publishes it, without audio;
    their ids are those that `lamb data` gives them. ManifestError for any other table."""
    path = Path(path)
    clips: dict[str, list[str]] = {}
    for number, row in table(path, ()):
        if {"youtube_id", "start_time", "caption"} <= row.keys():
            id, said = f"audiocaps/{row['youtube_id']}_{row['start_time'].partition('.')[0]}", [row["caption"]]
        elif {"caption_1", "caption_2"} <= row.keys() and (file := row.get("file_path") or row.get("file_name")):
            part = next((part for part in CLOTHO_PARTS if part in (*Path(file).parts[:-1], *path.stem.split("_"))), "")
            id = f"clotho/{CLOTHO_PARTS.get(part, part)}/{Path(file).stem}.wav"
            said = [text for column, text in row.items() if column.startswith("caption_")]
        else:
            raise ManifestError(f"{path}, line {number}: not a caption table of AudioCaps or Clotho")
        clips.setdefault(id, []).extend(text.strip() for text in said if text and text.strip())
    return [Clip(id, "", captions=tuple(captions)) for id, captions in clips.items()]
