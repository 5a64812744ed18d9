"""Published collections as manifests: one function a collection.

`sounds` reads the project's folder of labelled recordings (ESC-50, UrbanSound8K and RAVDESS clips); `caption_texts` the
caption tables of AudioCaps and Clotho. What was published as evaluation material stays out of training.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from .manifest import Clip, ManifestError, parse, rows

DEVELOPMENT_FOLDS = {"4", "us8k-fold3", *(f"ravdess-actor{n}" for n in range(17, 21))}


def _table(path: Path, columns: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The line number and cells of every row of a CSV file that has these columns; ManifestError for any other."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read: {error}") from None
    for number, row in rows(text, path):
        absent = [column for column in columns if row.get(column) is None]
        if absent:
            raise ManifestError(f"{path}, line {number}: no {', '.join(absent)}")
        yield number, row


def sounds(folder: str | Path) -> list[Clip]:
    """The labelled recordings of `folder`/manifest.csv, in splits "train" and "development" as its README says."""
    path = Path(folder) / "manifest.csv"
    clips = []
    for number, row in _table(path, ("file", "label", "fold", "source", "captions")):
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


def caption_texts(folder: str | Path, without: Collection[str] = ()) -> list[str]:
    """Training captions of AudioCaps and Clotho in `folder`, less the texts in `without` (evaluation captions)."""
    held = {text.strip() for text in without}
    files = [Path(folder) / f"{name}_train.csv" for name in ("audiocaps", "clotho")]
    texts = [row["caption"].strip() for file in files for _, row in _table(file, ("caption",))]
    return [text for text in texts if text and text not in held]
