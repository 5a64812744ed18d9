"""An evaluation from folder to scores: of models, of other systems' captions, of people; and two compared."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SHARED, needs_captions

from lamb.data import sources
from lamb.data.manifest import ManifestError
from lamb.evaluation import fense, reference_metrics
from lamb.evaluation.evaluate import (
    LEAKAGE,
    compare,
    evaluate,
    evaluate_models,
    evaluate_people,
    folder_of,
    write_csv,
)
from lamb.evaluation.resources import Unavailable


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without Java and models, which have tests of their own and take seconds to start."""

    def missing(*given):
        raise Unavailable("left out here", "lamb evaluate --download")

    monkeypatch.setattr(reference_metrics, "java", missing)
    for name in ("Sentences", "FluencyDetector"):
        monkeypatch.setattr(fense, name, missing)


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
        ({}, "has neither labels nor captions to compare with"),
    ],
)
def test_data_that_cannot_be_evaluated(tmp_path, row, problem):
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "a", "path": "a.wav", **row}))
    with pytest.raises(ValueError, match=problem):
        evaluate("no model is loaded", str(tmp_path / "m.jsonl"))


def test_a_split_that_is_not_there(folder):
    with pytest.raises(ManifestError, match=r"no clips of split 'test'; there are \['development', 'train'\]"):
        evaluate("no model is loaded", str(folder), "test")


REFERENCES = {"a": ["A dog barks.", "A dog is barking loudly."], "b": ["Rain falls.", "Rain falls on a roof."], "c": []}


@pytest.fixture
def captioned(folder: Path) -> str:
    """The same recordings in a manifest; two have captions, all a label."""
    rows = [
        {"id": id, "path": f"{id}.wav", "captions": REFERENCES[id], "labels": label, "split": "test"}
        for id, label in (("a", "dog"), ("b", "rain"), ("c", "cow"))
    ]
    (folder / "captioned.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "captioned.jsonl")


def said(path: Path, **captions: str) -> str:
    path.write_text("".join(json.dumps({"id": id, "caption": text}) + "\n" for id, text in captions.items()))
    return str(path)


def test_captions_and_labels_side_by_side(captioned, model_folder, tmp_path):
    scores = evaluate(str(model_folder), captioned, "test", tmp_path / "out")
    assert [scores[name] for name in ("clips", "failed", "missing", "captioned_by_people")] == [3, 1, 0, 2]
    assert {"label_named", "calibration_error", "distinct_captions", "cider_d", "bleu_4", "length"} <= scores.keys()
    assert scores["left_out"]["meteor"] == "left out here; lamb evaluate --download"
    low, high = scores["intervals"]["rouge_l"]
    assert low <= scores["rouge_l"] <= high
    json.dumps(scores, allow_nan=False)
    assert (tmp_path / "out" / "predictions.jsonl").read_text().count("\n") == 3


def test_captions_of_another_system(captioned, tmp_path):
    own = said(tmp_path / "own.jsonl", a="A dog barks.", b="Rain falls on a roof.", c="A cow moos.")
    (one,) = evaluate_models([own], captioned)
    scores = one.to_dict()
    assert [scores[name] for name in ("label_named", "bleu_1", "rouge_l")] == pytest.approx([1.0] * 3, abs=1e-6)
    assert "calibration_error" not in scores, "no confidence, nothing to calibrate"
    np.testing.assert_allclose(one.measures["rouge_l"].per_clip, [1, 1, np.nan])
    with pytest.raises(ManifestError, match="1 clips of the data without a caption: 'c'"):
        evaluate_models([said(tmp_path / "some.jsonl", a="x", b="y")], captioned)
    (some,) = evaluate_models([said(tmp_path / "some.jsonl", a="x", b="y")], captioned, partial=True)
    assert len(some.clips) == 2
    assert (some.to_dict()["missing"], some.to_dict()["missing_clips"]) == (1, ["c"])


def test_two_systems_compared(captioned, model_folder, tmp_path):
    good = said(tmp_path / "good.jsonl", a="A dog barks.", b="Rain falls on a roof.", c="A cow moos.")
    bad = said(tmp_path / "bad.jsonl", a="A dog barks.", b="Music is playing.", c="")
    a, b = evaluate_models([good, bad], captioned)
    test = compare(a, b)
    assert test["label_named"]["difference"] == pytest.approx(2 / 3)
    assert test["rouge_l"]["difference"] == pytest.approx(0.5)
    assert test["bleu_1"]["difference"] == pytest.approx(a.measures["bleu_1"].value - b.measures["bleu_1"].value)
    assert all(0 < found["p"] <= 1 for found in test.values())
    assert "vocabulary" not in test
    assert all(found == {"difference": 0.0, "p": 1.0} for found in compare(a, a).values())
    write_csv([a, b], tmp_path / "clips.csv")
    with (tmp_path / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["system"], row["id"]) for row in rows] == [(s, i) for s in (good, bad) for i in "abc"]
    assert (rows[4]["caption"], rows[4]["label_named"], rows[5]["rouge_l"]) == ("Music is playing.", "0.000000", "")
    mixed = evaluate_models([str(model_folder), good], captioned)
    assert [one.failed for one in mixed] == [1, 0]


