"""The language model: several architectures with the same words; prompt, LoRA, loading, precision."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from searched import generate

from lamb.config import AdapterConfig, ConfigError, EncoderConfig, LambConfig, LLMConfig
from lamb.model.encoders import build_encoder
from lamb.model.lamb import LambModel
from lamb.model.language_model import AUDIO, LanguageModel, merge_lora
from lamb.model.losses import loss_terms

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS: dict[str, tuple[str, dict[str, Any], set[str]]] = {  # config class, its options, what LoRA adapts
    "llama": ("LlamaConfig", SMALL, {"q_proj", "v_proj"}),
    "llama-tied": ("LlamaConfig", SMALL | {"tie_word_embeddings": True}, {"q_proj", "v_proj"}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}, {"c_attn"}),
    "qwen2": ("Qwen2Config", SMALL | {"num_key_value_heads": 1}, {"q_proj", "v_proj"}),
    "qwen3-tied": (
        "Qwen3Config",
        SMALL | {"num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True},
        {"q_proj", "v_proj"},
    ),
    "smollm3": ("SmolLM3Config", SMALL | {"num_key_value_heads": 1, "pad_token_id": 1}, {"q_proj", "v_proj"}),
    "opt": (  # embeddings narrower than the model
        "OPTConfig",
        {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 16},
        {"q_proj", "v_proj"},
    ),
    "gpt_neox": ("GPTNeoXConfig", SMALL, {"query_key_value"}),
}


def save(folder: Path, words: Path, kind: str) -> Path:
    """A random model of `kind` with the tokenizer of the folder `words`."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(words)
    name, options, _ = KINDS[kind]
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    config = getattr(transformers, name)(vocab_size=len(tokenizer), **ids, **options)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory, llm_folder) -> dict[str, Path]:
    return {kind: save(tmp_path_factory.mktemp(kind), llm_folder, kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def load(folder: Path, **options: Any) -> LanguageModel:
    torch.manual_seed(1)
    return LanguageModel.from_pretrained(LLMConfig(source=str(folder), **options)).eval()


def audio(llm: LanguageModel, *lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Audio tokens with large numbers in their padding, and their mask."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    z_a = llm.embedding_matrix.detach().std() * torch.randn(
        *mask.shape, llm.dim, generator=torch.Generator().manual_seed(0)
    )
    return torch.where(mask[..., None], z_a, 100 * z_a), mask


# --- every kind


def test_table(folders, kind):
    llm = load(folders[kind], train="full")
    assert llm.embedding_matrix.shape == (llm.model.config.vocab_size, llm.dim)
    ids, mask = llm.tokenize(["A dog barks.", "Rain falls, then a siren wails."])
    assert torch.equal(llm.embed(ids), llm.embedding_matrix[ids])
    texts = [llm.tokenizer.decode(row[m]).strip() for row, m in zip(ids, mask, strict=True)]
    assert texts == ["A dog barks.", "Rain falls, then a siren wails."]


@torch.no_grad()
def test_logits_are_those_of_the_plain_model(folders, kind):
    llm = load(folders[kind])
    ids, _ = llm.tokenize(["A dog barks.", "Rain falls, then a siren wails."])
    words, _ = llm.tokenize(["Church bells ring."])  # in the place of audio tokens
    words = words.expand(2, -1)
    found = llm.logits(*llm.prefix(llm.embed(words), torch.ones_like(words, dtype=torch.bool)), ids)
    prompt = [torch.tensor(part).expand(2, -1) for part in (llm.before, llm.after)]
    plain = llm.model(torch.cat([prompt[0], words, prompt[1], ids], 1)).logits
    assert found.shape == (2, ids.shape[1] + 1, len(llm.embedding_matrix))
    torch.testing.assert_close(found, plain[:, -ids.shape[1] - 1 :], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padded_audio_tokens_change_nothing(folders, kind):
    llm = load(folders[kind])
    z_a, mask = audio(llm, 5, 1, 3)
    ids, _ = llm.tokenize(["A dog barks.", "Church bells ring.", "A cat meows and a baby cries."])
    found = llm.logits(*llm.prefix(z_a, mask), ids)
    for row, n in enumerate((5, 1, 3)):
        alone = llm.logits(*llm.prefix(z_a[row : row + 1, :n], mask[row : row + 1, :n]), ids[row : row + 1])
        torch.testing.assert_close(found[row], alone[0], atol=1e-5, rtol=1e-4)


def test_lora(folders, kind):
    llm = load(folders[kind])
    trained = {name for name, parameter in llm.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in llm.named_parameters() if "lora_" in name}
    assert {name.split(".")[-4] for name in trained} == KINDS[kind][2]
    assert len(trained) == 2 * 2 * len(KINDS[kind][2])  # 2 layers, A and B
    z_a, mask = audio(llm, 3)
    ids, _ = llm.tokenize(["A dog barks."])
    with torch.no_grad():
        base = llm.logits(*llm.prefix(z_a, mask), ids)
        for name, parameter in llm.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        adapted = llm.logits(*llm.prefix(z_a, mask), ids)
        merge_lora(llm.model)
        merged = llm.logits(*llm.prefix(z_a, mask), ids)
    assert (adapted - base).abs().max() > 1e-3
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-5)
    assert not [name for name, _ in llm.named_parameters() if "lora" in name]


def test_captions_alone_and_in_a_padded_batch(folders, kind, make_config):
    """The search with its cache, on the left-padded prompts of a linear projector."""
    config = make_config(adapter={"kind": "linear"}, llm={"source": str(folders[kind])}, decode={"beams": 3})
    llm = LanguageModel.from_pretrained(config.llm)
    model = LambModel(config, build_encoder(config.encoder), llm).eval()
    z_a, mask = audio(llm, 5, 1, 3)
    found = generate(model, z_a, mask, config.decode)
    for row, n in enumerate((5, 1, 3)):
        alone = generate(model, z_a[row : row + 1, :n], mask[row : row + 1, :n], config.decode)[0][0]
        assert found[row][0].text == alone.text
        assert found[row][0].score == pytest.approx(alone.score, abs=1e-4)


# --- prompt


def test_prompt(llm_folder):
    llm = load(llm_folder, prompt=f"USER: {AUDIO} {{instruction}}\nASSISTANT:", instruction="Say it.")
    decode = llm.tokenizer.decode
    assert (decode(llm.before), decode(llm.after)) == (" USER: ", " Say it.\nASSISTANT:")
    z_a, mask = audio(llm, 3, 2)
    prefix, prefix_mask = llm.prefix(z_a, mask)
    size = len(llm.before) + len(llm.after) + 3
    assert prefix.shape == (2, size, llm.dim)
    assert prefix_mask.sum(1).tolist() == [size, size - 1]
    assert not prefix_mask[1, 0]  # padding first
    before, after = llm.embedding_matrix[llm.before], llm.embedding_matrix[llm.after]
    assert torch.equal(prefix[0], torch.cat([before, z_a[0], after]))
    assert torch.equal(prefix[1, 1:], torch.cat([before, z_a[1, :2], after]))


@pytest.mark.parametrize("prompt", [AUDIO, f"{AUDIO}{{instruction}}", f"Hear {AUDIO}"])
def test_prompt_with_nothing_on_one_side(llm_folder, prompt):
    llm = load(llm_folder, prompt=prompt)
    z_a, mask = audio(llm, 2)
    assert llm.prefix(z_a, mask)[0].shape[1] == len(llm.before) + 2 + len(llm.after)


@pytest.mark.parametrize(
    "options", [{"prompt": "Describe:"}, {"prompt": AUDIO * 2}, {"instruction": f"Describe {AUDIO}"}]
)
def test_prompt_needs_the_audio_once(llm_folder, options):
    with pytest.raises(ConfigError, match=r"llm\.prompt.*exactly once"):
        load(llm_folder, **options)


def test_special_tokens_stand_only_at_the_beginning(llm_folder):
    """A tokenizer that puts <s> before and </s> behind every text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llm_folder)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    llm = LanguageModel(AutoModelForCausalLM.from_pretrained(llm_folder), tokenizer, LLMConfig())
    assert llm.before[0] == bos
    assert bos not in llm.before[1:] + llm.after
    assert eos not in llm.before + llm.after
    ids, mask = llm.tokenize(["A dog barks.", ""])
    assert not {bos, eos} & set(ids[mask].tolist())
    assert mask.sum(1).tolist() == [ids.shape[1], 0]


# --- loading


def test_a_bf16_checkpoint_is_float32_on_a_cpu(folders, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(folders["llama"], tmp_path / "bf16")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert {p.dtype for p in load(folder).parameters()} == {torch.float32}
    chosen = load(folder, dtype="bfloat16")
    assert chosen.embedding_matrix.dtype == torch.bfloat16
    assert {p.dtype for p in chosen.parameters() if p.requires_grad} == {torch.float32}  # LoRA


def test_a_model_s_own_generation_settings_do_not_matter(folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "chat")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"repetition_penalty": 1.3, "temperature": 0.6}))
    llm = load(folder)
    assert llm.model.generation_config.repetition_penalty in (None, 1.0)
    assert llm.model.generation_config.eos_token_id == llm.tokenizer.eos_token_id


def broken(folder: Path, how: str) -> Path:
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    if how == "no files":
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == "no folder":
        shutil.rmtree(folder)
    elif how == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "only a pickle":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    elif how == "garbage":
        weights.write_bytes(b"not safetensors")
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "a weight is missing":
        save_file({k: v for k, v in load_file(weights).items() if "lm_head" not in k}, weights, {"format": "pt"})
    elif how == "other shapes":
        tensors = load_file(weights)
        save_file(
            {k: v[:-1].contiguous() if "q_proj" in k else v for k, v in tensors.items()}, weights, {"format": "pt"}
        )
    elif how == "not a language model":
        (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    return folder


@pytest.mark.parametrize(
    "how",
    [
        "no folder",
        "no files",
        "no tokenizer",
        "no weights",
        "only a pickle",
        "garbage",
        "truncated",
        "a weight is missing",
        "other shapes",
        "not a language model",
    ],
)
def test_what_cannot_be_loaded(folders, tmp_path, how):
    folder = broken(shutil.copytree(folders["llama"], tmp_path / "broken"), how)
    with pytest.raises(ConfigError, match=r"llm .*broken.*; give "):
        load(folder)


def test_no_source():
    with pytest.raises(ConfigError, match="give a hub id or a folder"):
        LanguageModel.from_pretrained(LLMConfig())


def test_a_tokenizer_without_an_end(folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "endless")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}))
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        load(folder)


def test_unknown_lora_targets(llm_folder):
    with pytest.raises(ConfigError, match=r"llm\.lora_targets.*name its query"):
        load(llm_folder, lora_targets=("nothing",))
    llm = load(llm_folder, lora_targets=("k_proj",))
    assert {n.split(".")[-4] for n, p in llm.named_parameters() if p.requires_grad} == {"k_proj"}


# --- the paper's model


def paper_model(llm_folder: Path, device: str, *, ced: dict[str, int], **llama: int) -> LambModel:
    """CED + LoRA, Two-Stream Adapter, LLaMA in bf16 + LoRA, all of random weights, on `device`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    config = LambConfig(encoder=EncoderConfig(options=ced), adapter=AdapterConfig())
    tokenizer = AutoTokenizer.from_pretrained(llm_folder)
    eos = tokenizer.eos_token_id
    architecture = LlamaConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=eos, **llama)
    with torch.device(device):  # made there: 13.5 GB
        model = AutoModelForCausalLM.from_config(architecture, dtype=torch.bfloat16)
    lamb = LambModel(config, build_encoder(config.encoder), LanguageModel(model, tokenizer, config.llm)).to(device)
    lamb.initialise()
    return lamb


def train_and_caption(model: LambModel) -> None:
    """One forward and backward pass, one beam search."""
    captions = ["A dog barks.", "Rain falls, then a siren wails."]
    waveform = torch.randn(2, 160000, device=model.device)
    mask = torch.arange(160000, device=model.device) < torch.tensor([[160000], [90000]], device=model.device)
    output = model.train()(waveform, mask, *model.llm.tokenize(captions))
    assert output.logits.dtype == torch.bfloat16
    loss = loss_terms(model, output)["loss"]
    assert loss.isfinite()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or (parameter.dtype == torch.float32 and parameter.grad.isfinite().all()), name
    model.eval()
    with torch.no_grad():
        z_a, valid = model.audio_tokens(*model.encode(waveform, mask))
    found = generate(model, z_a, valid, replace(model.config.decode, max_new_tokens=8))
    assert len(found) == 2
    assert all(hypotheses[0].score < 0 for hypotheses in found)


def test_the_paper_s_model_made_small(llm_folder):
    torch.manual_seed(0)
    train_and_caption(paper_model(llm_folder, "cpu", ced={"dim": 64, "heads": 1, "depth": 2}, vocab_size=320, **SMALL))


@pytest.mark.gpu
def test_llama_2_7b_on_one_gpu(llm_folder):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU with 40 GB")
    torch.manual_seed(0)
    torch.cuda.reset_peak_memory_stats()
    model = paper_model(llm_folder, "cuda", ced={"dim": 768, "heads": 12})  # LlamaConfig's defaults are LLaMA-2 7B
    assert sum(p.numel() for name, p in model.llm.named_parameters() if "lora_" not in name) == 6738415616
    assert model.llm.embedding_matrix.dtype == torch.bfloat16
    train_and_caption(model)
    assert torch.cuda.max_memory_allocated() < 40e9
