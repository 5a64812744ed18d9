"""Scenes and their captions: a pure function of the index, in time and in grammar what they say."""

from collections import Counter

import numpy as np
import pytest

from lamb.data import scenes
from lamb.data.scenes import CAPTIONED, Event, Recording, Scene, SceneMaker, compose, trim
from lamb.data.vocabulary import PARENTS, PHRASES, VOCABULARY, akin, ancestors, mentions, names

RATE = 16000
LABELS = ("dog", "rain", "siren", "mouse_click")


def maker(seed: int = 0, seconds: float = 3.0) -> SceneMaker:
    rng = np.random.default_rng(7)
    lengths = {"dog": (0.4, 4.0), "rain": (5.0,), "siren": (1.0, 2.0), "mouse_click": (0.05,)}  # seconds
    bank = {
        label: [
            [Recording(np.round(scenes.tone(n, rng, RATE) * np.hanning(n) * 32767).astype(np.int16))]
            for n in (int(s * RATE) for s in lengths[label])
        ]
        for label in LABELS
    }
    return SceneMaker(bank, RATE, seconds, seed, (0.5, 0.27, 0.23))


@pytest.fixture(scope="module")
def some() -> list[Scene]:
    made = maker()
    return [made.scene(index, 3.0) for index in range(120)]


def test_a_scene_depends_on_its_number_alone(some):
    again = maker()
    for index in (41, 3, 100):
        scene = again.scene(index, 3.0)
        assert np.array_equal(scene.waveform, some[index].waveform)
        assert (scene.kind, scene.events, scene.caption) == (
            some[index].kind,
            some[index].events,
            some[index].caption,
        )
    other = maker(seed=1).scene(3, 3.0)
    assert other.waveform.shape != some[3].waveform.shape or not np.array_equal(other.waveform, some[3].waveform)


def test_scenes_differ(some):
    assert len({scene.waveform.tobytes() for scene in some}) == len(some)
    assert len({scene.caption for scene in some}) > len(some) / 3
    assert set(Counter(scene.kind for scene in some)) == set(scenes.KINDS)
    assert {event.label for scene in some for event in scene.events} == {*LABELS, *scenes.SYNTHETIC}


@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_waveforms(some, seconds):
    made = maker()
    for scene in some if seconds == 3.0 else [made.scene(index, seconds) for index in range(40)]:
        assert scene.waveform.dtype == np.float32
        assert np.isfinite(scene.waveform).all()
        assert 0 < np.abs(scene.waveform).max() <= 1
        assert 0 < len(scene.waveform) <= seconds * RATE


def test_events_lie_in_the_waveform(some):
    for scene in some:
        assert len(scene.events) == 1 if scene.kind == "single" else 2 <= len(scene.events) <= 3
        for event in scene.events:
            assert 0 <= event.start < event.end <= len(scene.waveform) / RATE + 1 / RATE
            assert event.level <= 0
        assert max(event.level for event in scene.events) == 0
        if scene.kind == "sequence":
            for before, after in zip(scene.events, scene.events[1:], strict=False):
                assert before.end <= after.start
        if scene.kind == "overlap":
            assert scene.events[0].level == 0


def test_an_event_sounds_where_it_is_said_to(some):
    scene = next(s for s in some if s.kind == "sequence" and s.events[0].level == 0)
    event = scene.events[0]
    inside = scene.waveform[int(event.start * RATE) : int(event.end * RATE)]
    assert np.abs(inside).max() > 0.9 * np.abs(scene.waveform).max()


def test_batches(some):
    made = maker()
    batch = made.batch(5, 6)
    again = maker().batch(5, 6)
    assert [s.caption for s in batch] == [s.caption for s in again]
    assert max(len(s.waveform) for s in batch) <= 3 * RATE
    following = made.batch(6, 6)
    assert not {s.waveform.tobytes() for s in batch} & {s.waveform.tobytes() for s in following}


def said(caption: str, label: str) -> bool:
    return any(form in caption.lower() for p in PHRASES[label] for form in (p.clause.lower(), p.noun.lower()))


