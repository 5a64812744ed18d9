"""`lamb demo`: a page in the browser, built with Gradio on `Captioner`.

The result for a recording is one piece of HTML (see `page_result`). Nothing is loaded from anywhere but the page's own
server. Files come from strangers: each is decoded in a process of its own, which may crash or hang without harm to the
page; of its name, letters and digits are used for the files that can be downloaded.
"""

import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ..audio import reader as audio
from ..audio import sandbox
from ..config import DecodeLimits
from ..data import sources
from ..data.manifest import Clip
from ..errors import LambError, optional
from ..evaluation import gap
from ..inference.captioner import Captioner
from ..library.library import Library
from .page_result import CSS, PLAY, shown, told
from .page_search import add_search
from .page_words import effect_as_html, guided, words_heard

SAMPLES = Path(__file__).parents[2] / "samples"  # in a clone of the repository; an installed package has none
MAX_SIZE = 50 * 2**20  # bytes of an upload
MAX_DURATION = 600.0  # seconds of a recording: all of it travels to the browser and back
MAX_WAITING = 16  # recordings that wait for their turn
LIMITS = DecodeLimits(seconds=60.0, seconds_per_mb=0.0)
ALTERNATIVES = 3
NAME = "recording"  # what a file is called whose own name has no letters
LISTENING = '<p class="lamb-note" role="status">Listening ...</p>'


class DemoError(LambError, OSError):
    """A page that cannot be shown; the text has the remedy."""


# ---- sound -----------------------------------------------------------------------------------------------------------


def decode(file: str | Path, sample_rate: int) -> np.ndarray:
    """Samples (T,) of `file`, decoded in a process that may crash. Raises AudioError, with NAME for the file's."""
    try:
        if Path(file).stat().st_size > MAX_SIZE:
            raise audio.AudioError(NAME, f"larger than {MAX_SIZE >> 20} MB", "give a shorter piece of it")
        with open(file, "rb") as upload, sandbox.Decoding(upload, sample_rate, limits=LIMITS, called=NAME) as decoding:
            return decoding.load(MAX_DURATION)
    except FileNotFoundError:  # an upload is kept for an hour
        raise audio.AudioError(NAME, "no longer here", "upload it again") from None


def name_for(file: str) -> str:
    """What is made of a file's name for what is downloaded: its letters and digits, without the suffix."""
    return re.sub(r"[^\w.-]+", "-", Path(file).stem).strip("-._")[:60] or NAME


# ---- the page --------------------------------------------------------------------------------------------------------

INTO_VIEW = """() => {
  const result = document.getElementById("heard"), top = result.getBoundingClientRect().top;
  if (top < 0 || top > window.innerHeight / 2) result.scrollIntoView({ behavior: "smooth" });
}"""
FONTS = ["system-ui", "sans-serif"]  # of the reader's own system: nothing is loaded for them

INTRODUCTION = """Describes a recording in one sentence, and its segments with their times. Upload a recording, record
one, or choose a sample; everything is computed on the machine that serves this page.
"""

ABOUT_GAP = """
The method represents audio and text in one space: a recording becomes audio tokens among the word embeddings of the
language model. Each dot is a recording, each square its caption, and a line connects the two. If the two sets lie
apart, there is a *modality gap*; if they mix, it is closed. The vectors are drawn at unit length, since raw ones
mainly show that audio and text differ in length. The axes are the two directions of largest variance (PCA). The table
shows the mean L2 distance and cosine between a recording and its caption, and how often each finds the other first
among all (R@1).
"""


