"""How much of a published test set is here: recordings vanish, and a score on fewer clips is a score of another set.

The lists are the clips as published: the 975 of AudioCaps' test.csv (papers also report 957 and 964, what was left of
them on YouTube at the time) and the 1,045 of Clotho's evaluation. A clip is known by the id that `lamb data` gives it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .manifest import Clip

TEST_SETS = {"audiocaps-test": "audiocaps/", "clotho-evaluation": "clotho/evaluation/"}
"""The files in test_sets/, and what comes before their lines in a clip's id."""


@dataclass(frozen=True)
class Coverage:
    """The published test set that clips belong to, how many clips it has, and the ids of those that are not there."""

    test_set: str
    published: int
    missing: tuple[str, ...]


def coverage(clips: Iterable[Clip]) -> Coverage | None:
    """Of the test set that any of `clips` belongs to; None where there is none."""
    there = {clip.id for clip in clips}
    for name, prefix in TEST_SETS.items():
        lines = (Path(__file__).parent / "test_sets" / f"{name}.txt").read_text(encoding="utf-8").split("\n")
        ids = [prefix + line for line in lines if line]
        missing = tuple(id for id in ids if id not in there)
        if len(missing) < len(ids):
            return Coverage(name, len(ids), missing)
    return None
