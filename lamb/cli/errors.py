"""What a user sees when something goes wrong: one line on standard error, and an exit code.

0: everything succeeded; 1: something failed (a file, loading a model); 2: the command was wrong; 130: interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dis import opmap
from typing import Any, NoReturn


def say(kind: str, message: object) -> None:
    """Print `lamb: KIND: MESSAGE` to standard error, in one line."""
    from ..inference.captions import one_line

    print(f"lamb: {kind}: {one_line(str(message))}", file=sys.stderr, flush=True)


def fail(error: Exception, code: int) -> NoReturn:
    """Print the error and exit."""
    say("error", error)
    sys.exit(code)


def is_users(error: Exception) -> bool:
    """House rule: `raise` in lamb's own code speaks to the user. Any other ValueError is a bug, wherever it comes
    from: a library, or a statement of ours such as `int(text)`."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace is None or isinstance(error, OSError):
        return True
    instruction = trace.tb_frame.f_code.co_code[trace.tb_lasti]
    ours = trace.tb_frame.f_globals.get("__name__", "").startswith("lamb.")
    return ours and instruction == opmap["RAISE_VARARGS"]


@contextmanager
def loading() -> Iterator[None]:
    """Around the loading of a model: the command may be right and the model broken, so the exit code is 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        fail(error, 1)


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