class Page:
    """Models by name, the first one loaded at once and the others when they are chosen."""

    def __init__(
        self,
        models: Sequence[str],
        device: str | None = None,
        data: str | Path | None = None,
        library: str | Path | None = None,
    ):
        for module in ("gradio", "matplotlib"):
            optional(module, f"the page needs {module}", "demo")
        self.models, self.device = list(models), device
        self.loaded = {self.models[0]: Captioner.load(self.models[0], device, engine="torch")}
        if data is None and (SAMPLES / "manifest.jsonl").is_file():
            data = SAMPLES
        self.clips: list[Clip] = [] if data is None else sources.clips(data)
        self.library = None if library is None else Library(library, device=device)

    def captioner(self, name: str) -> Captioner:
        if name not in self.models:  # a request that was not made by the page
            raise DemoError(f"{name}: not a model of this page")
        if name not in self.loaded:
            self.loaded[name] = Captioner.load(name, self.device, engine="torch")
        return self.loaded[name]

    def hear(self, file: str | None, model: str, beams: float, strength: float) -> str:
        """All about an uploaded file as HTML, or why there is nothing. Raises AudioError."""
        if file is None:
            return ""
        own = self.captioner(model)
        captioner = Captioner(own.model, replace(own.options, beams=int(beams), guide=float(strength)))
        rate = own.model.encoder.sample_rate
        x = decode(file, rate)
        # the same search for segments as for the whole, so that both say it in the same words
        timeline = captioner.timeline((x, rate), beams=int(beams), n_best=min(ALTERNATIVES, int(beams)))
        caption = replace(timeline.finish(), file=name_for(file))
        effect = effect_as_html(caption.text, guided(captioner, x), strength)
        return shown(caption, x, rate, words_heard(captioner, x, rate, caption.text) + effect)

    def example(self, sample: Path) -> str:
        """What the page shows before anything is uploaded: the caption of a sample."""
        options = self.loaded[self.models[0]].options
        note = f'<p class="lamb-note">An example, the sample "{escape(sample.stem.replace("_", " "))}":</p>'
        return note + self.hear(str(sample), self.models[0], options.beams, options.guide)

    def gap(self, model: str) -> tuple[Any, str]:
        """The picture of the modality gap, and its measures as Markdown."""
        from PIL import Image

        found = gap.embed(self.captioner(model).model, self.clips)
        with tempfile.TemporaryDirectory() as folder:
            gap.picture([(Path(model).name, found)], Path(folder) / "gap.png")
            with Image.open(Path(folder) / "gap.png") as image:
                picture = image.convert("RGB")
        m = gap.measures(found)
        measures = f"""| | |
|---|--:|
| recordings | {m["clips"]} |
| L2 distance | {m["l2"]:.3f} |
| the same at unit length | {m["l2_unit"]:.3f} |
| cosine | {m["cosine"]:.3f} |
| R@1, caption found by recording | {m["audio_to_text_r1"]:.0%} |
| R@1, recording found by caption | {m["text_to_audio_r1"]:.0%} |"""
        return picture, measures

    def build(self) -> Any:
        """The page as Gradio Blocks."""
        import gradio as gr

        def hear(file: str | None, model: str, beams: float, strength: float) -> Iterator[str]:
            yield LISTENING if file else ""
            try:
                yield self.hear(file, model, beams, strength)
            except audio.AudioError as error:
                yield told(error)
            except (ValueError, OSError) as error:  # such as a model that cannot be loaded
                raise gr.Error(escape(str(error)), print_exception=False) from None

        def draw(model: str) -> tuple[Any, str]:
            try:
                return self.gap(model)
            except (ValueError, OSError) as error:
                raise gr.Error(escape(str(error)), print_exception=False) from None

        options = self.loaded[self.models[0]].options
        samples = sorted(SAMPLES.glob("*.flac"))
        example = self.example(samples[-1]) if samples else ""
        one_at_a_time: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
        with gr.Blocks(title="lamb", analytics_enabled=False, delete_cache=(600, 3600)) as page:
            gr.Markdown("# lamb\n" + INTRODUCTION)
            with gr.Tab("Caption"), gr.Row():
                with gr.Column(scale=2, min_width=300):
                    sound = gr.File(
                        file_types=["audio", "video"],
                        type="filepath",
                        label=f"A recording or a video of up to {MAX_DURATION / 60:g} minutes",
                        height=150,
                        elem_id="sound",
                    )
                    if samples:
                        names = [path.stem.replace("_", " ") for path in samples]
                        gr.Examples(
                            [[str(path)] for path in samples],
                            sound,
                            example_labels=names,
                            label="Or one of these",
                            cache_examples=False,
                            examples_per_page=20,
                        )
                    with gr.Accordion("Microphone", open=False):
                        microphone = gr.Audio(
                            sources=["microphone"], type="filepath", show_label=False, buttons=[], editable=False
                        )
                    with gr.Accordion("Settings", open=False):
                        model = gr.Dropdown(self.models, value=self.models[0], label="Model")
                        beams = gr.Slider(1, max(8, options.beams), options.beams, step=1, label="Beams", buttons=[])
                        strength = gr.Slider(
                            0,
                            2,
                            1,
                            step=0.25,
                            label="Guide strength",
                            info="The strength of the Token Guide: 0 is off, 1 as trained.",
                            buttons=[],
                            elem_id="strength",
                        )
                with gr.Column(scale=3, min_width=300):
                    heard = gr.HTML(example, js_on_load=PLAY, min_height=120, elem_id="heard")
            if self.library is not None:
                add_search(self.library, one_at_a_time)
            with gr.Tab("Modality gap"):
                gr.Markdown(ABOUT_GAP)
                if self.clips:
                    again = gr.Button(f"Draw the gap of {len(self.clips)} recordings", elem_id="draw")
                    image = gr.Image(format="png", show_label=False, buttons=["download"], elem_id="gap")
                    measures = gr.Markdown()
                    again.click(draw, model, [image, measures], **one_at_a_time)
                else:
                    gr.Markdown("There are no recordings to show; start the page with `lamb demo --data MANIFEST`.")
            # a recording becomes the file of the page and leaves the microphone, so that there is one player
            microphone.stop_recording(
                lambda recorded: (recorded, None), microphone, [sound, microphone], api_visibility="private"
            )
            inputs = [sound, model, beams, strength]
            triggers = [sound.change, model.change, beams.release, strength.release]
            result = gr.on(
                triggers, hear, inputs, heard, trigger_mode="always_last", show_progress="hidden", **one_at_a_time
            )
            result.then(None, js=INTO_VIEW, api_visibility="private")
        return page.queue(max_size=MAX_WAITING)


