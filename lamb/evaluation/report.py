"""The report of `lamb evaluate --report`: one self-contained HTML page.

It holds tables beside the published numbers, what is named of each label, distributions, and clips with sound,
spectrogram, caption and references: the best, median and worst by a score of captions, or, of recordings that only have
labels, those that are right and wrong with the most confidence. Everything that comes from the data is escaped, and the
page runs no script.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from .. import __version__
from ..audio import files
from ..audio import reader as audio
from ..data.manifest import Clip
from ..inference.picture import spectrogram_png
from .evaluate import LEAKAGE, Evaluation
from .report_labels import label_rows, surest
from .scores import NAMES

COLUMNS = ("meteor", "cider_d", "spice", "spider", "spider_fl", "fense")
# As the LAMB paper reports them, times 100, in the order of COLUMNS; people: leave-one-out.
PUBLISHED: dict[str, dict[str, tuple[float | None, ...]]] = {
    "audiocaps-test": {
        "SLAM-AAC": (26.8, 84.1, 19.4, 51.8, 51.5, 66.8),
        "EGPL-AAC": (26.7, 85.2, 19.7, 52.5, 52.2, 66.2),
        "LAMB, the paper": (27.1, 91.1, 19.7, 55.4, 55.3, 67.7),
        "people": (None, None, None, 55.9, None, 68.0),
    },
    "clotho-evaluation": {
        "SLAM-AAC": (19.7, 51.5, 14.8, 33.2, 33.0, 54.0),
        "EGPL-AAC": (19.7, 54.0, 15.2, 34.6, 34.4, 53.7),
        "LAMB, the paper": (19.8, 52.3, 14.7, 33.4, 33.1, 53.4),
        "people": (None, None, None, 56.7, None, 57.4),
    },
}
TITLES = {"audiocaps-test": "AudioCaps test", "clotho-evaluation": "Clotho evaluation"}
RANKED_BY = ("spider", "cider_d")  # clips are sorted by the measure that most of them have
DRAWN = ("spider", "cider_d", "meteor", "rouge_l", "fense", "sbert", "length")  # histograms
COLOURS = ("#2a78d6", "#d6702a")  # of the first and the second system
SHOWN = 6  # clips shown as best, as median and as worst
SECONDS = 30.0  # longest sound in the page
RATE = 16_000  # Hz of the sound in the page

STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8881; --accent: #2a78d6; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, .words th:last-child, .words td:last-child { text-align: left; }
.words td:last-child { white-space: normal; } tr.own { font-weight: 600; background: var(--soft); }
.note { color: color-mix(in srgb, currentColor 75%, transparent); font-size: .9rem; overflow-wrap: anywhere; }
.clips { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
article { border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; overflow-wrap: anywhere; min-width: 0; }
article img { width: 100%; height: 6rem; display: block; border-radius: .25rem; }
audio { width: 100%; margin: .5rem 0; }
.caption { font-weight: 600; margin: .25rem 0; } ul { margin: .25rem 0; padding-left: 1.2rem; }
svg { width: 100%; height: auto; } code { overflow-wrap: anywhere; }
@media (max-width: 32rem) { th, td { padding: .25rem .3rem; font-size: .85rem; } }
"""


def write(evaluations: Sequence[Evaluation], folder: Path, command: str = "") -> Path:
    """Write `folder`/report.html about one system, or several on the same clips; return its path.

    `command` is what made it, for whoever wants to make it again.
    """
    first = evaluations[0]
    names = ", ".join(dict.fromkeys(one.system for one in evaluations))
    title = f"{names} on {first.data}"
    body = [
        f"<h1>{_text(title)}</h1>",
        _made(command),
        *_facts(first),
        "<h2>Scores</h2>",
        _measures(evaluations),
        *(f'<p class="note">{_text(note)}</p>' for note in _notes(first)),
        *_published(evaluations),
        *_labels(evaluations),
        "<h2>Distributions</h2>",
        _distributions(evaluations),
        *_clips(evaluations),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>lamb: {_text(title)}</title>"
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n'
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "report.html"
    files.write(target, (page + "\n".join(body) + "\n</body></html>\n").encode("utf-8", "replace"))
    return target


def _text(text: object) -> str:
    return html.escape(str(text), quote=True)


def _made(command: str) -> str:
    """When, by which version and by which command."""
    by = f" by <code>{_text(command)}</code>" if command else ""
    return f'<p class="note">Made on {datetime.now():%Y-%m-%d at %H:%M} with lamb {__version__}{by}.</p>'


def _facts(one: Evaluation) -> list[str]:
    """The number of clips, and of those that are left out or missing."""
    captioned = sum(bool(clip.captions) for clip in one.clips)
    people = f", {captioned} of them captioned by people: caption scores are of these" if captioned else ""
    said = [f"{len(one.clips)} clips{people}; {one.failed} could not be captioned and count as empty captions."]
    if one.dropped:
        said.append(f"{len(one.dropped)} clips of the data are left out, as they have no caption.")
    if one.coverage:
        there, missing = one.coverage.published - len(one.coverage.missing), one.coverage.missing
        said.append(f"{there} of the {one.coverage.published} clips of {TITLES[one.coverage.test_set]} are here.")
        if missing:
            names = ", ".join(map(_text, missing))
            said.append(f"</p><details><summary>The {len(missing)} that are not</summary>{names}</details><p>")
    return [f"<p>{' '.join(said)}</p>"]


def _notes(one: Evaluation) -> list[str]:
    left = one.reasons().items()
    notes = [note for note in one.notes if note != LEAKAGE]  # that one stands beside the published numbers
    return [*notes, *(f"Left out: {', '.join(NAMES.get(n, n) for n in names)}. {why}" for why, names in left)]


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]], own: int = 0, kind: str = "numbers") -> str:
    """Cells as text; the first `own` rows stand out. The last column of the kind "words" is none of numbers."""
    head = "".join(f"<th>{_text(cell)}</th>" for cell in heads)
    lines = [
        f"<tr{' class=own' if k < own else ''}>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>"
        for k, row in enumerate(rows)
    ]
    return f'<div class="scroll"><table class="{kind}"><tr>{head}</tr>\n{chr(10).join(lines)}\n</table></div>'


