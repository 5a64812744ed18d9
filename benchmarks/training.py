"""What the method costs in training, and how fast clips come: on this machine's CPU.

    python benchmarks/training.py [--sounds FOLDER]

1. A training step of the bundled model (batch 48 scenes of 5 s, encoder frozen) with and without aligner, guide and the
   guided cross entropy: median of the steps after the first two, in turn, so that both see the same machine.
2. Clips a second that the loader makes from Ogg files cut to 10 s, and from cached tokens, with one background process.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lamb.config import AlignerConfig, GuideConfig
from lamb.data import loader
from lamb.data.manifest import Clip
from lamb.extensions import load
from lamb.model.lamb import LambModel
from lamb.model.losses import loss_terms

ROOT = Path(__file__).parents[1]
CAPTION = "A dog barks while rain falls on a surface, then a siren wails."


def step_seconds(rounds: int = 12) -> tuple[float, float]:
    """Median seconds of a step with the whole method, and with the plain cross entropy alone."""
    whole = load("tiny").train()
    config = dataclasses.replace(whole.config, aligner=AlignerConfig(enabled=False), guide=GuideConfig(enabled=False))
    plain = LambModel(config, whole.encoder, whole.llm).train()
    torch.manual_seed(0)
    waveform, mask = torch.randn(48, 80_000), torch.ones(48, 80_000, dtype=torch.bool)
    ids, ids_mask = whole.llm.tokenize([CAPTION] * 48)
    times: dict[str, list[float]] = {"whole": [], "plain": []}
    for _ in range(rounds):
        for name, model in (("whole", whole), ("plain", plain)):
            began = time.perf_counter()
            loss_terms(model, model(waveform, mask, ids, ids_mask))["loss"].backward()
            times[name].append(time.perf_counter() - began)
            model.zero_grad(set_to_none=True)
    return statistics.median(times["whole"][2:]), statistics.median(times["plain"][2:])


def clips_a_second(sounds: Path, batches: int = 12, size: int = 32) -> tuple[float, float]:
    """Captioned clips of 10 s a second, out of Ogg files and out of cached tokens, through a background process."""
    import soundfile

    recordings = sorted(sounds.glob("*.ogg"))[:64]
    with tempfile.TemporaryDirectory() as temporary:
        clips = []
        for k, file in enumerate(recordings):
            samples, rate = soundfile.read(file, dtype="float32")
            path = Path(temporary) / f"{k}.ogg"
            soundfile.write(path, np.resize(samples, 30 * rate), rate)  # of 30 s, so that each is cropped
            clips.append(Clip(str(k), str(path), duration=30.0, captions=(CAPTION,)))
        model = load("tiny")
        cache = loader.TokenCache.of(Path(temporary) / "cache", model.encoder)
        with torch.inference_mode():
            _, tokens, _ = cache.fill(clips, 10.0, 16000, model.encode)
        rates = []
        for files, count in ((None, batches), (tokens, 20 * batches)):
            reader = loader.ClipReader(clips, 16000, 10.0, seed=0, tokens=files)
            stream = loader.background(partial(loader.clip_batch, reader, size), 0, count + 2, workers=1)
            for _ in range(2):  # the process starts
                next(stream)
            began = time.perf_counter()
            for _ in stream:
                pass
            rates.append(count * size / (time.perf_counter() - began))
        return rates[0], rates[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sounds", type=Path, default=ROOT.parent / "shared" / "sounds" / "audio")
    sounds = parser.parse_args().sounds
    whole, plain = step_seconds()
    print(f"step, plain cross entropy alone         {plain:.3f} s")
    print(f"step, with aligner, guide, guided loss  {whole:.3f} s, {100 * (whole / plain - 1):.1f} % more")
    if sounds.exists():
        ogg, cached = clips_a_second(sounds)
        print(f"clips of 10 s from Ogg files            {ogg:.0f} a second")
        print(f"clips of 10 s from cached tokens        {cached:.0f} a second")


if __name__ == "__main__":
    main()
