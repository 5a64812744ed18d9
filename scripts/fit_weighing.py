"""Fit how a model weighs the sounds of its candidate captions (`lamb.inference.weighing`), and show what settings do.

    python scripts/fit_weighing.py MODEL ../shared/sounds ../shared/sounds-more [doubt=1 upper=0.5 ...]

It hears recordings of half of the development sources, of labels that the model knows; pairs of them drawn from seeds
that nothing else uses; and eight of the kinds that no model is trained on. The confidence of a sound and of a caption
are fitted, and settings shown beside each other. Those that are given are written into MODEL's lamb.json, with the
fitted numbers.
"""

import hashlib
import json
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from lamb.config import DecodeConfig, RerankingConfig, WeighConfig, to_dict
from lamb.data import loader, sources
from lamb.data.manifest import Clip
from lamb.data.vocabulary import PARENTS, SAME, ancestors, extra, is_clean, names
from lamb.evaluation.labels import auroc, calibration_error
from lamb.evaluation.probes import probes
from lamb.extensions import load
from lamb.inference.confidence import logistic
from lamb.inference.engine import Engine, pad
from lamb.inference.generation import generate
from lamb.inference.weighing import Weigher, caption_confidence, logit, sounds_of, weigh

SEEDS = (101, 102)  # of the pairs
PAIRS = 150  # of each kind and seed
OFFERED = 6  # sentences, the last ones of a candidate list: two kinds, both of them in two ways, two upper classes
SEARCH = {"guide": float, "length_penalty": float, "beams": int}  # settings of the search
UNHEARD = ("donkey", "theremin", "camera", "velcro", "stapler", "vomiting", "can_opener", "whale")  # seen by the fit


@dataclass
class Item:
    """A sound with its candidates: their texts, scores and measures."""

    kind: str  # single, sequence, overlap, unheard
    labels: tuple[str, ...]
    texts: list[str]
    measured: list[tuple[float, list[list[float]]]]


def is_chosen(clip: Clip) -> bool:
    """Whether the clip is of the half of the sources that is fitted on."""
    return hashlib.sha256((clip.source or clip.id).encode()).digest()[0] % 2 == 0


def waveforms(folders: list[str], rate: int, known: set[str]) -> list[tuple[str, tuple[str, ...], np.ndarray]]:
    """(kind, labels, samples) of all that is fitted on; single recordings of the `known` labels alone."""
    clips = [clip for folder in folders for clip in sources.sounds(folder)]
    held = [
        c for c in clips if c.split == "development" and is_chosen(c) and SAME.get(c.labels[0], c.labels[0]) in known
    ]
    strange = [clip for clip in clips if clip.labels[0] in UNHEARD]
    found = []
    for kind, part in (("single", held), ("unheard", strange)):
        for label, by_source in loader.recordings(part, rate).items():
            found += [(kind, (label,), r.samples.astype(np.float32) / 32767) for own in by_source for r in own]
    own = [clip for clip in held if Path(clip.path).resolve().is_relative_to(Path(folders[0]).resolve())]
    for probe in probes(own, rate, SEEDS, PAIRS):
        if probe.kind != "nothing":
            found.append((probe.kind, probe.labels, probe.waveform(rate)))
    return found


def collect(model_name: str, folders: list[str], search: dict[str, float]) -> list[Item]:
    """Candidates of every sound, with what is measured of them, found with these settings of the search."""
    model = load(model_name)
    model.config = replace(model.config, extensions=replace(model.config.extensions, reranking=RerankingConfig()))
    model.eval()
    options = replace(model.config.decode, **search)
    known = {SAME.get(label, label) for label in model.encoder.labels}
    sounds = waveforms(folders, model.encoder.sample_rate, known)
    engine = Engine(model)
    runtime = engine.runtime
    tokens = engine.encode([x[: 10 * engine.sample_rate] for *_, x in sounds], 16)
    weigher, items = Weigher(runtime, options), []
    order = sorted(range(len(sounds)), key=lambda k: len(tokens[k]))
    for begin in range(0, len(order), 16):
        batch = order[begin : begin + 16]
        h_a, mask = pad([tokens[k] for k in batch])
        decoding = runtime.decoding(*runtime.audio_tokens(h_a, mask), options.guide)
        found = generate(runtime, decoding, options, options.beams)
        clip, frame = runtime.tag(h_a, mask)
        frame = frame * mask[..., None]
        texts = weigher.candidates(clip, frame, found)
        rows = weigher.measure(clip, frame, decoding, texts, found)
        items += [Item(*sounds[k][:2], own, row) for k, own, row in zip(batch, texts, rows, strict=True)]
        print(f"{len(items)} of {len(sounds)}", file=sys.stderr, flush=True)
    return items


