"""Decoding in processes: the reader's samples and words, a limit of memory, nothing to lose, nothing to leak."""

import asyncio
import fcntl
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from served import FILES

from lamb.audio import reader as audio
from lamb.config import ServeConfig
from lamb.serving import decoding
from lamb.serving.decoding import Decoders

RATE = 16_000


def decode(content: bytes, **settings) -> np.ndarray:
    """By a process of its own."""

    async def run() -> np.ndarray:
        decoders = Decoders(RATE, ServeConfig(**{"decoders": 1, **settings}))
        await decoders.start()
        try:
            return await decoders.decode(io.BytesIO(content), "name")
        finally:
            await decoders.stop()

    return asyncio.run(run())


def test_samples_are_the_readers():
    file = FILES[0]
    np.testing.assert_array_equal(decode(file.read_bytes()), audio.load(file, RATE))


def test_words_are_the_readers():
    with pytest.raises(audio.AudioError) as told:
        decode(b"")
    assert str(told.value) == "name: empty (0 bytes); copy or download it again"


def test_a_file_that_takes_too_much_memory(tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(RATE * 1500, np.int16), RATE)
    with pytest.raises(audio.AudioError, match="name: needs more than 250 MB to decode"):
        decode(path.read_bytes(), decode_memory=250, max_duration=4000)


def test_what_our_code_does_not_expect(monkeypatch):
    def fail(_content: bytes) -> None:
        raise IndexError("contents of the file")

    monkeypatch.setattr(audio, "probe", fail)
    kind, said = decoding.answer(b"", RATE, ServeConfig())
    assert kind == decoding.BROKEN
    assert json.loads(said)["error"].startswith("IndexError test_server_decoding.py:")
    assert b"contents" not in said


def test_a_process_that_cannot_start(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(OSError, match="a decoding process could not be started"):
        decode(b"")


def test_a_worker_that_cannot_be_replaced(monkeypatch):
    """It is tried again until it can; in the meantime the service says that it is not ready."""

    async def run() -> None:
        decoders = Decoders(RATE, ServeConfig(decoders=1))
        await decoders.start()
        with monkeypatch.context() as broken:
            broken.setattr(sys, "executable", "/bin/false")
            os.kill(decoders.pids[0], 9)
            with pytest.raises(audio.AudioError, match="its decoder died"):
                await decoders.decode(io.BytesIO(b"abc"))
            assert decoders.alive, "another one is on its way"
            while decoders.alive:
                await asyncio.sleep(0.01)
        assert len(await decoders.decode(io.BytesIO(FILES[0].read_bytes())))
        assert decoders.alive
        await decoders.stop()

    asyncio.run(asyncio.wait_for(run(), 120))


def test_a_decoder_knows_no_secret_and_writes_no_file(monkeypatch):
    monkeypatch.setenv("LAMB_API_KEYS", "a-key-of-16-characters")

    async def run() -> None:
        decoders = Decoders(RATE, ServeConfig(decoders=1))
        await decoders.start()
        (pid,) = decoders.pids
        proc = Path(f"/proc/{pid}")
        assert b"a-key" not in (proc / "environ").read_bytes()
        limits = {line[:26].strip(): line[26:].split()[0] for line in (proc / "limits").read_text().splitlines()}
        assert limits["Max file size"] == limits["Max core file size"] == "0"
        assert limits["Max address space"] == "1024000000"
        await decoders.stop()
        assert not proc.exists()

    asyncio.run(run())


@pytest.mark.skipif(not hasattr(fcntl, "F_GETPIPE_SZ"), reason="Linux only")
def test_pipes_hold_a_clip():
    """Else the server wakes up for every 64 kB, in and out."""

    async def run() -> None:
        decoders = Decoders(RATE, ServeConfig(decoders=1))
        await decoders.start()
        (process,) = decoders._living
        for number in (0, 1):
            pipe = process._transport.get_pipe_transport(number).get_extra_info("pipe")  # type: ignore[attr-defined]
            size = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
            assert size == decoding.CHUNK
        await decoders.stop()

    asyncio.run(run())


def test_a_decoder_ends_with_its_server():
    command = [sys.executable, "-m", "lamb.serving.decoding", "{}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert len(process.stdout.read(9)) == 9, "ready"
        process.send_signal(15)
        content = FILES[0].read_bytes()
        process.stdin.write(len(content).to_bytes(8, "little") + content)
        process.stdin.close()
        assert len(process.stdout.read()) == 9 + 4 * len(audio.load(FILES[0], RATE)), "SIGTERM is for the server"
        assert process.wait(20) == 0


def test_no_process_is_lost_when_clients_leave():
    async def run() -> None:
        reasons: list[str] = []
        decoders = Decoders(RATE, ServeConfig(decoders=2), reasons.append)
        await decoders.start()
        content = FILES[0].read_bytes()
        for wait in (0.0, 0.01):
            asked = [asyncio.ensure_future(decoders.decode(io.BytesIO(content))) for _ in range(3)]
            await asyncio.sleep(wait)
            for one in asked[::2]:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        results = await asyncio.gather(*(decoders.decode(io.BytesIO(content)) for _ in range(4)))
        assert len({len(x) for x in results}) == 1
        while len(decoders.pids) < 2 or decoders._idle.qsize() < 2:
            await asyncio.sleep(0.01)
        assert set(reasons) <= {"CancelledError"}
        pids = decoders.pids
        await decoders.stop()
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    asyncio.run(asyncio.wait_for(run(), 120))
