"""Tiny random models: the real architecture, small enough for a test, without any network."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from hypothesis import HealthCheck, settings

# the speed of a busy machine is no property of the code
settings.register_profile("lamb", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lamb")

SHARED = Path(__file__).parents[2] / "shared"
needs_sounds = pytest.mark.skipif(not (SHARED / "sounds").exists(), reason="../shared/sounds is not here")
needs_captions = pytest.mark.skipif(not (SHARED / "captions").exists(), reason="../shared/captions is not here")

# A small encoder with a token every 0.16 s
ENCODER = {
    "width": 0.1,
    "sample_rate": 16000,
    "window": 512,
    "mels": 32,
    "f_max": 8000,
    "strides": (2, 2, 2, 1, 1),
    "dim": 32,
    "relative": True,
}
SENTENCES = [
    "A dog barks.",
    "Rain falls, then a siren wails.",
    "A man speaks while an engine idles.",
    "Church bells ring.",
    "A cat meows and a baby cries.",
]


@pytest.fixture(scope="session")
def llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA of 2 layers and width 32 with a BPE tokenizer of 300 entries, saved by save_pretrained."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lamb.training.language_model_stage import train_tokenizer

    folder = tmp_path_factory.mktemp("llm")
    tokenizer = train_tokenizer(SENTENCES * 4, 300)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random EfficientAT of width 32, as stage `distill` of `lamb train` leaves it, but for the label heads."""
    import torch

    from lamb.model.encoders.efficientat import EfficientAT

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    encoder = EfficientAT(**ENCODER)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics of one batch: without any, the deeper layers give next to nothing
    encoder(torch.randn(8, 16000), torch.ones(8, 16000, dtype=torch.bool))
    encoder.save(folder)
    return folder


@pytest.fixture(scope="session")
def make_config(llm_folder: Path, encoder_folder: Path) -> Callable[..., Any]:
    """make_config(section={key: value}, ...) -> LambConfig of a tiny model, with these settings in place of its own."""
    from lamb.config import LambConfig, from_dict

    def make(**sections: dict[str, Any]) -> LambConfig:
        data: dict[str, dict[str, Any]] = {
            "encoder": {"name": "efficientat", "source": str(encoder_folder), "train": "frozen"},
            "adapter": {"fusion_queries": 4, "semantic_queries": 3, "temporal_queries": 3, "head_dim": 16},
            "llm": {"source": str(llm_folder), "train": "full"},
            "decode": {"max_new_tokens": 8},
        }
        for name, values in sections.items():
            data.setdefault(name, {}).update(values)
        return from_dict(LambConfig, data)

    return make


@pytest.fixture
def make_model(make_config: Callable[..., Any]) -> Callable[..., Any]:
    """make_model(section={...}, ...) -> a new tiny LambModel in eval mode, the same one for the same settings."""
    import torch

    from lamb.extensions import build

    def make(**sections: dict[str, Any]) -> Any:
        torch.manual_seed(1)
        return build(make_config(**sections)).eval()

    return make


@pytest.fixture
def model_folder(make_model: Callable[..., Any], tmp_path: Path) -> Path:
    """A tiny standalone model on disk."""
    from lamb.model.checkpoint import save

    card = {"trained_on": "nothing", "licence": "none"}
    return save(make_model(), tmp_path / "model", card=card)


@pytest.fixture(scope="session")
def sounds_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled recordings as `sources.sounds` reads them: 4 labels x 4 tones of half a second, fold 4 held back."""
    import numpy as np
    import soundfile

    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    rows = ["file,label,fold,licence,title,author,source,clotho_split,captions"]
    for k, label in enumerate(("dog", "rain", "siren", "rooster")):
        for fold in range(1, 5):
            x = np.sin((0.1 + 0.3 * k) * np.arange(8000)) + 0.1 * rng.standard_normal(8000)
            soundfile.write(folder / f"{label}{fold}.wav", 0.5 * x, 16000)
            rows.append(f"{label}{fold}.wav,{label},{fold},CC0,,,{label}{fold},,")
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sounds`: 4 labels x 4 recordings of half a second, fold 4 for development; `captions`: two small tables."""
    import numpy as np
    import soundfile

    folder = tmp_path_factory.mktemp("data")
    (folder / "sounds").mkdir()
    (folder / "captions").mkdir()
    labels, rng = ("dog", "rain", "siren", "rooster"), np.random.default_rng(0)
    rows = ["file,label,fold,licence,title,author,source,clotho_split,captions"]
    for k, label in enumerate(labels):
        for fold in range(1, 5):
            x = np.sin((0.1 + 0.3 * k) * np.arange(8000)) + 0.1 * rng.standard_normal(8000)
            soundfile.write(folder / "sounds" / f"{label}{fold}.wav", 0.5 * x, 16000)
            held = '"[""Never learn this.""]"' if fold == 4 else ""
            rows.append(f"{label}{fold}.wav,{label},{fold},CC0,,,{label}{fold},,{held}")
    (folder / "sounds" / "manifest.csv").write_text("\n".join(rows))
    texts = [f"A {a} and a {b} sound" for a in labels for b in labels]
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
    import yaml

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


@pytest.fixture
def full_caption():
    """A caption that has everything that one can have."""
    from lamb.inference.captions import Caption, Segment, Sound

    segments = (Segment(0.0, 5.0, "A dog barks.", 0.9), Segment(5.0, 700.0, "Rain falls.", 0.8))
    sounds = (Sound("A dog barks", ("dog",), 0.9),)
    texts, scores = ("A dog barks.", "Rain falls."), (-0.1, -0.2)
    return Caption("a.wav", 700.0, texts[0], -0.1, 0.9, texts, scores, segments, sounds, damage=("2 to 3 s",))
