"""The command line: a thin function a command, with all that is heavy imported inside, so `lamb --help` is quick.

Results go to standard output, progress and messages to standard error. Exit codes: 0 all succeeded, 1 something
failed (a file, loading a model), 2 the command was wrong, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dis import opmap
from enum import StrEnum
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NoReturn, TextIO, cast

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from lamb.bulk import Tally
    from lamb.captions import Caption

DEFAULT_MODEL = "tiny"

app = typer.Typer(
    help="Says in a sentence what is heard in a recording.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    """What `lamb caption` can write: the writers of `lamb.captions`, and a table for the eye."""

    text = "text"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    srt = "srt"
    vtt = "vtt"
    table = "table"


class BulkFormat(StrEnum):
    """What `lamb bulk` can write."""

    jsonl = "jsonl"
    parquet = "parquet"


def _version(wanted: bool) -> None:
    if wanted:
        from lamb import __version__

        print("lamb", __version__)
        raise typer.Exit


def _seconds(value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value:g} is not a length of time in seconds; it must be above 0.")
    return value


@app.callback()
def _lamb(
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


OWN = "the model's own"
_input = partial(typer.Option, rich_help_panel="Input")
_output = partial(typer.Option, rich_help_panel="Output")
_long = partial(typer.Option, rich_help_panel="Long recordings", show_default=OWN)
_search = partial(typer.Option, rich_help_panel="How captions are found")
_machine = partial(typer.Option, rich_help_panel="Model and machine")
_model = partial(typer.Argument, help="A bundled model, a folder, or a Hugging Face hub id.")
_flag = {"metavar": "", "show_default": False}


@app.command()
def caption(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Files, folders, globs in quotes, or - for standard input."),
    ],
    recursive: Annotated[bool, _input("--recursive", help="Look in folders within folders too.", **_flag)] = False,
    format: Annotated[
        Format | None,
        _output(
            metavar="NAME",
            help=f"How results are written: {', '.join(Format)}.",
            show_default="by the ending of --output, else text",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        _output(
            metavar="FILE",
            help="Write here; the file appears only once it is complete.",
            show_default="standard output",
        ),
    ] = None,
    quiet: Annotated[bool, _output("--quiet", help="No progress and no warnings; only errors.", **_flag)] = False,
    timeline: Annotated[
        bool,
        _long("--timeline", metavar="", help="Caption window by window, with times.", show_default=False),
    ] = False,
    window: Annotated[float | None, _long(metavar="SECONDS", callback=_seconds, help="Length of a window.")] = None,
    hop: Annotated[
        float | None,
        _long(metavar="SECONDS", callback=_seconds, help="From one window's start to the next's; at most a window."),
    ] = None,
    n_best: Annotated[int, _search(metavar="K", min=1, help="How many captions a file, best first.")] = 1,
    beams: Annotated[
        int | None,
        _search(metavar="K", min=1, help="Width of the beam search; 1 is greedy, the fastest.", show_default=OWN),
    ] = None,
    sample: Annotated[bool, _search("--sample", help="Draw captions at random instead, for variety.", **_flag)] = False,
    seed: Annotated[int | None, _search(metavar="N", help="Make --sample repeatable.", show_default="0")] = None,
    model: Annotated[
        str, _machine(metavar="NAME", help="A bundled model, a folder, or a Hugging Face hub id.")
    ] = DEFAULT_MODEL,
    device: Annotated[
        str | None,
        _machine(metavar="NAME", help="cpu, cuda, cuda:1, mps ...", show_default="a GPU if there is one"),
    ] = None,
    threads: Annotated[
        int | None, _machine(metavar="N", min=1, help="Processor threads.", show_default="one a core")
    ] = None,
    batch_size: Annotated[
        int | None,
        _machine(metavar="N", min=1, help="Clips at a time; fewer need less memory.", show_default=OWN),
    ] = None,
) -> None:
    """Say in a sentence what is heard in each recording.

    Reads wav, flac, ogg, opus, mp3, aiff, m4a, mp4, webm and more, of any length.
    Captions go to standard output, progress and messages to standard error.
    Exit code: 0 if all went well; 1 if a file could not be captioned (the others
    are, and it is named); 2 if the command itself was wrong.

    \b
    [bold]Examples[/]
      [dim]# one sentence[/]
      [cyan]lamb caption dog.wav[/]
      [dim]# a folder and all below it, a JSON object a line[/]
      [cyan]lamb caption field/ --recursive --format jsonl[/]
      [dim]# subtitles of a long recording, from its sound track[/]
      [cyan]lamb caption trip.mp4 --timeline --output trip.srt[/]
      [dim]# the three best captions of a wider search[/]
      [cyan]lamb caption dog.wav --beams 8 --n-best 3[/]
      [dim]# from another program[/]
      [cyan]curl -s https://example.org/dog.ogg | lamb caption -[/]
    """
    if not sample and beams is not None and n_best > beams:
        raise typer.BadParameter(
            f"{n_best} captions cannot come out of {beams} beams; add --beams {n_best}, or --sample.",
            param_hint="--n-best",
        )
    if window and hop and hop > window:
        raise typer.BadParameter(
            f"{hop:g} s is longer than the window, {window:g} s; what lies between windows would not be heard.",
            param_hint="--hop",
        )
    if paths.count("-") > 1:
        raise typer.BadParameter("standard input (-) can be read only once.", param_hint="PATH")
    if format is None:
        ending = output.suffix[1:].lower() if output else ""
        format = Format(ending) if ending in list(Format) else Format.text

    from lamb.audio import AudioError, expand
    from lamb.captions import WRITERS

    _tidy_warnings(quiet)
    inputs: list[Any] = []
    failed: list[str] = []
    for path in paths:
        try:
            inputs += [_standard_input() if file == "-" else file for file in expand([path], recursive)]
        except AudioError as error:  # an empty folder, a pattern without a match: the other paths are captioned
            if len(paths) == 1:
                raise
            failed.append(path)
            _say("error", error)
    with _destination(output) as out, _progress(len(inputs), quiet) as progress:
        if threads:
            import torch

            torch.set_num_threads(threads)
        from lamb.captioner import Captioner

        with _loading():
            captioner = Captioner.load(model, device=device)
        results = captioner.stream(
            inputs,
            n_best=n_best,
            beams=beams,
            sample=sample,
            seed=seed,
            batch_size=batch_size,
            timeline=timeline,
            window=window,
            hop=hop,
        )
        writer = partial(_write_table, out) if format is Format.table else WRITERS[format]
        shared = out.isatty() and not progress.disable  # a terminal for both: the bar makes way for captions
        for chunk in writer(_watched(results, progress, failed)):
            if shared:
                progress.stop()
            out.write(chunk)
            out.flush()
            if shared:
                progress.start()
    if failed:
        raise typer.Exit(1)


@app.command()
def bulk(
    source: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="A folder, a manifest (.jsonl, .csv, .tsv, .txt), or an address."),
    ],
    out: Annotated[Path, _output(metavar="DIR", help="The folder to fill, or to go on with.", show_default=False)],
    format: Annotated[BulkFormat, _output(metavar="NAME", help="jsonl or parquet.")] = BulkFormat.jsonl,
    shard_size: Annotated[
        int | None,
        _output(metavar="N", min=1, help="Recordings a shard.", show_default="1000, fewer where there are few"),
    ] = None,
    retry_failed: Annotated[
        bool, _input("--retry-failed", help="Try again what failed in an earlier run.", **_flag)
    ] = False,
    as_listed: Annotated[
        bool, _input("--as-listed", help="Go on with the list of the first start; do not list again.", **_flag)
    ] = False,
    timeline: Annotated[
        bool,
        _long("--timeline", metavar="", help="Caption window by window, with times.", show_default=False),
    ] = False,
    window: Annotated[float | None, _long(metavar="SECONDS", callback=_seconds, help="Length of a window.")] = None,
    hop: Annotated[
        float | None,
        _long(metavar="SECONDS", callback=_seconds, help="From one window's start to the next's; at most a window."),
    ] = None,
    n_best: Annotated[int, _search(metavar="K", min=1, help="How many captions a file, best first.")] = 1,
    beams: Annotated[
        int | None,
        _search(metavar="K", min=1, help="Width of the beam search; 1 is greedy, the fastest.", show_default=OWN),
    ] = None,
    model: Annotated[
        str, _machine(metavar="NAME", help="A bundled model, a folder, or a Hugging Face hub id.")
    ] = DEFAULT_MODEL,
    device: Annotated[
        str | None,
        _machine(metavar="NAME", help="cpu, cuda, cuda:1, mps ...", show_default="the GPUs if there are any"),
    ] = None,
    workers: Annotated[
        int | None,
        _machine(metavar="N", min=1, help="Processes, each with a model.", show_default="one a GPU, else one a core"),
    ] = None,
    threads: Annotated[
        int | None,
        _machine(metavar="N", min=1, help="Processor threads of each.", show_default="the cores shared out"),
    ] = None,
    batch_size: Annotated[
        int | None,
        _machine(metavar="N", min=1, help="Clips at a time; fewer need less memory.", show_default=OWN),
    ] = None,
    ray: Annotated[
        str | None,
        _machine(metavar="ADDRESS", help="Work on this Ray cluster, or: local.", show_default="this machine"),
    ] = None,
    quiet: Annotated[bool, _output("--quiet", help="No progress; only errors.", **_flag)] = False,
) -> None:
    """Caption ten to ten million recordings into a folder, and go on after any interruption.

    INPUT is a folder (and all below it), a manifest, or an address such as s3://bucket/folder.
    The same command again goes on where the last one stopped, even after kill -9: every
    recording is in the output once, and finished shards are not touched.
    Exit code: 0 if all went well; 1 if a recording failed (see failures.jsonl), or no
    worker can start; 2 if the command itself was wrong.

    \b
    [bold]Examples[/]
      [cyan]lamb bulk field/ --out captions[/]
      [dim]# once more, with what failed[/]
      [cyan]lamb bulk field/ --out captions --retry-failed[/]
      [dim]# from a store, as Parquet, on a cluster[/]
      [cyan]lamb bulk s3://bucket/sounds --out captions --format parquet --ray auto[/]
    """
    from lamb.bulk import bulk
    from lamb.bulk_workers import Settings

    settings = Settings(model, device, threads, n_best, beams, batch_size, timeline, window, hop)
    with _progress(None, quiet) as progress:
        summary = bulk(
            source,
            out,
            settings,
            workers=workers,
            ray=ray,
            shard_size=shard_size,
            format=format,
            retry_failed=retry_failed,
            as_listed=as_listed,
            watch=partial(_show_tally, progress),
        )
    if not quiet:
        run = summary["this_run"]
        rows = [(name, f"{summary[name]:,}") for name in ("inputs", "captioned", "failed")]
        rows += [("hours of sound", f"{summary['hours']:,.2f}"), ("seconds", f"{run['seconds']:,.1f}")]
        rows += [("inputs a second", f"{run['inputs_per_second']:,.1f}")]
        rows += [("times real time", f"{run['hours_per_hour']:,.1f}")]
        sys.stderr.write(_table(sys.stderr, ("", ""), rows))
    print(out)
    if summary["failed"]:
        _say("error", f"{summary['failed']} of {summary['inputs']} failed: see {out / 'failures.jsonl'}")
        raise typer.Exit(1)


def _show_tally(progress: Progress, tally: Tally) -> None:
    """Move the bar of a bulk run; what it tells besides: rate, times real time, time left, failures."""
    run = tally.summary()["this_run"]
    rate = run["inputs_per_second"]
    left = (tally.total - tally.done - tally.failed) / rate if rate else None
    told = f"{rate:.1f}/s, {run['hours_per_hour']:.0f} h of sound an hour" if rate else "starting"
    told += f", {left / 60:.0f} min left" if left is not None else ""
    told += f", {tally.failed} failed" if tally.failed else ""
    task = progress.task_ids[0]
    progress.update(task, total=tally.total, completed=tally.done + tally.failed, description=told)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A YAML recipe, see recipes/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings in place of the recipe's.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.", **_flag)] = False,
) -> None:
    """Train after a recipe and print the folder: `lamb train recipes/tiny/3-lamb.yaml optim.steps=2000`."""
    from lamb.train import train

    print(train(recipe, overrides or [], resume))


@app.command()
def evaluate(
    model: Annotated[str, _model()],
    data: Annotated[str, typer.Argument(help="A data set by name, or a manifest (JSONL, CSV).")],
    split: Annotated[str | None, typer.Option(metavar="NAME", help="The part of the data, such as test.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.", **_flag)] = False,
) -> None:
    """Measure how good a model's captions are on a data set."""
    from lamb.evaluate import evaluate

    scores = evaluate(model, data, split)
    if as_json:
        _print_json(scores)
        return
    rows = [(name, f"{score:.4f}") for name, score in scores.items()]
    sys.stdout.write(_table(sys.stdout, ("measure", "score"), rows))


