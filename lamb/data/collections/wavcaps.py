"""WavCaps (Mei et al., 2023): 403,050 sounds of four sites with captions that ChatGPT made of their descriptions.

On the hub, cvssp/WavCaps has a JSON file for each source, {"data": [{"id", "caption", "duration", ...}]}, and its
FLAC files as zip archives, most of them in volumes: some 800 GB in all. AudioSet's ids are "YID.wav", the others'
the names of their files. It lists what must not be used for training, {"AudioSet": [...], "FreeSound": [...]}: here the
validation and test clips of AudioCaps and Clotho, and the sounds of ESC-50 and UrbanSound8K. (In the second list
AudioSet stands for VGGSound, which `lamb data` does not know.) The hub publishes no checksums besides its own.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..archives import unpack
from ..download import from_hub
from ..manifest import Clip, ManifestError
from .published import Published, Recordings

REPO = "cvssp/WavCaps"
FILES = {
    "AudioSet_SL": "as_final.json",
    "BBC_Sound_Effects": "bbc_final.json",
    "FreeSound": "fsd_final.json",
    "SoundBible": "sb_final.json",
}
BLOCKED = {
    "blacklist_exclude_test_ac.json": ("AudioSet", "FreeSound"),
    "blacklist_exclude_ub8k_esc50_vggsound.json": ("FreeSound",),
}


def wavcaps(folder: Path, audio: Path | None, sources: tuple[str, ...] = tuple(FILES)) -> Published:
    tables = {source: folder / "json_files" / source / FILES[source] for source in sources}
    lists = {folder / "json_files/blacklist" / name: sites for name, sites in BLOCKED.items()}
    if absent := [f.relative_to(folder).as_posix() for f in (*tables.values(), *lists) if not f.is_file()]:
        from_hub(REPO, absent, folder)
    if audio is None:
        for source in sources:
            _fetch_sounds(folder, source)
    recordings = Recordings(audio or folder / "audio")
    clips = []
    for source, table in tables.items():
        rows = _read(table).get("data")
        if not isinstance(rows, list):
            raise ManifestError(f'{table}: no list "data"; delete it and run again')
        # two sources may have files of the same name: their folders tell them apart
        folders = [f"{source}/", f"{source}_flac/", *([""] if len(sources) == 1 else [])]
        for number, row in enumerate(rows, 1):
            clip = _clip(table, number, source, row)
            names = [parent + clip.id.rpartition("/")[2] for parent in folders]
            # a few have no duration: nothing was recorded
            clips.append(replace(clip, path=recordings.find(*names) if clip.duration else ""))
    held = {
        f"youtube:{_video(str(id))}" if site == "AudioSet" else f"freesound:{id}"
        for file, sites in lists.items()
        for site, ids in _read(file).items()
        if site in sites
        for id in ids
    }
    return Published(clips, frozenset(held))


def _clip(table: Path, number: int, source: str, row: Any) -> Clip:
    try:
        id, caption, duration = str(row["id"]), str(row["caption"]).strip(), float(row["duration"])
    except (TypeError, KeyError, ValueError) as error:
        raise ManifestError(f"{table}, entry {number}: no id, caption and duration ({error})") from None
    stem = id.removesuffix(".wav") if source == "AudioSet_SL" else id
    origin = {
        "AudioSet_SL": f"youtube:{_video(id)}",
        "FreeSound": f"freesound:{id}/{row.get('file_name', '')}".removesuffix("/"),
    }
    return Clip(
        id=f"wavcaps/{source}/{stem}",
        path="",
        duration=duration if duration > 0 else None,
        captions=(caption,) if caption else (),
        split="train",
        source=origin.get(source, f"{source}:{id}"),
    )


def _video(id: str) -> str:
    """The YouTube id in "YID.wav"."""
    return id.removesuffix(".wav").removeprefix("Y")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: cannot be read ({error}); delete it and run again") from None
    if not isinstance(value, dict):
        raise ManifestError(f"{path}: not a JSON object; delete it and run again")
    return value


def _fetch_sounds(folder: Path, source: str) -> None:
    """Download and unpack the archive of a source, once; it may be deleted afterwards."""
    archives, sounds = folder / "Zip_files" / source, folder / "audio" / source
    done = sounds / ".unpacked"
    if done.exists():
        return
    main = archives / f"{source}.zip"
    if not main.is_file():
        from_hub(REPO, [f"Zip_files/{source}/*"], folder)
    if not main.is_file():
        raise ManifestError(f"{archives}: no {main.name}; download the files of Zip_files/{source} from {REPO} again")
    # members are mnt/.../FreeSound_flac/ID.flac: the folders are those of the publishers' disk
    unpack(main, sounds, lambda name: name.rpartition("/")[2] if name.endswith(".flac") else None)
    done.touch()
