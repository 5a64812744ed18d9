"""The commands of the documents run and do what the text says; what they name exists."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import needs_sounds

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


@needs_sounds
@pytest.mark.slow
def test_the_model_card_has_what_its_command_prints(clone: Path) -> None:
    command = "lamb evaluate tiny ../shared/sounds --split development --probe --probe-seed 1 --probe-seed 2"
    scores = json.loads(run(f"{command} --json", clone).stdout)
    card = (ROOT / "MODEL_CARD.md").read_text()
    assert command in card
    assert scores["failed"] == 0
    for name in ("label_named", "clean", "extra", "calibration_error", "sequence_named", "overlap_named"):
        assert f"| {scores[name]:.3f}" in card, name


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


@needs_sounds
def test_the_table_of_people_has_what_its_command_prints(clone: Path) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text()
    scores = json.loads(run("lamb evaluate --human ../shared/captions/audiocaps_test.csv --json", clone).stdout)
    for name in ("cider_d", "meteor", "bleu_1", "rouge_l"):
        assert name not in scores or f"{scores[name]:.3f}" in page, name


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
    """The README's table has the captions that the bundled model gives today."""
    shown = blocks("README.md", "text")[0]
    result = run("lamb caption samples --format jsonl", clone)
    assert result.returncode == 0
    for line in result.stdout.splitlines():
        row = json.loads(line)
        assert row["file"] in shown
        for word in row["caption"].split():
            assert word in shown


def test_python(clone: Path) -> None:
    (code,) = blocks("README.md", "python")
    result = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2


@needs_sounds
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
