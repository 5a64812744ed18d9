"""Thousands of broken files of every kind: each is sound or an AudioError, soon, whatever its neighbours are."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hostile
import pytest

from lamb.audio import sandbox
from lamb.audio.errors import AudioError, Damage
from lamb.config import DecodeLimits

RATE = 16_000
CASES = Path(__file__).parents[3] / "shared" / "cases"
LIMITS = DecodeLimits(seconds=5.0, seconds_per_mb=5.0)


def outcome(content, damage) -> str:
    """What comes of it: sound, or the problem without its numbers."""
    held = 0
    try:
        for _, x in sandbox.windows(content, RATE, 10.0, 10.0, damage, LIMITS):
            held += len(x)
    except AudioError as error:
        return "".join(letter for letter in error.problem if letter not in "0123456789.")
    assert held
    return "sound"


@pytest.mark.parametrize("count", [400, pytest.param(8000, marks=pytest.mark.slow)])
def test_broken_files_are_sound_or_an_error_of_theirs(count, capsys):
    """Whatever a decoder raises is the file's error; only libsndfile and ffmpeg themselves may crash, and seldom do."""
    files = [(kind, content) for kind, content in hostile.files(count)]
    with ThreadPoolExecutor(3) as pool:
        strict = list(pool.map(lambda file: outcome(file[1], None), files))
        lossy = list(pool.map(lambda file: outcome(file[1], Damage()), files))
    for found in (strict, lossy):
        said = Counter(found)
        assert said["sound"] > count / 20
        ended = {
            kind: word for (kind, _), word in zip(files, found, strict=True) if word in (sandbox.DEATH, sandbox.SLOW)
        }
        with capsys.disabled():
            print(f"\n{count} files: {said.most_common(4)}, decoders ended by: {ended or 'none'}")
        assert len(ended) <= count / 100 + 2
    assert sum(word == "sound" for word in lossy) >= sum(word == "sound" for word in strict)


def test_every_kind_is_sound_as_it_is():
    for kind, content in hostile.sounds().items():
        for damage in (None, Damage()):
            assert outcome(content, damage) == "sound", kind
            assert damage in (None, Damage()), kind


@pytest.mark.skipif(not CASES.exists(), reason="../shared/cases is not here")
@pytest.mark.parametrize("path", sorted(CASES.glob("*-*")), ids=lambda path: path.stem)
def test_a_case_from_the_field_ends_soon(path):
    for damage in (None, Damage()):
        assert outcome(path, damage) not in (sandbox.DEATH, sandbox.SLOW)


def test_the_mutations_are_the_same_for_the_same_seed():
    content = hostile.sounds()["WAV PCM_16"]
    assert hostile.mutated(content, random.Random(1)) == hostile.mutated(content, random.Random(1))


@pytest.mark.parametrize(
    ("kind", "place", "chunk"),
    [
        ("WAV PCM_16", b"data", b"JUNK\0\0\0\0"),
        ("WAV PCM_16", None, b"JUNK\0\0\0\0"),  # behind the samples
        ("AIFF None", b"SSND", b"ANNO\0\0\0\0"),
        ("CAF None", b"data", b"free" + bytes(8)),
        ("mp4 aac", None, b"\0\0\0\x08free"),
    ],
)
def test_a_header_of_very_many_parts_is_refused_before_it_costs_anything(kind, place, chunk):
    content = hostile.sounds()[kind]
    at = len(content) if place is None else content.index(place)
    for count in (9_000, 11_000):
        made = content[:at] + count * chunk + content[at:]
        for damage in (None, Damage()):
            assert (outcome(made, damage) == "damaged: its header has more than , parts") == (count > 10_000)


def test_a_file_that_seems_to_be_joined_from_very_many_is_refused_before_it_costs_anything():
    page = b"OggS\0\x02" + bytes(21) + b"x"
    for count in (9_000, 11_000):
        made = b"OggS\0\0" + bytes(21) + count * page + bytes(2**17)
        for damage in (None, Damage()):
            assert (outcome(made, damage) == "damaged: it is joined from more than , parts") == (count > 10_000)


def test_zeros_behind_the_samples_are_no_parts_of_the_header():
    for kind in ("WAV PCM_16", "AIFF None"):
        assert outcome(hostile.sounds()[kind] + bytes(200_000), None) == "sound"


def test_millions_of_packets_that_hold_nothing_are_given_up():
    content = hostile.sounds()["amr libopencore_amrnb"]
    assert outcome(content[:6] + b"\x7c" * 2_000_000, None) == "truncated or damaged: nothing of it can be decoded"
    assert outcome(content[:6] + b"\x7c" * 5_000 + content[6:], Damage()) == "sound"
