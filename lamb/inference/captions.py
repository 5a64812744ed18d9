"""Captions and how they are written: the result types, and one writer per format.

A writer is a generator that takes results and yields chunks of text, each as soon as it is known, so that the captions
of hours of sound appear as they are made. Failures (`Caption.error`) appear in json, jsonl and csv; text and subtitles
have no place for them. A new format is one generator and one line in `WRITERS`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..audio.errors import AudioError
    from ..config import DecodeConfig
    from .digest import Heard
    from .generation import Hypothesis

SILENCE = "Silence."  # a caption that is measured, not generated: see lamb.audio.reader.SILENCE_DBFS
UNREADABLE = "(unreadable)"  # the caption of a segment that cannot be decoded


@dataclass(frozen=True)
class Segment:
    """What is heard from `start` to `end` (seconds into the recording); `confidence` is in 0-1."""

    start: float
    end: float
    caption: str
    confidence: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The segment as a JSON object; "confidence" only where it is known."""
        item = {"start": _rounded(self.start, 3), "end": _rounded(self.end, 3), "caption": self.caption}
        sure = _rounded(self.confidence, 4)
        return item if sure is None else {**item, "confidence": sure}


@dataclass(frozen=True)
class Sound:
    """A sound that a caption names: its words, the labels that they may stand for, and how likely it is there."""

    text: str
    labels: tuple[str, ...]
    confidence: float  # 0-1

    def to_dict(self) -> dict[str, Any]:
        """The sound as a JSON object."""
        return {"text": self.text, "labels": list(self.labels), "confidence": _rounded(self.confidence, 4)}


