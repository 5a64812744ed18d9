"""Exported models say what PyTorch says; what cannot be exported or run is told in one line."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lamb import extensions
from lamb.config import DecodeConfig
from lamb.export.export import ExportError, check, export, write_graphs
from lamb.export.llama import UnsupportedModelError
from lamb.inference.captioner import Captioner
from lamb.inference.engine import Engine, pad
from lamb.inference.loading import EngineError
from lamb.inference.onnx_runtime import OnnxRuntime
from lamb.inference.torch_runtime import TorchRuntime
from lamb.model import checkpoint
from lamb.model.safetensors_index import entries, fingerprint

ROOT = Path(__file__).parents[2]
BUNDLED = checkpoint.BUNDLED / "tiny"
RATE = 16000
CARD = {"trained_on": "nothing", "licence": "none"}
LABELS = ["dog", "rain", "siren"]
ENCODERS = {
    "efficientat": {
        **{"width": 0.1, "sample_rate": RATE, "window": [400, 640], "hop": 320, "mels": 32, "f_max": 8000},
        **{"dim": 32, "relative": True, "labels": LABELS, "strides": [2, 2, 2, 1, 1]},
    },
    "ced": {"dim": 64, "heads": 1, "depth": 2, "outputs": 3, "target_length": 160},
}


def randomised(model):
    """BatchNorms and a guide as after some training."""
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.named_buffers():
        if name.endswith("running_mean"):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    if model.guide is not None and hasattr(model.guide, "gamma"):
        model.guide.gamma.data.fill_(0.3)
    return model


def exported(model, folder: Path, **options) -> OnnxRuntime:
    checkpoint.save(model, folder, card=CARD)
    write_graphs(model, folder, **options)
    return OnnxRuntime(folder, threads=1)


@pytest.fixture(scope="module")
def sounds() -> list[np.ndarray]:
    """Of 0.1 to 3.1 s, the last one of two whole chunks of the CED above and a bit."""
    rng = np.random.default_rng(0)
    return [0.1 * rng.standard_normal(round(s * RATE)).astype(np.float32) for s in (0.1, 0.73, 1.6, 3.32)]


def same(one: np.ndarray, other: np.ndarray) -> None:
    assert one.shape == other.shape
    np.testing.assert_allclose(other, one, atol=1e-3 * max(float(one.std()), 1e-3), rtol=1e-3)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_network_gives_what_pytorch_gives(make_model, sounds, tmp_path, kind):
    added = {"residual_guide": {"enabled": True, "strength": 2.0}, "positional_encoding": {"enabled": True}}
    if kind != "ced":
        added["class_prototypes"] = {"enabled": True}
    encoder = {"name": kind, "source": None, "options": ENCODERS[kind]}
    model = randomised(make_model(encoder=encoder, extensions=added, guide={"beta": 0.3}))
    ours, theirs = TorchRuntime(model), exported(model, tmp_path / "model")
    assert (ours.dim, ours.sample_rate, ours.frame_rate) == (theirs.dim, theirs.sample_rate, theirs.frame_rate)
    assert (ours.eos, ours.vocabulary, list(ours.labels)) == (theirs.eos, theirs.vocabulary, list(theirs.labels))
    assert ours.space == theirs.space
    x, mask = pad(sounds)
    h_a, there = ours.encode(x, mask)
    again, here = theirs.encode(x, mask)
    assert np.array_equal(there, here)
    same(h_a[there], again[here])
    if ours.labels:
        for one, other in zip(ours.tag(h_a, there), theirs.tag(h_a, there), strict=True):
            np.testing.assert_allclose(other[:, :], one[:, :], atol=1e-5)
    z_a, z_mask = ours.audio_tokens(h_a, there)
    same(z_a, theirs.audio_tokens(h_a, there)[0])
    same(ours.bias(z_a, z_mask), theirs.bias(z_a, z_mask))


SHAPES = {
    "tied": {},
    "grouped": {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "biased": {"attention_bias": True, "mlp_bias": True, "head_dim": 24},
}


@pytest.fixture(params=SHAPES)
def shaped(request, llm_folder, make_model, tmp_path):
    """A model with a padded prompt, around LLaMAs of several shapes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(llm_folder)
    for key, value in SHAPES[request.param].items():
        setattr(config, key, value)
    folder = tmp_path / "llm"
    shutil.copytree(llm_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(4)
    llama = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.mul_(3.0)  # opinions that differ
    llama.save_pretrained(folder)
    added = {"residual_guide": {"enabled": True}}
    llm = {"source": str(folder), "prompt": "Audio: <audio>{instruction}"}
    return randomised(
        make_model(llm=llm, adapter={"kind": "linear"}, extensions=added, guide={"beta": 0.2}, decode={"beams": 4})
    )


def test_every_step_gives_what_pytorch_gives(shaped, tmp_path):
    ours, theirs = TorchRuntime(shaped), exported(shaped, tmp_path / "model")
    rng = np.random.default_rng(1)
    z_a = (0.3 * rng.standard_normal((3, 5, shaped.llm.dim))).astype(np.float32)
    mask = np.arange(5) < np.array([5, 2, 4])[:, None]
    pair = [runtime.decoding(z_a, mask, 0.7) for runtime in (ours, theirs)]
    close = lambda one, other: np.testing.assert_allclose(other, one, atol=2e-3, rtol=1e-3)
    close(*(decoding.start() for decoding in pair))
    steps = [
        ([0, 1, 2], [[0, 0], [0, 0], [0, 0]], [[5, 6], [7, 8], [9, 5]]),
        ([0, 1, 2], [[1, 0], [0, 0], [1, 1]], [[5, 6], [7, 8], [9, 5]]),
        ([0, 2], [[1, 1], [0, 1]], [[11, 12], [13, 14]]),  # a clip is done
        ([1], [[1, 0]], [[3, 4]]),
    ]
    captions = [[5, 6, 7], [5, 6], [], [9], [5, 6, 7, 8]]
    for step in steps:
        close(*(decoding.step(*map(np.array, step)) for decoding in pair))
        found = [decoding.log_probabilities([0, 0, 2, 1, 0], captions) for decoding in pair]  # in between
        for one, other, ids in zip(*found, captions, strict=True):
            assert one.shape == other.shape == (len(ids) + 1,)
            close(one, other)


@pytest.mark.parametrize("options", [{}, {"beams": 1}, {"guide": 0.0}, {"no_repeat_ngram": 1}], ids=str)
def test_captions_alternatives_and_samples(make_model, sounds, tmp_path, options):
    encoder = {"source": None, "name": "efficientat", "options": ENCODERS["efficientat"]}
    model = randomised(make_model(encoder=encoder, decode={"weigh": {"enabled": options == {}}}))
    config = replace(model.config.decode, **options)
    ours, theirs = Engine(model), Engine(exported(model, tmp_path / "model"))
    h_a = ours.encode(sounds, 2)
    for seed, n_best in ((None, 1), (None, 3), (7, 3)):
        pair = [engine.describe(h_a, config, n_best, seed) for engine in (ours, theirs)]
        for one, other in zip(*pair, strict=True):
            assert [h.text for h in one] == [h.text for h in other]
            assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-3)
            for sounds_of_one, sounds_of_other in zip(*([h.sounds for h in row] for row in (one, other)), strict=True):
                assert [s.labels for s in sounds_of_one] == [s.labels for s in sounds_of_other]
                confidences = [[s.confidence for s in own] for own in (sounds_of_one, sounds_of_other)]
                assert confidences[0] == pytest.approx(confidences[1], abs=1e-3)


