"""Captioned scenes written to disk, as FLAC files and a manifest, so that many runs train on the same scenes. [O]

Training scenes are made of training recordings, test scenes of development recordings.
"""

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..audio.files import replacing
from ..config import ConfigError, ScenesConfig, to_dict
from . import loader, manifest, sources
from .manifest import Clip
from .scenes import SceneMaker, compose


def write_scenes(config: ScenesConfig, folder: str | Path, sample_rate: int) -> Path:
    """Render the scenes of `config` into `folder` and return their manifest.jsonl (splits "train" and "test").

    Rendering continues where it was stopped. Raises ConfigError if `folder` holds other scenes.
    """
    folder = Path(folder)
    table = Path(config.sounds) / "manifest.csv"
    training, development = sources.split_sounds(config.sounds)
    facts = {**to_dict(config), "sample_rate": sample_rate, "list": hashlib.sha256(table.read_bytes()).hexdigest()}
    about, done = folder / "scenes.json", folder / "manifest.jsonl"
    if about.exists() and json.loads(about.read_text()) != facts:
        raise ConfigError(
            f"{folder}: holds scenes of other recordings or settings; remove it, or choose another folder"
        )
    if done.exists():
        return done
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    about.write_text(json.dumps(facts, indent=1))
    clips = []
    for split, found, count, seed in (
        ("train", training, config.train, config.seed),
        ("test", development, config.test, config.seed + 1),
    ):
        print(f"lamb: rendering {count:,} {split} scenes into {folder}", file=sys.stderr, flush=True)
        bank = loader.recordings(found, sample_rate)
        maker = SceneMaker(bank, sample_rate, config.seconds, seed, config.shares)
        clips += _render(maker, folder, split, count, config.wordings)
    manifest.write(clips, done)
    return done


def _render(maker: SceneMaker, folder: Path, split: str, count: int, wordings: int) -> list[Clip]:
    """Render `count` scenes as folder/audio/SPLIT-NUMBER.flac, except for those that SPLIT.jsonl lists already."""
    import soundfile

    notes = folder / f"{split}.jsonl"
    whole = (
        [line for line in notes.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        if notes.exists()
        else []
    )
    clips = [manifest.parse(json.loads(line), Path()) for line in whole]
    with notes.open("wb") as file:
        file.writelines(whole)
        for index in range(len(clips), count):
            rng = np.random.default_rng((maker.seed, 2, index))
            scene = maker.scene(index, rng.uniform(min(3.0, maker.seconds), maker.seconds))
            texts = [scene.caption, *(compose(scene.kind, scene.events, rng) for _ in range(4 * wordings))]
            clip = Clip(
                id=f"{split}-{index:06d}",
                path=f"audio/{split}-{index:06d}.flac",
                duration=len(scene.waveform) / maker.rate,
                captions=tuple(dict.fromkeys(texts))[:wordings],
                labels=tuple(event.label for event in scene.events),
                split=split,
            )
            path = folder / clip.path
            with replacing(path) as part:
                soundfile.write(part, scene.waveform, maker.rate, "PCM_16", format="FLAC")
            file.write(json.dumps(asdict(clip)).encode() + b"\n")
            file.flush()
            clips.append(clip)
    return clips
