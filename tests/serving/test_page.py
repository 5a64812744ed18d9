"""`lamb demo`: what is decoded and shown, and the page itself in a real browser where there is one."""

import base64
import io
import json
import re
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lamb.audio import reader as audio
from lamb.cli.app import app
from lamb.errors import PackageError
from lamb.inference.captioner import Captioner
from lamb.inference.captions import Caption, Segment
from lamb.serving import page as demo
from lamb.serving import page_result, page_words

RATE = 16_000
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMIUM_ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """Half a second of a tone under a name that is no HTML."""
    file = tmp_path / "my <tone>.wav"
    soundfile.write(file, 0.5 * np.sin(0.2 * np.arange(RATE // 2)), RATE)
    return file


# ---- decoding


def test_a_file_is_decoded_as_everywhere(sound):
    np.testing.assert_array_equal(demo.decode(sound, RATE), audio.load(sound, RATE))


def test_what_is_no_sound_is_told_without_its_name(tmp_path):
    (tmp_path / "secret.wav").write_bytes(b"RIFF" + b"junk" * 100)
    with pytest.raises(audio.AudioError) as error:
        demo.decode(tmp_path / "secret.wav", RATE)
    assert str(error.value).startswith("recording: not audio")


def test_an_upload_that_was_removed_is_told_without_its_name(tmp_path):
    with pytest.raises(audio.AudioError) as error:
        demo.decode(tmp_path / "secret.wav", RATE)
    assert str(error.value) == "recording: no longer here; upload it again"


def test_too_long_and_too_large(sound, monkeypatch):
    monkeypatch.setattr(demo, "MAX_DURATION", 0.3)
    with pytest.raises(audio.AudioError, match=r"longer than the 0\.3 s allowed here; cut it into shorter recordings"):
        demo.decode(sound, RATE)
    monkeypatch.setattr(demo, "MAX_SIZE", 1000)
    with pytest.raises(audio.AudioError, match="larger than"):
        demo.decode(sound, RATE)


# ---- what is shown


def test_words_grow_with_the_strength_of_the_guide(make_model, sound):
    model, x = make_model(), audio.load(sound, RATE)
    options = model.config.decode
    found = {
        strength: page_words.guided(Captioner(model, demo.replace(options, guide=strength)), x)
        for strength in (0.0, 1.0, 2.0)
    }
    assert found[1.0].words
    assert [word for word, _ in found[1.0].words] == [word for word, _ in found[2.0].words]
    once, twice = ([value for _, value in found[strength].words] for strength in (1.0, 2.0))
    assert once == sorted(once, reverse=True)
    np.testing.assert_allclose(twice, 2 * np.array(once), rtol=1e-5)
    assert {value for _, value in found[0.0].words} == {0.0}
    assert len({guided.without for guided in found.values()}) == 1


def test_no_guide_and_silence_have_no_words(make_model, sound):
    assert page_words.guided(Captioner(make_model(guide={"enabled": False})), audio.load(sound, RATE)) is None
    assert page_words.guided(Captioner(make_model()), np.zeros(RATE, np.float32)) is None


def test_words_are_entries_that_begin_one():
    class Tokenizer:
        def convert_ids_to_tokens(self, entry: int) -> str:
            return ["</s>", "ing", "Ġrain", "▁cat", "ĠRain", "Ġ.", "Ġa"][entry]

    bias = torch.tensor([9.0, 8.0, 2.0, 3.0, 1.0, 7.0, 6.0])
    assert list(page_words._words(Tokenizer(), bias)) == [("cat", 3.0), ("rain", 2.0)]


@pytest.fixture
def page() -> str:
    """What is shown of a second with two segments, whose captions hold HTML."""
    x = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) / 10
    segments = (Segment(0.0, 0.25, "<b>Rain</b>.", 0.5), Segment(0.25, 1.0, "A dog barks.", 0.9))
    caption = Caption("recording", 1.0, "<script>", -0.1, 0.75, ("<script>", "<i>"), (-0.1, -0.2), segments)
    effect = page_words.Guided("<u>", (("rain", 2.0), ("dog", -1.0)))
    return page_result.shown(caption, x, RATE, page_words.effect_as_html(caption.text, effect, 1.5))


def files(html: str) -> dict[str, bytes]:
    """Content of the data: addresses by their kind."""
    return {kind: base64.b64decode(data) for kind, data in re.findall(r'"data:([a-z/-]+);base64,([^"]*)"', html)}


def test_captions_are_text_not_html(page):
    assert not re.search(r"<(b|i|u|script)>", page)
    assert all(f"&lt;{tag}&gt;" in page for tag in ("b", "i", "u", "script"))


def test_segments_lie_under_their_sound(page):
    assert re.findall(r'data-start="([\d.]+)" data-end="([\d.]+)" style="left:([\d.]+)%;width:([\d.]+)%', page) == [
        ("0.000", "0.250", "0.000", "25.000"),
        ("0.250", "1.000", "25.000", "75.000"),
    ]
    found = files(page)
    assert found["image/png"].startswith(b"\x89PNG")
    x, rate = soundfile.read(io.BytesIO(found["audio/flac"]))
    assert (len(x), rate) == (RATE, RATE)


def test_downloads_are_what_the_command_line_writes(page):
    assert re.findall(r'download="([^"]*)"', page) == ["recording.srt", "recording.json"]
    srt, as_json = (base64.b64decode(data) for data in re.findall(r'octet-stream;base64,([^"]*)"', page))
    assert srt.decode().split("\n")[:3] == ["1", "00:00:00,000 --> 00:00:00,250", "<b>Rain</b>."]
    assert [s["caption"] for s in json.loads(as_json)[0]["segments"]] == ["<b>Rain</b>.", "A dog barks."]


def test_errors_of_files_are_text():
    error = audio.AudioError("x", "a codec called <b>", "convert it")
    assert "This recording cannot be captioned: a codec called &lt;b&gt;; convert it." in page_result.told(error)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("/tmp/x/dog.wav", "dog"),
        ("/tmp/x/My holiday (2).mp4", "My-holiday-2"),
        ("/tmp/x/Mövenschrei 2024-05-01.flac", "Mövenschrei-2024-05-01"),
        ('/tmp/x/"><script>.wav', "script"),
        ("/tmp/x/...", "recording"),
        ("/tmp/x/" + 300 * "a", 60 * "a"),
    ],
)
def test_what_is_downloaded_is_named_after_the_recording(file, expected):
    assert demo.name_for(file) == expected


