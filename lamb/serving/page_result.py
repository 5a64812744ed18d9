"""On the page: all about one recording as one piece of HTML, with everything in it, so that nothing is left on disk.

The caption, alternatives, the spectrogram with the segments below it, the sound itself and the files to download. A few
lines in the browser (`PLAY`) play a segment. Text on a colour has a contrast of at least 4.5 (WCAG AA).
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np

from ..audio.errors import AudioError
from ..inference.captions import SILENCE, UNREADABLE, WRITERS, Caption, Segment, span
from ..inference.picture import spectrogram_png

COLOURS = ("#0063a0", "#a04000", "#006b4b", "#98366f", "#6b5500", "#17687f", "#6a3d9a", "#932020")  # under white text
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
.lamb-error { border-left: 4px solid #b02a00; padding: .5rem .8rem; }
.lamb h3 { font-size: 1rem; font-weight: 600; margin: 1.2rem 0 .4rem; }
.lamb ol { margin: 0; padding: 0; list-style: none; max-height: 20rem; overflow-y: auto; }
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
.lamb button { font-weight: 400; }
.lamb-segments button { display: grid; grid-template-columns: 10rem 1fr 3rem; gap: .5rem; width: 100%;
  text-align: left; padding: .45rem .3rem; border-radius: 0; border-top: 1px solid var(--border-color-primary);
  background: none; cursor: pointer; }
.lamb-segments button:hover { background: var(--background-fill-secondary); }
.lamb-segments i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .4rem; }
.lamb-right { text-align: right; }
.lamb-words li, .lamb-alternatives li { display: flex; justify-content: space-between; gap: .5rem; padding: .15rem 0; }
.lamb-words li { position: relative; padding: .15rem .4rem; }
.lamb-words i { position: absolute; inset: 1px auto 1px 0; background: var(--color-accent); opacity: .2; }
.lamb-pair { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; }
.lamb-pair div { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: .5rem .7rem; }
.lamb-files a, .lamb-heard button { display: inline-block; border: 1px solid var(--border-color-primary);
  border-radius: 6px; padding: .4rem .9rem; margin: .2rem .3rem 0 0; color: inherit; text-decoration: none;
  background: none; cursor: pointer; }
.lamb ol.lamb-found { max-height: none; }
.lamb-found li { padding: .8rem 0 .4rem; border-top: 1px solid var(--border-color-primary); }
.lamb-found li:first-child { border-top: none; }
.lamb-found p { display: block; }
.lamb-found .lamb-caption { font-size: 1.1rem; }
@media (max-width: 600px) {
  .lamb-segments button { grid-template-columns: 1fr 3rem; }
  .lamb-segments button > :nth-child(2) { grid-row: 2; grid-column: 1 / 3; }
  .lamb-pair { grid-template-columns: 1fr; }
}
"""


def told(error: AudioError) -> str:
    """An error as HTML: what a file says of itself may be in it."""
    text = escape(f"This recording cannot be captioned: {error.problem}; {error.remedy}.")
    return f'<p class="lamb-error" role="alert">{text}</p>'


def shown(caption: Caption, x: np.ndarray, rate: int, more: str = "") -> str:
    """All about one recording, samples `x` (T,) at `rate` Hz, as HTML; `more` stands before the files to download."""
    rows = "".join(
        f"<li><span>{escape(text)}</span><span>{score or 0:.2f}</span></li>" for text, score in caption.n_best()[1:]
    )
    others = rows and f'<h3>Alternatives</h3><ol class="lamb-alternatives">{rows}</ol>'
    return f"""<div class="lamb">
<h2 class="lamb-caption">{escape(caption.text)}</h2>
<p class="lamb-note">Confidence {caption.confidence or 0:.0%}: the estimated probability that the caption is right.</p>
{_timeline(caption.segments, x, rate)}
{others}
{more}
<h3>Download</h3>
<p class="lamb-files">{_file(caption, "srt")}{_file(caption, "json")}</p>
</div>"""


def _timeline(segments: Sequence[Segment], x: np.ndarray, rate: int) -> str:
    colours: dict[str, str] = {SILENCE: "#666", UNREADABLE: "#444"}
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
    return f"""<h3>Timeline</h3>
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


def _file(caption: Caption, kind: str) -> str:
    content = "".join(WRITERS[kind]([caption])).encode()
    name = f"{escape(caption.file)}.{kind}"
    return f'<a download="{name}" href="{_url("application/octet-stream", content)}">{kind.upper()}</a>'


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
