"""An ablation end to end: runs that are trained once, stopped and gone on with, and the tables made of them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import ttest_rel

from lamb.cli import app as cli
from lamb.config import AblationConfig, ConfigError, ExtensionsConfig, ScenesConfig, TrainConfig, from_dict, to_dict
from lamb.data import loader
from lamb.data.manifest import read
from lamb.data.render import write_scenes
from lamb.inference.captioner import Captioner
from lamb.inference.engine import Engine
from lamb.inference.recording import hear
from lamb.model.losses import cross_entropy
from lamb.training import ablate as ablation
from lamb.training import state
from lamb.training.ablate import ablate
from lamb.training.device import TrainingError
from lamb.training.tables import COLUMNS, difference, markdown, summary


@pytest.fixture
def recipe(tmp_path: Path, make_config: Callable[..., Any], sounds_folder: Path) -> Callable[..., Path]:
    """recipe(key=value, ...) -> two variants, two seeds, two steps; the result in `tmp_path`/out."""
    model = to_dict(make_config())
    base = {
        "model": model,
        "data": {"sounds": str(sounds_folder), "workers": 0},
        "optim": {"lr": 1e-3, "batch": 4, "steps": 50, "warmup": 1},
        "save_every": 1,
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))

    def make(**changes: Any) -> Path:
        content: dict[str, Any] = {
            "base": str(tmp_path / "base.yaml"),
            "out": str(tmp_path / "out"),
            "settings": ["optim.steps=2"],
            "seeds": [1, 2],
            "scenes": {"sounds": str(sounds_folder), "train": 8, "test": 5, "seconds": 1},
            "variants": {"full": [], "plain": ["model.aligner.enabled=false", "model.guide.enabled=false"]},
            "tables": {
                "one": {"title": "Table 1", "rows": {"LAMB": "full", "neither": "plain"}, "columns": ["l2", "named"]},
                "two": {"title": "Table 2", "rows": {"LAMB": "full"}},
            },
        }
        path = tmp_path / "ablation.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}))
        return path

    return make


def folders(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "runs").iterdir())


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]


def test_two_variants_two_seeds(recipe, tmp_path, monkeypatch):
    reported, batches = [], []
    report, clip_batch = ablation._report, loader.clip_batch
    monkeypatch.setattr(ablation, "_report", lambda *inputs: reported.append(report(*inputs)) or reported[-1])
    monkeypatch.setattr(loader, "clip_batch", lambda *i, **o: batches.append(clip_batch(*i, **o)) or batches[-1])
    document = tmp_path / "claims.md"
    document.write_text(
        "Before.\n<!-- lamb ablate: one -->\nstale\n<!-- end -->\nBetween.\n"
        "<!-- lamb ablate: setting -->\n<!-- end -->\nAfter.\n"
    )
    text = ablate(recipe(), document=document)
    out = tmp_path / "out"
    assert folders(out) == ["full-1", "full-2", "plain-1", "plain-2"]
    assert (out / "tables.md").read_text() == text
    assert (out / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.rglob("state-*.pt")), "states of finished runs only take room"

    found = {name: json.loads((out / "runs" / name / "result.json").read_text()) for name in folders(out)}
    table = json.loads((out / "tables.json").read_text())["tables"]["one"]
    cell = table["rows"][0]["columns"]["l2"]
    values = [found["full-1"]["l2"], found["full-2"]["l2"]]
    assert list(cell["values"].values()) == values
    assert (cell["mean"], cell["deviation"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert table["rows"][1]["columns"]["l2"]["difference"]["mean"] == pytest.approx(
        np.mean([found[f"plain-{s}"]["l2"] - found[f"full-{s}"]["l2"] for s in (1, 2)])
    )
    head, lamb, neither, _, apart = rows(markdown(table))
    assert head == ["", "runs", "L2", "named %"]
    assert lamb[:3] == ["LAMB", "2", f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"]
    assert (neither[0], apart[0]) == ("neither", "neither")
    assert re.fullmatch(r"(\*\*)?[+-]\d+\.\d{3} \[[+-]\d+\.\d{3}, [+-]\d+\.\d{3}\](\*\*)?", apart[2])

    filled = document.read_text()
    assert filled.startswith("Before.\n<!-- lamb ablate: one -->\n**Table 1**")
    assert "stale" not in filled
    assert "4 of 4 runs: 2 variants" in filled
    assert filled.endswith("<!-- end -->\nAfter.\n")
    assert len(reported) == 4, "a report after every run"
    assert rows(reported[0]["one"])[2] == ["neither", "0", "–", "–"]  # not run yet

    assert len(batches) == 8, "two steps of four runs"
    assert all(batch["encoded"] for batch in batches), "from the cache"
    assert len(list((out / "cache").rglob("*.npy"))) == 8
    lines = (out / "runs" / "plain-2" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"test-{k:06d}" for k in range(5)]


def test_a_run_that_was_killed_is_gone_on_with(recipe, tmp_path, monkeypatch):
    ablate(recipe(out=str(tmp_path / "whole")), ["seeds=[1]"])
    trained, save = [], state.RunState.save
    perform = ablation.perform

    def watched(run: ablation.Run, clips: Any) -> None:
        trained.append((run.variant, len(list(Path(run.config.out).glob("state-*.pt")))))
        perform(run, clips)

    def kill(self: state.RunState, out: Path, keep: int, write: bool) -> None:
        save(self, out, keep, write)
        if out.name == "plain-1":
            raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "perform", watched)
    monkeypatch.setattr(state.RunState, "save", kill)
    with pytest.raises(KeyboardInterrupt):
        ablate(recipe(), ["seeds=[1]"])
    assert (tmp_path / "out" / "tables.md").exists(), "what was ready was written"
    monkeypatch.setattr(state.RunState, "save", save)
    with pytest.raises(ConfigError, match="holds an ablation already; continue it with --resume"):
        ablate(recipe(), ["seeds=[1]"])
    text = ablate(recipe(), ["seeds=[1]"], resume=True)
    assert trained == [("full", 0), ("plain", 0), ("plain", 1)]
    numbers = rows(text)
    assert numbers == rows((tmp_path / "whole" / "tables.md").read_text()), "the same as without the stop"
    trained.clear()
    assert rows(ablate(recipe(), ["seeds=[1]"], resume=True)) == numbers
    assert not trained


def test_runs_side_by_side(recipe, tmp_path):
    """Processes of their own give the same numbers, in the same order, and no word of theirs is lost."""
    ablate(recipe(out=str(tmp_path / "one")), ["seeds=[1]", 'settings=["optim.steps=2", "threads=1"]'])
    text = ablate(recipe(), ["seeds=[1]", 'settings=["optim.steps=2", "threads=1"]', "jobs=2"])
    one, two = (json.loads((tmp_path / name / "tables.json").read_text())["tables"] for name in ("one", "out"))
    for table in one:
        for a, b in zip(one[table]["rows"], two[table]["rows"], strict=True):
            for column, cell in a["columns"].items():
                assert b["columns"][column]["mean"] == pytest.approx(cell["mean"], rel=1e-4)
    assert rows(text)[1][0] == "LAMB"
    logs = "".join(path.read_text() for path in (tmp_path / "out").glob("job-*.log"))
    assert logs.count("stage lamb: steps 2") == 2


def test_captioned_clips_and_declared_questions(recipe, tmp_path):
    """The clips of a manifest in place of scenes; the variants of the questions come first, with a seed more."""
    scenes = ScenesConfig(str(yaml.safe_load(recipe().read_text())["scenes"]["sounds"]), train=8, test=5, seconds=1)
    listed = write_scenes(scenes, tmp_path / "clips", 16000)
    more = {
        "other": ["model.guide.distance=l1"],
        "full": [],
        "plain": ["model.aligner.enabled=false", "model.guide.enabled=false"],
    }
    changes = {
        "scenes": None,
        "manifest": str(listed),
        "seeds": [1],
        "variants": more,
        "tables": {"one": {"title": "T", "rows": {"LAMB": "full"}, "columns": ["cross_entropy"]}},
        "contrasts": {"rows": {"both parts": "plain"}, "against": "full", "seeds": [2]},
    }
    config = ablation.read(AblationConfig, recipe(**changes))
    order = [(run.variant, run.seed) for run in ablation.planned(config)]
    assert order == [("full", 1), ("plain", 1), ("full", 2), ("plain", 2), ("other", 1)]
    text = ablate(recipe(**changes))
    out = tmp_path / "out"
    assert not (out / "scenes").exists()
    assert "| both parts | 2 | " in text
    assert "clips each, of split 'train' of" in text
    said = [json.loads(line) for line in (out / "runs" / "full-1" / "predictions.jsonl").open()]
    model = Captioner.load(str(out / "runs" / "full-1")).model
    for row, clip in zip(said, [c for c in read(listed) if c.split == "test"], strict=True):
        ids, mask = model.llm.tokenize(clip.captions[:1])
        (recording,) = next(hear(Engine(model), [clip], model.config.decode))
        h_a = torch.as_tensor(recording.h_a)[None]
        with torch.no_grad():
            output = model(h_a, h_a.new_ones(h_a.shape[:2], dtype=torch.bool), ids, mask, encoded=True)
        assert row["tokens"] == ids.shape[1] + 1
        assert row["nats"] / row["tokens"] == pytest.approx(
            float(cross_entropy(output.logits, output.labels, output.bias)), abs=1e-3
        )
    result = json.loads((out / "runs" / "full-1" / "result.json").read_text())
    total = sum(row["nats"] for row in said) / sum(row["tokens"] for row in said)
    assert result["cross_entropy"] == pytest.approx(total, abs=1e-4)


def killed(run: ablation.Run, clips: Any) -> None:
    os._exit(1)


def test_a_run_whose_process_is_killed(recipe, monkeypatch):
    monkeypatch.setattr(ablation, "perform", killed)
    with pytest.raises(TrainingError, match=r"the process of a run was killed.*--resume"):
        ablate(recipe(), ["seeds=[1]", "jobs=2"])


def test_no_run_outlives_the_command(tmp_path):
    """Killed without a word, with a run under way: its pipe closes once nobody is left who could write to it."""
    code = f"""
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from lamb.training.ablate import _set_apart
pool = ProcessPoolExecutor(1, get_context("spawn"), _set_apart, ({str(tmp_path)!r},))
print(pool.submit(os.getpid).result(), flush=True)
pool.submit(time.sleep, 600).result()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        worker = int(command.stdout.readline())
        os.kill(worker, 0)
        command.kill()
        assert command.communicate(timeout=30) == ("", None)


