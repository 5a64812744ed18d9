"""The command line: a thin function a command, with all that is heavy imported inside, so `lamb --help` is quick.

Results go to standard output, progress and messages to standard error. Exit codes: 0 all succeeded, 1 something
failed (a file, loading a model), 2 the command was wrong, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dis import opmap
from enum import StrEnum
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NoReturn, TextIO, cast

import typer

from lamb.config import ServeConfig

if TYPE_CHECKING:
    from rich.progress import Progress

    from lamb.bulk.run import Tally
    from lamb.evaluation.evaluate import Evaluation
    from lamb.inference.captioner import Captioner
    from lamb.inference.captions import Caption, Timeline
    from lamb.inference.picture import Picture

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
    """What `lamb caption` can write: the writers of `lamb.inference.captions`, and a table for the eye."""

    text = "text"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    srt = "srt"
    vtt = "vtt"
    audacity = "audacity"
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
        _long("--timeline", metavar="", help="Say what is heard when; segments follow the sound.", show_default=False),
    ] = False,
    window: Annotated[
        float | None,
        _long(
            metavar="SECONDS",
            callback=_seconds,
            help="A fixed grid instead: a segment is a window of this length.",
            show_default=False,
        ),
    ] = None,
    hop: Annotated[
        float | None,
        _long(
            metavar="SECONDS",
            callback=_seconds,
            help="From one window of the grid to the next; at most a window.",
            show_default="in proportion to the window",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        _long(
            metavar="FILE",
            help="With --timeline, also draw the spectrogram with the segments under it (png, pdf, svg).",
            show_default=False,
        ),
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
    Exit code: 0 if all went well; 1 if a file, or with --timeline a part of it, could
    not be captioned (the others are, and it is named); 2 if the command was wrong.

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
    if plot and not timeline:
        raise typer.BadParameter("the picture shows segments; add --timeline.", param_hint="--plot")
    if paths.count("-") > 1:
        raise typer.BadParameter("standard input (-) can be read only once.", param_hint="PATH")
    if format is None:
        ending = output.suffix[1:].lower() if output else ""
        format = Format.audacity if ending == "labels" else Format(ending) if ending in list(Format) else Format.text

    from lamb.audio.reader import AudioError, expand
    from lamb.inference.captions import WRITERS

    inputs: list[Any] = []
    failed: list[str] = []
    _tidy_warnings(quiet, failed)
    for path in paths:
        try:
            inputs += [_standard_input() if file == "-" else file for file in expand([path], recursive)]
        except AudioError as error:  # an empty folder, a pattern without a match: the other paths are captioned
            if len(paths) == 1:
                raise
            failed.append(path)
            _say("error", error)
    if plot and len(inputs) != 1:
        raise typer.BadParameter(f"a picture is of one recording, not of {len(inputs)}.", param_hint="--plot")
    with _destination(output) as out, _progress(len(inputs), quiet) as progress:
        if threads:
            import torch

            torch.set_num_threads(threads)
        from lamb.inference.captioner import Captioner

        with _loading():
            captioner = Captioner.load(model, device=device)
        options: dict[str, Any] = {
            "n_best": n_best,
            "beams": beams,
            "sample": sample,
            "seed": seed,
            "batch_size": batch_size,
            "window": window,
            "hop": hop,
        }
        results: Iterable[Caption | Timeline]
        if timeline:
            picture = _picture(captioner, plot)
            found = captioner.timelines(inputs, **options, listen=picture and picture.listen)
            results = (_followed(result, progress, picture) for result in found)
        else:
            results = captioner.stream(inputs, **options)
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
    Exit code: 0 if all went well; 1 if a recording failed (see failures.jsonl) or is
    damaged, or no worker can start; 2 if the command itself was wrong.

    \b
    [bold]Examples[/]
      [cyan]lamb bulk field/ --out captions[/]
      [dim]# once more, with what failed[/]
      [cyan]lamb bulk field/ --out captions --retry-failed[/]
      [dim]# from a store, as Parquet, on a cluster[/]
      [cyan]lamb bulk s3://bucket/sounds --out captions --format parquet --ray auto[/]
    """
    from lamb.bulk.run import bulk
    from lamb.bulk.workers import Settings

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
        rows = [(name, f"{summary[name]:,}") for name in ("inputs", "captioned", "damaged", "failed")]
        rows += [("hours of sound", f"{summary['hours']:,.2f}"), ("seconds", f"{run['seconds']:,.1f}")]
        rows += [("inputs a second", f"{run['inputs_per_second']:,.1f}")]
        rows += [("times real time", f"{run['hours_per_hour']:,.1f}")]
        sys.stderr.write(_table(sys.stderr, ("", ""), rows))
    print(out)
    if summary["failed"]:
        _say("error", f"{summary['failed']} of {summary['inputs']} failed: see {out / 'failures.jsonl'}")
    if summary["damaged"]:
        _say("error", f"{summary['damaged']} of {summary['inputs']} are damaged: see damage in {out / 'captions'}")
    if summary["failed"] or summary["damaged"]:
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
    from lamb.training.loop import is_first_process
    from lamb.training.train import train

    out = train(recipe, overrides or [], resume)
    if is_first_process():
        print(out)


