"""The entry point of inference: `Captioner` turns sounds into captions for the command line, services and pages.

A clip passes through these files: `captioner` -> `recording` (sound to encoder tokens) -> `engine` (runs the networks)
-> `generation`, `search` -> `weighing` -> `captions` (results). A timeline has `timeline` in place of `recording`.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np

from ..audio import reader as audio
from ..config import DEFAULT_MODEL, DecodeConfig, DecodeLimits
from ..errors import OptionError
from .captions import Caption, Result, Timeline, whole
from .changes import CELL
from .engine import Engine, Runtime
from .loading import runtime as load_runtime
from .loading import torch_model
from .recording import Source, hear, name_of
from .timeline import Plan, timeline

if TYPE_CHECKING:
    from ..model.lamb import LambModel

SEGMENT_BEAMS = 1  # as many labels named as with 4, in a third of the time: benchmarks/timeline.py [O]


class Captioner:
    """A model ready for use.

    >>> Captioner.load("tiny").caption(["dog.wav"])[0].text  # doctest: +SKIP
    'A dog barks.'
    """

    def __init__(
        self, model: "LambModel | Runtime", options: DecodeConfig | None = None, limits: DecodeLimits | None = None
    ):
        """`limits`: what decoding one file may cost, in a process of its own; None: files are decoded in this one."""
        self.engine = Engine(model)
        self.options = options or self.engine.runtime.config.decode
        self.limits = limits

    @classmethod
    def load(
        cls,
        name: str = DEFAULT_MODEL,
        device: str | None = None,
        limits: DecodeLimits | None = None,
        engine: str | None = None,
        threads: int | None = None,
    ) -> "Captioner":
        """A bundled model by name, a folder, or a Hugging Face hub id.

        Args:
            device: "cpu", "cuda", ...; None and "auto" stand for a GPU if there is one and PyTorch runs the model.
            engine: "onnx" (ONNX Runtime, on a CPU, for a model that `lamb export` has been at, as the bundled one),
                "torch" (PyTorch, any model), or None: the first of them that can run it.
            threads: of a CPU; None: one for each core.

        Raises CheckpointError or EngineError, both ValueErrors, with the remedy in their text.
        """
        return cls(load_runtime(name, device, engine, threads), limits=limits)

    @property
    def model(self) -> "LambModel":
        """The model, where PyTorch runs it. Raises EngineError elsewhere."""
        return torch_model(self.engine.runtime)

    def caption(self, files: Iterable[Source], **options: Any) -> list[Caption]:
        """The captions of `files`, in their order; the keywords are those of `stream`."""
        return list(self.stream(files, **options))

    def stream(
        self,
        files: Iterable[Source],
        *,
        n_best: int = 1,
        beams: int | None = None,
        sample: bool = False,
        seed: int | None = None,
        batch_size: int | None = None,
        detailed: bool = False,
        timeline: bool = False,
        window: float | None = None,
        hop: float | None = None,
    ) -> Iterator[Caption]:
        """Yield captions in the order of `files`; for a file that cannot be read, a caption with `error` set.

        Args:
            files: paths, bytes, binary file objects, (array, rate) pairs, or clips of a manifest.
            n_best: alternatives for each file, best first.
            beams: number of beams, 1 for greedy search; None: the model's own number.
            sample: draw captions at random (`seed`, 0 if None) instead of searching for the best.
            batch_size: number of files captioned together.
            detailed: also name sounds that the model is not sure of, where it weighs them.
            timeline: also describe what is heard when, as segments; `timeline` explains `window` and `hop`.

        A caption covers its whole recording: one longer than a window is encoded window by window.
        """
        if isinstance(files, str | bytes) or hasattr(files, "read"):
            raise TypeError("files are given as a list, also a single one: caption([file])")
        choices: dict[str, Any] = {"beams": beams, "batch_size": batch_size, "window": window, "hop": hop}
        if timeline:
            found = self.timelines(files, n_best=n_best, sample=sample, seed=seed, detailed=detailed, **choices)
            return map(whole, found)
        return self._captions(files, self._options(n_best, sample, detailed, **choices), n_best, _seed(sample, seed))

    caption.__signature__ = signature(stream).replace(return_annotation="list[Caption]")  # type: ignore[attr-defined]

    def _captions(
        self, files: Iterable[Source], options: DecodeConfig, n_best: int, seed: int | None
    ) -> Iterator[Caption]:
        """The captions of `files`; those of a group of recordings are generated together."""
        for group in hear(self.engine, files, options, self.limits):
            tokens = [recording.h_a for recording in group if recording.h_a is not None]
            found = iter(self.engine.describe(tokens, options, n_best, seed))
            for r in group:
                if r.error is not None:
                    yield Caption.failed(r.name, r.error)
                else:
                    hypotheses = [] if r.h_a is None else next(found)
                    yield replace(Caption.of(r.name, r.duration, hypotheses, options), damage=r.told)

    def timeline(
        self, source: Source, window: float | None = None, hop: float | None = None, **options: Any
    ) -> Timeline:
        """The segments of a recording of any length, each as soon as it is final; then `caption` is that of the whole.

        Args:
            source: also a pipe: wav, flac, ogg, mp3, aac and webm are read as they come.
            window, hop: None: segments follow the sound. Else a fixed grid: windows of `window` seconds, one every
                `hop` seconds (one of the two left None: as the model's own, in proportion).
            options: `n_best`, `sample` and `seed` for the captions of the whole; `beams` for those of the segments too
                (None: greedy for segments that follow the sound, else the model's own number); `batch_size`;
                `listen`, a function that is handed the samples, in order, at the encoder's rate.

        Nothing is opened before the first segment is asked for, which raises AudioError for what cannot be read at all.
        What cannot be decoded later on is a segment "(unreadable)", with an AudioDamage (a warning).
        """
        plan = self._plan(window, hop, **options)
        return Timeline(name_of(source), timeline(self.engine, source, plan))

    def timelines(self, files: Iterable[Source], **options: Any) -> Iterator[Result]:
        """The `timeline` of each file as soon as its first segment is known; a caption with `error` if it has none."""
        plan = self._plan(**options)

        def found() -> Iterator[Result]:
            for file in files:
                segments = Timeline(name_of(file), timeline(self.engine, file, plan))
                try:
                    segments.begin()
                except audio.AudioError as error:
                    yield Caption.failed(segments.file, error)
                else:
                    yield segments

        return found()

    def _options(self, n_best: int, sample: bool, detailed: bool = False, **choices: Any) -> DecodeConfig:
        """The model's own options with the choices that are not None. Raises ValueError."""
        options = replace(self.options, **{name: value for name, value in choices.items() if value is not None})
        if detailed:
            options = replace(options, weigh=replace(options.weigh, doubt=0.0))
        if choices["window"] is not None and choices["hop"] is None:
            options = replace(options, hop=options.window * (self.options.hop / self.options.window))
        _check(options, n_best, choices["beams"], sample)
        if choices["beams"] is None:
            options = replace(options, beams=max(options.beams, n_best))
        return options

    def _plan(
        self,
        window: float | None = None,
        hop: float | None = None,
        *,
        n_best: int = 1,
        beams: int | None = None,
        sample: bool = False,
        seed: int | None = None,
        batch_size: int | None = None,
        detailed: bool = False,
        listen: Callable[[np.ndarray], None] | None = None,
    ) -> Plan:
        whole = self._options(n_best, sample, detailed, beams=beams, batch_size=batch_size, window=window, hop=hop)
        segments = replace(whole, beams=beams or self.options.beams)
        grid = window is not None or hop is not None
        if not grid:
            hop = max(1, round(whole.window / 2 / CELL)) * CELL
            segments = replace(segments, window=2 * hop, hop=hop, beams=beams or SEGMENT_BEAMS)
        return Plan(segments, whole, grid, n_best, _seed(sample, seed), listen, self.limits)


def _seed(sample: bool, seed: int | None) -> int | None:
    """The seed of `generate`: None for a search."""
    return (seed or 0) if sample else None


def _check(options: DecodeConfig, n_best: int, beams: int | None, sample: bool) -> None:
    for name in ("beams", "batch_size"):
        if getattr(options, name) < 1:
            raise OptionError(f"{name} must be at least 1, not {getattr(options, name)}")
    if n_best < 1:
        raise OptionError(f"n_best must be at least 1, not {n_best}")
    if beams is not None and n_best > beams and not sample:
        raise OptionError(f"n_best {n_best} needs as many beams, not {beams}", "raise beams, or sample")
    if not audio.MIN_DURATION <= options.hop <= options.window < math.inf:
        raise OptionError(
            f"window and hop are seconds from {audio.MIN_DURATION} on, and hop at most the window: "
            f"hop {options.hop}, window {options.window}"
        )
