"""The commands of README.md and of recipes/tiny/README.md run, and do what the text says."""

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
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def commands(name: str) -> list[str]:
    """The lines of the shell blocks, without their comments."""
    lines = [line.partition("  #")[0].strip() for block in blocks(name, "sh") for line in block.splitlines()]
    return [line for line in lines if line]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(folder)}
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
    """`make` runs all this; the evaluation has a test of its own; all others run below."""
    assert [c for c in README if not c.startswith(("lamb caption", "lamb info"))] == [
        "make caption",
        "make test",
        "lamb evaluate tiny ../shared/sounds --split development --probe",
        "lamb bulk samples --out captions",
        "lamb evaluate --human ../shared/captions/audiocaps_test.csv",
        "lamb train recipes/smoke.yaml",
    ]
    targets = (ROOT / "Makefile").read_text()
    assert "\ncaption: " in targets
    assert "\ntest: " in targets


def test_its_commands_run(clone: Path) -> None:
    for command in README:
        if command.startswith("lamb") and "evaluate" not in command:
            result = run(command, clone)
            assert result.returncode == 0, result.stderr
            if not command.startswith(("lamb train", "lamb bulk")):
                assert result.stderr == "", command
            if "--output" in command:
                assert (clone / command.split()[-1]).read_text().count("\n") >= 2
            else:
                assert result.stdout.strip()


@needs_sounds
def test_the_bundled_model_names_the_labels(clone: Path) -> None:
    """The number in the README is what its command prints, and above the bar of 0.6."""
    (command,) = [c for c in README if "evaluate tiny" in c]
    scores = json.loads(run(command + " --json", clone).stdout)
    assert scores["clips"] == 623
    assert scores["failed"] == 0
    assert scores["label_named"] > 0.6
    assert f"{100 * scores['label_named']:.1f} %" in (ROOT / "README.md").read_text()
    assert f"{scores['calibration_error']:.3f}" in (ROOT / "README.md").read_text()


def test_the_commands_of_the_training_page(clone: Path) -> None:
    """As far as they differ from the README's; what wants other data or a GPU stands in blocks of `bash`, not `sh`."""
    for command in commands("docs/training.md"):
        if command not in README:
            result = run(command.replace("torchrun", "python -m torch.distributed.run"), clone)
            assert result.returncode == 0, result.stderr[-2000:]


@needs_sounds
def test_the_commands_of_the_evaluation_page(clone: Path) -> None:
    """All four run, and the table of people has what they print."""
    page = (ROOT / "docs" / "evaluation.md").read_text()
    for command in commands("docs/evaluation.md"):
        result = run(f"{command} --json", clone)
        assert result.returncode == 0, result.stderr
        if "--human" in command:
            scores = json.loads(result.stdout)
            for name in ("cider_d", "meteor", "bleu_1", "rouge_l"):
                assert name not in scores or f"{scores[name]:.3f}" in page, name
    assert (clone / "runs" / "report" / "report.html").read_text().endswith("</html>\n")
    assert (clone / "runs" / "clips.csv").read_text().count("\n") == 624


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
