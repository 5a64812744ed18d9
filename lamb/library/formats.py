"""How what was found is written: a generator a format, matches in, text out."""

import json
from collections.abc import Callable, Iterable, Iterator

from ..inference.captions import one_line
from .library import Match


def write_jsonl(found: Iterable[Match]) -> Iterator[str]:
    """A JSON object a line."""
    for match in found:
        # a lone surrogate (a byte of a name that is no UTF-8) can only be written escaped
        line = json.dumps(match.to_dict(), ensure_ascii=False)
        yield (line if line.isprintable() else json.dumps(match.to_dict())) + "\n"


def write_m3u(found: Iterable[Match]) -> Iterator[str]:
    """A playlist; VLC plays the moment alone, other players the recording from its beginning."""
    yield "#EXTM3U\n"
    for match in found:
        yield f"#EXTINF:{max(1, round(match.end - match.start))},{one_line(match.caption)}\n"
        yield f"#EXTVLCOPT:start-time={match.start:.3f}\n#EXTVLCOPT:stop-time={match.end:.3f}\n"
        yield f"{one_line(match.file)}\n"


def write_audacity(found: Iterable[Match]) -> Iterator[str]:
    """Labels for Audacity (File > Import > Labels): START<TAB>END<TAB>TEXT; with several recordings, `FILE: ` first."""
    matches = list(found)
    several = len({match.file for match in matches}) > 1
    for match in sorted(matches, key=lambda match: (match.file, match.start)):
        text = f"{match.file}: {match.caption}" if several else match.caption
        yield f"{match.start:.6f}\t{match.end:.6f}\t{one_line(text)}\n"


WRITERS: dict[str, Callable[[Iterable[Match]], Iterator[str]]] = {
    "jsonl": write_jsonl,
    "m3u": write_m3u,
    "audacity": write_audacity,
}
