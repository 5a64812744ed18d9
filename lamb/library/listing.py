"""The recordings that an index should hold: those of a folder, or the clips of a manifest, as they are on disk now."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..audio.files import SUFFIXES
from ..data import sources
from ..data.manifest import Clip
from .store import LibraryError


@dataclass(frozen=True)
class Listed:
    """A recording, or a clip of one."""

    path: str  # absolute
    start: float = 0.0  # seconds
    length: float | None = None  # seconds; None: to the end

    @property
    def clip(self) -> str:
        """The part of the recording as a media fragment (W3C) such as "#t=10,20"; empty for the whole recording."""
        if not self.start and self.length is None:
            return ""
        return f"#t={self.start:g}" + ("" if self.length is None else f",{self.start + self.length:g}")

    def to_clip(self) -> Clip:
        """The same as a clip of a manifest."""
        return Clip(self.path + self.clip, self.path, self.start, self.length)


def listed(source: str) -> tuple[str, dict[str, Listed]]:
    """The name of `source` in the index (its absolute path), and its recordings by their keys.

    A folder is searched at any depth. Names that start with a dot are skipped, and links to folders are not followed.
    Raises LibraryError if there are no recordings, so that a disk that is not mounted never empties an index.
    """
    name = os.path.abspath(source)
    if os.path.isdir(name):
        found = {path: Listed(path) for path in sorted(_below(name))}
    elif os.path.exists(name):
        clips = sources.clips(name)
        found = {}
        for clip in clips:
            item = Listed(os.path.abspath(clip.path), clip.start, clip.duration)
            found[item.path + item.clip] = item
    else:
        raise LibraryError(f"{source}: does not exist", "name a folder of sounds, or a manifest (.jsonl, .csv)")
    if not found:
        raise LibraryError(f"{source}: holds no sounds", "name another folder, or a manifest (.jsonl, .csv)")
    return name, found


def _below(folder: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise LibraryError(f"{error.filename}: cannot be listed ({error.strerror})", "check its permissions")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield os.path.join(parent, name)


def digest(path: str | Path) -> str:
    """BLAKE2b of a file's content, as hexadecimal digits. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