def test_a_formula_is_no_cell(captioned, tmp_path):
    (one,) = evaluate_models([said(tmp_path / "p.jsonl", a="=1+1", b="-x", c="@y")], captioned)
    write_csv([one], tmp_path / "clips.csv")
    assert [line.split(",")[2] for line in (tmp_path / "clips.csv").read_text().splitlines()[1:]] == [
        "'=1+1",
        "'-x",
        "'@y",
    ]


def test_labels_without_a_list_do_not_stop_the_captions(folder, tmp_path):
    row = {"id": "a", "path": "a.wav", "labels": "unicorn", "captions": ["A dog barks."]}
    (folder / "m.jsonl").write_text(json.dumps(row))
    (one,) = evaluate_models([said(tmp_path / "p.jsonl", a="A dog barks.")], str(folder / "m.jsonl"))
    assert "unicorn" in one.left_out["label_named"]
    assert one.measures["rouge_l"].value == 1.0


def test_people_leave_one_out(tmp_path):
    """Each caption of a clip against the others of that clip; clips with one caption have no others."""
    rows = [
        {"id": "two", "path": "x", "captions": ["a dog barks", "a dog barks"]},
        {"id": "three", "path": "x", "captions": ["rain", "rain", "music"]},
        {"id": "one", "path": "x", "captions": ["alone"]},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate_people(str(tmp_path / "m.jsonl"))
    assert [clip.id for clip in found.clips] == ["two", "three"]
    np.testing.assert_allclose(found.measures["rouge_l"].per_clip, [1.0, 2 / 3])
    assert found.measures["rouge_l"].value == pytest.approx((2 * 1.0 + 2 * 1.0 + 1 * 0.0) / 5)  # rounds by their clips
    (tmp_path / "m.jsonl").write_text(json.dumps(rows[2]))
    with pytest.raises(ManifestError, match="no clip has two captions"):
        evaluate_people(str(tmp_path / "m.jsonl"))


@needs_captions
def test_people_on_audiocaps():
    """As the literature has them: CIDEr-D 0.91; and all 975 clips of the published list are there."""
    found = evaluate_people(str(SHARED / "captions" / "audiocaps_test.csv")).to_dict()
    assert found["cider_d"] == pytest.approx(0.908, abs=2e-3)
    assert found["bleu_4"] == pytest.approx(0.2905, abs=1e-3)
    assert found["rouge_l"] == pytest.approx(0.495, abs=1e-3)
    assert (found["clips"], found["missing"], found["test_set"]) == (975, 0, "audiocaps-test")


def test_encoders_may_have_heard_audiocaps(tmp_path):
    """AudioSet holds the test clips: a note says so with the scores of a system, but not with those of people."""
    (tmp_path / "audiocaps.csv").write_text(
        "youtube_id,start_time,caption\n-BUWGM7qeUM,10,A dog barks.\n-BUWGM7qeUM,10,A dog.\n"
    )
    own = said(tmp_path / "p.jsonl", **{"audiocaps/-BUWGM7qeUM_10": "A dog barks."})
    (one,) = evaluate_models([own], str(tmp_path / "audiocaps.csv"))
    assert one.to_dict()["test_set"] == "audiocaps-test"
    assert one.to_dict()["notes"].count(LEAKAGE) == 1
    assert LEAKAGE not in evaluate_people(str(tmp_path / "audiocaps.csv")).notes
    (tmp_path / "other.csv").write_text("youtube_id,start_time,caption\nabc,30,A dog barks.\n")
    (other,) = evaluate_models([said(tmp_path / "o.jsonl", **{"audiocaps/abc_30": "x"})], str(tmp_path / "other.csv"))
    assert LEAKAGE not in other.notes


def test_a_model_needs_recordings(tmp_path):
    (tmp_path / "test.csv").write_text("youtube_id,start_time,caption\nabc,30,A dog barks.\nabc,30,A dog.\n")
    clips = sources.clips(str(tmp_path / "test.csv"))
    assert [(clip.id, clip.captions) for clip in clips] == [("audiocaps/abc_30", ("A dog barks.", "A dog."))]
    with pytest.raises(ManifestError, match="audiocaps/abc_30 has no recording"):
        evaluate("tiny", str(tmp_path / "test.csv"))


def test_a_folder_that_lamb_data_made(folder, captioned):
    Path(captioned).rename(folder / "manifest.jsonl")
    assert [clip.id for clip in sources.clips(str(folder), "test")] == ["a", "b", "c"]


def test_where_predictions_are_kept():
    assert str(folder_of("tiny", "../shared/sounds", "test")) == "runs/evaluate/tiny-shared-sounds-test"
    assert str(folder_of("user/model", "m.jsonl", None)) == "runs/evaluate/user-model-m"
    assert folder_of("tiny", "data", None, Path("out")) == Path("out")
    assert folder_of("runs/a", "data", None, Path("out"), several=True) == Path("out/runs-a")
