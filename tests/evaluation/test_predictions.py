"""Predictions: kept as they come, gone on with, never mixed; and read from other systems' files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lamb.data.manifest import Clip, ManifestError
from lamb.evaluation.predictions import FILE, caption_clips, read_predictions
from lamb.inference.captioner import Captioner
from lamb.inference.captions import WRITERS, Caption


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Five recordings of different pitch; the third is broken."""
    found = []
    for k in range(5):
        file = tmp_path / f"{k}.wav"
        soundfile.write(file, 0.3 * np.sin(0.1 * (k + 1) * np.arange(16000)), 16000)
        found.append(Clip(f"clip{k}", str(file)))
    (tmp_path / "2.wav").write_bytes(b"no sound")
    return found


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the captioner was asked for."""
    asked: list[Any] = []
    stream = Captioner.stream

    def watched(self, files, **options):
        files = list(files)
        asked.extend(files)
        return stream(self, files, **{"batch_size": 1, **options})

    monkeypatch.setattr(Captioner, "stream", watched)
    return asked


def test_a_run_that_is_stopped_goes_on(clips, model_folder, heard, tmp_path):
    out = tmp_path / "out"
    whole = caption_clips(str(model_folder), clips)
    assert [caption.ok for caption in whole] == [True, True, False, True, True]
    heard.clear()

    def stop(done: int, total: int) -> None:
        assert total == 5
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        caption_clips(str(model_folder), clips, out, progress=stop)
    with (out / FILE).open("a") as file:
        file.write('{"run": "half a li')  # as kill -9 may leave it
    heard.clear()
    said: list[str] = []
    again = caption_clips(str(model_folder), clips, out, say=said.append)
    assert heard == clips[3:]
    assert "3 of 5 clips are captioned already" in said[0]
    assert again == whole
    lines = [json.loads(line) for line in (out / FILE).read_text().splitlines()]
    assert [line["id"] for line in lines] == [clip.id for clip in clips]
    heard.clear()
    assert caption_clips(str(model_folder), clips, out) == whole
    assert heard == [], "nothing left to do, no model loaded"


@pytest.mark.parametrize("change", ["model", "recording", "clips"])
def test_other_models_and_other_clips_are_not_mixed(clips, model_folder, heard, tmp_path, change):
    out = tmp_path / "out"
    caption_clips(str(model_folder), clips, out)
    before = (out / FILE).read_bytes()
    heard.clear()
    if change == "model":
        facts = json.loads((model_folder / "lamb.json").read_text())
        facts["config"]["decode"]["max_new_tokens"] = 3
        (model_folder / "lamb.json").write_text(json.dumps(facts))
    elif change == "recording":
        soundfile.write(clips[0].path, 0.3 * np.sin(0.7 * np.arange(8000)), 16000)
    else:
        clips = clips[1:]
    said: list[str] = []
    caption_clips(str(model_folder), clips, out, say=said.append)
    assert len(heard) == len(clips)
    run = json.loads(before.splitlines()[0])["run"]
    assert (out / f"predictions.{run}.jsonl").read_bytes() == before, "nothing is lost"
    assert f"it is predictions.{run}.jsonl now" in said[0]


def test_a_file_that_is_not_ours_is_left_alone(clips, model_folder, tmp_path):
    (tmp_path / FILE).write_text('{"id": "mine"}\n')
    with pytest.raises(ManifestError, match="line 1: not written by lamb evaluate; move the file away"):
        caption_clips(str(model_folder), clips, tmp_path)
    assert (tmp_path / FILE).read_text() == '{"id": "mine"}\n'


def test_a_part_of_a_recording_is_captioned_as_if_it_were_a_file(model_folder, tmp_path):
    x = np.concatenate([0.3 * np.sin(0.1 * np.arange(16000)), 0.3 * np.sin(0.9 * np.arange(16000))])
    soundfile.write(tmp_path / "both.wav", x, 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "second.wav", x[16000:], 16000, subtype="FLOAT")
    both = str(tmp_path / "both.wav")
    clips = [
        Clip("late", both, start=9.0, duration=1.0),
        Clip("part", both, start=1.0),
        Clip("whole", both),
        Clip("file", str(tmp_path / "second.wav")),
        Clip("gone", str(tmp_path / "gone.wav"), start=1.0, duration=1.0),
    ]
    late, part, whole, file, gone = caption_clips(str(model_folder), clips)
    assert (part.text, part.duration, part.file) == (file.text, 1.0, both)
    assert part.score == pytest.approx(file.score, abs=1e-3)
    assert whole.duration == 2.0
    assert "ends before 9 s" in (late.error or "")
    assert "does not exist" in (gone.error or "")


def write(path: Path, *rows: Any) -> Path:
    if path.suffix == ".csv":
        path.write_text("\n".join(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


CLIPS = [Clip("a", "a.wav"), Clip("b", ""), Clip("c", "c.wav")]


def test_predictions_of_another_system(tmp_path):
    csv = write(tmp_path / "p.csv", "id,caption,extra", 'c,"Rain, falling.",1', "a, A dog. ,", "b,,x")
    jsonl = write(
        tmp_path / "p.jsonl",
        {"id": "b", "caption": ""},
        {"id": "a", "caption": "A dog.", "confidence": 0.5},
        {"id": "c", "error": "broken"},
    )
    clips, captions = read_predictions(csv, CLIPS)
    assert clips == CLIPS
    assert [(c.file, c.text) for c in captions] == [("a.wav", "A dog."), ("b", ""), ("c.wav", "Rain, falling.")]
    captions = read_predictions(jsonl, CLIPS)[1]
    assert [(c.text, c.ok, c.confidence) for c in captions] == [
        ("A dog.", True, 0.5),
        ("", True, None),
        ("", False, None),
    ]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"id": "a", "caption": "x"}, {"id": "a", "caption": "y"}], "line 2: the id 'a' is that of line 1"),
        ([{"id": "a", "caption": "x"}], "2 clips of the data without a caption: 'b', 'c'; give --partial"),
        ([{"id": i, "caption": "x"} for i in "abcdef"], "3 ids that no clip of the data has: 'd', 'e', 'f'; give"),
        ([{"caption": "x"}], "line 1: no id"),
        ([{"id": 7.5, "caption": "x"}], "line 1: no id"),
        ([{"id": "a", "text": "x"}], "line 1: no caption; a row has the keys id"),
        (["a"], "line 1: no id"),
    ],
)
def test_predictions_that_do_not_fit(tmp_path, rows, problem):
    with pytest.raises(ManifestError, match=problem):
        read_predictions(write(tmp_path / "p.jsonl", *rows), CLIPS)


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_the_output_of_lamb_caption_is_a_file_of_predictions(tmp_path, format):
    """By the path as it was given, its name or its stem; a failure counts as one."""
    clips = [Clip("one", str(tmp_path / "x" / "a.wav")), Clip("two", "/away/b.flac"), Clip("3", "/away/c.ogg")]
    results = [
        Caption(str(tmp_path / "x" / "a.wav"), 1.0, "A dog."),
        Caption("b.flac", 1.0, "A cat."),
        Caption("elsewhere/c.wav", error="broken"),
    ]
    path = tmp_path / f"p.{format}"
    path.write_text("".join(WRITERS[format](results)))
    found = read_predictions(path, clips)
    assert found[0] == clips
    assert [(c.text, c.ok) for c in found[1]] == [("A dog.", True), ("A cat.", True), ("", False)]


def test_ids_in_other_columns(tmp_path):
    clips = [Clip("7", "/x/a.wav"), Clip("8", "/x/b.wav")]
    for name, text in {
        "id.csv": "ID;Caption\n7;A dog.\n8;A cat.\n",
        "name.csv": "file_name,caption\na.wav,A dog.\nb.wav,A cat.\n",
        "p.jsonl": '{"id": 7, "caption": "A dog."}\n{"id": 8, "caption": "A cat."}\n',
    }.items():
        (tmp_path / name).write_text(text)
        assert [c.text for c in read_predictions(tmp_path / name, clips)[1]] == ["A dog.", "A cat."], name
    (tmp_path / "wide.csv").write_text("id,caption\n7,A dog.\n8,A caf\xe9.\n", encoding="cp1252")
    with pytest.raises(ManifestError, match=r"wide\.csv, line 3: neither UTF-8 nor UTF-16; .*iconv"):
        read_predictions(tmp_path / "wide.csv", clips)


def test_predictions_of_some_clips(tmp_path):
    some = write(tmp_path / "p.jsonl", {"id": "z", "caption": "x"}, {"id": "c", "caption": "y"})
    clips, captions = read_predictions(some, CLIPS, partial=True)
    assert ([clip.id for clip in clips], [c.text for c in captions]) == (["c"], ["y"])
    with pytest.raises(ManifestError, match="no id of the data is here; ids look like 'a'"):
        read_predictions(write(tmp_path / "q.jsonl", {"id": "z", "caption": "x"}), CLIPS, partial=True)
    with pytest.raises(ManifestError, match="does not exist; check the path"):
        read_predictions(tmp_path / "none.csv", CLIPS)
