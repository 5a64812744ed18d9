"""The training data of the recipes in this repository, read from the folders in which it is.

`sounds` reads the project's folders of labelled recordings (ESC-50, UrbanSound8K and RAVDESS clips in one, those of
several open collections in the other). `caption_texts` reads the caption tables of AudioCaps and Clotho, and
`caption_table` reads one of them as clips without audio. What was published for evaluation stays out of training.
Collections that `lamb data` downloads are in `lamb/data/collections`.
"""

from collections.abc import Collection
from pathlib import Path

from ..config import ConfigError
from .leakage import leaked
from .manifest import Clip, ManifestError, parse, read, records, select, table, with_columns
from .vocabulary import PHRASES, SAME, VOCABULARY

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
    """The clips of `data`, or of one split of it. Raises ManifestError.

    `data` is a manifest (JSONL, CSV), a folder with manifest.jsonl (as `lamb data` makes it), a folder of labelled
    recordings, or a caption table of AudioCaps or Clotho, whose clips have no audio.
    """
    path = Path(data)
    if path.is_dir():
        manifest = path / "manifest.jsonl"
        return read(manifest, split) if manifest.is_file() else select(sounds(path), split, path)
    if path.suffix.lower() == ".csv" and path.is_file():
        _, first = next(table(path, ()), (0, {}))
        if {"youtube_id", "caption_1"} & first.keys():
            return select(caption_table(path), split, path)
    return read(path, split)


def sounds(folder: str | Path) -> list[Clip]:
    """The labelled recordings of `folder`/manifest.csv in the splits "train" and "development" of its README.

    Recordings of kinds that no model is trained on, for which the vocabulary has no phrases, have the split "unheard".
    """
    path = Path(folder) / "manifest.csv"

    def clip(row: dict[str, str]) -> Clip:
        with_columns(row, ("file", "label", "source"))
        values = {
            "id": Path(row["file"]).stem,
            "path": row["file"],
            "captions": row.get("captions"),
            "labels": SAME.get(row["label"], row["label"]),
            "description": row.get("text"),
            "split": _split(row),
            # RAVDESS gives one address for all its clips; what some of them share is the speaker
            "source": row["fold"] if row.get("fold", "").startswith("ravdess-") else row["source"],
        }
        return parse(values, path.parent)

    return [made for _, made in records(path, clip)]


def split_sounds(*folders: str | Path) -> tuple[list[Clip], list[Clip]]:
    """Training and development recordings of `folders`; no training recording is also a development recording.

    Raises ManifestError for a missing split, ConfigError for a label without phrases.
    """
    clips = [clip for folder in folders for clip in sounds(folder)]
    training, development = (select(clips, split, Path(folders[0])) for split in ("train", "development"))
    unknown = {label for clip in clips for label in clip.labels} - VOCABULARY.keys()
    if unknown:
        raise ConfigError(
            f"{', '.join(map(str, folders))}: labels without phrases for a caption: {', '.join(sorted(unknown))}; "
            "write them into lamb/data/vocabulary.txt"
        )
    # ESC-50 and UrbanSound8K share a few recordings
    same = {clip.id for clip in leaked(training, [clip.source for clip in development])}
    return [clip for clip in training if clip.id not in same], development


def folders(sounds: str | Collection[str] | None) -> tuple[str, ...]:
    """The folders of labelled recordings that a recipe names: none, one or several."""
    return () if sounds is None else (sounds,) if isinstance(sounds, str) else tuple(sounds)


def _split(row: dict[str, str]) -> str:
    """ "train" or "development", from the fold or the split of a row; "unheard" for a kind that no model learns."""
    label = SAME.get(row["label"], row["label"])
    if label in VOCABULARY and label not in PHRASES:
        return "unheard"
    held = row["fold"] in DEVELOPMENT_FOLDS if "fold" in row else row.get("split") == "dev"
    return "development" if held else "train"


def caption_texts(folder: str | Path, without: Collection[str] = ()) -> list[str]:
    """Training captions of AudioCaps and Clotho in `folder`, except the texts in `without` (evaluation captions)."""
    held = {text.strip() for text in without}
    files = [Path(folder) / f"{name}_train.csv" for name in ("audiocaps", "clotho")]
    texts = [row["caption"].strip() for file in files for _, row in table(file, ("caption",))]
    return [text for text in texts if text and text not in held]


def caption_table(path: str | Path) -> list[Clip]:
    """The clips, without audio, of a caption table of AudioCaps (one row per caption) or Clotho (one row per clip).

    Their ids are those that `lamb data` gives them. Raises ManifestError for any other table.
    """
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
