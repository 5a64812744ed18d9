"""`lamb demo`: a page in the browser, built with Gradio on `Captioner`.

The result for a recording is one piece of HTML with everything in it: the caption, alternatives, the spectrogram with
the segments below it, the sound itself and the files to download, so that nothing is left on disk. A few lines in the
browser (`PLAY`) play a segment. Nothing is loaded from anywhere but the page's own server.

Files come from strangers: each is decoded in a process of its own, which may crash or hang without harm to the page,
and its name is never used.
"""

import base64
import io
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..audio import reader as audio
from ..audio import sandbox
from ..config import DecodeLimits
from ..data import sources
from ..data.manifest import Clip
from ..errors import LambError
from ..evaluation import gap
from ..inference.captioner import Captioner
from ..inference.captions import SILENCE, UNREADABLE, WRITERS, Caption, Segment, span
from ..inference.picture import spectrogram_png
from ..inference.recording import hear
from ..library.library import Library
from ..model.padding import pad
from .page_search import add_search
from .page_words import words_heard

SAMPLES = Path(__file__).parents[2] / "samples"  # in a clone of the repository; an installed package has none
MAX_SIZE = 50 * 2**20  # bytes of an upload
MAX_DURATION = 600.0  # seconds of a recording: all of it travels to the browser and back
MAX_WAITING = 16  # recordings that wait for their turn
LIMITS = DecodeLimits(seconds=60.0, seconds_per_mb=0.0)
ALTERNATIVES = 3
WORDS = 8  # that are shown of those which the guide raises
NAME = "recording"  # what every file is called in what is downloaded
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7b4ea3", "#a03030")


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


# ---- what is heard in it ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guided:
    """What the Token Guide does to one recording."""

    without: str  # the caption without it
    words: tuple[tuple[str, float], ...]  # that it raises most, with what it adds to their logits


def guided(captioner: Captioner, x: np.ndarray) -> Guided | None:
    """What the guide does to samples `x` (T,), at `captioner`'s strength; None: no guide, or only silence."""
    engine, model, options = captioner.engine, captioner.model, captioner.options
    ((recording,),) = hear(engine, [(x, engine.sample_rate)], options)
    if model.guide is None or recording.h_a is None:
        return None
    [[without]] = engine.describe([recording.h_a], replace(options, guide=0.0))
    with torch.inference_mode():
        z_a, mask = pad(engine.audio_tokens([recording.h_a], 1))  # (1, N, D_llm), (1, N)
        matrix = model.llm.embedding_matrix
        bias = options.guide * model.guide(z_a.to(model.device), mask.to(model.device), matrix)[0, 0]  # (V,)
    return Guided(without.text, tuple(_words(model.llm.tokenizer, bias)))


def _words(tokenizer: Any, bias: torch.Tensor) -> Iterable[tuple[str, float]]:
    """The words (entries of the vocabulary that begin one) with the largest `bias` (V,), and that."""
    found: dict[str, float] = {}
    for entry in bias.argsort(descending=True).tolist():
        token = tokenizer.convert_ids_to_tokens(entry)
        word = token[1:].lower() if token and token[0] in "Ġ▁" else ""
        if len(word) > 1 and word.isalpha():
            found.setdefault(word, float(bias[entry]))
        if len(found) == WORDS:
            break
    return found.items()


# ---- as HTML ---------------------------------------------------------------------------------------------------------

PLAY = """
element.onclick = (event) => {
  const chosen = event.target.closest('[data-start]');
  if (!chosen) return;
  const sound = element.querySelector('audio');
  element.stopAt = Number(chosen.dataset.end);
  sound.currentTime = Number(chosen.dataset.start);
  sound.play();
};
const follow = () => {
  const sound = element.querySelector('audio'), head = element.querySelector('.lamb-head');
  if (sound && head && sound.duration) {
    head.style.left = `${100 * sound.currentTime / sound.duration}%`;
    if (element.stopAt && sound.currentTime >= element.stopAt) { sound.pause(); element.stopAt = 0; }
  }
  requestAnimationFrame(follow);
};
follow();
"""

