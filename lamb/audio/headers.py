"""What a file's header promises, in bytes: whether all of the file is there.

libsndfile reads a file that ends early without a word; its own structure says where it should end.
"""

import os
import struct
from typing import BinaryIO

TAIL = 2**17  # bytes that hold the last page of an ogg, which is 65,307 at most


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


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
        end = 0
        while len(box := read_at(file, end, 16)) >= 8:
            size = struct.unpack(">I", box[:4])[0]
            if size == 1 and len(box) == 16:
                size = struct.unpack(">Q", box[8:])[0]
            if size < 8:
                return None
            end += size
        return end
    if head[:4] == b".snd" and len(head) == 24:
        offset, size = struct.unpack(">II", head[4:12])
        return None if size == 2**32 - 1 else offset + size
    if is_mp3(head):
        return _mp3_stated_end(file)
    forms = {b"RIFF": "<4sI", b"RF64": "<4sI", b"RIFX": ">4sI", b"FORM": ">4sI", b"caff": ">4sq"}
    if (form := forms.get(head[:4])) is None:
        return None
    width, at, long_size = struct.calcsize(form), 8 if head[:4] == b"caff" else 12, None
    while len(chunk := read_at(file, at, width)) == width:
        kind, size = struct.unpack(form, chunk)
        at += width
        if kind == b"ds64":
            long_size = struct.unpack("<Q", read_at(file, at + 8, 8).ljust(8, b"\0"))[0]
        if kind in (b"data", b"SSND"):
            size = long_size or size
            unsaid = size <= 0 or 0x7FFFF000 <= size <= 0x80000000 or 0xFFFFFF00 <= size <= 0xFFFFFFFF
            return None if unsaid else at + size
        if size < 0:
            return None
        at += size + (size % 2 if width == 8 else 0)
    return None


def ogg_is_cut(tail: bytes) -> bool:
    """Whether the last page of an ogg file is incomplete or not marked as the end."""
    at = tail.rfind(b"OggS\0")
    if at < 0:
        return False  # other data follows: for the decoder to judge
    page = tail[at:]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    return not page[5] & 4 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])


def is_mp3(head: bytes) -> bool:
    return head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2)


def _mp3_stated_end(file: BinaryIO) -> int | None:
    """The end of an mp3 by the bytes in its Xing tag, less one frame: programs disagree about the tag's own."""
    head, at = read_at(file, 0, 10), 0
    if head[:3] == b"ID3" and len(head) == 10:
        at = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
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
