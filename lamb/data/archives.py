"""Archives of recordings: zip (also in volumes), tar.gz and 7z, all unpacked by the same rules.

Archives come from strangers. If any member is not a regular file, or has a name that leads out of the folder, the whole
archive is refused. A file gets its own name only once it is complete, and complete files are not written again, so that
an interrupted run can continue.
"""

import gzip
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from stat import S_IFMT, S_ISREG
from typing import IO

from ..audio.files import replacing
from ..errors import LambError

Place = Callable[[str], str | None]
"""A function from the name of a member to its path in the folder, or None to leave it out."""


class ArchiveError(LambError, OSError):
    """An archive that cannot be unpacked: its path, the problem and the remedy."""


def unpack(archive: Path, folder: Path, place: Place) -> None:
    """Unpack the members of `archive` that `place` keeps into `folder`. Raises ArchiveError."""
    kind = next((kind for kind in READERS if archive.name.endswith(kind)), None)
    if kind is None:
        raise ArchiveError(f"{archive}: not an archive of a known kind ({', '.join(READERS)})")
    print(f"lamb: unpacking {archive}", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        READERS[kind](archive, folder, place)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ArchiveError(f"{archive}: damaged ({error}); delete it and run again to download it again") from None


def _zip(archive: Path, folder: Path, place: Place) -> None:
    joined = _joined(archive)
    try:
        with zipfile.ZipFile(joined) as file:
            wanted = []
            for info in file.infolist():
                mode = info.external_attr >> 16
                regular = not S_IFMT(mode) or S_ISREG(mode)
                if not info.is_dir() and (target := _target(archive, folder, info.filename, regular, place)):
                    wanted.append((info, target))
            _check_room(archive, folder, (info.file_size for info, target in wanted if not target.exists()))
            for info, target in wanted:
                if not _is_there(target, info.file_size):
                    with file.open(info) as stream:
                        _write(stream, target)
    finally:
        if joined != archive:
            joined.unlink(missing_ok=True)


def _joined(archive: Path) -> Path:
    """The archive, joined first if it consists of volumes (NAME.z01, NAME.z02 ... NAME.zip)."""
    if not archive.with_suffix(".z01").exists():
        return archive
    tool = shutil.which("zip")
    joined = archive.with_name(archive.stem + ".joined.zip")
    if tool is None:
        raise ArchiveError(
            f"{archive}: is in volumes, which the program `zip` has to join; install it (apt install zip), or unpack "
            f"the archive by hand and run again with --audio FOLDER"
        )
    # checked here, because `zip` would ask the user for a missing volume and wait
    names = [archive.with_suffix(f".z{n:02d}") for n in range(1, _volumes(archive) + 1)]
    if absent := [path.name for path in names if not path.exists()]:
        raise ArchiveError(f"{archive}: its volumes {', '.join(absent)} are missing; download them and run again")
    joined.unlink(missing_ok=True)
    command = [tool, "-q", "-s", "0", str(archive), "--out", str(joined)]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:
        joined.unlink(missing_ok=True)
        said = " ".join((result.stdout + result.stderr).split())
        raise ArchiveError(f"{archive}: `zip -s 0` cannot join its volumes ({said}); download the volumes again")
    return joined


def _volumes(archive: Path) -> int:
    """The number of volumes before the last one, from the end record of a zip file. Raises ArchiveError."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - 65_557))  # the record of 22 bytes and the longest comment
        end = file.read()
    at = end.rfind(b"PK\5\6")
    if at < 0 or at + 22 > len(end):
        raise ArchiveError(f"{archive}: damaged (its end is missing); delete it and run again to download it again")
    return struct.unpack_from("<H", end, at + 4)[0]


def _tar(archive: Path, folder: Path, place: Place) -> None:
    for write in (False, True):  # checked once before writing: only the end of a gzip file shows that it is complete
        with gzip.open(archive) as packed, tarfile.open(fileobj=packed, mode="r|") as file:
            for info in file:
                if not info.isdir() and (target := _target(archive, folder, info.name, info.isreg(), place)):
                    stream = file.extractfile(info)
                    assert stream is not None  # a regular file
                    if write and not _is_there(target, info.size):
                        _write(stream, target)
            while packed.read(1 << 20):
                pass


def _seven(archive: Path, folder: Path, place: Place) -> None:
    try:
        import py7zr
    except ImportError:
        raise ArchiveError(
            f"{archive}: 7z archives need py7zr; install it (pip install 'lamb-aac[data]'), or unpack the archive by "
            f"hand in {folder} (7z x {archive.name}) and run again"
        ) from None
    try:
        with py7zr.SevenZipFile(archive) as file:
            wanted = {}
            for info in file.list():
                if not info.is_directory:
                    target = _target(archive, folder, info.filename, info.is_file, place)
                    if target and not _is_there(target, info.uncompressed):
                        wanted[info.filename] = (target, info.uncompressed)
            _check_room(archive, folder, (size for _, size in wanted.values()))
            if not wanted:
                return
            # the library writes members under their own names, so they go into a temporary folder first
            with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as aside:
                file.extract(aside, targets=list(wanted))
                for name, (target, _) in wanted.items():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    (Path(aside) / name).replace(target)
    except OSError:
        raise
    except Exception as error:  # the library passes on the errors of many decompressors
        raise ArchiveError(f"{archive}: damaged ({error}); delete it and run again to download it again") from None


READERS: dict[str, Callable[[Path, Path, Place], None]] = {".zip": _zip, ".tar.gz": _tar, ".7z": _seven}


def _target(archive: Path, folder: Path, name: str, regular: bool, place: Place) -> Path | None:
    """The path of a member, or None to leave it out. Raises ArchiveError for a member of a hostile archive."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or re.match("[A-Za-z]:/", name) or "\0" in name:
        raise ArchiveError(f"{archive}: refused, because its member {name!r} leads out of the folder")
    if not regular:
        raise ArchiveError(f"{archive}: refused, because its member {name!r} is a link or a device")
    placed = place(name)
    if placed is None:
        return None
    target = folder / placed
    if not target.resolve().is_relative_to(folder.resolve()):
        raise ArchiveError(f"{target}: a link leads out of {folder}; remove the link and run again")
    return target


def _check_room(archive: Path, folder: Path, sizes: Iterable[int]) -> None:
    needed, free = sum(sizes), shutil.disk_usage(folder).free
    if needed > free:
        raise ArchiveError(
            f"{archive}: needs {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free; make room, or give "
            "another folder"
        )


def _is_there(target: Path, size: int) -> bool:
    return target.is_file() and target.stat().st_size == size


def _write(stream: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part, part.open("wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