@app.command()
def data(
    name: Annotated[
        str,
        typer.Argument(
            help="audiocaps, clotho, wavcaps (or wavcaps-audioset, -bbc, -freesound, -soundbible), macs, esc50, "
            "urbansound8k, or folder: any folder with a caption table."
        ),
    ],
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder to make.", show_default="data/NAME")
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Recordings that you have; else they are fetched.", show_default=False),
    ] = None,
    without: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Leave out of training what this folder evaluates on; may be repeated."),
    ] = None,
) -> None:
    """Fetch a collection and write it as a manifest, for example `lamb data clotho --to data/clotho`."""
    from lamb.data.collections import prepare

    done = prepare(name, to or Path("data") / name, audio, without or ())
    total = len(done.clips) + len(done.missing) + len(done.leaked)
    if done.missing:
        where = done.manifest.with_name("missing.txt")
        _say("warning", f"{len(done.missing)} of {total} recordings are missing and left out; {where} lists them")
    if done.leaked:
        _say("warning", f"{len(done.leaked)} training clips are recordings that are evaluated on, and left out")
    rows = []
    for split in dict.fromkeys(clip.split for clip in done.clips):
        clips = [clip for clip in done.clips if clip.split == split]
        rows.append((split, f"{len(clips):,}", f"{sum(len(clip.captions) for clip in clips):,}"))
    sys.stdout.write(_table(sys.stdout, ("split", "clips", "captions"), rows))
    print(done.manifest)