def test_weights_are_there_once(make_model, tmp_path):
    encoder = {"source": None, "name": "efficientat", "options": ENCODERS["efficientat"]}
    model = make_model(encoder=encoder)
    checkpoint.save(model, tmp_path, card=CARD, half=True)
    write_graphs(extensions.load(tmp_path), tmp_path)
    held = [tensor.half().float() for tensor in checkpoint.tensors(model).values() if tensor.is_floating_point()]
    pointed = 0
    for file in tmp_path.glob("*.onnx"):
        graph = onnx.load(file, load_external_data=False)
        for tensor in graph.graph.initializer:
            if tensor.external_data:
                assert {e.key: e.value for e in tensor.external_data}["location"] == "model.safetensors"
                pointed += 1
            elif len(tensor.raw_data) > 1024:
                value = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
                assert not any(value.shape == own.shape and torch.equal(value, own) for own in held), tensor.name
    assert pointed > len([tensor for tensor in held if tensor.numel() > 64]) - 5  # the aligner has no graph


def test_an_export_is_a_whole_model(make_model, make_config, sounds, tmp_path):
    """By reference and with LoRA: the export holds everything, and both engines run it."""
    model = make_model(llm={"train": "lora"})
    for name, parameter in model.llm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    checkpoint.save(model, tmp_path / "trained", stored=(), card=CARD)
    with pytest.raises(ExportError, match=r"not whole in one file; write a new folder with --to DIR"):
        export(tmp_path / "trained")
    folder = export(tmp_path / "trained", tmp_path / "light")
    clips = [(x, RATE) for x in sounds[1:]]
    before = Captioner(model).caption(clips)
    for engine in ("onnx", "torch", None):
        captioner = Captioner.load(str(folder), engine=engine)
        assert captioner.engine.runtime.name == (engine or "onnx")
        assert [c.text for c in captioner.caption(clips)] == [c.text for c in before]
    assert json.loads((folder / "lamb.json").read_text())["card"] == CARD
    assert not list(folder.glob(".part*"))
    weights = (folder / "model.safetensors").read_bytes()
    export(folder)  # the graphs anew, in the model's own folder
    with pytest.raises(ExportError, match="eight bits would replace its weights; write a new folder with --to DIR"):
        export(folder, folder, int8=True)
    assert (folder / "model.safetensors").read_bytes() == weights


