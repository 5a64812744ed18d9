"""The commands that find, explain and listen: what is wrong is told in one line, before a model is loaded."""

import pytest
import typer
from typer.testing import CliRunner

from lamb.cli.app import app
from lamb.cli.library import _when


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("90", {"after": 90.0}),
        ("1:30", {"after": 90.0}),
        ("1:02:30.5", {"after": 3750.5}),
    ],
)
def test_places_in_a_recording(text, expected):
    assert _when(text, "--from", "after", "since") == expected


def test_dates():
    [(name, day)] = _when("2026-11-26", "--from", "after", "since").items()
    [(_, end)] = _when("2026-11-26", "--to", "before", "until", end=True).items()
    [(_, hour)] = _when("2026-11-26T01:00", "--to", "before", "until", end=True).items()
    assert name == "since"
    assert end - day == 86_400 * 10**9 - 1000
    assert hour - day == 3600 * 10**9
    with pytest.raises(typer.BadParameter, match="neither a time nor a date"):
        _when("tomorrow", "--from", "after", "since")


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "sounds.lamb"],
        ["search", "sounds.lamb", "dog", "--like", "dog.wav"],
        ["search", "sounds.lamb", "dog", "--from", "soon"],
        ["search", "sounds.lamb", "dog", "--min-confidence", "2"],
        ["caption", "film.mkv", "--merge", "film.srt"],
        ["caption", "film.mkv", "--speech"],
    ],
)
def test_a_wrong_command_is_told(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_subtitles_are_not_replaced_by_what_is_merged_into_them(tmp_path):
    film = tmp_path / "film.srt"
    film.write_text("1\n00:00:01,000 --> 00:00:02,000\nHi.\n")
    result = CliRunner().invoke(app, ["caption", "x.mkv", "--sdh", "--merge", str(film), "--output", str(film)])
    assert result.exit_code == 2
    assert film.read_text().endswith("Hi.\n")