def test_text_on_the_colours_of_segments_can_be_read():
    for colour in (*page_result.COLOURS, "#666666", "#444444"):
        channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminance = np.dot([0.2126, 0.7152, 0.0722], linear)
        assert 1.05 / (luminance + 0.05) >= 4.5, colour


# ---- the page


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(PackageError, match=r"needs gradio; pip install 'lamb-aac\[demo\]'"):
        demo.Page(["tiny"])


def test_the_page_is_not_open_to_all_by_default(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(demo, "demo", lambda *given: called.append(given))
    app(["demo"], standalone_mode=False)
    app(["demo", "--host", "0.0.0.0", "--model", "a", "--model", "b", "--port", "80"], standalone_mode=False)
    assert called == [(["tiny"], "127.0.0.1", 7860, None, None, None), (["a", "b"], "0.0.0.0", 80, None, None, None)]
    assert capsys.readouterr().err == "lamb: warning: anyone who reaches 0.0.0.0 can use this page\n"


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_port_in_use_is_told(model_folder, monkeypatch):
    pytest.importorskip("gradio", reason="the extra [demo] is not installed")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with (
            pytest.raises(demo.DemoError, match=f"{number}; choose another"),
            demo.running([str(model_folder)], "127.0.0.1", number),
        ):
            pass


# Text whose contrast with what is behind it is below WCAG AA: 4.5, or 3 for large text.
FAINT = """() => {
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = (c) => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const parsed = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
  const over = (c, below, alpha) => [0, 1, 2].map((k) => alpha * c[k] + (1 - alpha) * below[k]);
  const behind = (e) => {
    const layers = [];
    for (; e; e = e.parentElement) layers.push(parsed(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, c) => over(c, below, c[3]), [255, 255, 255]);
  };
  const faint = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
    if (!texts.currentNode.textContent.trim() || !box.width || !box.height || style.visibility === "hidden") continue;
    if (["SCRIPT", "STYLE"].includes(e.tagName)) continue;
    const below = behind(e), colour = parsed(style.color);
    const [one, other] = [luminance(over(colour, below, colour[3])), luminance(below)];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (contrast < (large ? 3 : 4.5)) faint.push(`${texts.currentNode.textContent.trim()}: ${contrast.toFixed(2)}`);
  }
  return faint;
}"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(model_folder, sound, port, tmp_path, monkeypatch, width):
    pytest.importorskip("gradio", reason="the extra [demo] is not installed")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    url, asked, problems = f"http://127.0.0.1:{port}", [], []
    with demo.running([str(model_folder)], "127.0.0.1", port), sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(120_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        upload = page.locator("#sound input[type=file]").first

        if demo.SAMPLES.is_dir():
            page.get_by_text("An example, the sample").wait_for()
            assert page.locator(".lamb-caption").inner_text()
        upload.set_input_files(sound)
        page.get_by_text("An example, the sample").wait_for(state="detached")
        page.locator(".lamb-caption").wait_for()
        own = Captioner.load(str(model_folder))
        expected = own.timeline((audio.load(sound, RATE), RATE), beams=own.options.beams, n_best=3).finish()
        assert page.locator(".lamb-caption").inner_text() == expected.text
        assert page.locator(".lamb-segments li span").nth(1).inner_text() == expected.text, "in the same words"
        assert page.locator(".lamb-alternatives li").count() == len(expected.captions) - 1
        page.wait_for_function("document.querySelector('.lamb-caption').getBoundingClientRect().bottom < innerHeight")
        page.wait_for_function("document.querySelector('.lamb-caption').getBoundingClientRect().top >= 0")
        assert page.locator("audio").count() == 1, "one player"
        headings = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))")
        assert headings[:2] == [1, 2]
        assert set(headings[2:]) == {3}
        assert page.evaluate(FAINT) == []

        bars = page.locator(".lamb-bars button")
        assert bars.count() == len(expected.segments)
        bars.first.click()
        page.wait_for_function("document.querySelector('#heard audio').currentTime > 0.1")
        page.wait_for_function("document.querySelector('#heard audio').paused")

        with page.expect_download() as download:
            page.locator("a[download='my-tone.json']").click()
        assert json.loads(download.value.path().read_text())[0]["caption"] == expected.text

        page.get_by_text("Settings").click()
        number = page.locator("#strength input[type=number]")
        number.fill("0")
        number.press("Enter")
        number.blur()
        page.get_by_text("at strength 0").wait_for()

        if (demo.SAMPLES / "manifest.jsonl").is_file():
            page.get_by_role("tab", name="Modality gap").click()
            page.locator("#draw").click()
            page.locator("#gap img").wait_for()
            page.get_by_role("tab", name="Caption").click()

        (tmp_path / "bad.wav").write_bytes(b"RIFF" + b"junk" * 100)
        page.locator("#sound button[aria-label=Clear]").first.click()
        upload.set_input_files(tmp_path / "bad.wav")
        page.locator(".lamb-error").wait_for()
        assert page.locator(".lamb-error").inner_text().startswith("This recording cannot be captioned: not audio")
        assert page.get_by_text("not audio").count() == 1, "told once"
        assert "Traceback" not in page.content()

        assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert problems == []
    assert [address for address in asked if not address.startswith((url, "data:", f"blob:{url}"))] == []
