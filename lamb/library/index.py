"""Bringing an index up to date: what is new or changed is heard, what is gone is taken out. [O]

A file is known by its size and time; where they differ, by its content, so that one that was copied over, touched or
moved is not heard again.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from ..config import DecodeConfig
from ..inference.engine import Engine
from ..inference.recording import Source
from .listing import Listed, digest
from .moments import Heard, hear
from .store import File, Store


@dataclass
class Tally:
    """What a run has done so far, in recordings."""

    listed: int = 0
    unchanged: int = 0
    indexed: int = 0  # new, or of another content than before
    moved: int = 0  # of the same content as one that is gone: its segments are kept
    removed: int = 0
    segments: int = 0  # written in this run
    seconds: float = 0.0  # of sound, heard in this run
    failed: dict[str, str] = field(default_factory=dict)  # recording: why it could not be indexed

    @property
    def done(self) -> int:
        """Recordings that are dealt with, of those `listed`."""
        return self.unchanged + self.indexed + self.moved + len(self.failed)


class Update:
    """One run over the recordings `found` of `source` (its name in the index), which writes to `store`."""

    def __init__(self, store: Store, source: str, found: dict[str, Listed], watch: Callable[[Tally], None]):
        self.store, self.source, self.found, self.watch = store, source, found, watch
        self.known = {file.key: file for file in store.files()}
        self.gone = {key: f for key, f in self.known.items() if f.source == source and key not in found}
        self.tally = Tally(listed=len(found))

    def changed(self) -> Iterator[tuple[File, Listed]]:
        """What is to be heard; what needs no hearing is settled on the way."""
        elsewhere = {(file.digest, file.clip): key for key, file in self.gone.items()}
        for key, item in self.found.items():
            old = self.known.get(key)
            try:
                status = os.stat(item.path)
                if old and (old.size, old.modified) == (status.st_size, status.st_mtime_ns):
                    self.tally.unchanged += 1
                    continue
                content = digest(item.path)
            except (OSError, ValueError) as error:  # ValueError: a path with a null character
                self._fail(key, getattr(error, "strerror", None) or str(error))
                continue
            file = File(item.path, item.clip, self.source, status.st_size, status.st_mtime_ns, content)
            if old and old.digest == content:  # copied over, or only touched
                self.store.update(key, file)
                self.tally.unchanged += 1
            elif not old and (before := elsewhere.pop((content, file.clip), None)):
                self.store.update(before, file)
                del self.gone[before]
                self.tally.moved += 1
            else:
                yield file, item

    def hear(
        self, todo: Iterable[tuple[File, Listed]], engine: Engine, options: DecodeConfig, silence: np.ndarray
    ) -> None:
        """Hear what is `todo`, and write it group by group; see `moments.hear` for `options` and `silence`."""
        waiting: deque[tuple[File, Listed]] = deque()

        def sources() -> Iterator[Source]:
            for file, item in todo:
                waiting.append((file, item))
                yield item.to_clip() if item.clip else item.path

        groups = count(1)
        for heard in hear(engine, sources(), options, self.store.config.group, silence):
            self._write([(*waiting.popleft(), recording) for recording in heard])
            if next(groups) % self.store.config.compact == 0:
                self.store.compact()
            self.watch(self.tally)

    def finish(self) -> Tally:
        """Take out what is gone, and bring the indices of the table up to date."""
        self.store.delete(list(self.gone))
        self.tally.removed = len(self.gone)
        self.store.compact()
        self.watch(self.tally)
        return self.tally

    def _write(self, found: list[tuple[File, Listed, Heard]]) -> None:
        rows = []
        for file, item, recording in found:
            if recording.error is not None:
                self._fail(file.key, f"{recording.error.problem}; {recording.error.remedy}")
                continue
            for moment in recording.moments:  # times are the recording's, not the clip's
                moment.start, moment.end = moment.start + item.start, moment.end + item.start
            rows.append((file, recording.duration, recording.moments))
            self.tally.indexed += 1
            self.tally.segments += len(recording.moments)
            self.tally.seconds += recording.duration
        self.store.delete([file.key for file, _, _ in rows if file.key in self.known])
        self.store.add(rows)

    def _fail(self, key: str, problem: str) -> None:
        """Take note of what cannot be read; what was known of it is of another content."""
        if key in self.known:
            self.store.delete([key])
        self.tally.failed[key] = problem
