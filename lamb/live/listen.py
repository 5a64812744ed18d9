"""Continuous listening: one thread reads the stream, and the caller's thread finds events. Gaps are reported. [O]

stream -> reader (reconnects after a loss) -> a queue of at most `ListenConfig.held` seconds -> Ear -> events
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from ..config import DecodeConfig, ListenConfig
from ..errors import LambError, PackageError
from ..inference.engine import Engine
from .events import Ear, Event
from .sources import Blocks, SourceError, StreamError

ENDED = "the stream has ended"
State = Literal["online", "offline"]


class Listener:
    """An iterator over the events of a stream; `stop` ends it from another thread or a signal handler.

    Args:
        open_stream: returns the blocks of samples (n,) at the rate of the engine; called again after a loss.
        say: called with a sentence about each problem.
        changed: called when the stream is lost or found.
        tries: failures to connect in succession after which the last StreamError is raised; None: no limit.
        live: whether sound is dropped if it waits too long; otherwise the stream waits.
    """

    def __init__(
        self,
        engine: Engine,
        options: DecodeConfig,
        open_stream: Callable[[], Blocks],
        config: ListenConfig,
        *,
        say: Callable[[str], None] = lambda message: None,
        changed: Callable[[State], None] = lambda state: None,
        tries: int | None = None,
        live: bool = True,
    ):
        self.ear, self.rate, self.config = Ear(engine, options, config), engine.sample_rate, config
        self.open_stream, self.say, self.changed, self.tries, self.live = open_stream, say, changed, tries, live
        self.error: LambError | None = None
        self.ended = threading.Event()
        self._there = threading.Condition()
        self._blocks: deque[np.ndarray | float] = deque()  # samples, or seconds that are missing between them
        self._held = 0.0  # seconds of sound in it
        self._over = False

    def stop(self) -> None:
        """End soon; the events up to now are still returned."""
        self.ended.set()

    def __iter__(self) -> Iterator[Event]:
        reader = threading.Thread(target=self._read, name="lamb-stream", daemon=True)
        reader.start()
        while (blocks := self._take()) is not None:
            samples: list[np.ndarray] = []
            for block in blocks:
                if isinstance(block, float):
                    yield from self._heard(samples)
                    yield from self.ear.skip(block)
                    samples = []
                else:
                    samples.append(block)
            yield from self._heard(samples)
        yield from self.ear.finish()
        if self.error is not None:
            raise self.error

    def _heard(self, samples: list[np.ndarray]) -> list[Event]:
        return self.ear.push(np.concatenate(samples)) if samples else []

    def _take(self) -> list[np.ndarray | float] | None:
        """All waiting blocks; None at the end."""
        with self._there:
            while not (self._blocks or self._over or self.ended.is_set()):
                self._there.wait(0.2)
            blocks, self._held = list(self._blocks), 0.0
            self._blocks.clear()
            self._there.notify_all()
        return blocks or None

    def _put(self, block: np.ndarray) -> None:
        length, dropped = len(block) / self.rate, 0.0
        with self._there:
            while not self.live and self._held >= self.config.held and not self.ended.is_set():
                self._there.wait(0.2)
            if self.live and self._held and self._held + length > self.config.held:  # the model is too slow
                dropped = sum(b if isinstance(b, float) else len(b) / self.rate for b in self._blocks)
                self._blocks.clear()
                self._blocks.append(dropped)
                self._held = 0.0
            self._blocks.append(block)
            self._held += length
            self._there.notify_all()
        if dropped:
            self.say(f"falls behind: {dropped:.1f} s were not heard; use a faster machine or a smaller model")

    def _read(self) -> None:
        """Read the stream, and reconnect whenever it is lost."""
        failures, gone = 0, None  # failures in succession; the time when the stream was lost
        while not self.ended.is_set():
            there = False
            try:
                for block in self.open_stream():
                    if not there:
                        there, failures = True, 0
                        self.changed("online")
                        if gone is not None:
                            self._miss(time.monotonic() - gone)
                    self._put(block)
                    if self.ended.is_set():
                        break
                lost: LambError = StreamError(ENDED)
            except LambError as error:
                lost = error
            except Exception as error:  # a bug of ours or of a library must not leave the caller waiting
                lost = SourceError(f"the stream cannot be read any more: {type(error).__name__}")
            if there:
                self._miss(0.0)  # ends the event before the gap
                gone = time.monotonic()
                self.changed("offline")
            failures += 1
            if isinstance(lost, SourceError | PackageError) or (self.tries is not None and failures > self.tries):
                self.error = None if lost.problem == ENDED else lost
                break
            if not self.ended.is_set():
                wait = min(self.config.last_wait, self.config.first_wait * 2 ** (failures - 1))
                self.say(f"{lost.problem}; trying again in {wait:g} s")
                self.ended.wait(wait)
        with self._there:
            self._over = True
            self._there.notify_all()

    def _miss(self, seconds: float) -> None:
        """Note that some seconds of the stream are missing here."""
        with self._there:
            self._blocks.append(seconds)
            self._there.notify_all()