def test_a_changed_recipe_is_refused_and_a_longer_one_is_not(recipe, tmp_path):
    ablate(recipe(seeds=[1]))
    runs = tmp_path / "out" / "runs"
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="full-1: was started with another recipe; remove it"):
        ablate(recipe(seeds=[1], settings=["optim.steps=3"]), resume=True)
    with pytest.raises(ConfigError, match="holds scenes of other recordings or settings"):
        ablate(recipe(seeds=[1]), ["scenes.test=4"], resume=True)
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before
    more = {
        "full": [],
        "plain": ["model.aligner.enabled=false", "model.guide.enabled=false"],
        "l1": ["model.guide.distance=l1"],
    }
    text = ablate(recipe(seeds=[1], variants=more, tables={"t": {"title": "T", "rows": {"l1": "l1"}}}), resume=True)
    assert folders(tmp_path / "out") == ["full-1", "l1-1", "plain-1"]
    assert rows(text)[1][:2] == ["l1", "1"]


@pytest.mark.parametrize(
    ("changes", "overrides", "problem"),
    [
        ({"variant": {}}, [], "variant: unknown key; did you mean 'variants'"),
        ({}, ["scenes.trian=3"], "scenes.trian: unknown key; did you mean 'train'"),
        ({}, ["base=nosuch.yaml"], "nosuch.yaml: no such recipe"),
        ({"settings": ["init=tiny"]}, [], "must be of stage lamb, with a section model and no init"),
        ({"scenes": {}}, [], "scenes.sounds: is missing"),
        ({"scenes": None}, [], "scenes, manifest: give one of the two"),
        ({"manifest": "clips.jsonl"}, [], "scenes, manifest: give one of the two"),
        ({"contrasts": {"rows": {"x": "ful"}, "against": "full"}}, [], "contrasts.rows.x: 'ful' is not known; did you"),
        ({"contrasts": {"rows": {}, "against": "full", "seeds": [2]}}, [], "contrasts.seeds: these come on top"),
        ({"variants": {"full": ["model.adaptor.kind=linear"]}}, [], "tables.one.rows.neither: 'plain' is not known"),
        ({"variants": {"full": ["model.adaptor.kind=linear"], "plain": []}}, [], "model.adaptor: unknown key; did you"),
        ({"variants": {"full": [], "plain": [], "a/b": []}}, [], "variants.a/b: the name becomes that of a folder"),
        ({"seeds": [1, 1]}, [], "no seed twice"),
        ({"jobs": 0}, [], "jobs: 0 is less than 1"),
        (
            {"tables": {"t": {"title": "T", "rows": {"x": "ful"}}}},
            [],
            "tables.t.rows.x: 'ful' is not known; did you mean",
        ),
        ({"tables": {"t": {"title": "T", "rows": {}, "against": "x"}}}, [], "tables.t.against: 'x' is not known"),
        ({"tables": {"t": {"title": "T", "rows": {}, "columns": ["cider"]}}}, [], "did you mean 'cider_d'"),
        ({"tables": {"a b": {"title": "T", "rows": {}}}}, [], "tables.a b: use letters, digits"),
    ],
)
def test_recipes_that_cannot_be_used_leave_no_folder(recipe, tmp_path, changes, overrides, problem):
    with pytest.raises(ConfigError, match=re.escape(problem)):
        ablate(recipe(**changes), overrides)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [(None, "cannot be read"), ("<!-- lamb ablate: one --> and no end", "has no place for a table")],
)
def test_documents_that_cannot_be_filled(recipe, tmp_path, text, problem):
    if text:
        (tmp_path / "claims.md").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        ablate(recipe(), document=tmp_path / "claims.md")
    assert not (tmp_path / "out").exists()


