"""AudioCaps v1 (Kim et al., NAACL 2019): captions of 10 s of YouTube videos, for academic use.

The publishers' tables train.csv, val.csv and test.csv have the columns audiocap_id, youtube_id, start_time and
caption; one caption for each training clip, five for each of the others. The audio may not be redistributed, so it is
taken from a folder of clips that are cut already, under the names that common downloaders give them. No check sums of
the tables are published.
"""

from pathlib import Path

from ..download import fetch
from ..manifest import Clip, ManifestError, table
from .published import Published, Recordings

URL = "https://raw.githubusercontent.com/cdjkim/audiocaps/master/dataset/{}.csv"
SECONDS = 10


def audiocaps(folder: Path, audio: Path | None) -> Published:
    recordings = Recordings(audio or folder)
    clips = []
    for split in ("train", "val", "test"):
        file = fetch(URL.format(split), folder / f"{split}.csv")
        rows: dict[tuple[str, int], list[dict[str, str]]] = {}
        for number, row in table(file, ("audiocap_id", "youtube_id", "start_time", "caption")):
            try:
                start = round(float(row["start_time"]))
            except ValueError:
                raise ManifestError(f"{file}, line {number}: start_time is {row['start_time']!r}") from None
            rows.setdefault((row["youtube_id"], start), []).append(row)
        for (video, start), found in rows.items():
            names = [name for stem in (video, f"Y{video}") for name in _names(stem, start)]
            clips.append(
                Clip(
                    id=f"audiocaps/{video}_{start}",
                    path=recordings.find(*names, *(row["audiocap_id"] for row in found)),
                    captions=tuple(text for row in found if (text := row["caption"].strip())),
                    split=split,
                    source=f"youtube:{video}",
                )
            )
    if not any(clip.path for clip in clips):
        raise ManifestError(
            f"{audio or folder}: holds no clip of AudioCaps; its audio may not be redistributed, so download clips of "
            f"{SECONDS} s from YouTube (the tables in {folder} name them) as ID.wav or ID_START.wav, and give their "
            "folder with --audio"
        )
    return Published(clips)


def _names(stem: str, start: int) -> tuple[str, ...]:
    end = start + SECONDS
    return stem, f"{stem}_{start}", f"{stem}_{start}_{end}", f"{stem}_{start * 1000}_{end * 1000}", f"{stem}_{start}.0"
