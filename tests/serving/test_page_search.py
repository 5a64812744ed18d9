"""The search tab of the page: what is found, as HTML with players; the browser is in test_page."""

import base64
import io
import re

import numpy as np
import pytest
import soundfile

pytest.importorskip("lancedb", reason="lancedb is not installed (the extra `library`)")

from lamb.inference.captioner import Captioner
from lamb.library.library import Library, Match
from lamb.serving import page_search

RATE = 16_000


@pytest.fixture
def library(tmp_path, make_model):
    for k in range(3):
        x = 0.3 * np.sin(2 * np.pi * (300 + 200 * k) / RATE * np.arange(RATE))
        (tmp_path / "sounds").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "sounds" / f"tone {k}.wav", x, RATE)
    library = Library(tmp_path / "index", Captioner(make_model()))
    library.index(tmp_path / "sounds")
    return library


def test_what_is_found_can_be_played(library):
    html = page_search.found_as_html(library, "a dog barks")
    assert html.count("<li>") == 3
    assert sorted(re.findall(r"tone \d\.wav", html)) == ["tone 0.wav", "tone 1.wav", "tone 2.wav"]
    for sound in re.findall(r"data:audio/flac;base64,([^\"]+)", html):
        x, rate = soundfile.read(io.BytesIO(base64.b64decode(sound)))
        assert (len(x), rate) == (RATE, 16_000)


def test_what_is_played_is_decoded_in_a_process_of_its_own(library, monkeypatch):
    monkeypatch.setattr("lamb.audio.reader.load", None)  # in this process only
    assert page_search.found_as_html(library, "a dog barks").count("<audio") == 3


def test_what_is_wrong_is_told_in_words(library, tmp_path):
    assert "nothing is searched for" in page_search.found_as_html(library, "  ")
    (tmp_path / "sounds" / "tone 1.wav").unlink()
    html = page_search.found_as_html(library, "a dog barks")
    assert (html.count("<audio"), html.count("cannot be played: does not exist")) == (2, 1)


def test_captions_and_names_are_text_not_html(library, monkeypatch):
    found = [Match("/x/<i>.wav", 0.0, 1.0, "<b>Rain</b>.", 0.5, 1.0)]
    monkeypatch.setattr(library, "search", lambda query, limit: found)
    html = page_search.found_as_html(library, "rain")
    assert "<b>" not in html
    assert "<i>" not in html
    assert "&lt;b&gt;Rain&lt;/b&gt;." in html