def test_the_interval_is_students():
    rng = np.random.default_rng(0)
    a, b = dict(enumerate(rng.normal(1, 1, 5))), dict(enumerate(rng.normal(0, 1, 5)))
    found = difference(a, b)
    trusted = ttest_rel(list(a.values()), list(b.values())).confidence_interval(0.95)
    assert found is not None
    assert (found["low"], found["high"]) == pytest.approx((trusted.low, trusted.high))
    assert found["mean"] == pytest.approx(np.mean(list(a.values())) - np.mean(list(b.values())))
    assert difference(a, {0: 1.0}) is None
    assert difference(a, {0: 1.0, 1: 2.0, 9: 3.0}) == difference({0: a[0], 1: a[1]}, {0: 1.0, 1: 2.0})


def test_what_stands_out_is_bold():
    """A difference of 1 in every seed, near enough, and one that is noise."""
    table = {"title": "T", "rows": {"full": "full", "worse": "worse"}, "columns": ["l2", "named"]}
    data = {"base": "b", "variants": {"full": [], "worse": []}, "tables": {"t": table}, "scenes": {"sounds": "s"}}
    config = from_dict(AblationConfig, data)
    results = {("full", s): {"l2": 1.0, "named": 0.5} for s in (1, 2, 3)}
    results |= {("worse", s): {"l2": 2.0 + 0.01 * s, "named": 0.5 + 0.1 * (s - 2)} for s in (1, 2, 3)}
    text = markdown(summary(config, config.tables["t"], results))
    assert rows(text)[1] == ["full", "3", "1.000 ± 0.000", "50.0 ± 0.0"]
    assert rows(text)[-1] == ["worse", "3", "**+1.020 [+0.995, +1.045]**", "+0.0 [-24.8, +24.8]"]


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["ablation", "ablation-smollm"])
def test_the_recipes_in_the_repository_can_be_read(name, monkeypatch):
    config = ablation.read(AblationConfig, ROOT / "recipes" / f"{name}.yaml")
    ablation._check(config)
    shown = {variant for table in config.tables.values() for variant in table.rows.values()}
    assert shown == set(config.variants), "what is trained is shown"
    document = (ROOT / "docs" / "claims.md").read_text()
    wanted = {
        config.prefix + block for block in ("setting", *config.tables, *(["contrasts"] if config.contrasts else []))
    }
    assert wanted <= set(re.findall(r"<!-- lamb ablate: ([\w-]+) -->", document))
    assert set(next(iter(config.tables.values())).columns) <= COLUMNS.keys()
    monkeypatch.chdir(ROOT)
    runs = ablation.planned(config)
    assert all(to_dict(run.config.model.extensions) == to_dict(ExtensionsConfig()) for run in runs)
    assert not any(run.config.model.decode.no_repeat_ngram or run.config.data.gain for run in runs)
    seeds = {variant: [run.seed for run in runs if run.variant == variant] for variant in config.variants}
    if config.contrasts:
        for variant in (config.contrasts.against, *config.contrasts.rows.values()):
            assert len(seeds[variant]) >= 5
    assert min(map(len, seeds.values())) >= 2


