"""One model for many clients: requests with the same options are captioned together, with a thread for each batch.

While the model works, requests gather; a single one waits `wait` seconds for others. Recordings that are streamed
segment by segment take turns with the batches. Everything but the work of the model happens in the event loop, so
nothing here needs a lock. A request whose task is cancelled, because its client is gone, is skipped.

On a CPU two batches with one core each are faster than one batch on two cores. The steps of a small model are so short
that cores which share them wait for each other, even longer when a client or a decoder uses one of them. [O]
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamb.inference.captioner import Captioner
from lamb.inference.captions import Caption, Segment

Options = tuple[tuple[str, Any], ...]  # keywords of Captioner.stream


@dataclass(eq=False)
class _Job:
    sound: np.ndarray
    options: Options
    deadline: float  # until when it waits for others, in the time of the event loop
    result: asyncio.Future[Caption]


class Batcher:
    """Shares `captioner` among tasks: `batches` at a time, each of at most `size` clips and as many windows."""

    def __init__(
        self,
        captioner: Captioner,
        wait: float,
        size: int | None = None,
        batches: int = 1,
        on_batch: Callable[[int], object] = lambda _: None,
    ):
        self.captioner, self.wait, self.batches, self.on_batch = captioner, wait, batches, on_batch
        self.size = size or captioner.options.batch_size
        self.sample_rate = captioner.engine.sample_rate
        self._most = self.size * captioner.options.window * self.sample_rate  # samples in a batch of several
        self._jobs: list[_Job] = []
        self._came = asyncio.Event()
        self._threads = ThreadPoolExecutor(batches, thread_name_prefix="lamb-model")
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start work in the running event loop."""
        self._tasks = [asyncio.ensure_future(self._run()) for _ in range(self.batches)]

    async def stop(self) -> None:
        """Stop as soon as the model has finished its current batches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.to_thread(self._threads.shutdown)

    @property
    def alive(self) -> bool:
        """Whether requests are being processed."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    async def caption(self, sound: np.ndarray, options: Options) -> Caption:
        """The caption of samples (T,) at the rate of the encoder; options of `Captioner.stream`."""
        loop = asyncio.get_running_loop()
        job = _Job(sound, options, loop.time() + self.wait, loop.create_future())
        self._jobs.append(job)
        self._came.set()
        return await job.result

    async def segments(self, sound: np.ndarray, window: float | None, hop: float | None) -> AsyncIterator[Segment]:
        """The timeline of samples (T,), each segment as soon as it is final."""
        loop = asyncio.get_running_loop()
        source = (sound, self.sample_rate)
        found = self.captioner.timeline(source, window=window, hop=hop)
        while (segment := await loop.run_in_executor(self._threads, next, found, None)) is not None:
            yield segment

    async def _run(self) -> None:
        while True:
            batch = await self._next()
            self.on_batch(len(batch))
            for job, outcome in zip(batch, await self._captions(batch), strict=True):
                if job.result.done():  # its client left in the meantime
                    continue
                if isinstance(outcome, Exception):
                    job.result.set_exception(outcome)
                else:
                    job.result.set_result(outcome)

    async def _next(self) -> list[_Job]:
        """The jobs that fit to the oldest one, once they fill a batch or it has waited long enough."""
        loop = asyncio.get_running_loop()
        while True:
            self._came.clear()
            self._jobs = [job for job in self._jobs if not job.result.done()]
            left = self._jobs[0].deadline - loop.time() if self._jobs else None
            batch = self._fitting()
            if batch and (len(batch) == self.size or (left is not None and left <= 0)):
                self._jobs = [job for job in self._jobs if job not in batch]
                return batch
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._came.wait(), left)

    def _fitting(self) -> list[_Job]:
        batch: list[_Job] = []
        held = 0
        for job in self._jobs:
            fits = not batch or held + len(job.sound) <= self._most
            if fits and len(batch) < self.size and job.options == self._jobs[0].options:
                batch.append(job)
                held += len(job.sound)
        return batch

    async def _captions(self, batch: list[_Job]) -> list[Caption | Exception]:
        sounds = [(job.sound, self.sample_rate) for job in batch]
        options = {**dict(batch[0].options), "batch_size": self.size}
        work = lambda: self.captioner.caption(sounds, **options)
        try:
            return list(await asyncio.get_running_loop().run_in_executor(self._threads, work))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [(await self._captions([job]))[0] for job in batch]  # one of them must not make the others fail