@dataclass(frozen=True)
class Caption:
    """What is heard in one recording, or why it could not be captioned (`error`).

    `duration` is in seconds, `score` the mean log probability of a token, `confidence` in 0-1. `captions` and
    their `scores` are the n best, best first (`text` is the first); both may stay empty where one is all.
    `sounds` are those that `text` names, each with a confidence of its own, of a model that weighs them.
    """

    file: str
    duration: float | None = None
    text: str = ""
    score: float | None = None
    confidence: float | None = None
    captions: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    segments: tuple[Segment, ...] = ()
    sounds: tuple[Sound, ...] = ()
    error: str | None = None
    damage: tuple[str, ...] = ()  # what of it could not be decoded

    @classmethod
    def of(cls, file: str, duration: float, hypotheses: Sequence[Hypothesis], options: DecodeConfig) -> Caption:
        """The caption of a recording from its hypotheses, best first; without any, a recording of silence."""
        if not hypotheses:
            return cls(file, duration, SILENCE, 0.0, 1.0, (SILENCE,), (0.0,))
        from .confidence import confidence_of

        best = hypotheses[0]
        return cls(
            file=file,
            duration=duration,
            text=best.text,
            score=best.score,
            confidence=confidence_of(best, options),
            captions=tuple(h.text for h in hypotheses),
            scores=tuple(h.score for h in hypotheses),
            sounds=best.sounds,
        )

    @classmethod
    def failed(cls, file: str, error: AudioError) -> Caption:
        """In place of the caption of a recording that cannot be read: the reason and the remedy."""
        return cls(file, error=f"{error.problem}; {error.remedy}")

    @property
    def ok(self) -> bool:
        """Whether there is a caption."""
        return self.error is None

    def n_best(self) -> list[tuple[str, float | None]]:
        """(caption, score) pairs, best first; never empty."""
        if len(self.captions) <= 1:
            return [(self.text, self.score)]
        scores = [*self.scores, *[None] * len(self.captions)]
        return list(zip(self.captions, scores, strict=False))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that `lamb caption` prints; numbers that are not finite become null."""
        if self.error is not None:
            return {"file": self.file, "error": self.error}
        n_best = self.n_best()
        scores = {"scores": [_rounded(score, 4) for _, score in n_best]} if len(n_best) > 1 else {}
        return {
            "file": self.file,
            "duration": _rounded(self.duration, 3),
            "caption": self.text,
            "score": _rounded(self.score, 4),
            "confidence": _rounded(self.confidence, 4),
            "captions": [text for text, _ in n_best],
            **scores,
            **({"sounds": [sound.to_dict() for sound in self.sounds]} if self.sounds else {}),
            "segments": [segment.to_dict() for segment in self.segments],
            **({"digest": [heard.to_dict() for heard in self.digest()]} if self.digest() else {}),
            **({"damage": list(self.damage)} if self.damage else {}),
        }

    def digest(self) -> list[Heard]:
        """The sounds of a long recording with segments, see `lamb.inference.digest`; empty for any other."""
        from .digest import LONG, digest

        return digest(self.segments) if self.segments and (self.duration or 0.0) >= LONG else []


class Timeline(Iterator[Segment]):
    """An iterator over the segments of a recording, each as soon as it is final.

    After the last one, `caption` is the caption of the whole recording, with all segments in it.
    """

    def __init__(self, file: str, segments: Generator[Segment, None, Caption]) -> None:
        self.file = file
        self.caption: Caption | None = None
        self._segments = segments
        self._begun: list[Segment] = []

    def __next__(self) -> Segment:
        if self._begun:
            return self._begun.pop()
        try:
            return next(self._segments)
        except StopIteration as end:
            self.caption = self.caption or end.value
            raise

    def begin(self) -> None:
        """Find the first segment now, so that a recording that cannot be read raises its error here."""
        self._begun = [next(self)]

    def finish(self) -> Caption:
        """Go through the rest of the recording and return the caption of the whole."""
        for _ in self:
            pass
        assert self.caption is not None
        return self.caption

    def close(self) -> None:
        """Stop here; the rest of the recording is not read."""
        self._segments.close()


Result = Caption | Timeline
Writer = Callable[[Iterable[Result]], Iterator[str]]


def write_text(results: Iterable[Result]) -> Iterator[str]:
    """One line per caption, after `FILE<TAB>` if there are several files, and `[START - END] ` for a segment.

    After several segments, a last line without times holds the caption of the whole recording. After those of a
    recording of ten minutes or more, there is one line for each sound instead (`lamb.inference.digest`).
    """
    results, several = _several(results)
    for result in results:
        name = f"{one_line(result.file)}\t" if several else ""
        for s in _segments(result):
            yield f"{name}{span(s.start, s.end)} {one_line(s.caption)}\n"
        whole = _whole(result)
        if whole.digest():
            from .digest import lines

            yield "".join(f"{name}{one_line(line)}\n" for line in lines(whole.segments))
        elif whole.ok and len(whole.segments) != 1:
            yield "".join(f"{name}{one_line(text)}\n" for text, _ in whole.n_best())


def write_json(results: Iterable[Result]) -> Iterator[str]:
    """One array of all results, one object per line; it is valid JSON once the last result is written."""
    before = "[\n"
    for result in results:
        yield before + _json(_whole(result))
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def write_jsonl(results: Iterable[Result]) -> Iterator[str]:
    """An object a line (JSON Lines)."""
    for result in results:
        yield _json(_whole(result)) + "\n"


def write_csv(results: Iterable[Result]) -> Iterator[str]:
    """One row per caption under `CSV_COLUMNS`: per file, per segment, or per caption of the n best.

    The duration is left empty where segments are written before the end of the recording is known.

    A spreadsheet would run a cell that begins with one of `=+-@` as a formula, so such a path gets `./` in
    front (it still names the same file) and such a text an apostrophe. `-`, standard input, stays as it is.
    """
    yield _csv_row(CSV_COLUMNS)
    for result in results:
        name = result.file if result.file == "-" else _FORMULA.sub(r"./\g<0>", result.file)
        duration = None if isinstance(result, Timeline) else result.duration
        rows: Iterator[list[Any]] = ([s.start, s.end, s.caption, None, s.confidence] for s in _segments(result))
        if isinstance(result, Caption) and result.error is not None:
            yield _csv_row([name, *[None] * 6, _FORMULA.sub(r"'\g<0>", result.error)])
        elif isinstance(result, Caption) and not result.segments:
            n_best = [[0.0, duration, text, score, None] for text, score in result.n_best()]
            n_best[0][-1] = result.confidence
            rows = iter(n_best)
        for start, end, text, score, sure in rows:
            times = [_rounded(seconds, 3) for seconds in (duration, start, end)]
            text = _FORMULA.sub(r"'\g<0>", text)
            yield _csv_row([name, *times, text, _rounded(score, 4), _rounded(sure, 4), None])


def write_srt(results: Iterable[Result]) -> Iterator[str]:
    """SubRip subtitles, one numbered cue per segment; `FILE: ` precedes each text if there are several files."""
    results, several = _several(results)
    number = 0
    for result in results:
        for cue in _cues(result):
            number += 1
            times = f"{timestamp(cue.start, ',')} --> {timestamp(cue.end, ',')}"
            text = f"{result.file}: {cue.caption}" if several else cue.caption
            yield f"{number}\n{times}\n{_no_arrow(text)}\n\n"


def write_vtt(results: Iterable[Result]) -> Iterator[str]:
    """WebVTT subtitles, one numbered cue per segment; a NOTE with the name of a file precedes its cues."""
    yield "WEBVTT\n\n"
    number = 0
    for result in results:
        for k, cue in enumerate(_cues(result)):
            number += 1
            note = "" if k else f"NOTE {_no_arrow(result.file)}\n\n"
            text = one_line(cue.caption).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            yield f"{note}{number}\n{timestamp(cue.start)} --> {timestamp(cue.end)}\n{text}\n\n"


def write_audacity(results: Iterable[Result]) -> Iterator[str]:
    """Labels for Audacity (File > Import > Labels): START<TAB>END<TAB>TEXT, with `FILE: ` before TEXT if several."""
    results, several = _several(results)
    for result in results:
        for cue in _cues(result):
            text = f"{result.file}: {cue.caption}" if several else cue.caption
            yield f"{cue.start:.6f}\t{cue.end:.6f}\t{one_line(text)}\n"


def write_raven(results: Iterable[Result]) -> Iterator[str]:
    """A selection table for Raven, a row a segment, numbered through; its frequencies are RAVEN_BAND."""
    yield "\t".join(RAVEN_COLUMNS) + "\n"
    number = 0
    for result in results:
        for cue in _cues(result):
            number += 1
            times = f"{cue.start:.6f}\t{cue.end:.6f}"
            sure = "" if cue.confidence is None else f"{cue.confidence:.4f}"
            low, high = RAVEN_BAND
            file = one_line(result.file)
            row = f"{number}\tSpectrogram 1\t1\t{file}\t{times}\t{low}\t{high}\t{one_line(cue.caption)}\t{sure}"
            yield row + "\n"


WRITERS: dict[str, Writer] = {
    "text": write_text,
    "json": write_json,
    "jsonl": write_jsonl,
    "csv": write_csv,
    "srt": write_srt,
    "vtt": write_vtt,
    "audacity": write_audacity,
    "raven": write_raven,
}
RAVEN_BAND = (0, 8000)  # Hz: a caption is of all frequencies that the bundled model hears
RAVEN_COLUMNS = (
    "Selection",
    "View",
    "Channel",
    "Begin Path",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Annotation",
    "Confidence",
)
CSV_COLUMNS = ("file", "duration", "start", "end", "caption", "score", "confidence", "error")


def wanted(
    min_confidence: float = 0.0, only: Sequence[str] = (), ignore: Sequence[str] = ()
) -> Callable[[str, float | None], bool]:
    """A function that tells, from a caption and its confidence, whether it is wanted.

    Args:
        min_confidence: captions with a lower confidence are not wanted; those without a confidence are.
        only: if not empty, a caption must contain one of these words; any ending may follow.
        ignore: captions that contain one of these words are not wanted.
    """
    needed, unwanted = (
        re.compile("|".join(rf"\b{re.escape(word)}" for word in words) or r"(?!)", re.IGNORECASE)
        for words in (only, ignore)
    )

    def is_wanted(text: str, confidence: float | None) -> bool:
        sure = confidence is None or confidence >= min_confidence
        return sure and (not only or needed.search(text) is not None) and unwanted.search(text) is None

    return is_wanted


def select(results: Iterable[Result], is_wanted: Callable[[str, float | None], bool]) -> Iterator[Result]:
    """The results with a wanted caption; of timelines, the wanted segments. Failures and timelines always stay."""

    def segments(result: Timeline) -> Generator[Segment, None, Caption]:
        for segment in result:
            if is_wanted(segment.caption, segment.confidence):
                yield segment
        whole = result.finish()
        return replace(whole, segments=tuple(s for s in whole.segments if is_wanted(s.caption, s.confidence)))

    for result in results:
        if isinstance(result, Timeline):
            yield Timeline(result.file, segments(result))
        elif not result.ok or is_wanted(result.text, result.confidence):
            yield result


def timestamp(seconds: float, point: str = ".") -> str:
    """Seconds as `HH:MM:SS.mmm`, `point` before the milliseconds; hours may take more than two digits."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"


