"""CED against the golden tensors of the reference implementation, its checkpoints, batches, long clips and LoRA."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lamb.model.encoders.base import Encoder
from lamb.model.encoders.ced import CED

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"
WEIGHTS = GOLDEN / "ced_random_weights.safetensors"
needs_golden = pytest.mark.skipif(not WEIGHTS.exists(), reason=f"the golden files are not at {GOLDEN}")
NAMES = ("short", "five", "ten", "full", "odd")
FULL = 1012 * 160 - 160  # samples of 1012 frames


@pytest.fixture
def ced() -> CED:
    """A small CED with random weights and the statistics of real log mels."""
    torch.manual_seed(0)
    model = CED(dim=64, heads=1, depth=2).eval()
    model.init_bn.running_mean.fill_(-40)
    model.init_bn.running_var.fill_(300)
    for position in (model.time_pos_embed, model.freq_pos_embed):  # as large as the patches: an error would show
        torch.nn.init.normal_(position)
    return model


def batch(*lengths: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise clips of different levels in one batch; the padding is noise as well, as it must not matter."""
    generator = torch.Generator().manual_seed(seed)
    waveform = torch.randn(len(lengths), max(lengths), generator=generator)
    waveform *= torch.logspace(-3, 0, len(lengths))[:, None]
    return waveform, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def alone(model: CED, waveform: torch.Tensor, mask: torch.Tensor, i: int) -> torch.Tensor:
    clip = waveform[i : i + 1, : int(mask[i].sum())]
    return model(clip, torch.ones_like(clip, dtype=torch.bool))[0][0]


def official(model: CED) -> dict[str, torch.Tensor]:
    """The state dict with the keys of `mispeech/ced-*`."""
    state = model.state_dict().items()
    return {key if key.startswith("outputlayer") else f"encoder.{key}": value for key, value in state}


# --- parity


@needs_golden
@pytest.mark.parametrize("name", NAMES)
def test_parity(name, monkeypatch):
    golden, model = load_file(GOLDEN / "ced_expected.safetensors"), CED.from_pretrained(WEIGHTS).eval()
    waveform = golden[f"{name}.waveform"][None]
    mask = torch.ones_like(waveform, dtype=torch.bool)

    expected = golden[f"{name}.log_mel"]
    error = (model.log_mel(waveform, mask.sum(1))[0] - expected).abs()
    # far below the peak of a frame the FFT's own rounding shows, which differs from CPU to CPU (see the next test)
    assert error[expected > expected.amax(0) - 60].max() < 1e-3
    assert error.max() < 0.05
    torch.testing.assert_close(
        model.encode(waveform, mask)[0][0].flatten(0, 1), golden[f"{name}.tokens"], atol=1e-3, rtol=0
    )

    monkeypatch.setattr(model, "log_mel", lambda waveform, lengths: expected[None])
    tokens = model.encode(waveform, mask)[0][0].flatten(0, 1)
    torch.testing.assert_close(tokens, golden[f"{name}.tokens"], atol=1e-5, rtol=0)


PARITY = """
import json, sys, torch
from safetensors.torch import load_file
from lamb.model.encoders.ced import CED
golden, model = load_file(sys.argv[2]), CED.from_pretrained(sys.argv[1]).eval()
worst = {}
for name in sys.argv[3:]:
    waveform = golden[name + ".waveform"][None]
    mask = torch.ones_like(waveform, dtype=torch.bool)
    ours = {
        "log_mel": model.log_mel(waveform, mask.sum(1))[0],
        "tokens": model.encode(waveform, mask)[0][0].flatten(0, 1),
    }
    for key, value in ours.items():
        worst[key] = max(worst.get(key, 0), float((value - golden[name + "." + key]).abs().max()))
print(json.dumps(worst))
"""


@needs_golden
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="the golden files were made with MKL's FFT")
def test_parity_with_the_same_fft():
    """Waveform to tokens with the instructions that the reference ran on (MKL's SSE 4.2): the bar of issue 2."""
    paths = [str(WEIGHTS), str(GOLDEN / "ced_expected.safetensors")]
    environment = os.environ | {"MKL_CBWR": "SSE4_2", "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", PARITY, *paths, *NAMES]
    worst = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert worst["log_mel"] < 1e-3  # dB
    assert worst["tokens"] < 1e-4


@pytest.mark.parametrize(
    ("dim", "heads", "count"), [(192, 3, 5_503_183), (256, 4, 9_696_655), (384, 6, 21_622_543), (768, 12, 85_711_759)]
)
def test_sizes(dim, heads, count):
    with torch.device("meta"):
        model = CED(dim, heads)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


# --- the contract


