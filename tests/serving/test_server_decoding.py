"""The service's decoders: the sandbox's samples and words, so many files at a time, and what ends them."""

import asyncio
import io
import sys
import threading

import numpy as np
import pytest
from served import FILES

from lamb.audio import reader as audio
from lamb.audio import sandbox
from lamb.config import ServeConfig
from lamb.serving import decoding
from lamb.serving.decoding import Decoders

RATE = 16_000


def decode(content: bytes, **settings) -> np.ndarray:
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


def test_bounds_are_the_services():
    for settings in ({"max_duration": 0.5}, {"max_rate": 8000}):
        with pytest.raises(audio.AudioError, match="allowed here"):
            decode(FILES[0].read_bytes(), **settings)


def test_no_decoder_can_be_started(monkeypatch):
    """The service says that it is not ready, and tries again a moment later."""
    monkeypatch.setattr(decoding, "PAUSE", 0.2)

    async def run() -> None:
        decoders = Decoders(RATE, ServeConfig(decoders=1))
        with monkeypatch.context() as broken:
            broken.setattr(sys, "executable", "/bin/false")
            broken.setattr(sandbox, "_current", None)
            broken.setattr(sandbox, "_idle", [])
            with pytest.raises(OSError, match="does not start"):
                await decoders.start()
            with pytest.raises(OSError, match="does not start"):
                await decoders.decode(io.BytesIO(b"abc"))
            assert not decoders.alive
        while not decoders.alive:
            await asyncio.sleep(0.01)
        assert len(await decoders.decode(io.BytesIO(FILES[0].read_bytes())))
        await decoders.stop()

    asyncio.run(asyncio.wait_for(run(), 120))


def test_no_place_is_lost_when_clients_leave():
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
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(found[1], np.ndarray), "whose client stays"
        results = await asyncio.gather(*(decoders.decode(io.BytesIO(content)) for _ in range(4)))
        assert len({len(x) for x in results}) == 1
        assert set(reasons) <= {"client gone"}
        assert decoders._free._value == 2
        await decoders.stop()

    asyncio.run(asyncio.wait_for(run(), 120))


def test_a_file_that_is_decoded_for_too_long(monkeypatch):
    def never(*_: object) -> None:
        held.wait(60)
        raise audio.AudioError("name", sandbox.DEATH, "")

    held = threading.Event()
    monkeypatch.setattr(sandbox.Decoding, "info", never)
    monkeypatch.setattr(sandbox.Decoding, "kill", lambda _: held.set())
    with pytest.raises(audio.AudioError, match=r"name: not decoded within 0\.2 s"):
        decode(FILES[0].read_bytes(), decode_timeout=0.2)
    assert held.is_set()
