"""The one door to a collection of sounds that can be searched: `Library`. [O]

    index    recording -> segments -> caption, and the mean of z_a as a vector of length 1
    search   cos(query, segment) in that space, see `query`, + w * BM25(query, caption) / the largest BM25 of all
    like     cos(recording, segment), the mean of a recording's z_a in place of the query

The two scores are added, not their ranks: a small model's captions are few and alike, and equal ranks for half a
collection say less than a cosine (benchmarks/search.py has reciprocal rank fusion beside it).
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..config import LibraryConfig
from ..inference.captioner import Captioner
from ..inference.captions import SILENCE
from ..inference.recording import Source
from .listing import Listed, digest, listed
from .moments import hear
from .query import Words, space
from .store import File, LibraryError, Store, quoted


@dataclass(frozen=True)
class Match:
    """A segment that was found: seconds `start` to `end` of `file`, its caption, and how well it fits."""

    file: str
    start: float
    end: float
    caption: str
    confidence: float | None
    score: float  # a cosine, and what the words of the caption add to it; larger fits better

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that `lamb search` prints."""
        return {
            "file": self.file,
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "caption": self.caption,
            "confidence": None if self.confidence is None else round(self.confidence, 4),
            "score": round(self.score, 6),
        }


@dataclass
class Tally:
    """What a run of `index` has done so far, in recordings."""

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


