"""`lamb evaluate`: how good captions are."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import one_line_warnings, say
from .options import INPUT, MACHINE, OUTPUT, AsJson, Device, Quiet, Split, flag, option, refuse
from .output import refuse_to_replace
from .terminal import print_json, print_table, progress_bar

if TYPE_CHECKING:
    from ..evaluation.evaluate import Evaluation


def evaluate(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] DATA",
            help="MODEL is a bundled model, a folder or a hub id. DATA is a manifest, a folder of labelled recordings, "
            "or a caption table of AudioCaps or Clotho. With --predictions, --compare or --human, give DATA alone.",
            show_default=False,
        ),
    ] = None,
    split: Split = None,
    predictions: Annotated[
        Path | None,
        option("FILE", "Score these captions (CSV or JSONL with id and caption) instead of a model's.", INPUT),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None, option("A B", "Compare two models or files of captions with a paired test.", INPUT)
    ] = None,
    human: Annotated[
        bool, flag("--human", panel=INPUT, help="Score each human caption against the clip's other captions.")
    ] = False,
    partial: Annotated[
        bool, flag("--partial", panel=INPUT, help="Leave out clips that a file of captions does not contain.")
    ] = False,
    probe: Annotated[
        bool, flag("--probe", panel=INPUT, help="Also test on pairs of the labelled clips, silence, noise and tones.")
    ] = False,
    probe_seed: Annotated[
        list[int] | None,
        option(
            "N", "Draw the pairs of --probe from this seed; repeat the option for several seeds.", INPUT, "--probe-seed"
        ),
    ] = None,
    report: Annotated[
        Path | None,
        option("DIR", "Write an HTML report with tables, pictures and playable clips into this folder.", OUTPUT),
    ] = None,
    out: Annotated[
        Path | None,
        option(
            "DIR",
            "Keep predictions.jsonl in this folder; an interrupted run is continued.",
            OUTPUT,
            default="that of --report, else runs/evaluate/MODEL-DATA",
        ),
    ] = None,
    csv: Annotated[Path | None, option("FILE", "Write the scores of each clip to this file.", OUTPUT, "--csv")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    sbert: Annotated[
        str | None,
        option("NAME", "The sentence model of SBERT similarity and FENSE.", MACHINE, default="that of FENSE"),
    ] = None,
    device: Device = None,
    download: Annotated[
        bool,
        flag("--download", panel=MACHINE, help="Download what SPICE and FENSE need (1.1 GB), and do nothing else."),
    ] = False,
) -> None:
    """Measure the quality of captions.

    The captions come from a model, from another system, or from people.

    Prints each measure with its 95 % confidence interval, and which measures were left out and why.

    \b
    Examples:
      lamb evaluate tiny data/clotho --split test --report clotho
      lamb evaluate --predictions captions.csv data/clotho --split test
      lamb evaluate --compare runs/a runs/b data/clotho --split test
      lamb evaluate --human data/clotho --split test
    """
    if download:
        from ..evaluation import resources

        for path in resources.download(sbert or resources.SBERT):
            print(path)
        return
    if probe and (human or predictions):
        refuse("--probe", "only a model can caption the additional sounds.")
    if sum([predictions is not None, compare is not None, human]) > 1:
        raise typer.BadParameter("give only one of --predictions, --compare and --human.")
    *model, data = _positional(given or [], 1 if predictions or compare or human else 2)
    systems = [str(predictions)] if predictions else list(compare or model)
    for name, target in (("--csv", csv), ("--report", report), ("--out", out)):
        if target and target.exists() and target.is_dir() == (name == "--csv"):
            refuse(name, f"{target} is a {'folder' if target.is_dir() else 'file'}.")
    if csv:
        refuse_to_replace(csv, [*(compare or ()), *([predictions] if predictions else []), data], "system,id,", "--csv")
    one_line_warnings(quiet)

    from ..evaluation import evaluate as evaluation

    sbert = sbert or evaluation.SBERT
    if human:
        found = [evaluation.evaluate_people(data, split, sbert=sbert)]
    else:
        outs: list[Path | None] = [
            evaluation.folder_of(system, data, split, out or report, len(systems) > 1) for system in systems
        ]
        if not (out or report):
            outs = [folder and _writable(folder, quiet) for folder in outs]
        with progress_bar(1, quiet) as progress:
            found = evaluation.evaluate_models(
                systems,
                data,
                split,
                outs,
                sbert=sbert,
                device=device,
                partial=partial,
                probe_seeds=(probe_seed or [0]) if probe else [],
                progress=lambda done, total: progress.update(progress.task_ids[0], completed=done, total=total),
                say=lambda message: None if quiet else say("note", message),
            )
    if csv:
        evaluation.write_csv(found, csv)
    if report:
        from ..evaluation.report import write

        page = write(found, report, shlex.join(["lamb", *sys.argv[1:]]))
        if not quiet:
            say("report", page)
    test = evaluation.compare(*found) if compare else {}
    if as_json:
        print_json({"systems": [f.to_dict() for f in found], "test": test} if compare else found[0].to_dict())
    else:
        _print_scores(found, test)
        if not quiet:
            _say_notes(found[0])
    failures = [(f.system, f.failed, len(f.clips)) for f in found if f.failed]
    for system, failed, clips in failures:
        say("warning", f"{system}: {failed} of {clips} clips could not be captioned; they count as empty captions")
    if failures:
        raise typer.Exit(1)


def _writable(folder: Path, quiet: bool) -> Path | None:
    """The folder that keeps predictions by default, or None where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if not quiet:
            say("note", f"predictions are not kept: {folder} cannot be made ({error.strerror}); see --out")
        return None
    return folder


def _positional(given: list[str], expected: int) -> list[str]:
    """The positional arguments, if there are as many as expected: DATA alone, or MODEL and DATA."""
    if len(given) != expected:
        names = "DATA alone" if expected == 1 else "MODEL and DATA"
        refuse("DATA", f"expected {names}, got: {' '.join(given) or 'nothing'}.")
    return given


def _print_scores(found: Sequence[Evaluation], test: dict[str, dict[str, float]]) -> None:
    """Print the measures of each system with their intervals, or with the test of a comparison."""
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
    print_table(["measure", *systems, *heads], rows)
    for letter, one in zip("AB", found, strict=False) if test else ():
        print(f"{letter}: {one.system}")


def _say_notes(evaluation: Evaluation) -> None:
    """Print to standard error how it was measured, and which measures were left out."""
    for note in evaluation.notes:
        say("note", note)
    for reason, left in evaluation.reasons().items():
        say("left out", f"{', '.join(left)}: {reason}")
