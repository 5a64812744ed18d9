"""Subtitles for the deaf and hard of hearing (SDH): `[dog barking]`, alone or between the lines of a film. [O]

A caption becomes a description: in lower case, without articles and full stop, in square brackets, and no longer than
a line. Speech is left out, because the film's own lines cover it. Times and the length of a line follow the published
guidelines of broadcasters; see `SdhConfig`.

`merge` inserts descriptions into SubRip (.srt) or WebVTT (.vtt) subtitles where no line is shown. The film's own cues
stay as they are, except that the numbers of SubRip, which only count the cues, are counted anew.
"""

import math
import re
from bisect import bisect, insort
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import attrgetter
from pathlib import Path

from ..config import SdhConfig
from ..errors import LambError
from .captions import SILENCE, UNREADABLE, Result, Segment, timestamp, with_segments

LARGEST = 20 * 2**20  # bytes of a subtitle file; a film has 0.2 MB

_SPEECH = re.compile(r"\b(speak|talk|speech|convers|narrat|says?\b|saying|voice|dialogue|announc|whisper)", re.ASCII)
_BETWEEN = re.compile(r",\s*|\s+(?:followed by|and then|then|while|as|with|before|and)\s+")
_FILLER = re.compile(
    r"^(?:there (?:is|are)|we hear|and|then|while|with)\s+|\b(?:the )?sounds? of\s+|\s+(?:can be|is|are) heard\b"
    r"|\s+in the background\b|\b(?:a|an|the|some)\s+|\b(?:is|are|was|were)\s+(?=\w+ing\b)"
)
_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_TIMES = re.compile(rf"^[ \t]*{_TIME}[ \t]+-->[ \t]+{_TIME}(?![\d:])[^\r\n]*\r?$", re.MULTILINE)


class SubtitleError(LambError, ValueError):
    """Subtitles into which nothing can be merged: the file, the problem and the remedy."""


def description(caption: str, config: SdhConfig) -> str | None:
    """`caption` in brackets, such as "[dog barking]"; None if it names nothing but speech, or no sound at all."""
    if caption in (SILENCE, UNREADABLE):
        return None
    told: list[str] = []
    for clause in _clauses(caption):
        room = config.characters - 2 - len(", ".join([*told, ""]))
        if clause in told or (not config.speech and _SPEECH.search(clause)):
            continue
        if len(clause) > room:
            if told:
                break
            clause = clause[: room + 1].rsplit(" ", 1)[0][:room]
        told.append(clause)
    return f"[{', '.join(told)}]" if told else None


def sdh(result: Result, config: SdhConfig) -> Result:
    """The same result with descriptions as segments, which are shown long enough to be read and never overlap."""
    return with_segments(result, lambda segments: _shown(segments, config))


def _clauses(caption: str) -> Iterator[str]:
    """The clauses of `caption` in order, without words that carry no information."""
    text = " ".join(caption.lower().split()).rstrip(" .!?")
    parts = [part for part in _BETWEEN.split(text) if part]
    joins = _BETWEEN.findall(text)
    held = ""
    for k, part in enumerate(parts):
        part = " ".join(_FILLER.sub(" ", f"{part} ").split())
        held = f"{held} and {part}" if held else part
        # "a woman and a man talk" is one thing, "a dog barks and growls" two
        if k < len(joins) and joins[k].strip() == "and" and len(held.split()) < 2:
            continue
        if held:
            yield held
        held = ""


def _shown(segments: Iterable[Segment], config: SdhConfig) -> Iterator[Segment]:
    """The segments that have a description, with the times at which each is shown."""
    held: Segment | None = None
    free = 0.0  # the time from which no other cue is shown
    for segment in segments:
        text = description(segment.caption, config)
        if text is None:
            continue
        if held and held.caption == text and segment.start - held.end < config.shortest:
            held = replace(held, end=segment.end)  # it continues
            continue
        if held:
            yield (shown := _timed(held, segment.start, config))
            held, free = None, shown.end + config.pause
        if segment.end > free:  # otherwise it is over before it could be shown
            held = replace(segment, caption=text, start=max(segment.start, free))
    if held:
        yield _timed(held, float("inf"), config)


def _timed(cue: Segment, following: float, config: SdhConfig) -> Segment:
    """`cue` shown for `shortest` to `longest` seconds, and if possible not beyond `following`, where another begins."""
    end = min(max(cue.end, cue.start + config.shortest), cue.start + config.longest)
    return replace(cue, end=max(min(end, following - config.pause), cue.start + config.shortest))


# ---- between the lines of a film -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """A piece of a subtitle file, unchanged: a cue if it has times (seconds), otherwise the text before one."""

    text: str
    start: float | None = None
    end: float = 0.0


