"""Decoding in processes: the reader's samples and words, limits of time and memory, nothing to leak."""

import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lamb.audio import reader, sandbox
from lamb.audio.errors import AudioError, AudioWarning, Damage
from lamb.audio.sandbox import Decoding
from lamb.config import DecodeLimits

RATE = 16_000
FILES = sorted((Path(__file__).parents[2] / "samples").glob("*.flac"))


@pytest.fixture
def fresh(monkeypatch):
    """No server and no idle decoder of an earlier test."""
    monkeypatch.setattr(sandbox, "_current", None)
    monkeypatch.setattr(sandbox, "_idle", [])


def both(source, **options):
    """The windows by the sandbox and by the reader."""
    return [list(module.windows(source, RATE, 2.0, 1.0, **options)) for module in (sandbox, reader)]


def same(found, expected):
    assert [start for start, _ in found] == [start for start, _ in expected]
    for (_, x), (_, y) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.flags.writeable


def children(pid: int) -> list[int]:
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_windows_are_the_readers():
    content = FILES[0].read_bytes()
    with open(FILES[0], "rb") as file:
        file.seek(99)
        for source in (FILES[0], content, file, io.BytesIO(content), (np.ones(9000), 8000)):
            same(*both(source))


def test_a_pipe_is_read_as_it_comes():
    content = FILES[0].read_bytes()
    out, into = os.pipe()
    with open(out, "rb") as pipe, open(into, "wb") as feed:
        threading.Thread(target=lambda: (feed.write(content), feed.close())).start()
        same(list(sandbox.windows(pipe, RATE, 2.0, 1.0, Damage())), list(reader.windows(FILES[0], RATE, 2.0, 1.0)))


def test_words_are_the_readers(tmp_path):
    for source in (b"", b"no sound" * 100, tmp_path, tmp_path / "none.wav"):
        said = []
        for module in (sandbox, reader):
            with pytest.raises(AudioError) as told:
                list(module.windows(source, RATE, 1.0, 1.0))
            said.append(str(told.value))
        assert said[0] == said[1]
    with pytest.raises(TypeError):
        list(sandbox.windows(3, RATE, 1.0, 1.0))


def test_damage_is_noted_as_by_the_reader(tmp_path):
    path = tmp_path / "cut.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 5 * RATE), RATE)
    path.write_bytes(path.read_bytes()[: 3 * 2 * RATE])
    content = bytearray(FILES[0].read_bytes())
    for share in (0.3, 0.6):
        at = round(share * len(content))
        content[at : at + 1000] = bytes(1000)
    for source in (path, bytes(content)):
        found = []
        for module in (sandbox, reader):
            damage = Damage()
            list(module.windows(source, RATE, 0.5, 0.5, damage))
            found.append(damage)
        assert found[0] == found[1]
        assert found[0].truncated if source is path else found[0].spans


def test_a_repair_is_told_with_the_files_name(tmp_path):
    x = np.zeros(RATE, np.float32)
    x[500] = np.nan
    soundfile.write(tmp_path / "a.wav", x, RATE, "FLOAT")
    with pytest.warns(AudioWarning, match=rf"{tmp_path / 'a.wav'}: samples near 0.0 s are NaN"):
        list(sandbox.windows(tmp_path / "a.wav", RATE, 1.0, 1.0))


def test_a_decoder_takes_file_after_file(fresh):
    for _ in range(3):
        list(sandbox.windows(FILES[0], RATE, 1.0, 1.0))
    with pytest.raises(AudioError):
        list(sandbox.windows(b"no sound", RATE, 1.0, 1.0))
    (decoder,) = sandbox._idle
    assert decoder.uses == 4
    next(given := sandbox.windows(FILES[0], RATE, 0.1, 0.1))
    given.close()
    assert not sandbox._idle, "one that is left in the middle is ended"


