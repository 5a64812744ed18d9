"""The page: whole, safe, and without anything from outside."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lamb.data.coverage import Coverage
from lamb.data.manifest import Clip
from lamb.evaluation.evaluate import Evaluation
from lamb.evaluation.report import LEAKAGE, write
from lamb.evaluation.report_labels import label_rows
from lamb.evaluation.scores import Measure, mean
from lamb.inference.captions import Caption

pytest.importorskip("matplotlib")
EVIL = '<script>alert("x")</script>&"\'</style>'


class Page(HTMLParser):
    """What is in a page: tags, what their attributes point to, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "img", "br", "path", "use", "rect"):
            self.open.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    """Ten clips: one cannot be read, one is a part of a recording, one says it in HTML."""
    for k in range(10):
        soundfile.write(tmp_path / f"{k}.wav", 0.3 * np.sin(0.05 * (k + 1) * np.arange(32000)), 16000)
    (tmp_path / "9.wav").write_bytes(b"no sound")
    clips = [Clip(f"clip{k}", str(tmp_path / f"{k}.wav"), captions=(f"reference {k}",)) for k in range(10)]
    clips[0] = Clip(EVIL, str(tmp_path / "0.wav"), start=0.5, duration=1.0, captions=(EVIL,))
    results = [Caption(clip.path, text=f"caption {k}", confidence=k / 10) for k, clip in enumerate(clips)]
    results[0] = Caption(clips[0].path, text=EVIL)
    results[9] = Caption(clips[9].path, error="cannot be read")
    measures = {"cider_d": mean(np.linspace(2, 0, 10)), "vocabulary": Measure(7), "meteor": mean(np.full(10, 0.5))}
    return Evaluation(EVIL, "data", clips, results, {"calibration_error": 0.25}, measures, {"spice": EVIL}, [EVIL])


def test_the_page_is_whole_and_safe(evaluation, tmp_path):
    target = write([evaluation], tmp_path / "new" / "folder")
    assert target == tmp_path / "new" / "folder" / "report.html"
    page = Page(target.read_text(encoding="utf-8"))
    assert page.open == []
    assert "script" not in page.tags
    assert page.tags.count("style") == 1 + page.tags.count("svg"), "matplotlib's SVG has one each"
    assert page.text.count(EVIL) >= 5, "as it is, to be read"
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import", target.read_text(encoding="utf-8"))
    for shown in ("1.0000", "CIDEr-D", "words in use", "calibration error", "these are other clips", "cannot be read"):
        assert shown in page.text, shown
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]


def test_best_median_and_worst_with_sound(evaluation, tmp_path):
    text = write([evaluation], tmp_path).read_text(encoding="utf-8")
    best, median, worst = (Page(part).text for part in re.split(r"<h2>(?:Best|Median|Worst) clips", text)[1:])
    assert [k for k in range(10) if f"caption {k}" in best] == [1, 2]  # and clip 0, the best
    assert [k for k in range(10) if f"caption {k}" in median] == [3, 4, 5]
    assert [k for k in range(10) if f"caption {k}" in worst] == [7, 8]  # and clip 9, which failed
    sounds = re.findall(r"data:audio/flac;base64,([^\"]+)", text)
    lengths = [len(soundfile.read(io.BytesIO(base64.b64decode(sound)))[0]) for sound in sounds]
    assert lengths == [16000] + 7 * [32000], "a part is a part, and the one that cannot be read has none"
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", text)
    assert len(pictures) == len(sounds)
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)


def test_beside_published_numbers(evaluation, tmp_path):
    from dataclasses import replace

    missing = Coverage("audiocaps-test", 975, ("audiocaps/x_0",))
    found = replace(evaluation, coverage=missing, notes=[*evaluation.notes, LEAKAGE])
    other = replace(found, system="other", labels={})  # without a calibration error
    page = Page(write([found, other], tmp_path).read_text(encoding="utf-8"))
    assert "974 of the 975 clips of AudioCaps test are here" in page.text
    assert "audiocaps/x_0" in page.text
    for shown in ("LAMB, the paper", "91.1", "55.9", "100.0", LEAKAGE, "Of 975 clips 1 are missing", "other"):
        assert shown in page.text, shown
    assert page.text.count(LEAKAGE) == 1
    clotho = replace(evaluation, coverage=Coverage("clotho-evaluation", 1045, ()))
    page = Page(write([clotho], tmp_path).read_text(encoding="utf-8"))
    assert "52.3" in page.text
    assert LEAKAGE not in page.text


def test_people_without_recordings(evaluation, tmp_path):
    from dataclasses import replace

    clips = [replace(clip, path="") for clip in evaluation.clips]
    page = Page(write([replace(evaluation, clips=clips)], tmp_path).read_text(encoding="utf-8"))
    assert "audio" not in page.tags
    assert "img" not in page.tags


@pytest.fixture
def labelled() -> Evaluation:
    """Four dogs, of which a cat, a dog, nothing and no caption are said; two rains; a kind that no model knows."""
    said = ["A cat meows.", "A dog barks.", "Something.", None, "It rains.", "Rain falls.", "A dog barks."]
    labels = [*4 * ["dog"], *2 * ["rain"], "no such kind"]
    clips = [Clip(f"clip{k}", "", labels=(label,)) for k, label in enumerate(labels)]
    results = [
        Caption(f"{k}.wav", error="cannot be read")
        if text is None
        else Caption(f"{k}.wav", text=text, confidence=(k + 1) / 10)
        for k, text in enumerate(said)
    ]
    return Evaluation("tiny", "data", clips, results, {"label_named": 0.5}, {})


def test_labels_are_counted_and_what_is_said_instead(labelled):
    assert label_rows([labelled]) == [
        ["dog", "4", "0.25", "cat (1), nothing of the vocabulary (1), no caption (1)"],
        ["rain", "2", "1.00", ""],
    ]
    from dataclasses import replace

    other = replace(labelled, results=[Caption("x", text="A dog barks in the rain.")] * 7)
    assert label_rows([labelled, other])[0][:4] == ["dog", "4", "0.25", "1.00"]


def test_a_label_that_is_named_or_not_has_no_best(labelled, tmp_path):
    page = Page(write([labelled], tmp_path, "lamb evaluate 'tiny' data --report <b>").read_text(encoding="utf-8"))
    assert "Best" not in page.text
    right, wrong = page.text.split("Not all labels named, with the most confidence (3 clips in all)")
    assert "All labels named, with the most confidence (3 clips in all)" in right
    named = right[right.index("All labels named") :]
    assert [named.index(f"clip{k}") for k in (5, 4, 1)] == sorted(named.index(f"clip{k}") for k in (5, 4, 1))
    assert [k for k in range(7) if f"clip{k}" in wrong] == [0, 2, 3], "the kind that no model knows is in neither"
    assert "by lamb evaluate 'tiny' data --report <b>" in page.text
    assert re.search(r"Made on \d{4}-\d\d-\d\d at \d\d:\d\d with lamb \d", page.text)