def span(start: float, end: float) -> str:
    """Two times in seconds as `[MM:SS.t - MM:SS.t]`, with hours in front where there are any."""

    def clock(seconds: float) -> str:
        minutes, tenths = divmod(round(seconds * 10), 600)
        hours = f"{minutes // 60}:" if minutes >= 60 else ""
        return f"{hours}{minutes % 60:02}:{tenths // 10:02}.{tenths % 10}"

    return f"[{clock(start)} - {clock(end)}]"


def one_line(text: str) -> str:
    """`text` with control characters and line separators written out, a newline as `\\n`."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FORMULA = re.compile(r"\A[=+\-@\t\r]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _several(results: Iterable[Result]) -> tuple[Iterator[Result], bool]:
    """The results, and whether there are several; the first one is held back until the second is known."""
    results = iter(results)
    first = list(islice(results, 2))
    return chain(first, results), len(first) > 1


def _segments(result: Result) -> Iterable[Segment]:
    return result if isinstance(result, Timeline) else result.segments


def _whole(result: Result) -> Caption:
    return result.finish() if isinstance(result, Timeline) else result


def _cues(result: Result) -> Iterator[Segment]:
    """The segments, or one that spans the file; none for a failure. Every cue lasts at least a millisecond."""
    segments = _segments(result)
    if isinstance(result, Caption) and result.ok:
        segments = result.segments or (Segment(0.0, result.duration or 0.0, result.text),)
    for s in segments:
        yield replace(s, end=max(s.end, s.start + 0.001))


def _rounded(number: float | None, digits: int) -> float | None:
    """`number` rounded; None for what JSON cannot hold (NaN and infinity)."""
    return round(float(number), digits) if number is not None and math.isfinite(number) else None


def _json(result: Caption) -> str:
    """One line of JSON, where a lone surrogate (a byte of a name that is not UTF-8) is escaped."""
    line = json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False)
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


def _csv_row(cells: Iterable[object]) -> str:
    """One line of CSV, quoted where needed."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _no_arrow(text: str) -> str:
    """`text` in one line without `-->`, which in a subtitle file would be read as times."""
    return re.sub("-{2,}>", "->", one_line(text))
