"""Recordings and recipes that the tests of training share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

LABELS = ("dog", "rain", "siren", "rooster")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sounds`: 4 labels x 4 recordings of half a second, fold 4 for development; `captions`: two small tables."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "sounds").mkdir()
    (folder / "captions").mkdir()
    rng = np.random.default_rng(0)
    rows = ["file,label,fold,licence,title,author,source,clotho_split,captions"]
    for k, label in enumerate(LABELS):
        for fold in range(1, 5):
            x = np.sin((0.1 + 0.3 * k) * np.arange(8000)) + 0.1 * rng.standard_normal(8000)
            soundfile.write(folder / "sounds" / f"{label}{fold}.wav", 0.5 * x, 16000)
            held = '"[""Never learn this.""]"' if fold == 4 else ""
            rows.append(f"{label}{fold}.wav,{label},{fold},CC0,,,{label}{fold},,{held}")
    (folder / "sounds" / "manifest.csv").write_text("\n".join(rows))
    texts = [f"A {a} and a {b} sound" for a in LABELS for b in LABELS]
    table = [f"{k},id{k},0,{text}" for k, text in enumerate(texts)]
    (folder / "captions" / "audiocaps_train.csv").write_text(
        "\n".join(["audiocap_id,youtube_id,start_time,caption", *table])
    )
    (folder / "captions" / "clotho_train.csv").write_text(
        "file_path,caption\ntrain/a.npy,A dog barks.\ntrain/b.npy,Never learn this.\n"
    )
    return folder


@pytest.fixture
def recipe(tmp_path: Path, data: Path) -> Callable[..., Path]:
    """recipe(stage, section={...}, ...) -> a recipe of a few small steps, its result in `tmp_path`/out."""

    def make(stage: str, name: str = "recipe", **sections: Any) -> Path:
        content: dict[str, Any] = {
            "stage": stage,
            "out": str(tmp_path / "out"),
            "save_every": 2,
            "data": {"sounds": str(data / "sounds"), "texts": str(data / "captions"), "seconds": 1, "workers": 0},
            "optim": {"lr": 1e-3, "batch": 4, "steps": 5, "warmup": 2, "ema_decay": 0.9},
        }
        for key, value in sections.items():
            content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return make
