"""The one door: sounds in, captions out. Command line, evaluation, services and pages all go through `Captioner`."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import audio, checkpoint
from .captions import Caption, Segment
from .config import DecodeConfig
from .decode import Hypothesis, generate
from .model import LambModel

SILENCE = Hypothesis("Silence.", 0.0)  # measured, not guessed: see lamb.audio.SILENCE_DBFS
AHEAD = 4  # windows of a recording that are decoded before their turn
GROUP = 4  # batches of clips that are sorted by length together
HELD = 256  # clips in such a group, unless a batch is larger: a long one keeps its file open


@dataclass
class _Recording:
    """A recording on its way through the model."""

    source: audio.Source
    name: str
    windows: Iterator[tuple[float, np.ndarray]] = field(default_factory=lambda: iter(()))
    duration: float = 0.0
    error: str | None = None
    h_a: list[Tensor] = field(default_factory=list)  # (N_a, D) of each window that is not silent
    spans: list[tuple[float, float]] = field(default_factory=list)  # seconds, of every window
    sounding: list[int] = field(default_factory=list)  # windows that h_a belongs to
    hypotheses: list[Hypothesis] = field(default_factory=list)
    window_hypotheses: dict[int, Hypothesis] = field(default_factory=dict)


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
            timeline: also caption every window of `window` seconds, one every `hop` seconds, as segments.
            hop: None: as the model's own, in proportion to the window.

        A caption covers its whole recording: one longer than a window is encoded window by window.
        """
        if isinstance(files, str | bytes) or hasattr(files, "read"):
            raise TypeError("files are given as a list, also a single one: caption([file])")
        chosen: dict[str, Any] = {"beams": beams, "batch_size": batch_size, "window": window, "hop": hop}
        options = replace(self.options, **{k: v for k, v in chosen.items() if v is not None})
        if window is not None and hop is None:
            options = replace(options, hop=window * (self.options.hop / self.options.window))
        _check(options, n_best, beams, sample)
        if beams is None:
            options = replace(options, beams=max(options.beams, n_best))
        job = _Job(self.model, options, n_best, (seed or 0) if sample else None, timeline)
        return job.run(files)


