"""`samples/` is what `scripts/make_samples.py` makes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[2]
SAMPLES = sorted((ROOT / "samples").glob("*.flac"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    subprocess.run([sys.executable, ROOT / "scripts/make_samples.py", folder], check=True)
    return folder


def test_the_script_makes_these_files_and_the_readme_lists_them(made: Path) -> None:
    names = [path.name for path in SAMPLES]
    assert sorted(path.name for path in made.iterdir()) == names
    listed = dict(re.findall(r"^\| `(.+?)` \| (.+?) s \|", (ROOT / "samples/README.md").read_text(), re.MULTILINE))
    assert sorted(listed) == names
    for path in SAMPLES:
        assert soundfile.info(path).duration == pytest.approx(float(listed[path.name]))
    assert sum(path.stat().st_size for path in SAMPLES) < 1_500_000


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_is_as_it_was_made(made: Path, path: Path) -> None:
    x, rate = soundfile.read(path)
    assert (rate, x.ndim) == (16_000, 1)
    assert 3 <= len(x) / rate <= 8
    np.testing.assert_allclose(soundfile.read(made / path.name)[0], x, rtol=0, atol=1e-4)
    if path.stem == "silence":
        assert not x.any()
    else:
        assert 0.5 < np.abs(x).max() < 1
