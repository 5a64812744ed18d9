"""The digest of a long recording: which sounds, how often, how long and when."""

import json

import pytest

from lamb.inference.captions import SILENCE, Caption, Segment, write_jsonl, write_text
from lamb.inference.digest import digest, lines, sounds

SEGMENTS = (
    Segment(0, 100, "A dog barks."),
    Segment(100, 200, "Rain falls while a dog is barking."),
    Segment(200, 300, "Rain pours down steadily."),
    Segment(300, 400, SILENCE),
    Segment(400, 460, "Rain falls."),
    Segment(460, 470, "Something else."),
    Segment(470, 700, SILENCE),
)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog barks, then rain falls.", ("dog", "rain")),
        ("Rain falls while rain pours down.", ("rain",)),
        (SILENCE, ("silence",)),
        ("(unreadable)", ("unreadable",)),
        ("Nobody knows.", ("Nobody knows",)),
    ],
)
def test_sounds_of_a_caption(caption, expected):
    assert sounds(caption) == expected


def test_digest():
    found = {heard.sound: heard for heard in digest(SEGMENTS)}
    assert list(found) == ["silence", "rain", "dog", "Something else"], "the longest first"
    assert found["rain"].times == ((100, 300), (400, 460))
    assert found["dog"].to_dict() == {"sound": "dog", "count": 1, "seconds": 200, "times": [[0, 200]]}
    assert sum(heard.seconds for heard in found.values()) == 700 + 100, "two sounds at once count twice"


def test_short_interruptions_do_not_end_a_sound():
    rain = [Segment(t, t + 9.5, "Rain falls.") for t in range(0, 100, 10)]
    assert [heard.times for heard in digest(rain)] == [((0, 99.5),)]


def test_lines():
    assert lines(SEGMENTS)[1] == "rain: 4:20 min, 2 times (01:40.0 - 05:00.0, 06:40.0 - 07:40.0)"
    many = [Segment(t, t + 1, "A dog barks.") for t in range(0, 50, 10)]
    assert lines(many)[0].endswith("40.0 - 00:41.0, and 2 more)") is False
    assert lines(many)[0].startswith("dog: 0:05 min, 5 times (00:00.0 - 00:01.0, ")
    assert lines(many)[0].endswith(", and 2 more)")


def test_only_long_recordings_have_one():
    long = Caption("a.wav", 700.0, "Rain falls.", segments=SEGMENTS)
    assert "".join(write_text([long])).splitlines()[len(SEGMENTS) :] == lines(SEGMENTS)
    assert json.loads("".join(write_jsonl([long])))["digest"][2]["sound"] == "dog"
    short = Caption("a.wav", 100.0, "A dog barks.", segments=SEGMENTS[:1] * 2)
    assert "".join(write_text([short])).splitlines()[2:] == ["A dog barks."]
    assert "digest" not in json.loads("".join(write_jsonl([short])))
    assert "digest" not in json.loads("".join(write_jsonl([Caption("a.wav", 700.0, "Rain falls.")])))
