"""What a file's header promises, in bytes: whether all of the file is there.

libsndfile reads a file that ends early without a word; its own structure says where it should end.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from ..errors import LambError

TAIL = 2**17  # bytes that hold the last page of an ogg, which is 65,307 at most
# of a wav, aiff, caf or mp4, and of files joined to one; a decoder would take seconds to pass over millions of
# empty ones
MOST_CHUNKS = 10_000


class HeaderError(LambError, ValueError):
    """A header that no recording has; the reader adds the file's name."""


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """At most `size` bytes from `offset` on; none where no file can have any."""
    if not 0 <= offset < 2**62:
        return b""
    file.seek(offset)
    return file.read(size)


class Part(io.RawIOBase):
    """Bytes [begin, end) of a file, as a file."""

    def __init__(self, file: BinaryIO, begin: int, end: int) -> None:
        self._file, self._begin, self._size, self._at = file, begin, end - begin, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        some = read_at(self._file, self._begin + self._at, max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(some)] = some
        self._at += len(some)
        return len(some)


def joined_at(file: BinaryIO) -> list[int]:
    """Where further files begin in one that was joined from several: chained ogg, and mp3 with tags in the middle.

    Raises HeaderError where there are more than any program joins.
    """
    joints: list[int] = []
    head = read_at(file, 0, 10)
    if head[:4] == b"OggS":
        at = 0  # of the first page that is none of the streams' first pages
        while len(page := read_at(file, at, 27)) == 27 and page[5] & 2:
            at += 27 + page[26] + sum(read_at(file, at + 27, page[26]))
        before = -1
        for offset in _found(file, b"OggS\0\x02", at):
            if len(read_at(file, offset, 27)) == 27:
                if before < 0 or not _follows(file, before, offset):
                    _counted(len(joints), "it is joined from")
                    joints.append(offset)
                before = offset
    elif is_mp3(head):
        for offset in _found(file, b"ID3", 10):
            if _is_tag(file, offset):
                _counted(len(joints), "it is joined from")
                joints.append(offset)
    return joints


def _follows(file: BinaryIO, page: int, offset: int) -> bool:
    """Whether `offset` is where the ogg page at `page` ends."""
    count = read_at(file, page + 26, 1)[0]
    return page + 27 + count + sum(read_at(file, page + 27, count)) == offset


def _is_tag(file: BinaryIO, at: int) -> bool:
    """Whether an ID3v2 tag is there, and a frame of mp3 after it."""
    head = read_at(file, at, 10)
    if len(head) < 10 or head[3] not in (2, 3, 4) or head[4] or head[5] & 15 or max(head[6:]) > 127:
        return False
    return is_mp3(read_at(file, at + _tag_size(head), 2))


def _tag_size(head: bytes) -> int:
    return 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))


def _found(file: BinaryIO, sign: bytes, at: int) -> Iterator[int]:
    """The offsets of `sign` from `at` on."""
    held = b""
    while block := read_at(file, at, 2**20):
        held, begin = held[1 - len(sign) :] + block, at - min(len(held), len(sign) - 1)
        place = held.find(sign)
        while place >= 0:
            yield begin + place
            place = held.find(sign, place + 1)
        at += len(block)


def is_cut(file: BinaryIO) -> bool:
    """Whether the file ends before the place that its own structure states. libsndfile reads such files in silence."""
    size = file.seek(0, os.SEEK_END)
    if read_at(file, 0, 4) == b"OggS":
        return ogg_is_cut(read_at(file, max(0, size - TAIL), TAIL))
    end = stated_end(file)
    return end is not None and end > size + 64  # some programs are wrong by the size of a header


def stated_end(file: BinaryIO) -> int | None:
    """The offset where the sound data ends according to the header; None for other formats and where it does not say.

    Programs that write to a pipe cannot know the size and put 0, -1 or about 2 GiB there.
    """
    head = read_at(file, 0, 24)
    if head[4:8] == b"ftyp":  # mp4: boxes from end to end, one of them the samples
        end = count = 0
        while len(box := read_at(file, end, 16)) >= 8:
            count = _counted(count)
            size = struct.unpack(">I", box[:4])[0]
            if size == 1 and len(box) == 16:
                size = struct.unpack(">Q", box[8:])[0]
            if size < 8:
                return None
            end += size
        return end
    if head[:4] == b"\x1aE\xdf\xa3":
        return _matroska_stated_end(file)
    if head[:16] == _ASF_HEADER:
        return _asf_stated_end(file)
    if head[:4] == b".snd" and len(head) == 24:
        offset, size = struct.unpack(">II", head[4:12])
        return None if size == 2**32 - 1 else offset + size
    if is_mp3(head):
        return _mp3_stated_end(file)
    return _chunks_stated_end(file, head[:4])


