"""Sound as a picture: the log mel spectrogram and, below it, the segments of a timeline. [O]

The spectrogram is computed while the sound is read, with at most 2 * COLUMNS columns in memory: when there are as many,
neighbours are averaged in pairs.
"""

import io
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..audio.files import replacing
from ..errors import LambError, PackageError, optional
from ..model.mel import mel_matrix
from .captions import SILENCE, Segment
from .digest import digest, sounds

COLUMNS = 1000
ROWS = 14  # most sounds with their own row; the others share one
MELS, N_FFT, HOP = 64, 1024, 512
RANGE_DB = 80.0  # from the loudest point down to black


class PictureError(LambError, ValueError):
    """A picture that cannot be drawn: the file, the problem and the remedy."""


def check(path: Path, umap: bool = False) -> None:
    """Check that a picture can be written to `path`, before hours of work and not after them.

    Raises PictureError for the path, PackageError for a package that is not installed.
    """
    backends = optional("matplotlib.backend_bases", f"{path}: this picture needs matplotlib", "plot")
    if umap and find_spec("umap") is None:  # its import takes many seconds
        raise PackageError(f"{path}: this picture needs umap-learn", "pip install 'lamb-aac[plot]'")
    kinds = backends.FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise PictureError(f"{path}: a picture ends in one of {', '.join(sorted(kinds))}", "choose another name")
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise PictureError(f"{path}: cannot be written", "choose a file in a folder that you may write to")


def save(figure: Any, path: Path, dpi: int = 150) -> None:
    """Write a matplotlib figure in the format that `path` ends in, whole or not at all."""
    with replacing(path) as part:
        figure.savefig(part, format=path.suffix[1:].lower(), dpi=dpi)


class Spectrogram:
    """The log mel spectrogram of samples at `rate` Hz that arrive in blocks."""

    def __init__(self, rate: int):
        self.rate = rate
        self.mel = mel_matrix(rate, N_FFT, MELS, rate / 2).T
        self.window = np.hanning(N_FFT).astype(np.float32)
        self.left = np.zeros(0, np.float32)  # samples that do not fill a frame yet
        self.frames = np.zeros((0, MELS))  # power, fewer than `every` frames
        self.columns: list[np.ndarray] = []  # (MELS,) means of `every` frames
        self.every = 1

    def listen(self, x: np.ndarray) -> None:
        """The next samples (T,)."""
        x = np.concatenate([self.left, x])
        count = max(0, (len(x) - N_FFT) // HOP + 1)
        if count:
            frames = np.lib.stride_tricks.sliding_window_view(x, N_FFT)[::HOP][:count]  # (count, N_FFT)
            power = np.square(np.abs(np.fft.rfft(frames * self.window))) @ self.mel
            self.frames = np.concatenate([self.frames, power])
        self.left = x[count * HOP :].copy()
        while len(self.frames) >= self.every:
            self.columns.append(self.frames[: self.every].mean(0))
            self.frames = self.frames[self.every :]
            if len(self.columns) == 2 * COLUMNS:
                self.columns = [(a + b) / 2 for a, b in zip(self.columns[::2], self.columns[1::2], strict=True)]
                self.every *= 2

    @property
    def seconds(self) -> float:
        """The seconds of sound in the columns."""
        return max(len(self.columns) * self.every * HOP / self.rate, 1e-3)

    def decibel(self) -> np.ndarray:
        """The spectrogram in dB, (MELS, columns), with low tones first."""
        return 10 * np.log10(np.maximum(np.array(self.columns or [np.zeros(MELS)]).T, 1e-10))


def _shades(decibel: np.ndarray) -> dict[str, Any]:
    """How matplotlib shows a spectrogram: low tones below, RANGE_DB from the loudest down to black."""
    top = float(decibel.max())
    return {"vmin": top - RANGE_DB, "vmax": top, "cmap": "magma", "origin": "lower"}


def spectrogram_png(x: np.ndarray, rate: int) -> bytes:
    """The log mel spectrogram of samples `x` (T,) at `rate` Hz, as a PNG without axes and margins."""
    from matplotlib.image import imsave

    spectrogram, file = Spectrogram(rate), io.BytesIO()
    spectrogram.listen(x)
    decibel = spectrogram.decibel()
    imsave(file, decibel, format="png", **_shades(decibel))
    return file.getvalue()


class Picture:
    """The picture of a timeline: it takes samples at `rate` Hz, and then draws them with their segments."""

    def __init__(self, rate: int, path: str | Path):
        self.path = Path(path)
        check(self.path)
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(12, 5), layout="constrained")
        self.spectrogram = Spectrogram(rate)

    def listen(self, x: np.ndarray) -> None:
        """The next samples (T,)."""
        self.spectrogram.listen(x)

    def draw(self, segments: Sequence[Segment], title: str) -> None:
        """Write the file; it appears once it is complete."""
        upper, lower = self.figure.subplots(2, 1, sharex=True, height_ratios=[3, 4])
        self.draw_spectrogram(upper)
        _draw_segments(lower, segments)
        upper.set_title(title, loc="left", parse_math=False)
        lower.set_xlim(0, segments[-1].end)
        lower.xaxis.set_major_formatter(lambda t, _: _clock(t))
        lower.grid(axis="x", alpha=0.3)
        self.save()

    def save(self) -> None:
        """Write the file; it appears once it is complete."""
        save(self.figure, self.path, dpi=120)

    def draw_spectrogram(self, axes: Any) -> None:
        """Draw the samples so far into `axes` of matplotlib: frequency over seconds."""
        decibel, rate = self.spectrogram.decibel(), self.spectrogram.rate
        axes.imshow(decibel, aspect="auto", extent=(0, self.spectrogram.seconds, 0, MELS), **_shades(decibel))
        hertz = [h for h in (100, 500, 1000, 2000, 4000, 8000) if h <= rate / 2]
        bands = [MELS * np.log10(1 + h / 700) / np.log10(1 + rate / 2 / 700) for h in hertz]
        axes.set_yticks(bands, [f"{h:,} Hz" for h in hertz])


def _draw_segments(axes: Any, segments: Sequence[Segment]) -> None:
    """Draw a row of bars for each of the sounds with the longest total, and one row for all others."""
    found = digest(segments)
    main = {heard.sound for heard in found[:ROWS]}
    rows: dict[str, list[tuple[float, float]]] = {}
    for heard in sorted(found, key=lambda heard: heard.times[0]):
        name = heard.sound if heard.sound in main else f"{len(found) - len(main)} other sounds"
        # no bar is narrower than a thousandth, so that a moment in ten hours remains visible
        narrow = segments[-1].end / 1000
        rows.setdefault(name, []).extend((start, max(end - start, narrow)) for start, end in heard.times)
    names = sorted(rows, key=lambda name: name not in main)  # the others come last
    for row, name in enumerate(names):
        coloured = name in main and name not in sounds(SILENCE)
        axes.broken_barh(rows[name], (row - 0.4, 0.8), color=f"C{row % 10}" if coloured else "0.75")
    labels = [name if len(name) <= 60 else name[:57] + "..." for name in names]
    axes.set_yticks(range(len(names)), labels, parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    tenths = "" if rest == int(rest) else f".{round(rest % 1 * 10)}"
    return f"{hours}:{minutes:02}:{int(rest):02}{tenths}" if hours else f"{minutes}:{int(rest):02}{tenths}"