def test_a_long_recording_waits_for_its_taker(tmp_path, fresh):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(RATE * 600, np.int16), RATE)
    first = sandbox.windows(path, RATE, 10.0, 10.0)
    next(first)
    assert sum(len(x) for _, x in sandbox.windows(FILES[0], RATE, 1.0, 1.0)), "others are decoded in the meantime"
    assert sum(len(x) for _, x in first) == 590 * RATE


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_decoder_that_dies_is_an_error_of_its_file(fresh, number):
    with Decoding(FILES[0], RATE, 0.1, 0.1) as decoding:
        decoding.info()
        ((monitor,),) = [children(sandbox._current.process.pid)]
        os.kill(children(monitor)[0], number)
        with pytest.raises(AudioError, match="so damaged that its decoder died"):
            list(decoding.windows())
    assert len(list(sandbox.windows(FILES[0], RATE, 1.0, 1.0)))


def test_a_file_that_takes_too_long(tmp_path, fresh):
    path = tmp_path / "hours.wav"
    soundfile.write(path, np.zeros(9), 44_100, format="RF64")
    content = bytearray(path.read_bytes())
    struct.pack_into("<Q", content, 28, 2**31)  # bytes of sound, all of them zero and none of them on the disk
    path.write_bytes(content)
    os.truncate(path, 2**31 + 200)
    limits = DecodeLimits(seconds=0.5, seconds_per_mb=0.0)
    with pytest.raises(AudioError, match=r"hours.wav: takes longer to decode than is allowed"):
        list(sandbox.windows(path, RATE, 10.0, 10.0, limits=limits))
    assert len(list(sandbox.windows(FILES[0], RATE, 1.0, 1.0, limits=limits)))


def test_a_file_that_takes_too_much_memory(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(RATE * 600, np.int16), RATE)
    with pytest.raises(AudioError, match="needs more memory"):
        list(sandbox.windows(path, RATE, 600.0, 600.0, limits=DecodeLimits(memory=240)))


def test_bounds_of_what_is_loaded():
    for options, words in (
        ({"max_duration": 0.5}, "longer than the 0.5 s"),
        ({"max_duration": 9.0, "max_rate": 8000}, "more than the 8000 allowed"),
        ({"max_duration": 9.0, "max_channels": 0}, "1 channels, more than the 0"),
    ):
        with Decoding(FILES[0], RATE) as decoding, pytest.raises(AudioError, match=words):
            decoding.load(**options)
    with Decoding(FILES[0], RATE, called="name") as decoding:
        np.testing.assert_array_equal(decoding.load(60.0), reader.load(FILES[0], RATE))


