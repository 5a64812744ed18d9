"""UrbanSound8K (Salamon et al., ACM MM 2014; Zenodo 1203745; CC BY-NC): 8,732 sounds of up to 4 s in ten classes.

A table metadata/UrbanSound8K.csv (slice_file_name, fsID, start, end, salience, fold, classID, class), wav files in
audio/fold1 ... fold10. Fold 3 is for validation, as with the project's own recordings, and 10 for test; slices of one
sound of Freesound (fsID) share a fold. MD5 sum as Zenodo publishes it.
"""

from pathlib import Path

from ..manifest import Clip, table
from .published import Published, Recordings, fetch_archive

URL = "https://zenodo.org/records/1203745/files/UrbanSound8K.tar.gz?download=1"
MD5 = "9aa69802bbf37fb986f71ec1483a196e"
SPLITS = {"3": "val", "10": "test"}


def urbansound8k(folder: Path, audio: Path | None) -> Published:
    root = audio or folder
    if audio is None and not (folder / "metadata/UrbanSound8K.csv").is_file():
        fetch_archive(URL, folder / "UrbanSound8K.tar.gz", folder, _place, MD5)
    recordings = Recordings(root)
    columns = ("slice_file_name", "fsID", "fold", "class")
    clips = [
        Clip(
            id=f"urbansound8k/{row['slice_file_name']}",
            path=recordings.find(f"fold{row['fold']}/{Path(row['slice_file_name']).stem}"),
            labels=(row["class"],),
            split=SPLITS.get(row["fold"], "train"),
            source=f"freesound:{row['fsID']}",
        )
        for _, row in table(root / "metadata/UrbanSound8K.csv", columns)
    ]
    return Published(clips)


def _place(name: str) -> str | None:
    """UrbanSound8K/audio/fold1/NAME.wav -> audio/fold1/NAME.wav, and the table; nothing else."""
    inner = name.removeprefix("./").partition("/")[2]
    return inner if inner == "metadata/UrbanSound8K.csv" or inner.endswith(".wav") else None