def test_contract(ced):
    assert isinstance(ced, Encoder)
    assert (ced.sample_rate, ced.frame_rate, ced.dim) == (16000, 6.25, 64)
    # 0.1 s: 11 frames, less than a patch; 501 frames; an exactly full chunk; one frame into the next chunk;
    # 1012 + 16 frames; 20 s
    lengths = (1600, 80000, FULL, FULL + 160, FULL + 16 * 160, 320000)
    tokens, mask = ced(*batch(*lengths))
    assert tokens.shape == (6, 63 + 61, 64)
    assert mask.sum(1).tolist() == [1, 31, 63, 63, 64, 63 + 61]
    assert mask.dtype == torch.bool
    assert not tokens[~mask].any()
    assert tokens.isfinite().all()


def test_rows_are_frequency_major(ced):
    waveform, mask = batch(32000)
    rows, _ = ced.encode(waveform, mask)
    assert rows.shape == (1, 4, 12, 64)
    torch.testing.assert_close(rows.mean(1), ced(waveform, mask)[0])


def test_alone_as_in_a_batch(ced):
    waveform, mask = batch(1600, 54321, FULL, 200001, 33333, 400000)
    tokens, present = ced(waveform, mask)
    for i in range(len(waveform)):
        torch.testing.assert_close(alone(ced, waveform, mask, i), tokens[i, present[i]], atol=1e-5, rtol=0)


def test_log_mel_is_of_the_clip_only(ced):
    waveform, mask = batch(1600, 5000, 54321)
    lengths = mask.sum(1)
    padded = ced.log_mel(waveform, lengths)
    for i, length in enumerate(lengths.tolist()):
        single = ced.log_mel(waveform[i : i + 1, :length], lengths[i : i + 1])
        assert single.shape == (1, 64, length // 160 + 1)
        torch.testing.assert_close(padded[i, :, : single.shape[2]], single[0], atol=1e-4, rtol=0)


def test_top_db_is_of_the_clip_only(ced):
    """Clicks in silence: the silence lies 120 dB below the click if that is above the floor of -100 dB."""
    waveform = torch.zeros(2, 16000)
    waveform[:, 8000] = torch.tensor([0.01, 100.0])
    quiet, loud = ced.log_mel(waveform, torch.tensor([16000, 16000]))
    assert quiet.min() == -100
    assert loud.min() == loud.max() - 120 > -100


def test_permuting_the_batch_permutes_the_result(ced):
    waveform, mask = batch(20000, 320000, 54321)
    order = torch.tensor([2, 0, 1])
    tokens, present = ced(waveform, mask)
    permuted, permuted_present = ced(waveform[order], mask[order])
    torch.testing.assert_close(permuted, tokens[order], atol=1e-5, rtol=0)
    assert torch.equal(permuted_present, present[order])


def test_chunks_of_a_long_clip(ced):
    """Two full chunks: the last one is kept, and each is what the transformer makes of it by itself."""
    waveform, mask = batch(2 * 1012 * 160 - 160)
    tokens, present = ced.encode(waveform, mask)
    assert tokens.shape[2] == 2 * 63
    assert present.all()
    mel = ced.init_bn(ced.log_mel(waveform, mask.sum(1)))
    for chunk in range(2):
        by_itself = ced._transform(mel[..., chunk * 1012 : (chunk + 1) * 1012], torch.tensor([63]))
        torch.testing.assert_close(tokens[:, :, chunk * 63 : (chunk + 1) * 63], by_itself, atol=1e-5, rtol=0)


def test_bfloat16_and_autocast_leave_the_front_end_in_float32(ced):
    waveform, mask = batch(16000)
    expected = ced.log_mel(waveform, mask.sum(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ced.log_mel(waveform, mask.sum(1)), expected)
    ced.bfloat16()
    torch.testing.assert_close(ced.log_mel(waveform, mask.sum(1)), expected)
    assert ced(waveform, mask)[0].dtype == torch.bfloat16


# --- checkpoints


def test_official_checkpoints(ced, tmp_path):
    save_file(official(ced), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    save_file(ced.state_dict(), tmp_path / "ours.safetensors")

    original = {key.replace("init_bn.", "init_bn.1."): value for key, value in ced.state_dict().items()}
    original |= {"front_end.0.spectrogram.window": torch.ones(512), "front_end.0.mel_scale.fb": torch.ones(257, 64)}
    torch.save(original, tmp_path / "plain.pt")
    torch.save({"model": original}, tmp_path / "nested.pt")

    for source in (
        tmp_path,
        str(tmp_path),
        *(tmp_path / name for name in ("ours.safetensors", "plain.pt", "nested.pt")),
    ):
        loaded = CED.from_pretrained(source)
        assert loaded.state_dict().keys() == ced.state_dict().keys()
        assert all(torch.equal(value, ced.state_dict()[key]) for key, value in loaded.state_dict().items())
        assert loaded.target_length == 1012


def test_the_architecture_is_that_of_the_tensors(tmp_path):
    model = CED(dim=128, heads=2, depth=1, mlp_ratio=2, outputs=10, target_length=160)
    save_file(official(model), tmp_path / "x.safetensors")
    loaded = CED.from_pretrained(tmp_path / "x.safetensors")
    assert (loaded.dim, loaded.target_length, len(loaded.blocks)) == (128, 160, 1)
    assert loaded.blocks[0].attn.heads == 2


def test_keys_are_strict(ced, tmp_path):
    file = tmp_path / "x.safetensors"
    state = official(ced)
    missing = {key: value for key, value in state.items() if key != "encoder.norm.bias"}
    save_file(missing, file)
    with pytest.raises(ValueError, match=r"x\.safetensors.*missing keys: norm\.bias; unexpected: none"):
        CED.from_pretrained(file)
    save_file(state | {"encoder.extra": torch.ones(1)}, file)
    with pytest.raises(ValueError, match=r"missing keys: none; unexpected: extra"):
        CED.from_pretrained(file)
    save_file(state | {"encoder.norm.bias": torch.ones(7)}, file)
    with pytest.raises(ValueError, match=r"(?s)x\.safetensors.*norm\.bias"):
        CED.from_pretrained(file)


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("lamb_was_here"),))


def test_files_that_are_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"model": Malicious()}, protocol=2))
    torch.save({"model": Malicious()}, "code2.pt")
    for name in ("code.pt", "code2.pt"):
        with pytest.raises(ValueError, match=rf"{name} was not loaded.*could run code"):
            CED.from_pretrained(tmp_path / name)
    assert not Path("lamb_was_here").exists()

    save_file({"wte.weight": torch.ones(2)}, "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors is not a CED checkpoint.*wte\.weight"):
        CED.from_pretrained("other.safetensors")
    torch.save([torch.ones(1)], "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt is not a CED checkpoint"):
        CED.from_pretrained("list.pt")
    for name in ("broken.safetensors", "broken.pt", "empty.safetensors", "empty.pt"):
        Path(name).write_bytes(b"" if "empty" in name else b"no tensors here")
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            CED.from_pretrained(name)


