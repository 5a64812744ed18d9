"""Graphs whose weights lie in the checkpoint: an initializer that equals a tensor of it is read from there.

ONNX calls this external data: the name of a file, an offset and a length. A tensor that is stored in half precision is
followed by a cast, so the numbers are those that PyTorch computes with. So weights are on the disk once, whichever
engine runs them.
"""

import hashlib
from collections.abc import Iterable, Mapping
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
        self.places: dict[str, tuple[str, Entry]] = {}  # digest: name, place
        content = np.memmap(file, np.uint8, "r")
        for name, entry in entries.items():
            if entry.dtype in TYPES:
                self.places.setdefault(_digest(entry.array(content).astype(np.float32)), (name, entry))

    def used(self, graphs: Iterable[onnx.ModelProto]) -> set[str]:
        """The names of the tensors that the graphs hold copies of."""
        held = [self._place(initializer) for graph in graphs for initializer in graph.graph.initializer]
        return {place[0] for place in held if place}

    def _place(self, initializer: onnx.TensorProto) -> tuple[str, Entry] | None:
        if initializer.data_type != TensorProto.FLOAT or len(initializer.raw_data) < SMALL:
            return None
        return self.places.get(_digest(numpy_helper.to_array(initializer)))

    def point(self, graph: onnx.ModelProto) -> None:
        """Replace what is in the file by where it is."""
        casts = []
        for initializer in graph.graph.initializer:
            found = self._place(initializer)
            if found is None:
                continue
            entry = found[1]
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


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
