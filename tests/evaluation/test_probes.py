"""Pairs of recordings and nothing at all, as a captioner is asked about them, and the scores by hand."""

import numpy as np
import pytest
import soundfile

from lamb.data.manifest import Clip
from lamb.evaluation.probes import LONGEST, PAUSE, Probe, probe_scores, probes
from lamb.inference.captions import Caption

RATE = 16000


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Clip]:
    folder, rng, found = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0), []
    for k, label in enumerate(["dog", "cow", "rain", "cat"]):
        file = folder / f"{label}.wav"
        soundfile.write(file, rng.uniform(-0.5, 0.5, RATE * (k + 3)), RATE)
        found.append(Clip(label, str(file), labels=(label,)))
    return found


def test_the_same_pairs_every_time(clips):
    made, again = probes(clips, RATE, count=12), probes(clips, RATE, count=12)
    assert [(p.kind, p.labels, p.level) for p in made] == [(p.kind, p.labels, p.level) for p in again]
    assert [sum(p.kind == kind for p in made) for kind in ("sequence", "overlap", "nothing")] == [12, 12, 20]
    for probe in made:
        x = probe.waveform(RATE)
        assert x.dtype == np.float32
        assert np.abs(x).max() <= 1
        if probe.kind != "nothing":
            assert len(set(probe.labels)) == 2
            assert -6 <= probe.level <= 0


def test_other_seeds_draw_other_pairs(clips):
    first, second = probes(clips, RATE, (1,), 12), probes(clips, RATE, (2,), 12)
    both = probes(clips, RATE, (1, 2), 12)
    drawn = [[(p.kind, p.labels, p.level) for p in made if p.kind != "nothing"] for made in (first, second, both)]
    assert drawn[0] != drawn[1]
    assert drawn[2] == drawn[0] + drawn[1]
    assert sum(p.kind == "nothing" for p in both) == 20


def test_a_sequence_and_an_overlap_by_hand():
    x, y = np.full(RATE, 3276, np.int16), np.full(6 * RATE, 32767, np.int16)
    pair = Probe("sequence", ("dog", "rain"), (x, y)).waveform(RATE)
    assert len(pair) == RATE + int(PAUSE * RATE) + int(LONGEST * RATE)
    assert pair[0] == pytest.approx(0.1, rel=1e-3)
    assert pair[RATE] == 0
    assert pair[-1] == 1
    mix = Probe("overlap", ("dog", "rain"), (x, y), -6.0).waveform(RATE)
    assert len(mix) == int(LONGEST * RATE)
    assert mix[-1] / mix[0] == pytest.approx(10 ** (-6 / 20) / (1 + 10 ** (-6 / 20)))


def test_one_kind_makes_no_pair(clips):
    with pytest.raises(ValueError, match="two kinds"):
        probes([clip for clip in clips if clip.id.startswith("dog")], RATE)


def test_probe_scores():
    x = np.zeros(1, np.int16)
    made = [Probe("sequence", ("dog", "rain"), (x, x))] * 4 + [Probe("overlap", ("cat", "rain"), (x, x))] * 2
    made += [Probe("nothing", (label,), (x,)) for label in ("silence", "noise", "tone", "tone")]
    texts = [
        "A dog barks, then rain falls.",
        "Rain falls, then a dog barks.",
        "A dog barks.",
        "",
        "Rain falls on a cat.",
    ]
    texts += ["A cat meows.", "Silence.", "White noise hisses.", "A pure tone sounds.", "Birds chirp."]
    results = [Caption("x", text=text) if text else Caption("x", error="broken") for text in texts]
    assert probe_scores(made, results) == {
        "sequence_named": 0.5,
        "sequence_order": 0.5,
        "overlap_named": 0.5,
        "nothing_named": 0.75,
        "sequence_extra": 0.0,
        "overlap_extra": 0.0,
    }
