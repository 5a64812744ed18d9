"""Descriptions in brackets, their times, and how they come between the lines of a film."""

import itertools
import re
import time
from bisect import insort
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamb.config import SdhConfig
from lamb.inference import subtitles
from lamb.inference.captions import Caption, Segment, Timeline, timestamp, write_srt
from lamb.inference.subtitles import SubtitleError, description, merge, read, sdh

CONFIG = SdhConfig()
SRT = """1
00:00:01,000 --> 00:00:03,000
<i>Who is there?</i>

2
00:00:10,000 --> 00:00:12,500
- Nobody.
- Then who knocks?

"""
VTT = """WEBVTT - a film

STYLE
::cue { color: yellow }

intro
00:01.000 --> 00:03.000 align:start
Who is there?

NOTE about the second line

00:00:10.000 --> 00:00:12.500
Nobody.
"""


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("A dog barks.", "[dog barks]"),
        ("A dog is barking in the background.", "[dog barking]"),
        ("A door creaks, then a siren wails.", "[door creaks, siren wails]"),
        ("The sound of rain can be heard.", "[rain]"),
        ("A person types on a keyboard.", "[person types on keyboard]"),
        ("A man speaks while an engine idles.", "[engine idles]"),
        ("A man is speaking.", None),
        ("A woman and a man talk, and a dog barks and growls.", "[dog barks, growls]"),
        ("A bell and a horn ring.", "[bell and horn ring]"),
        ("Rain falls, rain falls.", "[rain falls]"),
        ("Silence.", None),
        ("(unreadable)", None),
        ("", None),
    ],
)
def test_a_caption_becomes_a_description(caption, told):
    assert description(caption, CONFIG) == told


def test_speech_is_told_on_request():
    assert description("A man is speaking.", SdhConfig(speech=True)) == "[man speaking]"


@given(st.text(max_size=200))
def test_a_description_is_short_lower_case_and_one_line(text):
    told = description(text, CONFIG)
    if told is not None:
        assert len(told) <= CONFIG.characters
        assert told == f"[{told[1:-1]}]"
        assert told[1:-1] == " ".join(told[1:-1].split()) != ""
        assert told.lower() == told
        assert not told[:-1].endswith(".")


segments = st.lists(
    st.tuples(st.floats(0, 3), st.floats(0.2, 20), st.sampled_from(["A dog barks.", "Rain falls.", "A man speaks."])),
    max_size=20,
).map(lambda parts: _laid_out(parts))


def _laid_out(parts):
    at, found = 0.0, []
    for pause, length, text in parts:
        found.append(Segment(at + pause, at + pause + length, text))
        at += pause + length
    return found


@given(segments)
def test_cues_are_shown_long_enough_and_one_at_a_time(given_segments):
    result = sdh(Caption("x", 60.0, "", segments=tuple(given_segments)), CONFIG)
    assert all(CONFIG.shortest - 1e-6 <= c.end - c.start <= CONFIG.longest + 1e-6 for c in result.segments)
    for before, after in zip(result.segments, result.segments[1:], strict=False):
        assert after.start >= before.end + CONFIG.pause - 1e-6
    for cue in result.segments:  # nothing is told before it is heard, nor when it is long over
        own = [s for s in given_segments if description(s.caption, CONFIG) == cue.caption]
        assert any(s.start - 1e-6 <= cue.start <= s.end for s in own)


def test_a_timeline_is_told_as_it_comes():
    heard = []

    def heard_segments():
        for segment in (Segment(0, 2, "A dog barks."), Segment(2, 4, "A man speaks."), Segment(4, 9, "Rain falls.")):
            heard.append(segment)
            yield segment
        return Caption("day.wav", 9.0, "A dog barks, then rain falls.")

    result = sdh(Timeline("day.wav", heard_segments()), CONFIG)
    assert next(result).caption == "[dog barks]"
    assert len(heard) == 3, "the next sound is needed to know until when, no more"
    assert [s.caption for s in result.finish().segments] == ["[dog barks]", "[rain falls]"]


def test_no_sound_is_no_cue():
    def nothing():
        yield Segment(0, 2, "A man speaks.")
        return Caption("x", 2.0, "A man speaks.")

    assert "".join(write_srt([sdh(Timeline("x", nothing()), CONFIG)])) == ""


def times(text):
    return re.findall(r"^(.+ --> .+)$", text, re.MULTILINE)


