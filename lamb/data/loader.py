"""Batches for training, made in background processes.

Batch number `step` is a function of (data, seed, step) alone: a run that was stopped continues with the same batches.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..audio import reader as audio
from ..audio.files import replacing
from ..config import ConfigError, TrainConfig
from ..errors import OptionError
from ..model.padding import pad
from . import sources
from .manifest import Clip
from .scenes import Event, Recording, SceneMaker, trim

Batch = TypeVar("Batch")
Cut = Callable[[np.ndarray], list[np.ndarray]]  # samples (T,) -> windows of them
Share = tuple[int, int]  # (number of this process, how many there are): each makes its part of a batch
WHOLE: Share = (0, 1)


def whole(x: np.ndarray) -> list[np.ndarray]:
    """Samples (T,) as one window, centred as every encoder hears them."""
    return [audio.centred(x)]


def recordings(clips: Sequence[Clip], sample_rate: int, workers: int = 2) -> dict[str, list[list[Recording]]]:
    """The clips decoded and trimmed, by label and then by source. AudioError names a file that cannot be used."""

    def decode(clip: Clip) -> tuple[str, str, Recording]:
        x = audio.load(clip.path, sample_rate, clip.start, clip.duration)
        if not x.any():
            raise audio.AudioError(clip.path, "holds nothing but zeros", "leave it out of the manifest")
        samples = np.round(trim(x, sample_rate) * 32767).astype(np.int16)
        return clip.labels[0], clip.source or clip.id, Recording(samples, clip.description)

    found: dict[str, dict[str, list[Recording]]] = {}
    with ThreadPoolExecutor(workers) as pool:
        for label, source, recording in pool.map(decode, clips):
            found.setdefault(label, {}).setdefault(source, []).append(recording)
    return {label: list(by_source.values()) for label, by_source in sorted(found.items())}


def scene_maker(config: TrainConfig, sample_rate: int) -> tuple[SceneMaker, list[Clip]]:
    """A maker of scenes from the training recordings in `data.sounds`, and the development recordings there."""
    data = config.data
    if data.sounds is None:
        raise ConfigError("data.sounds: the folder of labelled recordings is missing from the recipe")
    training, development = sources.split_sounds(*sources.folders(data.sounds))
    bank = recordings(training, sample_rate)
    return SceneMaker(bank, sample_rate, data.seconds, config.seed, data.shares, data.parents, data.plain), development


def scene_batch(maker: SceneMaker, size: int, step: int, share: Share = WHOLE) -> dict[str, Any]:
    """Batch number `step` of `size` scenes, B of them here: waveform and mask (B, T), captions, events."""
    scenes = maker.batch(step, size, part_of(size, share))
    waveform, mask = pad([audio.centred(scene.waveform) for scene in scenes])
    return {
        "waveform": waveform,
        "mask": mask,
        "captions": [scene.caption for scene in scenes],
        "events": [scene.events for scene in scenes],
    }


@dataclass(frozen=True)
class ClipReader:
    """Captioned clips for training: a random crop of at most `seconds`, one of the captions, a random gain of at most
    `gain` dB.

    `cut` makes the windows that the encoder hears of samples (T,), as `lamb.inference.recording.heard` does. With
    `tokens`, the files of the clips' encoder tokens (see TokenCache), these are read in place of the sound.
    """

    clips: Sequence[Clip]
    sample_rate: int
    seconds: float
    seed: int
    tokens: Sequence[Path] | None = None
    cut: Cut = whole
    gain: float = 0.0
    _orders: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, init=False, compare=False, repr=False)

    @cached_property
    def _lengths(self) -> np.ndarray:
        """Seconds of each clip, as far as they are used."""
        return np.array([min(clip.duration or self.seconds, self.seconds) for clip in self.clips])

    def order(self, epoch: int, size: int) -> np.ndarray:
        """The clips of an epoch in batches of `size` and of similar length; a remainder is left out of this epoch.

        The order of the last epoch that was asked for is kept: every batch of an epoch asks for it.
        """
        if (epoch, size) not in self._orders:
            rng = np.random.default_rng((self.seed, 2, epoch))
            order = rng.permutation(len(self.clips))
            # sorted by length within stretches of 16 batches: little padding, yet the neighbours of a clip stay random
            stretch = np.arange(len(order)) // (16 * size)
            batches = order[np.lexsort((self._lengths[order], stretch))][: len(order) // size * size]
            self._orders.clear()
            self._orders[epoch, size] = rng.permutation(batches.reshape(-1, size))
        return self._orders[epoch, size]

    def read(self, number: int, epoch: int) -> tuple[Any, str]:
        """Windows (T,), or tokens (N, D), and a caption of clip `number` in this epoch; or AudioError."""
        clip, rng = self.clips[number], np.random.default_rng((self.seed, 3, epoch, number))
        caption = clip.captions[int(rng.integers(len(clip.captions)))]
        if self.tokens is not None:
            return np.load(self.tokens[number], allow_pickle=False), caption
        length = clip.duration
        if length is None:
            whole = audio.probe(clip.path).duration
            length = None if whole is None else whole - clip.start
        spare = 0.0 if length is None else max(0.0, length - self.seconds)
        start = clip.start + rng.uniform(0, spare)
        x = audio.load(clip.path, self.sample_rate, start, min(self.seconds, length or self.seconds))
        gain = np.float32(10 ** (rng.uniform(-self.gain, self.gain) / 20))
        return _windows(self.cut, x * gain, clip), caption


def _windows(cut: Cut, x: np.ndarray, clip: Clip) -> list[np.ndarray]:
    """The windows that `cut` makes of samples `x` of `clip`; AudioError where there are none."""
    windows = cut(x)
    if not windows:
        raise audio.AudioError(clip.path, "holds no sound", "leave it out of the manifest")
    return windows


@dataclass(frozen=True)
class TokenCache:
    """Encoder tokens on disk: one file (N, D) for each clip, named after the encoder, the recording and the stretch."""

    folder: Path
    encoder: str  # check sum of the encoder's architecture and weights, and of what it hears

    @classmethod
    def of(cls, folder: str | Path, encoder: nn.Module, hears: tuple[Any, ...] = ()) -> "TokenCache":
        """The cache in `folder` for exactly this encoder, which `hears` windows of this length and hop."""
        total = hashlib.sha256(repr((getattr(encoder, "options", type(encoder).__name__), *hears)).encode())
        for name, tensor in sorted(encoder.state_dict().items()):
            total.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return cls(Path(folder), total.hexdigest()[:16])

    def file(self, clip: Clip, seconds: float) -> Path:
        """The file of the tokens of the first `seconds` of `clip`; another one as soon as the recording changes."""
        facts = os.stat(clip.path)
        stretch = (clip.start, clip.duration, seconds, "centred")
        part = (os.path.abspath(clip.path), facts.st_size, facts.st_mtime_ns, *stretch)
        return self.folder / self.encoder / f"{hashlib.sha256(repr(part).encode()).hexdigest()[:32]}.npy"

    def fill(
        self, clips: Sequence[Clip], seconds: float, sample_rate: int, encode: Callable[..., Any], cut: Cut = whole
    ) -> tuple[list[Clip], list[Path], list[str]]:
        """Encode the clips that have no file yet; returns the readable clips, their files and the other problems.

        Clips are decoded in threads and encoded 16 at a time by `encode`: their windows (B, W, T) as `cut` makes them,
        and the mask -> (B, N, D), (B, N).
        """
        kept: list[Clip] = []
        files: list[Path] = []
        problems: list[str] = []

        def decode(clip: Clip) -> tuple[Clip, Path | None, list[np.ndarray] | None, str]:
            try:
                file = self.file(clip, seconds)
                if file.exists():
                    return clip, file, None, ""
                length = seconds if clip.duration is None else min(seconds, clip.duration)
                x = audio.load(clip.path, sample_rate, clip.start, length)
                return clip, file, _windows(cut, x, clip), ""
            except FileNotFoundError:
                return clip, None, None, f"{clip.path}: does not exist; check the path"
            except audio.AudioError as error:
                return clip, None, None, str(error)

        with ThreadPoolExecutor(2) as pool:
            for first in range(0, len(clips), 64):
                found = list(pool.map(decode, clips[first : first + 64]))
                fresh = [(file, x) for _, file, x, _ in found if file is not None and x is not None]
                fresh.sort(key=lambda item: sum(map(len, item[1])))
                for k in range(0, len(fresh), 16):
                    h_a, mask = encode(*batch_of([x for _, x in fresh[k : k + 16]]))
                    for (file, _), tokens, valid in zip(fresh[k : k + 16], h_a, mask, strict=True):
                        _write_array(file, tokens[valid].float().cpu().numpy())
                kept += [clip for clip, file, _, _ in found if file is not None]
                files += [file for _, file, _, _ in found if file is not None]
                problems += [problem for *_, problem in found if problem]
        return kept, files, problems


def _write_array(path: Path, array: np.ndarray) -> None:
    """Written whole or not at all, also if two processes write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("wb") as file:
        np.save(file, array)