@app.command()
def evaluate(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] DATA",
            help="A bundled model, a folder or a hub id; then a manifest, a folder of labelled recordings, or a "
            "caption table of AudioCaps or Clotho. DATA alone with --predictions, --compare and --human.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str | None, _input(metavar="NAME", help="The part of the data, such as test.")] = None,
    predictions: Annotated[
        Path | None, _input(metavar="FILE", help="Score these captions (CSV or JSONL: id, caption), not a model's.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        _input(metavar="A B", help="Two models or files of captions, and a paired test of them.", show_default=False),
    ] = None,
    human: Annotated[
        bool, _input("--human", help="Score people: each human caption against the clip's others.", **_flag)
    ] = False,
    partial: Annotated[
        bool, _input("--partial", help="Leave out clips that a file of captions does not have.", **_flag)
    ] = False,
    probe: Annotated[
        bool,
        _input("--probe", help="Also ask about pairs of the labelled clips, silence, noise and tones.", **_flag),
    ] = False,
    probe_seed: Annotated[
        list[int] | None,
        _input("--probe-seed", metavar="N", help="Draw the pairs of --probe from this seed; several times: from each."),
    ] = None,
    report: Annotated[
        Path | None, _output(metavar="DIR", help="Write a page here: tables, pictures, clips to listen to.")
    ] = None,
    out: Annotated[
        Path | None,
        _output(
            metavar="DIR",
            help="Keep predictions.jsonl here; a run that was stopped goes on.",
            show_default="that of --report, else runs/evaluate/MODEL-DATA",
        ),
    ] = None,
    csv: Annotated[Path | None, _output("--csv", metavar="FILE", help="Write the scores of every clip here.")] = None,
    as_json: Annotated[bool, _output("--json", help="Print JSON, not a table.", **_flag)] = False,
    quiet: Annotated[bool, _output("--quiet", help="No progress and no messages; only errors.", **_flag)] = False,
    sbert: Annotated[
        str | None,
        _machine(metavar="NAME", help="Sentence model of SBERT similarity and FENSE.", show_default="that of FENSE"),
    ] = None,
    device: Annotated[
        str | None,
        _machine(metavar="NAME", help="cpu, cuda, cuda:1, mps ...", show_default="a GPU if there is one"),
    ] = None,
    download: Annotated[
        bool, _machine("--download", help="Fetch what SPICE and FENSE need (1.1 GB), and do nothing else.", **_flag)
    ] = False,
) -> None:
    """Measure how good captions are: a model's, another system's, or people's.

    Prints each measure with its 95 % interval, and what was left out and why.

    \b
    [bold]Examples[/]
      [cyan]lamb evaluate tiny data/clotho --split test --report clotho[/]
      [cyan]lamb evaluate --predictions captions.csv data/clotho --split test[/]
      [cyan]lamb evaluate --compare runs/a runs/b data/clotho --split test[/]
      [cyan]lamb evaluate --human data/clotho --split test[/]
    """
    if download:
        from lamb.evaluation import reference_metrics

        for path in reference_metrics.download(sbert or reference_metrics.SBERT):
            print(path)
        return
    systems = [str(predictions)] if predictions else list(compare or ())
    if probe and (human or predictions):
        raise typer.BadParameter("only a model can be asked about other sounds.", param_hint="--probe")
    if sum([predictions is not None, compare is not None, human]) > 1:
        raise typer.BadParameter("one of --predictions, --compare and --human at a time.")
    wanted = 1 if systems or human else 2
    if len(given or ()) != wanted:
        names = "DATA alone" if wanted == 1 else "MODEL and DATA"
        raise typer.BadParameter(f"{names} wanted here, got: {' '.join(given or ()) or 'nothing'}.", param_hint="DATA")
    assert given
    *model, data = given
    systems = systems or model
    for option, target in (("--csv", csv), ("--report", report), ("--out", out)):
        if target and target.exists() and target.is_dir() == (option == "--csv"):
            raise typer.BadParameter(f"{target} is a {'folder' if target.is_dir() else 'file'}.", param_hint=option)
    _tidy_warnings(quiet)

    from lamb.evaluation import evaluate as evaluation

    sbert = sbert or evaluation.SBERT
    if human:
        found = [evaluation.evaluate_people(data, split, sbert=sbert)]
    else:
        outs = [evaluation.folder_of(system, data, split, out or report, len(systems) > 1) for system in systems]
        with _progress(1, quiet) as progress:

            def move(done: int, total: int) -> None:
                progress.update(progress.task_ids[0], completed=done, total=total)

            def say(message: str) -> None:
                if not quiet:
                    _say("note", message)

            found = evaluation.evaluate_models(
                systems,
                data,
                split,
                outs,
                sbert=sbert,
                device=device,
                partial=partial,
                probe_seeds=(probe_seed or [0]) if probe else [],
                progress=move,
                say=say,
            )
    if csv:
        evaluation.write_csv(found, csv)
    if report:
        from lamb.evaluation.report import write

        page = write(found, report)
        if not quiet:
            _say("report", page)
    test = evaluation.compare(*found) if compare else {}
    if as_json:
        _print_json({"systems": [f.to_dict() for f in found], "test": test} if compare else found[0].to_dict())
    else:
        _print_scores(found, test, quiet)
    failures = [(f.system, f.failed, len(f.clips)) for f in found if f.failed]
    for system, failed, clips in failures:
        _say("warning", f"{system}: {failed} of {clips} clips could not be captioned; they count as empty captions")
    if failures:
        raise typer.Exit(1)


