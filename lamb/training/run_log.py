"""What a run shows and writes down: an overview at the start, a progress bar, log.jsonl and TensorBoard's files."""

import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..audio.files import write
from ..config import OptimConfig, TrainConfig
from .device import memory
from .stage import Stage


def overview(
    console: Console, config: TrainConfig, stage: Stage, optim: OptimConfig, first: int, processes: int
) -> None:
    """Print what is about to happen: the parts and their parameters, the clips, the steps, the least memory."""
    table = Table("part", "trained", "frozen", box=SIMPLE_HEAD)
    for name, part in stage.module.named_children():
        counts = {True: 0, False: 0}
        for p in part.parameters():
            counts[p.requires_grad] += p.numel()
        if any(counts.values()):
            table.add_row(name, f"{counts[True]:,}", f"{counts[False]:,}")
    console.print(table)
    if stage.clips:
        console.print(f"{stage.clips[0]:,} clips to train on, {stage.clips[1]:,} to check on")
    steps = f"{first} to {optim.steps}" if first else f"{optim.steps}"
    each = f"{optim.batch * optim.accumulate} clips each" + (f" in {processes} processes" if processes > 1 else "")
    console.print(f"stage {config.stage}: steps {steps}, {each} -> {config.out}")
    needed = f"{memory(stage.module, config) / 1e9:.2f} GB" + (" in each process" if processes > 1 else "")
    console.print(f"memory for weights, gradients and optimiser: {needed}, and more for the clips")


def progress_bar(console: Console) -> Progress:
    """A progress bar with the time left, where standard error is a terminal."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=console.quiet or not console.is_terminal)


class RunLog:
    """log.jsonl, one line for each step, and TensorBoard's files where TensorBoard is installed.

    The log of a resumed run is cut to the steps of its state: the steps since then are made, and logged, again.
    """

    def __init__(self, out: Path, first: int, active: bool):
        self.file: Any = None
        self.board: Any = None
        if not active:
            return
        path = out / "log.jsonl"
        logged = path.read_text().splitlines(keepends=True)[:first] if path.exists() else []
        write(path, "".join(logged))
        self.file = path.open("a")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=first + 1)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        for sink in filter(None, (self.file, self.board)):
            sink.close()

    def write(self, line: dict[str, Any]) -> None:
        if self.file:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        if self.board:
            for name, value in line.items():
                if name not in ("step", "seconds") and isinstance(value, int | float):
                    self.board.add_scalar(name, value, line["step"])
