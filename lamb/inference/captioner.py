"""The one door: sounds in, captions out. Command line, evaluation, services and pages all go through `Captioner`."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..audio import reader as audio
from ..config import DecodeConfig
from ..errors import OptionError
from ..model import checkpoint
from ..model.lamb import LambModel
from .batches import SILENCE, describe, encode
from .captions import Caption, Timeline
from .changes import CELL, Summary
from .confidence import confidence_of
from .generation import Hypothesis
from .timeline import Plan, timeline

AHEAD = 4  # windows of a recording that are decoded before their turn
GROUP = 4  # batches of clips that are sorted by length together
HELD = 256  # clips in such a group, unless a batch is larger: a long one keeps its file open
SEGMENT_BEAMS = 1  # as many labels named as with 4, in a third of the time: benchmarks/timeline.py [O]


@dataclass
class _Recording:
    """A recording on its way through the model."""

    source: audio.Source
    name: str
    windows: Iterator[tuple[float, np.ndarray]] = field(default_factory=lambda: iter(()))
    duration: float = 0.0
    error: str | None = None
    summary: Summary = field(default_factory=Summary)
    hypotheses: list[Hypothesis] = field(default_factory=list)


class Captioner:
    """A model ready for use.

    >>> Captioner.load("tiny").caption(["dog.wav"])[0].text  # doctest: +SKIP
    'A dog barks.'
    """

    def __init__(self, model: LambModel, options: DecodeConfig | None = None):
        self.model = model.eval()
        self.options = options or model.config.decode

    @classmethod
    def load(cls, name: str = "tiny", device: str | None = None) -> "Captioner":
        """A bundled model by name, a folder, or a Hugging Face hub id, on `device` ("cpu", "cuda"; None: a GPU if any).

        Raises CheckpointError, a ValueError, with the remedy in its text.
        """
        model = checkpoint.load(name, _device(device))
        model.merge_lora()
        return cls(model)

    def caption(self, files: Iterable[audio.Source], **options: Any) -> list[Caption]:
        """The captions of `files`, in their order; the keywords are those of `stream`."""
        return list(self.stream(files, **options))

    def stream(
        self,
        files: Iterable[audio.Source],
        *,
        n_best: int = 1,
        beams: int | None = None,
        sample: bool = False,
        seed: int | None = None,
        batch_size: int | None = None,
        timeline: bool = False,
        window: float | None = None,
        hop: float | None = None,
    ) -> Iterator[Caption]:
        """Captions in the order of `files`, as they come; a file that cannot be read gives one with `error` set.

        Args:
            files: paths, bytes, binary file objects or (array, rate) pairs.
            n_best: alternatives for each file, best first.
            beams: of the beam search, 1 for greedy; None: the model's own number.
            sample: draw captions at random (`seed`, 0 if None) instead of searching the best.
            batch_size: files generated together.
            timeline: also say what is heard when, as segments; see `timeline` for `window` and `hop`.

        A caption covers its whole recording: one longer than a window is encoded window by window.
        """
        if isinstance(files, str | bytes) or hasattr(files, "read"):
            raise TypeError("files are given as a list, also a single one: caption([file])")
        choices: dict[str, Any] = {"beams": beams, "batch_size": batch_size, "window": window, "hop": hop}
        if timeline:
            found = self.timelines(files, n_best=n_best, sample=sample, seed=seed, **choices)
            return (result.finish() if isinstance(result, Timeline) else result for result in found)
        job = _Job(self.model, self._options(n_best, sample, **choices), n_best, (seed or 0) if sample else None)
        return job.run(files)

    def timeline(
        self, source: audio.Source, window: float | None = None, hop: float | None = None, **options: Any
    ) -> Timeline:
        """The segments of a recording of any length, each as soon as it is final; then its `caption` is the whole's.

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
        return Timeline(audio.name(source), timeline(self.model, source, plan))

    def timelines(self, files: Iterable[audio.Source], **options: Any) -> Iterator[Caption | Timeline]:
        """The `timeline` of each file as soon as its first segment is known; a caption with `error` if it has none."""
        plan = self._plan(**options)

        def found() -> Iterator[Caption | Timeline]:
            for file in files:
                segments = Timeline(audio.name(file), timeline(self.model, file, plan))
                try:
                    segments.begin()
                except audio.AudioError as error:
                    yield Caption(segments.file, error=f"{error.problem}; {error.remedy}")
                else:
                    yield segments

        return found()

    def _options(self, n_best: int, sample: bool, **choices: Any) -> DecodeConfig:
        """The model's own options with the choices that are not None. Raises ValueError."""
        options = replace(self.options, **{name: value for name, value in choices.items() if value is not None})
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
        listen: Callable[[np.ndarray], None] | None = None,
    ) -> Plan:
        whole = self._options(n_best, sample, beams=beams, batch_size=batch_size, window=window, hop=hop)
        segments = replace(whole, beams=beams or self.options.beams)
        grid = window is not None or hop is not None
        if not grid:
            hop = max(1, round(whole.window / 2 / CELL)) * CELL
            segments = replace(segments, window=2 * hop, hop=hop, beams=beams or SEGMENT_BEAMS)
        return Plan(segments, whole, grid, n_best, (seed or 0) if sample else None, listen)


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