def _print_scores(found: Sequence[Evaluation], test: dict[str, dict[str, float]], quiet: bool) -> None:
    """The measures of each system, their intervals or their test, and on standard error what was left out."""
    tables = [one.to_dict() for one in found]
    names = [name for name, value in tables[0].items() if isinstance(value, int | float)]
    rows = []
    for name in names:
        cells = [f"{value:.4f}" if isinstance(value := t.get(name, ""), float) else f"{value}" for t in tables]
        if test:
            more = [f"{test[name]['difference']:+.4f}", f"{test[name]['p']:.4f}"] if name in test else ["", ""]
        else:
            interval = tables[0]["intervals"].get(name)
            more = [f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""]
        rows.append([name, *cells, *more])
    heads = ["difference", "p"] if test else ["95 % interval"]
    systems = [f"score {letter}" for letter in "AB"] if test else ["score"]
    sys.stdout.write(_table(sys.stdout, ["measure", *systems, *heads], rows))
    for letter, one in zip("AB", found, strict=False) if test else ():
        print(f"{letter}: {one.system}")
    if not quiet:
        for note in found[0].notes:
            _say("note", note)
        for reason, left in found[0].reasons().items():
            _say("left out", f"{', '.join(left)}: {reason}")


@app.command()
def gap(
    model: Annotated[str, _model()],
    data: Annotated[
        str, typer.Argument(help="A manifest with captions (JSONL, CSV), or a folder of labelled recordings.")
    ],
    split: Annotated[str | None, typer.Option(metavar="NAME", help="The part of the data, such as test.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw both clouds: .png, .svg or .pdf.", show_default=False)
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A second model, for comparison.", show_default=False)
    ] = None,
    umap: Annotated[bool, typer.Option("--umap", help="Draw by UMAP, not by PCA.", **_flag)] = False,
    unit: Annotated[bool, typer.Option("--unit", help="Draw directions only: vectors of length 1.", **_flag)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.", **_flag)] = False,
) -> None:
    """Measure how far a model's audio tokens lie from its text embeddings, and draw it."""
    if (umap or unit) and plot is None:
        raise typer.BadParameter(
            "they are about the picture; say where it goes: --plot FILE.", param_hint="--umap, --unit"
        )
    from lamb.data import sources
    from lamb.evaluation import gap
    from lamb.inference.captioner import Captioner

    _tidy_warnings(quiet=False)
    if plot:
        gap.format_of(plot, umap)
    clips = sources.clips(data, split)
    panels = []
    for name in filter(None, (model, against)):
        with _loading():
            captioner = Captioner.load(name)
        panels.append((name, gap.embed(captioner.model, clips)))
    found = [{"model": name, **gap.measures(embeddings)} for name, embeddings in panels]
    if plot:
        gap.picture(panels, plot, umap, unit)
    if as_json:
        _print_json(found)
    else:
        rows = [[key, *(_measure(own[key]) for own in found)] for key in found[0] if key != "model"]
        sys.stdout.write(_table(sys.stdout, ("measure", *(name for name, _ in panels)), rows))
    if any(embeddings.failed for _, embeddings in panels):
        raise typer.Exit(1)


def _measure(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


@app.command()
def ablate(
    recipe: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="A YAML recipe, see recipes/ablation.yaml.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings in place of the recipe's.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the runs that are missing.", **_flag)] = False,
    document: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Put the tables into this Markdown file too.", show_default=False),
    ] = None,
) -> None:
    """Train and score variants of a recipe with several seeds, and print the tables."""
    from lamb.training.ablate import ablate

    print(ablate(recipe, overrides or [], resume, document), end="")


