"""Mel filters in NumPy: the EfficientAT encoder hears through them, and pictures draw them without PyTorch."""

import math

import numpy as np


def mel_matrix(sample_rate: int, n_fft: int, mels: int, f_max: float) -> np.ndarray:
    """Kaldi's triangles, linear in mel = 1127 ln(1 + f / 700), from 0 to `f_max` Hz, peak 1: (mels, n_fft // 2 + 1)."""
    edges = np.linspace(0, 1127 * math.log(1 + f_max / 700), mels + 2)  # (mels + 2,) in mel
    bins = np.arange(n_fft // 2 + 1) * sample_rate / n_fft
    place = 1127 * np.log(1 + bins / 700)  # (bins,) in mel
    low, centre, high = (edges[i : i + mels, None] for i in range(3))  # (mels, 1) each
    triangles = np.minimum((place - low) / (centre - low), (high - place) / (high - centre)).clip(min=0)
    triangles[:, -1] = 0  # Kaldi leaves the Nyquist frequency out
    return triangles.astype(np.float32)
