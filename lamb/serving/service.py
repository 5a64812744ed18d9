"""From an upload to a caption: a place in the queue, the file, its samples, and a turn of the model.

Work for a client that has left is stopped.
"""

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from lamb.audio.sandbox import SandboxError
from lamb.config import ServeConfig
from lamb.inference.captioner import Captioner
from lamb.inference.captions import Caption

from .batching import Batcher, Options
from .decoding import Decoders
from .gate import ENVELOPE, Metrics

T = TypeVar("T")
IN_MEMORY = 2**20  # bytes of an upload that are kept in memory

log = logging.getLogger("lamb.serve")


class Gone(Exception):
    """The client did not wait for the answer."""


class Service:
    """A captioner with its decoders and batches, which turns uploads into captions."""

    def __init__(self, captioner: Captioner, model: str, settings: ServeConfig, batch_size: int | None = None):
        self.captioner, self.model, self.settings = captioner, model, settings
        self.metrics = Metrics()
        runtime = captioner.engine.runtime
        most = min(2, runtime.threads) if runtime.device == "cpu" else 1
        batches = settings.batches or most
        self.batcher = Batcher(captioner, settings.batch_wait, batch_size, batches, self.metrics.batch.observe)
        on_death = lambda reason: self.metrics.deaths.labels(reason).inc()
        self.decoders = Decoders(self.batcher.sample_rate, settings, on_death)
        self.taken = 0  # requests in work or waiting
        # places for decoded sounds: those of the current batches and of the next one
        self._room = asyncio.Semaphore((batches + 1) * self.batcher.size)

    @asynccontextmanager
    async def running(self, _app: FastAPI) -> AsyncIterator[None]:
        """Run the decoders and batches within the block."""
        await self.decoders.start()
        self.batcher.start()
        try:
            yield
        finally:
            await self.batcher.stop()
            await self.decoders.stop()

    @property
    def ready(self) -> bool:
        """Whether requests can be processed."""
        return self.batcher.alive and self.decoders.alive

    async def take(self) -> AsyncIterator[AsyncExitStack]:
        """Hold a place in the queue until the answer has been sent. Raises HTTPException 503."""
        if self.taken >= self.settings.queue or not self.ready:
            problem = "as many requests as this service takes at a time" if self.ready else "not able to work"
            raise HTTPException(503, f"{problem}; try again later", {"Retry-After": "1"})
        self.taken += 1
        self.metrics.taken.inc()
        try:
            async with AsyncExitStack() as held:
                yield held
        finally:
            self.taken -= 1
            self.metrics.taken.dec()

    async def receive(self, request: Request, held: AsyncExitStack) -> tuple[BinaryIO, str, dict[str, str]]:
        """The upload as an unnamed file (at most 1 MB of it in memory), its name, and the other fields of its form."""
        seconds = self.settings.upload_timeout
        try:
            async with asyncio.timeout(seconds):
                if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
                    given = request.form(max_files=1, max_fields=32, max_part_size=ENVELOPE)
                    form = await held.enter_async_context(given)
                    upload = form.get("file")
                    if not isinstance(upload, UploadFile):
                        raise HTTPException(422, "no sound; send it as the form's field `file`, with a file name")
                    name = (upload.filename or "-")[:255].encode("utf-8", "replace").decode()
                    return upload.file, name, {k: v for k, v in form.items() if isinstance(v, str)}
                file = cast(BinaryIO, held.enter_context(tempfile.SpooledTemporaryFile(IN_MEMORY)))  # noqa: SIM115
                async for chunk in request.stream():
                    file.write(chunk)
                return file, "-", {}
        except TimeoutError:
            raise HTTPException(408, f"not received in full within {seconds:g} s") from None
        except ClientDisconnect:
            raise Gone from None
        except UnicodeError:  # from a charset such as `undefined`, which Starlette does not expect
            raise HTTPException(400, "a form in a charset that cannot be read; use UTF-8") from None

    async def decode(self, file: BinaryIO, name: str, request: Request, held: AsyncExitStack) -> np.ndarray:
        """The samples (T,) of `file`, decoded as soon as there is room for them. Raises AudioError."""
        await held.enter_async_context(self._room)
        try:
            sound = await self.decoders.decode(file, name)
        except SandboxError as error:
            log.error("no decoder", extra={"fields": {"error": str(error)}})
            raise HTTPException(503, "not able to work; try again later", {"Retry-After": "1"}) from None
        seconds = len(sound) / self.batcher.sample_rate
        self.metrics.audio.inc(seconds)
        request.scope["log"]["audio_seconds"] = round(seconds, 3)
        return sound

    async def caption(
        self, file: BinaryIO, name: str, options: Options, request: Request, held: AsyncExitStack
    ) -> Caption:
        """The caption of `file`, unless its client leaves. Raises AudioError and Gone."""

        async def work() -> Caption:
            return await self.batcher.caption(await self.decode(file, name, request, held), options)

        result = replace(await while_there(request, work()), file=name)
        if result.error is not None:  # the decoded sound may be too short
            raise HTTPException(422, f"{name}: {result.error}")
        return result


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client leaves. Raises Gone."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leaves())
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise Gone
    finally:
        leaving.cancel()
        doing.cancel()
        await asyncio.wait({doing})
        for task in (doing, leaving):  # asyncio would log an error that nobody retrieves, with the name of the file
            if task.done() and not task.cancelled():
                task.exception()