@app.command()
def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A bundled model, a folder, or a Hugging Face hub id; may be repeated, to choose on the page.",
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="Its port.")] = 7860,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps ...", show_default="a GPU if there is one"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="What the modality gap is shown for: a manifest with captions, or a folder of labelled recordings.",
            show_default="the samples of the repository",
        ),
    ] = None,
) -> None:
    """Show a page in the browser: captions, timeline, what the Token Guide does, the modality gap."""
    from lamb.serving.page import demo

    _tidy_warnings(quiet=False)
    if host not in ("127.0.0.1", "::1", "localhost"):
        _say("warning", f"anybody who reaches {host} can use this page")
    demo(model or [DEFAULT_MODEL], host, port, device, data)


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
    from lamb.model.checkpoint import describe

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


SERVE = ServeConfig()
_limit = partial(typer.Option, rich_help_panel="Limits")
_share = partial(typer.Option, rich_help_panel="Sharing the machine")


@app.command()
def serve(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 is everywhere.")] = SERVE.host,
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 is any free one.")] = SERVE.port,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="API keys, one a line; those of the environment variable LAMB_API_KEYS count too.",
            show_default="no key is asked for",
        ),
    ] = None,
    max_size: Annotated[float, _limit(metavar="MB", min=0.001, help="Of an upload.")] = SERVE.max_size,
    max_duration: Annotated[float, _limit(metavar="SECONDS", min=0.1, help="Of a recording.")] = SERVE.max_duration,
    max_channels: Annotated[int, _limit(metavar="N", min=1, help="Of a recording.")] = SERVE.max_channels,
    max_rate: Annotated[int, _limit(metavar="HZ", min=4000, help="Of a recording.")] = SERVE.max_rate,
    upload_timeout: Annotated[
        float, _limit(metavar="SECONDS", min=0.1, help="For a request to arrive.")
    ] = SERVE.upload_timeout,
    decode_timeout: Annotated[
        float, _limit(metavar="SECONDS", min=0.1, help="For a recording to be decoded.")
    ] = SERVE.decode_timeout,
    decode_memory: Annotated[
        float, _limit(metavar="MB", min=256, help="Of a process that decodes.")
    ] = SERVE.decode_memory,
    queue: Annotated[
        int, _share(metavar="N", min=1, help="Requests at a time; more are answered with 503.")
    ] = SERVE.queue,
    decoders: Annotated[int, _share(metavar="N", min=1, help="Processes that decode.")] = SERVE.decoders,
    batch_wait: Annotated[
        float, _share(metavar="SECONDS", min=0, help="How long a sound waits for others to be captioned with.")
    ] = SERVE.batch_wait,
    batches: Annotated[
        int | None,
        _share(metavar="N", min=1, help="Batches at a time, sharing the threads.", show_default="2, on a GPU 1"),
    ] = SERVE.batches,
    drain: Annotated[
        float, _share(metavar="SECONDS", min=0, help="For requests to be finished, at the end.")
    ] = SERVE.drain,
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
    """Answer captions over HTTP, for example `curl -F file=@dog.wav http://127.0.0.1:8000/v1/caption`.

    Logs, a JSON object a line, go to standard error. What is answered: http://127.0.0.1:8000/docs
    """
    try:
        from lamb.serving.server import Service, model_name, read_keys, serve
    except ImportError as error:
        raise OSError(f"{error}; the service needs: pip install 'lamb-aac[serve]'") from None

    settings = ServeConfig(
        host=host,
        port=port,
        batch_wait=batch_wait,
        batches=batches,
        queue=queue,
        max_size=max_size,
        max_duration=max_duration,
        max_channels=max_channels,
        max_rate=max_rate,
        upload_timeout=upload_timeout,
        decoders=decoders,
        decode_timeout=decode_timeout,
        decode_memory=decode_memory,
        drain=drain,
    )
    known = read_keys(keys)
    if not known and host not in ("127.0.0.1", "::1", "localhost"):
        _say("warning", f"anybody who reaches {host} can use this service; see --keys")
    if threads:
        import torch

        torch.set_num_threads(threads)
    from lamb.inference.captioner import Captioner

    with _loading():
        captioner = Captioner.load(model, device=device)
    serve(Service(captioner, model_name(model), settings, batch_size), known)


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
    from lamb.inference.captions import one_line

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