def batch_of(clips: Sequence[Sequence[np.ndarray]]) -> tuple[Tensor, Tensor]:
    """The windows (T,) of each clip -> a batch (B, W, T), padded at the end of windows and clips, and its mask."""
    x, valid = pad([window for windows in clips for window in windows])  # (windows, T), of all clips
    counts = torch.tensor([len(windows) for windows in clips])
    there = torch.arange(int(counts.max())) < counts[:, None]  # (B, W)
    waveform, mask = x.new_zeros(*there.shape, x.shape[1]), valid.new_zeros(*there.shape, x.shape[1])
    waveform[there], mask[there] = x, valid
    return waveform, mask


def clip_batch(reader: ClipReader, size: int, step: int, share: Share = WHOLE) -> dict[str, Any]:
    """Batch number `step`: waveform and mask (B, W, T), captions, ids, and the problems of clips that are "unreadable".

    Another clip of the epoch takes the place of such a clip, so that all processes have equally many.
    """
    batches = len(reader.clips) // size
    epoch, index = divmod(step, batches)
    order = reader.order(epoch, size)
    found, ids, unreadable = [], [], []
    for k in part_of(size, share):
        for attempt in range(batches):
            number = int(order[(index + attempt) % batches, k])
            try:
                found.append(reader.read(number, epoch))
                ids.append(reader.clips[number].id)
                break
            except audio.AudioError as error:
                unreadable.append(str(error))
        else:
            raise audio.AudioError(unreadable[-1], "and every clip that could stand in for it", "check the recordings")
    waveform, mask = (batch_of if reader.tokens is None else pad)([x for x, _ in found])
    return {
        "waveform": waveform,  # or tokens (B, N, D)
        "mask": mask,
        "captions": [c for _, c in found],
        "ids": ids,
        "unreadable": unreadable,
        "encoded": reader.tokens is not None,
    }


