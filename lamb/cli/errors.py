"""What a user sees when something goes wrong: one line on standard error, and an exit code.

0: everything succeeded; 1: something failed (a file, loading a model, a package that is missing); 2: the command was
wrong; 130: interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import LambError, PackageError

# What the operating system refuses, and what helps.
REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "give the path of a file",
    errno.EEXIST: "choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EACCES: "check the permissions, or choose another place",
    errno.EPERM: "check the permissions, or choose another place",
    errno.EROFS: "the disk is read-only; choose another place",
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EADDRINUSE: "stop the other program, or choose another --port",
    errno.EADDRNOTAVAIL: "choose an address of this machine for --host",
}
# The extra that has a package which is not part of the base install.
EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "peft"), "torch"),
    **dict.fromkeys(("accelerate", "tensorboard", "onnx"), "train"),
    "matplotlib": "plot",
    "gradio": "demo",
}


def say(kind: str, message: object) -> None:
    """Print `lamb: KIND: MESSAGE` to standard error, in one line."""
    from ..inference.captions import one_line

    print(f"lamb: {kind}: {one_line(str(message))}", file=sys.stderr, flush=True)


def tidy_process() -> None:
    """Open the standard streams that the shell closed (`2>&-`), and ignore an empty OMP_NUM_THREADS.

    Without this, the next file that is opened would get the number of the closed stream, and messages would end up in
    it. `sys.__stdout__` stays None if standard output was closed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if os.environ.get("OMP_NUM_THREADS") == "":  # libgomp would complain
        del os.environ["OMP_NUM_THREADS"]


@contextmanager
def shown() -> Iterator[None]:
    """Around a command: end with one line for a mistake of the user's, a refusal by the operating system, or a package
    that is missing.

    Any other exception is a bug and keeps its traceback.
    """
    try:
        yield
    except LambError as error:
        say("error", error)
        sys.exit(2 if isinstance(error, ValueError) else 1)  # ValueError: what was asked for cannot be right
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        say("error", f"this needs {error.name}, which is not installed; pip install 'lamb-aac[{EXTRAS[error.name]}]'")
        sys.exit(1)
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        say("error", f"{name}{error.strerror}; {REMEDIES[error.errno]}")
        sys.exit(1)


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Around the imports of a command that takes a whole `extra`: what is missing is told with its name."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise PackageError(
            f"this needs {error.name}, which is not installed", f"pip install 'lamb-aac[{extra}]'"
        ) from None


@contextmanager
def loading() -> Iterator[None]:
    """Around the loading of a model: the command may be right and the model broken, so the exit code is 1."""
    try:
        yield
    except LambError as error:
        say("error", error)
        sys.exit(1)


def one_line_warnings(quiet: bool, damaged: list[str] | None = None) -> None:
    """Print lamb's warnings in one line each, and those of libraries only where the user asked for them (-W).

    Sound that is lost is an error even if `quiet`; its message is also appended to `damaged`.
    """
    import warnings

    from ..audio.reader import AudioDamage, AudioWarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if not category.__module__.startswith("lamb."):
            usual(message, category, *rest, **named)
        elif damaged is not None and issubclass(category, AudioDamage):
            damaged.append(str(message))
            say("error", message)
        elif not quiet:
            say("warning", message)

    usual, warnings.showwarning = warnings.showwarning, show
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    warnings.simplefilter("always", AudioWarning)
