"""`lamb caption`: recordings in, captions out, each as soon as it is known."""

from __future__ import annotations

import io
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from ..config import DEFAULT_MODEL, DecodeLimits
from .errors import loading, one_line_warnings, say
from .options import (
    DECODING,
    INPUT,
    LONG,
    OUTPUT,
    SUBTITLES,
    BatchSize,
    Beams,
    DecodeMemory,
    DecodeTimeout,
    Device,
    Engine,
    EngineName,
    Ignore,
    MinConfidence,
    Model,
    NBest,
    Only,
    Quiet,
    Threads,
    Track,
    flag,
    option,
    positive_seconds,
    refuse,
    words,
)
from .output import (
    SUFFIXES,
    Format,
    destination,
    format_of,
    is_template,
    targets_of,
    write,
)
from .subtitles import described, film_of, merged
from .terminal import progress_bar

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..inference.captioner import Captioner
    from ..inference.captions import Result
    from ..inference.picture import Picture


def caption(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", help="Files, folders, quoted globs, or - for standard input.")
    ],
    recursive: Annotated[
        bool, flag("--recursive", "-r", panel=INPUT, help="Also search the folders within folders.")
    ] = False,
    format: Annotated[
        Format | None,
        option(
            "NAME",
            f"The output format: {', '.join(Format)}.",
            OUTPUT,
            "--format",
            "-f",
            default="by the suffix of --output, else text",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        option(
            "FILE",
            "Write to this file, which appears only once it is complete. With {stem}, {name} or {parent}, which "
            "stand for parts of the path of a recording, one file is written per recording.",
            OUTPUT,
            "--output",
            "-o",
            default="standard output",
        ),
    ] = None,
    output_dir: Annotated[
        Path | None, option("DIR", "Write one file per recording into this folder: --output DIR/{stem}.SUFFIX.", OUTPUT)
    ] = None,
    skip_existing: Annotated[
        bool, flag("--skip-existing", panel=OUTPUT, help="With one file per recording: skip those that have one.")
    ] = False,
    quiet: Quiet = False,
    min_confidence: MinConfidence = 0.0,
    only: Only = None,
    ignore: Ignore = None,
    timeline: Annotated[
        bool, flag("--timeline", panel=LONG, help="Caption segments with times; their borders follow the sound.")
    ] = False,
    window: Annotated[
        float | None,
        option(
            "SECONDS", "Use a fixed grid: each segment is a window of this length.", LONG, callback=positive_seconds
        ),
    ] = None,
    hop: Annotated[
        float | None,
        option(
            "SECONDS",
            "Time from the start of one window to the next, at most a window.",
            LONG,
            default="in proportion to the window",
            callback=positive_seconds,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        option("FILE", "With --timeline: also draw the spectrogram with the segments below it (png, pdf, svg).", LONG),
    ] = None,
    sdh: Annotated[
        bool,
        flag(
            "--sdh", panel=SUBTITLES, help="Write descriptions such as [dog barking], for the deaf and hard of hearing."
        ),
    ] = False,
    speech: Annotated[bool, flag("--speech", panel=SUBTITLES, help="With --sdh: also describe speech.")] = False,
    merge: Annotated[
        Path | None,
        option(
            "FILE", "With --sdh: put the descriptions between the lines of these subtitles (.srt, .vtt).", SUBTITLES
        ),
    ] = None,
    n_best: NBest = 1,
    beams: Beams = None,
    sample: Annotated[
        bool, flag("--sample", panel=DECODING, help="Sample captions at random instead of searching for the best.")
    ] = False,
    seed: Annotated[int | None, option("N", "The random seed of --sample.", DECODING, default="0", min=0)] = None,
    detailed: Annotated[
        bool, flag("--detailed", panel=DECODING, help="Also name sounds that the model is not sure of.")
    ] = False,
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    engine: EngineName = None,
    threads: Threads = None,
    batch_size: BatchSize = None,
    track: Track = None,
    decode_timeout: DecodeTimeout = DecodeLimits.seconds,
    decode_memory: DecodeMemory = DecodeLimits.memory,
) -> None:
    """Describe each recording in one sentence.

    Reads wav, flac, ogg, opus, mp3, aiff, m4a, mp4, webm and other formats, of any length.
    Captions go to standard output, progress and messages to standard error.

    Exit code: 0 if all recordings were captioned; 1 if a recording, or a part of one,
    could not be captioned (the others are, and each failure is named), or if the model
    cannot be loaded; 2 if the command was wrong.

    \b
    Examples:
      lamb caption dog.wav
      lamb caption field/ --recursive --format jsonl
      lamb caption trip.mp4 --timeline --output trip.srt
      lamb caption field/ --timeline --format srt --output-dir subtitles
      lamb caption film.mkv --sdh --merge film.srt --output film.sdh.srt
      lamb caption dog.wav --beams 8 --n-best 3
      curl -s https://example.org/dog.ogg | lamb caption -
    """
    if not sample and beams is not None and n_best > beams:
        refuse("--n-best", f"{n_best} captions cannot come out of {beams} beams; add --beams {n_best}, or --sample.")
    if window and hop and hop > window:
        lost = "the sound between two windows would be lost"
        refuse("--hop", f"{hop:g} s is longer than the window, {window:g} s; {lost}.")
    if plot and not (timeline or sdh):
        refuse("--plot", "the picture shows segments; add --timeline.")
    if paths.count("-") > 1:
        refuse("PATH", "standard input (-) can be read only once.")
    if output == Path("-"):  # as a path, "-" is standard input
        output = None
    if output and output_dir:
        refuse("--output-dir", "give only one of --output and --output-dir.")
    film = film_of(merge, sdh, speech, format, output)
    format = format or format_of(output, Format.srt if sdh else Format.text)
    failed: list[str] = []
    one_line_warnings(quiet, failed)
    inputs = _inputs(paths, recursive, failed)
    for name, wanted_one in (("--plot", plot), ("--merge", merge)):
        if wanted_one and len(inputs) != 1:
            refuse(name, f"it belongs to one recording, and {len(inputs)} were given.")
    target = output_dir / f"{{stem}}{SUFFIXES[format][0]}" if output_dir else output
    given = len(inputs)
    inputs, targets = targets_of(inputs, target, format, "--output-dir" if output_dir else "--output", skip_existing)
    if len(inputs) < given and not quiet:
        say("note", f"{given - len(inputs)} of {given} recordings were skipped, as their output exists")
    options: dict[str, Any] = {
        "n_best": n_best,
        "beams": beams,
        "sample": sample,
        "seed": seed,
        "batch_size": batch_size,
        "detailed": detailed,
        "window": window,
        "hop": hop,
    }
    limits = DecodeLimits(seconds=decode_timeout, memory=decode_memory, track=track)
    from ..audio import sandbox

    sandbox.start()  # while the model is loaded

    def results(progress: Progress) -> Iterator[Result]:
        """Load the model, and caption the inputs."""
        captioner = load_captioner(model, device, threads, engine)
        captioner.limits = limits
        if timeline or sdh:
            picture = _picture(captioner, plot)
            found = captioner.timelines(inputs, **options, listen=picture and picture.listen)
            found = (_followed(result, progress, picture) for result in found)
        else:
            found = captioner.stream(inputs, **options)
        watched = _watched(found, progress, failed)
        return described(watched, speech) if sdh else watched

    from ..inference.captions import select, wanted

    selected = partial(select, is_wanted=wanted(min_confidence, words(only), words(ignore)))
    with progress_bar(len(inputs), quiet) as progress:
        if is_template(target):
            for result, own in zip(results(progress), targets, strict=True):
                _write_own(selected([result]), own, format, progress)
        else:
            with destination(target) as out:
                if film:
                    out.write(merged(film, selected(results(progress)), failed))
                else:
                    write(selected(results(progress)), format, out, progress)
    if failed:
        raise typer.Exit(1)


def load_captioner(model: str, device: str | None, threads: int | None, engine: Engine | None = None) -> Captioner:
    """The captioner that a command's options ask for."""
    from ..inference.captioner import Captioner

    with loading():
        return Captioner.load(model, device, engine=engine, threads=threads)


def _inputs(paths: list[str], recursive: bool, failed: list[str]) -> list[Any]:
    """The recordings that `paths` name; a path without any joins `failed`, unless it is the only one."""
    from ..audio.errors import AudioError
    from ..audio.files import expand

    inputs: list[Any] = []
    problems: list[AudioError] = []
    for path in paths:
        try:
            inputs += [_standard_input() if file == "-" else file for file in expand([path], recursive, problems)]
        except AudioError as error:  # an empty folder or a pattern without a match: the other paths are captioned
            if len(paths) == 1:
                raise
            problems.append(error)
    for problem in problems:
        failed.append(problem.file)
        say("error", problem)
    return inputs


def _standard_input() -> BinaryIO:
    """Standard input as a binary file whose name is what the user called it."""
    raw = io.FileIO(0, closefd=False)
    raw.name = "-"  # type: ignore[misc]
    return io.BufferedReader(raw)


def _picture(captioner: Captioner, plot: Path | None) -> Picture | None:
    if plot is None:
        return None
    from ..inference.picture import Picture

    return Picture(captioner.engine.sample_rate, plot)


def _followed(result: Result, progress: Progress, picture: Picture | None) -> Result:
    """The same result; the bar moves with its segments, and after the last one the picture is drawn."""
    from ..audio.errors import AudioError
    from ..audio.sandbox import Decoding, SandboxError
    from ..inference.captions import Caption, Segment, Timeline

    if isinstance(result, Caption):
        return result
    task, before, length = progress.tasks[0], progress.tasks[0].completed, None
    if not progress.disable and os.path.isfile(result.file):
        with suppress(AudioError, SandboxError), Decoding(result.file, 16_000) as decoding:  # told elsewhere
            length = decoding.info().duration

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


def _watched(results: Iterable[Result], progress: Progress, failed: list[str]) -> Iterator[Result]:
    """The same results; failures are printed and collected in `failed`, and the bar moves on."""
    from ..inference.captions import Caption

    for result in results:
        if isinstance(result, Caption) and result.error is not None:
            failed.append(result.file)
            say("error", f"{result.file}: {result.error}")
        yield result
        progress.advance(progress.task_ids[0])


def _write_own(selected: Iterator[Result], target: Path | None, format: Format, progress: Progress) -> None:
    """Write the result of one recording to a file of its own; there is none if it failed or was not selected."""
    from ..inference.captions import Caption

    for result in selected:
        if target and not (isinstance(result, Caption) and result.error is not None):
            target.parent.mkdir(parents=True, exist_ok=True)
            with destination(target) as out:
                write([result], format, out, progress)
