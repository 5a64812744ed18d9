"""The digest of a long recording, in place of one sentence: each sound with its times, from the segments. [O]

The sounds of a segment are those for which the words of its caption stand (`lamb.data.vocabulary`). A caption without
such words is a sound of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..data.vocabulary import mentions
from .captions import SILENCE, UNREADABLE, Segment, span

LONG = 600.0  # seconds; a recording of this length or longer has a digest
PAUSE = 1.0  # seconds; a shorter interruption does not end an occurrence


@dataclass(frozen=True)
class Heard:
    """A sound and the stretches (start, end), in seconds, in which it occurs."""

    sound: str
    times: tuple[tuple[float, float], ...]

    @property
    def seconds(self) -> float:
        """The total length of its stretches."""
        return sum(end - start for start, end in self.times)

    def to_dict(self) -> dict[str, Any]:
        """The sound as a JSON object."""
        times = [[round(start, 3), round(end, 3)] for start, end in self.times]
        return {"sound": self.sound, "count": len(times), "seconds": round(self.seconds, 3), "times": times}


@lru_cache(4096)
def sounds(caption: str) -> tuple[str, ...]:
    """The names of the sounds that a caption mentions, in order; the caption itself if it mentions none."""
    if caption in (SILENCE, UNREADABLE):
        return (caption.strip("().").lower(),)
    found = [min(mention.labels, key=lambda label: (len(label), label)) for mention in mentions(caption)]
    return tuple(dict.fromkeys(label.replace("_", " ") for label in found)) or (caption.rstrip("."),)


def digest(segments: Iterable[Segment]) -> list[Heard]:
    """The sounds of all segments, those with the longest total first."""
    times: dict[str, list[tuple[float, float]]] = {}
    for segment in segments:
        for sound in sounds(segment.caption):
            own = times.setdefault(sound, [])
            if own and segment.start - own[-1][1] < PAUSE:
                own[-1] = (own[-1][0], segment.end)
            else:
                own.append((segment.start, segment.end))
    found = [Heard(sound, tuple(own)) for sound, own in times.items()]
    return sorted(found, key=lambda heard: -heard.seconds)


def lines(segments: Iterable[Segment]) -> list[str]:
    """The digest as text: a line for each sound, with its total length, its number of stretches and its first times."""
    found = []
    for heard in digest(segments):
        minutes, seconds = divmod(round(heard.seconds), 60)
        often = "once" if len(heard.times) == 1 else f"{len(heard.times)} times"
        shown = ", ".join(span(start, end)[1:-1] for start, end in heard.times[:3])
        more = f", and {len(heard.times) - 3} more" if len(heard.times) > 3 else ""
        found.append(f"{heard.sound}: {minutes}:{seconds:02} min, {often} ({shown}{more})")
    return found