def _measures(evaluations: Sequence[Evaluation]) -> str:
    """The table of every measure of every system, with its interval."""
    rows = []
    for name in evaluations[0].measures:
        cells = [NAMES.get(name, name.replace("_", " "))]
        for one in evaluations:
            measure = one.measures[name]
            cells.append(_number(measure.value))
            cells.append("{:.4f} to {:.4f}".format(*measure.interval) if measure.interval else "")
        rows.append(cells)
    shown = {name for one in evaluations for name in one.measures} | {"clips", "failed"}
    for name in evaluations[0].labels:
        if name not in shown:
            rows.append(
                [
                    name.replace("_", " "),
                    *(c for one in evaluations for c in (_number(one.labels[name]) if name in one.labels else "", "")),
                ]
            )
    heads = [head for one in evaluations for head in (one.system, "95 % interval")]
    return _table(["", *heads], rows)


def _number(value: float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value}"


def _published(evaluations: Sequence[Evaluation]) -> list[str]:
    """The table beside the published numbers, if the clips are those of a published test set."""
    found = evaluations[0].coverage
    if found is None:
        return [
            '<p class="note">Published numbers are of AudioCaps test and Clotho evaluation; these are other clips.</p>'
        ]
    rows = []
    for one in evaluations:
        values = [one.measures.get(name) for name in COLUMNS]
        rows.append([one.system, *("" if value is None else f"{100 * value.value:.1f}" for value in values)])
    for system, numbers in PUBLISHED[found.test_set].items():
        rows.append([system, *("" if number is None else f"{number:.1f}" for number in numbers)])
    said = [f"<h2>Beside published numbers: {TITLES[found.test_set]}, times 100</h2>"]
    said.append(_table(["", *(NAMES[name] for name in COLUMNS)], rows, own=len(evaluations)))
    if found.missing:
        said.append(
            f'<p class="note">Of {found.published} clips {len(found.missing)} are missing here: scores on fewer clips '
            "are scores of another set (CIDEr-D most of all).</p>"
        )
    if found.test_set == "audiocaps-test":
        said.append(f'<p class="note">{LEAKAGE}</p>')
    return [*said, '<p class="note">Published numbers as the LAMB paper (arXiv 2601.04658) reports them.</p>']


def _distributions(evaluations: Sequence[Evaluation]) -> str:
    """Histograms of the scores of the clips, in colours for a light and a dark page."""
    drawn: list[tuple[str, list[np.ndarray]]] = []
    for name in DRAWN:
        columns = [one.measures[name].per_clip for one in evaluations if name in one.measures]
        if columns:
            drawn.append((NAMES[name], [column[np.isfinite(column)] for column in columns if column is not None]))
    confident = [np.array([r.confidence for r in one.results if r.confidence is not None]) for one in evaluations]
    if any(map(len, confident)):
        drawn.append(("confidence", confident))
    pairs = zip(evaluations, COLOURS, strict=False)
    key = ", ".join(f'<span style="color:{colour}">■</span> {_text(one.system)}' for one, colour in pairs)
    pictures = "".join(_histogram(name, values) for name, values in drawn)
    return f'<p class="note">Number of clips; {key}.</p><div class="clips">{pictures}</div>'


