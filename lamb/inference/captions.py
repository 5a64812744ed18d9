"""The result types, and one writer for each output format.

A writer turns results into an iterator over chunks of text, each available as soon as it is known, so that the captions
of hours of sound appear as they are generated. Failures (`Caption.error`) appear in json, jsonl and csv; text and
subtitles have no place for them. A new format is one writer and one line in `WRITERS`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..audio.errors import AudioError
    from ..config import DecodeConfig
    from .digest import Heard
    from .generation import Hypothesis

SILENCE = "Silence."  # not generated but measured, see lamb.audio.reader.SILENCE_DBFS
UNREADABLE = "(unreadable)"  # the caption of a segment that cannot be decoded


@dataclass(frozen=True)
class Segment:
    """A stretch from `start` to `end` (seconds into the recording) and its caption; `confidence` is in 0-1."""

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
    """A sound that a caption names: its words, the labels for which they may stand, and the confidence in it."""

    text: str
    labels: tuple[str, ...]
    confidence: float  # 0-1

    def to_dict(self) -> dict[str, Any]:
        """The sound as a JSON object."""
        return {"text": self.text, "labels": list(self.labels), "confidence": _rounded(self.confidence, 4)}


@dataclass(frozen=True)
class Caption:
    """The caption of one recording, or the reason why there is none (`error`).

    `duration` is in seconds, `score` is the mean log probability of the tokens, and `confidence` is in 0-1. `captions`
    and `scores` are the n best, best first (`text` is the first); both may be empty if there is only one. `sounds` are
    those that `text` names, each with its own confidence, if the model weighs them.
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
    damage: tuple[str, ...] = ()  # stretches that could not be decoded

    @classmethod
    def of(cls, file: str, duration: float, hypotheses: Sequence[Hypothesis], options: DecodeConfig) -> Caption:
        """The caption of a recording from its hypotheses, best first; without hypotheses, that of silence."""
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
        """The result for a recording that cannot be read, with the reason and the remedy."""
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
        """The JSON object that `lamb caption` prints; numbers that are not finite are null."""
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
        """The digest of a long recording with segments, see `lamb.inference.digest`; empty for any other."""
        from .digest import LONG, digest

        return digest(self.segments) if self.segments and (self.duration or 0.0) >= LONG else []


class Timeline(Iterator[Segment]):
    """An iterator over the segments of a recording, each of which comes as soon as it is final.

    After the last one, `caption` is the caption of the whole recording with all its segments.
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
        """Find the first segment now, so that an error of a recording that cannot be read is raised here."""
        self._begun = [next(self)]

    def finish(self) -> Caption:
        """Process the rest of the recording and return the caption of the whole."""
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
        caption = whole(result)
        if caption.digest():
            from .digest import lines

            yield "".join(f"{name}{one_line(line)}\n" for line in lines(caption.segments))
        elif caption.ok and len(caption.segments) != 1:
            yield "".join(f"{name}{one_line(text)}\n" for text, _ in caption.n_best())


def write_json(results: Iterable[Result]) -> Iterator[str]:
    """One array of all results, one object per line; it is valid JSON once the last result is written."""
    return json_array(json_line(whole(result).to_dict()) for result in results)


def write_jsonl(results: Iterable[Result]) -> Iterator[str]:
    """One object per line (JSON Lines)."""
    for result in results:
        yield json_line(whole(result).to_dict())


def write_csv(results: Iterable[Result]) -> Iterator[str]:
    """One row per caption under `CSV_COLUMNS`: per file, per segment, or per caption of the n best.

    The duration is left empty where segments are written before the end of the recording is known.

    A spreadsheet would run a cell that begins with one of `=+-@` as a formula. Therefore such a path gets `./` in front
    (it still names the same file), and such a text an apostrophe. `-`, which is standard input, stays as it is.
    """
    yield _csv_row(CSV_COLUMNS)
    for result in results:
        name = result.file if result.file == "-" else no_formula(result.file, "./")
        duration = None if isinstance(result, Timeline) else result.duration
        rows: Iterator[list[Any]] = ([s.start, s.end, s.caption, None, s.confidence] for s in _segments(result))
        if isinstance(result, Caption) and result.error is not None:
            yield _csv_row([name, *[None] * 6, no_formula(result.error)])
        elif isinstance(result, Caption) and not result.segments:
            n_best = [[0.0, duration, text, score, None] for text, score in result.n_best()]
            n_best[0][-1] = result.confidence
            rows = iter(n_best)
        for start, end, text, score, sure in rows:
            times = [_rounded(seconds, 3) for seconds in (duration, start, end)]
            text = no_formula(text)
            yield _csv_row([name, *times, text, _rounded(score, 4), _rounded(sure, 4), None])


def write_srt(results: Iterable[Result]) -> Iterator[str]:
    """SubRip subtitles, one numbered cue per segment; `FILE: ` precedes each text if there are several files."""
    results, several = _several(results)
    for number, (result, cue) in enumerate(_cues(results), 1):
        times = f"{timestamp(cue.start, ',')} --> {timestamp(cue.end, ',')}"
        text = f"{result.file}: {cue.caption}" if several else cue.caption
        yield f"{number}\n{times}\n{_no_arrow(text)}\n\n"


def write_vtt(results: Iterable[Result]) -> Iterator[str]:
    """WebVTT subtitles, one numbered cue per segment; a NOTE with the name of a file precedes its cues."""
    yield "WEBVTT\n\n"
    before = None
    for number, (result, cue) in enumerate(_cues(results), 1):
        note = "" if result is before else f"NOTE {_no_arrow(result.file)}\n\n"
        text = one_line(cue.caption).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        yield f"{note}{number}\n{timestamp(cue.start)} --> {timestamp(cue.end)}\n{text}\n\n"
        before = result


def write_audacity(results: Iterable[Result]) -> Iterator[str]:
    """Labels for Audacity (File > Import > Labels): START<TAB>END<TAB>TEXT, with `FILE: ` before TEXT if several."""
    results, several = _several(results)
    for result, cue in _cues(results):
        text = f"{result.file}: {cue.caption}" if several else cue.caption
        yield f"{cue.start:.6f}\t{cue.end:.6f}\t{one_line(text)}\n"


def write_raven(results: Iterable[Result]) -> Iterator[str]:
    """A selection table for Raven with one numbered row per segment; its frequencies are RAVEN_BAND."""
    yield "\t".join(RAVEN_COLUMNS) + "\n"
    for number, (result, cue) in enumerate(_cues(results), 1):
        times = f"{cue.start:.6f}\t{cue.end:.6f}"
        low, high = RAVEN_BAND
        sure = "" if cue.confidence is None else f"{cue.confidence:.4f}"
        texts = one_line(result.file), one_line(cue.caption)
        yield f"{number}\tSpectrogram 1\t1\t{texts[0]}\t{times}\t{low}\t{high}\t{texts[1]}\t{sure}\n"


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
RAVEN_BAND = (0, 8000)  # Hz: the frequencies that the bundled model hears
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
    """A function from a caption and its confidence to whether it is wanted.

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
    """The results with wanted captions, and all failures; timelines stay too, with their wanted segments."""

    def wanted_ones(segments: Iterable[Segment]) -> Iterable[Segment]:
        return (s for s in segments if is_wanted(s.caption, s.confidence))

    for result in results:
        if isinstance(result, Timeline):
            yield with_segments(result, wanted_ones)
        elif not result.ok or is_wanted(result.text, result.confidence):
            yield result


