"""What the collections share: the published clips, the recordings found for them, and archives unpacked once."""

import os
from pathlib import Path
from typing import NamedTuple

from ...audio.files import SUFFIXES
from ..archives import Place, unpack
from ..download import fetch
from ..manifest import Clip


class Published(NamedTuple):
    """All clips of a collection, whether their audio was found or not."""

    clips: list[Clip]  # with path "" where the recording was not found
    held: frozenset[str] = frozenset()  # further sources for evaluation only, named by the publishers; see leakage.py


class Recordings:
    """The sounds in a folder and its subfolders, found by name without suffix: "dog" or, more exactly, "train/dog"."""

    def __init__(self, folder: Path) -> None:
        self._paths: dict[str, str] = {}
        for parent, folders, files in os.walk(folder.absolute()):
            folders.sort()
            for file in sorted(files):
                stem, ending = os.path.splitext(file)
                if ending.lower() in SUFFIXES and not file.startswith("."):
                    path = os.path.join(parent, file)
                    self._paths.setdefault(stem, path)
                    self._paths.setdefault(f"{os.path.basename(parent)}/{stem}", path)

    def find(self, *names: str) -> str:
        """The path of the first of these names that exists; "" if none does."""
        return next((self._paths[name] for name in names if name in self._paths), "")


def fetch_archive(url: str, archive: Path, folder: Path, place: Place, md5: str | None = None) -> None:
    """Download and unpack an archive, once; it may be deleted afterwards."""
    done = archive.with_name(archive.name + ".unpacked")
    if not done.exists():
        fetch(url, archive, md5)
        unpack(archive, folder, place)
        done.touch()
