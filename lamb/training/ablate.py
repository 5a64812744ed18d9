"""`lamb ablate`: variants of a training recipe, each with several seeds, scored on the same clips. [O]

All variants train on the same clips, those of a manifest or scenes that are rendered once, and read the same cached
tokens of a frozen encoder. A run is a variant with a seed; a variant that stands in several tables is trained once.
`tables.py` shows the results, in tables like those of the paper, and `contrasts.py` answers the questions that were
declared before the runs.
"""

import difflib
import json
import os
import re
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

from ..audio.files import write
from ..config import AblationConfig, ConfigError, TrainConfig, read, read_recipe, to_dict
from ..data import manifest
from ..data.manifest import Clip
from ..data.render import write_scenes
from ..data.vocabulary import VOCABULARY, names
from ..evaluation import gap, metrics
from ..evaluation.likelihood import caption_nats
from ..evaluation.tokenizer import tokenize
from ..inference.captioner import Captioner
from ..inference.picture import check
from ..model.encoders import build_encoder
from . import contrasts
from .device import TrainingError
from .state import require_same_recipe
from .tables import COLUMNS, chart, markdown, summary
from .train import run_stage


class Run(NamedTuple):
    """A variant with a seed, and its recipe."""

    variant: str
    seed: int
    config: TrainConfig

    @property
    def result(self) -> Path:
        """The measures of the run, a file that exists once the run is done."""
        return Path(self.config.out) / "result.json"


def ablate(
    recipe: str | Path, overrides: Sequence[str] = (), resume: bool = False, document: str | Path | None = None
) -> str:
    """Train and score what `recipe` lists, and return the tables as Markdown.

    The recipe's folder `out` gets tables.md, tables.json and chart.png, renewed after every run, and scenes/, cache/
    and runs/. With `document`, the tables also go into that Markdown file, each between the lines
    `<!-- lamb ablate: NAME -->` and `<!-- end -->`, where NAME is that of the table after the recipe's `prefix`.

    Raises ConfigError for a recipe that cannot be used, for a folder that holds runs already unless `resume`, and for
    one whose runs were started with other settings; TrainingError for a run that fails.
    """
    config = read(AblationConfig, recipe, overrides)
    out = Path(config.out)
    try:
        _check(config)
        if document:
            _filled(Path(document), {})
        check(Path("chart.png"))  # before hours of training, not after them
        runs = planned(config)
    except ConfigError as error:
        raise ConfigError(f"{recipe}: {error}") from None
    if (out / "runs").exists() and not resume:
        raise ConfigError(f"{out}: holds an ablation already; continue it with --resume, or choose another out=FOLDER")
    if config.scenes:
        write_scenes(config.scenes, out / "scenes", build_encoder(runs[0].config.model.encoder).sample_rate)
    clips = [clip for clip in manifest.read(_manifest(config), config.test) if clip.captions]
    if not clips:
        raise ConfigError(f"{recipe}: no clip of split {config.test!r} has a caption")
    for run in runs:
        require_same_recipe(run.config)

    done = [run for run in runs if run.result.exists()]
    blocks = _report(config, done, document) if done else {}
    for run in _performed([run for run in runs if run not in done], config, clips):
        done.append(run)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in json.loads(run.result.read_text()).items())
        _tell(f"run {len(done)} of {len(runs)}: {run.variant}, seed {run.seed}: {shown}")
        blocks = _report(config, done, document)
    return "\n\n".join(blocks.values()) + "\n"


def planned(config: AblationConfig) -> list[Run]:
    """All runs: those of the contrasts first; every variant with the first seed, then with the second, and so on."""
    out, runs, asked = Path(config.out), [], config.contrasts
    first = {asked.against, *asked.rows.values()} if asked else set()
    pairs = [(v, s) for s in [*config.seeds, *(asked.seeds if asked else ())] for v in config.variants if v in first]
    pairs += [(v, s) for s in config.seeds for v in config.variants if v not in first]
    for variant, seed in pairs:
        shared = {
            "out": str(out / "runs" / f"{variant}-{seed}"),
            "seed": seed,
            "keep_states": 1,
            "data.manifest": str(_manifest(config)),
            "data.split": config.train,
            "data.validation": None,
            "data.cache": str(out / "cache"),
            **({"data.seconds": config.scenes.seconds} if config.scenes else {}),
        }
        settings = [f"{key}={json.dumps(value)}" for key, value in shared.items()]  # JSON is YAML
        stage = read_recipe(config.base, [*config.settings, *config.variants[variant], *settings])
        if stage.stage != "lamb" or stage.init:
            raise ConfigError(f"base: {config.base} must be of stage lamb, with a section model and no init")
        runs.append(Run(variant, seed, stage))
    return runs


