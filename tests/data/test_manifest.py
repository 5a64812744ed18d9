"""Manifests: what is written is read again, and every mistake is named with its file and line."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from lamb.data.manifest import Clip, ManifestError, read, write

CLIPS = [
    Clip(
        "a",
        "/sounds/a.wav",
        captions=("A dog barks.", "Ein Hund bellt, \u201elaut\u201c."),
        labels=("dog",),
        split="train",
    ),
    Clip("b", "/sounds/b.wav", start=1.5, duration=2.0, split="test", source="http://example/b"),
    Clip("c", "/sounds/c, d.wav", captions=('Rain "falls",\nthen stops.\u2028Wind\x85 blows.',), split="train"),
]


def to_csv(clips: list[Clip], path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Clip)])
        writer.writeheader()
        for clip in clips:
            row = dataclasses.asdict(clip)
            writer.writerow(row | {key: json.dumps(row[key]) for key in ("captions", "labels")})
    return path


def test_jsonl_round_trip(tmp_path):
    write(CLIPS, tmp_path / "m.jsonl")
    assert read(tmp_path / "m.jsonl") == CLIPS
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


@pytest.mark.parametrize("name", ["m.csv", "M.CSV"])
def test_csv_round_trip(tmp_path, name):
    assert read(to_csv(CLIPS, tmp_path / name)) == CLIPS


def test_write_replaces_whole_files_only(tmp_path):
    write(CLIPS[:1], tmp_path / "m.jsonl")

    def clips():
        yield CLIPS[1]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write(clips(), tmp_path / "m.jsonl")
    assert read(tmp_path / "m.jsonl") == CLIPS[:1]


def test_a_byte_order_mark_and_blank_lines_do_not_matter(tmp_path):
    (tmp_path / "m.csv").write_text("id,path\r\n\r\na,a.wav\r\n", encoding="utf-8-sig")
    (tmp_path / "m.jsonl").write_text('\n{"id": "a", "path": "a.wav"}\r\n\n', encoding="utf-8-sig")
    assert read(tmp_path / "m.csv") == read(tmp_path / "m.jsonl") == [Clip("a", str(tmp_path / "a.wav"))]


def test_paths_are_relative_to_the_manifest(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "m.jsonl").write_text('{"id": "a", "path": "x/a.wav"}\n{"id": "b", "path": "/b.wav"}')
    monkeypatch.chdir(tmp_path)
    assert [clip.path for clip in read("sub/m.jsonl")] == [str(tmp_path / "sub/x/a.wav"), "/b.wav"]


def test_one_caption_needs_no_list(tmp_path):
    (tmp_path / "m.csv").write_text('id,path,captions,labels\na,a.wav,A dog barks.,"[""dog"", ""rain""]"\n')
    (clip,) = read(tmp_path / "m.csv")
    assert (clip.captions, clip.labels) == (("A dog barks.",), ("dog", "rain"))


def test_split(tmp_path):
    write(CLIPS, tmp_path / "m.jsonl")
    assert [clip.id for clip in read(tmp_path / "m.jsonl", "train")] == ["a", "c"]
    assert [clip.id for clip in read(tmp_path / "m.jsonl", "test,train")] == [
        clip.id for clip in read(tmp_path / "m.jsonl")
    ]
    with pytest.raises(ManifestError, match=r"m\.jsonl: no clips of split 'dev'; there are \['test', 'train'\]"):
        read(tmp_path / "m.jsonl", "dev")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("not json", "Expecting value"),
        ("[1]", "expected an object"),
        ('"text"', "expected an object"),
        ('{"id": "b", "path": ""}', "path is missing"),
        ('{"id": 3.5, "path": "b.wav"}', "id is not a text"),
        ('{"id": true, "path": "b.wav"}', "id is not a text"),
        ('{"id": "b", "path": "b.wav", "split": 3}', "split is not a text"),
        ('{"id": "b", "path": "b.wav", "text": "x"}', r"unknown keys \['text'\]; known: .*captions"),
        ('{"id": "b", "path": "b.wav", "captions": [1]}', "captions is not a list of texts"),
        ('{"id": "b", "path": "b.wav", "captions": 5}', "captions is not a list of texts"),
        ('{"id": "b", "path": "b.wav", "captions": {"x": 1}}', "captions is not a list of texts"),
        ('{"id": "b", "path": "b.wav", "labels": "[dog"}', "labels: Expecting value"),
        ('{"id": "b", "path": "b.wav", "start": "soon"}', "start is 'soon', not a number of seconds"),
        ('{"id": "b", "path": "b.wav", "start": -1}', "start is -1, not"),
        ('{"id": "b", "path": "b.wav", "start": true}', "start is True, not"),
        ('{"id": "b", "path": "b.wav", "start": [1]}', r"start is \[1\], not"),
        ('{"id": "b", "path": "b.wav", "duration": 0}', "duration is 0, not"),
        ('{"id": "b", "path": "b.wav", "duration": NaN}', "duration is nan, not"),
        ('{"id": "a", "path": "b.wav"}', "the id 'a' is also in line 1"),
    ],
)
def test_mistakes_in_jsonl_are_named(tmp_path, line, problem):
    (tmp_path / "m.jsonl").write_text('{"id": "a", "path": "a.wav"}\n\n' + line + "\n")
    with pytest.raises(ManifestError, match=rf"m\.jsonl, line 3: {problem}"):
        read(tmp_path / "m.jsonl")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_other_programs(tmp_path, encoding, delimiter):
    rows = [["ID", "File_Name", "caption"], ["7", "a.wav", "Ein Hund bellt, laut; später."], ["8", "b.wav", ""]]
    with (tmp_path / "m.csv").open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    one, two = read(tmp_path / "m.csv")
    assert (one.id, one.path, one.captions) == ("7", str(tmp_path / "a.wav"), ("Ein Hund bellt, laut; später.",))
    assert (two.id, two.captions) == ("8", ())


def test_ids_may_be_numbers_or_missing(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"id": 7, "file": "a.wav"}\n{"path": "sub/b.wav"}\n')
    assert [clip.id for clip in read(tmp_path / "m.jsonl")] == ["7", "sub/b.wav"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("b", "path is missing"),
        ("b,b.wav,x,dog,more", "more cells than the header names"),
        ("b,b.wav,x,", "start is 'x', not a number of seconds"),
        ("b,b.wav,,[dog", "labels: Expecting value"),
        ("a,b.wav,,", "the id 'a' is also in line 3"),
        ("b," + "x" * 200_000, "field larger than field limit"),
    ],
)
def test_mistakes_in_csv_are_named(tmp_path, line, problem):
    (tmp_path / "m.csv").write_text('id,path,start,labels\na,a.wav,,"dog\nrain"\n' + line + "\n")  # a row of two lines
    with pytest.raises(ManifestError, match=rf"m\.csv, line 4: {problem}"):
        read(tmp_path / "m.csv")


def test_files_that_are_no_manifest(tmp_path):
    with pytest.raises(ManifestError, match=r"none\.jsonl: does not exist; check the path"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "latin.csv").write_bytes("id,path\né,a.wav".encode("cp1252"))
    with pytest.raises(ManifestError, match=r"latin\.csv, line 2: neither UTF-8 nor UTF-16; .*iconv -f cp1252"):
        read(tmp_path / "latin.csv")
    for name, text in {"empty.jsonl": "", "header.csv": "id,path\n"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ManifestError, match=f"{name}: no clips"):
            read(tmp_path / name)
