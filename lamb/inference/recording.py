"""From a recording to the tokens that its caption is written from: the one path, whatever the tokens are for. [O]

    source -> windows -> those with sound -> encoder -> summary of at most KEPT windows -> h_a (N_a, D)

Captions, `lamb gap`, the page and whatever else needs the tokens of a recording take them from `hear`. A timeline,
which captions while it listens, is built from the same parts.

Letters: T samples, N_a encoder tokens, D encoder width.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from threading import Semaphore
from typing import TYPE_CHECKING

import numpy as np

from ..audio import reader as audio
from ..audio import sandbox
from ..config import DecodeConfig, DecodeLimits
from ..data.manifest import Clip

if TYPE_CHECKING:
    from .engine import Engine

AHEAD = 4  # windows of a recording that are decoded before their turn
GROUP = 4  # batches of recordings, or of windows, that are sorted by length together
HELD = 256  # recordings in such a group, unless a batch is larger
OPEN = 16  # long recordings that are open at once: the decoder of each is two processes
KEPT = 6  # windows that stand for a long recording

Source = audio.Source | Clip
"""What can be heard: what `lamb.audio.reader` reads, or a clip of a manifest, which may be a part of a recording."""
Windows = Iterator[tuple[float, np.ndarray]]
"""Where a window begins, in seconds, and its samples (T,)."""
Opened = Future[tuple["Recording", Windows]]


@dataclass
class Recording:
    """A recording as the model hears it; `error` says why there is nothing to hear."""

    source: Source
    duration: float = 0.0  # seconds
    h_a: np.ndarray | None = None  # (N_a, D) encoder tokens; None where there is no sound
    error: audio.AudioError | None = None
    damage: audio.Damage | None = None  # what was passed over; None: nothing would have been

    @property
    def name(self) -> str:
        """What results and messages call it."""
        return name_of(self.source)

    @property
    def told(self) -> tuple[str, ...]:
        """What was passed over, in words."""
        return (str(audio.AudioDamage(self.name, self.damage.told())),) if self.damage and self.damage.spans else ()

    def tell(self) -> None:
        """Warn of what was passed over; an end that is missing, or half of it that cannot be decoded, is an error."""
        if self.error or not self.damage:
            return
        mostly = sum(end - start for start, end in self.damage.spans) > self.duration / 2
        if self.damage.truncated or mostly:
            problem = self.damage.truncated or self.damage.told()
            self.error, self.h_a = audio.AudioError(self.name, problem, audio.RESCUE), None
        elif self.damage.spans:
            warnings.warn(audio.AudioDamage(self.name, self.damage.told()), stacklevel=2)


def hear(
    engine: Engine, sources: Iterable[Source], options: DecodeConfig, limits: DecodeLimits | None = None
) -> Iterator[list[Recording]]:
    """The recordings in the order of `sources`, a group at a time; one that cannot be read has an `error`.

    Args:
        engine: encodes the windows.
        sources: taken group by group; the next group is decoded in the background while the caller uses this one.
        options: `window`, `hop` and `batch_size`.
        limits: what decoding one file may cost; None: it is decoded in this process, without limits.

    What cannot be decoded in the middle of a recording is passed over and told (AudioDamage, a warning); a recording
    whose end is missing is an error.
    """
    size = max(options.batch_size, min(options.batch_size * GROUP, HELD))
    todo = iter(sources)
    room = Semaphore(OPEN)

    def opened(source: Source, damaged: bool = False) -> tuple[Recording, Windows]:
        """A recording, with its first windows decoded; the rest, of a long one, when it is its turn.

        While as many as may be are open, another one is only opened when it is its turn.
        """
        damaged = damaged or is_live(source)  # a pipe cannot be read twice
        recording = Recording(source, damage=audio.Damage() if damaged else None)
        rest = windows(source, engine.sample_rate, options, recording.damage, limits)
        if not room.acquire(blocking=False):
            return recording, rest
        goes_on = False
        try:
            first = list(islice(rest, AHEAD))
            goes_on = len(first) == AHEAD
        except audio.AudioError as error:
            recording.error = error
        finally:
            if not goes_on:
                room.release()
        if recording.error:
            again = not damaged and recording.error.problem != sandbox.SLOW
            return opened(source, damaged=True) if again else (recording, iter(()))
        return recording, _chain(first, rest, room.release) if goes_on else iter(first)

    with ThreadPoolExecutor(2, thread_name_prefix="lamb-decode") as pool:
        ahead: deque[Opened] = deque(pool.submit(opened, source) for source in islice(todo, size))
        try:
            while ahead:
                futures = [ahead.popleft() for _ in range(min(size, len(ahead)))]
                ahead.extend(pool.submit(opened, source) for source in islice(todo, size))
                group = [future.result() for future in futures]
                _encode(engine, group, options.batch_size)
                for k, (recording, _) in enumerate(group):
                    # it broke off later on, or could not be opened
                    if recording.error and not recording.damage and recording.error.problem != sandbox.SLOW:
                        group[k] = opened(recording.source, damaged=True)
                        _encode(engine, group[k : k + 1], options.batch_size)
                    group[k][0].tell()
                yield [recording for recording, _ in group]
        finally:
            for future in ahead:
                future.cancel()


def _encode(engine: Engine, group: Sequence[tuple[Recording, Windows]], size: int) -> None:
    """Fill in the duration and tokens of every recording, windows of similar length together."""
    summaries = [Summary() for _ in group]
    held: list[tuple[Summary, np.ndarray]] = []

    def encode() -> None:
        for (summary, _), h_a in zip(held, engine.encode([x for _, x in held], size), strict=True):
            summary.add(h_a)
        held.clear()

    for (recording, rest), summary in zip(group, summaries, strict=True):
        try:
            for start, x in rest:
                recording.duration = start + len(x) / engine.sample_rate
                if has_sound(start, x, engine.sample_rate):
                    held.append((summary, x))
                if len(held) == size * GROUP:
                    encode()
        except audio.AudioError as error:
            recording.error = error
    encode()
    for (recording, _), summary in zip(group, summaries, strict=True):
        recording.h_a = summary.tokens() if recording.error is None else None


def windows(
    source: Source,
    sample_rate: int,
    options: DecodeConfig,
    damage: audio.Damage | None = None,
    limits: DecodeLimits | None = None,
) -> Windows:
    """`audio.windows` of `options.window` seconds, one every `options.hop`; AudioError at the first one, or later.

    With `limits` a process of its own decodes.
    """
    if isinstance(source, Clip):
        if source.start or source.duration is not None:
            load = partial(sandbox.load, limits=limits) if limits else audio.load
            source = load(source.path, sample_rate, source.start, source.duration), sample_rate
        else:
            source = source.path
    by = partial(sandbox.windows, limits=limits) if limits else audio.windows
    yield from by(source, sample_rate, options.window, options.hop, damage)


def heard(x: np.ndarray, sample_rate: int, options: DecodeConfig) -> list[np.ndarray]:
    """The windows (T,) of samples `x` that reach the encoder, as `hear` and `Engine.encode` have them: for training."""
    cut = audio.windows((x, sample_rate), sample_rate, options.window, options.hop)
    return [audio.centred(window) for start, window in cut if has_sound(start, window, sample_rate)]


def name_of(source: Source) -> str:
    """What results and messages call `source`: its path, or a word in brackets for what has none."""
    return os.fsdecode(source.path) if isinstance(source, Clip) else audio.name(source)


def is_live(source: Source) -> bool:
    """Whether `source` is a pipe, whose end may be yet to come."""
    return not isinstance(source, Clip) and audio.is_live(source)


def is_sliver(start: float, x: np.ndarray, sample_rate: int) -> bool:
    """Whether a window is a last one too short for the encoder; a recording that is no longer is refused on opening."""
    return start > 0 and len(x) < audio.MIN_DURATION * sample_rate


def has_sound(start: float, x: np.ndarray, sample_rate: int) -> bool:
    """Whether a window of samples `x` (T,) from second `start` on is encoded."""
    return not is_sliver(start, x, sample_rate) and not audio.is_silent(x)


class Summary:
    """At most KEPT windows of a recording of any length: what is most present and most distinct, in the order of time.

    Where there are more, the two are joined that are closest by Ward's criterion: a b / (a + b) times the squared
    distance of their unit-length mean tokens, where they stand for a and b tokens. The tokens of the window that stands
    for more are kept.
    """

    def __init__(self) -> None:
        self.windows: list[_Kept] = []

    def add(self, h_a: np.ndarray) -> None:
        """Tokens (N_a, D) of the next window."""
        self.windows.append(_Kept(h_a, float(len(h_a)), h_a.mean(0)))
        if len(self.windows) <= KEPT:
            return
        mean = np.stack([w.mean for w in self.windows])  # (KEPT + 1, D)
        mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        weight = np.array([w.weight for w in self.windows])
        distance = np.square(mean[:, None] - mean).sum(2)  # (KEPT + 1, KEPT + 1)
        cost = distance * weight * weight[:, None] / (weight + weight[:, None])
        np.fill_diagonal(cost, np.inf)
        pair = divmod(int(cost.argmin()), len(cost))
        stays, goes = sorted(pair, key=lambda k: (-self.windows[k].weight, k))
        one, other = self.windows[stays], self.windows[goes]
        total = one.weight + other.weight
        self.windows[stays] = _Kept(one.h_a, total, (one.mean * one.weight + other.mean * other.weight) / total)
        del self.windows[goes]

    def tokens(self) -> np.ndarray | None:
        """(N_a, D) of the windows that are kept; None of a recording without sound."""
        return np.concatenate([w.h_a for w in self.windows]) if self.windows else None


@dataclass(frozen=True)
class _Kept:
    h_a: np.ndarray  # (N_a, D)
    weight: float  # number of tokens that it stands for
    mean: np.ndarray  # (D,)


def _chain(first: list[tuple[float, np.ndarray]], rest: Windows, close: Callable[[], object]) -> Windows:
    """The first windows, then the rest; `close` is called at the end, also of one that breaks off."""
    try:
        while first:
            yield first.pop(0)  # let go of each window as it is used
        yield from rest
    finally:
        close()
