"""The leakage guard: no evaluation recording is used for training, in whichever collection it occurs.

AudioCaps and WavCaps use the same YouTube videos, and Clotho, WavCaps, ESC-50 and UrbanSound8K the same sounds of
Freesound. Therefore clips are compared by `Clip.source`, the original recording:

    youtube:ID          a video; a YouTube address counts as this
    freesound:ID        a sound; a Freesound address counts as this
    freesound:ID/NAME   a sound and the name of its file
    freesound:/NAME     a sound without a known number (a few of Clotho): compared with all others by name
    anything else       the same text is the same recording
"""

import re
from collections.abc import Iterable
from pathlib import Path

from .manifest import Clip, ManifestError, read

FILE = "evaluation.txt"  # beside manifest.jsonl, from `lamb data`: one source per line, also for clips without audio
_ADDRESSES = {
    "youtube": re.compile(r"https?://(?:www\.|m\.)?(?:youtube\.com/(?:watch\?(?:.*&)?v=|embed/)|youtu\.be/)([\w-]+)"),
    "freesound": re.compile(r"https?://(?:www\.)?freesound(?:\.org)?/(?:people/[^/]+/sounds/|s/)?(\d+)"),
}


def evaluation_ids(*folders: str | Path) -> set[str]:
    """The sources used for evaluation in folders that `lamb data` made or in manifests (all splits but "train").

    Raises ManifestError for a folder that has neither file.
    """
    sources: set[str] = set()
    for folder in map(Path, folders):
        file, manifest = folder / FILE, folder / "manifest.jsonl" if folder.is_dir() else folder
        if not file.is_file() and not manifest.is_file():
            raise ManifestError(f"{folder}: holds neither {FILE} nor manifest.jsonl; give a folder that lamb data made")
        if file.is_file():
            lines = file.read_text(encoding="utf-8").split("\n")
            sources.update(line for line in lines if line and not line.startswith("#"))
        if manifest.is_file():
            sources.update(_source(clip) for clip in read(manifest) if clip.split != "train")
    return sources


def leaked(clips: Iterable[Clip], sources: Iterable[str]) -> list[Clip]:
    """The `clips` whose recording is among `sources`."""
    ids: set[str] = set()
    names: set[str] = set()
    numberless: set[str] = set()  # their names
    for source in sources:
        id, name = _parts(source)
        ids.add(id)
        names.add(name)
        if not id:
            numberless.add(name)

    def is_held(clip: Clip) -> bool:
        id, name = _parts(_source(clip))
        return (id != "" and id in ids) or (name != "" and name in (numberless if id else names))

    return [clip for clip in clips if is_held(clip)]


def check(train_clips: Iterable[Clip], evaluation_clips: Iterable[Clip]) -> None:
    """Raise ManifestError, with the names of the clips, if a recording is in both lists."""
    found = leaked(train_clips, map(_source, evaluation_clips))
    if found:
        named = ", ".join(f"{clip.id} ({_source(clip)})" for clip in found[:10])
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        raise ManifestError(
            f"{len(found)} training clips are recordings that are used for evaluation: {named}{more}; leave them out, "
            "as lamb data NAME --without FOLDER does"
        )


def _source(clip: Clip) -> str:
    return clip.source or f"file:{clip.path}"


def _parts(source: str) -> tuple[str, str]:
    """The number and the file name of a recording, each empty if unknown."""
    for site, pattern in _ADDRESSES.items():
        if address := pattern.match(source):
            return f"{site}:{address[1]}", ""
    if not source.startswith("freesound:"):
        return source, ""
    id, _, name = source.removeprefix("freesound:").partition("/")
    return f"freesound:{id}" if id else "", name.casefold()
