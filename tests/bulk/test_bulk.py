"""Bulk runs with a stand-in captioner: lists, exactly once under kills, failures, formats, Ray; and a real model."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lamb.bulk import listing as bulk_listing
from lamb.bulk import run as bulk_module
from lamb.bulk.listing import BulkError, Input, write_list
from lamb.bulk.run import _parquet, bulk
from lamb.bulk.workers import Answer, Settings, WorkerError
from lamb.data.manifest import ManifestError

# A stand-in for lamb/inference/captioner.py that every Python process imports at its start: the workers of the run too.
# What happens to a file is in its name; `flaky` and `fatal` ones are well once the file `healed` lies beside them.
SITE = """
import os, signal, sys, time, types
from pathlib import Path
from lamb.inference.captions import Caption

class Captioner:
    engine = types.SimpleNamespace(sample_rate=16000)

    @classmethod
    def load(cls, name, device=None):
        if name == "nosuch":
            raise ValueError("no model is called nosuch; there is: tiny")
        if name == "deadly":
            os._exit(1)
        return cls()

    def stream(self, files, **options):
        for source in files:
            name = source if isinstance(source, str) else source.name
            well = Path(name).with_name("healed").exists()
            if "slow" in name:
                time.sleep(0.02)
            if "endless" in name:
                time.sleep(600)
            if "fatal" in name and not well:
                os.kill(os.getpid(), signal.SIGKILL)
            if "bug" in name:
                int("of ours")
            if "flaky" in name and not well:
                yield Caption(name, error="the network is down; wait")
            else:
                yield Caption(name, 2.0, "A dog barks.", -0.5, 0.75)

module = types.ModuleType("lamb.inference.captioner")
module.Captioner = Captioner
sys.modules["lamb.inference.captioner"] = module
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """start(INPUT, OUT, options ...): `lamb bulk` with the stand-in, as a process group of its own."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(site), str(Path(__file__).parents[2])])

    def run(source: object, out: Path, *options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "lamb", "bulk", source, "--out", out, "--device", "cpu", *options]
        environment = {**os.environ, "PYTHONPATH": path}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*map(str, command)], env=environment, start_new_session=True, **pipes)

    return run


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error."""
    _, err = process.communicate(timeout=300)
    return process.returncode, err


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def rows(out: Path) -> list[dict[str, Any]]:
    """All captions, shard by shard."""
    files = sorted((out / "captions").iterdir())
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]


