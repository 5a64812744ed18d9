"""Published collections: small ones in their real formats, with their gaps and mistakes, and the real tables."""

import csv
import io
import json
import os
import shutil
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import SHARED, needs_captions

from lamb.cli import app as cli
from lamb.data import collections, leakage, manifest
from lamb.data.collections import prepare
from lamb.data.download import DownloadError
from lamb.data.manifest import Clip, ManifestError

SOUND = b"RIFF....WAVE"  # conversion does not listen


def module(name):
    return sys.modules[f"lamb.data.collections.{name}"]  # the package's own names are the functions


def sounds(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(SOUND)


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def made(folder: Path) -> dict[str, Clip]:
    return {clip.id: clip for clip in manifest.read(folder / "manifest.jsonl")}


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(url, path, md5=None, **options):
        if not path.is_file():
            raise DownloadError(f"{url}: asked for")
        return path

    for name in ("audiocaps", "clotho", "macs", "published"):
        monkeypatch.setattr(module(name), "fetch", refuse)


# AudioCaps


@pytest.fixture
def audiocaps(tmp_path: Path) -> Path:
    head = "audiocap_id,youtube_id,start_time,caption\n"
    write(
        tmp_path / "to/train.csv",
        head + '1,r1nicOVtvkQ,130,"A woman talks, as water pours "\n2,-DGBjjwyaqE,20,Clangs\n',
    )
    write(tmp_path / "to/val.csv", head + "".join(f"20{n},vfY_TJq7n_U,0,Ducks quack {n}\n" for n in range(5)))
    write(tmp_path / "to/test.csv", head + "".join(f"10{n},7fmOlUlwoNg,20,Rattling {n}\n" for n in range(5)))
    return tmp_path / "to"


def test_audiocaps(audiocaps, tmp_path):
    sounds(tmp_path / "audio", "train/r1nicOVtvkQ.wav", "vfY_TJq7n_U_0_10000.flac", "x/y/Y7fmOlUlwoNg.m4a", "notes.txt")
    done = prepare("audiocaps", audiocaps, tmp_path / "audio")
    clips = made(audiocaps)
    assert list(clips) == ["audiocaps/r1nicOVtvkQ_130", "audiocaps/vfY_TJq7n_U_0", "audiocaps/7fmOlUlwoNg_20"]
    assert [clip.split for clip in clips.values()] == ["train", "val", "test"]
    assert clips["audiocaps/r1nicOVtvkQ_130"].captions == ("A woman talks, as water pours",)
    assert clips["audiocaps/7fmOlUlwoNg_20"].captions == tuple(f"Rattling {n}" for n in range(5))
    assert clips["audiocaps/7fmOlUlwoNg_20"].path == str(tmp_path / "audio/x/y/Y7fmOlUlwoNg.m4a")
    assert clips["audiocaps/7fmOlUlwoNg_20"].source == "youtube:7fmOlUlwoNg"
    assert lines(audiocaps / "missing.txt") == ["audiocaps/-DGBjjwyaqE_20\tyoutube:-DGBjjwyaqE"]
    assert lines(audiocaps / "evaluation.txt") == ["# audiocaps", "youtube:7fmOlUlwoNg", "youtube:vfY_TJq7n_U"]
    assert (len(done.clips), len(done.missing), done.leaked) == (3, 1, [])


@pytest.mark.parametrize(
    "name",
    [
        "r1nicOVtvkQ",
        "Yr1nicOVtvkQ",
        "r1nicOVtvkQ_130",
        "r1nicOVtvkQ_130.0",
        "r1nicOVtvkQ_130_140",
        "Yr1nicOVtvkQ_130000_140000",
        "1",
    ],
)
def test_names_of_audiocaps_files(audiocaps, tmp_path, name):
    sounds(tmp_path / "audio", f"{name}.wav", "R1nicOVtvkQ.wav", "r1nicOVtvkQ_13.wav", "-DGBjjwyaqE_130.wav")
    prepare("audiocaps", audiocaps, tmp_path / "audio")
    assert [Path(clip.path).name for clip in made(audiocaps).values()] == [f"{name}.wav"]


def test_audiocaps_without_audio(audiocaps):
    with pytest.raises(ManifestError, match=r"holds no clip of AudioCaps; .* give their folder with --audio"):
        prepare("audiocaps", audiocaps)
    assert not (audiocaps / "manifest.jsonl").exists()


def test_a_broken_table_is_named(audiocaps, tmp_path):
    sounds(tmp_path / "audio", "a.wav")
    write(audiocaps / "val.csv", "audiocap_id,youtube_id,start_time,caption\n1,abc,soon,x\n")
    with pytest.raises(ManifestError, match=r"val\.csv, line 2: start_time is 'soon'"):
        prepare("audiocaps", audiocaps, tmp_path / "audio")
    write(audiocaps / "val.csv", "<html>404</html>\nx\n")
    with pytest.raises(ManifestError, match=r"val\.csv, line 2: no audiocap_id, youtube_id, start_time, caption"):
        prepare("audiocaps", audiocaps, tmp_path / "audio")


@needs_captions
def test_the_real_tables_of_audiocaps(tmp_path):
    for split in ("train", "val", "test"):
        shutil.copy(SHARED / f"captions/audiocaps_{split}.csv", tmp_path / f"{split}.csv")
    published = collections.audiocaps(tmp_path, _audio(tmp_path, "7fmOlUlwoNg.wav"))
    assert Counter(clip.split for clip in published.clips) == {"train": 49_838, "val": 495, "test": 975}
    assert Counter(len(c.captions) for c in published.clips if c.split != "train") == {5: 495 + 975}
    held = {clip.source for clip in published.clips if clip.split != "train"}
    assert leakage.leaked([c for c in published.clips if c.split == "train"], held) == []


def _audio(tmp_path: Path, *names: str) -> Path:
    sounds(tmp_path / "audio", *names)
    return tmp_path / "audio"


# Clotho

META = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
HEAD = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"


@pytest.fixture
def clotho(tmp_path: Path) -> Path:
    to = tmp_path / "clotho"
    parts = {
        "development": [
            ("Distorted AM.wav", "1"),
            (" porto .wav", "2"),
            ("Übung.wav", "3"),
            ("FR.CTC.08.001.wav", "77"),
        ],
        "validation": [("noisy stuff.wav", "4")],
        "evaluation": [("Santa Motor.wav", "80399"), ("gone.wav", "Not found")],
    }
    for part, files in parts.items():
        rows = [[name, *(f"{part} {n}." for n in range(1, 6))] for name, _ in files]
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        write(to / f"clotho_captions_{part}.csv", HEAD + text.getvalue())
        rows = "".join(f'{name},"a;b",{id},https://freesound.org/s/x,"[0, 9]",José,http://cc\n' for name, id in files)
        write(to / f"clotho_metadata_{part}.csv", META + rows, "latin-1")
    return to


def test_clotho(clotho):
    sounds(clotho, "development/Distorted AM.wav", "development/ porto .wav", "development/FR.CTC.08.001.wav")
    sounds(clotho, "validation/noisy stuff.wav", "evaluation/Santa Motor.wav", "development/Übung.wav")
    with pytest.raises(DownloadError, match=r"clotho_audio_evaluation\.7z"):  # gone.wav is not there
        prepare("clotho", clotho)
    (clotho / "clotho_audio_evaluation.7z.unpacked").touch()
    done = prepare("clotho", clotho)
    clips = made(clotho)
    assert Counter(clip.split for clip in clips.values()) == {"train": 4, "val": 1, "test": 1}
    assert clips["clotho/evaluation/Santa Motor.wav"] == Clip(
        "clotho/evaluation/Santa Motor.wav",
        str(clotho / "evaluation/Santa Motor.wav"),
        captions=tuple(f"evaluation {n}." for n in range(1, 6)),
        split="test",
        source="freesound:80399/Santa Motor.wav",
    )
    assert clips["clotho/development/Übung.wav"].source == "freesound:3/Übung.wav"
    assert '"path": "evaluation/Santa Motor.wav"' in (clotho / "manifest.jsonl").read_text(), "it can be moved"
    assert [clip.id for clip in done.missing] == ["clotho/evaluation/gone.wav"]
    assert "freesound:/gone.wav" in lines(clotho / "evaluation.txt"), "evaluated on, with or without its audio"


def test_clotho_from_its_archives(clotho, monkeypatch):
    py7zr = pytest.importorskip("py7zr")
    for part in ("development", "validation", "evaluation"):
        with py7zr.SevenZipFile(clotho / f"clotho_audio_{part}.7z", "w") as file:
            for row in lines(clotho / f"clotho_captions_{part}.csv")[1:]:
                file.writestr(SOUND, f"{part}/{row.partition(',')[0]}")
    assert prepare("clotho", clotho).missing == []
    assert len(made(clotho)) == 7
    for archive in clotho.glob("*.7z"):
        archive.unlink()
    assert len(prepare("clotho", clotho).clips) == 7, "the archives are not needed any more"


@needs_captions
def test_the_real_texts_of_clotho(tmp_path):
    """Its published tables, as far as they can be told from what is in ../shared."""
    names = {"train": "development", "valid": "validation", "test": "evaluation"}
    for split, part in names.items():
        files: dict[str, list[str]] = {}
        with (SHARED / f"captions/clotho_{split}.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                texts = [text for key, text in row.items() if key.startswith("caption")]
                files.setdefault(Path(row["file_path"]).stem + ".wav", []).extend(texts)
        for kind, head in (("captions", HEAD), ("metadata", META)):
            text = io.StringIO(newline="")
            writer = csv.writer(text)
            for name, texts in files.items():
                writer.writerow([name, *texts[:5]] if kind == "captions" else [name, "", "Not found", "", "", "", ""])
            write(tmp_path / f"clotho_{kind}_{part}.csv", head + text.getvalue())
    published = collections.clotho(tmp_path, _audio(tmp_path, "a.wav"))
    assert Counter(c.split for c in published.clips) == {"train": 3835, "val": 1034, "test": 1045}
    leakage.check(*([c for c in published.clips if (c.split == "train") is train] for train in (True, False)))


# WavCaps: rows as published

ROWS = {
    "AudioSet_SL/as_final.json": [
        {"id": "Yb0RFKhbpFJA.wav", "caption": "Wind and a man speaking.", "audio": "wav_path", "duration": 10.0},
        {"id": "Y7fmOlUlwoNg.wav", "caption": "A constant rattle.", "audio": "wav_path", "duration": 10.0},
        {"id": "Yr1nicOVtvkQ.wav", "caption": "Water pours.", "audio": "wav_path", "duration": 10.0},
    ],
    "BBC_Sound_Effects/bbc_final.json": [
        {"description": "Greengrocer Cicada - close-up.", "category": "['Nature']", "caption": "A bug is stridulating.",
         "id": "NHU05051026", "duration": 88.84353125, "audio": "wav_path", "download_link": "https://x/NHU.wav.zip"},
    ],
    "FreeSound/fsd_final.json": [
        {"id": "180913", "file_name": "UK Mello.wav", "href": "/people/Tempouser/sounds/180913/", "tags": ["ringtone"],
         "description": "Basic ringtone.", "author": "Tempouser", "duration": 3.204375, "audio": "wav_path",
         "download_link": "https://freesound.org/x.wav", "caption": "A traditional ringtone is playing."},
        {"id": "80399", "file_name": "Santa Motor.wav", "duration": 20.0, "caption": "A motor."},
        {"id": "55", "file_name": "Gone.wav", "duration": 20.0, "caption": "Something that went."},
        {"id": "100032", "file_name": "dog.wav", "duration": 1.0, "caption": "A dog barks."},
        {"id": "7", "file_name": "nothing.wav", "duration": 0.0, "caption": "Nothing."},
    ],
    "SoundBible/sb_final.json": [
        {"title": "Airplane Landing Airport", "description": "Large.", "author": "D", "href": "2219-A.html",
         "id": "2219", "caption": "An airplane is landing.", "duration": 14.1424375, "audio": "wav_path"},
    ],
    "blacklist/blacklist_exclude_test_ac.json": {"AudioSet": ["Y7fmOlUlwoNg.wav"], "FreeSound": ["80399"]},
    "blacklist/blacklist_exclude_ub8k_esc50_vggsound.json": {"AudioSet": ["Yr1nicOVtvkQ.wav"], "FreeSound": ["100032"]},
}  # fmt: skip
FLAC = "mnt/fast/nobackup/WavCaps/data/waveforms/{}_flac/{}.flac"


@pytest.fixture
def wavcaps(tmp_path: Path) -> Path:
    for name, rows in ROWS.items():
        content = rows if name.startswith("blacklist") else {"num_captions_per_audio": 1, "data": rows}
        write(tmp_path / "wavcaps/json_files" / name, json.dumps(content))
    return tmp_path / "wavcaps"


def test_wavcaps(wavcaps, tmp_path):
    names = [f"{name.partition('/')[0]}_flac/{row['id'].removesuffix('.wav')}.flac"
             for name, rows in ROWS.items() if not name.startswith("blacklist") for row in rows]  # fmt: skip
    sounds(tmp_path / "audio", *names)
    (tmp_path / "audio/SoundBible_flac/2219.flac").unlink()
    sounds(tmp_path / "audio", "FreeSound_flac/2219.flac")
    (tmp_path / "eval").mkdir()
    write(tmp_path / "eval/evaluation.txt", "# clotho\nfreesound:/gone.wav\n")
    done = prepare("wavcaps", wavcaps, tmp_path / "audio", [tmp_path / "eval"])
    clips = made(wavcaps)
    assert {id: clip.source for id, clip in clips.items()} == {
        "wavcaps/AudioSet_SL/Yb0RFKhbpFJA": "youtube:b0RFKhbpFJA",
        "wavcaps/AudioSet_SL/Yr1nicOVtvkQ": "youtube:r1nicOVtvkQ",  # VGGSound has it; nothing here is evaluated on it
        "wavcaps/BBC_Sound_Effects/NHU05051026": "BBC_Sound_Effects:NHU05051026",
        "wavcaps/FreeSound/180913": "freesound:180913/UK Mello.wav",
    }
    assert clips["wavcaps/FreeSound/180913"].duration == 3.204375
    assert clips["wavcaps/FreeSound/180913"].captions == ("A traditional ringtone is playing.",)
    assert {clip.split for clip in clips.values()} == {"train"}
    assert [clip.id.rpartition("/")[2] for clip in done.leaked] == ["Y7fmOlUlwoNg", "80399", "55", "100032"]
    assert [clip.id for clip in done.missing] == ["wavcaps/FreeSound/7", "wavcaps/SoundBible/2219"]
    assert lines(wavcaps / "evaluation.txt") == [
        "# wavcaps", "freesound:100032", "freesound:80399", "youtube:7fmOlUlwoNg"]  # fmt: skip


def test_a_source_of_wavcaps_from_its_archive(wavcaps, monkeypatch):
    asked = []

    def hub(repo, patterns, folder):
        asked.append((repo, patterns))
        (folder / "Zip_files/SoundBible").mkdir(parents=True)
        with zipfile.ZipFile(folder / "Zip_files/SoundBible/SoundBible.zip", "w") as file:
            file.writestr(FLAC.format("SoundBible", "2219"), SOUND)
            file.writestr(FLAC.format("SoundBible", "2220"), SOUND)

    monkeypatch.setattr(module("wavcaps"), "from_hub", hub)
    for _ in range(2):
        prepare("wavcaps-soundbible", wavcaps)
    assert asked == [("cvssp/WavCaps", ["Zip_files/SoundBible/*"])]
    assert [clip.path for clip in made(wavcaps).values()] == [str(wavcaps / "audio/SoundBible/2219.flac")]


def test_a_source_of_wavcaps_from_a_flat_folder(wavcaps, tmp_path):
    prepare("wavcaps-soundbible", wavcaps, _audio(tmp_path, "2219.flac"))
    assert [clip.path for clip in made(wavcaps).values()] == [str(tmp_path / "audio/2219.flac")]


def test_wavcaps_asks_the_hub_for_what_is_not_there(wavcaps, tmp_path, monkeypatch):
    def hub(repo, patterns, folder):
        raise DownloadError(", ".join(patterns))

    monkeypatch.setattr(module("wavcaps"), "from_hub", hub)
    (wavcaps / "json_files/blacklist/blacklist_exclude_test_ac.json").unlink()
    (wavcaps / "json_files/FreeSound/fsd_final.json").unlink()
    expected = r"^json_files/FreeSound/fsd_final\.json, json_files/blacklist/blacklist_exclude_test_ac\.json$"
    with pytest.raises(DownloadError, match=expected):
        prepare("wavcaps", wavcaps, _audio(tmp_path, "a.wav"))


@pytest.mark.parametrize("text", ['{"data": [{"id": "1"}]}', '{"data": [1]}', "{}", "[]", "{", '{"data": {}}'])
def test_broken_wavcaps(wavcaps, tmp_path, text):
    write(wavcaps / "json_files/SoundBible/sb_final.json", text)
    with pytest.raises(ManifestError, match=r"sb_final\.json"):
        prepare("wavcaps", wavcaps, _audio(tmp_path, "a.wav"))


# ESC-50, UrbanSound8K

ESC50 = """filename,fold,target,category,esc10,src_file,take
1-100032-A-0.wav,1,0,dog,True,100032,A
4-17367-A-10.wav,4,10,rain,True,17367,A
5-9032-A-0.wav,5,0,dog,True,9032,A
"""
US8K = """slice_file_name,fsID,start,end,salience,fold,classID,class
100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark
100263-2-0-117.wav,100263,58.5,62.5,1,3,2,children_playing
101415-3-0-2.wav,101415,1.0,5.0,1,10,3,dog_bark
9032-3-0-2.wav,9032,1.0,5.0,1,1,3,dog_bark
"""


@pytest.fixture
def esc50(tmp_path: Path) -> Path:
    to = tmp_path / "esc50"
    to.mkdir()
    with zipfile.ZipFile(to / "ESC-50-master.zip", "w") as file:
        file.writestr("ESC-50-master/meta/esc50.csv", ESC50)
        file.writestr("ESC-50-master/meta/esc50-human.xlsx", b"x")
        for row in ESC50.splitlines()[1:]:
            file.writestr(f"ESC-50-master/audio/{row.partition(',')[0]}", SOUND)
    return to


def test_esc50(esc50):
    prepare("esc50", esc50)
    clips = made(esc50)
    assert [(c.split, c.labels, c.source, c.captions) for c in clips.values()] == [
        ("train", ("dog",), "freesound:100032", ()),
        ("val", ("rain",), "freesound:17367", ()),
        ("test", ("dog",), "freesound:9032", ()),
    ]
    assert clips["esc50/1-100032-A-0.wav"].path == str(esc50 / "audio/1-100032-A-0.wav")
    assert not (esc50 / "meta/esc50-human.xlsx").exists()


def test_urbansound8k_without_what_esc50_evaluates_on(esc50, tmp_path):
    prepare("esc50", esc50)
    to = tmp_path / "us8k"
    to.mkdir()
    with tarfile.open(to / "UrbanSound8K.tar.gz", "w:gz") as file:
        files = {"metadata/UrbanSound8K.csv": US8K.encode(), "FREESOUNDCREDITS.txt": b"x"}
        for row in csv.DictReader(io.StringIO(US8K)):
            files[f"audio/fold{row['fold']}/{row['slice_file_name']}"] = SOUND
        for name, content in files.items():
            info = tarfile.TarInfo(f"UrbanSound8K/{name}")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    done = prepare("urbansound8k", to, without=[esc50])
    assert [clip.source for clip in done.leaked] == ["freesound:9032"]
    assert {clip.id: (clip.split, clip.labels) for clip in made(to).values()} == {
        "urbansound8k/100032-3-0-0.wav": ("train", ("dog_bark",)),
        "urbansound8k/100263-2-0-117.wav": ("val", ("children_playing",)),
        "urbansound8k/101415-3-0-2.wav": ("test", ("dog_bark",)),
    }
    test = [clip for clip in made(esc50).values() if clip.split == "test"]
    leakage.check([clip for clip in made(to).values() if clip.split == "train"], test)
    elsewhere = prepare("urbansound8k", tmp_path / "again", audio=to)
    assert len(elsewhere.clips) == 4


# MACS

MACS = """files:
- filename: airport-barcelona-0-0-a.wav
  annotations:
  - annotator_id: 50
    sentence: people talking and footsteps
    tags: [adults talking, footsteps]
  - annotator_id: 163
    sentence: 'an announcement: a flight is late'
    tags:
    - announcement
- filename: park-paris-87-2631-a.wav
  annotations:
  - {annotator_id: 1, sentence: birds singing, tags: [birds singing]}
"""


def test_macs(tmp_path):
    to = tmp_path / "macs"
    write(to / "MACS.yaml", MACS)
    for number in module("macs").AUDIO_MD5:
        with zipfile.ZipFile(to / f"TAU-urban-acoustic-scenes-2019-development.audio.{number}.zip", "w") as file:
            names = {1: "airport-barcelona-0-0-a.wav", 9: "park-paris-87-2631-a.wav"}
            inside = "TAU-urban-acoustic-scenes-2019-development/audio/"
            file.writestr(inside + names.get(number, f"street-{number}.wav"), SOUND)
    prepare("macs", to)
    first, second = made(to).values()
    assert first.captions == ("people talking and footsteps", "an announcement: a flight is late")
    assert (first.split, first.source, second.source) == (
        "train",
        "tau2019:airport-barcelona-0",
        "tau2019:park-paris-87",
    )
    assert sorted(p.name for p in (to / "audio").iterdir()) == [Path(c.path).name for c in (first, second)]
    write(to / "MACS.yaml", "files: [{filename: a.wav}]")
    with pytest.raises(ManifestError, match=r"MACS\.yaml: not the captions of MACS \(KeyError\('annotations'\)\)"):
        prepare("macs", to)


# Any folder


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'file,caption\nx/1.wav,A dog.\n2.wav,"Rain, and wind."\nx/1.wav,It barks.\n3.wav,Gone\n'),
        ("b.tsv", "Filename\tcaption_1\tcaption_2\textra\nx/1.wav\tA dog.\tIt barks.\t5\n2.wav\tRain, and wind.\t\t5\n"
                  "3.wav\tGone\t\t\n"),
        ("c.jsonl", '{"path": "x/1.wav", "captions": ["A dog.", "It barks."]}\n\n{"path": "2.wav", "text": '
                    '"Rain, and wind."}\n{"path": "3.wav", "text": "Gone"}\n'),
        ("d.csv", 'file,captions\nx/1.wav,"[""A dog."", ""It barks.""]"\n2.wav,"Rain, and wind."\n3.wav,Gone'),
    ],
)  # fmt: skip
def test_a_folder(tmp_path, name, text):
    sounds(tmp_path / "own", "x/1.wav", "2.wav")
    write(tmp_path / "own" / name, text)
    for _ in range(2):
        done = prepare("folder", tmp_path / "to", tmp_path / "own")
    assert [(c.id, c.path, c.captions, c.split) for c in made(tmp_path / "to").values()] == [
        ("x/1.wav", str(tmp_path / "own/x/1.wav"), ("A dog.", "It barks."), "train"),
        ("2.wav", str(tmp_path / "own/2.wav"), ("Rain, and wind.",), "train"),
    ]
    assert [clip.id for clip in done.missing] == ["3.wav"]
    assert len(prepare("folder", tmp_path / "own2", tmp_path / "own" / name).clips) == 2


