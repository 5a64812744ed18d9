"""What lies where in a safetensors file, read from its header alone: for graphs that point into it.

The format: 8 bytes with the length of a JSON header, the header, the data. Offsets count from the start of the data.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import LambError

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}
SAMPLE = 4096  # bytes of each tensor that `fingerprint` reads


@dataclass(frozen=True)
class Entry:
    """A tensor: its bytes are those from `begin` to `end` of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def array(self, content: np.ndarray) -> np.ndarray:
        """The tensor out of the file's bytes `content`, without a copy."""
        return content[self.begin : self.end].view(DTYPES[self.dtype]).reshape(self.shape)


def entries(file: Path) -> dict[str, Entry]:
    """The tensors of `file` by name. LambError for what is no safetensors file."""
    size = file.stat().st_size
    with open(file, "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if length > size - 8:
            raise _broken(file)
        try:
            header = json.loads(content.read(length))
            found = {
                name: Entry(
                    item["dtype"], tuple(item["shape"]), *(8 + length + offset for offset in item["data_offsets"])
                )
                for name, item in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _broken(file) from None
    for entry in found.values():
        width = np.dtype(DTYPES[entry.dtype]).itemsize if entry.dtype in DTYPES else None
        if not 8 + length <= entry.begin <= entry.end <= size or (
            width and entry.end - entry.begin != width * math.prod(entry.shape)
        ):
            raise _broken(file)
    return found


def fingerprint(file: Path, found: Mapping[str, Entry]) -> str:
    """A short digest of the names, the places and the first bytes of all tensors: another training changes them."""
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        for name in sorted(found):
            entry = found[name]
            content.seek(entry.begin)
            digest.update(f"{name} {entry}".encode())
            digest.update(content.read(min(SAMPLE, entry.end - entry.begin)))
    return digest.hexdigest()[:32]


def _broken(file: Path) -> LambError:
    return LambError(f"{file}: is no whole safetensors file", "copy or train the model again")