def _check(options: DecodeConfig, n_best: int, beams: int | None, sample: bool) -> None:
    for name in ("beams", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(options, name)}")
    if n_best < 1:
        raise ValueError(f"n_best must be at least 1, not {n_best}")
    if beams is not None and n_best > beams and not sample:
        raise ValueError(f"n_best {n_best} needs as many beams, not {beams}: raise beams, or sample")
    if not audio.MIN_DURATION <= options.hop <= options.window < math.inf:
        raise ValueError(
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
    timeline: bool

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
        """Fill h_a of every recording, its windows in batches of similar length."""
        held: list[tuple[_Recording, int, np.ndarray]] = []
        limit = self.options.batch_size * GROUP
        for recording in group:
            try:
                for start, x in recording.windows:
                    recording.duration = start + len(x) / self.model.encoder.sample_rate
                    if start and len(x) < audio.MIN_DURATION * self.model.encoder.sample_rate:
                        continue  # a last sliver too short to hold anything
                    recording.spans.append((start, recording.duration))
                    if not audio.is_silent(x):
                        held.append((recording, len(recording.spans) - 1, x))
                    if len(held) == limit:
                        self._encode_windows(held)
                        held = []
            except audio.AudioError as error:
                recording.error = f"{error.problem}; {error.remedy}"
        self._encode_windows(held)

    @torch.inference_mode()
    def _encode_windows(self, held: list[tuple[_Recording, int, np.ndarray]]) -> None:
        held.sort(key=lambda item: len(item[2]))
        tokens: dict[tuple[int, int], Tensor] = {}
        for part in _batches(held, self.options.batch_size):
            lengths = torch.tensor([len(x) for _, _, x in part])
            waveform = torch.zeros(len(part), int(lengths.max()))  # (B, T)
            for row, (_, _, x) in zip(waveform, part, strict=True):
                row[: len(x)] = torch.from_numpy(x)
            mask = torch.arange(waveform.shape[1]) < lengths[:, None]
            h_a, valid = self.model.encode(waveform.to(self.model.device), mask.to(self.model.device))
            for (recording, index, _), row, row_mask in zip(part, h_a, valid, strict=True):
                tokens[id(recording), index] = row[row_mask]  # (N_a, D)
        for recording, index, _ in sorted(held, key=lambda item: item[1]):
            recording.h_a.append(tokens[id(recording), index])
            recording.sounding.append(index)

    def _generate(self, group: Sequence[_Recording]) -> None:
        """Fill the hypotheses: of whole recordings, and with `timeline` of their windows."""
        whole: list[tuple[_Recording, int | None, Tensor]] = []
        for recording in group:
            if recording.error is None and recording.h_a:
                whole.append((recording, None, torch.cat(recording.h_a)))
                if self.timeline and len(recording.spans) > 1:
                    pairs = zip(recording.sounding, recording.h_a, strict=True)
                    whole += [(recording, index, h_a) for index, h_a in pairs]
        whole.sort(key=lambda item: len(item[2]))
        for part in _batches(whole, self.options.batch_size):
            h_a = torch.nn.utils.rnn.pad_sequence([x for _, _, x in part], batch_first=True)  # (B, N_a, D)
            lengths = torch.tensor([len(x) for _, _, x in part], device=h_a.device)
            mask = torch.arange(h_a.shape[1], device=h_a.device) < lengths[:, None]  # (B, N_a)
            with torch.inference_mode():
                z_a, valid = self.model.audio_tokens(h_a, mask)
            found = generate(self.model, z_a, valid, self.options, self.n_best, self.seed)
            for (recording, index, _), hypotheses in zip(part, found, strict=True):
                if index is None:
                    recording.hypotheses = hypotheses
                else:
                    recording.window_hypotheses[index] = hypotheses[0]

    def _result(self, recording: _Recording) -> Caption:
        if recording.error is not None:
            return Caption(recording.name, error=recording.error)
        hypotheses = recording.hypotheses or [SILENCE]
        return Caption(
            file=recording.name,
            duration=recording.duration,
            text=hypotheses[0].text,
            score=hypotheses[0].score,
            confidence=self._confidence(hypotheses[0]),
            captions=tuple(h.text for h in hypotheses),
            scores=tuple(h.score for h in hypotheses),
            segments=tuple(self._segments(recording, hypotheses[0])) if self.timeline else (),
        )

    def _segments(self, recording: _Recording, caption: Hypothesis) -> Iterator[Segment]:
        """The windows' captions in time, equal neighbours joined; where windows overlap, a cut half way."""
        spans, last = recording.spans, len(recording.spans) - 1
        pieces: list[tuple[float, float, str, float]] = []
        for k, (start, end) in enumerate(spans):
            hypothesis = caption if last == 0 else recording.window_hypotheses.get(k, SILENCE)
            start = start if k == 0 else (start + spans[k - 1][1]) / 2
            end = recording.duration if k == last else (end + spans[k + 1][0]) / 2
            confidence = self._confidence(hypothesis)
            if pieces and pieces[-1][2] == hypothesis.text:
                start, _, _, before = pieces.pop()
                confidence = max(confidence, before)
            pieces.append((start, end, hypothesis.text, confidence))
        for start, end, text, confidence in pieces:
            yield Segment(start, end, text, confidence)

    def _confidence(self, hypothesis: Hypothesis) -> float:
        """How likely the main sound is named, 0 to 1: the score as a probability, calibrated by the model's (a, b)."""
        if hypothesis is SILENCE:
            return 1.0
        offset, slope = self.options.confidence
        p = min(max(math.exp(hypothesis.score), 1e-6), 1 - 1e-6)
        return 1 / (1 + math.exp(-(offset + slope * math.log(p / (1 - p)))))


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for k in range(0, len(items), size):
        yield items[k : k + size]


def _chain(first: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    while first:
        yield first.pop(0)  # let go of each window as it is used
    yield from rest