def test_a_folder_with_all_columns(tmp_path):
    sounds(tmp_path, "1.wav", "2.wav")
    head = "file,caption,split,source,label,start,duration\n"
    rows = "1.wav,A dog.,train,s1,dog,0,5\n1.wav,Rain.,train,youtube:a,rain,5,5\n2.wav,A cat.,test,youtube:a,cat,,\n"
    write(tmp_path / "captions.csv", head + rows)
    for _ in range(2):  # the manifest of the first time is not taken for a caption table
        done = prepare("folder", tmp_path)
    clips = made(tmp_path)
    assert [clip.id for clip in done.leaked] == ["1.wav@5"], "the split test has the same recording"
    assert clips["1.wav@0"] == Clip("1.wav@0", str(tmp_path / "1.wav"), 0.0, 5.0, ("A dog.",), ("dog",), "train", "s1")
    assert clips["2.wav"].split == "test"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (
            {"a.csv": "file,caption\n1.wav,x\n", "b.csv": "file,caption\n"},
            r"found a\.csv, b\.csv; give its folder",
        ),
        ({}, "needs exactly one caption table .*, found none"),
        ({"a.csv": "sound,caption\n1.wav,x\n"}, r"a\.csv, line 2: no file is named; its column is one of file, "),
        ({"a.jsonl": '{"file": "1.wav", "caption": 5}\n'}, r"a\.jsonl, line 1: caption is not a list of texts"),
        ({"a.jsonl": "[1]\n"}, r"a\.jsonl, line 1: expected an object"),
        ({"a.jsonl": '{"file": "1.wav"\n'}, r"a\.jsonl, line 1: "),
        ({"a.csv": "file,captions\n1.wav,[x\n"}, r"a\.csv, line 2: captions: Expecting value"),
        ({"a.csv": "file,caption,start\n1.wav,x,-1\n"}, r"a\.csv, line 2: start is '-1', not a number of seconds"),
        ({"a.csv": "file,caption\n2.wav,x\n"}, r"none of the 1 recordings of folder is left; 1 are missing"),
    ],
)
def test_mistakes_in_a_folder(tmp_path, files, problem):
    sounds(tmp_path / "own", "1.wav")
    for name, text in files.items():
        write(tmp_path / "own" / name, text)
    with pytest.raises(ManifestError, match=problem):
        prepare("folder", tmp_path / "to", tmp_path / "own")
    assert not (tmp_path / "to/manifest.jsonl").exists()


