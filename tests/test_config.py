"""Configurations: there and back, what is refused and in which words, recipes and overrides."""

import json
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamb.config import (
    AblationConfig,
    AdapterConfig,
    ChannelDropoutConfig,
    ClassPrototypesConfig,
    ConfigError,
    DecodeConfig,
    ExtensionsConfig,
    GuideConfig,
    LambConfig,
    OneMentionConfig,
    PositionalEncodingConfig,
    RerankingConfig,
    ResidualGuideConfig,
    TrainConfig,
    from_dict,
    read,
    read_recipe,
    to_dict,
)

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))

numbers = st.floats(allow_nan=False, allow_infinity=False)
configs = st.builds(
    LambConfig,
    adapter=st.builds(
        AdapterConfig,
        kind=st.sampled_from(["two_stream", "linear", "qformer"]),
        semantic=st.booleans(),
        kernels=st.lists(st.integers(1, 99), max_size=4).map(tuple),
    ),
    guide=st.builds(GuideConfig, beta=st.none() | numbers),
    decode=st.builds(DecodeConfig, beams=st.integers(1, 9), window=numbers, confidence=st.tuples(numbers, numbers)),
)


@given(configs)
def test_a_config_survives_json(config):
    assert from_dict(LambConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_defaults_are_what_nothing_means():
    assert from_dict(TrainConfig, {}) == TrainConfig()
    assert to_dict(TrainConfig())["model"]["adapter"]["kernels"] == [3, 5, 7]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"optm": {}}, r"^optm: unknown key; did you mean 'optim'\?"),
        ({"model": {"decode": {"beam": 3}}}, r"^model\.decode\.beam: unknown key; did you mean 'beams'\?"),
        ({"model": {"llm": {"zzz": 3}}}, r"^model\.llm\.zzz: unknown key; known keys: source, dtype"),
        ({1: 2}, r"^1: unknown key"),
        ([1], r"^TrainConfig: expected keys and values, found \[1\]"),
        ({"optim": 3}, r"^optim: expected keys and values, found 3"),
        ({"optim": None}, r"^optim: expected keys and values, found None"),
        ({"optim": {"steps": True}}, r"^optim\.steps: expected int, found True"),
        ({"optim": {"steps": 10.0}}, r"^optim\.steps: expected int, found 10\.0"),
        ({"optim": {"lr": "fast"}}, r"^optim\.lr: expected float, found 'fast'"),
        ({"optim": {"lr": False}}, r"^optim\.lr: expected float, found False"),
        ({"optim": {"lr": [1.0]}}, r"^optim\.lr: expected float, found \[1\.0\]"),
        ({"out": 3}, r"^out: expected str, found 3"),
        ({"threads": "two"}, r"^threads: expected int \| None, found 'two'"),
        ({"threads": True}, r"^threads: expected int \| None, found True"),
        ({"stage": "lam"}, r"^stage: 'lam' is not one of 'distill', 'language_model', 'lamb'"),
        ({"model": {"adapter": {"semantic": 1}}}, r"^model\.adapter\.semantic: expected bool, found 1"),
        ({"model": {"adapter": {"kernels": 3}}}, r"^model\.adapter\.kernels: expected tuple"),
        ({"model": {"adapter": {"kernels": [3, "5"]}}}, r"^model\.adapter\.kernels\[1\]: expected int, found '5'"),
        ({"model": {"decode": {"confidence": [0.0]}}}, r"^model\.decode\.confidence: expected tuple"),
        ({"model": {"encoder": {"options": [1]}}}, r"^model\.encoder\.options: expected .*Mapping"),
        ({"card": {"year": 2024}}, r"^card\.year: expected str, found 2024"),
    ],
)
def test_what_is_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(TrainConfig, data)


def test_what_is_taken():
    data = {
        "optim": {"lr": 1, "llm_lr": None},
        "model": {
            "adapter": {"kernels": [3]},
            "aligner": {"sigma": "median"},
            "decode": {"confidence": [0, 2]},
            "encoder": {"options": {"strides": [1, 2]}},
            "llm": {"lora_targets": ["q", "v"]},
        },
    }
    config = from_dict(TrainConfig, data)
    assert (config.optim.lr, type(config.optim.lr)) == (1.0, float)
    assert config.model.adapter.kernels == (3,)
    assert config.model.aligner.sigma == "median"
    assert config.model.decode.confidence == (0.0, 2.0)
    assert config.model.encoder.options == {"strides": [1, 2]}
    assert config.model.llm.lora_targets == ("q", "v")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_recipe_loads(path):
    kind = AblationConfig if path.stem in ("ablation", "ablation-smollm") else TrainConfig
    assert read(kind, path).out.startswith("runs/")


def test_there_are_recipes():
    assert len(RECIPES) >= 3


