"""What a collection is on disk: its clips, the recordings found for them, and archives that are fetched once."""

import os
from pathlib import Path
from typing import NamedTuple

from ...audio.files import SUFFIXES
from ..archives import Place, unpack
from ..download import fetch
from ..manifest import Clip


class Published(NamedTuple):
    """All that was published, whether its audio is there or not."""

    clips: list[Clip]  # with path "" where the recording was not found
    held: frozenset[str] = frozenset()  # more sources that the publishers keep for evaluation, as in leakage.py


class Recordings:
    """The sounds in a folder and those within it, found by name without ending: "dog" or, more exactly, "train/dog"."""

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

    def __len__(self) -> int:
        return len(self._paths)

    def find(self, *names: str) -> str:
        """The path of the first of these names that is there; "" where none is."""
        return next((self._paths[name] for name in names if name in self._paths), "")


def fetch_archive(url: str, archive: Path, folder: Path, place: Place, md5: str | None = None) -> None:
    """Fetches an archive and unpacks it, once: afterwards it may be deleted."""
    done = archive.with_name(archive.name + ".unpacked")
    if not done.exists():
        fetch(url, archive, md5)
        unpack(archive, folder, place)
        done.touch()