def _histogram(name: str, values: Sequence[np.ndarray]) -> str:
    """The histogram of each system's values as an SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    grey, picture = "#888888", io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(3.4, 2.2), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        edges = np.histogram_bin_edges(np.concatenate(values), bins=20)
        for own, colour in zip(values, COLOURS, strict=False):
            axes.hist(own, bins=edges.tolist(), color=colour, alpha=0.75)
        axes.set_title(name, color=grey)
        axes.patch.set_alpha(0)
        axes.tick_params(colors=grey)
        axes.spines[:].set_color(grey)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(picture, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = picture.getvalue()
    return f'<div role="img" aria-label="Histogram of {_text(name)}">{svg[svg.index("<svg") :]}</div>'


def _labels(evaluations: Sequence[Evaluation]) -> list[str]:
    """The table of labels, if the clips have some that a model may know."""
    rows = label_rows(evaluations)
    if not rows:
        return []
    whose = f" by {evaluations[0].system}" if len(evaluations) > 1 else ""
    heads = ["label", "clips", *(f"named by {one.system}" for one in evaluations), f"said instead{whose}, how often"]
    note = "The labels that are named least come first. What is said instead is of captions that do not name the label."
    return ["<h2>By label</h2>", f'<p class="note">{note}</p>', _table(heads, rows, kind="words")]


def _clips(evaluations: Sequence[Evaluation]) -> list[str]:
    """Some clips, each group with a heading: by the score that most clips have, or by what is named of their labels."""
    first = evaluations[0]
    ranks = {name: first.measures[name].per_clip for name in RANKED_BY if name in first.measures}
    scores = {
        name: {k: float(v) for k, v in enumerate(c) if np.isfinite(v)} for name, c in ranks.items() if c is not None
    }
    groups: list[tuple[str, list[int]]] = []
    by = max(scores, key=lambda name: len(scores[name])) if scores else ""
    if of := scores.get(by):
        order = sorted(of, key=lambda k: -of[k])
        shown = min(SHOWN, max(len(of) // 3, 1))
        middle = (len(of) - shown) // 2
        titles = [f"{which} clips, by {NAMES[by]}" for which in ("Best", "Median", "Worst")]
        places = [order[:shown], order[middle:][:shown], order[::-1][:shown]]
        groups = list(zip(titles, places, strict=True))
    else:  # a label is named or not: of equal clips none is the best
        for title, right in (("All labels named", True), ("Not all labels named", False)):
            found = surest(first, right)
            groups.append((f"{title}, with the most confidence ({len(found)} clips in all)", found[:SHOWN]))
    said = []
    for title, chosen in groups:
        if chosen:
            said.append(f"<h2>{_text(title)}</h2>")
            said.append(f'<div class="clips">{"".join(_card(evaluations, k, by) for k in chosen)}</div>')
    return said


def _card(evaluations: Sequence[Evaluation], k: int, by: str) -> str:
    clip = evaluations[0].clips[k]
    lines = []
    for one in evaluations:
        result, name = one.results[k], f"{_text(one.system)}: " if len(evaluations) > 1 else ""
        lines.append(f'<p class="caption">{name}{_text(result.text if result.ok else f"({result.error})")}</p>')
        scores = [
            (n, m.per_clip[k])
            for n, m in one.measures.items()
            if m.per_clip is not None and n in (by, "meteor", "sbert")
        ]
        shown = [f"{NAMES.get(n, n.replace('_', ' '))} {value:.3f}" for n, value in scores if np.isfinite(value)]
        shown += [f"confidence {result.confidence:.2f}"] if result.confidence is not None else []
        lines.append(f'<p class="note">{_text(", ".join(shown))}</p>')
    said = [*clip.captions, *(f"label: {label.replace('_', ' ')}" for label in clip.labels)]
    lines.append(f"<ul>{''.join(f'<li>{_text(text)}</li>' for text in said)}</ul>")
    return f'<article><div class="note">{_text(clip.id)}</div>{_sound(clip)}{"".join(lines)}</article>'


def _sound(clip: Clip) -> str:
    """The spectrogram and player of a clip, or why there is none."""
    if not clip.path:
        return ""
    try:
        x = audio.load(clip.path, RATE, clip.start, min(clip.duration or SECONDS, SECONDS))
    except audio.AudioError as error:
        return f'<p class="note">{_text(error)}</p>'
    import soundfile

    sound = io.BytesIO()
    soundfile.write(sound, x, RATE, format="FLAC")
    player = f'<audio controls preload="none" src="data:audio/flac;base64,{_base64(sound.getvalue())}"></audio>'
    picture = _base64(spectrogram_png(x, RATE))
    return f'<img alt="log mel spectrogram" src="data:image/png;base64,{picture}">{player}'


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
