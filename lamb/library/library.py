"""The public interface of a searchable collection of sounds: `Library`. [O]

    index    recording -> segments -> caption, and the mean of z_a as a vector of length 1
    search   cos(query, segment) in that space, see `query`, + w * BM25(query, caption) / the largest BM25 of all
             + k * the mean over the kinds of sound that the query names of sqrt(p(kind | segment))
    like     cos(recording, segment), the mean of a recording's z_a in place of the query

p is what the label heads of the encoder say; without them, or for a query of other words, the last term is 0. Of a
query of two kinds the root favours segments with both. The scores themselves are added, not their ranks: the captions
of a small model are few and alike, and equal ranks for half of a collection say less than a cosine
(benchmarks/search.py compares reciprocal rank fusion).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..config import DEFAULT_MODEL, LibraryConfig
from ..inference.captioner import Captioner
from ..inference.captions import SILENCE
from ..inference.recording import Source
from .index import Tally, Update
from .listing import listed
from .moments import hear
from .query import Words, kinds
from .store import TABLE, LibraryError, Store, as_named, quoted


@dataclass(frozen=True)
class Match:
    """A segment that was found: seconds `start` to `end` of `file`, its caption and its score."""

    file: str
    start: float
    end: float
    caption: str
    confidence: float | None
    score: float  # cosine, share of the caption's words and the named kinds of sound; larger is better

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
        threads: int | None = None,
    ):
        """
        Args:
            folder: of the index; it is made by the first call of `index`.
            model: a captioner, or an argument of `Captioner.load`; None: the model of the index, or the bundled one.
            device, threads: see `Captioner.load`.
        """
        self.folder, self.config = Path(folder), config or LibraryConfig()
        self._model, self._device, self._threads = model, device, threads

    # ---- making it ---------------------------------------------------------------------------------------------------

    def index(
        self, source: str | Path, watch: Callable[[Tally], None] = lambda tally: None, beams: int | None = None
    ) -> Tally:
        """Update the index to the folder or manifest `source`: add what is new or changed, and remove what is gone.

        Args:
            source: recordings below a folder, or the clips of a manifest (JSONL, CSV).
            watch: called after every group of recordings.
            beams: width of the beam search for captions; 1 is the fastest; None: the number of the model.

        A recording that cannot be read is listed in `Tally.failed`, and the next run tries it again. The next run also
        continues a run that was interrupted. Raises LibraryError or ManifestError.
        """
        source_name, found = listed(str(source))
        if not self._exists():
            runtime = self.captioner.engine.runtime
            name = self._model if isinstance(self._model, str) else DEFAULT_MODEL
            width = runtime.embed([0]).shape[1]
            self.store = Store.create(self.folder, width, runtime.labels, name, runtime.space, self.config)
        with self.store.writing():
            update = Update(self.store, source_name, found, watch)
            todo = update.changed()
            if (first := next(todo, None)) is not None:  # else there is no need for a model
                captioner = self.captioner
                options = replace(captioner.options, window=self.config.window, beams=beams or captioner.options.beams)
                update.hear(chain([first], todo), captioner.engine, options, self.words.vector(SILENCE))
            return update.finish()

    # ---- searching it ------------------------------------------------------------------------------------------------

    def search(self, query: str, limit: int = 20, **where: Any) -> list[Match]:
        """The segments that match the words of `query` best, best first; for the keywords see `condition`."""
        if not query.strip():
            raise LibraryError("nothing is searched for", "say in words what is to be heard")
        return self.found(self.store, self.words.vector(query), query, condition(**where), limit)

    def found(self, store: Store, vector: np.ndarray, query: str, where: str | None, limit: int) -> list[Match]:
        """The result of `search` for the words of `query` and their `vector` (D_llm,), which has length 1."""
        count, named = max(limit, self.config.candidates), kinds(query, store.labels)  # (K, C)
        lists = [store.worded(query, where, count), store.near(vector, where, count)]
        if len(named):
            lists.append(store.heard(named.max(0), where, count))
        fits = lists[0]["_score"].to_numpy()
        shares = self.config.words * fits / fits.max(initial=1e-9)
        scores: dict[int, float] = {}
        for k, found in enumerate(lists):
            values = _array(found["vector"]) @ vector + (shares if k == 0 else 0)
            if len(named):
                values = values + self.config.kinds * np.sqrt(np.square(_array(found["kinds"])) @ named.T).mean(1)
            for row, value in zip(found["_rowid"].to_pylist(), values.tolist(), strict=True):
                scores.setdefault(row, value)
        best = sorted(scores, key=lambda row: -scores[row])[:limit]
        columns = ["_rowid", "path", "start", "end", "caption", "confidence"]
        rows = {row["_rowid"]: row for found in lists for row in found.select(columns).to_pylist()}
        return [_match(rows[row], scores[row]) for row in best]

    def like(self, source: Source, limit: int = 20, **where: Any) -> list[Match]:
        """The segments that sound most like the recording `source`, best first; for the keywords see `condition`.

        Raises AudioError for a recording that cannot be read, LibraryError for silence.
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

    @cached_property
    def store(self) -> Store:
        """The table, opened at the first use. Raises LibraryError if there is none."""
        return Store.open(self.folder, self.config)

    @cached_property
    def captioner(self) -> Captioner:
        """The model, loaded at the first use. Raises LibraryError if the index was made with another one."""
        model = self._model or (self.store.model if self._exists() else DEFAULT_MODEL)
        given = model if isinstance(model, Captioner) else None
        captioner = given or Captioner.load(str(model), self._device, threads=self._threads)
        runtime = captioner.engine.runtime
        if self._exists() and (
            runtime.space != self.store.space
            or (self.store.labels and list(runtime.labels) != self.store.labels)  # an older index knows none
        ):
            remedy = f"give the same --model as then, which was called {self.store.model!r}, or make the index anew"
            raise LibraryError(f"{self.folder}: was indexed with another model", remedy)
        return captioner

    @cached_property
    def words(self) -> Words:
        """The conversion of queries into vectors."""
        return Words(self.captioner.engine.runtime)

    def _exists(self) -> bool:
        return (self.folder / f"{TABLE}.lance").is_dir()


def condition(
    *,
    folder: str | None = None,
    min_confidence: float | None = None,
    since: int | None = None,
    until: int | None = None,
    after: float | None = None,
    before: float | None = None,
) -> str | None:
    """A filter for segments as an SQL condition; None for all of them.

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


def _array(column: Any) -> np.ndarray:
    """A column of lists of one length as (rows, length)."""
    return column.combine_chunks().flatten().to_numpy().reshape(len(column), column.type.list_size)


def _match(row: dict[str, Any], score: float) -> Match:
    return Match(as_named(row["path"]), row["start"], row["end"], row["caption"], row["confidence"], score)
