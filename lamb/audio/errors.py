"""What can be wrong with sound: an error for what cannot be read, warnings for what was repaired or left out."""

from typing import Any

from ..errors import LambError

REPLACE = "copy or download it again"
RESCUE = f"{REPLACE}, or keep what is left of it with: ffmpeg -i FILE rescued.wav"
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
    """Sound that was read, with a repair."""


class AudioDamage(AudioWarning):
    """Sound that was read but for a part of it."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(f"{file}: {problem}; {REPLACE}")