def is_sentence(caption: str) -> bool:
    return (
        caption[0].isupper()
        and caption.endswith(".")
        and caption.count(".") == 1
        and caption == " ".join(caption.split())
        and " ," not in caption
    )


def test_captions_of_scenes(some):
    for scene in some:
        assert is_sentence(scene.caption), scene.caption
        for event in scene.events:
            assert said(scene.caption, event.label), (scene.caption, event.label)


@pytest.mark.parametrize(
    ("kind", "count"), [("single", 1), ("sequence", 2), ("sequence", 3), ("overlap", 2), ("overlap", 3)]
)
def test_every_wording(kind, count):
    rng = np.random.default_rng(0)
    labels, found = CAPTIONED, 0
    while found < 200:
        chosen = scenes._labels(kind, labels, np.full(len(labels), 1 / len(labels)), rng)
        if len(chosen) != count:
            continue
        found += 1
        caption = compose(kind, [Event(label, 0, 1, float(rng.uniform(-10, 0))) for label in chosen], rng)
        assert is_sentence(caption), caption
        places = []
        for label in chosen:
            assert said(caption, label), (caption, label)
            forms = [f for p in PHRASES[label] for f in (p.clause, p.noun)]
            places.append(min(k for k in (caption.lower().find(form.lower()) for form in forms) if k >= 0))
        assert places == sorted(places), caption  # what comes first is said first


def test_captions_without_sounds():
    rng = np.random.default_rng(0)
    captions = [scenes.caption(rng, (1, 1, 1)) for _ in range(300)]
    assert all(map(is_sentence, captions))
    assert len(set(captions)) > 200


def test_the_phrase_bank():
    for label, phrases in PHRASES.items():
        assert len(phrases) >= 3, label
        assert len({p.clause for p in phrases}) == len(phrases), label
        for p in phrases:
            assert p.subject, label
            assert p.finite, label
            assert any(word.endswith("ing") for word in p.ing.split()), p


@pytest.mark.parametrize("label", PHRASES)
def test_every_phrase_names_its_label(label):
    for p in PHRASES[label]:
        assert names(p.clause, label), p.clause
        assert names(p.noun, label), p.noun


def test_phrases_name_no_unrelated_label():
    confused = [
        (label, form, mention)
        for label, phrases in PHRASES.items()
        for p in phrases
        for form in (p.clause, p.noun)
        for mention in mentions(form)
        if not mention.labels & akin(label)
    ]
    assert not confused


def test_relatives_are_labels():
    for label, entry in VOCABULARY.items():
        assert {*entry.parents, *entry.like} <= VOCABULARY.keys(), label
        assert label not in ancestors(label)
        assert all(VOCABULARY[parent].phrases for parent in entry.parents), label
    assert all(akin(label) & {label} <= akin(other) for label in VOCABULARY for other in VOCABULARY[label].like)


def test_of_words_that_begin_together_the_longest_counts():
    assert names("Wind chimes ring.", "chimes")
    assert not names("Wind chimes ring.", "wind")
    assert names("A bass drum is hit.", "bass_drum")
    assert not names("A bass drum is hit.", "drum")


def test_what_a_recording_holds_is_said_of_it_alone():
    rng = np.random.default_rng(0)
    plain = {compose("single", [Event("dog", 0, 1, 0.0)], rng) for _ in range(50)}
    howls = {compose("single", [Event("dog", 0, 1, 0.0, description="a dog howling")], rng) for _ in range(50)}
    assert all("howl" in text for text in howls)
    assert not any("howl" in text for text in plain)


def test_what_is_hard_to_make_out_is_told_by_an_upper_class():
    bank = {"dog": [[Recording(np.full(RATE, 32767, np.int16))]]}
    made = SceneMaker(bank, RATE, 3.0, 0, (1, 0, 0), parents=1.0)
    found = [scene for scene in (made.scene(k, 3.0) for k in range(40)) if scene.events[0].label == "dog"]
    assert found
    for scene in found:
        assert scene.events[0].said in PARENTS
        assert not names(scene.caption, "dog")
        assert names(scene.caption, scene.events[0].said)


