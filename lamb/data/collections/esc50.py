"""ESC-50 (Piczak, ACM MM 2015): 2,000 sounds of 5 s from Freesound in 50 classes and five folds.

A table meta/esc50.csv (filename, fold, target, category, esc10, src_file, take), wav files in audio/. Fold 4 is for
validation and 5 for test, as with the project's own recordings; clips of one sound share a fold. GitHub makes the
archive on request, so no check sum is published; those inside the zip are checked.
"""

from pathlib import Path

from ..manifest import Clip, table
from .published import Published, Recordings, fetch_archive

URL = "https://github.com/karolpiczak/ESC-50/archive/master.zip"
SPLITS = {"4": "val", "5": "test"}


def esc50(folder: Path, audio: Path | None) -> Published:
    root = audio or folder
    if audio is None and not (folder / "meta/esc50.csv").is_file():
        fetch_archive(URL, folder / "ESC-50-master.zip", folder, _place)
    recordings = Recordings(root)
    columns = ("filename", "fold", "category", "src_file")
    clips = [
        Clip(
            id=f"esc50/{row['filename']}",
            path=recordings.find(f"audio/{Path(row['filename']).stem}", Path(row["filename"]).stem),
            labels=(row["category"],),
            split=SPLITS.get(row["fold"], "train"),
            source=f"freesound:{row['src_file']}",
        )
        for _, row in table(root / "meta/esc50.csv", columns)
    ]
    return Published(clips)


def _place(name: str) -> str | None:
    """ESC-50-master/audio/NAME.wav -> audio/NAME.wav, and the table; nothing else."""
    inner = name.partition("/")[2]
    return inner if inner == "meta/esc50.csv" or (inner.startswith("audio/") and inner.endswith(".wav")) else None