# prepare, and the command


def test_a_manifest_of_something_else_is_not_overwritten(tmp_path, esc50):
    sounds(tmp_path, "1.wav")
    write(tmp_path / "manifest.jsonl", '{"path": "1.wav", "caption": "mine"}\n')
    for audio in (None, tmp_path / "manifest.jsonl"):
        with pytest.raises(ManifestError, match=r"manifest\.jsonl: exists and is not of folder; give another"):
            prepare("folder", tmp_path, audio)
    prepare("esc50", esc50)
    with pytest.raises(ManifestError, match="exists and is not of clotho"):
        prepare("clotho", esc50)
    assert len(made(esc50)) == 3


def test_names_that_are_not_there(tmp_path):
    with pytest.raises(ManifestError, match=r"cloto: no such collection; did you mean clotho\?"):
        prepare("cloto", tmp_path)
    with pytest.raises(ManifestError, match="xyz: no such collection; there are audiocaps, clotho, "):
        prepare("xyz", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ManifestError, match="file: is a file; --to is"):
        prepare("clotho", tmp_path / "file")
    (tmp_path / "file").unlink()
    with pytest.raises(ManifestError, match="nowhere: no such folder; --audio is"):
        prepare("clotho", tmp_path, tmp_path / "nowhere")
    with pytest.raises(ManifestError, match=r"holds neither evaluation\.txt nor manifest\.jsonl"):
        prepare("clotho", tmp_path, None, [tmp_path])
    assert list(tmp_path.iterdir()) == []


