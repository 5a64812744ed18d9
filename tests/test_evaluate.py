"""An evaluation from folder to scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lamb.data.manifest import ManifestError
from lamb.evaluate import evaluate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three recordings in the format of `sources.sounds`, one of them broken."""
    rows = ["file,label,fold,licence,title,author,source,clotho_split,captions"]
    for name, label, fold in (("a", "dog", "4"), ("b", "rain", "4"), ("c", "cow", "1")):
        rows.append(f"{name}.wav,{label},{fold},CC0,,,{name},,")
        soundfile.write(tmp_path / f"{name}.wav", 0.3 * np.sin(0.2 * np.arange(8000)), 16000)
    (tmp_path / "b.wav").write_bytes(b"no sound")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    return tmp_path


def test_evaluate_a_folder(folder, model_folder):
    scores = evaluate(str(model_folder), str(folder), "development")
    assert (scores["clips"], scores["failed"]) == (2, 1)
    assert 0 <= scores["label_named"] <= 0.5  # the broken one is not named
    assert evaluate(str(model_folder), str(folder))["clips"] == 3


def test_evaluate_a_manifest(folder, model_folder):
    (folder / "m.jsonl").write_text('{"id": "a", "path": "a.wav", "labels": "dog", "split": "test"}')
    assert evaluate(str(model_folder), str(folder / "m.jsonl"), "test")["clips"] == 1


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"labels": "unicorn"}, "labels without a word list: unicorn"),
        ({}, "no labelled clips"),
        ({"labels": "dog", "start": 1.0}, "part of a recording"),
    ],
)
def test_data_that_cannot_be_evaluated(tmp_path, row, problem):
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "a", "path": "a.wav", **row}))
    with pytest.raises(ValueError, match=problem):
        evaluate("no model is loaded", str(tmp_path / "m.jsonl"))


def test_a_split_that_is_not_there(folder):
    with pytest.raises(ManifestError, match=r"no clips of split 'test'; there are \['development', 'train'\]"):
        evaluate("no model is loaded", str(folder), "test")
