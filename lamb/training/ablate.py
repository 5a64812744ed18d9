"""`lamb ablate`: variants of a training recipe, each with several seeds, scored on the same scenes and put into tables.

All variants train on the same scenes, rendered once, and read the same cached tokens of a frozen encoder. A run is a
variant with a seed; a variant that stands in several tables is trained once. In the tables, "mean ± standard deviation"
is over seeds. A difference is taken between runs of the same seed, with Student's 95 % interval over seeds: what other
seeds would give on these very scenes. [O]; the tables are those of the paper.
"""

import difflib
import json
import os
import re
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ..audio.files import write
from ..config import AblationConfig, ConfigError, TableConfig, TrainConfig, read, read_recipe, to_dict
from ..data import manifest
from ..data.manifest import Clip
from ..data.render import write_scenes
from ..data.vocabulary import VOCABULARY, names
from ..evaluation import gap, metrics
from ..inference.captioner import Captioner
from ..model.lamb import build_encoder
from .device import TrainingError
from .state import require_same_recipe
from .train import train

COLUMNS = {  # a measure of a run: heading, factor, decimals
    "l2": ("L2", 1, 3),
    "cosine": ("cosine", 1, 3),
    "l2_unit": ("L2 (unit)", 1, 3),
    "cs_global": ("CS global", 1, 4),
    "cs_token": ("CS token", 1, 4),
    "audio_to_text_r1": ("R@1 a→t", 100, 1),
    "audio_to_text_r10": ("R@10 a→t", 100, 1),
    "text_to_audio_r1": ("R@1 t→a", 100, 1),
    "text_to_audio_r10": ("R@10 t→a", 100, 1),
    "bleu_4": ("BLEU-4", 100, 1),
    "rouge_l": ("ROUGE-L", 100, 1),
    "cider_d": ("CIDEr-D", 100, 1),
    "named": ("named %", 100, 1),
    "all_named": ("all named %", 100, 1),
    "distinct": ("distinct", 1, 0),
}
Results = dict[tuple[str, int], dict[str, float]]  # (variant, seed): measures


@dataclass(frozen=True)
class Run:
    """A variant with a seed."""

    variant: str
    seed: int
    folder: Path
    settings: tuple[str, ...]  # of `lamb train`, after the base recipe

    @property
    def result(self) -> Path:
        """What was measured; it is there once the run is done."""
        return self.folder / "result.json"


def ablate(
    recipe: str | Path, overrides: Sequence[str] = (), resume: bool = False, document: str | Path | None = None
) -> str:
    """Train and score what `recipe` lists; returns the tables as Markdown.

    In the recipe's `out`: tables.md, tables.json and chart.png, anew after every run; scenes/, cache/ and runs/. With
    `document`, the tables also go into that Markdown file, between `<!-- lamb ablate: NAME -->` and `<!-- end -->`.

    Raises ConfigError for a recipe that cannot be used, for a folder that already holds runs unless `resume`, and for
    one whose runs were begun with other settings; TrainingError for a run that fails.
    """
    config = read(AblationConfig, recipe, overrides)
    out = Path(config.out)
    try:
        _check(config)
        if document:
            _filled(Path(document), {})
        gap.format_of(Path("chart.png"))  # hours before there is anything to draw
        runs = planned(config)
        stages = {run: read_recipe(config.base, run.settings) for run in runs}
        if any(stage.stage != "lamb" or stage.init for stage in stages.values()):
            raise ConfigError(f"base: {config.base} must be of stage lamb, with a section model and no init")
    except ConfigError as error:
        raise ConfigError(f"{recipe}: {error}") from None
    if (out / "runs").exists() and not resume:
        raise ConfigError(f"{out}: holds an ablation already; go on with --resume, or choose another out=FOLDER")
    encoder = build_encoder(stages[runs[0]].model.encoder)
    test = manifest.read(write_scenes(config.scenes, out / "scenes", encoder.sample_rate), "test")
    for stage in stages.values():
        require_same_recipe(stage)
    results: Results = {}
    blocks: dict[str, str] = {}

    def report(run: Run) -> None:
        nonlocal blocks
        results[run.variant, run.seed] = found = json.loads(run.result.read_text())
        shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        _tell(f"run {len(results)} of {len(runs)}: {run.variant}, seed {run.seed}: {shown}")
        blocks = _report(config, stages[run], results, out)
        if document:
            write(Path(document), _filled(Path(document), blocks))

    todo = []
    for run in runs:
        if run.result.exists():
            report(run)
        else:
            todo.append(run)
    work = partial(_work, base=config.base, clips=test)
    if config.jobs == 1:
        for run in todo:
            _tell(f"{run.variant}, seed {run.seed}: begins")
            work(run)
            report(run)
    else:
        with ProcessPoolExecutor(config.jobs, get_context("spawn"), _apart, (str(out),)) as pool:
            futures = {pool.submit(work, run): run for run in todo}
            try:
                for future in as_completed(futures):
                    future.result()
                    report(futures[future])
            except BrokenProcessPool:
                raise TrainingError(
                    f"{out}: a run's process was killed, perhaps for its memory; go on with --resume, or fewer jobs"
                ) from None
            finally:  # an error, or Ctrl-C, which the runs get as well: what waits does not begin
                pool.shutdown(wait=False, cancel_futures=True)
    return "\n\n".join(blocks.values()) + "\n"