def _manifest(config: AblationConfig) -> Path:
    """The manifest of the clips that all variants train and are tested on."""
    return Path(config.manifest) if config.manifest else Path(config.out) / "scenes" / "manifest.jsonl"


def _performed(runs: Sequence[Run], config: AblationConfig, clips: Sequence[Clip]) -> Iterator[Run]:
    """Perform `runs`, `config.jobs` at a time, and yield each once it is done."""
    if config.jobs == 1:
        for run in runs:
            _tell(f"{run.variant}, seed {run.seed}: starts")
            perform(run, clips)
            yield run
        return
    with ProcessPoolExecutor(config.jobs, get_context("spawn"), _set_apart, (config.out,)) as pool:
        futures = {pool.submit(perform, run, clips): run for run in runs}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool:
            raise TrainingError(
                f"{config.out}: the process of a run was killed, perhaps for lack of memory; continue with --resume, "
                "or with fewer jobs"
            ) from None
        finally:  # after an error, or Ctrl-C, which the runs get as well: the runs that wait do not start
            pool.shutdown(wait=False, cancel_futures=True)


def perform(run: Run, clips: Sequence[Clip]) -> None:
    """Train `run`, or continue it, and write its measures on `clips` into `run.result`."""
    began = time.time()
    folder = run_stage(run.config, resume=True)
    measured = score(folder, clips, None if run.config.device == "auto" else run.config.device)
    for state in folder.glob("state-*.pt"):  # three times the size of the model, and no longer needed
        state.unlink()
    write(run.result, json.dumps({**measured, "seconds": round(time.time() - began, 1)}, indent=1))


def _set_apart(out: str) -> None:
    """Prepare a process for runs: its output goes into a file, and it ends with the process that started it."""
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)  # nobody may be left behind who writes on into the same folders

    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.stdout = sys.stderr = open(Path(out) / f"job-{os.getpid()}.log", "a", buffering=1)  # noqa: SIM115


def score(folder: Path, clips: Sequence[Clip], device: str | None = None) -> dict[str, float]:
    """Caption `clips` with the model in `folder`, into predictions.jsonl there, and measure captions and gap."""
    captioner = Captioner.load(str(folder), device, engine="torch")
    results = captioner.caption(clips)
    if broken := [result.error for result in results if not result.ok]:
        raise ConfigError(f"{clips[0].path} and others: {broken[0]}; remove the folder of scenes to render them anew")
    nats = caption_nats(captioner.model, clips)
    said = [
        json.dumps({"id": clip.id, "caption": result.text, "nats": round(loss, 5), "tokens": tokens})
        for clip, result, (loss, tokens) in zip(clips, results, nats, strict=True)
    ]
    write(folder / "predictions.jsonl", "\n".join(said) + "\n")
    texts = [tokenize(result.text) for result in results]
    references = [[tokenize(text) for text in clip.captions] for clip in clips]
    named = [
        [names(result.text, label) for label in clip.labels if label in VOCABULARY]  # noise and tones have no words
        for clip, result in zip(clips, results, strict=True)
    ]
    every = [hit for own in named for hit in own]
    return {
        **gap.measures(gap.embed(captioner.model, clips)),
        "cross_entropy": sum(loss for loss, _ in nats) / sum(tokens for _, tokens in nats),
        "bleu_4": float(metrics.bleu(texts, references)[0][3]),
        "rouge_l": metrics.rouge_l(texts, references)[0],
        "cider_d": metrics.cider_d(texts, references)[0],
        "named": sum(every) / len(every) if every else 0.0,
        "all_named": sum(map(all, filter(None, named))) / max(1, sum(map(bool, named))),
        "distinct": len({result.text for result in results}),
    }