def lamb(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["lamb", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as exit:
        return int(exit.code or 0), *capsys.readouterr()
    raise AssertionError("main() returned")


def test_the_command(tmp_path, monkeypatch, capsys):
    sounds(tmp_path / "own", "1.wav", "2.wav", "3.wav")
    rows = "1.wav,A dog.,train,a\n2.wav,A cat.,train,b\n3.wav,A cow.,test,c\n4.wav,A pig.,test,d\n"
    write(tmp_path / "own/captions.csv", "file,caption,split,source\n" + rows)
    write(tmp_path / "other/evaluation.txt", "# other\nb\n")
    monkeypatch.chdir(tmp_path)
    code, out, err = lamb(monkeypatch, capsys, "data", "folder", "--audio", "own", "--without", "other")
    assert code == 0
    assert [line.split() for line in out.splitlines() if line.strip()][-3:] == [
        ["train", "1", "1"], ["test", "1", "1"], ["data/folder/manifest.jsonl"]]  # fmt: skip
    assert err == (
        "lamb: warning: 1 of 4 recordings are missing and were left out; data/folder/missing.txt lists them\n"
        "lamb: warning: 1 training clips were left out because they are also evaluated on\n"
    )
    assert [os.path.relpath(clip.path) for clip in made(Path("data/folder")).values()] == ["own/1.wav", "own/3.wav"]


def test_the_command_fails_in_one_line(tmp_path, monkeypatch, capsys):
    code, out, err = lamb(monkeypatch, capsys, "data", "cloto", "--to", tmp_path / "x")
    assert (code, out) == (2, "")
    assert err == "lamb: error: cloto: no such collection; did you mean clotho?\n"
    code, out, err = lamb(monkeypatch, capsys, "data", "esc50", "--to", tmp_path / "x")
    assert (code, out) == (1, "")
    assert err.startswith("lamb: error: https://github.com/karolpiczak/ESC-50/archive/master.zip: ")


def test_every_collection_is_in_the_help_and_the_documentation():
    root = Path(__file__).parents[2]
    command = cli.app.registered_commands
    assert "data" in {c.name or c.callback.__name__ for c in command}
    text = (root / "docs/data.md").read_text()
    for name in collections.COLLECTIONS:
        assert f"`{name}`" in text