def with_segments(result: Result, change: Callable[[Iterable[Segment]], Iterable[Segment]]) -> Result:
    """The same result with other segments, which `change` makes from its own."""
    if isinstance(result, Caption):
        return replace(result, segments=tuple(change(result.segments)))
    timeline = result

    def segments() -> Generator[Segment, None, Caption]:
        found = []
        for segment in change(timeline):
            found.append(segment)
            yield segment
        return replace(timeline.finish(), segments=tuple(found))

    return Timeline(result.file, segments())


def timestamp(seconds: float, point: str = ".") -> str:
    """Seconds as `HH:MM:SS.mmm` with `point` before the milliseconds; hours may have more than two digits."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"


def span(start: float, end: float) -> str:
    """Two times in seconds as `[MM:SS.t - MM:SS.t]`, with hours in front if necessary."""

    def clock(seconds: float) -> str:
        minutes, tenths = divmod(round(seconds * 10), 600)
        hours = f"{minutes // 60}:" if minutes >= 60 else ""
        return f"{hours}{minutes % 60:02}:{tenths // 10:02}.{tenths % 10}"

    return f"[{clock(start)} - {clock(end)}]"


def one_line(text: str) -> str:
    """`text` with control characters and line separators escaped, so that a newline becomes `\\n`."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def no_formula(text: str, mark: str = "'") -> str:
    """`text`, with `mark` in front if a spreadsheet would run it as a formula."""
    return mark + text if _FORMULA.match(text) else text


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FORMULA = re.compile(r"\A[=+\-@\t\r]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _several(results: Iterable[Result]) -> tuple[Iterator[Result], bool]:
    """The results, and whether there are several; the first one waits until the second is known."""
    results = iter(results)
    first = list(islice(results, 2))
    return chain(first, results), len(first) > 1


def _segments(result: Result) -> Iterable[Segment]:
    return result if isinstance(result, Timeline) else result.segments


def whole(result: Result) -> Caption:
    """The caption of the whole recording; a timeline is processed to its end."""
    return result.finish() if isinstance(result, Timeline) else result


def _cues(results: Iterable[Result]) -> Iterator[tuple[Result, Segment]]:
    """Each result with each of its segments, or with one for the whole file; none for a failure.

    Every segment lasts at least a millisecond.
    """
    for result in results:
        segments = _segments(result)
        if isinstance(result, Caption) and result.ok:
            segments = result.segments or (Segment(0.0, result.duration or 0.0, result.text, result.confidence),)
        for s in segments:
            yield result, replace(s, end=max(s.end, s.start + 0.001))


def _rounded(number: float | None, digits: int) -> float | None:
    """`number` rounded; None for what JSON cannot hold (NaN and infinity)."""
    return round(float(number), digits) if number is not None and math.isfinite(number) else None


def json_array(lines: Iterable[str]) -> Iterator[str]:
    """One array of the lines of JSON; it is valid JSON once the last line is written."""
    before = "[\n"
    for line in lines:
        yield before + line.rstrip("\n")
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def json_line(value: Mapping[str, Any]) -> str:
    """A line of JSON, where a lone surrogate (a byte of a name that is not UTF-8) is escaped."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


def _csv_row(cells: Iterable[object]) -> str:
    """One line of CSV, quoted where needed."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _no_arrow(text: str) -> str:
    """`text` in one line without `-->`, which in a subtitle file would be read as times."""
    return re.sub("-{2,}>", "->", one_line(text))
