"""The page of examples/browser says what the command line says, in headless Chromium."""

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOUNDS = [ROOT / "samples" / name for name in ("siren.flac", "knocks_then_bells.flac", "silence.flac")]
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),  # a microphone that beeps
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    made = subprocess.run(
        [sys.executable, ROOT / "examples" / "browser" / "build.py", "--to", site],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.network
def test_the_page_says_what_the_command_line_says(address):
    """`pytest -m network tests/test_browser.py` (ONNX Runtime for the web comes from npm)."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or pytest.skip("chromium is not installed")
    command = [sys.executable, "-m", "lamb", "caption", "--format", "csv", "--engine", "onnx", *map(str, SOUNDS)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 390, "height": 844})
        asked, problems = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        page.get_by_text("Ready.").wait_for(timeout=120_000)
        page.set_input_files("#file", SOUNDS)
        page.locator(".caption").nth(len(SOUNDS) - 1).wait_for(timeout=120_000)
        cards = page.locator("article").all()
        shown = {card.locator("h2").inner_text(): card.locator(".caption").all_inner_texts() for card in cards}
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is as wide as a telephone"
        page.get_by_role("button", name="Record 5 seconds").click()
        page.get_by_role("heading", name="your recording").wait_for(timeout=30_000)
        page.locator("article").first.locator(".caption").wait_for(timeout=60_000)
        assert page.locator("article").first.locator(".caption").inner_text().endswith(".")
        browser.close()
    assert problems == []
    assert all(url.startswith((address, "blob:")) for url in asked), "nothing leaves the page"
    for sound in SOUNDS:
        [caption] = shown[sound.name]
        assert f",{caption}," in told.replace('"', "")