@app.command()
def info(
    model: Annotated[str, _model()] = DEFAULT_MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the whole configuration.", **_flag)] = False,
) -> None:
    """Show what a model is made of, its size, what it was trained on and its licence."""
    from lamb.checkpoint import describe

    with _loading():
        facts = describe(model)
    if as_json:
        _print_json(facts)
        return
    about = []
    for name, value in facts.items():
        if name in ("parts", "config"):  # the parts come below; the configuration is for --json
            continue
        if name == "size_bytes":
            name, value = "size", f"{value / 1e6:.1f} MB"
        elif name == "sample_rate":
            value = f"{value} Hz"
        elif isinstance(value, dict):
            value = ", ".join(f"{key}: {item}" for key, item in value.items())
        elif isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        about.append((name.replace("_", " "), str(value)))
    sys.stdout.write(_table(sys.stdout, ("", ""), about))
    columns = ("part", "kind", "parameters", "trained")
    parts = [[_cell(part.get(column)) for column in columns] for part in facts.get("parts", ())]
    sys.stdout.write(_table(sys.stdout, columns, parts))


def main() -> None:
    """The `lamb` command. A user's mistake ends in one line on standard error, a mistake of ours in a traceback."""
    try:
        app(prog_name="lamb")
    except (ValueError, OSError) as error:
        if not _is_users(error):
            raise
        _fail(error, 2 if isinstance(error, ValueError) else 1)


