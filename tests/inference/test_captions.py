"""Results and writers: the JSON contract, every format, and names and texts that would break a format."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamb.inference.captions import CSV_COLUMNS, WRITERS, Caption, Segment, Timeline, one_line, span, timestamp

DOG = Caption("dog.wav", 5.00049, "A dog barks.", -0.421234, 0.812345)
RAIN = Caption(
    "rain.ogg", 12.5, "Rain falls.", -0.5, 0.7,
    segments=(Segment(0.0, 10.0, "Rain falls.", 0.7), Segment(5.0, 12.5, "A bell rings & <fades>.")),
)  # fmt: skip
BROKEN = Caption("broken.mp3", error="broken.mp3: not audio")
TWO = Caption("two.wav", 1.0, "A cat.", -0.1, 0.9, captions=("A cat.", "A dog."), scores=(-0.1, -0.9))


def written(name: str, *results: Caption) -> str:
    return "".join(WRITERS[name](results))


def test_json_object_is_the_contract() -> None:
    assert list(DOG.to_dict().items()) == [
        ("file", "dog.wav"),
        ("duration", 5.0),
        ("caption", "A dog barks."),
        ("score", -0.4212),
        ("confidence", 0.8123),
        ("captions", ["A dog barks."]),
        ("segments", []),
    ]
    assert BROKEN.to_dict() == {"file": "broken.mp3", "error": "broken.mp3: not audio"}
    assert DOG.ok
    assert not BROKEN.ok


def test_json_object_with_n_best_and_segments() -> None:
    item = TWO.to_dict()
    assert list(item)[5:] == ["captions", "scores", "segments"]
    assert item["captions"] == ["A cat.", "A dog."]
    assert item["scores"] == [-0.1, -0.9]
    assert RAIN.to_dict()["segments"] == [
        {"start": 0.0, "end": 10.0, "caption": "Rain falls.", "confidence": 0.7},
        {"start": 5.0, "end": 12.5, "caption": "A bell rings & <fades>."},
    ]


def test_numbers_that_are_not_finite_become_null() -> None:
    odd = Caption("a", math.inf, "b", math.nan, -math.inf, ("b", "c"), (math.nan, -1.0))
    item = json.loads(written("jsonl", odd), parse_constant=pytest.fail)
    assert item["duration"] is item["score"] is item["confidence"] is item["scores"][0] is None


@pytest.mark.parametrize("results", [(), (DOG,), (DOG, BROKEN, RAIN, TWO)])
def test_json_and_jsonl_hold_every_result(results: tuple[Caption, ...]) -> None:
    expected = [result.to_dict() for result in results]
    assert json.loads(written("json", *results)) == expected
    assert [json.loads(line) for line in written("jsonl", *results).splitlines()] == expected


def test_text() -> None:
    assert written("text", DOG) == "A dog barks.\n"
    assert written("text", BROKEN) == ""
    assert written("text", DOG, BROKEN) == "dog.wav\tA dog barks.\n"
    assert written("text", TWO) == "A cat.\nA dog.\n"
    assert written("text", RAIN).splitlines() == [
        "[00:00.0 - 00:10.0] Rain falls.",
        "[00:05.0 - 00:12.5] A bell rings & <fades>.",
        "Rain falls.",
    ]
    assert written("text", RAIN, DOG).splitlines()[1:] == [
        "rain.ogg\t[00:05.0 - 00:12.5] A bell rings & <fades>.",
        "rain.ogg\tRain falls.",
        "dog.wav\tA dog barks.",
    ]


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(written("csv", DOG, RAIN, TWO, BROKEN))))
    assert [tuple(row) for row in rows] == [CSV_COLUMNS] * 6
    assert list(rows[0].values()) == ["dog.wav", "5.0", "0.0", "5.0", "A dog barks.", "-0.4212", "0.8123", ""]
    assert [(r["start"], r["end"], r["confidence"]) for r in rows[1:3]] == [
        ("0.0", "10.0", "0.7"),
        ("5.0", "12.5", ""),
    ]
    assert [(r["caption"], r["score"], r["confidence"]) for r in rows[3:5]] == [
        ("A cat.", "-0.1", "0.9"),
        ("A dog.", "-0.9", ""),
    ]
    assert (rows[5]["file"], rows[5]["error"]) == ("broken.mp3", "broken.mp3: not audio")


@pytest.mark.parametrize(("name", "cell"), [("=1+1.wav", "./=1+1.wav"), ("@a", "./@a"), ("-", "-"), ("a=b", "a=b")])
def test_csv_cells_are_no_formulas(name: str, cell: str) -> None:
    row = next(csv.DictReader(io.StringIO(written("csv", Caption(name, 1.0, "=1+1")))))
    assert (row["file"], row["caption"]) == (cell, "'=1+1")


def test_srt() -> None:
    assert written("srt", DOG) == "1\n00:00:00,000 --> 00:00:05,000\nA dog barks.\n\n"
    lines = written("srt", RAIN, BROKEN, DOG).splitlines()
    assert lines[::4] == ["1", "2", "3"]
    assert lines[6] == "rain.ogg: A bell rings & <fades>."
    assert lines[9:11] == ["00:00:00,000 --> 00:00:05,000", "dog.wav: A dog barks."]


def test_audacity() -> None:
    assert written("audacity", DOG) == "0.000000\t5.000490\tA dog barks.\n"
    odd = Caption("a\tb.wav", 1.0, "A\nb\tc")
    assert written("audacity", odd, BROKEN, DOG).splitlines() == [
        "0.000000\t1.000000\ta\\tb.wav: A\\nb\\tc",
        "0.000000\t5.000490\tdog.wav: A dog barks.",
    ]


def live(out: list[str] | None = None) -> Timeline:
    """A recording of three segments that looks, before it says one, whether those before are written."""

    def segments():
        for k in range(3):
            assert out is None or all(f"segment {j}" in "".join(out) for j in range(k - 1))
            yield Segment(k, k + 1, f"segment {k}", 0.5)
        return Caption("live.wav", 3.0, "The whole.", -1.0, 0.9, segments=(Segment(0, 1, "a"), Segment(1, 2, "b")))

    return Timeline("live.wav", segments())


@pytest.mark.parametrize("name", ["text", "csv", "srt", "vtt", "audacity"])
@pytest.mark.parametrize("begun", [False, True])
def test_segments_are_written_as_they_come(name: str, begun: bool) -> None:
    out: list[str] = []
    timeline = live(out)
    if begun:
        timeline.begin()
    for chunk in WRITERS[name]([timeline]):
        out.append(chunk)
    text = "".join(out)
    assert [text.count(f"segment {k}") for k in range(3)] == [1, 1, 1]
    assert ("The whole." in text) == (name == "text")
    assert timeline.finish().text == "The whole."


@pytest.mark.parametrize("name", ["json", "jsonl"])
def test_objects_hold_the_whole(name: str) -> None:
    item = json.loads("".join(WRITERS[name]([live()])))
    item = item[0] if name == "json" else item
    assert (item["caption"], len(item["segments"])) == ("The whole.", 2)


def test_a_timeline_that_is_left() -> None:
    timeline = live()
    next(timeline)
    timeline.close()
    assert list(timeline) == []
    assert timeline.caption is None


def test_vtt() -> None:
    assert written("vtt", RAIN, BROKEN, DOG) == (
        "WEBVTT\n\nNOTE rain.ogg\n\n"
        "1\n00:00:00.000 --> 00:00:10.000\nRain falls.\n\n"
        "2\n00:00:05.000 --> 00:00:12.500\nA bell rings &amp; &lt;fades&gt;.\n\n"
        "NOTE dog.wav\n\n3\n00:00:00.000 --> 00:00:05.000\nA dog barks.\n\n"
    )


@pytest.mark.parametrize("name", ["srt", "vtt"])
@given(st.text(), st.text())
def test_no_text_breaks_out_of_its_cue(name: str, file: str, text: str) -> None:
    arrow = "--->\n\n2\n00:00 --> 00:01\n"
    blocks = written(name, Caption(file + arrow, 1.0, text + arrow), DOG).rstrip("\n").split("\n\n")
    times = re.compile(r"\d\d:\d\d:\d\d[.,]\d{3} --> \d\d:\d\d:\d\d[.,]\d{3}")
    cues = [block.split("\n") for block in blocks if not block.startswith(("WEBVTT", "NOTE"))]
    assert [cue[0] for cue in cues] == ["1", "2"]
    assert all(len(cue) == 3 and times.fullmatch(cue[1]) and "-->" not in cue[2] for cue in cues)


@pytest.mark.parametrize("name", ["jsonl", "csv", "text"])
def test_names_with_newlines_tabs_quotes_and_foreign_bytes(name: str) -> None:
    odd = 'a\n\t"b",\x1b[31m\udcff é.wav'
    chunk = written(name, Caption(odd, 1.0, "Rain."), DOG)
    if name == "jsonl":
        chunk.encode("utf-8")  # valid UTF-8 as it stands
        assert json.loads(chunk.splitlines()[0])["file"] == odd
        assert "é" in chunk
    elif name == "csv":
        assert list(csv.reader(io.StringIO(chunk)))[1][0] == odd
    else:
        assert chunk.splitlines()[0] == 'a\\n\\t"b",\\x1b[31m\udcff é.wav\tRain.'


@pytest.mark.parametrize("name", WRITERS)
def test_results_are_written_as_they_come(name: str) -> None:
    """When result k is asked for, all before k - 1 are out (one is held back to see if it is alone)."""
    out: list[str] = []

    def results():
        for k in range(5):
            assert not out or k < 2 or f"file{k - 2}" in "".join(out)
            yield Caption(f"file{k}", 1.0, f"file{k}")

    for chunk in WRITERS[name](results()):
        out.append(chunk)
    assert "file4" in "".join(out)


def test_times() -> None:
    assert timestamp(1.5) == "00:00:01.500"
    assert timestamp(59.9996, ",") == "00:01:00,000"
    assert timestamp(100 * 3600 + 61.001) == "100:01:01.001"
    assert span(0, 599.96) == "[00:00.0 - 10:00.0]"
    assert span(3599.9, 3600) == "[59:59.9 - 1:00:00.0]"


def test_a_cue_lasts() -> None:
    assert "00:00:00.000 --> 00:00:00.001" in written("vtt", Caption("a", None, "b"))


def test_one_line() -> None:
    assert one_line("a\r\nb\u2028\x9b") == "a\\r\\nb\\u2028\\x9b"


def test_all_fields_are_documented(full_caption):
    text = (Path(__file__).parents[2] / "docs" / "output.md").read_text()
    table = text.split("## JSON and JSON Lines")[1].split("## CSV")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == {*full_caption.to_dict(), "error"}


def test_a_selection_of_a_whole_recording_has_its_confidence():
    header, row = "".join(WRITERS["raven"]([Caption("a.wav", 6.0, "Rain falls.", confidence=0.25)])).splitlines()
    assert dict(zip(header.split("\t"), row.split("\t"), strict=True))["Confidence"] == "0.2500"
