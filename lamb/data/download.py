"""Downloads that are resumed, checked and retried. A file gets its own name only once it is complete.

Until then it is called NAME.part. After a broken connection, this run or the next one continues from there (HTTP
Range). An existing file is used as it is, so a file that cannot be downloaded may be put in its place by hand.
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

from ..errors import LambError, reason

TRIES = 5  # connections without a single new byte before giving up
PAUSE = 1.0  # seconds before the second try; doubled before each further one
TIMEOUT = 60.0  # seconds without an answer
_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # status codes of a server that may answer differently soon
_BLOCK = 1 << 18


class DownloadError(LambError, OSError):
    """A file that could not be downloaded: its address, the problem and the remedy."""


def fetch(url: str, path: Path, md5: str | None = None, *, tries: int = TRIES, pause: float = PAUSE) -> Path:
    """Download `url` to `path` unless that exists. Raises DownloadError.

    Without a checksum, only the length that the server states is checked.
    """
    if path.is_file():
        if md5 and _md5(path) != md5:
            raise DownloadError(f"{path}: not the file that was published (MD5 is not {md5}); delete it and run again")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    resumed = part.exists()
    _receive_all(url, path, part, tries, pause)
    if md5 and resumed and _md5(part) != md5:  # the part belonged to another file
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
    """Receive all of `url` into `part`, with as many connections as necessary."""
    left, most, wait = tries, _size(part), pause
    remedy = f"run again to continue from there, or download it by hand to {path} and run again"
    with _progress(url, path.name) as (progress, task):
        while True:
            try:
                _receive(url, part, progress, task)
                return
            except HTTPError as error:
                problem = f"the server says {error.code} {error.reason}"
                if error.code == 416 and _size(part):  # the part is complete, or longer than the file
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
                if isinstance(reason, socket.gaierror):  # neither of the two is worth a second try
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
    """Receive the rest of `part` in one connection, or all of it if the server cannot start in the middle."""
    have = _size(part)
    headers = {"User-Agent": "lamb-aac", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as response:
        stated = response.headers.get("Content-Range", "")
        if response.status == 206 and not stated.startswith(f"bytes {have}-"):
            part.unlink()  # it cannot be continued
            raise ConnectionError(f"the server sent {stated or 'some part'}, not what is missing")
        have = have if response.status == 206 else 0
        total = _total(response)
        if total is not None and total - have > (free := shutil.disk_usage(part.parent).free):
            raise DownloadError(
                f"{url}: {(total - have) / 1e9:.1f} GB to come and {free / 1e9:.1f} GB free in {part.parent}; "
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
    """The size of the whole file in bytes, as the server states it."""
    headers = response.headers
    stated = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    return int(stated) if stated.isdecimal() else None


def from_hub(repo: str, patterns: list[str], folder: Path) -> None:
    """Download the files of a data set on the Hugging Face hub that match `patterns` into `folder`."""
    from huggingface_hub import snapshot_download

    page = f"https://huggingface.co/datasets/{repo}"
    remedy = f"download {', '.join(patterns)} by hand into {folder} and run again"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        snapshot_download(repo, repo_type="dataset", allow_patterns=patterns, local_dir=folder)
    except Exception as error:  # the client of the hub passes on the errors of its HTTP library
        raise DownloadError(f"{page}: {reason(error)}; {remedy}") from error
    # offline, the client does not complain about missing files
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    if absent := [pattern for pattern in patterns if not any(fnmatch(file, pattern) for file in files)]:
        raise DownloadError(f"{page}: {', '.join(absent)} did not come; check the network, or {remedy}")


@contextmanager
def _progress(url: str, name: str) -> Iterator[tuple[Any, Any]]:
    """Print one line to standard error, and below it a progress bar if standard error is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    print(f"lamb: downloading {url}", file=sys.stderr, flush=True)
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
