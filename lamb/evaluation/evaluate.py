"""`lamb evaluate`: the scores of the captions of a model, or of any other system, on a list of clips.

Clips with human captions give the caption scores (`scores`), and clips with labels the label measures (`labels`). A
list may have both. A clip that could not be captioned counts as one with an empty caption.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..audio.files import replacing
from ..data import sources
from ..data.coverage import Coverage, coverage
from ..data.manifest import Clip, ManifestError
from ..data.vocabulary import VOCABULARY
from ..errors import OptionError
from ..inference.captioner import Captioner
from ..inference.captions import Caption, no_formula
from .bootstrap import paired_test
from .labels import label_measures, label_scores
from .predictions import Progress, caption_clips, read_predictions
from .probes import probe_scores, probes
from .scores import SBERT, Measure, Round, Scored, averaged, score

LEAKAGE = (
    "Caution: AudioSet, on which CED and most audio encoders were trained, holds the AudioCaps test clips. Scores on "
    "AudioCaps, these and the published ones, are of sounds that the encoder may have heard in training."
)


@dataclass(frozen=True)
class Evaluation:
    """The result for one system. `coverage` lists the missing clips of a published test set."""

    system: str
    data: str
    clips: list[Clip]
    results: list[Caption]  # one for each clip
    labels: dict[str, float]  # label measures; empty where the clips have no labels
    measures: dict[str, Measure]  # over all clips
    left_out: dict[str, str] = field(default_factory=dict)  # measure: why it is missing, and how to get it
    notes: list[str] = field(default_factory=list)
    coverage: Coverage | None = None
    dropped: tuple[str, ...] = ()  # ids of clips that a file of captions lacks, and that were therefore left out

    @property
    def failed(self) -> int:
        """The number of clips that could not be captioned."""
        return sum(not result.ok for result in self.results)

    def reasons(self) -> dict[str, list[str]]:
        """The measures that were left out, grouped by the reason."""
        found: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            found.setdefault(reason, []).append(name)
        return found

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `lamb evaluate --json`: measures by name, their 95 % `intervals` and further facts."""
        missing = self.coverage.missing if self.coverage else self.dropped
        values: dict[str, float] = {"clips": len(self.clips), "failed": self.failed, "missing": len(missing)}
        values |= {"captioned_by_people": n} if (n := sum(bool(clip.captions) for clip in self.clips)) else {}
        values |= {name: number for name, number in self.labels.items() if name not in values}
        values |= {name: measure.value for name, measure in self.measures.items()}
        intervals = {name: list(m.interval) for name, m in self.measures.items() if m.interval is not None}
        more: dict[str, Any] = {"intervals": intervals, "left_out": self.left_out, "notes": self.notes}
        more |= {"missing_clips": list(missing), "test_set": self.coverage and self.coverage.test_set}
        return {**values, **more}


