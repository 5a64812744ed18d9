"""What the recipes in this repository are trained on, read as it lies in a folder.

`sounds` reads the project's folder of labelled recordings (ESC-50, UrbanSound8K and RAVDESS clips); `caption_texts` the
caption tables of AudioCaps and Clotho. What was published as evaluation material stays out of training. Published
collections that `lamb data` fetches are in `lamb/data/collections`.
"""

from collections.abc import Collection
from pathlib import Path

from .manifest import Clip, ManifestError, parse, table

DEVELOPMENT_FOLDS = {"4", "us8k-fold3", *(f"ravdess-actor{n}" for n in range(17, 21))}


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


def caption_texts(folder: str | Path, without: Collection[str] = ()) -> list[str]:
    """Training captions of AudioCaps and Clotho in `folder`, less the texts in `without` (evaluation captions)."""
    held = {text.strip() for text in without}
    files = [Path(folder) / f"{name}_train.csv" for name in ("audiocaps", "clotho")]
    texts = [row["caption"].strip() for file in files for _, row in table(file, ("caption",))]
    return [text for text in texts if text and text not in held]