def test_int8_is_smaller_and_close(make_model, sounds, tmp_path):
    model = randomised(make_model())
    runtime = exported(model, tmp_path / "model", int8=True)
    graph = onnx.load(tmp_path / "model" / "language_model.onnx", load_external_data=False)
    assert any(node.op_type == "MatMulNBits" for node in graph.graph.node)
    h_a = Engine(model).encode(sounds, 2)
    pair = [engine.audio_tokens(h_a, 2) for engine in (Engine(model), Engine(runtime))]
    for one, other in zip(*pair, strict=True):
        same(one, other)
    check(model, tmp_path / "model", [], 0.5)
    assert {name.split(".")[0] for name in entries(tmp_path / "model" / "model.safetensors")} == {
        *("adapter", "encoder", "guide", "llm")
    } - {"guide"}
    with pytest.raises(EngineError, match="8-bit weights, which PyTorch does not run; use engine onnx"):
        Captioner.load(str(tmp_path / "model"), engine="torch")


def test_int8_says_the_same_alone_and_in_a_batch(make_model, sounds, tmp_path):
    engine = Engine(exported(randomised(make_model()), tmp_path / "model", int8=True))
    options = DecodeConfig(beams=1, max_new_tokens=8)
    h_a = [20**k * x for k, x in enumerate(engine.encode(sounds, 1))]  # a loud neighbour would set the scale of all
    alone = [engine.describe([x], options)[0][0] for x in h_a]
    together = [best for best, *_ in engine.describe(h_a, options)]
    assert [h.text for h in alone] == [h.text for h in together]
    assert [h.score for h in alone] == pytest.approx([h.score for h in together], abs=1e-5)


def test_a_difference_is_an_error(make_model, tmp_path):
    model = randomised(make_model())
    exported(model, tmp_path)
    with torch.no_grad():
        model.adapter.out.bias += 1
    with pytest.raises(ExportError, match=r"adapter\.onnx: differs from PyTorch"):
        check(model, tmp_path, [], 1e-3)


# --- what cannot be


def test_models_without_a_graph_are_refused(make_model, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from lamb.export.llama import require_llama

    with pytest.raises(UnsupportedModelError, match="'gpt2' has no ONNX graph; export a LAMB model around a LLaMA"):
        require_llama(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9)))
    model = make_model()
    model.llm.model.config.hidden_act = "gelu"
    with pytest.raises(UnsupportedModelError, match="'gelu'"):
        require_llama(model.llm.model)


@pytest.fixture
def light(make_model, tmp_path) -> Path:
    exported(make_model(), tmp_path / "light")
    return tmp_path / "light"


def test_graphs_of_other_weights_are_refused(make_model, light):
    file = light / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(EngineError, match="made of other weights than these; export the model again"):
        Captioner.load(str(light))


@pytest.mark.parametrize("name", ["encoder.onnx", "language_model.onnx"])
def test_a_broken_graph_is_told(light, name):
    (light / name).write_bytes(b"no graph")
    with pytest.raises(EngineError, match=rf"{name}: ONNX Runtime cannot run it \(.+\); export the model again"):
        Captioner.load(str(light))
    (light / name).unlink()
    with pytest.raises(EngineError, match=rf"{name}: ONNX Runtime cannot run it"):
        Captioner.load(str(light))


