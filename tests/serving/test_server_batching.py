"""Batches of many clients: who goes together, how long one waits, and that one's failure is not another's."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lamb.config import ServeConfig
from lamb.inference.captions import Caption, Segment
from lamb.serving.batching import Batcher
from lamb.serving.service import Service


class Model:
    """Captions are the samples' sums; a negative one cannot be captioned. It remembers its batches."""

    def __init__(self) -> None:
        self.engine = SimpleNamespace(sample_rate=10, runtime=SimpleNamespace(threads=1, device="cpu"))
        self.options = SimpleNamespace(batch_size=4, window=10.0)
        self.batches: list[list[float]] = []

    def caption(self, files: list[Any], **options: Any) -> list[Caption]:
        sums = [float(x.sum()) for x, _ in files]
        self.batches.append(sums)
        time.sleep(0.02)
        if min(sums) < 0:
            raise RuntimeError("negative")
        return [Caption("<array>", text=f"{x:g} {options.get('beams', 0)}") for x in sums]

    def timeline(self, source: Any, window: float | None = None, hop: float | None = None):
        for number in range(3):
            time.sleep(0.02)
            yield Segment(number, number + 1, f"{source[0].sum():g}")


def run(model: Model, work: Callable[[Batcher], Awaitable[Any]], wait: float = 0.01, batches: int = 1) -> Any:
    async def all_of_it() -> Any:
        batcher = Batcher(model, wait, batches=batches)  # type: ignore[arg-type]
        batcher.start()
        try:
            return await work(batcher)
        finally:
            assert batcher.alive
            await batcher.stop()

    return asyncio.run(asyncio.wait_for(all_of_it(), 20))


def sound(value: float, samples: int = 1) -> np.ndarray:
    return np.full(samples, value / samples, np.float32)


def test_requests_go_together_and_get_their_own():
    model = Model()
    texts = run(model, lambda b: asyncio.gather(*(b.caption(sound(k), ()) for k in range(10))))
    assert [caption.text for caption in texts] == [f"{k} 0" for k in range(10)]
    assert [len(batch) for batch in model.batches] == [4, 4, 2]


def test_two_batches_at_a_time():
    class Meeting(Model):
        both = threading.Barrier(2, timeout=10)

        def caption(self, files: list[Any], **options: Any) -> list[Caption]:
            self.both.wait()
            return super().caption(files, **options)

    model = Meeting()
    ask = lambda b: asyncio.gather(*(b.caption(sound(k), ()) for k in range(16)))
    assert [caption.text for caption in run(model, ask, batches=2)] == [f"{k} 0" for k in range(16)]
    assert sorted(map(tuple, model.batches)) == [tuple(range(k, k + 4)) for k in (0, 4, 8, 12)]


@pytest.mark.parametrize(("threads", "device", "batches"), [(1, "cpu", 1), (8, "cpu", 2), (8, "cuda", 1)])
def test_how_many_batches_there_are_at_a_time(threads, device, batches):
    model = Model()
    model.engine.runtime = SimpleNamespace(threads=threads, device=device)
    assert Service(model, "it", ServeConfig()).batcher.batches == batches  # type: ignore[arg-type]
    assert Service(model, "it", ServeConfig(batches=3)).batcher.batches == 3  # type: ignore[arg-type]


def test_options_are_not_mixed_and_the_oldest_goes_first():
    model = Model()
    ask = lambda b: asyncio.gather(*(b.caption(sound(k), (("beams", k % 2),)) for k in range(6)))
    assert [caption.text for caption in run(model, ask)] == [f"{k} {k % 2}" for k in range(6)]
    assert model.batches == [[0, 2, 4], [1, 3, 5]]


def test_long_recordings_make_small_batches():
    """No more windows than clips: 4 of 10 s, at 10 samples a second."""
    model = Model()
    lengths = [100, 500, 100, 100, 200]
    run(model, lambda b: asyncio.gather(*(b.caption(sound(k, n), ()) for k, n in enumerate(lengths))))
    assert [[round(x) for x in batch] for batch in model.batches] == [[0, 2, 3], [1], [4]]


def test_a_lone_request_waits_and_a_full_batch_does_not():
    async def ask(batcher: Batcher) -> tuple[float, float]:
        began = time.monotonic()
        await batcher.caption(sound(1), ())
        alone = time.monotonic() - began
        await asyncio.gather(*(batcher.caption(sound(1), ()) for _ in range(4)))
        return alone, time.monotonic() - began - alone

    alone, together = run(Model(), ask, wait=0.5)
    assert alone >= 0.5
    assert together < 0.5


def test_one_that_fails_fails_alone():
    model = Model()
    ask = lambda b: asyncio.gather(*(b.caption(sound(k), ()) for k in (1, -2, 3)), return_exceptions=True)
    one, two, three = run(model, ask)
    assert (one.text, three.text) == ("1 0", "3 0")
    assert isinstance(two, RuntimeError)
    assert model.batches == [[1, -2, 3], [1], [-2], [3]]


def test_who_has_gone_is_passed_over():
    model = Model()

    async def ask(batcher: Batcher) -> list[Any]:
        asked = [asyncio.ensure_future(batcher.caption(sound(k), ())) for k in range(6)]
        await asyncio.sleep(0.01)  # the first four are with the model
        for k in (0, 4):
            asked[k].cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    results = run(model, ask)
    assert [k for k, one in enumerate(results) if isinstance(one, asyncio.CancelledError)] == [0, 4]
    assert model.batches == [[0, 1, 2, 3], [5]]


def test_streams_and_batches_take_turns():
    model = Model()
    order: list[str] = []

    async def stream(batcher: Batcher) -> None:
        async for segment in batcher.segments(sound(7), None, None):
            order.append(f"segment {segment.start:g}")

    async def clip(batcher: Batcher) -> None:
        await batcher.caption(sound(1), ())
        order.append("clip")

    async def ask(batcher: Batcher) -> None:
        streaming = asyncio.ensure_future(stream(batcher))
        await asyncio.sleep(0.01)
        await asyncio.gather(streaming, clip(batcher))

    run(model, ask, wait=0)
    assert sorted(order) == ["clip", "segment 0", "segment 1", "segment 2"]
    assert order[-1] == "segment 2", "the clip did not wait for the end of the stream"


def test_a_stream_that_fails():
    class Broken(Model):
        def timeline(self, *_: Any, **__: Any):
            yield Segment(0, 1, "a")
            raise RuntimeError("no")

    async def ask(batcher: Batcher) -> list[Segment]:
        return [segment async for segment in batcher.segments(sound(1), None, None)]

    with pytest.raises(RuntimeError, match="no"):
        run(Broken(), ask)