def part_of(size: int, share: Share) -> range:
    """The clips of a batch of `size` that a process makes, by number."""
    number, processes = share
    if size % processes:
        raise OptionError(
            f"optim.batch: {size} clips cannot be divided equally among {processes} processes",
            f"give a multiple of {processes}",
        )
    return range(number * size // processes, (number + 1) * size // processes)


def activity(events: Sequence[Sequence[Event]], labels: Sequence[str], frames: int, frame_rate: float) -> Tensor:
    """Which labels sound when: (B, frames, len(labels)), 1 where an event of the label covers the centre of the frame.

    Frame k of a convolutional encoder is centred on k / frame_rate. An event between two
    centres counts in the frame nearest to its middle, so that none is lost.
    """
    number = {label: k for k, label in enumerate(labels)}
    index = torch.arange(frames)
    centre = index / frame_rate
    out = torch.zeros(len(events), frames, len(labels))
    for row, scene in zip(out, events, strict=True):
        for event in scene:
            own = min(round((event.start + event.end) / 2 * frame_rate), frames - 1)
            row[(event.start <= centre) & (centre < event.end) | (index == own), number[event.label]] = 1
    return out


class _Steps(Dataset, Generic[Batch]):
    def __init__(self, make: Callable[[int], Batch], first: int, last: int):
        self.make, self.first, self.last = make, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, k: int) -> Batch:
        return self.make(self.first + k)


def background(make: Callable[[int], Batch], first: int, last: int, workers: int) -> Iterator[Batch]:
    """make(first), ..., make(last - 1) in order, prepared by `workers` background processes (0: by this process)."""
    loader: Any = DataLoader(
        _Steps(make, first, last),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,  # shares the recordings instead of copying them
        generator=torch.Generator(),  # else the global one would be used, and a resumed run would differ
    )
    return iter(loader)