def _device(name: str | None) -> str:
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or ["not available"])[0]
        raise checkpoint.CheckpointError(
            f"device {name!r} cannot be used ({reason}); try cpu, or cuda with a GPU"
        ) from None
    return name


@dataclass
class _Job:
    """One call of `stream`: decoding in background threads, encoding and generating in batches of similar length."""

    model: LambModel
    options: DecodeConfig
    n_best: int
    seed: int | None

    def run(self, files: Iterable[audio.Source]) -> Iterator[Caption]:
        size = max(self.options.batch_size, min(self.options.batch_size * GROUP, HELD))
        todo = iter(files)
        with ThreadPoolExecutor(2, thread_name_prefix="lamb-decode") as pool:
            ahead: deque[Future[_Recording]] = deque(pool.submit(self._open, f) for f in islice(todo, size))
            try:
                while ahead:
                    # decoding goes on while the model works on this group
                    futures = [ahead.popleft() for _ in range(min(size, len(ahead)))]
                    ahead.extend(pool.submit(self._open, f) for f in islice(todo, size))
                    group = [future.result() for future in futures]
                    self._encode(group)
                    self._generate(group)
                    yield from map(self._result, group)
            finally:
                for future in ahead:
                    future.cancel()

    def _open(self, source: audio.Source) -> _Recording:
        """Decode the first windows of `source`; the rest, of a long one, when it is its turn."""
        recording = _Recording(source, audio.name(source))
        rate = self.model.encoder.sample_rate
        try:
            rest = audio.windows(source, rate, self.options.window, self.options.hop)
            first = list(islice(rest, AHEAD))
            recording.windows = _chain(first, rest if len(first) == AHEAD else iter(()))
        except audio.AudioError as error:
            recording.error = f"{error.problem}; {error.remedy}"
        return recording

    def _encode(self, group: Sequence[_Recording]) -> None:
        """Fill the summary of every recording, its windows in batches of similar length."""
        held: list[tuple[_Recording, np.ndarray]] = []
        limit = self.options.batch_size * GROUP
        rate = self.model.encoder.sample_rate
        for recording in group:
            try:
                for start, x in recording.windows:
                    recording.duration = start + len(x) / rate
                    if start and len(x) < audio.MIN_DURATION * rate:
                        continue  # a last sliver too short to hold anything
                    if not audio.is_silent(x):
                        held.append((recording, x))
                    if len(held) == limit:
                        self._encode_windows(held)
                        held = []
            except audio.AudioError as error:
                recording.error = f"{error.problem}; {error.remedy}"
        self._encode_windows(held)

    def _encode_windows(self, held: list[tuple[_Recording, np.ndarray]]) -> None:
        tokens = encode(self.model, [x for _, x in held], self.options.batch_size)
        for (recording, _), h_a in zip(held, tokens, strict=True):
            recording.summary.add(h_a)

    def _generate(self, group: Sequence[_Recording]) -> None:
        """Fill the hypotheses."""
        tokens = [(r, h_a) for r in group if r.error is None and (h_a := r.summary.tokens()) is not None]
        found = describe(self.model, [h_a for _, h_a in tokens], self.options, self.n_best, self.seed)
        for (recording, _), hypotheses in zip(tokens, found, strict=True):
            recording.hypotheses = hypotheses

    def _result(self, recording: _Recording) -> Caption:
        if recording.error is not None:
            return Caption(recording.name, error=recording.error)
        hypotheses = recording.hypotheses or [SILENCE]
        known = hypotheses[0] is SILENCE
        return Caption(
            file=recording.name,
            duration=recording.duration,
            text=hypotheses[0].text,
            score=hypotheses[0].score,
            confidence=1.0 if known else confidence_of(hypotheses[0], self.options),
            sounds=hypotheses[0].sounds,
            captions=tuple(h.text for h in hypotheses),
            scores=tuple(h.score for h in hypotheses),
        )


def _chain(first: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    while first:
        yield first.pop(0)  # let go of each window as it is used
    yield from rest