LORA = {"rank": 8, "alpha": 32.0, "dropout": 0.1}  # of encoder and language model alike
MODEL: dict[str, dict[str, Any]] = {  # what the paper, or its authors' earlier captioner, says in which section
    "1 audio encoder": {
        "encoder.name": "ced",
        "encoder.source": "mispeech/ced-base",
        "encoder.train": "lora",
        **{f"encoder.lora.{key}": value for key, value in LORA.items()},
    },
    "2 two-stream adapter": {
        "adapter.kind": "two_stream",
        "adapter.semantic": True,
        "adapter.temporal": True,
        "adapter.semantic_queries": 8,
        "adapter.temporal_queries": 8,
        "adapter.fusion_queries": 32,
        "adapter.kernels": (3, 5, 7),  # our choice, as are the numbers of sections 3 and 5
        "adapter.head_dim": 64,  # our choice
    },
    "3 cross-modal aligner": {
        "aligner.enabled": True,
        "aligner.global_weight": 1.0,
        "aligner.token_weight": 1.0,
        "aligner.infonce_weight": 1.0,
        "aligner.sigma": 1.0,
        "aligner.normalise": True,
        "aligner.temperature": 0.07,
        "aligner.max_scale": 100.0,
    },
    "4 token guide": {"guide.enabled": True, "guide.distance": "l2", "guide.reduce": "mean"},
    "5 objective": {"loss.alignment": 1.0, "loss.guided": 1.0, "loss.plain": 1.0},
    "6 LLM, prompt, decoding": {
        "llm.source": "meta-llama/Llama-2-7b-hf",
        "llm.train": "lora",
        **{f"llm.lora.{key}": value for key, value in LORA.items()},
        "llm.lora_targets": None,  # q and v
        "llm.prompt": "USER: <audio> {instruction}\nASSISTANT:",
        "llm.instruction": "Please describe the audio.",
        "decode.beams": 4,
        "decode.max_new_tokens": 50,
    },
    "nothing of ours": {
        "decode.no_repeat_ngram": 0,
        "decode.weigh.enabled": False,
        "extensions": ExtensionsConfig(
            ChannelDropoutConfig(0.0),
            ClassPrototypesConfig(False),
            PositionalEncodingConfig(False),
            ResidualGuideConfig(False),
            OneMentionConfig(False),
            RerankingConfig(0.0),
        ),
    },
}
TRAINING: dict[str, Any] = {  # section 7: in both stages
    "stage": "lamb",
    "seed": 42,
    "optim.weight_decay": 1e-6,
    "optim.grad_clip": 1.0,
    "optim.accumulate": 1,
    "optim.llm_lr": None,
    "optim.epochs": 30,
    "optim.warmup_epochs": 2,
    "optim.ema_decay": 0.0,  # the paper has none
    "data.spec_augment": True,
    "data.seconds": 30.0,  # Clotho's longest clips are whole
    "data.gain": 0.0,
}
STAGES: dict[str, dict[str, Any]] = {
    "pretrain": {"init": None, "optim.lr": 5e-5, "optim.batch": 32},
    "finetune_audiocaps": {"init": "runs/paper/pretrain", "optim.lr": 3e-6, "optim.batch": 8},
    "finetune_clotho": {"init": "runs/paper/pretrain", "optim.lr": 3e-6, "optim.batch": 8},
}


def values(config: Any, keys: Iterable[str]) -> dict[str, Any]:
    return {key: attrgetter(key)(config) for key in keys}


def test_the_recipes_of_the_paper_have_its_numbers():
    """In the recipes or in the defaults; the fine-tuning takes the model from the pretraining."""
    recipes = {path.stem: read_recipe(path) for path in (FOLDER / "paper").iterdir()}
    assert recipes.keys() == STAGES.keys()
    model = recipes["pretrain"].model
    assert {section: values(model, keys) for section, keys in MODEL.items()} == MODEL
    for name, recipe in recipes.items():
        expected = {**TRAINING, **STAGES[name]}
        assert values(recipe, expected) == expected, name
    assert recipes["pretrain"].out == STAGES["finetune_clotho"]["init"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("stage: lamb\nout: ergebnis-für-alle\noptim: {steps: 5}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("optim.steps=100", "optim", "steps", 100),
        ("optim.lr=1e-3", "optim", "lr", 0.001),  # a text in YAML 1.1
        ("optim.lr=3E4", "optim", "lr", 30000.0),
        ("optim.llm_lr=null", "optim", "llm_lr", None),
        ("data.sounds=a=b", "data", "sounds", "a=b"),
        ("data.sounds=1e-3x", "data", "sounds", "1e-3x"),
        ("model.adapter.kernels=[1, 3]", "model", "adapter", AdapterConfig(kernels=(1, 3))),
    ],
)
def test_overrides(recipe, override, section, key, value):
    config: Any = read_recipe(recipe, [override])
    assert getattr(getattr(config, section), key) == value
    assert config.out == "ergebnis-für-alle"
    assert config.optim.steps == (100 if "steps" in override else 5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.steps", "'optim.steps': an override is written key=value"),
        ("optim.step=3", r"recipe\.yaml: optim\.step: unknown key; did you mean 'steps'"),
        ("out.x=3", "out.x: 'out' holds a value, not keys"),
        ("seed=[1", r"'seed=\[1': cannot be read as YAML"),
        ("seed=", r"recipe\.yaml: seed: expected int, found None"),
        ("seed=!!python/object/apply:os.getpid []", "cannot be read as YAML"),
    ],
)
def test_bad_overrides(recipe, override, message):
    with pytest.raises(ConfigError, match=message):
        read_recipe(recipe, [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "a recipe is a mapping of keys to values, found list"),
        (b"just words", "found str"),
        (b"a: [1", "cannot be read as YAML"),
        (b"\xff\xfe", "cannot be read"),
        (b"stage: [lamb]", r"stage: \['lamb'\] is not one of"),
    ],
)
def test_bad_recipes(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_recipe(path)
    assert str(path) in str(error.value)


def test_no_recipe(tmp_path):
    with pytest.raises(ConfigError, match="no such recipe"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path)


def test_an_empty_recipe_is_the_defaults(tmp_path):
    (tmp_path / "empty.yaml").touch()
    assert read_recipe(tmp_path / "empty.yaml") == TrainConfig()