def test_descriptions_come_between_the_lines_of_a_film():
    cues = [Segment(0.0, 0.5, "[too short]"), Segment(2.0, 11.0, "[door creaks]"), Segment(20, 22, "[rain]")]
    merged, crowded = merge(SRT, cues, CONFIG)
    assert crowded == 1
    assert times(merged) == [
        "00:00:01,000 --> 00:00:03,000",
        "00:00:03,083 --> 00:00:09,917",
        "00:00:10,000 --> 00:00:12,500",
        "00:00:20,000 --> 00:00:22,000",
    ]
    assert re.findall(r"^(\d+)$", merged, re.MULTILINE) == ["1", "2", "3", "4"]
    for line in SRT.splitlines():
        assert line in merged.splitlines()


def test_webvtt_keeps_its_header_styles_notes_and_names():
    merged, _ = merge(VTT, [Segment(5, 7, "[rain]")], CONFIG)
    assert merged == VTT.replace("NOTE", "00:00:05.000 --> 00:00:07.000\n[rain]\n\nNOTE")
    after, _ = merge(VTT, [Segment(30, 32, "[rain]")], CONFIG)
    assert after == VTT + "\n00:00:30.000 --> 00:00:32.000\n[rain]\n\n"


films = st.lists(
    st.tuples(st.floats(0.1, 5), st.floats(0.5, 4), st.sampled_from(["Yes.", "1984", "No!\nNever."])), max_size=8
)


@given(films, segments, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_nothing_of_the_film_changes(lines, found, newline, vtt, mark):
    at, cues, point = 0.0, [], "." if vtt else ","
    for k, (pause, length, text) in enumerate(lines, 1):
        start, end = timestamp(at + pause, point), timestamp(at + pause + length, point)
        cues.append(("" if vtt else f"{k}\n") + f"{start} --> {end}\n{text}\n")
        at += pause + length
    film = (("WEBVTT\n\n" if vtt else "") + "\n".join(cues)).replace("\n", newline)
    film = "\ufeff" * mark + film
    told = sdh(Caption("x", 60.0, "", segments=tuple(found)), CONFIG).segments
    merged, crowded = merge(film, told, CONFIG) if cues else (film, 0)
    assert len(times(merged.replace(newline, "\n"))) == len(cues) + (len(told) - crowded) * bool(cues)
    own = [cue.partition("\n")[2] if not vtt else cue for cue in cues]
    left = merged.replace(newline, "\n")
    for cue in own:  # in their order, each as it was
        assert cue in left
        left = left[left.index(cue) + len(cue) :]
    shown = [tuple(_number(t) for t in line.split(" --> ")) for line in times(merged.replace(newline, "\n"))]
    assert shown == sorted(shown)
    for (_, end), (start, _) in itertools.pairwise(shown):
        assert start >= end - 0.002, "no two at a time"
    assert merged.startswith("\ufeff") == (mark and bool(film))
    assert "\n" not in merged.replace("\r\n", "") if newline == "\r\n" else "\r" not in merged


def _number(stamp):
    hours, minutes, seconds = stamp.replace(",", ".").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def test_bytes_that_are_not_utf8_are_kept(tmp_path):
    file = tmp_path / "film.srt"
    file.write_bytes(SRT.replace("Nobody", "Niemand für Größe").encode("latin-1"))
    merged, _ = merge(read(file), [Segment(5, 7, "[rain]")], CONFIG)
    assert merged.encode("utf-8", "surrogateescape").count("Niemand für Größe".encode("latin-1")) == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        (b"", "no subtitles"),
        (b"hello", "no subtitles"),
        (SRT.encode("utf-16"), "UTF-16"),
        (b"\0" + SRT.encode(), "no subtitles"),
        (b"[Script Info]\nDialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,Hi", "ffmpeg"),
    ],
)
def test_what_is_no_subtitles_is_refused(tmp_path, content, problem):
    file = tmp_path / "film.srt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SubtitleError, match=problem):
        read(file)


# ---- the same in less time ------------------------------------------------------------------------------------------

TIMES = ((1, 2), (3, 0), (5, 9), (9, 1), (30, 3), (12, 0))  # start and length in seconds
pieces = st.lists(
    st.sampled_from(
        ["\n", "\r\n", "\n\n", "  \n", "1", "7\n", "intro\n", "Yes.\n", " \t", "NOTE x\n\n", "No. ", "1\n\n"]
        + [
            f"00:00:{a:02},000 --> 00:00:{a + n:02},500\n"
            for a, n in ((1, 2), (3, 0), (5, 9), (9, 1), (30, 3), (12, 0))
        ]
    ),
    max_size=25,
).map("".join)
loose = st.lists(
    st.builds(
        lambda start, length: Segment(start, start + length, "[rain]"),
        st.floats(0, 40).map(lambda x: round(x, 1)),
        st.sampled_from([0.2, 1.0, 3.0, 20.0]),
    ),
    max_size=8,
)


