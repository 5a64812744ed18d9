"""Where sound comes from: a path, bytes, a file object, a pipe; each becomes a file that a decoder can read."""

import io
import os
import shutil
import stat
import tempfile
from contextlib import ExitStack
from typing import Any, BinaryIO

import numpy as np

from .errors import AudioError
from .headers import TAIL, is_mp3, ogg_is_cut, stated_end

Source = str | os.PathLike | bytes | BinaryIO | tuple[np.ndarray, int]
"""A path; a file's content; a binary file object, read from its beginning (one that cannot seek, such as a pipe, is
copied to a temporary file and can be read once); or an array (T,) or (T, channels) with its rate in Hz, floats as they
are, integers scaled to [-1, 1]."""

# what these formats begin with, besides mp3 and aac, is read from a pipe as it comes: the last is webm and mka
_STREAMED = (b"RIFF", b"RF64", b"fLaC", b"OggS", b".snd", b"\x1aE\xdf\xa3")


def name(source: Source) -> str:
    """What to call `source` in messages and results: its path, or "<bytes>", "<stream>", "<array>"."""
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "<bytes>"
    if isinstance(source, tuple):
        return "<array>"
    given = getattr(source, "name", None)
    return given if isinstance(given, str) and given else "<stream>"


def is_live(source: Source) -> bool:
    """Whether `source` is a pipe, whose end may be yet to come."""
    if isinstance(source, str | os.PathLike):
        return stat.S_ISFIFO(os.stat(source).st_mode) if os.path.exists(source) else False
    return hasattr(source, "read") and not seekable(source)


class Stream:
    """A pipe that is read as it comes; `head` has been read from it already."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self.head = head
        self.read_some = getattr(file, "read1", file.read)  # what is there now, where it can be had
        self.size, self.begin, self.tail = 0, b"", b""  # of what has been read

    def read(self, size: int) -> bytes:
        """At most `size` bytes, none at the end. PyAV would write any more past its buffer."""
        some = self.head or self.read_some(size)
        some, self.head = some[:size], some[size:]
        self.size += len(some)
        if len(self.begin) < TAIL:
            self.begin += some
        if self.begin[:4] == b"OggS":
            self.tail = (self.tail + some)[-TAIL:]
        return some

    def is_cut(self) -> bool:
        """Whether it has ended before the place that its own structure states."""
        if self.tail:
            return ogg_is_cut(self.tail)
        end = stated_end(io.BytesIO(self.begin))
        return end is not None and end > self.size + 64


def seekable(file: Any) -> bool:
    return hasattr(file, "seekable") and file.seekable()


def open_path(path: str | os.PathLike[str]) -> BinaryIO:
    """The file at `path`. Raises AudioError."""
    called = name(path)
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise AudioError(called, "does not exist", "check the path") from None
    except IsADirectoryError:
        if not os.access(path, os.R_OK | os.X_OK):
            raise AudioError(called, "a folder that cannot be listed", "change its permissions (chmod +rx)") from None
        raise AudioError(called, "a folder, not a file", "name a file in it") from None
    except PermissionError:
        raise AudioError(called, "no permission to read it", "change its permissions (chmod +r)") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise AudioError(called, f"cannot be opened ({error})", "check the path") from None


def check_file(file: Any) -> None:
    """Raise TypeError for what is no binary file object."""
    if not hasattr(file, "read"):
        raise TypeError(f"audio is a path, bytes, a binary file or (array, rate), not {type(file).__name__}")
    if isinstance(file, io.TextIOBase):
        raise TypeError("audio is read from a file in binary mode: open(path, 'rb')")


def open_source(source: Any, stack: ExitStack, streamed: bool) -> BinaryIO | Stream:
    """A seekable binary file with the content of `source`, closed by `stack` unless it is the caller's own.

    A pipe is copied to a temporary file, or if `streamed` and in a format that can be read forwards, given as it is.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    file = stack.enter_context(open_path(source)) if isinstance(source, str | os.PathLike) else source
    check_file(file)
    if not seekable(file):
        head = file.read(16)
        if streamed and (head[:4] in _STREAMED or is_mp3(head) or head[:1] == b"\xff"):
            return Stream(head, file)
        spool = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        spool.write(head)  # decoders jump about; the disk holds what memory may not
        shutil.copyfileobj(file, spool)
        file = spool
    return file
