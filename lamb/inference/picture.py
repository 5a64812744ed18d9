"""A picture of a timeline: the log mel spectrogram of a recording, and under it what is heard when. [O]

The spectrogram is taken while the sound passes, with at most 2 * COLUMNS columns in memory: when there are more, each
two become one.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..audio.files import replacing
from ..errors import LambError
from ..model.encoders.conv import mel_matrix
from .captions import Segment

COLUMNS = 1000
ROWS = 14  # captions with a row of their own; the others share one
MELS, N_FFT, HOP = 64, 1024, 512
RANGE_DB = 80.0  # below the loudest


class PictureError(LambError, ValueError):
    """A picture that cannot be drawn; the text has the remedy."""


class Picture:
    """Hears samples at `rate` Hz, then draws them with their segments into `path` (png, pdf, svg ...)."""

    def __init__(self, rate: int, path: str | Path):
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise PictureError("a picture needs matplotlib; install it with: pip install 'lamb-aac[plot]'") from None
        self.path, self.rate = Path(path), rate
        self.figure = Figure(figsize=(12, 7), layout="constrained")
        kinds = self.figure.canvas.get_supported_filetypes()
        if self.path.suffix[1:].lower() not in kinds:
            raise PictureError(f"{path}: a picture ends in one of {', '.join(sorted(kinds))}; choose another name")
        if self.path.is_dir() or not os.access(self.path.parent, os.W_OK):  # now, not after ten hours of sound
            raise PictureError(f"{path}: cannot be written; choose a file in a folder that you may write to")
        self.mel = mel_matrix(rate, N_FFT, MELS).numpy()
        self.window = np.hanning(N_FFT).astype(np.float32)
        self.left = np.zeros(0, np.float32)  # samples that are not yet in a frame
        self.frames = np.zeros((0, MELS))  # power, less than `every` of them
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

    def draw(self, segments: Sequence[Segment], title: str) -> None:
        """Write the file; it appears once it is complete."""
        end = segments[-1].end
        upper, lower = self.figure.subplots(2, 1, sharex=True, height_ratios=[3, 4])
        decibel = 10 * np.log10(np.maximum(np.array(self.columns or [np.zeros(MELS)]).T, 1e-10))  # (MELS, columns)
        heard = max(len(self.columns) * self.every * HOP / self.rate, 1e-3)
        top = float(decibel.max())
        upper.imshow(
            decibel,
            origin="lower",
            aspect="auto",
            extent=(0, heard, 0, MELS),
            vmin=top - RANGE_DB,
            vmax=top,
            cmap="magma",
        )
        hertz = [h for h in (100, 500, 1000, 2000, 4000, 8000) if h <= self.rate / 2]
        bands = [MELS * np.log10(1 + h / 700) / np.log10(1 + self.rate / 2 / 700) for h in hertz]
        upper.set_yticks(bands, [f"{h:,} Hz" for h in hertz])
        upper.set_title(title, loc="left", parse_math=False)

        seconds: dict[str, float] = {}
        for s in segments:
            seconds[s.caption] = seconds.get(s.caption, 0.0) + s.end - s.start
        main = set(sorted(seconds, key=lambda text: -seconds[text])[:ROWS])
        others = f"{len(seconds) - len(main)} other captions"
        rows = list(dict.fromkeys(s.caption for s in segments if s.caption in main))
        rows += [others] * (len(seconds) > len(main))
        for row, text in enumerate(rows):
            own = [s for s in segments if s.caption == text or (text == others and s.caption not in main)]
            # a moment in ten hours is still to be seen: no bar is narrower than a thousandth
            bars = [(s.start, max(s.end - s.start, end / 1000)) for s in own]
            colour = "0.75" if text in (others, "Silence.") else f"C{row % 10}"
            lower.broken_barh(bars, (row - 0.4, 0.8), color=colour)
        lower.set_yticks(range(len(rows)), [_short(text) for text in rows], parse_math=False)
        lower.set_ylim(len(rows) - 0.5, -0.5)
        lower.set_xlim(0, end)
        lower.xaxis.set_major_formatter(lambda t, _: _clock(t))
        lower.grid(axis="x", alpha=0.3)
        with replacing(self.path) as part:
            self.figure.savefig(part, format=self.path.suffix[1:].lower(), dpi=120)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    tenths = "" if rest == int(rest) else f".{round(rest % 1 * 10)}"
    return f"{hours}:{minutes:02}:{int(rest):02}{tenths}" if hours else f"{minutes}:{int(rest):02}{tenths}"