def test_no_such_file(tmp_path):
    for source in (tmp_path, tmp_path / "missing.pt", str(tmp_path / "missing"), "missing.safetensors"):
        with pytest.raises(FileNotFoundError, match="no CED checkpoint at"):
            CED.from_pretrained(source)


def test_hub_that_cannot_be_reached(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"mispeech/ced-base could not be fetched.*local folder"):
        CED.from_pretrained("mispeech/ced-base")


# --- training


def test_batch_norm_keeps_its_statistics(ced):
    before = ced.init_bn.running_mean.clone()
    ced.train()
    assert ced.training
    assert not ced.init_bn.training
    waveform, mask = batch(16000)
    trained = ced(waveform, mask)[0]
    assert torch.equal(ced.init_bn.running_mean, before)
    torch.testing.assert_close(trained, ced.eval()(waveform, mask)[0])
    assert not CED(64, 1, depth=1).init_bn.training


def test_lora(ced):
    waveform, mask = batch(16000, 30000)
    base = set(ced.state_dict())
    before = ced(waveform, mask)[0]
    ced.add_lora(rank=8, alpha=32, dropout=0.1)
    torch.testing.assert_close(ced(waveform, mask)[0], before)  # starts without an effect
    assert {key for key in ced.state_dict() if key not in base} == {
        f"blocks.{i}.attn.lora.{name}.{part}.weight" for i in range(2) for name in "qv" for part in ("down", "up")
    }

    with torch.no_grad():
        for key, parameter in ced.named_parameters():
            if ".lora." in key:
                parameter.normal_(std=0.1)
    ced(waveform, mask)[0].square().sum().backward()
    for key, parameter in ced.named_parameters():
        assert parameter.requires_grad == (".lora." in key), key
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (".lora." in key), key

    after = ced(waveform, mask)[0]
    assert (after - before).abs().max() > 1e-2
    ced.train()
    assert not torch.allclose(ced(waveform, mask)[0], after)  # dropout
    ced.eval()
    keys = [block.attn.qkv.weight.chunk(3)[1].clone() for block in ced.blocks]
    ced.merge_lora()
    assert set(ced.state_dict()) == base
    torch.testing.assert_close(ced(waveform, mask)[0], after, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(k, block.attn.qkv.weight.chunk(3)[1]) for k, block in zip(keys, ced.blocks, strict=True))


def test_spec_augment_is_for_training_only(ced):
    waveform, mask = batch(16000, 9000)
    plain, _ = ced.eval()(waveform, mask)
    ced.spec_augment = True
    torch.testing.assert_close(ced(waveform, mask)[0], plain)
    ced.train()
    torch.manual_seed(0)
    hidden, present = ced(waveform, mask)
    assert not torch.allclose(hidden[present], plain[present], atol=1e-3)
    torch.manual_seed(0)
    torch.testing.assert_close(ced(waveform, mask)[0], hidden)
