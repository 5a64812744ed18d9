"""An index on disk: one LanceDB table in a folder, with one row per segment. [O]

Every change is one commit of LanceDB: a process that dies leaves the state before or after it. All segments of a
recording are written in one commit, so a recording is in the index as a whole or not at all.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ..config import LibraryConfig
from ..errors import LambError, optional, reason
from .moments import Moment

TABLE = "segments"
VERSION = 1
KEPT = timedelta(minutes=10)  # for which an older state stays readable, for searches that have begun
ALWAYS = timedelta(0)  # changes by other processes are visible at once
DELETED = 500  # most keys in one deletion


class LibraryError(LambError, ValueError):
    """An index that cannot be used or made: the folder, the problem and the remedy."""


@dataclass(frozen=True)
class File:
    """A recording on disk, or a clip of one (`clip` is its media fragment such as "#t=10,20")."""

    path: str
    clip: str
    source: str  # the folder or manifest that it was indexed from
    size: int  # bytes
    modified: int  # nanoseconds since 1970
    digest: str  # BLAKE2b of the content

    @property
    def key(self) -> str:
        """Its name in the index."""
        return self.path + self.clip


class Store:
    """The table of an index; `model` and `space` name the aligned space of its vectors, `labels` the C kinds of sound
    whose probabilities it holds: their roots, which are a vector of length 1 as well."""

    def __init__(self, folder: Path, table: Any, config: LibraryConfig):
        self.folder, self.table, self.config = folder, table, config
        facts = json.loads((table.schema.metadata or {}).get(b"lamb", b"{}"))
        if facts.get("version") != VERSION:
            raise LibraryError(f"{folder}: not an index that this lamb can read", "make it anew with: lamb index")
        self.model: str = facts["model"]
        self.space: str = facts["space"]
        self.labels: list[str] = facts.get("labels", [])

    @classmethod
    def open(cls, folder: Path, config: LibraryConfig) -> "Store":
        """The index in `folder`. Raises LibraryError if there is none."""
        lancedb = _lancedb()
        if not (folder / f"{TABLE}.lance").is_dir():
            raise LibraryError(f"{folder}: no index of sounds", f"make one with: lamb index FOLDER --to {folder}")
        try:
            return cls(folder, lancedb.connect(folder, read_consistency_interval=ALWAYS).open_table(TABLE), config)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            if isinstance(error, LibraryError):
                raise
            raise LibraryError(f"{folder}: the index cannot be opened ({reason(error)})", "make it anew") from None

    @classmethod
    def create(
        cls, folder: Path, dim: int, labels: Sequence[str], model: str, space: str, config: LibraryConfig
    ) -> "Store":
        """A new, empty index in `folder`, which may hold nothing else. Raises LibraryError."""
        lancedb = _lancedb()
        import pyarrow as pa
        from lancedb.index import FTS

        if folder.exists() and (not folder.is_dir() or any(p.name != ".lock" for p in folder.iterdir())):
            raise LibraryError(f"{folder}: exists, and is not an index of sounds", "choose another name for --to")
        columns: list[tuple[str, Any]] = [
            *((name, pa.string()) for name in ("path", "clip", "source", "digest", "caption")),
            *((name, pa.int64()) for name in ("size", "modified")),
            *((name, pa.float64()) for name in ("start", "end", "duration")),
            ("confidence", pa.float32()),
            ("vector", pa.list_(pa.float32(), dim)),
        ]
        if labels:
            columns.append(("kinds", pa.list_(pa.float32(), len(labels))))
        facts = {"version": VERSION, "model": model, "space": space, "labels": list(labels)}
        schema = pa.schema(columns, metadata={b"lamb": json.dumps(facts).encode()})
        table = lancedb.connect(folder, read_consistency_interval=ALWAYS).create_table(TABLE, schema=schema)
        # full-text search that finds "barking" by "barks", and leaves out "a" and "the"
        table.create_index("caption", config=FTS(stem=True, remove_stop_words=True))
        return cls(folder, table, config)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the index during changes. Raises LibraryError if another process holds the lock."""
        try:
            lock = FileLock(self.folder / ".lock").acquire(blocking=False)
        except Timeout:
            remedy = "wait for it, or end it"
            raise LibraryError(f"{self.folder}: another lamb index writes here", remedy) from None
        with lock:
            yield

    @property
    def dim(self) -> int:
        """D_llm, the length of a vector."""
        return self.table.schema.field("vector").type.list_size

    def __len__(self) -> int:
        return self.table.count_rows()

    def files(self) -> Iterator[File]:
        """The indexed files, once for each of their segments."""
        names = ["path", "clip", "source", "size", "modified", "digest"]
        query = self.table.search(None).select(names).limit(max(1, len(self)))
        for batch in query.to_batches(4096):
            for row in batch.to_pylist():
                yield File(**{**row, "path": as_named(row["path"]), "source": as_named(row["source"])})

    def add(self, found: Sequence[tuple[File, float, list[Moment]]]) -> None:
        """Write recordings, each with its length in seconds and its moments, in one commit."""
        import pyarrow as pa

        rows = [
            {
                **_row(file),
                "caption": m.caption,
                "start": m.start,
                "end": m.end,
                "duration": duration,
                "confidence": m.confidence,
                "vector": m.vector.astype(np.float32),
                **({"kinds": np.sqrt(m.kinds).astype(np.float32)} if self.labels else {}),
            }
            for file, duration, moments in found
            for m in moments
        ]
        if rows:
            self.table.add(pa.Table.from_pylist(rows, schema=self.table.schema))

    def delete(self, keys: Sequence[str]) -> None:
        """Remove recordings by their keys."""
        for begin in range(0, len(keys), DELETED):
            named = ", ".join(map(quoted, keys[begin : begin + DELETED]))
            self.table.delete(f"concat(path, clip) IN ({named})")

    def update(self, key: str, file: File) -> None:
        """Note that the file `key` has moved, or has another modification time."""
        self.table.update(where=f"concat(path, clip) = {quoted(key)}", values=_row(file))

    def compact(self) -> None:
        """Join the small files that many commits leave, and update the indices."""
        if len(self) >= self.config.approximate:
            from lancedb.index import IvfFlat

            indexed = {column for index in self.table.list_indices() for column in index.columns}
            for column in {"vector", *(["kinds"] if self.labels else [])} - indexed:
                self.table.create_index(column, config=IvfFlat(distance_type="dot"))
        self.table.optimize(cleanup_older_than=KEPT)

    def near(self, vector: np.ndarray, where: str | None, count: int) -> Any:
        """The `count` segments with the largest dot product with `vector` (D_llm,), an Arrow table, nearest first."""
        query = self.table.search(vector.astype(np.float32), vector_column_name="vector").distance_type("dot")
        return self._found(query.nprobes(self.config.probes), where, count, "_distance")

    def heard(self, kinds: np.ndarray, where: str | None, count: int) -> Any:
        """The `count` segments with the largest sum of the roots of the probabilities of `kinds` (C,), 0 or 1."""
        query = self.table.search(kinds.astype(np.float32), vector_column_name="kinds").distance_type("dot")
        return self._found(query.nprobes(self.config.probes), where, count, "_distance")

    def worded(self, query: str, where: str | None, count: int) -> Any:
        """The `count` segments whose captions have words of `query`, best first (BM25)."""
        from lancedb.query import MatchQuery

        return self._found(self.table.search(MatchQuery(query, "caption")), where, count, "_score")

    def _found(self, query: Any, where: str | None, count: int, *more: str) -> Any:
        columns = ["path", "clip", "start", "end", "caption", "confidence", "vector", *more]
        query = query.select([*columns, *(["kinds"] if self.labels else [])]).with_row_id(True)
        return (query.where(where, prefilter=True) if where else query).limit(count).to_arrow()


def as_stored(path: str) -> str:
    """`path` as the table holds it: a byte that is not UTF-8 as a null character, which no path has, and two digits."""
    return re.sub("[\udc80-\udcff]", lambda match: f"\0{ord(match[0]) & 0xFF:02x}", path)


def as_named(path: str) -> str:
    """The path that is stored as `path`."""
    return re.sub("\0([0-9a-f]{2})", lambda match: chr(0xDC00 + int(match[1], 16)), path)


def _row(file: File) -> dict[str, Any]:
    return {**vars(file), "path": as_stored(file.path), "source": as_stored(file.source)}


def quoted(text: str) -> str:
    """`text`, or a path as `as_stored`, as an SQL literal."""
    return "'" + as_stored(text).replace("'", "''") + "'"


def _lancedb() -> Any:
    os.environ.setdefault("LANCE_LOG", "error")  # its warnings are meant for programmers
    return optional("lancedb", "an index of sounds needs LanceDB", "library")
