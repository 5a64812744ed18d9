"""The inputs of a bulk run: the recordings of a folder, a manifest or an address as a list on disk, in a fixed order.

The list holds one `Input` per line, as JSON. Names are written as they are found and sorted on disk, so that memory
holds at most `RUN` names, however many there are. (In a remote store it holds the names of a folder, which fsspec lists
at once.) Listed are files with one of `SUFFIXES` at any depth. Names that start with a dot are skipped, and links to
folders are not followed, because they may form a circle.
"""

import hashlib
import heapq
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ..audio.files import SUFFIXES, replacing
from ..data.manifest import encoding_of, parse, renamed, rows
from ..errors import LambError

RUN = 100_000  # names that are sorted in memory at a time
MANIFESTS = (".jsonl", ".csv", ".tsv", ".txt")


class BulkError(LambError, ValueError):
    """A bulk run that cannot be started as requested: the problem and the remedy."""


@dataclass(frozen=True)
class Input:
    """A recording, or a stretch of one, to caption."""

    file: str  # path or address, as results name it
    id: str | None = None  # of the clip, in a manifest that has ids
    start: float = 0.0  # seconds
    duration: float | None = None  # seconds; None: to the end
    path: str | None = None  # where it is now, if not there

    @classmethod
    def from_json(cls, line: str) -> "Input":
        """An input from its line of the list."""
        return cls(**json.loads(line))

    def to_json(self) -> str:
        """A line of ASCII. The bytes of a name that are not UTF-8 are kept as escaped surrogates."""
        return json.dumps({key: value for key, value in asdict(self).items() if value}) + "\n"


def write_list(source: str, path: Path, called: str | None = None) -> tuple[int, str]:
    """Write the inputs in `source` to the file `path`; return their number and the SHA-256 of the list.

    `called` is the name under which a local folder is listed, if not its own. Raises BulkError or ManifestError.
    """
    digest, count = hashlib.sha256(), 0
    with replacing(path) as part, part.open("w", encoding="ascii") as file:
        for line in _lines(source, path.parent, called or source):
            file.write(line)
            digest.update(line.encode())
            count += 1
        if not count:
            raise BulkError(f"{source}: no recordings in it", "name a folder with sound files, or a manifest")
    return count, digest.hexdigest()


def moved(names: Iterable[str], source: str, to: str) -> Iterator[str]:
    """The names of recordings below the folder `source`, as they are below `to`."""
    size, to = len(os.path.normpath(source)), os.path.normpath(to)
    return (to + name[size:] for name in names)


def open_address(url: str) -> tuple[Any, str]:
    """The fsspec file system of `url` and the path in it. Raises BulkError for an unknown protocol."""
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        return url_to_fs(url)
    except ImportError as error:
        raise BulkError(f"{url}: {protocol}:// needs another package: {error}") from None
    except ValueError as error:
        raise BulkError(f"{url}: {error}; s3://, gs://, hf://, file:// and others of fsspec are known") from None


def _lines(source: str, scratch: Path, called: str) -> Iterator[str]:
    if "://" in source:
        fs, path = open_address(source)
        try:
            if fs.isfile(path):
                with fs.open(path, "rb") as file:
                    yield from _manifest(file, source, source.rpartition("/")[0])
                return
            names = _remote(fs, path)
            yield from _sorted((Input(name).to_json() for name in names), scratch)
        except LambError:
            raise
        except Exception as error:  # each store has exceptions of its own
            raise BulkError(f"{source}: cannot be listed ({error}); check the address and your rights") from error
    elif os.path.isdir(source):
        names = moved(_local(os.path.normpath(source)), source, called)
        yield from _sorted((Input(name).to_json() for name in names), scratch)
    else:
        try:
            with open(source, "rb") as file:
                yield from _manifest(file, source, os.path.dirname(os.path.abspath(source)))
        except OSError as error:
            raise BulkError(f"{source}: {error.strerror}; name a folder, a manifest or an address") from None


def _local(folder: str) -> Iterator[str]:
    """Recordings below `folder`, and folders that cannot be listed, in no order. Each level holds one open handle."""
    with ExitStack() as stack:
        try:
            levels = [stack.enter_context(os.scandir(folder))]
            while levels:
                if (entry := next(levels[-1], None)) is None:
                    levels.pop().close()
                elif entry.name.startswith("."):
                    pass
                elif entry.is_dir(follow_symlinks=False):
                    try:
                        levels.append(stack.enter_context(os.scandir(entry.path)))
                    except OSError:  # becomes an input that fails, so that it is reported and can be retried
                        yield entry.path
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and not os.path.isdir(entry.path):
                    yield entry.path
        except OSError as error:
            raise BulkError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from None


def _remote(fs: Any, path: str) -> Iterator[str]:
    for parent, folders, files in fs.walk(path, on_error="raise"):
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield fs.unstrip_protocol(f"{parent}/{name}")
        folders[:] = [name for name in folders if not name.startswith(".")]


def _sorted(lines: Iterable[str], scratch: Path) -> Iterator[str]:
    """The lines in order: sorted runs in unnamed files of the folder `scratch`, which are then merged."""
    lines = iter(lines)
    with ExitStack() as stack:
        runs = []
        while run := sorted(islice(lines, RUN)):
            file = stack.enter_context(tempfile.TemporaryFile("w+", encoding="ascii", dir=scratch))
            file.writelines(run)
            file.seek(0)
            runs.append(file)
        yield from heapq.merge(*runs)


def _manifest(file: BinaryIO, source: str, folder: str) -> Iterator[str]:
    """The inputs of a manifest in its order. Paths are relative to its folder; addresses stay as they are."""
    suffix = os.path.splitext(source)[1].lower()
    if suffix not in MANIFESTS:
        raise BulkError(f"{source}: not a folder, nor a manifest ({', '.join(MANIFESTS)}: one path a line)")
    encoding = encoding_of(file.read(2))
    file.seek(0)
    # bytes of a path that are not UTF-8 stay as they are
    with io.TextIOWrapper(file, encoding, "surrogateescape", newline="") as lines:
        if suffix == ".txt":
            yield from (Input(_resolved(line.rstrip("\r\n"), folder)).to_json() for line in lines if line.strip())
            return
        for number, row in rows(lines, source):
            try:
                clip, row = parse(row, Path()), renamed(row)
            except ValueError as error:
                raise BulkError(f"{source}, line {number}: {error}") from None
            id = clip.id if row.get("id") not in ("", None) else None
            # the path of `row`: `parse` would change an address
            yield Input(_resolved(row["path"], folder), id, clip.start, clip.duration).to_json()


def _resolved(path: str, folder: str) -> str:
    if "://" in path or os.path.isabs(path):
        return path
    return f"{folder}/{path}" if "://" in folder else os.path.join(folder, path)
