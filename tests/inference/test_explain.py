"""When the words of a caption were heard."""

from pathlib import Path

import numpy as np
import pytest

from lamb.config import ExplainConfig
from lamb.inference.captioner import Captioner
from lamb.inference.explain import ExplainError, draw, explain
from lamb.inference.picture import Picture

RATE = 16_000
SAMPLES = Path(__file__).parents[2] / "samples"


@pytest.fixture
def captioner(make_model):
    return Captioner(make_model())


def noise(seconds, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE)).astype(np.float32)


def test_every_word_has_a_stretch_and_every_stretch_a_support(captioner):
    found = explain(captioner.engine, (noise(4.2), RATE), captioner.options)
    assert found.duration == pytest.approx(4.2)
    assert found.stretches[0] == (0.0, 1.0)
    assert found.stretches[-1] == (pytest.approx(3.2), pytest.approx(4.2))
    assert found.support.shape == (len(found.words), len(found.stretches))
    assert np.isfinite(found.support).all()
    for word, row in zip(found.words, found.support, strict=True):
        assert (word.start, word.end) == found.stretches[int(row.argmax())]
        assert word.text in found.caption
    told = found.to_dict()
    assert [w["word"] for w in told["words"]] == [w.text for w in found.words]
    assert len(told["support"][0]) == len(told["stretches"]) if found.words else True


def test_a_sound_shorter_than_a_stretch(captioner):
    found = explain(captioner.engine, (noise(0.5), RATE), captioner.options)
    assert found.stretches == ((0.0, pytest.approx(0.5)),)
    assert np.isfinite(found.support).all()


def test_sound_between_silences_is_not_sought_in_them(captioner):
    x = np.concatenate([np.zeros(11 * RATE, np.float32), noise(3), np.zeros(RATE, np.float32)])
    found = explain(captioner.engine, (x, RATE), captioner.options)
    assert all(word.end > 9.9 for word in found.words), "the first window has no tokens"


def test_silence_and_what_is_too_long(captioner):
    with pytest.raises(ExplainError, match="nothing to explain"):
        explain(captioner.engine, (np.zeros(RATE, np.float32), RATE), captioner.options)
    with pytest.raises(ExplainError, match="longer than 5 s"):
        explain(captioner.engine, (noise(12), RATE), captioner.options, ExplainConfig(longest=5.0))


def test_the_picture(captioner, tmp_path):
    pytest.importorskip("matplotlib")
    picture = Picture(RATE, tmp_path / "words.png")
    heard = []

    def listen(x):
        heard.append(x)
        picture.listen(x)

    x = noise(12.5)
    found = explain(captioner.engine, (x, RATE), captioner.options, listen=listen)
    np.testing.assert_array_equal(np.concatenate(heard), x)
    draw(found, picture)
    assert (tmp_path / "words.png").stat().st_size > 5000


def test_words_are_found_where_they_sound():
    """Silence apart, two made-up sounds that the bundled model knows."""
    captioner = Captioner.load("tiny", "cpu")
    found = explain(captioner.engine, str(SAMPLES / "knocks_then_bells.flac"), captioner.options)
    places = {word.text.lower(): (word.start + word.end) / 2 for word in found.words}
    knocks = [place for word, place in places.items() if word.startswith("knock")]
    bells = [place for word, place in places.items() if word.startswith("bell")]
    assert knocks, found.caption
    assert bells, found.caption
    assert max(knocks) < 3.0 < min(bells)


def test_a_model_without_a_guide_says_so(make_model):
    captioner = Captioner(make_model(guide={"enabled": False}))
    with pytest.raises(ExplainError, match="no Token Guide"):
        explain(captioner.engine, (noise(2), RATE), captioner.options)
