"""Files from the network: resumable, checked, tried again; a file is under its own name only once it is complete.

What has arrived lies in NAME.part and is gone on with (HTTP Range) after a broken connection, in this run or the next.
A file that is already there is used, so whatever cannot be fetched here may be put there by hand.
"""

import errno
import hashlib
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ..errors import LambError

TRIES = 5  # in a row without a new byte, before giving up
PAUSE = 1.0  # seconds before the second try; doubled before each further one
TIMEOUT = 60.0  # seconds without an answer
_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # what a server says that may work a moment later
_BLOCK = 1 << 18


class DownloadError(LambError, OSError):
    """A file that could not be fetched: its address, what is wrong, the remedy."""


def fetch(url: str, path: Path, md5: str | None = None, *, tries: int = TRIES, pause: float = PAUSE) -> Path:
    """`path` with the content of `url`, downloaded unless it is there; DownloadError where it cannot be had.

    Without a checksum nothing but the length that the server states is checked.
    """
    if path.is_file():
        if md5 and _md5(path) != md5:
            raise DownloadError(f"{path}: not the file that was published (MD5 is not {md5}); delete it and run again")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    resumed = part.exists()
    _receive_all(url, path, part, tries, pause)
    if md5 and resumed and _md5(part) != md5:  # the beginning was of another file
        part.unlink()
        _receive_all(url, path, part, tries, pause)
    if md5 and _md5(part) != md5:
        part.unlink()
        raise DownloadError(
            f"{url}: what came is not the file that was published (MD5 is not {md5}); run again, or download it by "
            f"hand to {path}"
        )
    part.replace(path)
    return path


def _receive_all(url: str, path: Path, part: Path, tries: int, pause: float) -> None:
    """All of `url` into `part`, over as many connections as it takes."""
    left, most, wait = tries, _size(part), pause
    remedy = f"run again to go on from there, or download it by hand to {path} and run again: a file there is used"
    with _progress(url, path.name) as (progress, task):
        while True:
            try:
                _receive(url, part, progress, task)
                return
            except HTTPError as error:
                problem = f"the server says {error.code} {error.reason}"
                if error.code == 416 and _size(part):  # nothing left to send, or a part that is longer than the file
                    if error.headers.get("Content-Range", "") == f"bytes */{_size(part)}":
                        return
                    part.unlink()
                elif error.code not in _AGAIN:
                    raise DownloadError(f"{url}: {problem}; download it by hand to {path} and run again") from None
            except (OSError, HTTPException) as error:
                reason = error.reason if isinstance(error, URLError) else error
                if isinstance(error, DownloadError):
                    raise
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
                    raise DownloadError(f"{part}: {error.strerror}; make room, or give another folder") from None
                if isinstance(reason, socket.gaierror):  # no such host, or no network at all: not worth a second try
                    raise DownloadError(f"{url}: no network, or no such host ({reason.strerror}); {remedy}") from None
                problem = str(reason) or type(reason).__name__
            left = tries if _size(part) > most else left - 1
            wait = pause if _size(part) > most else wait
            most = max(most, _size(part))
            if not left:
                raise DownloadError(f"{url}: {problem}; {remedy}") from None
            time.sleep(wait)
            wait = min(2 * wait, 30.0)


def _receive(url: str, part: Path, progress: Any, task: Any) -> None:
    """One connection: what is missing of `part`, or all where the server cannot start in the middle."""
    have = _size(part)
    headers = {"User-Agent": "lamb-aac", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as response:
        stated = response.headers.get("Content-Range", "")
        if response.status == 206 and not stated.startswith(f"bytes {have}-"):
            part.unlink()  # what is there cannot be gone on with
            raise ConnectionError(f"the server sent {stated or 'some part'}, not what is missing")
        have = have if response.status == 206 else 0
        total = _total(response)
        if total is not None and total - have > (free := shutil.disk_usage(part.parent).free):
            raise DownloadError(
                f"{url}: {_gigabytes(total - have)} to come and {_gigabytes(free)} free in {part.parent}; "
                "make room, or give another folder"
            )
        progress.update(task, total=total, completed=have)
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            while block := response.read(_BLOCK):
                file.write(block)
                progress.advance(task, len(block))
            file.truncate()
    if total is not None and _size(part) != total:
        raise ConnectionError(f"the connection broke off after {_size(part)} of {total} bytes")


def _total(response: HTTPResponse) -> int | None:
    """Bytes of the whole file, as the server states them."""
    headers = response.headers
    stated = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    return int(stated) if stated.isdecimal() else None


def from_hub(repo: str, patterns: list[str], folder: Path) -> None:
    """The files of a data set on the Hugging Face hub that match `patterns`, under `folder` with their own names."""
    from huggingface_hub import snapshot_download

    page = f"https://huggingface.co/datasets/{repo}"
    remedy = f"download {', '.join(patterns)} by hand into {folder} and run again: files there are used"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        snapshot_download(repo, repo_type="dataset", allow_patterns=patterns, local_dir=folder)
    except Exception as error:  # the hub's client passes on whatever its HTTP library raises
        raise DownloadError(f"{page}: {str(error).strip().splitlines()[0]}; {remedy}") from error
    # offline, the client takes what it finds for everything there is
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    if absent := [pattern for pattern in patterns if not any(fnmatch(file, pattern) for file in files)]:
        raise DownloadError(f"{page}: {', '.join(absent)} did not come; check the network, or {remedy}")


@contextmanager
def _progress(url: str, name: str) -> Iterator[tuple[Any, Any]]:
    """A bar on standard error that leaves one line behind; only the line where nobody would see the bar."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    print(f"lamb: fetching {url}", file=sys.stderr, flush=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        disable=not sys.stderr.isatty(),
    ) as progress:
        yield progress, progress.add_task(name, total=None)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