def _tidy_warnings(quiet: bool, damaged: list[str] | None = None) -> None:
    """Our warnings in one line each; those of the libraries only where the user asked for them (-W).

    Sound that is lost is an error, be it `quiet`, and what is said of it is collected in `damaged`.
    """
    import warnings

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if not category.__module__.startswith("lamb."):
            usual(message, category, *rest, **named)
        elif damaged is not None and issubclass(category, AudioDamage):
            damaged.append(str(message))
            _say("error", message)
        elif not quiet:
            _say("warning", message)

    from lamb.audio.reader import AudioDamage, AudioWarning

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


def _picture(captioner: Captioner, plot: Path | None) -> Picture | None:
    if plot is None:
        return None
    from lamb.inference.picture import Picture

    return Picture(captioner.model.encoder.sample_rate, plot)


def _followed(result: Caption | Timeline, progress: Progress, picture: Picture | None) -> Caption | Timeline:
    """The same result; the bar moves with its segments, and at their end the picture is drawn."""
    from lamb.audio.reader import AudioError, probe
    from lamb.inference.captions import Caption, Segment, Timeline

    if isinstance(result, Caption):
        return result
    task, before, length = progress.tasks[0], progress.tasks[0].completed, None
    if not progress.disable and os.path.isfile(result.file):
        with suppress(AudioError):  # damaged, and told already
            length = probe(result.file).duration

    def segments() -> Generator[Segment, None, Caption]:
        for segment in result:
            if length:
                progress.update(task.id, completed=before + min(0.99, segment.end / length))
            yield segment
        caption = result.finish()
        if picture:
            picture.draw(caption.segments, result.file)
        return caption

    return Timeline(result.file, segments())


def _watched(
    results: Iterable[Caption | Timeline], progress: Progress, failed: list[str]
) -> Iterator[Caption | Timeline]:
    """The same results; failures are told and collected in `failed`, and the bar moves on."""
    from lamb.inference.captions import Caption

    for result in results:
        if isinstance(result, Caption) and result.error is not None:
            failed.append(result.file)
            named = result.file in result.error
            _say("error", result.error if named else f"{result.file}: {result.error}")
        yield result
        progress.advance(progress.task_ids[0])


def _write_table(out: TextIO, results: Iterable[Caption | Timeline]) -> Iterator[str]:
    """A writer, as those of `lamb.inference.captions`, of a table for the eye; it comes when all results are there."""
    from lamb.inference.captions import Timeline, one_line, span

    rows: list[tuple[str, str, str, str]] = []
    for result in results:
        if isinstance(result, Timeline):
            result = result.finish()
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
        numbers = column.startswith("score") or column in (
            "length",
            "confidence",
            "parameters",
            "trained",
            "difference",
            "p",
            "95 % interval",
        )
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