class Library:
    """An index of sounds in a folder of its own.

    >>> library = Library("sounds.lamb")  # doctest: +SKIP
    >>> library.index("field/")  # doctest: +SKIP
    >>> library.search("glass breaks in a kitchen")[0].file  # doctest: +SKIP
    'field/2026-11-03.flac'
    """

    def __init__(
        self,
        folder: str | Path,
        model: str | Captioner | None = None,
        device: str | None = None,
        config: LibraryConfig | None = None,
    ):
        """
        Args:
            folder: of the index; it is made by the first call of `index`.
            model: a captioner, or what `Captioner.load` takes; None: that of the index, or the bundled one.
            device: see `Captioner.load`.
        """
        self.folder, self.config = Path(folder), config or LibraryConfig()
        self._model, self._device = model, device
        self._store: Store | None = None
        self._words: Words | None = None

    # ---- making it ---------------------------------------------------------------------------------------------------

    def index(
        self, source: str | Path, watch: Callable[[Tally], None] = lambda tally: None, beams: int | None = None
    ) -> Tally:
        """Bring the index up to date with the folder or manifest `source`: what is new or changed is heard, what is
        gone is taken out.

        Args:
            source: recordings below a folder, or the clips of a manifest (JSONL, CSV).
            watch: is called after every group of recordings.
            beams: of the search for captions; 1 is the fastest; None: the model's own number.

        A recording that cannot be read is in `failed`, and tried again by the next run. A run that was ended, in
        whatever way, is gone on with by the next one. Raises LibraryError, and what a manifest may raise.
        """
        name, found = listed(str(source))
        if not (self.folder / "segments.lance").is_dir():
            captioner = self.captioner
            model = captioner.name if hasattr(captioner, "name") else str(self._model or "tiny")
            dim = captioner.model.llm.dim
            self._store = Store.create(self.folder, dim, model, space(captioner.model), self.config)
        store = self.store
        with store.writing():
            return self._update(store, name, found, watch, beams)

    def _update(
        self,
        store: Store,
        name: str,
        found: dict[str, Listed],
        watch: Callable[[Tally], None],
        beams: int | None,
    ) -> Tally:
        known = {file.key: file for file in store.files()}
        gone = {key: file for key, file in known.items() if file.source == name and key not in found}
        tally = Tally(listed=len(found))
        todo = self._changed(store, name, found, known, gone, tally)
        groups = 0
        while group := list(islice(todo, self.config.group)):
            self._hear(store, group, known, tally, beams)
            groups += 1
            if groups % self.config.compact == 0:
                store.compact()
            watch(tally)
        store.delete(list(gone))
        tally.removed = len(gone)
        store.compact()
        watch(tally)
        return tally

    def _changed(
        self,
        store: Store,
        name: str,
        found: dict[str, Listed],
        known: Mapping[str, File],
        gone: dict[str, File],
        tally: Tally,
    ) -> Iterator[tuple[File, Listed]]:
        """What is to be heard; what needs no hearing is settled on the way."""
        elsewhere = {(file.digest, file.clip): key for key, file in gone.items()}
        for key, item in found.items():
            old = known.get(key)
            try:
                status = os.stat(item.path)
                if old and (old.size, old.modified) == (status.st_size, status.st_mtime_ns):
                    tally.unchanged += 1
                    continue
                file = File(item.path, item.clip, name, status.st_size, status.st_mtime_ns, digest(item.path))
            except (OSError, ValueError) as error:
                self._fail(store, key, getattr(error, "strerror", None) or str(error), known, tally)
                continue
            if old and old.digest == file.digest:  # copied over, or only touched
                store.update(key, file)
                tally.unchanged += 1
            elif not old and (before := elsewhere.pop((file.digest, file.clip), None)):
                store.update(before, file)
                del gone[before]
                tally.moved += 1
            else:
                yield file, item

    def _hear(
        self,
        store: Store,
        group: list[tuple[File, Listed]],
        known: Mapping[str, File],
        tally: Tally,
        beams: int | None,
    ) -> None:
        """Hear some recordings and write what is heard."""
        captioner = self.captioner
        options = replace(captioner.options, window=self.config.window, beams=beams or captioner.options.beams)
        silence = self.words.vector(SILENCE)
        sources = [_source(item) for _, item in group]
        [heard] = hear(captioner.engine, sources, options, len(group), silence)
        rows = []
        for (file, item), recording in zip(group, heard, strict=True):
            if recording.error is not None:
                problem = f"{recording.error.problem}; {recording.error.remedy}"
                self._fail(store, file.key, problem, known, tally)
                continue
            for moment in recording.moments:  # times are the recording's, not the clip's
                moment.start, moment.end = moment.start + item.start, moment.end + item.start
            rows.append((file, recording.duration, recording.moments))
            tally.indexed += 1
            tally.segments += len(recording.moments)
            tally.seconds += recording.duration
        store.delete([file.key for file, _, _ in rows if file.key in known])
        store.add(rows)

    def _fail(self, store: Store, key: str, problem: str, known: Mapping[str, File], tally: Tally) -> None:
        """Take note of what cannot be read; what was known of it is of another content."""
        if key in known:
            store.delete([key])
        tally.failed[key] = problem

    # ---- searching it ------------------------------------------------------------------------------------------------

    def search(self, query: str, limit: int = 20, **where: Any) -> list[Match]:
        """The segments that fit the words `query` best, best first; the keywords are those of `condition`."""
        if not query.strip():
            raise LibraryError("nothing is searched for", "say in words what is to be heard")
        return self.found(self.store, self.words.vector(query), query, condition(**where), limit)

    def found(self, store: Store, vector: np.ndarray, query: str, where: str | None, limit: int) -> list[Match]:
        """What `search` finds once the query is a `vector` (D_llm,) of length 1 too."""
        count = max(limit, self.config.candidates)
        worded, near = store.worded(query, where, count), store.near(vector, where, count)
        fits = worded["_score"].to_numpy()
        shares = self.config.words * fits / fits.max(initial=1e-9)
        vectors = worded["vector"].combine_chunks().flatten().to_numpy().reshape(len(fits), len(vector))  # (n, D_llm)
        scores = dict(zip(worded["_rowid"].to_pylist(), vectors @ vector + shares, strict=True))
        for row, distance in zip(near["_rowid"].to_pylist(), near["_distance"].to_pylist(), strict=True):
            scores.setdefault(row, 1.0 - distance)
        best = sorted(scores, key=lambda row: -scores[row])[:limit]
        columns = ["_rowid", "path", "start", "end", "caption", "confidence"]
        rows = {row["_rowid"]: row for found in (worded, near) for row in found.select(columns).to_pylist()}
        return [_match(rows[row], float(scores[row])) for row in best]

    def like(self, source: Source, limit: int = 20, **where: Any) -> list[Match]:
        """The segments that sound most like the recording `source`, best first; the keywords are those of `condition`.

        Raises AudioError for what cannot be read, LibraryError for silence.
        """
        captioner = self.captioner
        options = replace(captioner.options, window=self.config.window)
        [[heard]] = hear(captioner.engine, [source], options, 1, self.words.vector(SILENCE))
        if heard.error is not None:
            raise heard.error
        sounds = [(m.end - m.start) * m.vector for m in heard.moments if m.caption != SILENCE]
        if not sounds:
            raise LibraryError("nothing is to be heard in it", "give a recording with some sound")
        vector = np.sum(sounds, axis=0)
        found = self.store.near(vector / np.linalg.norm(vector), condition(**where), limit).to_pylist()
        return [_match(row, 1 - row["_distance"]) for row in found]

    # ---- what it needs -----------------------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The table. Raises LibraryError where there is none, or one of another model."""
        if self._store is None:
            self._store = Store.open(self.folder, self.config)
        return self._store

    @property
    def captioner(self) -> Captioner:
        """The model, loaded when it is first needed; it must be the one of the index."""
        if not isinstance(self._model, Captioner):
            exists = (self.folder / "segments.lance").is_dir()
            name = self._model or (self.store.model if exists else "tiny")
            loaded = Captioner.load(name, device=self._device)
            if exists and space(loaded.model) != self.store.space:
                remedy = f"give the same --model as then, which was called {self.store.model!r}, or make the index anew"
                raise LibraryError(f"{self.folder}: was indexed with another model than {name}", remedy)
            self._model = loaded
        return self._model

    @property
    def words(self) -> Words:
        """What turns a query into a vector."""
        if self._words is None:
            self._words = Words(self.captioner.model)
        return self._words


def condition(
    *,
    folder: str | None = None,
    min_confidence: float | None = None,
    since: int | None = None,
    until: int | None = None,
    after: float | None = None,
    before: float | None = None,
) -> str | None:
    """What segments must be, as a condition of SQL; None for all of them.

    Args:
        folder: only recordings below it.
        min_confidence: of the caption.
        since, until: when the file was last written, in nanoseconds since 1970.
        after, before: seconds into the recording.
    """
    parts = []
    if folder is not None:
        parts.append(f"starts_with(path, {quoted(os.path.join(os.path.abspath(folder), ''))})")
    if min_confidence is not None:
        parts.append(f"confidence >= {float(min_confidence)}")
    if since is not None:
        parts.append(f"modified >= {int(since)}")
    if until is not None:
        parts.append(f"modified <= {int(until)}")
    if after is not None:
        parts.append(f'"end" > {float(after)}')
    if before is not None:
        parts.append(f'"start" < {float(before)}')
    return " AND ".join(parts) or None


def _source(item: Listed) -> Source:
    return item.path if not item.clip else item.to_clip()


def _match(row: dict[str, Any], score: float) -> Match:
    return Match(row["path"], row["start"], row["end"], row["caption"], row["confidence"], score)