@settings(max_examples=400)
@given(pieces, loose, st.booleans())
def test_what_is_merged_is_what_the_plain_way_merges(film, cues, vtt):
    film = "WEBVTT\n\n" * vtt + film
    assert list(subtitles._blocks(film)) == list(plain_blocks(film))
    assert merge(film, cues, CONFIG) == plain_merge(film, cues, CONFIG)


def test_thousands_of_cues_and_a_line_without_end_take_no_time():
    """The plain way takes a minute."""
    stamps = [timestamp(6 * k, ",") for k in range(4001)]
    film = "".join(f"{k}\n{a} --> {a[:-3]}900\nYes.\n\n" for k, a in enumerate(stamps, 1))
    cues = [Segment(6.0 * k + 2, 6.0 * k + 5, "[rain]") for k in range(4000)]
    begun = time.process_time()
    merged, crowded = merge(film, cues, CONFIG)
    merge("x" * 40_000 + "\n" + SRT + "y" * 40_000, cues[:1], CONFIG)
    assert time.process_time() - begun < 5
    assert (crowded, len(times(merged))) == (0, 8001)


def plain_merge(film, cues, config):
    """`merge` as it was at first, in quadratic time."""
    mark, film = film[: film.startswith("\ufeff")], film.removeprefix("\ufeff")
    blocks, vtt = list(plain_blocks(film)), subtitles.is_vtt(film)
    newline = "\r\n" if "\r\n" in film else "\n"
    taken = sorted((b.start, b.end) for b in blocks if b.start is not None)
    fitted, crowded = [], 0
    for cue in cues:
        if (placed := plain_placed(cue, taken, config)) is None:
            crowded += 1
            continue
        fitted.append(placed)
        insort(taken, (placed.start, placed.end))
    if fitted:
        film = plain_woven(blocks, sorted(fitted, key=lambda cue: cue.start), vtt, newline)
    return mark + film, crowded


def plain_placed(cue, taken, config):
    start, last = cue.start, max(cue.end, cue.start + config.shortest)
    for begin, end in [*taken, (float("inf"), float("inf"))]:
        stop = min(last, begin - config.pause)
        if stop - start >= config.shortest - 1e-6:
            return replace(cue, start=start, end=stop)
        if begin >= last:
            return None
        start = max(start, end + config.pause)
    return None


def plain_blocks(film):
    times = list(subtitles._TIMES.finditer(film))
    at = 0
    for k, match in enumerate(times):
        begin, limit = match.start(), times[k + 1].start() if k + 1 < len(times) else len(film)
        # the cue's text ends at the first empty line
        gap = re.compile(r"\r?\n[ \t]*(?:\r?\n[ \t]*)+").search(film, match.end() - 1, limit)
        stop = gap.end() if gap else limit
        if gap is None and k + 1 < len(times):  # without one, the last line before the next times is their number
            stop = film.rfind("\n", 0, film.rfind("\n", 0, limit)) + 1
            stop = max(stop, match.end())
        head = re.compile(r"[^\n]*\n\Z").search(film, at, begin)  # number or identifier
        lead = head.start() if head and head[0].strip() else begin
        if lead > at:
            yield subtitles._Block(film[at:lead])
        yield subtitles._Block(
            film[lead:stop], subtitles._seconds(match.groups()[:4]), subtitles._seconds(match.groups()[4:])
        )
        at = stop
    if at < len(film):
        yield subtitles._Block(film[at:])


def plain_woven(blocks, cues, vtt, newline):
    out, todo, number = "", list(cues), 0
    notes = ""  # in WebVTT the text between two cues belongs to the second

    def tell(until: float) -> None:
        nonlocal out, number
        while todo and todo[0].start < until:
            cue, number = todo.pop(0), number + 1
            if out and not re.search(r"\n[ \t]*\r?\n\Z", out):
                out += newline if out.endswith("\n") else 2 * newline
            point = "." if vtt else ","
            times = f"{timestamp(cue.start, point)} --> {timestamp(cue.end, point)}"
            out += f"{'' if vtt else f'{number}{newline}'}{times}{newline}{cue.caption}{newline}{newline}"

    for k, block in enumerate(blocks):
        if block.start is None:
            if vtt and k:
                notes += block.text
            else:
                out += block.text
            continue
        tell(block.start)
        number += 1
        out += notes + (block.text if vtt else re.sub(r"\A\d+(?=[ \t]*\r?\n)", str(number), block.text))
        notes = ""
    tell(float("inf"))
    return out + notes
