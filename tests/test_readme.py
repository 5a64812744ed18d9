"""The commands of README.md and of recipes/tiny/README.md run, and do what the text says."""

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


CAPTION = [c for c in commands("README.md") if c.startswith(("lamb caption", "lamb info"))]


@pytest.mark.parametrize("command", CAPTION)
def test_caption_and_info(command: str, clone: Path) -> None:
    result = run(command, clone)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    if "--output" in command:
        assert (clone / command.split()[-1]).read_text().count("\n") >= 2
    else:
        assert result.stdout.strip()


def test_the_other_commands_are_known() -> None:
    rest = [c for c in commands("README.md") if c not in CAPTION]
    assert [c.split()[:2] for c in rest] == [
        ["make", "caption"],
        ["make", "test"],
        ["lamb", "evaluate"],
        ["lamb", "train"],
        ["lamb", "evaluate"],
    ]
    targets = (ROOT / "Makefile").read_text()
    assert "\ncaption: " in targets
    assert "\ntest: " in targets


def test_the_table_is_what_make_caption_prints(clone: Path) -> None:
    """The README's table has the captions that the bundled model gives today."""
    shown = blocks("README.md", "text")[0]
    result = run("lamb caption samples --format jsonl", clone)
    assert result.returncode == 0
    import json

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
            (clone / "lamb/models/tiny").mkdir(parents=True)
        result = run(command + few if command.startswith("lamb train") else command, clone)
        assert result.returncode == 0, result.stderr
    assert run("lamb caption samples/rain.flac --model lamb/models/tiny", clone).returncode == 0
