"""The command line: one thin module a command group, with everything heavy imported inside the commands, so that
`lamb --help` is quick. Results go to standard output, progress and messages to standard error; see `errors` for the
exit codes.

A new command is a function in a module of this folder, and a line in `COMMANDS`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .bulk import bulk
from .caption import caption
from .data import data
from .errors import shown, tidy_process
from .evaluate import evaluate
from .explain import explain
from .export import export
from .gap import gap
from .info import info, push
from .library import index, search
from .listen import listen
from .options import Command
from .serve import demo, serve
from .train import ablate, train

COMMANDS = (  # in the order of the help
    *(caption, explain, index, search, listen, bulk, serve, demo, info, push, export),
    *(evaluate, gap, data, train, ablate),
)

app = typer.Typer(
    help="Describe recordings in words: audio captioning with the LAMB method.",
    no_args_is_help=True,
    rich_markup_mode=None,  # see options.Command
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in COMMANDS:
    app.command(cls=Command)(command)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print("lamb", __version__)
        raise typer.Exit


@app.callback()
def _lamb(
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """The `lamb` command. A user's mistake ends in one line on standard error, a mistake of ours in a traceback."""
    tidy_process()
    with shown():
        app(prog_name="lamb")
