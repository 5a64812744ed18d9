"""Published collections as manifests: one function a collection.

`sounds` reads the project's folder of labelled recordings (ESC-50, UrbanSound8K and RAVDESS clips); `caption_texts` the
caption tables of AudioCaps and Clotho. What was published as evaluation material stays out of training.
"""

import csv
import json
from pathlib import Path

from .manifest import Clip, ManifestError

DEVELOPMENT_FOLDS = {"4", "us8k-fold3", *(f"ravdess-actor{n}" for n in range(17, 21))}


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from None


def sounds(folder: str | Path) -> list[Clip]:
    """The labelled recordings of `folder`/manifest.csv, in splits "train" and "development" as its README says."""
    folder = Path(folder)
    return [
        Clip(
            id=Path(row["file"]).stem,
            path=str(folder / row["file"]),
            captions=tuple(json.loads(row["captions"])) if row["captions"] else (),
            labels=(row["label"],),
            split="development" if row["fold"] in DEVELOPMENT_FOLDS else "train",
            source=row["source"],
        )
        for row in _rows(folder / "manifest.csv")
    ]


def caption_texts(folder: str | Path, without: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """Training captions of AudioCaps and Clotho in `folder`, less the texts in `without` (evaluation captions)."""
    folder = Path(folder)
    texts = [row["caption"].strip() for name in ("audiocaps", "clotho") for row in _rows(folder / f"{name}_train.csv")]
    return [text for text in texts if text and text not in without]