def test_the_stored_runs_are_those_of_the_recipe(monkeypatch):
    """benchmarks/ablation-smollm/README.md says how to go on from them."""
    monkeypatch.chdir(ROOT)
    config = ablation.read(AblationConfig, "recipes/ablation-smollm.yaml")
    runs = {Path(run.config.out).name: run for run in ablation.planned(config)}
    stored = list(Path("benchmarks/ablation-smollm/results").iterdir())
    assert stored
    for folder in stored:
        recipe = json.loads((folder / "recipe.json").read_text())
        del recipe["lists"]
        assert state._elsewhere(from_dict(TrainConfig, recipe)) == state._elsewhere(runs[folder.name].config)
        assert len((folder / "predictions.jsonl").read_text().splitlines()) == config.scenes.test


def test_the_page_has_the_tables_of_the_stored_runs(tmp_path, monkeypatch):
    """`--document docs/claims.md` would write every block of it as it is, from the measures of the single runs."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(ablation, "chart", lambda tables, file: None)
    page = Path("docs/claims.md").read_text()
    again = tmp_path / "claims.md"
    again.write_text(page)
    for name, measures in json.loads(Path("benchmarks/ablation/results.json").read_text()).items():
        (tmp_path / "ablation" / "runs" / name).mkdir(parents=True)
        (tmp_path / "ablation" / "runs" / name / "result.json").write_text(json.dumps(measures))
    (tmp_path / "ablation-smollm").mkdir()
    (tmp_path / "ablation-smollm" / "runs").symlink_to(ROOT / "benchmarks" / "ablation-smollm" / "results")
    written: list[str] = []
    for name in ("ablation", "ablation-smollm"):
        config = ablation.read(AblationConfig, f"recipes/{name}.yaml", [f"out={tmp_path / name}"])
        runs = ablation.planned(config)
        assert {run.result for run in runs} == set((tmp_path / name / "runs").glob("*/result.json"))
        written += ablation._report(config, runs, again)
    assert again.read_text() == page
    assert sorted(written) == sorted(re.findall(r"<!-- lamb ablate: ([\w-]+) -->", page))


def test_the_command(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lamb", "ablate", str(recipe()), "seeds=[1]"])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    out, err = capsys.readouterr()
    assert not exit.value.code
    assert out == (tmp_path / "out" / "tables.md").read_text()
    assert "lamb: run 2 of 2: plain, seed 1" in err
