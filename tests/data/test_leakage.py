"""The leakage guard: the same recording under other names, and no other recording."""

import json

import pytest
from conftest import SHARED, needs_sounds

from lamb.data.leakage import check, evaluation_ids, leaked
from lamb.data.manifest import Clip, ManifestError
from lamb.data.sources import sounds


def clip(source: str, id: str = "a", path: str = "a.wav", split: str = "train") -> Clip:
    return Clip(id, path, split=split, source=source)


SAME = [
    ("youtube:7fmOlUlwoNg", "youtube:7fmOlUlwoNg"),
    ("https://www.youtube.com/watch?v=7fmOlUlwoNg", "youtube:7fmOlUlwoNg"),
    ("https://www.youtube.com/watch?t=20&v=7fmOlUlwoNg", "https://youtu.be/7fmOlUlwoNg"),
    ("freesound:80399/Radio Garble.wav", "freesound:80399"),
    ("freesound:80399/garble.flac", "freesound:80399/Radio Garble.wav"),
    ("http://www.freesound.org/people/nfrae/sounds/100032/", "freesound:100032"),
    ("https://freesound.org/s/100032", "freesound:100032/dog.wav"),
    ("freesound:80399/Radio Garble.wav", "freesound:/radio garble.wav"),  # the number is known of one only
    ("freesound:/radio garble.wav", "freesound:80399/Radio Garble.wav"),
    ("freesound:/Radio Garble.wav", "freesound:/radio garble.wav"),
    ("SoundBible:2219", "SoundBible:2219"),
]
OTHER = [
    ("youtube:7fmOlUlwoNg", "youtube:7fmOlUlwonG"),
    ("freesound:80399/rain.wav", "freesound:80400/rain.wav"),  # two sounds of one name
    ("freesound:80399/rain.wav", "freesound:/thunder.wav"),
    ("freesound:2219", "SoundBible:2219"),
    ("freesound:80399", "freesound:/"),
    ("freesound:/", "freesound:/"),  # nothing is known of either
    ("us8k-1", "us8k-11"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_recording(one, other):
    for train, held in ((one, other), (other, one)):
        with pytest.raises(
            ManifestError, match=r"^1 training clips are recordings that are used for evaluation: mine \("
        ):
            check([clip("youtube:other"), clip(train, "mine")], [clip(held, "its")])


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_another_recording(one, other):
    check([clip(one)], [clip(other)])
    check([clip(other)], [clip(one)])


def test_clips_without_a_source_are_compared_by_path():
    check([clip("", path="/x/a.wav")], [clip("", path="/x/b.wav")])
    with pytest.raises(ManifestError, match=r"a \(file:/x/a\.wav\); leave them out"):
        check([clip("", path="/x/a.wav")], [clip("", path="/x/a.wav")])


def test_many_clips_are_counted():
    clips = [clip(f"youtube:{n}", f"id{n}") for n in range(30)]
    with pytest.raises(ManifestError, match=r"^30 training clips .*id9 \(youtube:9\) and 20 more; leave them out"):
        check(clips, clips)
    assert leaked(clips, ["youtube:7", "youtube:x"]) == [clips[7]]


def write(path, clips):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(vars(c)) + "\n" for c in clips))


def test_evaluation_ids(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made/evaluation.txt").write_text("# clotho\nfreesound:1/a b.wav\nfreesound:/c.wav\n")
    write(tmp_path / "own/manifest.jsonl", [clip("youtube:a"), clip("youtube:b", "b", split="test")])
    write(tmp_path / "one.jsonl", [clip("s", "c", split="val"), clip("", "d", split="dev", path="/d.wav")])
    assert evaluation_ids() == set()
    assert evaluation_ids(tmp_path / "made") == {"freesound:1/a b.wav", "freesound:/c.wav"}
    assert evaluation_ids(tmp_path / "own", tmp_path / "one.jsonl") == {"youtube:b", "s", "file:/d.wav"}
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ManifestError, match=r"holds neither evaluation\.txt nor manifest\.jsonl"):
            evaluation_ids(tmp_path / "made", folder)


@needs_sounds
def test_the_real_recordings():
    """A few sounds of Freesound are in ESC-50 and in UrbanSound8K, under two addresses, and so in both splits."""
    clips = sounds(SHARED / "sounds")
    found = leaked([c for c in clips if c.split == "train"], [c.source for c in clips if c.split != "train"])
    assert len(found) == 13
    assert {c.source.rpartition("sounds/")[0] for c in found if not c.id.startswith("us8k-")} == {
        "http://www.freesound.org/people/ayamahambho/",
        "http://www.freesound.org/people/jakobthiesen/",
    }
