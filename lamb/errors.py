"""The errors that a user of `lamb` is shown: one line that says what is wrong and what to do about it.

Whoever can name the mistake raises a `LambError`; the command line, the service and the page show only these without a
traceback. Subclasses keep a built-in base: `ValueError` where something that was asked for cannot be right, `OSError`
where the machine or the network fails. Any other exception is a bug.
"""

from importlib import import_module
from typing import Any


def reason(error: BaseException) -> str:
    """The first line of what another library's `error` says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class LambError(Exception):
    """`problem`: what is wrong, and with which file or value. `remedy`: what to do; empty where `problem` says it."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)  # one argument: OSError takes two for a number and its text
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}" if self.remedy else self.problem

    def __reduce__(self) -> tuple[Any, ...]:  # errors travel between processes
        return type(self), (self.problem, self.remedy)


class OptionError(LambError, ValueError):
    """A value that cannot be used, given as an argument in Python or as an option of a command."""


class PackageError(LambError):
    """A package that only some features need, and that is not installed."""


def optional(module: str, needed: str, extra: str) -> Any:
    """The module of an optional package. Raises PackageError, which names the `extra` that brings it."""
    try:
        return import_module(module)
    except ImportError:
        raise PackageError(needed, f"pip install 'lamb-aac[{extra}]'") from None