def is_there(named: frozenset[str], labels: tuple[str, ...]) -> bool:
    """Whether words for `named` are right where `labels` sound: for one of them, or its upper class."""
    return bool(named & set(labels)) or (named <= PARENTS and any(named & ancestors(label) for label in labels))


def fit_sounds(items: list[Item]) -> tuple[float, ...]:
    """w: each sound that any candidate of an item names counts once."""
    x, y = [], []
    for item in items:
        seen = set()
        for text, (_, measures) in zip(item.texts, item.measured, strict=True):
            for sound, measure in zip(sounds_of(text)[0], measures, strict=True):
                if (key := (sound.labels, measure[5])) not in seen:
                    seen.add(key)
                    x.append(measure)
                    y.append(is_there(sound.labels, item.labels))
    prior = np.array(WeighConfig().sound)
    w = logistic(np.array(x), np.array(y), prior)
    c = 0.5 + 0.5 * np.tanh(np.array(x) @ w / 2)
    print(f"sounds: {len(y)}, right {np.mean(y):.3f}, AUROC {auroc(c.tolist(), y):.3f}, w {np.round(w, 3).tolist()}")
    return tuple(float(v) for v in w)


def chosen(item: Item, options: WeighConfig):
    """The best candidate of an item."""
    offered = len(item.texts) - (0 if options.offered else OFFERED)
    rows = zip(item.texts[:offered], item.measured[:offered], strict=True)
    return max((weigh(text, *measured, options) for text, measured in rows), key=lambda row: row[0])[1]


def fit_caption(items: list[Item], options: WeighConfig) -> tuple[float, float, float]:
    """(a, b, u) on the captions that the options choose, of single recordings."""
    x, y = [], []
    for item in (item for item in items if item.kind in ("single", "unheard")):
        best = chosen(item, options)
        product_ = float(np.prod([sound.confidence for sound in best.sounds]))
        x.append([1.0, logit(product_), float(any(set(s.labels) <= PARENTS for s in best.sounds))])
        y.append(is_clean(best.text, item.labels))
    a, b, u = logistic(np.array(x), np.array(y), np.array([0.0, 1.0, 0.0]))
    return float(a), float(b), float(u)


def scores(items: list[Item], options: WeighConfig) -> dict[str, float]:
    """What the options give on the items."""
    found: dict[str, float] = {}
    sure, right = [], []
    for kind in ("single", "sequence", "overlap", "unheard"):
        own = [item for item in items if item.kind == kind]
        best = [chosen(item, options) for item in own]
        pairs = list(zip(own, best, strict=True))
        extras = [extra(h.text, item.labels) for item, h in pairs]
        confidence = [caption_confidence(h.sounds, options) for h in best]
        clean = [is_clean(h.text, item.labels) for item, h in pairs]
        if kind in ("single", "unheard"):
            sure += confidence
            right += clean
        if kind == "unheard":
            found["fair"] = float(np.mean([not e or c <= 0.5 for e, c in zip(extras, confidence, strict=True)]))
            continue
        found[f"{kind} named"] = float(np.mean([all(names(h.text, one) for one in i.labels) for i, h in pairs]))
        found[f"{kind} extra"] = float(np.mean(extras))
        if kind == "single":
            found["clean"] = float(np.mean(clean))
    return {**found, "ECE": calibration_error(sure, right), "AUROC": auroc(sure, right)}


def main() -> None:
    model, *rest = sys.argv[1:]
    given = {key: float(value) for key, _, value in (word.partition("=") for word in rest if "=" in word)}
    search = {key: SEARCH[key](given.pop(key)) for key in list(given) if key in SEARCH}
    items = collect(model, [word for word in rest if "=" not in word], search)
    options = replace(WeighConfig(), enabled=True, sound=fit_sounds(items))
    grid = [] if given else list(product((0.5, 1.0, 1.5), (0.3, 0.6), (0.05, 0.2), (0, 2)))
    for doubt, upper, wording, offered in grid:
        one = replace(options, doubt=doubt, upper=upper, wording=wording, offered=offered)
        one = replace(one, caption=fit_caption(items, one))
        shown = "  ".join(f"{name} {value:.3f}" for name, value in scores(items, one).items())
        print(f"doubt {doubt} upper {upper} wording {wording} offered {offered}: {shown}")
    if given:
        options = replace(options, **{**given, "offered": int(given.get("offered", options.offered))})
        options = replace(options, caption=fit_caption(items, options))
        print(scores(items, options))
        file = Path(model) / "lamb.json"
        facts = json.loads(file.read_text())
        decode: DecodeConfig = replace(DecodeConfig(), weigh=options)
        facts["config"]["decode"] |= {**search, "weigh": to_dict(decode)["weigh"]}
        file.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
