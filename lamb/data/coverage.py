"""How much of a published test set is present: recordings vanish, and a score on fewer clips is not comparable.

The lists hold the clips as published: the 975 of AudioCaps' test.csv (papers also report 957 and 964, as many as were
left on YouTube at the time) and the 1,045 of Clotho's evaluation. Clips have the ids that `lamb data` gives them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .manifest import Clip

TEST_SETS = {"audiocaps-test": "audiocaps/", "clotho-evaluation": "clotho/evaluation/"}
"""The files in test_sets/, and the prefix that turns their lines into the ids of clips."""


@dataclass(frozen=True)
class Coverage:
    """A published test set, its number of clips, and the ids of those that are missing."""

    test_set: str
    published: int
    missing: tuple[str, ...]


def coverage(clips: Iterable[Clip]) -> Coverage | None:
    """The coverage of the test set to which any of `clips` belongs, or None."""
    there = {clip.id for clip in clips}
    for name, prefix in TEST_SETS.items():
        lines = (Path(__file__).parent / "test_sets" / f"{name}.txt").read_text(encoding="utf-8").split("\n")
        ids = [prefix + line for line in lines if line]
        missing = tuple(id for id in ids if id not in there)
        if len(missing) < len(ids):
            return Coverage(name, len(ids), missing)
    return None
