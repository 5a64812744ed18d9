"""What can be wrong with sound: an error for what cannot be read, warnings for what was repaired or left out."""

from dataclasses import dataclass, field
from typing import Any

from ..errors import LambError

REPLACE = "copy or download it again"
RESCUE = f"{REPLACE}, or keep what is left of it with: ffmpeg -i FILE rescued.wav"
SAFE = "record, export or convert it again, for instance with: ffmpeg -i FILE sound.wav"
CONVERT = "convert it, for instance with: ffmpeg -i FILE sound.wav"


class AudioError(LambError, ValueError):
    """Sound that cannot be read: `file` (its name), `problem` (what is wrong) and `remedy` (what to do about it)."""

    def __init__(self, file: str, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.file = file

    def __str__(self) -> str:
        return f"{self.file}: {super().__str__()}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.file, self.problem, self.remedy)


class AudioWarning(UserWarning):
    """Something about sound that the user should know, though it is no error."""


class AudioRepair(AudioWarning):
    """Sound that was read, with a repair: `file` (its name) and `problem`."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(file, problem)
        self.file, self.problem = file, problem

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}"


class AudioDamage(AudioRepair):
    """Sound that was read but for a part of it."""

    def __str__(self) -> str:
        return f"{super().__str__()}; {REPLACE}"


@dataclass
class Damage:
    """What is lost of a sound that is read all the same."""

    spans: list[tuple[float, float]] = field(default_factory=list)  # seconds that cannot be decoded; zeros stand there
    truncated: str | None = None  # what shows that the file ends too early

    def told(self) -> str:
        """What is lost, in words; empty where nothing is."""
        said = [f"{start:.2f} to {end:.2f} s" for start, end in self.spans[:3]]
        if len(self.spans) > 3:
            said.append(f"{len(self.spans) - 3} more stretches")
        lost = f"damaged: {', '.join(said)} cannot be decoded" if said else ""
        return "; ".join(filter(None, [self.truncated, lost]))
