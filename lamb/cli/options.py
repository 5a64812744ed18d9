"""The options that several commands share, each defined once as an annotated alias, and how help lists them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from enum import StrEnum
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

import typer
from typer.core import TyperCommand

MODEL_HELP = "A bundled model, a folder, or a Hugging Face hub id."
OWN = "the model's own"
A_GPU = "a GPU if there is one"
LOOPBACK = ("127.0.0.1", "::1", "localhost")

INPUT, OUTPUT, FILTERS, LONG = "Input", "Output", "Filters", "Long recordings"
DECODING, MACHINE = "Decoding", "Model and machine"
SUBTITLES = "Subtitles"


class Engine(StrEnum):
    """What runs a model: `lamb.inference.loading.ENGINES`."""

    onnx = "onnx"
    torch = "torch"


class Command(TyperCommand):
    """A command whose help groups the options under headings.

    typer does so only by rich, whose import takes as long as everything else that `lamb --help` does.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                heading = getattr(param, "rich_help_panel", None)
                heading = heading or ("Arguments" if param.param_type_name == "argument" else "Options")
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def refuse(option: str, why: str) -> NoReturn:
    """End the command, as what was given with `option` cannot be."""
    raise typer.BadParameter(why, param_hint=option)


def positive_seconds(value: float | None) -> float | None:
    """The callback of options that take a length of time."""
    if value is not None and not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value:g} is not a length of time in seconds; it must be above 0.")
    return value


def words(text: str | None) -> tuple[str, ...]:
    """The words of an option that takes several, separated by commas."""
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def options_of(config: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that replaces the `**settings` of a command by one option for each field of a config dataclass."""
    hints = get_type_hints(config)

    def option(field: dataclasses.Field[Any]) -> Parameter:
        meta = dict(field.metadata)
        info = typer.Option(rich_help_panel=meta.pop("group"), **meta)
        return Parameter(
            field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=Annotated[hints[field.name], info]
        )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        its = signature(command, eval_str=True)
        own = [p.replace(kind=p.KEYWORD_ONLY) for p in its.parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters = [*map(option, dataclasses.fields(config)), *own]
        command.__signature__ = its.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def option(
    metavar: str, help: str, panel: str | None = None, *names: str, default: str | bool = True, **more: Any
) -> Any:
    """An option with a value; without `names` it is called like its parameter.

    Args:
        default: what help shows as the default, where the parameter's own (None: nothing is shown) does not say it.
    """
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, show_default=default, **more)


def flag(*names: str, panel: str | None = None, help: str) -> Any:
    """An option without a value, off by default."""
    return typer.Option(*names, metavar="", show_default=False, rich_help_panel=panel, help=help)


ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Model = Annotated[str, option("NAME", MODEL_HELP, MACHINE)]
Device = Annotated[str | None, option("NAME", "auto, cpu, cuda, cuda:1, mps ...", MACHINE, default=A_GPU)]
EngineName = Annotated[
    Engine | None,
    option(
        "NAME",
        "onnx: ONNX Runtime, on a CPU, for the bundled model and what lamb export has written; torch: PyTorch.",
        MACHINE,
        default="onnx where it can run the model",
    ),
]
Threads = Annotated[int | None, option("N", "Processor threads.", MACHINE, default="one for each core", min=1)]
DecodeTimeout = Annotated[
    float,
    option(
        "SECONDS", "Processor time to decode a file, besides 10 s for each MB of it; 0 sets no limit.", MACHINE, min=0
    ),
]
Track = Annotated[
    int | None, option("N", "The audio track of a video.", INPUT, default="the default track, else the loudest", min=1)
]
DecodeMemory = Annotated[
    float,
    option("MB", "Address space of a process that decodes, of which 210 MB are used at its start.", MACHINE, min=256),
]
BatchSize = Annotated[
    int | None, option("N", "Clips that are captioned together; fewer need less memory.", MACHINE, default=OWN, min=1)
]
NBest = Annotated[int, option("K", "Captions per file, the best one first.", DECODING, min=1)]
Beams = Annotated[
    int | None,
    option("K", "Width of the beam search; 1 is greedy decoding, the fastest.", DECODING, default=OWN, min=1),
]
MinConfidence = Annotated[float, option("P", "Leave out captions with a lower confidence.", FILTERS, min=0, max=1)]
Only = Annotated[
    str | None,
    option("WORDS", "Keep only captions with one of these words, separated by commas; any ending may follow.", FILTERS),
]
Ignore = Annotated[str | None, option("WORDS", "Leave out captions with one of these words.", FILTERS)]
Split = Annotated[str | None, option("NAME", "The part of the data, such as test.", INPUT)]
Quiet = Annotated[bool, flag("--quiet", "-q", panel=OUTPUT, help="Print no progress and no warnings, only errors.")]
AsJson = Annotated[bool, flag("--json", panel=OUTPUT, help="Print JSON instead of a table.")]
Recipe = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A YAML recipe; see the folder recipes/.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that replace those of the recipe.")
]
