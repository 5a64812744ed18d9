"""`lamb info`: what a model consists of. `lamb push`: a model goes to the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..config import DEFAULT_MODEL
from .errors import loading
from .options import AsJson, ModelName, flag
from .terminal import cell, print_json, print_table


def info(model: ModelName = DEFAULT_MODEL, as_json: AsJson = False) -> None:
    """Show the parts, size and training data of a model, and which models are bundled.

    The licence is shown too, and with --json the whole configuration.
    """
    from ..model.checkpoint import bundled, describe

    with loading():
        facts, others = describe(model), [describe(name) for name in bundled()]
    if as_json:
        print_json(facts)
        return
    about = [_fact(name, value) for name, value in facts.items() if name not in ("parts", "config")]
    print_table(("", ""), about)
    columns = ("part", "kind", "parameters", "trained")
    print_table(columns, [[cell(part.get(column)) for column in columns] for part in facts.get("parts", ())])
    rows = [[one["name"], _fact("size_bytes", one["size_bytes"])[1], cell(one.get("measured"))] for one in others]
    print_table(("bundled", "size", "measured"), rows)


def _fact(name: str, value: Any) -> tuple[str, str]:
    """A fact about a model as a row of a table."""
    if name == "size_bytes":
        return "size", f"{value / 1e6:.1f} MB"
    if name == "sample_rate":
        value = f"{value} Hz"
    elif isinstance(value, dict):
        value = ", ".join(f"{key}: {item}" for key, item in value.items())
    elif isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return name.replace("_", " "), str(value)


def push(
    model: ModelName,
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository on the Hugging Face hub.")],
    public: Annotated[
        bool, flag("--public", help="Create the repository as public; by default it is private.")
    ] = False,
) -> None:
    """Upload a model to the Hugging Face hub.

    Prints the address of the repository.
    The access token is that of `hf auth login` or of the environment variable HF_TOKEN.
    """
    from ..model.checkpoint import push_to_hub

    with loading():
        print(push_to_hub(model, repo, private=not public))