def test_a_wrong_opset_is_told(light):
    graph = onnx.load(light / "encoder.onnx", load_external_data=False)
    graph.opset_import[0].version = 9999
    (light / "encoder.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(
        EngineError, match=r"encoder\.onnx: ONNX Runtime cannot run it .*opset.*; export the model again"
    ):
        Captioner.load(str(light))


def test_a_description_of_another_time_is_told(light):
    facts = json.loads((light / "onnx.json").read_text())
    (light / "onnx.json").write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(EngineError, match="format 99, this lamb runs 1; export the model again"):
        Captioner.load(str(light))
    (light / "onnx.json").write_text("{")
    with pytest.raises(EngineError, match=r"onnx\.json: cannot be read"):
        Captioner.load(str(light))


def test_engines_say_who_can(light, model_folder):
    with pytest.raises(EngineError, match="holds no graphs for ONNX Runtime; make them with lamb export"):
        Captioner.load(str(model_folder), engine="onnx")
    with pytest.raises(EngineError, match="engine onnx runs on a CPU, not on cuda; use engine torch"):
        Captioner.load(str(light), device="cuda", engine="onnx")
    with pytest.raises(ValueError, match="engine 'tensorflow' is not one of onnx, torch"):
        Captioner.load(str(light), engine="tensorflow")
    with pytest.raises(EngineError, match="only PyTorch has; use engine torch"):
        _ = Captioner.load(str(light)).model
    assert Captioner.load(str(model_folder)).engine.runtime.name == "torch"


# --- the model in the box


def test_the_bundled_graphs_belong_to_the_bundled_weights():
    """After another training: `lamb export tiny`."""
    file = BUNDLED / "model.safetensors"
    facts = json.loads((BUNDLED / "onnx.json").read_text())
    assert facts["weights"] == fingerprint(file, entries(file)), "make the graphs anew: lamb export tiny"
    whole = sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file())
    assert whole < 40e6


def test_the_bundled_model_says_the_same_on_both_engines():
    sounds = sorted((ROOT / "samples").glob("*.flac"))
    assert len(sounds) > 8
    one, other = (Captioner.load("tiny", engine=engine, threads=1).caption(sounds) for engine in ("torch", "onnx"))
    assert [c.text for c in one] == [c.text for c in other]
    assert [c.score for c in one] == pytest.approx([c.score for c in other], abs=1e-3)


WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "peft", "accelerate", "onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
sys.meta_path.insert(0, Blocked())
sys.argv = ["lamb", *sys.argv[1:]]
from lamb.cli.app import main
main()
"""


def without_torch(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT, *command], capture_output=True, text=True, cwd=ROOT)


def test_captions_without_pytorch():
    found = without_torch("caption", "samples/rain.flac", "--format", "jsonl", "--quiet")
    assert (found.returncode, found.stderr) == (0, "")
    (expected,) = Captioner.load("tiny", engine="onnx").caption([ROOT / "samples" / "rain.flac"])
    assert json.loads(found.stdout)["caption"] == expected.text


@pytest.mark.parametrize(
    "command",
    [
        ("caption", "samples/knocks_then_bells.flac", "--timeline", "--plot", "{}"),
        ("explain", "samples/rain.flac", "--plot", "{}"),
    ],
    ids=lambda command: command[0],
)
def test_pictures_without_pytorch(command, tmp_path):
    picture = tmp_path / "picture.png"
    found = without_torch(*(word.format(picture) for word in command))
    assert (found.returncode, found.stderr) == (0, "")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("caption", "samples/rain.flac", "--engine", "torch"), "torch"),
        (("train", "recipes/smoke.yaml"), "train"),
        (("gap", "tiny", "samples/manifest.jsonl"), "torch"),
        (("export", "tiny", "--to", "nowhere"), "train"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_what_needs_pytorch_says_so_in_one_line(command, extra):
    found = without_torch(*command)
    assert found.returncode in (1, 2)
    assert found.stderr.startswith("lamb: error: ")
    assert found.stderr.endswith(f"pip install 'lamb-aac[{extra}]'\n")
    assert found.stderr.count("\n") == 1
    assert not (ROOT / "nowhere").exists()


def test_the_options_of_a_graph_are_those_of_the_model(light):
    assert Captioner.load(str(light)).options == replace(DecodeConfig(), max_new_tokens=8)