def _is_users(error: Exception) -> bool:
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


def _say(kind: str, message: object) -> None:
    from lamb.captions import one_line

    print(f"lamb: {kind}: {one_line(str(message))}", file=sys.stderr, flush=True)


def _fail(error: Exception, code: int) -> NoReturn:
    _say("error", error)
    sys.exit(code)


@contextmanager
def _loading() -> Iterator[None]:
    """Around the loading of a model: what goes wrong there is nobody's bad option, so the exit code is 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        _fail(error, 1)


def _tidy_warnings(quiet: bool) -> None:
    """Our warnings in one line each; those of the libraries only where the user asked for them (-W)."""
    import warnings

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if not category.__module__.startswith("lamb."):
            usual(message, category, *rest, **named)
        elif not quiet:
            _say("warning", message)

    from lamb.audio import AudioWarning

    usual, warnings.showwarning = warnings.showwarning, show
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    warnings.simplefilter("always", AudioWarning)


def _standard_input() -> BinaryIO:
    """Standard input as a binary file that is called what the user called it."""
    raw = io.FileIO(0, closefd=False)
    raw.name = "-"  # type: ignore[misc]
    return io.BufferedReader(raw)


@contextmanager
def _destination(output: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that gets its name only when complete; UTF-8, and file names byte for byte."""
    if output is None:
        stdout = cast("Any", sys.stdout)
        stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
        yield stdout
    elif output.exists() and not output.is_file():  # a device or a pipe is written to, never replaced
        with output.open("w", encoding="utf-8", errors="surrogateescape") as file:
            yield file
    elif not output.resolve().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent}.", param_hint="--output")
    else:
        part = output.resolve().with_name(f".lamb-{os.getpid()}.part")
        try:
            with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                yield file
            part.replace(output.resolve())
        finally:
            part.unlink(missing_ok=True)


