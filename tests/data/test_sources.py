"""Published collections: small folders in their real formats, and the real ones where they are."""

from collections import Counter, defaultdict

import pytest
from conftest import SHARED, needs_captions, needs_sounds

from lamb.data.manifest import ManifestError
from lamb.data.sources import caption_texts, sounds
from lamb.data.vocabulary import PHRASES

HEADER = "file,label,fold,licence,title,author,source,clotho_split,captions\n"
ROWS = """\
audio/1-100032-A-0.ogg,dog,1,CC0,rose_bark.wav,nfrae,http://freesound/100032/,,
audio/4-1-A-1.ogg,rooster,4,CC-BY,hahn.wav,x,http://freesound/1/,valid,"[""A rooster crows, twice."", ""A cock""]"
audio/us8k-1-2.ogg,siren,us8k-fold3,CC BY-NC,,,us8k-1,,
audio/us8k-2-2.ogg,siren,us8k-fold1,CC BY-NC,,,us8k-2,,
audio/ravdess-01-16.ogg,woman_speaking,ravdess-actor16,CC BY-NC-SA,calm,R,https://zenodo/record/1,,
audio/ravdess-01-17.ogg,man_speaking,ravdess-actor17,CC BY-NC-SA,calm,R,https://zenodo/record/1,,
"""


def test_sounds(tmp_path):
    (tmp_path / "manifest.csv").write_text(HEADER + ROWS)
    clips = sounds(tmp_path)
    assert [clip.split for clip in clips] == ["train", "development", "development", "train", "train", "development"]
    assert clips[0].id == "1-100032-A-0"
    assert clips[0].path == str(tmp_path / "audio/1-100032-A-0.ogg")
    assert (clips[0].labels, clips[0].captions) == (("dog",), ())
    assert clips[1].captions == ("A rooster crows, twice.", "A cock")
    assert [clip.source for clip in clips[2:]] == ["us8k-1", "us8k-2", "ravdess-actor16", "ravdess-actor17"]


def test_the_second_collection(tmp_path):
    (tmp_path / "manifest.csv").write_text(
        "file,label,text,split,source,licence\n"
        "audio/a.ogg,car_engine,a small car,train,x:1,CC0\n"
        "audio/b.ogg,dog,a dog howling,dev,x:2,CC0\n"
        "audio/c.ogg,gorilla,a gorilla,train,x:3,CC0\n"
    )
    found = [(clip.labels, clip.description, clip.split) for clip in sounds(tmp_path)]
    assert found == [
        (("engine",), "a small car", "train"),
        (("dog",), "a dog howling", "development"),
        (("gorilla",), "a gorilla", "unheard"),  # a kind that no model learns
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (HEADER + "a.ogg,dog,1,CC0,,,,,[no json\n", "line 2: captions: Expecting value"),
        (HEADER + ROWS + "a.ogg,dog\n", "line 8: no source"),
        ("file,label\na.ogg,dog\n", "line 2: no source"),
        (HEADER + "a.ogg,dog,1,CC0,,,,,,,\n", "line 2: more cells than the header names"),
    ],
)
def test_mistakes_in_sounds_are_named(tmp_path, text, problem):
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(ManifestError, match=rf"manifest\.csv, {problem}"):
        sounds(tmp_path)


def test_a_folder_without_tables(tmp_path):
    with pytest.raises(ManifestError, match=r"manifest\.csv: does not exist"):
        sounds(tmp_path)
    with pytest.raises(ManifestError, match=r"audiocaps_train\.csv: does not exist"):
        caption_texts(tmp_path)


def test_caption_texts(tmp_path):
    (tmp_path / "audiocaps_train.csv").write_text(
        "audiocap_id,youtube_id,start_time,caption\n1,abc,30,A dog barks \n2,abd,0,\n3,abe,10,Rain falls\n"
    )
    (tmp_path / "clotho_train.csv").write_text(
        'file_path,caption\ntrain/a b.npy,"A bell rings, then stops."\ntrain/a b.npy,A bell tolls.\n'
    )
    every = ["A dog barks", "Rain falls", "A bell rings, then stops.", "A bell tolls."]
    assert caption_texts(tmp_path) == every
    assert caption_texts(tmp_path, {"A bell tolls. ", "Rain falls", "Wind blows"}) == [every[0], every[2]]


@needs_sounds
def test_the_real_recordings():
    clips = sounds(SHARED / "sounds")
    assert len(clips) == len({clip.id for clip in clips}) == 2792
    assert Counter(clip.split for clip in clips) == {"train": 2169, "development": 623}
    labels = {clip.labels[0] for clip in clips}
    assert len(labels) == 58  # of 60, two are the same to a listener as others
    assert labels <= PHRASES.keys()
    splits = defaultdict(set)
    for clip in clips:
        splits[clip.source].add(clip.split)
    assert all(len(found) == 1 for found in splits.values())


@needs_sounds
@needs_captions
def test_no_development_caption_is_trained_on():
    held = {text for clip in sounds(SHARED / "sounds") if clip.split != "train" for text in clip.captions}

    def letters(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum())

    texts = caption_texts(SHARED / "captions", held)
    assert len(held) == 60
    assert len(texts) > 60_000
    assert not {letters(text) for text in held} & {letters(text) for text in texts}