def _theme() -> Any:
    """Gradio's own with the reader's fonts, and colours of enough contrast for text (WCAG AA)."""
    import gradio

    theme = gradio.themes.Default(primary_hue="blue", font=FONTS, font_mono=["ui-monospace", "monospace"])
    return theme.set(
        color_accent="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )


@contextmanager
def running(
    models: Sequence[str],
    host: str,
    port: int,
    device: str | None = None,
    data: str | Path | None = None,
    library: str | Path | None = None,
) -> Iterator[Any]:
    """The page at `host`:`port` as long as the block runs. Raises DemoError, and what a model or manifest may raise."""
    with tempfile.TemporaryDirectory(prefix="lamb-demo-") as folder:  # uploads, gone with the page
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = Page(models, device, data, library).build()
        try:
            page.launch(
                share=False,
                server_name=host,
                server_port=port,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MAX_SIZE,
                css=CSS,
                theme=_theme(),
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
            )
        except OSError:
            raise DemoError(f"cannot listen on {host}:{port}; choose another --port or --host") from None
        try:
            yield page
        finally:
            page.close(verbose=False)


def demo(
    models: Sequence[str],
    host: str,
    port: int,
    device: str | None = None,
    data: str | Path | None = None,
    library: str | Path | None = None,
) -> None:
    """Show the page at `host`:`port` until Ctrl-C, and print its address; see `running`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # uploads are removed then too
    with running(models, host, port, device, data, library) as page:
        print(f"http://{host}:{port}", flush=True)
        page.block_thread()
