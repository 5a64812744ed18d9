"""A wheel holds all that `lamb caption` needs, the bundled weights too."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_wheel_captions_where_it_is_installed(tmp_path: Path) -> None:
    """Built from what git would commit, unpacked elsewhere and run there, with the libraries of this environment."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    source = tmp_path / "source"
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    result = subprocess.run(build, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("lamb_aac-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    for name in ("lamb.json", "model.safetensors", "llm/config.json", "llm/tokenizer.json"):
        assert f"lamb/bundled/tiny/{name}" in names
    assert "lamb/data/test_sets/audiocaps-test.txt" in names
    assert not [name for name in names if name.startswith(("tests", "samples", "benchmarks"))]
    command = [sys.executable, "-c", "import lamb; print(lamb.__file__); from lamb.cli.app import main; main()"]
    result = subprocess.run(
        [*command, "caption", str(ROOT / "samples" / "rain.flac")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    where, caption = result.stdout.splitlines()
    assert Path(where).is_relative_to(site)
    assert caption.endswith(".")