def test_plain_scenes_hold_recordings_as_they_are():
    rng = np.random.default_rng(3)
    x = rng.integers(-9000, 9000, 2 * RATE).astype(np.int16)
    made = SceneMaker({"rain": [[Recording(x)]]}, RATE, 9.0, 0, (1, 0, 0), parents=1.0, plain=1.0)
    found = [scene for scene in (made.scene(k, 9.0) for k in range(40)) if scene.events[0].label == "rain"]
    assert found
    for scene in found:
        heard, own = scene.waveform[: len(x)], x / np.float32(np.abs(x).max())
        np.testing.assert_allclose(heard / np.abs(heard).max(), own, atol=1e-6)
        assert not scene.waveform[len(x) :].any()
        assert (scene.events[0].start, scene.events[0].end) == (0, 2)
        assert names(scene.caption, "rain")
    varied = SceneMaker({"rain": [[Recording(x)]]}, RATE, 9.0, 0, (1, 0, 0))
    other = next(scene for scene in (varied.scene(k, 9.0) for k in range(40)) if scene.events[0].label == "rain")
    assert other.waveform[: len(x)].tolist() != heard.tolist()


def test_no_label_is_mixed_with_its_like():
    rng = np.random.default_rng(0)
    labels = ["dog", "wolf", "rain", "wind"]
    for _ in range(50):
        chosen = scenes._labels("overlap", labels, np.full(4, 0.25), rng)
        assert not {"dog", "wolf"} <= set(chosen)


def test_trim():
    x = np.zeros(RATE, np.float32)
    x[4000:8000] = 0.25 * np.sin(np.arange(4000))
    cut = trim(x, RATE)
    assert abs(len(cut) - 4000) <= 2 * RATE // 50
    assert np.abs(cut).max() == 1
    with pytest.raises(ValueError, match="silent"):
        trim(np.zeros(RATE, np.float32), RATE)


def test_noise_and_tone_have_peak_one():
    rng = np.random.default_rng(0)
    for x in (scenes.noise(5000, rng, 0.0), scenes.noise(5000, rng, 2.0), scenes.tone(5000, rng, RATE)):
        assert len(x) == 5000
        assert x.dtype == np.float32
        assert np.abs(x).max() == pytest.approx(1)


def test_respeed():
    x = np.arange(1000, dtype=np.float32)
    assert len(scenes.respeed(x, 2.0)) == 500
    np.testing.assert_allclose(scenes.respeed(x, 1.25)[:4], [0, 1.25, 2.5, 3.75])


def clicks(*at: float) -> np.ndarray:
    x = np.full(3 * RATE, 1e-3, np.float32)
    for second in at:
        x[int(second * RATE) : int((second + 0.1) * RATE)] = 0.5
    return x


@pytest.mark.parametrize(
    ("x", "count"),
    [
        (clicks(0.5), 1),
        (clicks(0.5, 1.5), 2),
        (clicks(0.2, 0.7, 1.2, 1.7, 2.2), 5),
        (clicks(0.5, 0.65), 1),  # run together
        (clicks(*np.arange(0.5, 2.0, 0.1)), 0),  # too long to be sure
    ],
)
def test_bursts(x, count):
    assert scenes.bursts(x, RATE) == count


@pytest.mark.parametrize(("times", "words"), [(1, {"once"}), (2, {"twice"}), (5, {"several", "many", "repeatedly"})])
def test_how_often_is_said_as_it_is(times, words):
    rng = np.random.default_rng(0)
    captions = [compose("single", [Event("dog", 0, 3, 0.0, times)], rng) for _ in range(60)]
    said = {w for c in captions for w in c.lower().rstrip(".").split()}
    assert said & {"once", "twice", "several", "many", "repeatedly"} == words
    assert ("dogs" in said) == (times > 2)


def test_every_source_is_heard_as_often():
    one, twenty = (Recording(np.full(n * RATE, 32767, np.int16)) for n in (1, 2))
    made = SceneMaker({"rain": [[one], [twenty] * 20]}, RATE, 9.0, 0, (1, 0, 0))
    rng = np.random.default_rng(0)
    short = sum(len(made._sound("rain", 9.0, rng, False)[0]) < 1.5 * RATE for _ in range(300))
    assert 110 < short < 190