def test_a_stretch_is_the_readers(tmp_path, fresh):
    soundfile.write(tmp_path / "high.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 30 * 22_050), 22_050)
    for source in (FILES[0], FILES[0].read_bytes(), tmp_path / "high.wav"):
        for start, duration in ((0.0, None), (1.5, None), (0.7, 2.0), (0.0, 0.05), (2.0, 999.0)):
            found = sandbox.load(source, RATE, start, duration)
            np.testing.assert_array_equal(found, reader.load(source, RATE, start, duration))
    assert sandbox._idle[0].uses == 15
    array = (np.ones(9000), 8000)
    np.testing.assert_array_equal(sandbox.load(array, RATE, 0.5), reader.load(array, RATE, 0.5))
    with pytest.raises(AudioError, match=rf"{FILES[0].name}: ends before 999 s, where the window begins"):
        sandbox.load(FILES[0], RATE, 999.0)
    with pytest.raises(ValueError, match="start must be >= 0"):
        sandbox.load(FILES[0], RATE, -1.0)
    soundfile.write(tmp_path / "long.wav", np.zeros(RATE * 600, np.int16), RATE)
    with pytest.raises(AudioError, match="needs more memory"):
        sandbox.load(tmp_path / "long.wav", RATE, 1.0, limits=DecodeLimits(memory=240))


def test_a_wait_can_be_ended_from_another_thread(fresh):
    with Decoding(FILES[0], RATE, 0.1, 0.1) as decoding:
        decoding.info()
        monitor = children(sandbox._current.process.pid)[0]
        os.kill(pid := children(monitor)[0], signal.SIGSTOP)
        threading.Timer(0.2, decoding.kill).start()
        with pytest.raises(AudioError):
            list(decoding.windows())
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_decoder_that_has_another_file_is_not_ended(fresh):
    with Decoding(FILES[0], RATE) as first:
        first.load(60.0)
    with Decoding(FILES[0], RATE) as second:
        assert second._decoder is first._decoder
        first.kill()
        np.testing.assert_array_equal(second.load(60.0), reader.load(FILES[0], RATE))


def test_no_server_is_told(monkeypatch, fresh):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(sandbox.SandboxError, match="does not start; try: "):
        list(sandbox.windows(FILES[0], RATE, 1.0, 1.0))
    monkeypatch.setattr(sys, "executable", "/nothing")
    with pytest.raises(sandbox.SandboxError, match="no decoding process can be started"):
        list(sandbox.windows(FILES[0], RATE, 1.0, 1.0))


@pytest.mark.parametrize("missing", ["monitor", "decoder"])
def test_a_system_that_has_no_process_to_give_is_told_and_asked_again(monkeypatch, tmp_path, fresh, missing):
    code = f"""
import os, pathlib, socket
from lamb.audio import sandbox
fork, server, failed = os.fork, os.getpid(), pathlib.Path({str(tmp_path / "failed")!r})
def few():
    if not failed.exists() and (os.getpid() == server) == ({missing!r} == "monitor"):
        failed.touch()
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = few
sandbox.serve(socket.socket(fileno=0))
"""
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: popen([sys.executable, "-c", code], **options))
    with pytest.raises(sandbox.SandboxError, match=r"started \(Resource temporarily unavailable\); end other programs"):
        list(sandbox.windows(FILES[0], RATE, 1.0, 1.0))
    assert len(list(sandbox.windows(FILES[0], RATE, 1.0, 1.0)))


def test_a_server_that_died_is_replaced(fresh):
    sandbox.start(wait=True)
    sandbox._current.process.kill()
    sandbox._current.process.wait()
    assert len(list(sandbox.windows(FILES[0], RATE, 1.0, 1.0)))


def test_a_decoder_knows_no_secret_and_writes_no_file(fresh, monkeypatch):
    monkeypatch.setenv("LAMB_API_KEYS", "a-key-of-16-characters")
    with Decoding(FILES[0], RATE, 0.1, 0.1) as decoding:
        decoding.info()
        monitor = children(sandbox._current.process.pid)[0]
        proc = Path(f"/proc/{children(monitor)[0]}")
        assert b"a-key" not in (proc / "environ").read_bytes()
        limits = {line[:26].strip(): line[26:].split()[0] for line in (proc / "limits").read_text().splitlines()}
        assert limits["Max file size"] == limits["Max core file size"] == "0"
        assert limits["Max address space"] == "1024000000"


def test_decoders_end_with_the_process_that_uses_them(tmp_path):
    code = f"""
import sys
from lamb.audio import sandbox
given = sandbox.windows({str(FILES[0])!r}, 16000, 0.1, 0.1)
next(given)
print(sandbox._current.process.pid, flush=True)
sys.stdin.read()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as process:
        server = int(process.stdout.readline())
        (monitor,) = children(server)
        pids = [server, monitor, *children(monitor)]
        assert len(pids) == 3
        process.kill()
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids))


def test_a_system_that_cannot_fork_decodes_in_this_process():
    """As on Windows, which also has no `resource` and no `fcntl`."""
    code = f"""
import os, sys
del os.fork
sys.modules["resource"] = sys.modules["fcntl"] = None
from lamb.audio import sandbox
sandbox.start(wait=True)
[(start, x)] = sandbox.windows({str(FILES[0])!r}, 16000, 60, 60)
assert start == 0 and abs(x).max() > 0
try:
    sandbox.Decoding({str(FILES[0])!r}, 16000)
except sandbox.SandboxError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no decoding processes" in done.stdout


def test_limits_of_the_shell_that_are_lower_stay(tmp_path):
    """A login node may allow less processor time than a decoder: a sound in order is decoded within that."""
    command = f"ulimit -t 100; exec {sys.executable} -m lamb caption {FILES[0]}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, "")
