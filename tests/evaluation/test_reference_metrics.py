"""The programs behind the published tables: driven as pycocoevalcap and aac-metrics do, or left out with a remedy."""

import importlib.util
import json
import os
import shutil
import stat
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_tokenizer import TOKENS

from lamb.evaluation import reference_metrics as reference
from lamb.evaluation import resources
from lamb.evaluation.reference_metrics import Java
from lamb.evaluation.resources import Unavailable

needs_java = pytest.mark.skipif(
    not (shutil.which("java") and importlib.util.find_spec("pycocoevalcap")), reason="no java, or no pycocoevalcap"
)

ROUND = (
    ["a dog barks and a man speaks", "rain is falling down", "", "church bells ring", "a cat"],
    [
        ["a dog barks while a man speaks", "the dog barked as somebody talked"],
        ["rain falls"],
        ["an engine idles"],
        ["church bells ring", "bells"],
        ["wind blows"],
    ],
)
# What Meteor().compute_score of pycocoevalcap 1.2 answered (meteor-1.5.jar, Java 17), on 2026-11-23.
METEOR = 0.33788691425856654
METEOR_CLIPS = [0.43454915456371623, 0.3229316024939665, 0.0, 1.0, 0.0]


def fake_java(folder: Path, script: str, version: str = "17.0.15") -> Path:
    """A program called java that tells its version, or runs `script` (Python) with sys.argv."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "java"
    head = f"#!{sys.executable}\nimport json, sys\nif '-version' in sys.argv:\n    sys.exit('version \"{version}\"')\n"
    program.write_text(head + script)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@needs_java
def test_the_ptb_tokenizer(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")  # the captions are UTF-8 whatever the machine speaks
    texts = [text for text, _ in TOKENS]
    assert [" ".join(tokens) for tokens in reference.ptb_tokenize(texts)] == [tokens for _, tokens in TOKENS]
    odd = ["a\u2028dog\r\nbarks\x0b", "", "日本 café", "'"]
    assert reference.ptb_tokenize(odd) == [["a", "dog", "barks"], [], ["日本", "café"], []]


@needs_java
def test_meteor_in_one_process_for_all_rounds():
    """Its own scores, and ours from its counts, of each clip and of the collection."""
    first, second = reference.meteor([ROUND, (ROUND[0][:2], ROUND[1][:2])])
    assert first.score == pytest.approx(METEOR, abs=1e-9)
    np.testing.assert_allclose(first.per_clip, METEOR_CLIPS, atol=1e-9)
    np.testing.assert_allclose(second.per_clip, METEOR_CLIPS[:2], atol=1e-9)
    for found in (first, second):
        np.testing.assert_allclose(reference.meteor_of(found.counts), found.per_clip, atol=1e-12)
        assert reference.meteor_of(found.counts.sum(0)) == pytest.approx(found.score, abs=1e-12)


@pytest.mark.parametrize(("said", "version"), [("1.8.0_292", 8), ("11.0.2", 11), ("21", 21)])
def test_the_version_of_java(tmp_path, monkeypatch, said, version):
    program = fake_java(tmp_path / "bin", "", said)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert reference.java() == Java(str(program), version)


def test_a_java_that_is_too_new_or_not_there(tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="there is no Java; apt install"):
        reference.java()
    fake_java(tmp_path / "bin", "", "25.0.1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(Unavailable, match="Java 25 does not run METEOR and SPICE, which want Java 8 to 21"):
        reference.java()


@pytest.fixture
def spice_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for pycocoevalcap's folder and for CoreNLP."""
    (tmp_path / "coco" / "spice" / "lib").mkdir(parents=True)
    monkeypatch.setattr(resources, "jars", lambda: tmp_path / "coco")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "lamb").mkdir(parents=True)
    for name in resources.CORENLP_JARS:
        (tmp_path / "cache" / "lamb" / name).touch()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    return tmp_path


SPICE = """
items = json.load(open(sys.argv[sys.argv.index("edu.anu.spice.SpiceScorer") + 1]))
scores = [None if not item["test"] else len(item["refs"]) / 10 for item in items]
found = [{"image_id": i["image_id"], "scores": {"All": {"f": f}}} for i, f in zip(items, scores)][::-1]
json.dump(found, open(sys.argv[sys.argv.index("-out") + 1], "w"))
json.dump(sys.argv, open("said.json", "w"))
"""


@pytest.mark.parametrize(("version", "opened"), [("1.8.0_292", False), ("17.0.15", True)])
def test_spice(spice_folder, version, opened):
    fake_java(spice_folder / "bin", SPICE, version)
    first, second = reference.spice([ROUND, (ROUND[0][:2], ROUND[1][:2])])
    np.testing.assert_array_equal(first, [0.2, 0.1, 0.0, 0.2, 0.1])
    np.testing.assert_array_equal(second, [0.2, 0.1])
    said = json.loads((spice_folder / "coco" / "spice" / "said.json").read_text())
    assert ("--add-opens=java.base/java.lang=ALL-UNNAMED" in said) == opened
    path = said[said.index("-cp") + 1].split(os.pathsep)
    assert path[:2] == ["spice-1.0.jar", "lib/*"]
    assert [Path(jar).name for jar in path[2:]] == list(resources.CORENLP_JARS)


def test_spice_fails(spice_folder):
    fake_java(spice_folder / "bin", "sys.exit('starting\\nException in thread main: OutOfMemoryError')")
    with pytest.raises(Unavailable, match=r"spice by Java failed .*OutOfMemoryError"):
        reference.spice([ROUND])
    fake_java(spice_folder / "bin", "")
    with pytest.raises(Unavailable, match="without a result"):
        reference.spice([ROUND])
    next((spice_folder / "cache" / "lamb").iterdir()).unlink()
    with pytest.raises(Unavailable, match=r"CoreNLP 3.6 is not here .*; lamb evaluate --download"):
        reference.spice([ROUND])


@needs_java
def test_the_real_spice_starts_and_misses_corenlp_only(tmp_path, monkeypatch):
    """As far as it can be run without half a gigabyte of CoreNLP: with stand-ins for its two jars."""
    spice = resources.jars() / "spice"
    for jar in spice.rglob("*.jar"):
        if jar.name not in resources.CORENLP_JARS:  # which may be there
            own = tmp_path / "coco" / "spice" / jar.relative_to(spice)
            own.parent.mkdir(parents=True, exist_ok=True)
            own.symlink_to(jar)
    monkeypatch.setattr(resources, "jars", lambda: tmp_path / "coco")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "lamb").mkdir()
    for name in resources.CORENLP_JARS:
        with zipfile.ZipFile(tmp_path / "lamb" / name, "w") as stand_in:
            stand_in.writestr("empty", "")
    with pytest.raises(Unavailable, match=r"spice by Java failed .*edu[/.]stanford[/.]nlp"):
        reference.spice([ROUND])


def test_a_process_that_stops_answering(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "jars", lambda: tmp_path)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    for name in ("meteor", "tokenizer"):
        (tmp_path / name).mkdir()
    fake_java(tmp_path / "bin", "print('1 2 3', flush=True); sys.exit('Error: out of memory')")
    with pytest.raises(Unavailable, match=r"meteor by Java failed .*out of memory"):
        reference.meteor([ROUND])
    with pytest.raises(Unavailable, match=r"tokenizer by Java failed .*out of memory"):
        reference.ptb_tokenize(["a dog"] * 10_000)