def failures(out: Path) -> dict[str, str]:
    lines = (out / "failures.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert len({row["index"] for row in found}) == len(found)
    return {Path(row["file"]).name: row["error"] for row in found}


def once(out: Path, folder: Path, failed: int = 0) -> None:
    """Every input of `folder` is in the captions or, `failed` of them, in the failures; none is twice."""
    got = [row["file"] for row in rows(out)]
    assert len(got) == len(set(got)), "twice"
    lost = failures(out)
    assert len(lost) == failed
    assert {Path(name).name for name in got} | set(lost) == {path.name for path in folder.glob("*.wav")}
    assert len(got) + failed == len(list(folder.glob("*.wav")))
    assert not list(out.rglob("*.part"))


def children(pid: int) -> list[int]:
    """Workers of a run: its children that were spawned."""
    found = [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


# --- lists


def listed(source: object, to: Path) -> list[Input]:
    count, _ = write_list(str(source), to)
    inputs = [Input.from_json(line) for line in to.read_text().splitlines()]
    assert len(inputs) == count
    return inputs


def test_a_folder_is_listed_in_order_however_many_runs_it_takes(tmp_path, monkeypatch):
    for folder in ("b", "a", "a/c", ".hidden"):
        make(tmp_path / "in" / folder, *(f"{k}.wav" for k in range(7)), ".x.wav", "notes.txt", "LOUD.FLAC")
    whole = listed(tmp_path / "in", tmp_path / "one")
    assert len(whole) == 3 * 8
    assert [item.file for item in whole] == sorted(item.file for item in whole)
    monkeypatch.setattr(bulk_listing, "RUN", 5)
    assert listed(tmp_path / "in", tmp_path / "two") == whole
    assert sorted(os.listdir(tmp_path)) == ["in", "one", "two"]


def test_hostile_names_and_links(tmp_path):
    folder = make(tmp_path / "in", "new\nline.wav", "..wav.wav.wav", "x..wav", '"quoted" \u2028.wav', "--out.wav")
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.wav")).touch()
    (folder / "circle").symlink_to(folder)
    (folder / "circle.wav").symlink_to(folder)
    (folder / "self.wav").symlink_to("self.wav")
    names = [os.path.basename(item.file) for item in listed(folder, tmp_path / "list")]
    expected = {"new\nline.wav", "x..wav", '"quoted" \u2028.wav', "--out.wav", os.fsdecode(b"caf\xe9.wav"), "self.wav"}
    assert set(names) == expected
    assert len(names) == len(expected)


def test_a_folder_that_cannot_be_listed_is_an_input_that_fails(tmp_path, monkeypatch):
    folder = make(tmp_path / "in", "a.wav")
    make(tmp_path / "in" / "lost+found", "b.wav")
    real = os.scandir

    def scandir(path="."):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [item.file for item in listed(folder, tmp_path / "list")] == [f"{folder}/a.wav", f"{folder}/lost+found"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.txt", "a.wav\n\n../up.wav\n/root.wav\ns3://bucket/c.wav\n"),
        ("m.csv", "path\na.wav\n../up.wav\n/root.wav\ns3://bucket/c.wav\n"),
        ("m.jsonl", "".join(f'{{"path": "{p}"}}\n' for p in ("a.wav", "../up.wav", "/root.wav", "s3://bucket/c.wav"))),
    ],
)
def test_manifests_keep_their_order(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    expected = [f"{tmp_path}/a.wav", f"{tmp_path}/../up.wav", "/root.wav", "s3://bucket/c.wav"]
    assert [item.file for item in listed(tmp_path / name, tmp_path / "list")] == expected


@pytest.mark.parametrize("text", ["file_name;id\na.wav;7\n", "ID\tFILE\n7\ta.wav\n", "path,id\na.wav,7\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_may_be_as_other_programs_write_it(tmp_path, text, encoding):
    (tmp_path / "m.csv").write_text(text, encoding=encoding)
    assert listed(tmp_path / "m.csv", tmp_path / "list") == [Input(f"{tmp_path}/a.wav", "7")]


def test_an_id_may_be_a_number_and_a_name_any_bytes(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"id": 7, "file": "a.wav"}\n')
    assert listed(tmp_path / "m.jsonl", tmp_path / "list") == [Input(f"{tmp_path}/a.wav", "7")]
    (tmp_path / "m.txt").write_bytes(b"\xe4.wav\r\n")
    assert [os.fsencode(item.file) for item in listed(tmp_path / "m.txt", tmp_path / "list")] == [
        os.fsencode(tmp_path) + b"/\xe4.wav"
    ]


def test_a_manifest_of_clips_keeps_ids_and_times(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"id": "x", "path": "a.wav", "start": 1.5, "duration": 2}\n')
    assert listed(tmp_path / "m.jsonl", tmp_path / "list") == [Input(f"{tmp_path}/a.wav", "x", 1.5, 2.0)]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("m.jsonl", "{}\n", "line 1: path is missing"),
        ("m.jsonl", "[1]\n", "line 1: expected an object"),
        ("m.jsonl", '{"path": "a", "start": -1}\n', "line 1: start is -1"),
        ("m.csv", "sound\na.wav\n", "line 2: unknown keys .*sound"),
        ("m.csv", "path,id\na.wav,1,2\n", "line 2: more cells than the header names"),
        ("m.txt", "\n", "no recordings"),
        ("a.wav", "", "not a folder, nor a manifest"),
        ("none", None, "No such file"),
    ],
)
def test_what_cannot_be_listed_is_told(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises((BulkError, ManifestError), match=words):
        write_list(str(tmp_path / name), tmp_path / "list")
    assert not (tmp_path / "list").exists()


def test_an_unknown_protocol_is_told(tmp_path):
    with pytest.raises(BulkError, match="nosuch"):
        write_list("nosuch://bucket", tmp_path / "list")


def test_addresses_are_listed_as_addresses(tmp_path):
    import fsspec

    fs = fsspec.filesystem("memory")
    for name in ("/store/b/2.wav", "/store/1.wav", "/store/.h/3.wav", "/store/notes.txt"):
        fs.pipe(name, b"x")
    fs.pipe("/store/m.txt", b"b/2.wav\n")
    assert [i.file for i in listed("memory://store", tmp_path / "l")] == [
        "memory:///store/1.wav",
        "memory:///store/b/2.wav",
    ]
    assert [i.file for i in listed("memory://store/m.txt", tmp_path / "l")] == ["memory://store/b/2.wav"]


# --- runs


def test_a_run_and_the_same_again(tmp_path, start):
    folder, out = make(tmp_path / "in", *(f"{k}.wav" for k in range(25))), tmp_path / "out"
    assert finish(start(folder, out, "--shard-size", 4, "--workers", 2))[0] == 0
    once(out, folder)
    assert [row["file"] for row in rows(out)] == [i.file for i in listed(folder, tmp_path / "list")]
    expected = {"duration": 2.0, "caption": "A dog barks.", "score": -0.5, "confidence": 0.75}
    assert expected.items() <= rows(out)[0].items()
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["captioned"], summary["failed"], summary["left"]) == (25, 0, 0)
    assert summary["hours"] == round(50 / 3600, 4)
    before = {path: path.stat().st_mtime_ns for path in (out / "captions").iterdir()}
    assert finish(start(folder, out, "--workers", 1))[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "captions").iterdir()} == before


def test_what_changed_is_told(tmp_path, start):
    folder, out = make(tmp_path / "in", "a.wav", "b.wav"), tmp_path / "out"
    assert finish(start(folder, out))[0] == 0
    code, err = finish(start(folder, out, "--n-best", 2))
    assert code == 2
    assert "n_best 1, not 2" in err
    make(folder, "c.wav")
    code, err = finish(start(folder, out))
    assert code == 2
    assert "2 inputs then, 3 now" in err
    assert finish(start(folder, out, "--as-listed"))[0] == 0
    assert len(rows(out)) == 2


def test_a_run_goes_on_from_anywhere_and_by_any_name(tmp_path, start, monkeypatch):
    """The folder is given by a path from here, from elsewhere, and from the root; results keep its first name."""
    folder, out = make(tmp_path / "in", *(f"{k}.wav" for k in range(6)), "flaky.wav"), tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    assert finish(start("in/", "out", "--shard-size", 2))[0] == 1
    assert {row["file"] for row in rows(out)} == {f"in/{k}.wav" for k in range(6)}
    make(folder, "healed")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = (out / "inputs.jsonl").read_bytes()
    assert finish(start("../in", out))[0] == 1
    assert finish(start(folder, out, "--retry-failed"))[0] == 0, "the file is found where it is now"
    assert sorted(row["file"] for row in rows(out)) == [*(f"in/{k}.wav" for k in range(6)), "in/flaky.wav"]
    assert (out / "inputs.jsonl").read_bytes() == before
    make(tmp_path / "other", "0.wav")
    assert finish(start(tmp_path / "other", out))[0] == 2


@pytest.mark.parametrize("deep", ["out", "deep/out"])
def test_a_refused_run_leaves_no_folder(tmp_path, start, deep):
    out = tmp_path / deep
    assert finish(start(tmp_path / "none", out))[0] == 2
    assert list(tmp_path.iterdir()) == []
    out.mkdir(parents=True)
    assert finish(start(tmp_path / "none", out))[0] == 2
    assert out.exists(), "which was there before"


def test_progress_is_seen_within_a_shard(tmp_path, monkeypatch):
    folder = make(tmp_path / "in", *(f"{k}.wav" for k in range(10)))
    monkeypatch.setattr(bulk_module, "crew", inline)
    monkeypatch.setattr(bulk_module, "STEP", 4)
    seen: list[tuple[int, int]] = []
    watch = lambda tally: seen.append((tally.done, tally.held))
    bulk(str(folder), tmp_path / "out", Settings(), shard_size=10, watch=watch)
    assert seen == [(0, 0), (0, 4), (0, 8), (10, 0)]


def test_failures_are_kept_apart_and_retried(tmp_path, start):
    names = [f"{k}.wav" for k in range(20)] + ["flaky1.wav", "flaky2.wav", "bug.wav"]
    folder, out = make(tmp_path / "in", *names), tmp_path / "out"
    code, err = finish(start(folder, out, "--shard-size", 6, "--workers", 1))
    assert code == 1
    assert "3 of 23 recordings failed" in err
    once(out, folder, failed=3)
    assert failures(out)["flaky1.wav"] == "the network is down; wait"
    assert failures(out)["bug.wav"].startswith("ValueError: invalid literal")
    before = {path.name: path.read_bytes() for path in (out / "captions").iterdir()}
    make(folder, "healed")
    assert finish(start(folder, out))[0] == 1, "without --retry-failed they stay"
    assert {path.name: path.read_bytes() for path in (out / "captions").iterdir()} == before
    assert finish(start(folder, out, "--retry-failed"))[0] == 1
    once(out, folder, failed=1)
    assert before.items() <= {path.name: path.read_bytes() for path in (out / "captions").iterdir()}.items()
    assert json.loads((out / "summary.json").read_text())["captioned"] == 22


def test_the_file_that_kills_is_found(tmp_path, start):
    folder, out = make(tmp_path / "in", *(f"{k}.wav" for k in range(20)), "fatal.wav"), tmp_path / "out"
    assert finish(start(folder, out, "--shard-size", 21, "--workers", 1))[0] == 1
    once(out, folder, failed=1)
    assert failures(out)["fatal.wav"] == bulk_module.CRASH
    make(folder, "healed")
    assert finish(start(folder, out, "--retry-failed"))[0] == 0
    once(out, folder)


@pytest.mark.parametrize(("model", "words"), [("nosuch", "no model is called nosuch"), ("deadly", "workers die")])
def test_a_model_that_cannot_be_loaded_ends_the_run(tmp_path, start, model, words):
    folder, out = make(tmp_path / "in", "a.wav"), tmp_path / "out"
    code, err = finish(start(folder, out, "--model", model, "--workers", 1))
    assert code == 1
    assert words in err
    assert "Traceback" not in err
    assert not out.exists(), "nothing of it is of use"


@pytest.mark.parametrize("died", [False, True])
def test_no_worker_is_left_behind_by_a_model_that_cannot_be_loaded(died):
    """A pool that nobody has stopped may end while the interpreter does, which prints a traceback (Python 3.11)."""
    hired = []

    class Fake:
        def __init__(self, number):
            self.ready, self.stopped = Future(), False
            hired.append(self)

        def submit(self, inputs):
            future = Future()
            for each, result in ((self.ready, "no model is called nosuch"), (future, Answer([], "never loaded"))):
                each.set_exception(EOFError()) if died else each.set_result(result)
            return future

        def stop(self):
            self.stopped = True

    shards = iter([bulk_module._Shard(k, 0, [(k, Input(f"{k}.wav"))]) for k in range(3)])
    with pytest.raises(WorkerError):
        bulk_module._drive(shards, Fake, 2, lambda piece, done: None)
    assert len(hired) >= 2
    assert all(worker.stopped for worker in hired)


# --- kills


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_workers_cost_nothing(tmp_path, start, seed):
    rng = random.Random(seed)
    folder, out = make(tmp_path / "in", *(f"slow{k}.wav" for k in range(120))), tmp_path / "out"
    run = start(folder, out, "--shard-size", 10, "--workers", 2)
    kills = seen = 0
    while run.poll() is None and kills < 4:
        time.sleep(rng.uniform(0.05, 0.3))
        done = len(list(out.glob("captions/0*")))
        if done > seen and (workers := children(run.pid)):  # four before they have their model would end the run
            os.kill(rng.choice(workers), signal.SIGKILL)
            kills, seen = kills + 1, done
    assert finish(run)[0] == 0
    assert kills
    once(out, folder)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_run_goes_on(tmp_path, start, seed):
    rng = random.Random(seed)
    folder, out = make(tmp_path / "in", *(f"slow{k}.wav" for k in range(120))), tmp_path / "out"
    for _ in range(3):
        run = start(folder, out, "--shard-size", 10, "--workers", 2)
        time.sleep(rng.uniform(0.5, 2.5))
        workers = children(run.pid)
        run.kill()
        run.communicate()
        done = {path: path.stat().st_mtime_ns for path in out.glob("captions/0*")}
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < deadline, "its workers live on"
            time.sleep(0.05)
    assert finish(start(folder, out, "--shard-size", 10))[0] == 0
    once(out, folder)
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_a_kill_between_any_two_writes(tmp_path, monkeypatch):
    """A run that ends before any one of its writes is completed by the next, in first runs and in retries."""
    monkeypatch.setattr(bulk_module, "crew", inline)
    folder = make(tmp_path / "in", "a.wav", "flaky.wav", "c.wav")
    real, k = bulk_module.write, 0
    while True:
        out, left = tmp_path / f"out{k}", k

        def dying(path, content, durable):
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            real(path, content, durable=durable)

        killed = False
        for healed in (False, True):
            (folder / "healed").unlink(missing_ok=True)
            if healed:
                make(folder, "healed")
            monkeypatch.setattr(bulk_module, "write", dying)
            try:
                bulk(str(folder), out, Settings(), shard_size=2, retry_failed=healed)
            except KeyboardInterrupt:
                killed = True
                monkeypatch.setattr(bulk_module, "write", real)
                bulk(str(folder), out, Settings(), shard_size=2, retry_failed=healed)
            once(out, folder, failed=0 if healed else 1)
        if not killed:
            return
        k += 1


def test_files_of_other_programs_among_the_captions_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(bulk_module, "crew", inline)
    folder, out = make(tmp_path / "in", "a.wav", "b.wav", "c.wav"), tmp_path / "out"
    first = bulk(str(folder), out, Settings(), shard_size=2)
    make(out / "captions", ".DS_Store", "._000000.jsonl", "000000 (copy).jsonl", "Thumbs.db", "notes-1.txt")
    again = bulk(str(folder), out, Settings(), shard_size=2)
    assert (again["captioned"], again["this_run"]["inputs"]) == (first["captioned"], 0) == (3, 0)


def inline(settings: Settings, workers: int | None, ray: str | None) -> Any:
    """A crew of one that works in this process at once."""
    from concurrent.futures import Future
    from contextlib import nullcontext

    from lamb.bulk.workers import Answer

    class Worker:
        def __init__(self) -> None:
            self.ready: Future[str | None] = Future()
            self.ready.set_result(None)

        def submit(self, inputs: list[Input]) -> "Future[Answer]":
            done: Future[Answer] = Future()
            well = [Path(item.file).with_name("healed").exists() or "flaky" not in item.file for item in inputs]
            told = [{"duration": 1.0, "caption": "Rain."} if ok else {"error": "no"} for ok in well]
            done.set_result(Answer([{"file": i.file, **row} for i, row in zip(inputs, told, strict=True)]))
            return done

        def stop(self) -> None:
            pass

    return nullcontext((lambda number: Worker(), 1))


def test_interrupted_it_stops_at_once_and_a_second_run_is_refused(tmp_path, start):
    folder, out = make(tmp_path / "in", "a.wav", "endless.wav"), tmp_path / "out"
    run = start(folder, out, "--shard-size", 1, "--workers", 1)
    deadline = time.monotonic() + 60
    while not list(out.glob("captions/0*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    code, err = finish(start(folder, out))
    assert code == 2
    assert "another run is filling it" in err
    os.killpg(run.pid, signal.SIGINT)
    code, err = finish(run)
    assert code == 130
    assert "Traceback" not in err
    assert json.loads((out / "summary.json").read_text())["left"] == 1


def test_options_that_cannot_work_end_the_run_before_any_recording(tmp_path, model_folder):
    folder, out = make(tmp_path / "in", "a.wav"), tmp_path / "out"
    with pytest.raises(WorkerError, match="n_best 3 needs as many beams, not 1"):
        bulk(str(folder), out, Settings(str(model_folder), "cpu", 1, n_best=3, beams=1), workers=1, shard_size=100)
    assert not out.exists()


# --- formats, sources, Ray


def test_parquet(tmp_path, start):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra cluster")
    folder, out = make(tmp_path / "in", "a.wav", "flaky.wav"), tmp_path / "out"
    (folder / os.fsdecode(b"caf\xe9.wav")).touch()
    assert finish(start(folder, out, "--format", "parquet", "--shard-size", 10))[0] == 1
    (file,) = (out / "captions").iterdir()
    table = parquet.read_table(file).to_pylist()
    assert [row["file"] for row in table] == [f"{folder}/a.wav", f"{folder}/caf\\udce9.wav"]
    assert table[0]["captions"] == ["A dog barks."]
    assert list(failures(out)) == ["flaky.wav"]


def test_a_parquet_file_has_all_that_a_caption_has(full_caption):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra cluster")
    row = {"id": "1", **full_caption.to_dict()}
    assert parquet.read_table(io.BytesIO(_parquet([row]))).to_pylist() == [row]


def test_a_real_model_hears_files_addresses_and_clips(tmp_path, model_folder):
    from lamb.inference.captioner import Captioner

    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    x = (0.1 * np.random.default_rng(0).standard_normal(48000)).astype(np.float32)
    soundfile.write(folder / "a.wav", x, 16000, "FLOAT")
    soundfile.write(folder / "b.wav", x[16000:32000], 16000, "FLOAT")
    (folder / "bad.wav").write_bytes(b"nothing")
    os.mkfifo(folder / "pipe.wav")
    paths = ["a.wav", f"file://{folder}/a.wav", "bad.wav", "pipe.wav", "none.wav", f"file://{folder}/none.wav", "b.wav"]
    clips = [{"path": path} for path in paths] + [{"id": "part", "path": "a.wav", "start": 1, "duration": 1}]
    (folder / "m.jsonl").write_text("".join(json.dumps(clip) + "\n" for clip in clips))
    settings = Settings(str(model_folder), "cpu", 1)
    summary = bulk(str(folder / "m.jsonl"), out, settings, workers=1, shard_size=100)
    assert (summary["captioned"], summary["failed"]) == (4, 4)
    a, address, b, part = rows(out)
    expected = Captioner.load(str(model_folder)).caption([str(folder / "a.wav"), str(folder / "b.wav")])
    assert [a, b] == [caption.to_dict() for caption in expected]
    assert address == {**a, "file": f"file://{folder}/a.wav"}
    assert part == {"id": "part", **b, "file": str(folder / "a.wav")}
    told = [json.loads(line)["error"] for line in (out / "failures.jsonl").read_text().splitlines()]
    for error, words in zip(
        told, ("not audio", "a pipe or a device", "does not exist", "cannot be fetched"), strict=True
    ):
        assert words in error


def test_a_clip_is_decoded_within_limits_as_a_whole_recording_is(tmp_path, monkeypatch):
    from lamb.audio import reader
    from lamb.bulk import workers

    x = (0.1 * np.random.default_rng(0).standard_normal(48000)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", x, 16000, "FLOAT")
    monkeypatch.setattr(reader, "load", None)  # in this process, not in the one that decodes
    for file in (f"{tmp_path}/a.wav", f"file://{tmp_path}/a.wav"):
        clip = workers._source(Input(file, start=1.0, duration=1.0), 16000, Settings().limits)
        heard, _ = soundfile.read(io.BytesIO(clip.read()), dtype="float32")
        np.testing.assert_array_equal(heard, x[16000:32000])


def test_what_a_timeline_lost_is_in_its_row(tmp_path, model_folder):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in "abc":
        soundfile.write(folder / f"{name}.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 48000), 16000)
    content = (folder / "b.wav").read_bytes()
    (folder / "b.wav").write_bytes(content[: len(content) // 2])
    summary = bulk(str(folder), out, Settings(str(model_folder), "cpu", 1, timeline=True), workers=1, shard_size=3)
    assert (summary["captioned"], summary["damaged"], summary["failed"]) == (3, 1, 0)
    assert [len(row.get("damage", [])) for row in rows(out)] == [0, 1, 0]
    assert rows(out)[1]["damage"][0].startswith(f"{folder}/b.wav: truncated: ")


@pytest.mark.slow
def test_ray_with_a_killed_worker(tmp_path, start):
    pytest.importorskip("ray", reason="needs the extra cluster (hundreds of MB)")
    folder, out = make(tmp_path / "in", *(f"slow{k}.wav" for k in range(200)), "fatal.wav"), tmp_path / "out"
    assert finish(start(folder, out, "--ray", "local", "--workers", 2, "--shard-size", 50))[0] == 1
    once(out, folder, failed=1)
