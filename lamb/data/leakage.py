"""The leakage guard: what a model is evaluated on is not trained on, wherever the same recording turns up again.

AudioCaps and WavCaps draw on the same YouTube videos; Clotho, WavCaps, ESC-50 and UrbanSound8K on the same sounds of
Freesound. So clips are compared by `Clip.source`, the original recording:

    youtube:ID          a video; an address of YouTube is read as that
    freesound:ID        a sound; an address of Freesound too
    freesound:ID/NAME   ... with the name of its file
    freesound:/NAME     ... of which nobody noted the number (a few of Clotho): compared by name with all others
    anything else       the same text is the same recording
"""

import re
from collections.abc import Iterable
from pathlib import Path

from .manifest import Clip, ManifestError, read

FILE = "evaluation.txt"  # `lamb data` writes it beside manifest.jsonl: a source a line, also of clips without audio
_ADDRESSES = {
    "youtube": re.compile(r"https?://(?:www\.|m\.)?(?:youtube\.com/(?:watch\?(?:.*&)?v=|embed/)|youtu\.be/)([\w-]+)"),
    "freesound": re.compile(r"https?://(?:www\.)?freesound(?:\.org)?/(?:people/[^/]+/sounds/|s/)?(\d+)"),
}


def evaluation_ids(*folders: str | Path) -> set[str]:
    """Sources of what is evaluated on, from folders that `lamb data` made, or from manifests (all but their split
    "train"); ManifestError for a folder that says nothing of it."""
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
    """Those of `clips` whose recording is among `sources`."""
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
    """ManifestError that names the training clips whose recording is evaluated on."""
    found = leaked(train_clips, map(_source, evaluation_clips))
    if found:
        named = ", ".join(f"{clip.id} ({_source(clip)})" for clip in found[:10])
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        raise ManifestError(
            f"{len(found)} training clips are recordings that are evaluated on: {named}{more}; leave them out, as "
            "lamb data NAME --without FOLDER does"
        )


def _source(clip: Clip) -> str:
    return clip.source or f"file:{clip.path}"


def _parts(source: str) -> tuple[str, str]:
    """A recording's number and its file name, each empty where unknown."""
    for site, pattern in _ADDRESSES.items():
        if address := pattern.match(source):
            return f"{site}:{address[1]}", ""
    if not source.startswith("freesound:"):
        return source, ""
    id, _, name = source.removeprefix("freesound:").partition("/")
    return f"freesound:{id}" if id else "", name.casefold()