def _progress(total: int | None, quiet: bool) -> Progress:
    """A bar on standard error that leaves nothing behind; none where nobody would see it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    progress = Progress(
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        disable=quiet or not sys.stderr.isatty(),
    )
    progress.add_task("", total=total)
    return progress


def _watched(results: Iterable[Caption], progress: Progress, failed: list[str]) -> Iterator[Caption]:
    """The same results; failures are told and collected in `failed`, and the bar moves on."""
    for result in results:
        if result.error is not None:
            failed.append(result.file)
            named = result.file in result.error
            _say("error", result.error if named else f"{result.file}: {result.error}")
        progress.advance(progress.task_ids[0])
        yield result


def _write_table(out: TextIO, results: Iterable[Caption]) -> Iterator[str]:
    """A writer, as those of `lamb.captions`, of a table for the eye; it comes when all results are there."""
    from lamb.captions import one_line, span

    rows: list[tuple[str, str, str, str]] = []
    for result in results:
        length = "" if result.duration is None else f"{result.duration:.1f} s"
        lines: list[tuple[str, str, float | None]]
        if result.error is not None:
            lines = [("", "(failed)", None)]
        elif result.segments:
            lines = [(span(s.start, s.end), s.caption, s.confidence) for s in result.segments]
        else:
            lines = [(length, text, None) for text, _ in result.n_best()]
            lines[0] = (length, result.text, result.confidence)
        names = chain([one_line(result.file)], repeat(""))
        for name, (time, text, confidence) in zip(names, lines, strict=False):
            rows.append((name, time, one_line(text), "" if confidence is None else f"{confidence:.2f}"))
    yield _table(out, ("file", "length", "caption", "confidence"), rows)


def _table(out: TextIO, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as wide as `out` can show; without a head where all columns are nameless, numbers to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_header=any(columns), pad_edge=False)
    rows = list(rows)
    for column in columns:
        numbers = column in ("length", "confidence", "score", "parameters", "trained")
        short = column == "file" and all(len(row[0]) <= 40 for row in rows)  # names to copy, while there is room
        table.add_column(column, justify="right" if numbers else "left", overflow="fold", no_wrap=short)
    for row in rows:
        table.add_row(*map(Text, row))  # not str: a file name is no markup
    console = Console(file=out)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def _cell(value: object) -> str:
    """A value as a table shows it: yes, no, 1,234,567, or its text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
