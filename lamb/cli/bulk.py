"""`lamb bulk`: many recordings on one machine or a cluster."""

from __future__ import annotations

import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import DEFAULT_MODEL, DecodeLimits
from .errors import say
from .options import (
    INPUT,
    LONG,
    MACHINE,
    OUTPUT,
    OWN,
    BatchSize,
    Beams,
    DecodeMemory,
    DecodeTimeout,
    Model,
    NBest,
    Quiet,
    Track,
    flag,
    option,
    positive_seconds,
)
from .terminal import progress_bar, table

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..bulk.run import Tally


class BulkFormat(StrEnum):
    """The output formats of `lamb bulk`."""

    jsonl = "jsonl"
    parquet = "parquet"


def bulk(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="A folder, a manifest (.jsonl, .csv, .tsv, .txt), or an address such as s3://..."
        ),
    ],
    out: Annotated[Path, option("DIR", "The output folder; an unfinished run in it is continued.", OUTPUT)],
    format: Annotated[BulkFormat, option("NAME", "The output format: jsonl or parquet.", OUTPUT)] = BulkFormat.jsonl,
    shard_size: Annotated[
        int | None, option("N", "Recordings per shard.", OUTPUT, default="1000, fewer for small inputs", min=1)
    ] = None,
    retry_failed: Annotated[
        bool, flag("--retry-failed", panel=INPUT, help="Also retry what failed in an earlier run.")
    ] = False,
    as_listed: Annotated[
        bool, flag("--as-listed", panel=INPUT, help="Continue with the list of the first start; do not list again.")
    ] = False,
    timeline: Annotated[bool, flag("--timeline", panel=LONG, help="Caption each window, with times.")] = False,
    window: Annotated[
        float | None, option("SECONDS", "Length of a window.", LONG, default=OWN, callback=positive_seconds)
    ] = None,
    hop: Annotated[
        float | None,
        option(
            "SECONDS",
            "Time from the start of one window to the next, at most a window.",
            LONG,
            default=OWN,
            callback=positive_seconds,
        ),
    ] = None,
    n_best: NBest = 1,
    beams: Beams = None,
    model: Model = DEFAULT_MODEL,
    device: Annotated[
        str | None, option("NAME", "auto, cpu, cuda, cuda:1, mps ...", MACHINE, default="the GPUs if there are any")
    ] = None,
    workers: Annotated[
        int | None,
        option(
            "N",
            "Worker processes, each with its own model.",
            MACHINE,
            default="one for each GPU, else for each core",
            min=1,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        option("N", "Processor threads of each worker.", MACHINE, default="the cores divided by the workers", min=1),
    ] = None,
    batch_size: BatchSize = None,
    track: Track = None,
    decode_timeout: DecodeTimeout = DecodeLimits.seconds,
    decode_memory: DecodeMemory = DecodeLimits.memory,
    ray: Annotated[
        str | None,
        option(
            "ADDRESS",
            "Run on the Ray cluster at this address, or on a local one: local.",
            MACHINE,
            default="this machine, without Ray",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Caption very many recordings; resumable.

    Fills a folder with the captions of ten to ten million recordings.

    INPUT is a folder (with all folders in it), a manifest, or an address such as s3://bucket/folder.
    The same command again continues where the last run stopped, even after kill -9: each
    recording is in the output once, and finished shards are not touched.

    Exit code: 0 if all recordings were captioned; 1 if a recording failed (see failures.jsonl)
    or is damaged, or if no worker can start; 2 if the command itself was wrong.

    \b
    Examples:
      lamb bulk field/ --out captions
      lamb bulk field/ --out captions --retry-failed
      lamb bulk s3://bucket/sounds --out captions --format parquet --ray auto
    """
    from ..bulk.run import bulk
    from ..bulk.workers import Settings

    limits = DecodeLimits(seconds=decode_timeout, memory=decode_memory, track=track)
    settings = Settings(model, device, threads, n_best, beams, batch_size, timeline, window, hop, limits)
    with progress_bar(None, quiet) as progress:
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
        sys.stderr.write(table(sys.stderr, ("", ""), _rows(summary)))
    print(out)
    failed, damaged, inputs = summary["failed"], summary["damaged"], summary["inputs"]
    if failed:
        say("error", f"{failed} of {inputs} recordings failed; {out / 'failures.jsonl'} lists them")
    if damaged:
        say("error", f"{damaged} of {inputs} recordings are damaged; see the field damage in {out / 'captions'}")
    if failed or damaged:
        raise typer.Exit(1)


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The summary of a run as rows of a table."""
    run = summary["this_run"]
    return [
        *((name, f"{summary[name]:,}") for name in ("inputs", "captioned", "damaged", "failed")),
        ("hours of sound", f"{summary['hours']:,.2f}"),
        ("seconds", f"{run['seconds']:,.1f}"),
        ("inputs per second", f"{run['inputs_per_second']:,.1f}"),
        ("times real time", f"{run['hours_per_hour']:,.1f}"),
    ]


def _show_tally(progress: Progress, tally: Tally) -> None:
    """Move the bar of a bulk run, and show beside it the rate, the time left and the number of failures."""
    run = tally.summary()["this_run"]
    rate = run["inputs_per_second"]
    done = tally.done + tally.failed + tally.held
    left = (tally.total - done) / rate if rate else None
    text = f"{rate:.1f}/s, {run['hours_per_hour']:.0f} x real time" if rate else "starting"
    text += f", {left / 60:.0f} min left" if left is not None else ""
    text += f", {tally.failed} failed" if tally.failed else ""
    progress.update(progress.task_ids[0], total=tally.total, completed=done, description=text)
