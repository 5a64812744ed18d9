"""The output formats of a search: for each a generator from matches to text."""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from ..inference import captions
from ..inference.captions import Caption, Segment, json_line, one_line
from .library import Match


def write_jsonl(found: Iterable[Match]) -> Iterator[str]:
    """A JSON object a line."""
    for match in found:
        yield json_line(match.to_dict())


def write_m3u(found: Iterable[Match]) -> Iterator[str]:
    """A playlist. VLC plays only the moment, other players play the recording from its beginning."""
    yield "#EXTM3U\n"
    for match in found:
        yield f"#EXTINF:{max(1, round(match.end - match.start))},{one_line(match.caption)}\n"
        yield f"#EXTVLCOPT:start-time={match.start:.3f}\n#EXTVLCOPT:stop-time={match.end:.3f}\n"
        yield f"{one_line(match.file)}\n"


def write_audacity(found: Iterable[Match]) -> Iterator[str]:
    """Labels for Audacity (see `captions.write_audacity`), by recording and time."""
    ordered = sorted(found, key=lambda match: (match.file, match.start))
    return captions.write_audacity(
        Caption(file, segments=tuple(Segment(match.start, match.end, match.caption) for match in matches))
        for file, matches in groupby(ordered, key=lambda match: match.file)
    )


WRITERS: dict[str, Callable[[Iterable[Match]], Iterator[str]]] = {
    "jsonl": write_jsonl,
    "m3u": write_m3u,
    "audacity": write_audacity,
}
