"""MACS (Martin-Morato, Mesaros, DCASE 2021; Zenodo 5114771): two to five captions each of 3,930 city scenes of 10 s.

MACS.yaml has {files: [{filename, annotations: [{annotator_id, sentence, tags}]}]}. The audio is of TAU Urban Acoustic
Scenes 2019 (Zenodo 2589280, non-commercial), of which eight archives hold what MACS captions: airports, public squares
and parks. There are no splits, so all is for training; a source is a place, SCENE-CITY-LOCATION. MD5 sums as Zenodo
publishes them.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from ..download import fetch
from ..manifest import Clip, ManifestError
from .published import Published, Recordings, fetch_archive

URL = "https://zenodo.org/records/5114771/files/MACS.yaml?download=1"
MD5 = "23fcb2ebd0b109094034ef9e87972256"
AUDIO_URL = "https://zenodo.org/records/2589280/files/{}?download=1"
AUDIO = "TAU-urban-acoustic-scenes-2019-development.audio.{}.zip"
AUDIO_MD5 = {
    1: "aca4ebfd9ed03d5f747d6ba8c24bc728",
    2: "c4f170408ce77c8c70c532bf268d7be0",
    3: "c7214a07211f10f3250290d05e72c37e",
    9: "3c32a693a6b111ffb957be3c1dd22e9b",
    10: "0ffbf60006da520cc761fb74c878b98b",
    11: "599055d93b4c11057c29be2df54538d4",
    12: "98b8d162ff3665695c4c910e6c372cc8",
    13: "a356c08b1a5a21d433eba37ef87587f4",
}


def macs(folder: Path, audio: Path | None) -> Published:
    entries = _entries(fetch(URL, folder / "MACS.yaml", MD5))
    recordings = Recordings(audio or folder)
    if audio is None and not all(recordings.find(Path(name).stem) for name in entries):

        def place(member: str) -> str | None:
            name = PurePosixPath(member).name
            return f"audio/{name}" if name in entries else None

        for number, md5 in AUDIO_MD5.items():
            name = AUDIO.format(number)
            fetch_archive(AUDIO_URL.format(name), folder / name, folder, place, md5)
        recordings = Recordings(folder)
    clips = [
        Clip(
            id=f"macs/{name}",
            path=recordings.find(f"audio/{Path(name).stem}", Path(name).stem),
            captions=tuple(captions),
            split="train",
            source=f"tau2019:{'-'.join(name.split('-')[:3])}",
        )
        for name, captions in entries.items()
    ]
    return Published(clips)


def _entries(path: Path) -> dict[str, list[str]]:
    """The captions of every file."""
    import yaml

    try:
        data: Any = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return {
            entry["filename"]: [text for note in entry["annotations"] if (text := str(note["sentence"]).strip())]
            for entry in data["files"]
        }
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ManifestError(f"{path}: not the captions of MACS ({error!r}); delete it and run again") from None
