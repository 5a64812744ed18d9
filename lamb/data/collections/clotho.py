"""Clotho v2.1 (Drossos et al., ICASSP 2020; Zenodo 4783391): five captions each of sounds of 15-30 s from Freesound.

Each part has an archive of wav files, a table of captions (file_name, caption_1 ... caption_5) and one of metadata
(file_name, keywords, sound_id, sound_link, start_end_samples, manufacturer, license), which is not always UTF-8 and
says "Not found" where a sound is no longer on Freesound. MD5 sums as Zenodo publishes them.
"""

from pathlib import Path

from ..download import fetch
from ..manifest import Clip, table
from .published import Published, Recordings, fetch_archive

URL = "https://zenodo.org/records/4783391/files/{}?download=1"
PARTS = {"train": "development", "val": "validation", "test": "evaluation"}
MD5 = {
    "clotho_audio_development.7z": "c8b05bc7acdb13895bb3c6a29608667e",
    "clotho_audio_validation.7z": "7dba730be08bada48bd15dc4e668df59",
    "clotho_audio_evaluation.7z": "4569624ccadf96223f19cb59fe4f849f",
    "clotho_captions_development.csv": "d4090b39ce9f2491908eebf4d5b09bae",
    "clotho_captions_validation.csv": "5879e023032b22a2c930aaa0528bead4",
    "clotho_captions_evaluation.csv": "1b16b9e57cf7bdb7f13a13802aeb57e2",
    "clotho_metadata_development.csv": "170d20935ecfdf161ce1bb154118cda5",
    "clotho_metadata_validation.csv": "2e010427c56b1ce6008b0f03f41048ce",
    "clotho_metadata_evaluation.csv": "13946f054d4e1bf48079813aac61bf77",
}
CAPTIONS = [f"caption_{n}" for n in range(1, 6)]


def clotho(folder: Path, audio: Path | None) -> Published:
    captions, numbers = {}, {}
    for part in PARTS.values():
        files = [f"clotho_captions_{part}.csv", f"clotho_metadata_{part}.csv"]
        said, about = (fetch(URL.format(name), folder / name, MD5[name]) for name in files)
        captions[part] = {row["file_name"]: row for _, row in table(said, ["file_name", *CAPTIONS], _encoding(said))}
        for _, row in table(about, ["file_name", "sound_id"], _encoding(about)):
            numbers[part, row["file_name"]] = row["sound_id"].strip()
    recordings = Recordings(audio or folder)
    if audio is None:
        for part in PARTS.values():
            if not all(recordings.find(f"{part}/{Path(name).stem}") for name in captions[part]):
                name = f"clotho_audio_{part}.7z"
                fetch_archive(URL.format(name), folder / name, folder, _sound, MD5[name])
        recordings = Recordings(folder)
    clips = []
    for split, part in PARTS.items():
        for name, row in captions[part].items():
            number = numbers.get((part, name), "")
            stem = Path(name).stem
            clips.append(
                Clip(
                    id=f"clotho/{part}/{name}",
                    path=recordings.find(f"{part}/{stem}", stem),
                    captions=tuple(text for column in CAPTIONS if (text := row[column].strip())),
                    split=split,
                    source=f"freesound:{number if number.isdecimal() else ''}/{name}",
                )
            )
    return Published(clips)


def _sound(name: str) -> str | None:
    """The archives hold development/NAME.wav, and so on."""
    return name if name.lower().endswith(".wav") else None


def _encoding(path: Path) -> str:
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig"
