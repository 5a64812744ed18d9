"""The power spectrogram of all front ends: |STFT|^2 by `torch.stft`, and in a graph by two matrix products. [O]

ONNX Runtime's own STFT takes longer than the network behind it (95 ms for 5 s of sound and windows of 768 samples). So
a trace, which the export makes, has Cooley and Tukey's first step instead: with N = N_1 N_2, n = N_2 n_1 + n_2 and
k = k_1 + N_1 k_2, W_N = exp(-2 pi i / N),

    X_k = sum_{n_2} W_{N_2}^{n_2 k_2} [ W_N^{n_2 k_1} sum_{n_1} W_{N_1}^{n_1 k_1} x_n ]

For real x the columns k_1 <= N_1 / 2 hold everything: |X_k| = |X_{N-k}|. 2 N (N_1 + 2 N_2) operations a frame are few
enough, and a matrix product is what such a runtime does best, in a browser too.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor


def power_spectrogram(signal: Tensor, window: Tensor, hop: int) -> Tensor:
    """signal (B, T), window (N,) -> power (B, N // 2 + 1, F) of its F = (T - N) // hop + 1 frames."""
    if torch.jit.is_tracing():
        return _by_products(signal, window, hop)
    spectrum = torch.stft(signal, len(window), hop, window=window, center=False, return_complex=True)  # (B, bins, F)
    return spectrum.real.square() + spectrum.imag.square()


def _by_products(signal: Tensor, window: Tensor, hop: int) -> Tensor:
    size = int(window.shape[0])
    columns, turn, rows, places = (table.to(signal.device) for table in _tables(size))
    block = math.gcd(size, hop)  # frames are whole blocks: they are copied by blocks
    frames = torch.arange((signal.shape[1] - size) // hop + 1, device=signal.device)  # (F,)
    at = frames[:, None] * (hop // block) + torch.arange(size // block, device=signal.device)  # (F, N / block)
    blocks = signal[:, : signal.shape[1] // block * block].reshape(signal.shape[0], -1, block)  # (B, T / block, block)
    x = blocks[:, at].flatten(2) * window  # (B, F, N)
    x = columns @ x.reshape(x.shape[0], x.shape[1], columns.shape[1], -1)  # (B, F, 2 K_1, N_2)
    real, imaginary = x.chunk(2, 2)  # (B, F, K_1, N_2) each
    cos, sin = turn
    x = torch.cat([real * cos + imaginary * sin, imaginary * cos - real * sin], 3)  # (B, F, K_1, 2 N_2)
    real, imaginary = (x @ rows).chunk(2, 3)
    power = (real.square() + imaginary.square()).flatten(2)  # (B, F, K_1 N_2)
    return power.index_select(2, places).transpose(1, 2)


@cache
def _tables(size: int) -> tuple[Tensor, ...]:
    """What a transform of `size` samples multiplies with; made by NumPy, so that a trace holds the numbers.

    Returns:
        The transform along n_1 (2 K_1, N_1), W_N^{n_2 k_1} as cosine and sine (2, K_1, N_2), the transform along n_2
        (2 N_2, 2 N_2), and where |X_k|^2 stands for k up to N / 2.
    """
    first = next(n for n in range(math.isqrt(2 * size), 0, -1) if size % n == 0)  # N_1
    second = size // first
    n_1, n_2, k_1 = np.arange(first), np.arange(second), np.arange(first // 2 + 1)
    cos, sin = _turns(np.outer(k_1, n_1), first)
    columns = np.concatenate([cos, -sin])
    turn = np.stack(_turns(np.outer(k_1, n_2), size))
    cos, sin = _turns(np.outer(n_2, n_2), second)
    rows = np.block([[cos, -sin], [sin, cos]])
    bins = np.arange(size // 2 + 1)
    bins = np.where(bins % first < len(k_1), bins, size - bins)
    places = bins % first * second + bins // first
    with torch.inference_mode(False):
        floats = (torch.from_numpy(table.astype(np.float32)) for table in (columns, turn, rows))
        return *floats, torch.from_numpy(places)


def _turns(exponents: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of 2 pi exponents / size."""
    angle = 2 * np.pi * (exponents % size) / size
    return np.cos(angle), np.sin(angle)
