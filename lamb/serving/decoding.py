"""Uploads are decoded in sandboxed processes, a limited number at a time; a file that kills its decoder is refused."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np

from ..audio import sandbox
from ..audio.errors import AudioError
from ..config import DecodeLimits, ServeConfig

PAUSE = 1.0  # seconds after a failed start during which the service counts as unable to decode


class Decoders:
    """Decodes at most `settings.decoders` files at a time, to samples at `sample_rate` Hz."""

    def __init__(self, sample_rate: int, settings: ServeConfig, on_death: Callable[[str], object] = lambda _: None):
        self.sample_rate, self.settings, self.on_death = sample_rate, settings, on_death
        self._limits = DecodeLimits(settings.decode_timeout, 0.0, settings.decode_memory)
        self._free = asyncio.Semaphore(settings.decoders)
        self._threads = ThreadPoolExecutor(settings.decoders, thread_name_prefix="lamb-decode")
        self._failed = -PAUSE

    async def start(self) -> None:
        """Wait until files can be decoded. Raises SandboxError."""
        await asyncio.to_thread(sandbox.start, wait=True)

    async def stop(self) -> None:
        """Stop as soon as the current files have been decoded or given up."""
        await asyncio.to_thread(self._threads.shutdown)

    @property
    def alive(self) -> bool:
        """Whether files can be decoded."""
        return time.monotonic() > self._failed + PAUSE

    async def decode(self, file: BinaryIO, name: str = "<bytes>") -> np.ndarray:
        """Samples (T,), mono float32, of all of `file`. Raises AudioError, also for a file that kills its decoder."""
        settings = self.settings

        def load() -> np.ndarray:
            with decoding:
                return decoding.load(settings.max_duration, settings.max_rate, settings.max_channels)

        async with self._free:
            decoding = sandbox.Decoding(file, self.sample_rate, limits=self._limits, called=name)
            try:
                async with asyncio.timeout(settings.decode_timeout):
                    return await asyncio.get_running_loop().run_in_executor(self._threads, load)
            except TimeoutError:
                decoding.kill()
                self.on_death("timeout")
                problem = f"not decoded within {settings.decode_timeout:g} s"
                raise AudioError(name, problem, "give a shorter or simpler file") from None
            except asyncio.CancelledError:
                decoding.kill()
                self.on_death("client gone")
                raise
            except AudioError as error:
                if error.problem == sandbox.DEATH:
                    self.on_death("died")
                raise
            except sandbox.SandboxError:
                self._failed = time.monotonic()
                raise
