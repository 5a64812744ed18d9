"""The one door: order, batches, sources, failures, silence, long recordings, choices, threads."""

import inspect
import io
import itertools
import math
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lamb.inference import captioner as door
from lamb.inference import engine, recording
from lamb.inference.captioner import Captioner
from lamb.inference.captions import Caption
from lamb.inference.generation import Hypothesis
from lamb.model.checkpoint import CheckpointError

RATE = 16000
QUIET = np.zeros(RATE // 5, np.float32)


def sound(seconds: float, seed: int) -> np.ndarray:
    """A tone with harmonics under noise, another one for each seed."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    x = sum(np.sin(2 * np.pi * rng.uniform(80, 3000) * t + rng.uniform(0, 6)) for _ in range(4))
    return (0.1 * x + rng.uniform(0.001, 0.1) * rng.standard_normal(len(t))).astype(np.float32)


@pytest.fixture(scope="module")
def captioner(make_config) -> Captioner:
    """A tiny random model whose captions differ between sounds: what its adapter tells apart by a hair is enlarged."""
    import torch

    from lamb.extensions import build

    torch.manual_seed(1)
    model = build(make_config(decode={"beams": 2})).eval()
    out = model.adapter.out
    seen: list[torch.Tensor] = []
    with torch.no_grad(), out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        for seed in range(8):
            waveform = torch.from_numpy(sound(2, seed))[None]
            model.audio_tokens(*model.encode(waveform, torch.ones_like(waveform, dtype=torch.bool)))
        h = torch.cat(seen)  # (8, N_g, D)
        spread = (h - h.mean(0)).std()
        out.weight.mul_(0.1 / (spread * out.weight.std()))
        out.bias.copy_(-out.weight @ h.mean((0, 1)))
    return Captioner(model)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch, captioner: Captioner) -> None:
    """Neither the encoder nor the language model may be asked."""
    refuse = lambda *_args, **_options: pytest.fail("the model was asked")
    monkeypatch.setattr(engine, "generate", refuse)
    monkeypatch.setattr(captioner.model, "encode", refuse)


def same(one: list[Caption], other: list[Caption]) -> None:
    assert [c.text for c in one] == [c.text for c in other]
    assert [c.file for c in one] == [c.file for c in other]
    assert [c.score for c in one] == pytest.approx([c.score for c in other], abs=1e-4)
    assert [c.duration for c in one] == [c.duration for c in other]


SECONDS = [1.0, 0.1, 3.0, 12.5, 0.35, 5.0, 1.7, 25.0, 2.2, 0.8]
CLIPS = [(sound(seconds, seed), RATE) for seed, seconds in enumerate(SECONDS)]


@pytest.fixture(scope="module")
def alone(captioner: Captioner) -> list[Caption]:
    """The captions of CLIPS, each captioned by itself."""
    return [captioner.caption([clip])[0] for clip in CLIPS]


# --- order and batches


def test_captions_are_sentences(alone):
    assert [c.duration for c in alone] == SECONDS
    assert len({c.text for c in alone}) >= 4, "else order and batching would not show"
    for caption in alone:
        assert caption.text[-1] in ".!?"
        assert caption.text[0] == caption.text[0].upper()
        assert caption.score < 0
        assert 0 < caption.confidence < 1
        assert caption.captions == (caption.text,)
        assert caption.segments == ()
        assert caption.ok


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_a_batch_changes_nothing(captioner, alone, batch_size):
    same(captioner.caption(CLIPS, batch_size=batch_size), alone)


def test_nor_does_the_order(captioner, alone):
    order = list(range(len(CLIPS)))
    random.Random(0).shuffle(order)
    same(captioner.caption([CLIPS[k] for k in order], batch_size=4), [alone[k] for k in order])


def test_nor_do_groups(captioner, alone, monkeypatch):
    monkeypatch.setattr(recording, "GROUP", 1)
    monkeypatch.setattr(recording, "HELD", 2)
    same(captioner.caption(CLIPS, batch_size=2), alone)


# --- sources


def test_sources_of_all_kinds(captioner, tmp_path):
    x = sound(1.5, 1)
    path = tmp_path / "ton für ton.wav"
    soundfile.write(path, x, RATE, subtype="FLOAT")
    content = path.read_bytes()
    with path.open("rb") as file:
        stream = io.BytesIO(content)
        results = captioner.caption([str(path), path, content, stream, file, (x, RATE), (x[:, None], RATE)])
    names = [str(path), str(path), "<bytes>", "<stream>", str(path), "<array>", "<array>"]
    assert [c.file for c in results] == names
    assert len({c.text for c in results}) == 1
    assert [c.score for c in results] == pytest.approx([results[0].score] * 7, abs=1e-4)


@pytest.mark.parametrize("files", ["dog.wav", b"RIFF", io.BytesIO(b"RIFF")])
def test_one_sound_is_a_list_too(captioner, files):
    with pytest.raises(TypeError, match="files are given as a list"):
        captioner.caption(files)


def test_what_is_no_sound_at_all(captioner):
    with pytest.raises(TypeError, match="audio is a path, bytes"):
        captioner.caption([3])
    assert threads() == []


def test_the_help_of_caption_lists_its_keywords():
    text = str(inspect.signature(Captioner.caption))
    assert all(
        keyword in text for keyword in ("n_best: int = 1", "beams", "sample", "timeline", "window", "list[Caption]")
    )


def test_alternatives_name_other_sounds_and_come_in_the_order_of_their_scores():
    row = [
        Hypothesis("A dog barks.", -0.5),
        Hypothesis("A dog is barking.", -0.6),
        Hypothesis("Rain falls.", -0.9),
        Hypothesis("A cat meows.", -0.8),
        Hypothesis("A dog barks loudly.", -0.1),
    ]
    assert [h.text for h in engine.varied(row, 3)] == ["A dog barks.", "A cat meows.", "Rain falls."]
    assert [h.text for h in engine.varied(row, 4)] == [
        "A dog barks.",
        "A dog is barking.",
        "A cat meows.",
        "Rain falls.",
    ]
    assert engine.varied(row, 1) == row[:1]
    assert len(engine.varied(row, 9)) == 5


def test_nothing(captioner, no_model):
    assert captioner.caption([]) == []
    assert list(captioner.stream(iter(()))) == []


def test_an_endless_generator(captioner):
    taken = 0

    def endless() -> Iterator[Any]:
        nonlocal taken
        for taken in itertools.count(1):
            yield sound(0.2, taken % 5), RATE

    stream = captioner.stream(endless(), batch_size=1, beams=1)
    assert taken == 0, "nothing is read before the first result is asked for"
    assert len(list(itertools.islice(stream, 3))) == 3
    assert taken <= 2 * recording.GROUP
    stream.close()
    assert threads() == []


@pytest.mark.parametrize(("batch_size", "limit"), [(1, 4), (16, 64), (100, 256), (300, 300)])
def test_bounded_look_ahead(captioner, no_model, batch_size, limit):
    taken = done = most = 0

    def silent() -> Iterator[Any]:
        nonlocal taken, most
        for taken in range(1, 1001):
            most = max(most, taken - done)
            yield QUIET, RATE

    for result in captioner.stream(silent(), batch_size=batch_size):
        done += 1
        assert result.text == "Silence."
    assert done == 1000
    assert most <= 2 * limit


def test_an_input_that_raises(captioner, no_model):
    def broken() -> Iterator[Any]:
        yield QUIET, RATE
        raise KeyError("my own mistake")

    with pytest.raises(KeyError, match="my own mistake"):
        captioner.caption(broken())
    assert threads() == []


# --- failures


def test_a_bad_file_among_good_ones(captioner, alone, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"this is not sound at all" * 9)
    gone = tmp_path / "gone.wav"
    results = captioner.caption([CLIPS[0], bad, CLIPS[1], gone, CLIPS[2], b"", (np.zeros(9, np.float32), RATE)])
    same(results[:5:2], alone[:3])
    failed = [results[1], results[3], results[5], results[6]]
    assert [c.file for c in failed] == [str(bad), str(gone), "<bytes>", "<array>"]
    for result, words in zip(failed, ("not audio", "does not exist", "empty", "shorter than 0.1 s"), strict=True):
        assert not result.ok
        assert words in result.error
        assert "; " in result.error, "with a remedy"
        assert (result.text, result.score, result.captions) == ("", None, ())


def test_all_fail(captioner, no_model):
    results = captioner.caption(["no.wav", "such.flac", b""], timeline=True)
    assert [c.ok for c in results] == [False] * 3
    assert [c.file for c in results] == ["no.wav", "such.flac", "<bytes>"]


def test_a_file_that_breaks_off_late_fails_whole(captioner, alone, tmp_path):
    path = tmp_path / "broken.flac"
    soundfile.write(path, sound(70, 1), RATE)  # beyond the windows that are decoded ahead
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 4 // 5])
    results = captioner.caption([CLIPS[0], path, CLIPS[1]])
    assert results[1].error is not None
    assert "truncated" in results[1].error
    assert (results[1].text, results[1].segments) == ("", ())
    assert [results[0].text, results[2].text] == [alone[0].text, alone[1].text]


# --- silence


def test_silence_is_measured_not_asked(captioner, no_model):
    whisper = np.full(RATE, 10 ** (-71 / 20), np.float32)
    for x, seconds in ((QUIET, 0.2), (whisper, 1.0), (np.zeros(35 * RATE, np.float32), 35.0)):
        (result,) = captioner.caption([(x, RATE)], timeline=True, n_best=3)
        assert (result.text, result.score, result.confidence) == ("Silence.", 0.0, 1.0)
        assert (result.duration, result.captions) == (seconds, ("Silence.",))
        assert [(s.start, s.end, s.caption) for s in result.segments] == [(0.0, seconds, "Silence.")]


def test_silence_among_sounds(captioner, alone):
    results = captioner.caption([CLIPS[0], (QUIET, RATE), CLIPS[2]])
    assert [c.text for c in results] == [alone[0].text, "Silence.", alone[2].text]


def test_silence_inside_a_recording(captioner):
    loud, quiet = sound(5, 1), np.zeros(5 * RATE, np.float32)
    joined = np.concatenate([loud, quiet, quiet, sound(5, 4)])
    result, only = captioner.caption([(joined, RATE), (loud, RATE)], timeline=True, window=5)
    assert "Silence." not in (result.text, only.text)
    first, silent, last = result.segments
    assert (first.start, first.end, first.caption) == (0, 5, only.text)
    assert (silent.start, silent.end, silent.caption, silent.confidence) == (5, 15, "Silence.", 1.0)
    assert (last.start, last.end) == (15, 20)


# --- long recordings


@pytest.mark.parametrize(
    ("seconds", "window", "hop"),
    [(23.4, 10, 10), (23.4, 10, 5), (23.4, 4, 1.5), (23.4, 7, 6.99), (10.05, 10, 10), (20.0, 10, 10), (0.5, 10, 10)],
)
def test_segments_cover_the_recording(captioner, seconds, window, hop):
    (result,) = captioner.caption([(sound(seconds, 3), RATE)], timeline=True, window=window, hop=hop)
    assert result.text
    assert result.duration == pytest.approx(seconds)
    segments = result.segments
    assert (segments[0].start, segments[-1].end) == (0.0, result.duration)
    for one, following in itertools.pairwise(segments):
        assert one.end == following.start
        assert one.caption != following.caption, "equal neighbours are one"
    for segment in segments:
        assert segment.start < segment.end
        assert segment.caption
        assert 0 <= segment.confidence <= 1


def test_equal_neighbours_are_joined(captioner):
    tone = np.tile(sound(2, 1), 10)
    one, long = captioner.caption([(tone[: 2 * RATE], RATE), (tone, RATE)], timeline=True, window=2)
    assert [(s.start, s.end, s.caption) for s in long.segments] == [(0.0, 20.0, one.text)]


def test_a_long_recording_is_heard_to_its_end(captioner):
    """What sounds only in the last window changes the caption of the whole."""
    quiet = np.zeros(40 * RATE, np.float32)
    (before,) = captioner.caption([(quiet, RATE)])
    quiet[-RATE:] = sound(1, 2)
    (after,) = captioner.caption([(quiet, RATE)])
    assert before.text == "Silence."
    assert after.text != "Silence."


def test_windows_are_heard_in_their_order(captioner):
    """The caption of 12.5 s is that of its two windows' tokens one after the other, though the second is shorter."""
    x = sound(12.5, 3)
    first, second = captioner.engine.encode([x[: 10 * RATE], x[10 * RATE :]], 1)
    found = captioner.engine.describe(
        [np.concatenate([first, second]), np.concatenate([second, first])], captioner.options
    )
    texts = [row[0] for row in found]
    (result,) = captioner.caption([(x, RATE)])
    assert (result.text, result.score) == (texts[0].text, pytest.approx(texts[0].score, abs=1e-4))
    assert texts[1].score != pytest.approx(texts[0].score, abs=1e-3), "else the order would not show"


def test_a_sliver_at_the_end(captioner):
    """0.05 s are too short to encode: they belong to the window before, and the caption is its own."""
    x = sound(10.05, 1)
    whole, first = captioner.caption([(x, RATE), (x[: 10 * RATE], RATE)], timeline=True)
    assert (whole.text, whole.duration) == (first.text, 10.05)
    assert [(s.start, s.end, s.caption) for s in whole.segments] == [(0.0, 10.05, whole.text)]


def starts(captioner: Captioner, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[float]:
    """Where the windows of 20 silent seconds begin."""
    seen: list[float] = []
    original = door.audio.windows

    def windows(*args: Any) -> Iterator[Any]:
        for start, x in original(*args):
            seen.append(start)
            yield start, x

    monkeypatch.setattr(door.audio, "windows", windows)
    captioner.caption([(np.zeros(20 * RATE, np.float32), RATE)], **options)
    return seen


@pytest.mark.parametrize(
    ("own", "options", "expected"),
    [
        ((10.0, 10.0), {}, [0, 10]),
        ((10.0, 10.0), {"window": 5}, [0, 5, 10, 15]),
        ((10.0, 10.0), {"window": 20}, [0]),
        ((10.0, 10.0), {"window": 15}, [0, 15]),
        ((10.0, 10.0), {"hop": 5}, [0, 5, 10]),
        ((10.0, 10.0), {"window": 8, "hop": 6}, [0, 6, 12]),
        ((10.0, 5.0), {}, [0, 5, 10]),
        ((10.0, 5.0), {"window": 4}, [0, 2, 4, 6, 8, 10, 12, 14, 16]),
    ],
)
def test_windows_and_hops(captioner, no_model, monkeypatch, own, options, expected):
    model_own = door.replace(captioner.options, window=own[0], hop=own[1])
    assert starts(Captioner(captioner.model, model_own), monkeypatch, **options) == expected


# --- choices


@pytest.mark.parametrize(
    "options",
    [
        {"window": 5, "hop": 6},
        {"hop": 11},
        {"hop": 0},
        {"hop": 1e-9},
        {"window": -1},
        {"window": 0.05},
        {"window": math.nan},
        {"hop": math.nan},
        {"window": math.inf},
        {"beams": 0},
        {"batch_size": 0},
        {"batch_size": -3},
        {"n_best": 0},
        {"n_best": 3, "beams": 2},
    ],
)
def test_bad_choices_are_refused_at_once(captioner, options):
    with pytest.raises(ValueError, match="|".join(options)):
        captioner.stream(pytest.fail, **options)  # before any input is looked at


def test_n_best(captioner, alone):
    results = captioner.caption(CLIPS, n_best=3, beams=4)
    assert max(len(result.captions) for result in results) == 3
    for result in results:
        assert len(set(result.captions)) == len(result.captions) == len(result.scores)
        assert (result.text, result.score) == (result.captions[0], result.scores[0])
    assert max(len(c.captions) for c in captioner.caption(CLIPS, n_best=5)) == 5, "beams follow n_best"


def test_sampling_is_repeatable(captioner):
    draw = lambda seed, clips=CLIPS[:4], **options: [
        c.captions for c in captioner.caption(clips, sample=True, seed=seed, **options)
    ]
    assert draw(7) == draw(7)
    assert draw(None) == draw(0)
    assert len({tuple(draw(seed)) for seed in range(4)}) > 1
    assert draw(7, batch_size=1) == draw(7), "a clip's sample is its own"
    drawn = captioner.caption(CLIPS[:4], sample=True, seed=3, n_best=6)
    assert any(len(c.captions) > 1 for c in drawn)
    assert all(list(c.scores) == sorted(c.scores, reverse=True) for c in drawn)
    searched = captioner.caption(CLIPS[:2])
    captioner.caption(CLIPS[:2], sample=True, seed=1)
    same(captioner.caption(CLIPS[:2]), searched)


def test_a_seed_alone_does_not_sample(captioner, alone):
    same(captioner.caption(CLIPS[:3], seed=5), alone[:3])


# --- threads, loading


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lamb")]


def test_a_stream_that_is_left_early(captioner):
    stream = captioner.stream([(sound(0.2, k), RATE) for k in range(40)], batch_size=1, beams=1)
    next(stream)
    stream.close()
    assert threads() == []
    for _ in captioner.stream([(sound(0.2, k), RATE) for k in range(40)], batch_size=1, beams=1):
        break
    assert threads() == []
    unused = captioner.stream(CLIPS)
    assert threads() == []
    del unused


def test_a_stream_that_is_left_decodes_no_more(captioner, no_model, monkeypatch):
    opened, gate, original = itertools.count(), threading.Event(), door.audio.windows

    def windows(*args: Any) -> Iterator[Any]:
        if next(opened) >= 4:  # all but the first group wait until the stream is being closed
            gate.wait(10)
        return original(*args)

    monkeypatch.setattr(door.audio, "windows", windows)
    monkeypatch.setattr(recording, "HELD", 4)
    stream = captioner.stream([(QUIET, RATE)] * 100, batch_size=4)
    next(stream)
    threading.Timer(0.2, gate.set).start()
    stream.close()
    assert next(opened) <= 4 + 2, "more than the two that were on their way"


def test_two_streams_side_by_side(captioner, alone):
    pairs = zip(captioner.stream(CLIPS[:4], batch_size=1), captioner.stream(CLIPS[4:8], batch_size=2), strict=True)
    one, other = zip(*pairs, strict=True)
    same([*one, *other], alone[:8])


def test_load(model_folder: Path):
    captioner = Captioner.load(str(model_folder), "cpu")
    assert not captioner.model.training
    (result,) = captioner.caption([(sound(1, 0), RATE)])
    assert result.ok
    assert captioner.options.max_new_tokens == 8


def test_load_merges_lora(make_model, tmp_path):
    import torch

    from lamb.model.checkpoint import save

    model = make_model(llm={"train": "lora"})
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.add_(0.05 * torch.randn_like(p))
    loaded = Captioner.load(str(save(model, tmp_path, card={})), "cpu")
    assert not [name for name in loaded.model.state_dict() if "lora" in name]
    same(loaded.caption(CLIPS[:3]), Captioner(model).caption(CLIPS[:3]))


@pytest.mark.parametrize("device", ["cuda:99", "toaster", ""])
def test_a_device_that_is_not_there(model_folder, device):
    with pytest.raises(CheckpointError, match=r"cannot be used .*; try cpu"):
        Captioner.load(str(model_folder), device)


def test_an_unknown_model():
    with pytest.raises(CheckpointError, match="nosuch: no such model"):
        Captioner.load("nosuch")