CSS = """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
.lamb-caption { font-size: 1.5rem; line-height: 1.3; font-weight: 600; margin: 0 0 .3rem; }
.lamb-note { font-size: .85rem; margin: .2rem 0; }
.lamb-error { border-left: 4px solid #d55e00; padding: .5rem .8rem; }
.lamb h2 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
.lamb ol { margin: 0; padding: 0; list-style: none; }
.lamb-strip { position: relative; }
.lamb-strip img { display: block; width: 100%; height: 130px; margin: 0; border-radius: 4px 4px 0 0; }
.lamb-khz { position: absolute; top: 2px; left: 5px; color: #fff; font-size: .7rem; background: #000a;
  padding: 0 3px; border-radius: 3px; }
.lamb-bars { position: relative; height: 34px; background: var(--background-fill-secondary); }
.lamb-bars button { position: absolute; top: 2px; height: 30px; border-radius: 3px; min-width: 3px; cursor: pointer;
  overflow: hidden; white-space: nowrap; text-align: left; color: #fff; font-size: .75rem; padding: 0; text-indent: 5px;
  border-right: 1px solid #fff; }
.lamb-head { position: absolute; top: 0; bottom: 0; width: 2px; left: 0; background: #fff; box-shadow: 0 0 3px #000;
  pointer-events: none; z-index: 2; }
.lamb-axis { display: flex; justify-content: space-between; font-size: .75rem; }
.lamb audio { width: 100%; height: 40px; margin: .5rem 0; }
.lamb ol { max-height: 20rem; overflow-y: auto; }
.lamb button { font-weight: 400; }
.lamb-segments button { display: grid; grid-template-columns: 8rem 1fr 3rem; gap: .5rem; width: 100%;
  text-align: left; padding: .45rem .3rem; border-radius: 0; border-top: 1px solid var(--border-color-primary);
  background: none; cursor: pointer; }
.lamb-segments button:hover { background: var(--background-fill-secondary); }
.lamb-segments i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .4rem; }
.lamb-right { text-align: right; }
.lamb-words li, .lamb-alternatives li { display: flex; justify-content: space-between; gap: .5rem; padding: .15rem 0; }
.lamb-words li { position: relative; padding: .15rem .4rem; }
.lamb-words i { position: absolute; inset: 1px auto 1px 0; background: var(--color-accent); opacity: .25; }
.lamb-pair { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; }
.lamb-pair div { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: .5rem .7rem; }
.lamb-files a { display: inline-block; border: 1px solid var(--border-color-primary); border-radius: 6px;
  padding: .4rem .9rem; margin: .2rem .5rem 0 0; color: inherit; text-decoration: none; }
@media (max-width: 600px) {
  .lamb-segments button { grid-template-columns: 1fr 3rem; }
  .lamb-segments button > :nth-child(2) { grid-row: 2; grid-column: 1 / 3; }
  .lamb-pair { grid-template-columns: 1fr; }
}
"""


def told(error: audio.AudioError) -> str:
    """An error as HTML: what a file says of itself may be in it."""
    return escape(f"This recording cannot be captioned: {error.problem}; {error.remedy}.")


def shown(caption: Caption, x: np.ndarray, rate: int, effect: Guided | None, strength: float) -> str:
    """All about one recording, samples `x` (T,) at `rate` Hz, as HTML."""
    rows = "".join(
        f"<li><span>{escape(text)}</span><span>{score or 0:.2f}</span></li>" for text, score in caption.n_best()[1:]
    )
    others = rows and f'<h2>Alternatives</h2><ol class="lamb-alternatives">{rows}</ol>'
    return f"""<div class="lamb">
<p class="lamb-caption">{escape(caption.text)}</p>
<p class="lamb-note">Confidence {caption.confidence or 0:.0%}: the estimated probability that the caption is right.</p>
{others}
{_timeline(caption.segments, x, rate)}
{_effect(caption.text, effect, strength)}
<h2>Download</h2>
<p class="lamb-files">{_file(caption, "srt")}{_file(caption, "json")}</p>
</div>"""