def _work(run: Run, base: str, clips: Sequence[Clip]) -> None:
    """Train and score a run."""
    began = time.time()
    train(base, list(run.settings), (run.folder / "recipe.json").exists())
    device = read_recipe(base, run.settings).device
    measured = score(run.folder, clips, None if device == "auto" else device)
    for state in run.folder.glob("state-*.pt"):  # three times the model, and of no more use
        state.unlink()
    write(run.result, json.dumps({**measured, "seconds": round(time.time() - began, 1)}, indent=1))


def _apart(out: str) -> None:
    """In a process for some of the runs: what they print goes into a file, not all at once to a terminal."""
    parent = parent_process()
    assert parent is not None
    # one that is killed leaves nobody behind who writes on into the same folders
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    sys.stdout = sys.stderr = open(Path(out) / f"job-{os.getpid()}.log", "a", buffering=1)  # noqa: SIM115


def _leave_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _tell(message: str) -> None:
    print(f"lamb: {message}", file=sys.stderr, flush=True)


def _check(config: AblationConfig) -> None:
    """ConfigError for names that lead nowhere."""
    if not config.variants or not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ConfigError("variants and seeds: at least one of each is wanted, and no seed twice")
    if config.jobs < 1:
        raise ConfigError(f"jobs: {config.jobs} is less than 1")
    for name in config.variants:
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
            raise ConfigError(f"variants.{name}: the name is that of a folder; letters, digits, - _ and . only")
    for name, table in config.tables.items():
        if not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(f"tables.{name}: letters, digits, - and _ only")
        wanted = {f"rows.{row}": variant for row, variant in table.rows.items()}
        if table.against is not None:
            wanted["against"] = table.against
        _require(f"tables.{name}.", wanted, config.variants)
        _require(f"tables.{name}.columns", {f"[{k}]": column for k, column in enumerate(table.columns)}, COLUMNS)


def _require(where: str, wanted: Mapping[str, str], known: Mapping[str, Any]) -> None:
    for place, name in wanted.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise ConfigError(f"{where}{place}: {name!r} is not known; {hint}")


def planned(config: AblationConfig) -> list[Run]:
    """All runs, every variant with the first seed before any with the second."""
    out, runs = Path(config.out), []
    for seed in config.seeds:
        for variant, own in config.variants.items():
            folder = out / "runs" / f"{variant}-{seed}"
            ours = {
                "out": str(folder),
                "seed": seed,
                "keep_states": 1,
                "data.manifest": str(out / "scenes" / "manifest.jsonl"),
                "data.validation": None,
                "data.cache": str(out / "cache"),
                "data.seconds": config.scenes.seconds,
            }
            settings = [f"{key}={json.dumps(value)}" for key, value in ours.items()]  # JSON is YAML
            runs.append(Run(variant, seed, folder, (*config.settings, *own, *settings)))
    return runs