def _report(config: AblationConfig, done: Sequence[Run], document: str | Path | None) -> dict[str, str]:
    """Write tables.json, tables.md and chart.png of the runs that are done, and fill `document`; the blocks by name."""
    out = Path(config.out)
    results = {(run.variant, run.seed): json.loads(run.result.read_text()) for run in done}
    tables = {name: summary(config, table, results) for name, table in config.tables.items()}
    blocks = {"setting": _setting(config, done[0].config, results)}
    blocks |= {name: markdown(table) for name, table in tables.items()}
    if config.contrasts:
        found = contrasts.answers(config, {(run.variant, run.seed): Path(run.config.out) for run in done})
        blocks["contrasts"] = contrasts.markdown(config.contrasts, found)
    blocks = {config.prefix + name: block for name, block in blocks.items()}
    write(out / "tables.json", json.dumps({"recipe": to_dict(config), "tables": tables}, indent=1))
    write(out / "tables.md", "\n\n".join(blocks.values()) + "\n")
    if tables:
        chart(tables, out / "chart.png")
    if document:
        write(Path(document), _filled(Path(document), blocks))
    return blocks


def _setting(config: AblationConfig, stage: TrainConfig, results: Mapping[Any, Mapping[str, float]]) -> str:
    """What was run, in a sentence or two."""
    scenes, optim = config.scenes, stage.optim
    source = f"of split {config.train!r} of `{config.manifest}`; tested on those of split {config.test!r}"
    if scenes:
        source = (
            f"out of {scenes.train:,} scenes of up to {scenes.seconds:g} s from training recordings; tested on "
            f"{scenes.test:,} scenes from development recordings"
        )
    every = len(planned(config))
    seconds = statistics.median(found["seconds"] for found in results.values())
    return (
        f"{len(results)} of {every} runs: {len(config.variants)} variants of `{config.base}`, seeds "
        f"{', '.join(map(str, config.seeds))}; {optim.steps:,} steps of {optim.batch} clips each, {source}. "
        f"A run took {seconds:.0f} s (median)."
    )


def _filled(document: Path, blocks: Mapping[str, str]) -> str:
    """`document` with the blocks in their places; ConfigError if it has no place, or one without an end."""
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{document}: cannot be read: {error}") from None
    place = re.compile(r"(<!-- lamb ablate: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    if not place.search(text):
        raise ConfigError(f"{document}: has no place for a table, <!-- lamb ablate: NAME --> and <!-- end --> after it")
    return place.sub(lambda m: f"{m[1]}{blocks[m[2]]}\n{m[3]}" if m[2] in blocks else m[0], text)


def _check(config: AblationConfig) -> None:
    """Raise ConfigError for numbers and names that cannot be used."""
    if not config.variants or not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ConfigError("variants and seeds: give at least one of each, and no seed twice")
    if (config.scenes is None) == (config.manifest is None):
        raise ConfigError("scenes, manifest: give one of the two")
    if config.jobs < 1:
        raise ConfigError(f"jobs: {config.jobs} is less than 1")
    for name in config.variants:
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
            raise ConfigError(f"variants.{name}: the name becomes that of a folder; use letters, digits, - _ and .")
    if config.contrasts:
        _require("contrasts.against", config.contrasts.against, config.variants)
        for row, variant in config.contrasts.rows.items():
            _require(f"contrasts.rows.{row}", variant, config.variants)
        if set(config.contrasts.seeds) & set(config.seeds):
            raise ConfigError("contrasts.seeds: these come on top of seeds; give none twice")
    for name, table in config.tables.items():
        where = f"tables.{name}"
        if not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(f"{where}: use letters, digits, - and _")
        for row, variant in table.rows.items():
            _require(f"{where}.rows.{row}", variant, config.variants)
        _require(f"{where}.against", table.against or next(iter(config.variants)), config.variants)
        for column in table.columns:
            _require(f"{where}.columns", column, COLUMNS)


def _require(where: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
        raise ConfigError(f"{where}: {name!r} is not known; {hint}")


def _tell(message: str) -> None:
    print(f"lamb: {message}", file=sys.stderr, flush=True)
