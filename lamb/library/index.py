"""Updating an index: new and changed recordings are encoded and captioned, and deleted ones are removed. [O]

A file is recognised by its size and modification time or, if they differ, by its content. So a file that was replaced
by a copy, touched or moved is not encoded again.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import tee

import numpy as np

from ..audio.files import SPECIAL, is_special
from ..config import DecodeConfig
from ..inference.engine import Engine
from .listing import Listed, digest
from .moments import Heard, hear
from .store import File, Store


@dataclass
class Tally:
    """Progress of a run, in recordings."""

    listed: int = 0
    unchanged: int = 0
    indexed: int = 0  # new, or with new content
    moved: int = 0  # same content as a file that is gone, whose segments are kept
    removed: int = 0
    segments: int = 0  # written in this run
    seconds: float = 0.0  # of sound, indexed in this run
    failed: dict[str, str] = field(default_factory=dict)  # recording: the problem and the remedy

    @property
    def done(self) -> int:
        """Number of recordings that are finished, out of those `listed`."""
        return self.unchanged + self.indexed + self.moved + len(self.failed)


class Update:
    """One run over the recordings `found` in `source` (its name in the index), which writes to `store`."""

    def __init__(self, store: Store, source: str, found: dict[str, Listed], watch: Callable[[Tally], None]):
        self.store, self.source, self.found, self.watch = store, source, found, watch
        self.known = {file.key: file for file in store.files()}
        self.gone = {key: f for key, f in self.known.items() if f.source == source and key not in found}
        self.tally = Tally(listed=len(found))

    def changed(self) -> Iterator[tuple[File, Listed]]:
        """The recordings that must be encoded; all others are settled on the way."""
        elsewhere = {(file.digest, file.clip): key for key, file in self.gone.items()}
        for key, item in self.found.items():
            old = self.known.get(key)
            if is_special(item.path):  # reading a pipe or a device might never end
                self._fail(key, "; ".join(SPECIAL))
                continue
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
            if old and old.digest == content:  # replaced by a copy, or only touched
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
        """Encode and caption the recordings `todo`, and write them group by group; see `moments.hear`."""
        todo, waiting = tee(todo)
        sources = (item.to_clip() if item.clip else item.path for _, item in todo)
        groups = hear(engine, sources, options, self.store.config.group, silence)
        for number, heard in enumerate(groups, 1):
            self._write([(*next(waiting), recording) for recording in heard])
            if number % self.store.config.compact == 0:
                self.store.compact()
            self.watch(self.tally)

    def finish(self) -> Tally:
        """Remove what is gone, and update the indices of the table."""
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
            for moment in recording.moments:  # in the time of the recording, not of the clip
                moment.start, moment.end = moment.start + item.start, moment.end + item.start
            rows.append((file, recording.duration, recording.moments))
            self.tally.indexed += 1
            self.tally.segments += len(recording.moments)
            self.tally.seconds += recording.duration
        self.store.delete([file.key for file, _, _ in rows if file.key in self.known])
        self.store.add(rows)

    def _fail(self, key: str, problem: str) -> None:
        """Note that a recording cannot be read. Its segments in the index are removed, as its content has changed."""
        if key in self.known:
            self.store.delete([key])
        self.tally.failed[key] = problem
