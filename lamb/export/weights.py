"""Graphs whose weights lie in the checkpoint: an initializer that equals a tensor of it is read from there.

ONNX calls this external data: the name of a file, an offset and a length. A tensor that is stored in half precision is
followed by a cast, so the numbers are those that PyTorch computes with. So weights are on the disk once, whichever
engine runs them.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..model.safetensors_index import Entry

SMALL = 256  # bytes; what is smaller stays in the graph
TYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16}


class Weights:
    """The floats of a safetensors file by what they are."""

    def __init__(self, file: Path, entries: Mapping[str, Entry]):
        self.file = file.name
        self.places: dict[str, Entry] = {}
        content = np.memmap(file, np.uint8, "r")
        for entry in entries.values():
            if entry.dtype in TYPES:
                self.places.setdefault(_digest(entry.array(content).astype(np.float32)), entry)

    def point(self, graph: onnx.ModelProto) -> int:
        """Replace what is in the file by where it is; returns how many bytes stay in the graph."""
        left = 0
        casts = []
        for initializer in graph.graph.initializer:
            size = len(initializer.raw_data)
            entry = None
            if initializer.data_type == TensorProto.FLOAT and size >= SMALL:
                entry = self.places.get(_digest(numpy_helper.to_array(initializer)))
            if entry is None:
                left += size
                continue
            if entry.dtype == "F16":
                name = initializer.name
                initializer.name = f"{name}.stored"
                casts.append(helper.make_node("Cast", [initializer.name], [name], to=TensorProto.FLOAT))
            initializer.data_type = TYPES[entry.dtype]
            initializer.ClearField("raw_data")
            initializer.data_location = TensorProto.EXTERNAL
            place: dict[str, Any] = {"location": self.file, "offset": entry.begin, "length": entry.end - entry.begin}
            for key, value in place.items():
                initializer.external_data.add(key=key, value=str(value))
        nodes = [*casts, *graph.graph.node]
        del graph.graph.node[:]
        graph.graph.node.extend(nodes)
        return left


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