def score(folder: Path, clips: Sequence[Clip], device: str | None = None) -> dict[str, float]:
    """Caption `clips` with the model in `folder`, into predictions.jsonl there, and measure captions and gap."""
    captioner = Captioner.load(str(folder), device)
    results = captioner.caption([clip.path for clip in clips])
    if broken := [result.error for result in results if not result.ok]:
        raise ConfigError(f"{clips[0].path} and others: {broken[0]}; remove the folder of scenes to render them anew")
    said = [json.dumps({"id": clip.id, "caption": r.text}) for clip, r in zip(clips, results, strict=True)]
    write(folder / "predictions.jsonl", "\n".join(said) + "\n")
    texts = [metrics.tokenize(result.text) for result in results]
    references = [[metrics.tokenize(text) for text in clip.captions] for clip in clips]
    named = [
        [names(result.text, label) for label in clip.labels if label in VOCABULARY]  # static and tones have no list
        for clip, result in zip(clips, results, strict=True)
    ]
    every = [hit for own in named for hit in own]
    return {
        **gap.measures(gap.embed(captioner.model, clips)),
        "bleu_4": float(metrics.bleu(texts, references)[0][3]),
        "rouge_l": metrics.rouge_l(texts, references)[0],
        "cider_d": metrics.cider_d(texts, references)[0],
        "named": sum(every) / len(every) if every else 0.0,
        "all_named": sum(map(all, filter(None, named))) / max(1, sum(map(bool, named))),
        "distinct": len({result.text for result in results}),
    }


def difference(of: Mapping[int, float], against: Mapping[int, float]) -> dict[str, float] | None:
    """Mean of of[seed] - against[seed] over the seeds of both, and Student's 95 % interval; None below two seeds."""
    from scipy.stats import t

    apart = [of[seed] - against[seed] for seed in of if seed in against]
    if len(apart) < 2:
        return None
    mean = statistics.mean(apart)
    half = float(t.ppf(0.975, len(apart) - 1)) * statistics.stdev(apart) / len(apart) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summary(config: AblationConfig, table: TableConfig, results: Results) -> dict[str, Any]:
    """A table as data: for every row and column the values by seed, mean, deviation and difference; what is there."""
    base = table.against or next(iter(config.variants))
    rows = []
    for label, variant in table.rows.items():
        cells: dict[str, Any] = {}
        for column in table.columns:
            values, others = (
                {s: results[v, s][column] for s in config.seeds if (v, s) in results} for v in (variant, base)
            )
            if values:
                cells[column] = {
                    "values": values,
                    "mean": statistics.mean(values.values()),
                    "deviation": statistics.stdev(values.values()) if len(values) > 1 else None,
                    "difference": None if variant == base else difference(values, others),
                }
        rows.append({"row": label, "variant": variant, "runs": len(values), "columns": cells})
    return {"title": table.title, "against": base, "columns": list(table.columns), "rows": rows}


def markdown(table: Mapping[str, Any]) -> str:
    """What `summary` made, as two Markdown tables: means, and differences."""
    columns = table["columns"]
    against = next((row["row"] for row in table["rows"] if row["variant"] == table["against"]), table["against"])
    head = [
        f"| {' | '.join(['', 'runs', *(COLUMNS[c][0] for c in columns)])} |",
        f"|---|{'---:|' * (len(columns) + 1)}",
    ]
    means, apart = [], []
    for row in table["rows"]:
        cells = [row["columns"].get(column) for column in columns]
        means.append([row["row"], str(row["runs"]), *map(_mean, columns, cells)])
        if row["variant"] != table["against"]:
            apart.append([row["row"], str(row["runs"]), *map(_difference, columns, cells)])
    lines = [f"**{table['title']}**", "", *head, *(f"| {' | '.join(cells)} |" for cells in means)]
    if apart:
        lines += ["", f"Difference from “{against}”, same seeds, with its 95 % interval; bold where 0 is outside:", ""]
        lines += [*head, *(f"| {' | '.join(cells)} |" for cells in apart)]
    return "\n".join(lines)