def evaluate(
    model: str,
    data: str,
    split: str | None = None,
    out: Path | None = None,
    *,
    sbert: str = SBERT,
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Caption `data` with a model and return its scores, `Evaluation.to_dict`. Errors: see `evaluate_models`."""
    return evaluate_models([model], data, split, [out], sbert=sbert, device=device, progress=progress)[0].to_dict()


def evaluate_models(
    systems: Sequence[str],
    data: str,
    split: str | None = None,
    outs: Sequence[Path | None] = (),
    *,
    sbert: str = SBERT,
    device: str | None = None,
    partial: bool = False,
    probe_seeds: Sequence[int] = (),
    progress: Progress | None = None,
    say: Any = lambda message: None,
) -> list[Evaluation]:
    """Score models, or files of predictions (CSV, JSONL), on the same clips.

    Args:
        outs: for each system, the folder in which the predictions of a model are kept, or None.
        sbert: the sentence model of SBERT similarity and FENSE.
        partial: whether clips that a file of predictions lacks are left out, for all systems.
        probe_seeds: seeds of the additional sounds that models caption, see `lamb.evaluation.probes`; none by default.
        progress: called with the number of clips that are done and the number of all clips.
        say: called with messages for the user.

    Raises ManifestError for data that cannot be used, OptionError for clips with neither captions nor known labels.
    """
    clips = sources.clips(data, split)
    _check(clips, data)
    spoken: list[dict[str, Caption]] = []
    for system, out in zip(systems, outs or [None] * len(systems), strict=True):
        if is_predictions(system):
            pairs = zip(*read_predictions(system, clips, partial), strict=True)
        else:
            if absent := next((clip.id for clip in clips if not clip.path), None):
                raise ManifestError(f"{data}: {absent} has no recording; a model needs some, see lamb data --help")
            pairs = zip(clips, caption_clips(system, clips, out, device, progress, say), strict=True)
        spoken.append({clip.id: caption for clip, caption in pairs})
    listed, clips = clips, [clip for clip in clips if all(clip.id in captions for captions in spoken)]
    if not clips:
        raise ManifestError(f"{data}: the systems have no clip in common")
    there = {clip.id for clip in clips}
    dropped = tuple(clip.id for clip in listed if clip.id not in there)
    results = [[captions[clip.id] for clip in clips] for captions in spoken]
    scored = _scored(clips, results, sbert)
    found = [
        replace(_evaluation(system, data, clips, own, scored, measures), dropped=dropped)
        for system, own, measures in zip(systems, results, scored.rounds, strict=True)
    ]
    if not probe_seeds:
        return found
    return [replace(one, labels={**one.labels, **_probed(one.system, clips, probe_seeds, device)}) for one in found]


def _probed(model: str, clips: Sequence[Clip], seeds: Sequence[int], device: str | None) -> dict[str, float]:
    if is_predictions(model):
        raise OptionError(f"{model}: only a model can caption the additional sounds of --probe", "give a model")
    captioner = Captioner.load(model, device)
    rate = captioner.engine.sample_rate
    made = probes(clips, rate, seeds)
    return probe_scores(made, captioner.caption((one.waveform(rate), rate) for one in made))


def folder_of(system: str, data: str, split: str | None, out: Path | None = None, several: bool = False) -> Path:
    """The folder for the predictions of a model: `out`, or a folder in it if there are `several` systems.

    Without `out` it is runs/evaluate/MODEL-DATA-SPLIT.
    """

    def name(*paths: str) -> str:
        return "-".join(part.lstrip(".") for path in paths for part in Path(path).parts if part.strip("./\\"))

    if out:
        return out / name(system) if several else out
    return Path("runs") / "evaluate" / name(system, str(Path(data).with_suffix("")), *([split] if split else []))


def is_predictions(system: str) -> bool:
    """Whether a system is a file of captions rather than a model."""
    return Path(system).suffix.lower() in (".csv", ".tsv", ".jsonl") or Path(system).is_file()


def evaluate_people(data: str, split: str | None = None, *, sbert: str = SBERT) -> Evaluation:
    """Score people for comparison: each human caption against the others of its clip, leave-one-out.

    Round k scores caption k of every clip that has one besides another; the result is the mean over all rounds.
    """
    clips = [clip for clip in sources.clips(data, split) if len(clip.captions) > 1]
    if not clips:
        raise ManifestError(f"{data}: no clip has two captions; people are compared with each other")
    most = max(len(clip.captions) for clip in clips)
    places = [[n for n, clip in enumerate(clips) if len(clip.captions) > k] for k in range(most)]
    rounds = [
        Round(
            [clips[n].captions[k] for n in place],
            [[*clips[n].captions[:k], *clips[n].captions[k + 1 :]] for n in place],
        )
        for k, place in enumerate(places)
    ]
    scored = score(rounds, sbert)
    measures = averaged(scored.rounds, places, len(clips))
    said = [Caption(clip.path or clip.id, text=clip.captions[0]) for clip in clips]
    return _evaluation("people", data, clips, said, scored, measures, people=True)


def compare(first: Evaluation, second: Evaluation) -> dict[str, dict[str, float]]:
    """Paired bootstrap test of every measure that both systems have for each clip: {measure: {difference, p}}."""
    found = {}
    for name, a in first.measures.items():
        b = second.measures.get(name)
        if b is not None and a.counts is not None and b.counts is not None:
            difference, p = paired_test(a.counts, b.counts, of=a.of)
            found[name] = {"difference": difference, "p": p}
    return found


def _check(clips: Sequence[Clip], data: str) -> None:
    """Raise an error if there is nothing to score."""
    if any(clip.captions for clip in clips):
        return
    if unknown := _unknown(clips):
        problem = f"no captions, and labels without a word list: {', '.join(unknown)}"
        raise OptionError(f"{data}: {problem}", "add their words to lamb/data/vocabulary.txt")
    if not any(clip.labels for clip in clips):
        raise OptionError(
            f"{data}: has neither labels nor captions to compare with", "give a manifest that has one of them"
        )


def _unknown(clips: Sequence[Clip]) -> list[str]:
    return sorted({label for clip in clips for label in clip.labels} - VOCABULARY.keys())


def _scored(clips: Sequence[Clip], results: Sequence[Sequence[Caption]], sbert: str) -> Scored:
    """The caption scores of each system; a clip without human captions has nan."""
    there = [n for n, clip in enumerate(clips) if clip.captions]
    if not there:
        return Scored([{} for _ in results])
    references = [clips[n].captions for n in there]
    scored = score([Round([own[n].text for n in there], references) for own in results], sbert)
    scored.rounds = [averaged([measures], [there], len(clips)) for measures in scored.rounds]
    return scored


def _evaluation(
    system: str,
    data: str,
    clips: list[Clip],
    results: list[Caption],
    scored: Scored,
    measures: dict[str, Measure],
    people: bool = False,
) -> Evaluation:
    left_out, labels = dict(scored.left_out), {}
    labelled = [n for n, clip in enumerate(clips) if clip.labels]
    if labelled and not people:
        if unknown := _unknown(clips):
            left_out["label_named"] = f"labels without words in lamb/data/vocabulary.txt: {', '.join(unknown)}"
        else:
            labels = label_scores([clips[n] for n in labelled], [results[n] for n in labelled])
            if all(result.confidence is None for result in results):
                for name in ("calibration_error", "auroc"):  # this system gives no confidence
                    labels.pop(name, None)
            measures = {**label_measures(clips, results), **measures}
    notes, found = list(scored.notes), coverage(clips)
    if found and found.test_set == "audiocaps-test" and not people:
        notes.append(LEAKAGE)
    return Evaluation(system, data, clips, results, labels, measures, left_out, notes, found)


def write_csv(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write one row per clip and system: system, id, caption, error, and the score of the clip in each measure.

    A text that begins with one of `=+-@` gets an apostrophe in front, because a spreadsheet would run it as a formula.
    """
    names = list(dict.fromkeys(n for one in evaluations for n, m in one.measures.items() if m.per_clip is not None))

    def rows() -> Iterator[list[str]]:
        yield ["system", "id", "caption", "error", *names]
        for one in evaluations:
            columns = [one.measures[n].per_clip if n in one.measures else None for n in names]
            for k, (clip, result) in enumerate(zip(one.clips, one.results, strict=True)):
                texts = [one.system, clip.id, result.text, result.error or ""]
                scores = ["" if c is None or np.isnan(c[k]) else f"{c[k]:.6f}" for c in columns]
                yield [*map(no_formula, texts), *scores]

    with replacing(path) as part, part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows())
