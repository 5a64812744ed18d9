"""Events of a stream: when they are told, what is in them, and what is held meanwhile."""

import itertools

import numpy as np
import pytest

from lamb.audio.errors import AudioRepair
from lamb.config import ListenConfig
from lamb.inference.captioner import Captioner
from lamb.inference.generation import Hypothesis
from lamb.live.events import Ear

RATE = 16_000
CONFIG = ListenConfig()


@pytest.fixture
def captioner(make_model):
    return Captioner(make_model())


def tone(hertz, seconds, level=0.3):
    return (level * np.sin(2 * np.pi * hertz / RATE * np.arange(round(seconds * RATE)))).astype(np.float32)


def noise(seconds, level=0.1):
    return (level * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)


def silence(seconds):
    return np.zeros(round(seconds * RATE), np.float32)


def heard(ear, x, block=0.1):
    """Events with the second of the stream at which each was told."""
    found, size = [], round(block * RATE)
    for begin in range(0, len(x), size):
        found += [(ear.heard, event) for event in ear.push(x[begin : begin + size])]
    return found + [(ear.heard, event) for event in ear.finish()]


def test_a_sound_between_silences_is_an_event_soon_after_it_ends(captioner):
    ear = Ear(captioner.engine, captioner.options, CONFIG)
    [(told, event)] = heard(ear, np.concatenate([silence(2), tone(440, 1.6), silence(4)]))
    assert event.start == pytest.approx(2, abs=0.2)
    assert event.end == pytest.approx(3.6, abs=0.2)
    assert told - event.end <= 2.0, "so that a second is left for the model"
    assert len(event.samples) == pytest.approx(1.6 * RATE, abs=0.2 * RATE)
    assert event.caption.endswith(".")
    assert 0 <= event.confidence <= 1


def test_a_click_is_an_event(captioner):
    ear = Ear(captioner.engine, captioner.options, CONFIG)
    [(_, event)] = heard(ear, np.concatenate([silence(2), noise(0.2), silence(3)]))
    assert event.end - event.start == pytest.approx(0.2, abs=0.01)


def test_a_sound_that_goes_on_is_told_in_parts(captioner):
    ear = Ear(captioner.engine, captioner.options, CONFIG)
    found = heard(ear, noise(60))
    events = [event for _, event in found]
    assert events[0].start == 0
    assert events[-1].end == pytest.approx(60, abs=0.2)
    assert all(a.end == pytest.approx(b.start) for a, b in itertools.pairwise(events))
    assert max(event.end - event.start for event in events) <= CONFIG.longest + CONFIG.hop
    assert all(told - event.end <= 2.0 for told, event in found[:-1])


def test_what_is_held_does_not_grow(captioner):
    ear, held = Ear(captioner.engine, captioner.options, CONFIG), 0
    for _ in range(100):
        ear.push(noise(0.6))
        held = max(held, len(ear.x))
    assert held <= (CONFIG.longest + 2 * CONFIG.hop + 1) * RATE


def test_silence_is_nothing_and_nothing_of_it_is_held(captioner):
    ear = Ear(captioner.engine, captioner.options, CONFIG)
    assert heard(ear, silence(30)) == []
    assert ear.heard == 30
    assert len(ear.x) < RATE


def test_a_gap_in_the_stream_ends_an_event(captioner):
    ear = Ear(captioner.engine, captioner.options, CONFIG)
    assert ear.push(noise(1.4)) == []
    [before] = ear.skip(10)
    ear.push(noise(1.0))
    [after] = ear.finish()
    assert (before.start, before.end) == (0, pytest.approx(1.4))
    assert (after.start, after.end) == (pytest.approx(11.4), pytest.approx(12.4))


def test_events_do_not_depend_on_the_size_of_the_blocks(captioner):
    x = np.concatenate([silence(1), tone(300, 1), silence(2), noise(2), silence(2)])
    times = [
        [(e.start, e.end, e.caption) for _, e in heard(Ear(captioner.engine, captioner.options, CONFIG), x, block)]
        for block in (0.5, 1.0)
    ]
    assert times[0] == times[1]
    assert len(times[0]) == 2


def test_the_confidence_is_that_of_the_weighed_sounds(captioner, monkeypatch):
    """A model that weighs what it names says how sure it is with the hypothesis; the score says something else."""
    sure = [[Hypothesis("A dog barks.", -0.1, confidence=0.123)]]
    monkeypatch.setattr(captioner.engine, "describe", lambda tokens, options: sure * len(tokens))
    ear = Ear(captioner.engine, captioner.options, CONFIG)
    [(_, event)] = heard(ear, np.concatenate([silence(1), tone(440, 1.0), silence(3)]))
    assert event.confidence == 0.123


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_replaced_as_in_a_file_and_told_once(captioner, value):
    broken = tone(440, 4)
    broken[[RATE, 2 * RATE]] = value
    ear = Ear(captioner.engine, captioner.options, CONFIG)
    with pytest.warns(AudioRepair, match=r"the stream: samples near 1\.0 s are NaN or infinite, replaced by") as told:
        [(_, event)] = heard(ear, np.concatenate([broken, silence(3)]), 0.5)
    assert len(told) == 1
    np.testing.assert_allclose(event.samples[: len(broken)], tone(440, 4)[: len(event.samples)], atol=0.06)
    assert 0 <= event.confidence <= 1


def test_a_block_without_a_number_is_silence_and_told(captioner):
    ear = Ear(captioner.engine, captioner.options, CONFIG)
    with pytest.warns(AudioRepair, match="8000 of 8000 samples near 0.0 s are NaN or infinite, taken for silence"):
        assert ear.push(np.full(RATE // 2, np.nan, np.float32)) == []
    assert not ear.x.any()