def _mean(column: str, cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    _, factor, decimals = COLUMNS[column]
    spread = "" if cell["deviation"] is None else f" ± {cell['deviation'] * factor:.{decimals}f}"
    return f"{cell['mean'] * factor:.{decimals}f}{spread}"


def _difference(column: str, cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell["difference"] is None:
        return "–"
    _, factor, decimals = COLUMNS[column]
    mean, low, high = (cell["difference"][key] * factor for key in ("mean", "low", "high"))
    text = f"{mean:+.{decimals}f} [{low:+.{decimals}f}, {high:+.{decimals}f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def _report(config: AblationConfig, stage: TrainConfig, results: Results, out: Path) -> dict[str, str]:
    """Write tables.json, tables.md and chart.png of the results so far; the Markdown blocks by name."""
    tables = {name: summary(config, table, results) for name, table in config.tables.items()}
    write(out / "tables.json", json.dumps({"recipe": to_dict(config), "tables": tables}, indent=1))
    blocks = {"setting": _setting(config, stage, results)} | {name: markdown(table) for name, table in tables.items()}
    write(out / "tables.md", "\n\n".join(blocks.values()) + "\n")
    if tables:
        chart(tables, out / "chart.png")
    return blocks


def _setting(config: AblationConfig, stage: TrainConfig, results: Results) -> str:
    """What was run, in a sentence or two."""
    scenes, optim = config.scenes, stage.optim
    every = len(config.variants) * len(config.seeds)
    seconds = statistics.median(found["seconds"] for found in results.values())
    return (
        f"{len(results)} of {every} runs: {len(config.variants)} variants of `{config.base}`, seeds "
        f"{', '.join(map(str, config.seeds))}; {optim.steps:,} steps of {optim.batch} scenes each, out of "
        f"{scenes.train:,} scenes of up to {scenes.seconds:g} s from training recordings; tested on {scenes.test:,} "
        f"scenes from development recordings. A run took {seconds:.0f} s (median)."
    )


def _filled(document: Path, blocks: Mapping[str, str]) -> str:
    """`document` with the blocks in their places; ConfigError where it has no place, or one without an end."""
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{document}: cannot be read: {error}") from None
    place = re.compile(r"(<!-- lamb ablate: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    if not place.search(text):
        raise ConfigError(f"{document}: has no place for a table, <!-- lamb ablate: NAME --> and <!-- end --> after it")
    return place.sub(lambda m: f"{m[1]}{blocks[m[2]]}\n{m[3]}" if m[2] in blocks else m[0], text)


def chart(tables: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """A row of panels a table, a panel a column: a dot a run, a line at the mean, a dashed one at the reference's."""
    from matplotlib.figure import Figure

    widest = max(len(table["columns"]) for table in tables.values())
    heights = [len(table["rows"]) + 2.5 for table in tables.values()]
    figure = Figure(figsize=(2.0 + 2.1 * widest, 0.3 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(tables), widest, squeeze=False, height_ratios=heights)
    for panels, table in zip(grid, tables.values(), strict=True):
        rows = table["rows"]
        for axes in panels[len(table["columns"]) :]:
            axes.set_axis_off()
        for axes, column in zip(panels, table["columns"], strict=False):
            heading, factor, _ = COLUMNS[column]
            for y, row in enumerate(rows):
                if cell := row["columns"].get(column):
                    own = row["variant"] == table["against"]
                    colour = gap.TEXT if own else gap.AUDIO
                    axes.plot(
                        [v * factor for v in cell["values"].values()],
                        [y] * len(cell["values"]),
                        "o",
                        ms=4,
                        color=colour,
                        alpha=0.6,
                    )
                    axes.plot([cell["mean"] * factor] * 2, [y - 0.3, y + 0.3], color=colour, lw=2)
                    if own:
                        axes.axvline(cell["mean"] * factor, color=colour, lw=0.8, ls="--", zorder=0)
            axes.set(xlabel=heading, ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)))
            axes.set_yticklabels([row["row"] for row in rows] if axes is panels[0] else [])
            axes.grid(axis="y", color="0.92", zorder=0)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        panels[0].set_title(table["title"], loc="left", fontsize=10, fontweight="bold")
    gap.save_figure(figure, file)