def read(path: Path) -> str:
    """The text of the subtitle file `path`; bytes that are not UTF-8 are kept as surrogates. Raises SubtitleError."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise SubtitleError(f"{path}: {error.strerror}", "name a file with subtitles (.srt, .vtt)") from None
    if len(content) > LARGEST:
        raise SubtitleError(f"{path}: larger than {LARGEST >> 20} MB", "name a file with subtitles (.srt, .vtt)")
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise SubtitleError(f"{path}: is in UTF-16", f"convert it: iconv -f UTF-16 -t UTF-8 {path.name} > utf8.srt")
    text = content.decode("utf-8", "surrogateescape")
    if "\0" in text or not _TIMES.search(text):
        raise SubtitleError(
            f"{path}: holds no subtitles in SubRip or WebVTT", f"convert others: ffmpeg -i {path.name} film.srt"
        )
    return text


def is_vtt(film: str) -> bool:
    """Whether subtitles, as from `read`, are in WebVTT rather than SubRip."""
    return film.lstrip("\ufeff").startswith("WEBVTT")


def merge(film: str, cues: Iterable[Segment], config: SdhConfig) -> tuple[str, int]:
    """The subtitles `film`, as from `read`, with `cues` between its own; and the number of cues without a place.

    A cue may be shown later than its sound begins and for a shorter time, but for at least `config.shortest` seconds
    and not after its sound has ended.
    """
    mark, film = film[: film.startswith("\ufeff")], film.removeprefix("\ufeff")
    blocks, vtt = list(_blocks(film)), is_vtt(film)
    newline = "\r\n" if "\r\n" in film else "\n"
    own = sorted((b.start, b.end) for b in blocks if b.start is not None)
    latest = list(accumulate((end for _, end in own), max))  # the end of those up to each
    taken, fitted, crowded = list(own), list[Segment](), 0
    for cue in cues:
        k, n = bisect(own, (cue.start, math.inf)), bisect(fitted, cue.start, key=attrgetter("start"))
        ends = [*latest[k - 1 : k], *(before.end for before in fitted[n - 1 : n])]
        if (placed := _placed(cue, max(ends, default=-math.inf), taken, config)) is None:
            crowded += 1
            continue
        insort(fitted, placed, key=attrgetter("start"))
        insort(taken, (placed.start, placed.end))
    if fitted:
        film = _woven(blocks, fitted, vtt, newline)
    return mark + film, crowded


def _placed(cue: Segment, free: float, taken: list[tuple[float, float]], config: SdhConfig) -> Segment | None:
    """`cue` in the first gap between the sorted times `taken` that is long enough while its sound lasts, or None.

    Those that begin before it end by `free`.
    """
    start, last = max(cue.start, free + config.pause), max(cue.end, cue.start + config.shortest)
    for k in range(bisect(taken, (cue.start, math.inf)), len(taken) + 1):
        begin, end = taken[k] if k < len(taken) else (math.inf, math.inf)
        stop = min(last, begin - config.pause)
        if stop - start >= config.shortest - 1e-6:
            return replace(cue, start=start, end=stop)
        if begin >= last:
            return None
        start = max(start, end + config.pause)
    return None


def _blocks(film: str) -> Iterator[_Block]:
    """The pieces of `film`, which join to `film` again: cues, each with its number or name, and the text between."""
    times = list(_TIMES.finditer(film))
    at = 0
    for k, match in enumerate(times):
        begin, limit = match.start(), times[k + 1].start() if k + 1 < len(times) else len(film)
        # the cue's text ends at the first empty line
        gap = re.compile(r"\r?\n[ \t]*(?:\r?\n[ \t]*)+").search(film, match.end() - 1, limit)
        stop = gap.end() if gap else limit
        if gap is None and k + 1 < len(times):  # without one, the last line before the next times is their number
            stop = film.rfind("\n", 0, film.rfind("\n", 0, limit)) + 1
            stop = max(stop, match.end())
        lead = begin
        if at < begin:  # a number or an identifier may be in the line before
            line = film.rfind("\n", at, begin - 1) + 1 or at
            lead = line if film[line:begin].strip() else begin
        if lead > at:
            yield _Block(film[at:lead])
        yield _Block(film[lead:stop], _seconds(match.groups()[:4]), _seconds(match.groups()[4:]))
        at = stop
    if at < len(film):
        yield _Block(film[at:])


def _seconds(groups: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = groups
    return (
        int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + int((fraction or "0").ljust(3, "0")) / 1e3
    )


def _woven(blocks: list[_Block], cues: list[Segment], vtt: bool, newline: str) -> str:
    """The blocks, with each of `cues` before the first block that begins later."""
    out: list[str] = []
    end = ""  # the spaces and line ends that `out` ends with
    todo, number = deque(cues), 0
    notes = ""  # in WebVTT the text between two cues belongs to the second

    def write(text: str) -> None:
        nonlocal end
        out.append(text)
        words = text.rstrip(" \t\r\n")
        end = text[len(words) :] if words else end + text

    def tell(until: float) -> None:
        nonlocal number
        while todo and todo[0].start < until:
            cue, number = todo.popleft(), number + 1
            if any(out[-1:]) and not re.search(r"\n[ \t]*\r?\n\Z", end):
                write(newline if end.endswith("\n") else 2 * newline)
            point = "." if vtt else ","
            times = f"{timestamp(cue.start, point)} --> {timestamp(cue.end, point)}"
            write(f"{'' if vtt else f'{number}{newline}'}{times}{newline}{cue.caption}{newline}{newline}")

    for k, block in enumerate(blocks):
        if block.start is None:
            if vtt and k:
                notes += block.text
            else:
                write(block.text)
            continue
        tell(block.start)
        number += 1
        write(notes + (block.text if vtt else re.sub(r"\A\d+(?=[ \t]*\r?\n)", str(number), block.text)))
        notes = ""
    tell(float("inf"))
    return "".join(out) + notes
