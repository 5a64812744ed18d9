"""Files in and out: which recordings the user's paths mean, and results that appear whole or not at all."""

import errno
import glob
import os
import secrets
import signal
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import LambError
from .errors import AudioError

# fmt: off
SUFFIXES = frozenset([  # what `expand` takes for sound when it looks into a folder
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf",
    ".m4a", ".m4b", ".mp4", ".mov", ".3gp", ".webm", ".weba", ".mka", ".mkv", ".aac", ".amr", ".wma", ".wmv", ".w64",
    ".wv", ".avi", ".ts",
])
# fmt: on


# ---- recordings ---------------------------------------------------------------------------------------------------


def expand(paths: Iterable[str], recursive: bool, problems: list[AudioError] | None = None) -> list[str]:
    """The files that `paths` mean: a file or "-" as it is, a folder's sounds and a glob's matches, sorted.

    `**` in a glob means any folders. What starts with a dot is passed over. A path that does not exist stays, for
    `load` to report. Raises AudioError for a folder that holds no sound (its subfolders count if `recursive`) or
    cannot be listed, and for a glob without a match. A subfolder that cannot be listed, and what only looks like a
    file (a pipe would be waited for), is passed over and noted in `problems`.
    """
    files: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            files += _sounds_in(path, recursive, [] if problems is None else problems)
        elif not os.path.lexists(path) and any(sign in path for sign in "*?["):
            matches = sorted(match for match in glob.glob(path, recursive=True) if not os.path.isdir(match))
            if not matches:
                raise AudioError(path, "matches no file", "check the pattern and the folder it is used in")
            files += matches
        else:
            files.append(path)
    return files


SPECIAL = "a pipe or a device, not a file", "copy what it gives to a file"


def is_special(path: str) -> bool:
    """Whether something is there that is neither a file nor a folder: a pipe or a device."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False  # for the reader to report
    return kind not in (stat.S_IFREG, stat.S_IFDIR)


def _sounds_in(folder: str, recursive: bool, problems: list[AudioError]) -> list[str]:
    def refuse(error: OSError) -> None:
        parent = os.fsdecode(error.filename)
        problem = AudioError(parent, f"cannot be listed ({error.strerror})", "check its permissions")
        if parent == folder:
            raise problem
        problems.append(problem)

    found = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        for file in files:
            path = os.path.join(parent, file)
            if file.startswith(".") or os.path.splitext(file)[1].lower() not in SUFFIXES:
                continue
            if is_special(path):
                problems.append(AudioError(path, *SPECIAL))
            else:
                found.append(path)
        folders[:] = [sub for sub in folders if not sub.startswith(".")] if recursive else []
    if not found:
        deeper = "" if recursive else ", or look into its subfolders with --recursive"
        raise AudioError(folder, "a folder without audio files", f"name another{deeper}")
    return sorted(found)


# ---- what is kept ---------------------------------------------------------------------------------------------------


def cache() -> Path:
    """The folder for what lamb makes or fetches once and reads again: `$LAMB_CACHE` or `~/.cache/lamb`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LAMB_CACHE") or Path(base) / "lamb")


# ---- results ------------------------------------------------------------------------------------------------------

_FULL = (errno.ENOSPC, errno.EDQUOT)
_unfinished: set[Path] = set()


class FileError(LambError, OSError):
    """A file that cannot be written."""


def write(path: str | os.PathLike[str], content: str | bytes, *, durable: bool = False) -> None:
    """Write `content`, text as UTF-8 with the bytes of odd file names as they were; see `replacing`."""
    with replacing(path, durable=durable) as part:
        part.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))


@contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """The name of a temporary file to write; it becomes `path` when the block ends, and is gone if the block fails.

    It lies beside `path`, whose old content stays until the new one is whole, also when SIGTERM ends the process. A
    link stays, and what it leads to is replaced; a device or a pipe is written to in place.

    Args:
        durable: the content is on the disk before the name is, so that it outlives a power cut.

    Raises FileError before the block begins if the place cannot be written to, and later if it is full.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        yield target
        return
    if target.is_dir():
        raise FileError(f"{path}: cannot be written, for it is a folder", "name a file in it")
    part = target.with_name(f".lamb-{secrets.token_hex(6)}.part")
    try:
        part.touch()
    except (FileNotFoundError, NotADirectoryError):
        raise FileError(f"{path}: there is no folder {os.path.dirname(path)}", "make it first") from None
    except OSError as error:
        remedy = "choose a place that you may write to"
        raise FileError(f"{path}: cannot be written ({error.strerror})", remedy) from None
    with _removed(part):
        try:
            yield part
            if durable:
                _sync(part)
            part.replace(target)
        except OSError as error:
            if error.errno in _FULL:
                raise FileError(f"{path}: there is no room left for it", "make room, or choose another place") from None
            raise


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def _removed(part: Path) -> Iterator[None]:
    """Remove `part`, if it is still there, at the end of the block or when SIGTERM ends the process within it.

    Only Python's main thread can see to the latter, and only where the program has no handler of its own.
    """

    def end(*_: Any) -> None:
        for file in _unfinished:
            file.unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    main = threading.current_thread() is threading.main_thread()
    ours = main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    _unfinished.add(part)
    if ours:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        part.unlink(missing_ok=True)
        _unfinished.discard(part)
