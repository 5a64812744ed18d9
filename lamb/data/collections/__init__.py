"""Published collections, downloaded and converted: each is a function from two folders to all published clips.

`prepare` writes what `lamb data` leaves in a folder: manifest.jsonl, missing.txt (the clips whose recording is
missing) and evaluation.txt (for the leakage guard).
"""

import difflib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ...audio import files
from .. import leakage
from ..manifest import Clip, ManifestError, write
from .audiocaps import audiocaps
from .clotho import clotho
from .esc50 import esc50
from .folder import folder
from .macs import macs
from .published import Published
from .urbansound8k import urbansound8k
from .wavcaps import wavcaps

COLLECTIONS: dict[str, Callable[[Path, Path | None], Published]] = {
    "audiocaps": audiocaps,
    "clotho": clotho,
    "wavcaps": wavcaps,
    "wavcaps-audioset": partial(wavcaps, sources=("AudioSet_SL",)),
    "wavcaps-bbc": partial(wavcaps, sources=("BBC_Sound_Effects",)),
    "wavcaps-freesound": partial(wavcaps, sources=("FreeSound",)),
    "wavcaps-soundbible": partial(wavcaps, sources=("SoundBible",)),
    "macs": macs,
    "esc50": esc50,
    "urbansound8k": urbansound8k,
    "folder": folder,
}
"""Functions from (folder of tables and downloads, folder of recordings or None to download them) to `Published`."""


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`."""

    manifest: Path
    clips: list[Clip]  # in the manifest
    missing: list[Clip]  # without a recording, listed in missing.txt
    leaked: list[Clip]  # training clips that were left out, because their recording is used for evaluation


def prepare(name: str, to: Path, audio: Path | None = None, without: Iterable[Path] = ()) -> Prepared:
    """Write the collection `name` as `to`/manifest.jsonl. Raises ManifestError or DownloadError.

    Its training split leaves out all recordings that the collection itself or a folder in `without` uses for
    evaluation.
    """
    if name not in COLLECTIONS:
        near = difflib.get_close_matches(name, COLLECTIONS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COLLECTIONS)}"
        raise ManifestError(f"{name}: no such collection; {hint}")
    if audio is not None and not audio.exists():
        raise ManifestError(f"{audio}: no such folder; --audio is the folder of recordings that you have")
    if to.exists() and not to.is_dir():
        raise ManifestError(f"{to}: is a file; --to is the folder to make")
    manifest, held_file, missing_file = to / "manifest.jsonl", to / leakage.FILE, to / "missing.txt"
    ours = held_file.is_file() and held_file.read_text(encoding="utf-8").startswith(f"# {name}\n")
    if manifest.exists() and not ours:
        raise ManifestError(f"{manifest}: exists and is not of {name}; give another folder with --to")
    held = leakage.evaluation_ids(*without)
    to.mkdir(parents=True, exist_ok=True)
    clips, more = COLLECTIONS[name](to, audio)
    own = set(more) | {clip.source for clip in clips if clip.split != "train" and clip.source}
    twice = [id for id, times in Counter(clip.id for clip in clips).items() if times > 1]
    if twice:
        raise ManifestError(f"{to}: two clips of {name} have the id {twice[0]!r}")
    missing = [clip for clip in clips if not clip.path]
    files.write(missing_file, "".join(f"{clip.id}\t{clip.source}\n" for clip in missing))
    there = [clip for clip in clips if clip.path]
    leaked = leakage.leaked((clip for clip in there if clip.split == "train"), own | held)
    out = {clip.id for clip in leaked}
    kept = [clip for clip in there if clip.id not in out]
    if not kept:
        raise ManifestError(
            f"{audio or to}: none of the {len(clips)} recordings of {name} is left; "
            f"{len(missing)} are missing (listed in {missing_file}), {len(out)} are used for evaluation"
        )
    files.write(held_file, "".join(f"{line}\n" for line in (f"# {name}", *sorted(own))))
    write([replace(clip, path=_relative(clip.path, to)) for clip in kept], manifest)
    return Prepared(manifest, kept, missing, leaked)


def _relative(path: str, folder: Path) -> str:
    """A path relative to the folder if it lies within, so that the folder can be moved; else absolute."""
    base = os.path.abspath(folder)
    return os.path.relpath(path, base) if path.startswith(base + os.sep) else os.path.abspath(path)
