"""Rewrite the numbers, captions and pictures of the documents: each is in one place and comes from one command.

    python scripts/update_documents.py                      # README.md, docs/
    python scripts/update_documents.py --sounds FOLDER      # MODEL_CARD.md too, from labelled recordings (minutes)

A block of a document lies between `<!-- NAME: python scripts/update_documents.py -->` and `<!-- end -->`.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import draw_architecture

ROOT = Path(__file__).parents[1]
MODELS = ("tiny", "small")  # the latter needs `make smollm`
SEEDS = ("1", "2")  # of the pairs; no setting was chosen on them
QUALITY = {  # a key of `lamb evaluate --json`: how the model card describes it
    "label_named": "single recordings: the label is named",
    "clean": "single recordings: the label is named, and no other kind of sound",
    "extra": "wrong sounds in the caption of a single recording, on average",
    "unheard_fair": "sounds of unknown kinds: nothing wrong is named, or with a confidence of at most 0.5",
    "sequence_named": "pairs in sequence: both labels are named",
    "sequence_order": "pairs in sequence: the order is right, if both are named",
    "overlap_named": "pairs at once, the second 0 to 6 dB softer: both labels are named",
    "nothing_named": "silence, white and pink noise, pure tones are captioned as such",
    "calibration_error": "expected calibration error of the confidence",
    "auroc": "area under the ROC curve of the confidence",
    "distinct_captions": "distinct captions",
    "cider_d": "CIDEr-D of the recordings with human captions",
}


def lamb(*arguments: str) -> str:
    """What `lamb ARGUMENTS` prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "110"}
    command = [sys.executable, "-m", "lamb", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def samples() -> str:
    """The table of the bundled samples."""
    table = lamb("caption", "samples", "--format", "table")
    return "```text\n" + "\n".join(line.rstrip() for line in table.splitlines() if line.strip()) + "\n```\n"


def line() -> str:
    """A line of JSON Lines, broken where two fields begin."""
    text = lamb("caption", "samples/siren.flac", "--n-best", "2", "--format", "jsonl")
    for field in ("captions", "sounds"):
        text = text.replace(f', "{field}"', f',\n "{field}"')
    return f"```json\n{text}```\n"


def events() -> str:
    """The events of the service for a recording: its segments are those of `lamb caption`."""
    found = json.loads(lamb("caption", "samples/horn_then_rain.flac", "--timeline", "--window=3", "--format=jsonl"))
    done = {"file": Path(found["file"]).name, "duration": found["duration"], "segments": len(found["segments"])}
    all_events = [*(("segment", segment) for segment in found["segments"]), ("done", done)]
    return "```text\n" + "\n".join(f"event: {kind}\ndata: {json.dumps(data)}\n" for kind, data in all_events) + "```\n"


def quality(sounds: str) -> str:
    """The table of the model card: each measure of each bundled model, with its 95 % interval, where it has one."""
    probes = ("--probe", *(word for seed in SEEDS for word in ("--probe-seed", seed)))
    options = (sounds, "--split", "development", *probes, "--json", "--quiet")
    found = [json.loads(lamb("evaluate", model, *options)) for model in MODELS]
    lines = [f"| measure | {' | '.join(f'`{model}`' for model in MODELS)} |", "|---|" + "---|" * len(MODELS)]
    for key, text in QUALITY.items():
        if all(key in one for one in found):
            lines.append(f"| {text} | {' | '.join(_shown(one[key], one['intervals'].get(key)) for one in found)} |")
    return "\n".join(lines) + "\n"


def _shown(value: float, interval: list[float] | None) -> str:
    shown = f"{value:.3f}" if isinstance(value, float) else f"{value}"
    return f"{shown} ({interval[0]:.3f} to {interval[1]:.3f})" if interval else shown


def rewrite(document: str, name: str, content: str) -> None:
    """Put `content` into the block NAME of a document."""
    path = ROOT / document
    block = re.compile(rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end -->)", re.DOTALL)
    text, count = block.subn(lambda match: match[1] + content + match[2], path.read_text(encoding="utf-8"))
    if count != 1:
        sys.exit(f"{document}: expected one block called {name}, found {count}")
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Rewrite what the options ask for."""
    parser = argparse.ArgumentParser(description="Rewrite the numbers, captions and pictures of the documents.")
    parser.add_argument("--sounds", help="a folder of labelled recordings, for MODEL_CARD.md")
    options = parser.parse_args()
    rewrite("README.md", "samples", samples())
    rewrite("docs/output.md", "line", line())
    rewrite("docs/serve.md", "events", events())
    lamb("caption", "samples/horn_then_rain.flac", "--timeline", "--quiet", "--plot", "docs/timeline.png")
    (ROOT / "docs" / "architecture.svg").write_text(draw_architecture.picture(), encoding="utf-8")
    if options.sounds:
        rewrite("MODEL_CARD.md", "quality", quality(options.sounds))


if __name__ == "__main__":
    main()
