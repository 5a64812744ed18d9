"""What sounds and how people say it: labels with their words, phrases and relatives, from `vocabulary.txt` (which
explains its own lines). Captions of scenes are composed of its phrases; measures find its words in captions. [O]
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Phrase:
    """One way to say what sounds."""

    subject: str
    finite: str
    ing: str
    times: str = ""  # "any": a number of times may follow; "many": says that there are several
    only: tuple[str, ...] = ()  # said of recordings alone whose description holds one of these words

    @property
    def clause(self) -> str:
        return f"{self.subject} {self.finite}"

    @property
    def noun(self) -> str:
        return f"{self.subject} {self.ing}"


@dataclass(frozen=True)
class Entry:
    """A label of the vocabulary."""

    words: tuple[str, ...]  # that name it in a caption; a star stands for any ending
    parents: tuple[str, ...] = ()  # upper classes that it is one of
    like: tuple[str, ...] = ()  # labels that a listener may take for it, as the file gives them: one way
    phrases: tuple[Phrase, ...] = ()  # none: a kind that no model here is trained on


def read(path: Path) -> dict[str, Entry]:
    """The labels of a vocabulary file, in its order; ValueError names a line that cannot be read."""
    found: dict[str, dict[str, list[Any]]] = {}
    label = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not text or line.startswith("#"):
            continue
        if not line.startswith(" "):
            names, _, like = text.partition("~")
            label, _, parents = (part.strip() for part in names.partition("<"))
            found[label] = {"words": [], "parents": _listed(parents), "like": _listed(like), "phrases": []}
        elif text.startswith("="):
            found[label]["words"] += _listed(text[1:])
        elif text.count("|") >= 2:
            found[label]["phrases"].append(_phrase(text))
        else:
            raise ValueError(f"{path}, line {number}: neither a label, nor words, nor a phrase: {text!r}")
    return {name: Entry(**{key: tuple(values) for key, values in parts.items()}) for name, parts in found.items()}


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _phrase(line: str) -> Phrase:
    subject, finite, ing, *marks = (part.strip() for part in line.split("|"))
    times = next((mark for mark in marks if mark in ("any", "many")), "")
    only = next((_listed(mark[3:]) for mark in marks if mark.startswith("if ")), [])
    return Phrase(subject, finite, ing, times, tuple(only))


# Labels of collections that are one kind to a listener, and the label that stands for them
SAME = {"dog_bark": "dog", "engine_idling": "engine", "car_engine": "engine"}
_OWN = read(Path(__file__).with_name("vocabulary.txt"))
VOCABULARY: dict[str, Entry] = {**_OWN, **{label: _OWN[same] for label, same in SAME.items()}}
PHRASES: dict[str, tuple[Phrase, ...]] = {name: entry.phrases for name, entry in VOCABULARY.items() if entry.phrases}
PARENTS = {parent for entry in VOCABULARY.values() for parent in entry.parents}  # labels that are upper classes


# A word of the vocabulary as (its parts, whether any ending may follow), and the labels that it names
Pattern = tuple[tuple[str, ...], bool, frozenset[str]]


@dataclass(frozen=True)
class Mention:
    """A place in a caption that names something."""

    start: int  # in characters
    labels: frozenset[str]  # that the words there may stand for


@cache
def ancestors(label: str) -> frozenset[str]:
    """The upper classes that `label` belongs to, near and far."""
    near = frozenset(VOCABULARY[label].parents)
    return near.union(*map(ancestors, near))


@cache
def akin(label: str) -> frozenset[str]:
    """Labels that are no other kind than `label`: itself, its upper classes, what it is an upper class of, and what a
    listener may take for it, in either direction."""
    label = SAME.get(label, label)
    below = {name for name in _OWN if label in ancestors(name)} if label in PARENTS else set()
    like = {name for name, entry in _OWN.items() if label in entry.like}
    return frozenset({label, *ancestors(label), *below, *like, *VOCABULARY[label].like})


def mentions(caption: str) -> list[Mention]:
    """Where `caption` holds words of the vocabulary, in their order; of words that begin together the longest counts:
    "a bass drum" is no drum, "wind chimes" are no wind."""
    places = list(_WORD.finditer(caption.lower()))
    words = [place[0] for place in places]
    found, k = [], 0
    while k < len(words):
        pattern = next((p for p in PATTERNS.get(words[k][:2], ()) if _fits(words[k : k + len(p[0])], p)), None)
        if pattern is not None:
            found.append(Mention(places[k].start(), pattern[2]))
        k += len(pattern[0]) if pattern is not None else 1
    return found


def _fits(words: list[str], pattern: Pattern) -> bool:
    parts, open_end, _ = pattern
    if len(words) < len(parts) or words[:-1] != list(parts[:-1]):
        return False
    return words[-1].startswith(parts[-1]) if open_end else words[-1] == parts[-1]


def _patterns(vocabulary: Iterable[tuple[str, Entry]]) -> dict[str, list[Pattern]]:
    """By the first two letters of their first part, the longest first."""
    labels: dict[str, set[str]] = {}
    for label, entry in vocabulary:
        for word in entry.words:
            labels.setdefault(word, set()).add(label)
    found: dict[str, list[Pattern]] = {}
    for word in sorted(labels, key=lambda word: (-len(_WORD.findall(word)), -len(word))):
        parts = tuple(_WORD.findall(word))
        found.setdefault(parts[0][:2], []).append((parts, word.endswith("*"), frozenset(labels[word])))
    return found


_WORD = re.compile(r"[a-z0-9]+")
PATTERNS = _patterns(_OWN.items())


def place(caption: str, label: str) -> int | None:
    """Where `caption` first names the label, in characters; None where it does not."""
    label = SAME.get(label, label)
    return next((mention.start for mention in mentions(caption) if label in mention.labels), None)


def names(caption: str, label: str) -> bool:
    """Whether `caption` names the label."""
    return place(caption, label) is not None


def extra(caption: str, labels: Iterable[str]) -> int:
    """How many sounds `caption` names that are not there, where `labels` are: mentions of neither a label nor its kin;
    those of one kind count once."""
    there = frozenset().union(*map(akin, labels))
    kinds: list[frozenset[str]] = []
    for mention in mentions(caption):
        if not mention.labels & there and not any(mention.labels & kind for kind in kinds):
            kinds.append(mention.labels.union(*map(akin, mention.labels)))
    return len(kinds)


def is_clean(caption: str, labels: Iterable[str]) -> bool:
    """Whether `caption` names every one of `labels` and no other kind."""
    labels = tuple(labels)
    return all(names(caption, label) for label in labels) and not extra(caption, labels)
