"""Batches for training, made in background processes.

Batch number `step` is a pure function of (data, seed, step): a run that stops goes on with the batch it stopped at.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .. import audio
from .manifest import Clip
from .scenes import Event, SceneMaker, trim

Batch = TypeVar("Batch")


def recordings(clips: Sequence[Clip], sample_rate: int, workers: int = 2) -> dict[str, list[np.ndarray]]:
    """The clips decoded and trimmed, by label, as int16 (T,) waveforms of peak 32767. AudioError names a bad file."""

    def decode(clip: Clip) -> tuple[str, np.ndarray]:
        x = audio.load(clip.path, sample_rate, clip.start, clip.duration)
        if not x.any():
            raise audio.AudioError(clip.path, "holds nothing but zeros", "leave it out of the manifest")
        return clip.labels[0], np.round(trim(x, sample_rate) * 32767).astype(np.int16)

    found: dict[str, list[np.ndarray]] = {}
    with ThreadPoolExecutor(workers) as pool:
        for label, x in pool.map(decode, clips):
            found.setdefault(label, []).append(x)
    return dict(sorted(found.items()))


def pad(waveforms: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Waveforms of many lengths -> (B, T) zero-padded at the end, mask (B, T) True where the clip is."""
    lengths = torch.tensor([len(x) for x in waveforms])
    batch = torch.zeros(len(waveforms), int(lengths.max()))
    for row, x in zip(batch, waveforms, strict=True):
        row[: len(x)] = torch.from_numpy(x)
    return batch, torch.arange(batch.shape[1]) < lengths[:, None]


def scene_batch(maker: SceneMaker, size: int, step: int) -> dict[str, Any]:
    """Batch number `step` of scenes: waveform (B, T), mask (B, T), captions and events of each."""
    scenes = maker.batch(step, size)
    waveform, mask = pad([scene.waveform for scene in scenes])
    return {
        "waveform": waveform,
        "mask": mask,
        "captions": [scene.caption for scene in scenes],
        "events": [scene.events for scene in scenes],
    }


def activity(events: Sequence[Sequence[Event]], labels: Sequence[str], frames: int, frame_rate: float) -> Tensor:
    """What sounds when: (B, frames, len(labels)), 1 where an event of the label covers the middle of the frame.

    So that no event goes unheard, one between two middles counts in the frame that holds its own middle.
    """
    number = {label: k for k, label in enumerate(labels)}
    index = torch.arange(frames)
    middle = (index + 0.5) / frame_rate
    out = torch.zeros(len(events), frames, len(labels))
    for row, scene in zip(out, events, strict=True):
        for event in scene:
            own = min(int((event.start + event.end) / 2 * frame_rate), frames - 1)
            row[(event.start <= middle) & (middle < event.end) | (index == own), number[event.label]] = 1
    return out


class _Steps(Dataset, Generic[Batch]):
    def __init__(self, make: Callable[[int], Batch], first: int, last: int):
        self.make, self.first, self.last = make, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, k: int) -> Batch:
        return self.make(self.first + k)


def background(make: Callable[[int], Batch], first: int, last: int, workers: int) -> Iterator[Batch]:
    """make(first), ..., make(last - 1) in order, made ahead by `workers` processes (0: in this one)."""
    loader: Any = DataLoader(
        _Steps(make, first, last),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,  # the recordings are shared, not copied
        generator=torch.Generator(),  # the global one would be drawn from at the start, and a resumed run differ
    )
    return iter(loader)