def _timeline(segments: Sequence[Segment], x: np.ndarray, rate: int) -> str:
    colours: dict[str, str] = {SILENCE: "#888", UNREADABLE: "#444"}
    bars, rows, end = "", "", segments[-1].end
    for s in segments:
        colour = colours.setdefault(s.caption, COLOURS[(len(colours) - 2) % len(COLOURS)])
        text, time = escape(s.caption), span(s.start, s.end)[1:-1].replace(" - ", "–")
        at = f'data-start="{s.start:.3f}" data-end="{s.end:.3f}"'
        place = f"left:{100 * s.start / end:.3f}%;width:{100 * (s.end - s.start) / end:.3f}%;background:{colour}"
        bars += f'<button type="button" {at} style="{place}" title="{time} {text}">{text}</button>'
        sure = "" if s.confidence is None else f"{s.confidence:.0%}"
        rows += (
            f'<li><button type="button" {at}><span><i style="background:{colour}"></i>{time}</span>'
            f'<span>{text}</span><span class="lamb-right">{sure}</span></button></li>'
        )
    return f"""<h2>Timeline</h2>
<div class="lamb-strip"><img alt="log mel spectrogram" src="{_url("image/png", spectrogram_png(x, rate))}">
<span class="lamb-khz">{rate / 2000:g} kHz</span>
<div class="lamb-bars">{bars}</div><div class="lamb-head"></div></div>
<div class="lamb-axis"><span>0 s</span><span>{end / 2:.1f} s</span><span>{end:.1f} s</span></div>
<audio controls preload="auto" src="{_url("audio/flac", _flac(x, rate))}"></audio>
<p class="lamb-note">Click on a segment to play it.</p>
<ol class="lamb-segments">{rows}</ol>"""


def _flac(x: np.ndarray, rate: int) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, x, rate, format="FLAC")
    return file.getvalue()


def _effect(text: str, effect: Guided | None, strength: float) -> str:
    if effect is None:
        return ""
    top = max([value for _, value in effect.words] + [1e-9])
    words = "".join(
        f'<li><i style="width:{max(0.0, 100 * value / top):.1f}%"></i>'
        f"<span>{escape(word)}</span><span>{value:+.2f}</span></li>"
        for word, value in effect.words
    )
    return f"""<h2>Effect of the Token Guide</h2>
<div class="lamb-pair"><div><p class="lamb-note">without the guide</p>{escape(effect.without)}</div>
<div><p class="lamb-note">at strength {strength:g}</p>{escape(text)}</div></div>
<p class="lamb-note">The words whose logits the guide raises most, and by how much.</p>
<ol class="lamb-words">{words}</ol>"""


def _file(caption: Caption, kind: str) -> str:
    content = "".join(WRITERS[kind]([caption])).encode()
    return f'<a download="lamb.{kind}" href="{_url("application/octet-stream", content)}">{kind.upper()}</a>'


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# ---- the page --------------------------------------------------------------------------------------------------------

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
            if find_spec(module) is None:
                raise DemoError(f"the page needs {module}; install it with: pip install 'lamb-aac[demo]'")
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
        caption = captioner.timeline((x, rate), n_best=min(ALTERNATIVES, int(beams))).finish()
        page = shown(replace(caption, file=NAME), x, rate, guided(captioner, x), strength)
        return page + words_heard(captioner, x, rate, caption.text)

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

        def hear(file: str | None, model: str, beams: float, strength: float) -> str:
            try:
                return self.hear(file, model, beams, strength)
            except audio.AudioError as error:
                return f'<p class="lamb-error" role="alert">{told(error)}</p>'
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
                    sound = gr.Audio(
                        sources=["upload", "microphone"],
                        type="filepath",
                        label=f"A recording of up to {MAX_DURATION / 60:g} minutes",
                        buttons=[],
                        editable=False,
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
            inputs = [sound, model, beams, strength]
            triggers = [sound.change, model.change, beams.release, strength.release]
            gr.on(triggers, hear, inputs, heard, trigger_mode="always_last", **one_at_a_time)
        return page.queue(max_size=MAX_WAITING)


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
        import gradio

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
                theme=gradio.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
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
