"""Several channels to one, so that no sound of theirs is lost. [O]

The mean of the channels is what a mono loudspeaker plays; a sound that is upside down in one of them vanishes in it.
Where the mean has much less energy than the channels, half of them are shifted in phase by 90 degrees (a Hilbert filter
H) before the sum: what they share and what they oppose comes out alike, at its own level at every frequency.

    mean:        x = (a + b) / 2          a = b: |x| = |a|      a = -b: |x| = 0
    quadrature:  x = (a + H b) / sqrt(2)  a = b: |x| = |a|      a = -b: |x| = |a|
"""

from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np

MUCH = 0.9  # of the channels' energy: what is upside down may be 9.5 dB below the rest; half, of unlike channels
CHUNK = 16_384  # frames that are judged together
REACH = 1_024  # frames on each side that the Hilbert filter sees


def downmix(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Blocks (n, channels) of one sound -> blocks (n,) of it in one channel. What `blocks` raises comes at its end."""
    for channels, run in groupby(blocks, key=lambda block: block.shape[1]):
        if channels == 1:
            yield from (block[:, 0] for block in run)
        else:
            yield from _mixed(run, channels)


def _mixed(blocks: Iterator[np.ndarray], channels: int) -> Iterator[np.ndarray]:
    past = np.zeros((REACH, channels), np.float32)
    held, weight, failure, more = np.zeros((0, channels), np.float32), 0.0, None, True
    while more:
        try:
            held = np.concatenate([held, next(blocks)])
        except StopIteration:
            more = False
        except Exception as error:
            more, failure = False, error
        while len(held) >= CHUNK + REACH or (held.size and not more):
            now = held[:CHUNK]
            before, weight = weight, _weight(now)
            yield _sum(past, now, held[CHUNK:][:REACH], before, weight) if before or weight else _mean(now)
            past, held = np.concatenate([past, now])[-REACH:], held[CHUNK:]
    if failure:
        raise failure


def _mean(x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf, for the reader to find
        return x.mean(axis=1, dtype=np.float32)


def _weight(x: np.ndarray) -> float:
    """How much of the quadrature sum there is to be in frames (n, channels): all or nothing."""
    with np.errstate(invalid="ignore", over="ignore"):
        energy, kept = (float(np.mean(np.square(y), dtype=np.float64)) for y in (x, _mean(x)))
    return 1.0 if np.isfinite(energy) and kept < MUCH * energy else 0.0


def _sum(past: np.ndarray, now: np.ndarray, future: np.ndarray, before: float, weight: float) -> np.ndarray:
    """Frames `now` (n, channels) as (n,): the mean and the quadrature sum, faded from one weight to the other."""
    other = np.concatenate([past, now, future])[:, 1::2].mean(axis=1)
    size = len(other) + 2 * REACH
    shifted = np.fft.irfft(np.fft.rfft(other, size) * np.fft.rfft(_hilbert(), size), size)[2 * REACH :][: len(now)]
    quadrature = (now[:, ::2].mean(axis=1) + shifted) / np.sqrt(2)
    share = np.interp(np.arange(len(now)), [0, REACH], [before, weight])
    return ((1 - share) * _mean(now) + share * quadrature).astype(np.float32)


def _hilbert() -> np.ndarray:
    """The impulse response (2 REACH + 1,): 2 / (pi n) at odd n, under a Blackman window."""
    n = np.arange(-REACH, REACH + 1)
    return np.where(n % 2, 2 / (np.pi * np.where(n == 0, 1, n)), 0.0) * np.blackman(len(n))
