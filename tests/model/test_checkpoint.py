"""Models on disk: bit-exact there and back, strict, whole or not at all, and small."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lamb.config import EncoderConfig, LambConfig, LLMConfig, to_dict
from lamb.extensions import build, load
from lamb.model import checkpoint
from lamb.model.checkpoint import BASES, CheckpointError, describe, find, save, tensors
from lamb.model.encoders.ced import CED
from lamb.model.lamb import LambModel
from lamb.model.language_model import LanguageModel

CARD = {"trained_on": "Geräusche", "licence": "none"}


@pytest.fixture(scope="module")
def ced_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random CED on disk."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("ced") / "model.safetensors"
    save_file(CED(dim=64, heads=1, depth=1).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def untied_folder(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LLM of `llm_folder` with an output layer of its own."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("untied")
    config = LlamaConfig.from_pretrained(llm_folder)
    config.tie_word_embeddings = False
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(llm_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def kinds(ced_file: Path, untied_folder: Path) -> dict[str, dict[str, Any]]:
    """Settings of models of all kinds, for make_model."""
    return {
        "frozen": {"llm": {"train": "frozen"}},
        "full": {"encoder": {"train": "full"}},
        "llm lora": {"llm": {"train": "lora"}},
        "both lora": {"encoder": {"name": "ced", "source": str(ced_file), "train": "lora"}, "llm": {"train": "lora"}},
        "untied": {"llm": {"source": str(untied_folder), "train": "full"}},
        "untied lora": {"llm": {"source": str(untied_folder), "train": "lora"}},
        "no extras": {"aligner": {"enabled": False}, "guide": {"enabled": False}, "adapter": {"kind": "linear"}},
    }


KINDS = ("frozen", "full", "llm lora", "both lora", "untied", "untied lora", "no extras")


def stir(model: LambModel) -> LambModel:
    """Change all that a checkpoint by reference holds, so that fresh values would show."""
    torch.manual_seed(3)
    for tensor in tensors(model, stored=()).values():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand_like(tensor))
        else:
            tensor.add_(1)
    return model


def equal(a: LambModel, b: LambModel) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


def edit(folder: Path, **changes: Any) -> Path:
    """Change lamb.json; None removes a key."""
    facts = json.loads((folder / "lamb.json").read_text()) | changes
    (folder / "lamb.json").write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))
    return folder


# --- there and back


@pytest.mark.parametrize("standalone", [True, False], ids=["standalone", "by reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_load_is_bit_exact(make_model, kinds, kind, standalone, tmp_path):
    model = stir(make_model(**kinds[kind]))
    folder = save(model, tmp_path / "model", stored=BASES if standalone else (), card=CARD)
    again = load(folder)
    assert equal(model, again)
    assert not again.training
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in again.named_parameters() if p.requires_grad} == trained
    assert again.config.adapter == model.config.adapter
    assert describe(folder)["trained_on"] == "Geräusche"


@pytest.mark.parametrize("kind", ["llm lora", "both lora", "untied"])
def test_a_standalone_model_needs_nothing_else(make_model, kinds, kind, tmp_path, monkeypatch):
    model = stir(make_model(**kinds[kind]))
    folder = save(model, tmp_path / "model", card=CARD)
    text = (folder / "lamb.json").read_text()
    assert '"source": null' in text
    assert "/tmp" not in text, "no paths of the machine it was trained on"
    monkeypatch.chdir(folder)
    again = load(".")
    assert torch.equal(again.llm.embedding_matrix, model.llm.embedding_matrix)
    assert again.llm.before == model.llm.before
    assert again.llm.tokenizer("A dog barks.").input_ids == model.llm.tokenizer("A dog barks.").input_ids


@pytest.mark.parametrize("kind", KINDS)
def test_by_reference_holds_only_what_was_trained(make_model, kinds, kind, tmp_path):
    model = make_model(**kinds[kind])
    held = load_file(save(model, tmp_path, stored=(), card=CARD) / "model.safetensors")
    config = model.config
    for part, how in (("encoder", config.encoder.train), ("llm", config.llm.train)):
        names = {name for name in held if name.startswith(part + ".")}
        if how == "frozen":
            assert names == set()
        elif how == "lora":
            assert names
            assert all("lora" in name for name in names)
        else:
            own = getattr(model, part).state_dict().keys()
            tied = {"model.lm_head.weight"} if part == "llm" and "untied" not in kind else set()
            assert {name.removeprefix(part + ".") for name in names} == own - tied
    own_parts = {name.partition(".")[0] for name in model.state_dict()} - {"encoder", "llm"}
    assert {name.partition(".")[0] for name in held} >= own_parts


@pytest.mark.parametrize("standalone", [True, False])
def test_half_is_float32_again_within_its_precision(make_model, kinds, standalone, tmp_path):
    model = stir(make_model(**kinds["full"]))
    folder = save(model, tmp_path / "half", stored=BASES if standalone else (), card=CARD, half=True)
    held = load_file(folder / "model.safetensors")
    assert {t.dtype for t in held.values()} == {torch.float16, torch.int64}
    again = load(folder).state_dict()
    for name, tensor in model.state_dict().items():
        assert again[name].dtype == tensor.dtype
        torch.testing.assert_close(again[name], tensor, rtol=2**-10, atol=2**-24)
    full = save(model, tmp_path / "full", stored=BASES if standalone else (), card=CARD)
    assert describe(folder)["size_bytes"] < 0.8 * describe(full)["size_bytes"]


def test_ties_stay_ties(make_model, kinds, tmp_path):
    for kind, tied in (("full", True), ("untied", False)):
        folder = save(make_model(**kinds[kind]), tmp_path / kind, card=CARD)
        assert ("llm.model.lm_head.weight" in load_file(folder / "model.safetensors")) is not tied
        llm = load(folder).llm.model
        assert (llm.lm_head.weight is llm.get_input_embeddings().weight) is tied


def test_a_low_precision_llm_keeps_its_rotary_frequencies(make_model, llm_folder, tmp_path):
    by_id = make_model(llm={"dtype": "bfloat16"})
    again = load(save(by_id, tmp_path, card=CARD))
    assert again.llm.embedding_matrix.dtype == torch.bfloat16
    assert again.llm.model.lm_head.weight is again.llm.embedding_matrix
    for model in (by_id, again):
        assert model.llm.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert equal(by_id, again)


def test_decoding_options_can_be_changed(make_model, tmp_path):
    folder = save(make_model(), tmp_path, card=CARD, decode={"beams": 2, "confidence": (0.5, 2.0)})
    decode = load(folder).config.decode
    assert (decode.beams, decode.confidence, decode.max_new_tokens) == (2, (0.5, 2.0), 8)


def test_the_files_of_a_model_are_as_public_as_each_other(model_folder):
    assert {os.stat(file).st_mode & 0o777 for file in model_folder.rglob("*") if file.is_file()} == {
        (model_folder / "lamb.json").stat().st_mode & 0o777
    }


# --- whole or not at all


def test_a_save_that_fails_leaves_the_old_model(make_model, untied_folder, model_folder, monkeypatch):
    old = load(model_folder)
    files = {file.relative_to(model_folder) for file in model_folder.rglob("*")}

    def full_disk(weights: Any, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    new = stir(make_model(llm={"source": str(untied_folder)}))  # with another LLM, so all files would change
    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save(new, model_folder, card=CARD)
    assert {file.relative_to(model_folder) for file in model_folder.rglob("*")} == files, "nothing is left lying about"
    assert equal(load(model_folder), old)
    monkeypatch.undo()
    assert equal(load(save(new, model_folder, card=CARD)), new)
    assert {file.relative_to(model_folder) for file in model_folder.rglob("*")} == files


def test_a_first_save_that_fails_leaves_no_model(make_model, tmp_path):
    with pytest.raises(TypeError):
        save(make_model(), tmp_path, card={"licence": object()})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


def test_other_files_in_the_folder_stay(make_model, llm_folder, tmp_path):
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "model.safetensors").write_bytes(b"somebody's language model")
    (tmp_path / "state.pt").write_bytes(bytes(10**6))
    for standalone in (True, False):
        save(make_model(), tmp_path, stored=BASES if standalone else (), card=CARD)
        assert (tmp_path / "llm" / "model.safetensors").read_bytes() == b"somebody's language model"
    assert describe(tmp_path)["size_bytes"] < 10**6, "a training state is no part of the model"


@pytest.mark.parametrize("standalone", [True, False])
@pytest.mark.parametrize("kind", ["llm lora", "both lora"])
def test_a_merged_model_is_not_saved_as_if_it_were_not(make_model, kinds, kind, standalone, tmp_path):
    model = make_model(**kinds[kind])
    model.merge_lora()
    with pytest.raises(CheckpointError, match="LoRA is merged"):
        save(model, tmp_path / "model", stored=BASES if standalone else (), card=CARD)
    assert not (tmp_path / "model").exists()


def test_what_cannot_be_saved(make_config, make_model, tmp_path, model_folder):
    with pytest.raises(CheckpointError, match="the encoder has no source to refer to; store it with the model"):
        save(load(model_folder), tmp_path / "a", stored=(), card=CARD)
    model = make_model()
    del model.encoder.options  # as of an encoder of the hub's
    with pytest.raises(CheckpointError, match="can only be saved by reference"):
        save(model, tmp_path / "b", card=CARD)


# --- strict


def test_a_missing_tensor(model_folder):
    file = model_folder / "model.safetensors"
    weights = load_file(file)
    gone = [name for name in weights if name.startswith("adapter.")]
    save_file({name: t for name, t in weights.items() if name not in gone}, file)
    with pytest.raises(CheckpointError, match=rf"lacks tensors: adapter\..* and {len(gone) - 3} more; "):
        load(model_folder)


def test_an_unexpected_tensor(model_folder):
    file = model_folder / "model.safetensors"
    save_file({**load_file(file), "adapter.extra": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=r"has unknown tensors: adapter\.extra; lamb\.json and the weights"):
        load(model_folder)


def test_a_wrong_shape(model_folder):
    file = model_folder / "model.safetensors"
    save_file({**load_file(file), "adapter.out.bias": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match=r"adapter\.out\.bias has shape \(3,\), expected \(32,\)"):
        load(model_folder)


@pytest.mark.parametrize("stored", [("encoder",), ("llm",)])
def test_one_of_the_two_bases_is_stored(make_model, kinds, stored, tmp_path):
    model = stir(make_model(**kinds["both lora"]))
    folder = save(model, tmp_path, stored=stored, card=CARD)
    assert equal(load(folder), model)
    assert not describe(folder)["standalone"]
    assert (folder / "llm").exists() == ("llm" in stored)
    assert any(name.startswith("encoder.") for name in load_file(folder / "model.safetensors"))


def test_standalone_weights_under_a_reference(make_model, tmp_path):
    model = make_model(llm={"train": "frozen"})
    folder = save(model, tmp_path, card=CARD)
    config = json.loads((folder / "lamb.json").read_text())["config"]
    edit(folder, config={**config, "llm": to_dict(model.config.llm)})
    with pytest.raises(CheckpointError, match="has unknown tensors: llm"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not written by lamb"),
        ({"format": None}, "not written by lamb"),
        ({"version": 0}, "format version 0, this lamb reads 2; train it again"),
        ({"version": 3}, "format version 3, this lamb reads 2; install a newer lamb"),
        ({"version": None}, "format version None"),
        ({"card": None, "config": None}, "lacks card, config"),
        ({"config": {"encoder": {"nam": "ced"}}}, r"encoder\.nam: unknown key; did you mean 'name'.*newer lamb"),
        ({"config": []}, "LambConfig: expected keys and values"),
    ],
)
@pytest.mark.parametrize("act", [load, describe])
def test_foreign_facts(model_folder, act, changes, message):
    with pytest.raises(CheckpointError, match=message) as error:
        act(edit(model_folder, **changes))
    assert "lamb.json" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'"lamb"', b"\xff"])
@pytest.mark.parametrize("act", [load, describe])
def test_broken_facts(model_folder, act, content):
    (model_folder / "lamb.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"lamb\.json: "):
        act(model_folder)


@pytest.mark.parametrize("content", [None, b"", b"x" * 100, struct.pack("<Q", 2**60), "half", "last byte"])
@pytest.mark.parametrize("act", [load, describe])
def test_broken_weights(model_folder, act, content):
    file = model_folder / "model.safetensors"
    whole = file.read_bytes()
    file.unlink()
    if content is not None:
        cut = {"half": len(whole) // 2, "last byte": len(whole) - 1}
        file.write_bytes(whole[: cut[content]] if isinstance(content, str) else content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read .*; copy or train the model again"):
        act(model_folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_missing_part_of_the_llm(model_folder, file):
    (model_folder / "llm" / file).unlink()
    with pytest.raises(CheckpointError, match=r"llm.*cannot be read"):
        load(model_folder)
    (model_folder / "llm" / "config.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        describe(model_folder)


@pytest.mark.parametrize(("part", "message"), [("llm", "cannot be loaded"), ("encoder", "no EfficientAT")])
def test_a_reference_to_nothing(make_model, tmp_path, part, message):
    folder = save(make_model(), tmp_path / "model", stored=(), card=CARD)
    config = json.loads((folder / "lamb.json").read_text())["config"]
    config[part]["source"] = str(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=message) as error:
        load(edit(folder, config=config))
    assert "gone" in str(error.value)
    assert describe(folder)["name"] == str(folder), "it can still be looked at"


def test_an_encoder_that_is_not_there(model_folder):
    config = json.loads((model_folder / "lamb.json").read_text())["config"]
    config["encoder"]["name"] = "magic"
    with pytest.raises(CheckpointError, match=r"encoder\.name: 'magic' is not one of ced, efficientat"):
        load(edit(model_folder, config=config))


# --- names


@pytest.fixture
def bundled(make_model, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(checkpoint, "BUNDLED", tmp_path / "models")
    for name in ("tiny", "big"):
        save(make_model(), tmp_path / "models" / name, card=CARD)
    (tmp_path / "models" / "broken").mkdir()
    return tmp_path / "models"


def test_bundled_names(bundled, monkeypatch, tmp_path):
    (tmp_path / "here" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert find("tiny") == bundled / "tiny"
    with pytest.raises(CheckpointError, match=r"./tiny: holds no lamb\.json"):
        find("./tiny")
    with pytest.raises(CheckpointError, match="nosuch: no such model; bundled: big, tiny; else give a folder"):
        find("nosuch")


@pytest.mark.parametrize(
    "name", ["", "broken", "../x", "../../x", "a/b/c", "/no/such", "x" * 5000, "a\0b", "-a/b", ".a/b", "~/x", "a b/c"]
)
def test_impossible_names(bundled, name, monkeypatch):
    monkeypatch.setattr(checkpoint, "_download", lambda name: pytest.fail(f"{name} was looked for on the hub"))
    with pytest.raises(CheckpointError):
        find(name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no lamb\.json, so it is not a lamb model"):
        load(tmp_path)


def test_a_file_is_no_model(model_folder, monkeypatch):
    with pytest.raises(CheckpointError, match="no such model"):
        load(model_folder / "lamb.json")
    monkeypatch.chdir(model_folder.parent)
    with pytest.raises(CheckpointError, match="no such model"):
        load("model/lamb.json")


def test_a_hub_id_offline():
    with pytest.raises(CheckpointError, match=r"some-body/no_model\.v1: no such folder, and the Hugging Face hub"):
        load("some-body/no_model.v1")


# --- what `lamb info` shows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("standalone", [True, False])
def test_describe_counts_what_is_held(make_model, kinds, kind, standalone, tmp_path):
    model = make_model(**kinds[kind])
    folder = save(model, tmp_path, stored=BASES if standalone else (), card=CARD)
    facts = describe(folder)
    assert json.loads(json.dumps(facts)) == facts
    config = model.config
    how = {"encoder": config.encoder.train, "llm": config.llm.train}
    parts = {part["part"]: part for part in facts["parts"]}
    assert parts.keys() == {"encoder", "llm", "adapter"} | (
        {"aligner", "guide"} if config.guide.enabled and config.aligner.enabled else set()
    )
    for name, part in parts.items():
        parameters = list(getattr(model, name).parameters())
        held = [p for p in parameters if standalone or p.requires_grad]
        assert part["parameters"] == sum(p.numel() for p in held), name
        assert part["trained"] == how.get(name, "full")
    assert facts["size_bytes"] == sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    assert (facts["format_version"], facts["standalone"], facts["licence"]) == (2, standalone, "none")
    assert "llama" in parts["llm"]["kind"] or parts["llm"]["kind"] == config.llm.source


def test_describe_fills_in_what_an_earlier_config_lacked(model_folder):
    config = json.loads((model_folder / "lamb.json").read_text())["config"]
    del config["guide"], config["adapter"]["layers"]
    facts = describe(edit(model_folder, config=config))
    assert facts["config"]["adapter"]["layers"] == 2
    assert "guide" in {part["part"] for part in facts["parts"]}


# --- the paper's size


def test_the_papers_model_stays_under_200_megabytes(llm_folder):
    """CED-base and LLaMA-2-7B by reference; only shapes, no memory."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LambConfig(encoder=EncoderConfig(source="ced"), llm=LLMConfig(source="llama"))
    llama = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    with torch.device("meta"):
        encoder = CED(dim=768, heads=12)
        encoder.add_lora(config.encoder.lora.rank, config.encoder.lora.alpha, config.encoder.lora.dropout)
        llm = LanguageModel(LlamaForCausalLM(llama), AutoTokenizer.from_pretrained(llm_folder), config.llm)
        model = LambModel(config, encoder, llm)
    everything = sum(t.numel() for t in tensors(model).values())
    assert everything > 6.7e9
    held = tensors(model, stored=())
    assert sum(t.numel() for name, t in held.items() if name.startswith("llm.")) == 2 * 32 * 2 * 8 * 4096
    assert sum(t.numel() for name, t in held.items() if name.startswith("encoder.")) == 2 * 12 * 2 * 8 * 768
    assert {name.partition(".")[0] for name in held} == {"adapter", "aligner", "guide", "encoder", "llm"}
    size = sum(4 * t.numel() for t in held.values())
    assert 50e6 < size < 200e6


def test_build_then_load_says_the_same(make_config, tmp_path):
    """A caption's logits before saving and after loading, to the last bit."""
    torch.manual_seed(1)
    model = build(make_config()).eval()
    again = load(save(model, tmp_path, card=CARD))
    waveform, mask = torch.randn(2, 16000), torch.ones(2, 16000, dtype=torch.bool)
    ids, ids_mask = model.llm.tokenize(["A dog barks.", "Rain."])
    with torch.no_grad():
        one, other = (m(waveform, mask, ids, ids_mask) for m in (model, again))
    assert torch.equal(one.logits, other.logits)
    assert torch.equal(one.bias, other.bias)
