"""An index of sounds: what gets into it and out of it, what survives a death, and what is found."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("lancedb", reason="lancedb is not installed (the extra `library`)")

import itertools

from lamb.config import DecodeLimits, LibraryConfig
from lamb.inference.captioner import Captioner
from lamb.library import moments
from lamb.library.library import Library, condition
from lamb.library.query import kinds
from lamb.library.store import LibraryError, Store

RATE = 16_000
SAMPLES = Path(__file__).parents[2] / "samples"


def tone(path, hertz=440.0, seconds=1.0, level=0.3):
    path.parent.mkdir(parents=True, exist_ok=True)
    x = level * np.sin(2 * np.pi * hertz / RATE * np.arange(int(seconds * RATE)))
    soundfile.write(path, x, RATE)
    return path


@pytest.fixture
def captioner(make_model):
    return Captioner(make_model())


@pytest.fixture
def sounds(tmp_path):
    folder = tmp_path / "sounds"
    for k in range(4):
        tone(folder / f"{k}.wav", 300 + 200 * k)
    tone(folder / "deep" / "it's 4.wav", 2000)
    (folder / "notes.txt").write_text("no sound")
    return folder


@pytest.fixture
def library(tmp_path, captioner):
    return Library(tmp_path / "index", captioner)


def paths(library):
    return sorted({Path(file.path).name for file in library.store.files()})


def test_a_folder_is_indexed_once(library, sounds):
    tally = library.index(sounds)
    assert (tally.listed, tally.indexed, tally.unchanged, tally.failed) == (5, 5, 0, {})
    assert paths(library) == ["0.wav", "1.wav", "2.wav", "3.wav", "it's 4.wav"]
    again = library.index(sounds)
    assert (again.indexed, again.unchanged, again.removed, again.seconds) == (0, 5, 0, 0.0)
    assert len(library.store) == tally.segments


def test_what_is_new_changed_touched_moved_or_gone(library, sounds):
    library.index(sounds)
    tone(sounds / "new.wav", 3000)
    tone(sounds / "1.wav", 999, 1.5)
    os.utime(sounds / "2.wav", (1, 1))
    (sounds / "deep" / "it's 4.wav").rename(sounds / "moved.wav")
    (sounds / "3.wav").unlink()
    tally = library.index(sounds)
    assert (tally.indexed, tally.unchanged, tally.moved, tally.removed) == (2, 2, 1, 1)
    assert paths(library) == ["0.wav", "1.wav", "2.wav", "moved.wav", "new.wav"]
    rows = library.store.table.search(None).where("ends_with(path, '1.wav')").limit(9).to_list()
    assert [row["duration"] for row in rows] == [1.5]
    assert library.index(sounds).unchanged == 5


def test_a_file_that_cannot_be_read_is_told_and_tried_again(library, sounds):
    library.index(sounds)
    (sounds / "1.wav").write_bytes(b"broken")
    tally = library.index(sounds)
    assert list(tally.failed) == [str(sounds / "1.wav")]
    assert "1.wav" not in paths(library)
    tone(sounds / "1.wav")
    assert library.index(sounds).indexed == 1


def test_a_file_that_ends_its_decoder_costs_itself(library, sounds, monkeypatch):
    monkeypatch.setattr(moments, "DecodeLimits", lambda: DecodeLimits(seconds=0.1, seconds_per_mb=0.0))
    path = sounds / "hours.wav"
    soundfile.write(path, np.zeros(9), 192_000, format="RF64")
    content = bytearray(path.read_bytes())
    struct.pack_into("<Q", content, 28, 2**29)  # bytes of sound, all of them zero and none of them on the disk
    path.write_bytes(content)
    os.truncate(path, 2**29 + 200)
    tally = library.index(sounds)
    assert tally.failed.keys() == {str(path)}
    assert "takes longer to decode than is allowed" in tally.failed[str(path)]
    assert tally.indexed == 5


def test_a_name_that_is_not_utf8_is_indexed_found_and_taken_out(library, sounds):
    folder = os.fsdecode(os.fsencode(sounds) + b"/na\xefve")
    names = [os.fsdecode(os.fsencode(folder) + name) for name in (b"/caf\xe9.wav", b"/it's \xff.wav")]
    os.mkdir(folder)
    for k, name in enumerate(names):
        os.rename(tone(sounds / "new.wav", 1000 + 300 * k), name)
    assert library.index(sounds).indexed == 7
    again = library.index(sounds)
    assert (again.unchanged, again.removed, again.moved) == (7, 0, 0)
    assert sorted(match.file for match in library.search("beep", folder=folder)) == sorted(names)
    os.utime(names[0], (1, 1))
    os.rename(names[1], names[1] + ".wav")
    Path(names[0]).rename(names[0] + ".wav")
    tally = library.index(sounds)
    assert (tally.moved, tally.failed) == (2, {})
    os.remove(names[0] + ".wav")
    assert library.index(sounds).removed == 1
    assert {match.file for match in library.search("beep", folder=folder)} == {names[1] + ".wav"}
    assert library.index(folder).unchanged == 1, "a source may be such a name too"


def test_a_pipe_is_told_and_not_waited_for(library, sounds):
    os.mkfifo(sounds / "p.wav")
    tally = library.index(sounds)
    assert tally.indexed == 5
    assert tally.failed == {str(sounds / "p.wav"): "a pipe or a device, not a file; copy what it gives to a file"}


def test_a_folder_that_is_not_there_takes_nothing_out(library, sounds):
    library.index(sounds)
    shutil.move(sounds, sounds.with_name("elsewhere"))
    with pytest.raises(LibraryError, match="does not exist"):
        library.index(sounds)
    sounds.mkdir()
    with pytest.raises(LibraryError, match="holds no sounds"):
        library.index(sounds)
    assert len(paths(library)) == 5


def test_two_folders_share_an_index(library, sounds, tmp_path):
    other = tone(tmp_path / "other" / "x.wav").parent
    library.index(sounds)
    library.index(other)
    assert len(paths(library)) == 6
    (other / "x.wav").unlink()
    tone(other / "y.wav")
    library.index(other)
    assert paths(library) == ["0.wav", "1.wav", "2.wav", "3.wav", "it's 4.wav", "y.wav"]


def test_clips_of_a_manifest_have_their_own_times(library, tmp_path):
    long = tone(tmp_path / "long.wav", seconds=6)
    manifest = tmp_path / "clips.jsonl"
    rows = [{"id": "a", "path": long.name, "start": 1, "duration": 2}, {"id": "b", "path": long.name, "start": 4}]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert library.index(manifest).indexed == 2
    found = library.search("anything", 10)
    assert sorted((m.start, m.end) for m in found) == [(1.0, 3.0), (4.0, 6.0)]
    assert {m.file for m in found} == {str(long)}
    manifest.write_text(json.dumps(rows[0]) + "\n")
    assert library.index(manifest).removed == 1


def test_moments_of_a_long_recording(library, tmp_path):
    rng = np.random.default_rng(0)
    silence = np.zeros(4 * RATE)
    x = np.concatenate([0.3 * np.sin(0.2 * np.arange(8 * RATE)), silence, 0.3 * rng.standard_normal(9 * RATE)])
    (tmp_path / "day").mkdir()
    soundfile.write(tmp_path / "day" / "day.wav", x, RATE)
    library.index(tmp_path / "day")
    found = sorted(library.search("sound", 100), key=lambda m: m.start)
    assert found[0].start == 0
    assert found[-1].end == pytest.approx(21, abs=0.01)
    assert all(a.end == pytest.approx(b.start) for a, b in itertools.pairwise(found))
    assert any(m.caption == "Silence." and m.start == pytest.approx(8, abs=0.5) for m in found)


def test_the_same_recording_alone_and_beside_others(captioner, sounds, tmp_path):
    together, alone = Library(tmp_path / "a", captioner), Library(tmp_path / "b", captioner)
    together.index(sounds)
    shutil.copy2(sounds / "1.wav", tmp_path / "alone.wav")
    (tmp_path / "one").mkdir()
    shutil.copy2(sounds / "1.wav", tmp_path / "one" / "1.wav")
    alone.index(tmp_path / "one")
    vectors = [
        next(r["vector"] for r in lib.store.table.search(None).limit(9).to_list() if r["path"].endswith("1.wav"))
        for lib in (together, alone)
    ]
    np.testing.assert_allclose(*vectors, atol=1e-5)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)


def test_a_segment_is_as_sure_as_its_caption(tmp_path):
    """Also of a model that weighs the sounds it names, as the bundled one does."""
    captioner = Captioner.load("tiny")
    library = Library(tmp_path / "index", captioner)
    library.index(SAMPLES)
    [caption] = captioner.caption([SAMPLES / "church_bells.flac"])
    [match] = library.search("church bells", limit=1)
    assert match.caption == caption.text
    assert match.confidence == pytest.approx(caption.confidence, abs=1e-4)


def test_a_sound_is_most_like_itself(library, sounds):
    library.index(sounds)
    found = library.like(str(sounds / "2.wav"), 3)
    assert found[0].file == str(sounds / "2.wav")
    assert found[0].score == pytest.approx(1, abs=1e-4)
    assert [m.score for m in found] == sorted((m.score for m in found), reverse=True)


def test_words_that_say_nothing_do_not_count(library):
    assert np.allclose(library.words.vector("A dog barks"), library.words.vector("dog barks"))
    assert np.linalg.norm(library.words.vector("the")) == pytest.approx(1, abs=1e-5), "unless there are no others"


def test_silence_is_like_nothing(library, sounds, tmp_path):
    library.index(sounds)
    with pytest.raises(LibraryError, match="nothing is to be heard"):
        library.like(str(tone(tmp_path / "s.wav", level=0.0)))


def stored(library, said):
    """An index with made-up captions, their own words as vectors."""
    from lamb.library.moments import Moment
    from lamb.library.store import File

    runtime = library.captioner.engine.runtime
    width = runtime.embed([0]).shape[1]
    store = Store.create(library.folder, width, (), "tiny", runtime.space, library.config)
    for k, text in enumerate(said):
        file = File(f"/sounds/{k % 2}/{k}.wav", "", "/sounds", 1, k * 10**9, str(k))
        store.add([(file, 9.0, [Moment(float(k), k + 1.0, text, k / 10, library.words.vector(text), np.zeros(0))])])
    return store


SAID = ["A dog barks.", "Rain falls.", "A siren wails.", "A baby cries.", "A dog growls."]


def test_words_find_what_says_them(library):
    stored(library, SAID)
    assert library.search("the dog barks", 1)[0].caption == "A dog barks."
    assert library.search("a siren", 1)[0].caption == "A siren wails."
    assert {m.caption for m in library.search("dog", 2)} == {"A dog barks.", "A dog growls."}
    assert len(library.search("xyzzy ☃ 'quoted' AND (", 10)) == 5, "no word in common: by the vectors alone"


def test_what_the_label_heads_heard_is_found(library):
    from lamb.library.moments import Moment
    from lamb.library.store import File

    runtime, labels = library.captioner.engine.runtime, ["dog", "rain", "crow"]
    same = library.words.vector("a sound")
    store = Store.create(library.folder, len(same), labels, "tiny", runtime.space, library.config)
    heard = {"dog": (0.9, 0.0, 0.0), "both": (0.5, 0.4, 0.0), "rain": (0.1, 0.8, 0.0), "crow": (0.0, 0.1, 0.7)}
    for k, (name, p) in enumerate(heard.items()):
        moment = Moment(0.0, 1.0, "A sound is heard.", 0.5, same, np.array(p))
        store.add([(File(f"/{name}", "", "/", 1, 0, str(k)), 9.0, [moment])])

    def found(query: str) -> list[str]:
        return [match.file[1:] for match in library.search(query)]

    assert found("barking dogs")[:2] == ["dog", "both"]
    assert found("rain")[:2] == ["rain", "both"]
    assert found("a dog in the rain")[0] == "both"
    assert found("a bird")[0] == "crow"
    assert [m.score for m in library.search("a dog")] == pytest.approx(
        [library.words.vector("a dog") @ same + library.config.kinds * p**0.5 for p in (0.9, 0.5, 0.1, 0.0)], abs=1e-4
    )
    assert len({round(m.score, 5) for m in library.search("xyzzy")}) == 1, "names no kind: by the vectors alone"


def test_kinds_of_sound_in_a_query():
    labels = ["crow", "dog", "dog_bark", "rain"]
    assert kinds("a dog barks while rain falls", labels).tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]
    assert kinds("an animal", labels).tolist() == [[1, 1, 1, 0]]
    assert kinds("a lion", labels).shape == (0, 4)
    assert kinds("a dog", []).shape == (0, 0)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"folder": "/sounds/1"}, {1, 3}),
        ({"folder": "/sounds/1/"}, {1, 3}),
        ({"folder": "/sounds/10"}, set()),
        ({"min_confidence": 0.25}, {3, 4}),
        ({"since": 3 * 10**9}, {3, 4}),
        ({"until": 10**9}, {0, 1}),
        ({"after": 3.5}, {3, 4}),
        ({"before": 2.0}, {0, 1}),
        ({"folder": "/it's"}, set()),
    ],
)
def test_where_is_looked(library, where, expected):
    stored(library, SAID)
    assert {int(Path(m.file).stem) for m in library.search("dog", 10, **where)} == expected


def test_no_condition_is_none():
    assert condition() is None


def test_what_is_no_index_is_refused(tmp_path, captioner):
    with pytest.raises(LibraryError, match="lamb index"):
        Library(tmp_path / "none", captioner).search("dog")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    tone(tmp_path / "s" / "a.wav")
    with pytest.raises(LibraryError, match="not an index"):
        Library(tmp_path / "full", captioner).index(tmp_path / "s")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["letter.txt"]
    with pytest.raises(LibraryError, match="nothing is searched for"):
        Library(tmp_path / "none", captioner).search("  ")


def test_another_model_is_refused(tmp_path, sounds, make_model, model_folder):
    import torch

    own = make_model()
    with torch.no_grad():
        own.adapter.out.bias.add_(1.0)
    Library(tmp_path / "index", Captioner(own)).index(sounds)
    with pytest.raises(LibraryError, match="another model"):
        Library(tmp_path / "index", str(model_folder)).search("dog")


def test_one_writer_at_a_time(library, sounds):
    library.index(sounds)
    with Library(library.folder, library.captioner).store.writing(), pytest.raises(LibraryError, match="another"):
        library.index(sounds)


def test_kill_9_loses_nothing(tmp_path, model_folder):
    folder, index = tmp_path / "many", tmp_path / "index"
    for k in range(30):
        tone(folder / f"{k:02d}.wav", 200 + 50 * k, 0.5)
    code = (
        "from lamb.config import LibraryConfig; from lamb.library.library import Library\n"
        f"Library({str(index)!r}, {str(model_folder)!r}, config=LibraryConfig(group=2))"
        f".index({str(folder)!r}, lambda tally: print(tally.indexed, flush=True))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    while int(process.stdout.readline() or -1) < 6:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    library = Library(index, str(model_folder), config=LibraryConfig(group=2))
    kept = len(paths(library))
    assert 6 <= kept < 30, "what was written is there"
    tally = library.index(folder)
    assert (tally.unchanged, tally.indexed) == (kept, 30 - kept)
    keys = [file.key for file in library.store.files()]
    assert len(keys) == len(set(keys)) == 30, "every recording is there once"


def test_memory_does_not_grow_with_the_collection(tmp_path, captioner):
    """Three times the recordings need no more memory: what is held is a group."""
    import tracemalloc

    peaks = []
    for count in (16, 48):
        folder = tmp_path / str(count)
        for k in range(count):
            tone(folder / f"{k}.wav", 200 + 10 * k, 4.0)
        library = Library(tmp_path / f"index{count}", captioner, config=LibraryConfig(group=4))
        tracemalloc.start()
        library.index(folder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2e6  # 32 more recordings of 0.26 MB would be 8 MB


def test_the_nearest_segments_come_in_the_order_of_their_distances(library):
    store = stored(library, SAID)
    near = store.near(library.words.vector("dog"), None, 5)
    assert sorted(near["_distance"].to_pylist()) == near["_distance"].to_pylist()


def test_neighbourhoods_find_what_lies_nearest(tmp_path, captioner):
    from lamb.library.moments import Moment
    from lamb.library.store import File

    rng = np.random.default_rng(0)
    dim = captioner.model.llm.dim
    config = LibraryConfig(approximate=500, probes=64)
    store = Store.create(tmp_path / "index", dim, list(map(str, range(8))), "made-up", "none", config)
    kinds = rng.dirichlet(np.full(8, 0.2), 2000).astype(np.float32)
    vectors = rng.standard_normal((2000, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store.add(
        [
            (File(f"/{k}", "", "/", 0, 0, ""), 1.0, [Moment(0, 1, "x", 1.0, v, p)])
            for k, (v, p) in enumerate(zip(vectors, kinds, strict=True))
        ]
    )
    store.compact()
    store.compact()  # makes no index anew
    found = [c for index in store.table.list_indices() if "Ivf" in index.index_type for c in index.columns]
    assert sorted(found) == ["kinds", "vector"]
    for query in np.eye(8, dtype=np.float32):
        rows = [int(path[1:]) for path in store.heard(query, None, 10)["path"].to_pylist()]
        np.testing.assert_allclose(np.sort(kinds[rows] @ query), np.sort(kinds @ query)[-10:], atol=1e-6)
    for query in vectors[:5]:
        near = store.near(query, None, 10)
        exact = np.argsort(-vectors @ query)[:10]
        assert [int(path[1:]) for path in near["path"].to_pylist()] == exact.tolist()
