"""The report's part on labelled recordings: how often each label is named, and what is said in its place. [O]"""

from collections import Counter
from collections.abc import Sequence

from ..data.manifest import Clip
from ..data.vocabulary import PHRASES, akin, mentions, names
from ..inference.captions import Caption
from .evaluate import Evaluation

CONFUSED = 3  # sounds that are listed beside a label


def label_rows(evaluations: Sequence[Evaluation]) -> list[list[str]]:
    """A row for each label that a model may know: its clips, the share of them in which each system names it, and what
    the captions of the first system that do not name it say, with how often. The labels named least come first."""
    clips = evaluations[0].clips
    places: dict[str, list[int]] = {}
    for k, clip in enumerate(clips):
        for label in clip.labels:
            if label in PHRASES:
                places.setdefault(label, []).append(k)
    rows = []
    for label, own in places.items():
        shares = [sum(_named(one.results[k], label) for k in own) / len(own) for one in evaluations]
        first = evaluations[0].results
        said = Counter(sound for k in own if not _named(first[k], label) for sound in _said(clips[k], first[k]))
        told = ", ".join(f"{_words(sound)} ({count})" for sound, count in said.most_common(CONFUSED))
        rows.append((shares[0], label, [_words(label), str(len(own)), *(f"{share:.2f}" for share in shares), told]))
    return [row for *_, row in sorted(rows, key=lambda row: row[:2])]


def surest(one: Evaluation, right: bool) -> list[int]:
    """The clips whose labels a model may know and are all named, or not all (`right`); the highest confidence first."""
    found = [
        k
        for k, (clip, result) in enumerate(zip(one.clips, one.results, strict=True))
        if clip.labels
        and set(clip.labels) <= PHRASES.keys()
        and all(_named(result, label) for label in clip.labels) == right
    ]
    return sorted(found, key=lambda k: -(one.results[k].confidence or 0.0))


def _named(result: Caption, label: str) -> bool:
    return result.ok and names(result.text, label)


def _said(clip: Clip, result: Caption) -> list[str]:
    """What a caption names, one label for each sound, without what is another word for what is there if it can be."""
    if not result.ok:
        return ["no caption"]
    there = frozenset().union(*map(akin, clip.labels))
    named = [(min(mention.labels), bool(mention.labels & there)) for mention in mentions(result.text)]
    said = [label for label, near in named if not near] or [label for label, _ in named]
    return list(dict.fromkeys(said)) or ["nothing of the vocabulary"]


def _words(label: str) -> str:
    return label.replace("_", " ")