def _chunks_stated_end(file: BinaryIO, sign: bytes) -> int | None:
    """The end of the chunk of samples in a wav, aiff or caf; its other chunks are counted on the way."""
    forms = {b"RIFF": "<4sI", b"RF64": "<4sI", b"RIFX": ">4sI", b"FORM": ">4sI", b"caff": ">4sq"}
    if (form := forms.get(sign)) is None:
        return None
    width, at = struct.calcsize(form), 8 if sign == b"caff" else 12
    end = long_size = None
    count = 0
    while len(chunk := read_at(file, at, width)) == width:
        kind, size = struct.unpack(form, chunk)
        if not any(kind):  # zeros to the end of the file, which are no chunks
            return end
        count = _counted(count)
        at += width
        if kind == b"ds64":
            long_size = struct.unpack("<Q", read_at(file, at + 8, 8).ljust(8, b"\0"))[0]
        if kind in (b"data", b"SSND"):
            size = long_size or size
            if size <= 0 or 0x7FFFF000 <= size <= 0x80000000 or 0xFFFFFF00 <= size <= 0xFFFFFFFF:
                return end  # unsaid
            end = end or at + size
        if size < 0:
            return end
        at += size + (size % 2 if width == 8 else 0)
    return end


def _counted(count: int, where: str = "its header has") -> int:
    if count == MOST_CHUNKS:
        raise HeaderError(f"damaged: {where} more than {MOST_CHUNKS:,} parts")
    return count + 1


def _matroska_stated_end(file: BinaryIO) -> int | None:
    """The end of the segment, which follows the header; None if it is unsaid, as in a live recording."""
    at = 4
    for sign in (b"", b"\x18S\x80g"):
        head = read_at(file, at, 12)
        if not head.startswith(sign) or len(head) < 12:
            return None
        at += len(sign)
        head = head[len(sign) :]
        width = 9 - head[0].bit_length()  # of the size, whose first bit that is set says so
        if width > 8:
            return None
        size = int.from_bytes(head[:width], "big") & ((1 << 7 * width) - 1)
        at += width + size
        if sign:
            return None if size == (1 << 7 * width) - 1 else at
    return None


_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")


def _asf_stated_end(file: BinaryIO) -> int | None:
    """The end of the object that holds the packets, which follows the header."""
    at = int.from_bytes(read_at(file, 16, 8), "little")
    data = read_at(file, at, 24)
    size = int.from_bytes(data[16:], "little")
    return at + size if data[:16] == _ASF_DATA and size > 50 else None


def ogg_is_cut(tail: bytes) -> bool:
    """Whether the last page of an ogg file is incomplete or damaged. Some recorders never mark it as the last."""
    at = tail.rfind(b"OggS\0")
    if at < 0:
        return False  # other data follows: for the decoder to judge
    page = tail[at:]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    size = 27 + page[26] + sum(page[27 : 27 + page[26]])
    return len(page) < size or _ogg_crc(page[:22] + bytes(4) + page[26:size]) != page[22:26]


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_crc(page: bytes) -> bytes:
    """The check sum of an ogg page: CRC-32 with the bits the other way round, and nothing inverted."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 2**32 - 1) ^ (2**32 - 1)
    return mirrored.to_bytes(4, "big").translate(_MIRRORED)


def is_mp3(head: bytes) -> bool:
    return head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2)


def _mp3_stated_end(file: BinaryIO) -> int | None:
    """The end of an mp3 by the bytes in its Xing tag, less one frame: programs disagree about the tag's own."""
    head, at = read_at(file, 0, 10), 0
    if head[:3] == b"ID3" and len(head) == 10:
        at = _tag_size(head)
    frame = read_at(file, at, 512)
    tag = max(frame.find(b"Xing"), frame.find(b"Info"))
    if tag < 0 or len(frame) < tag + 16:
        return None
    flags, _frames, size = struct.unpack(">III", frame[tag + 4 : tag + 16])
    return at + size - 2048 if flags & 3 == 3 and size > 2048 else None


def mp3_says_length(file: BinaryIO) -> bool:
    """Whether a whole mp3 is covered by its Xing tag: not if it has none, nor if it was joined from several."""
    end = _mp3_stated_end(file)
    return end is not None and file.seek(0, os.SEEK_END) <= 1.01 * end + 4096
