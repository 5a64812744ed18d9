"""The convolutional encoder: padding, level, its mel filters, the number of tokens, loading."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from lamb.model.encoders.base import Encoder
from lamb.model.encoders.conv import ConvEncoder, mel_matrix


@pytest.fixture
def encoder() -> ConvEncoder:
    """Two small branches whose BatchNorms shift: zeros beyond a clip's end would not stay zero by themselves."""
    torch.manual_seed(0)
    encoder = ConvEncoder(widths=(4, 8, 16, 32), mels=32, n_fft=(512, 1024)).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias)
            torch.nn.init.normal_(module.running_mean)
    return encoder


def batch(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of several levels, the padding as well: it must not matter."""
    waveform = torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(0))
    waveform *= torch.logspace(-2, 0, len(lengths))[:, None]
    return waveform, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def test_alone_and_in_a_padded_batch(encoder):
    lengths = (1, 1600, 9999, 16000, 48001)
    waveform, mask = batch(*lengths)
    tokens, valid = encoder(waveform, mask)
    for row, row_valid, clip, length in zip(tokens, valid, waveform, lengths, strict=True):
        alone, all_valid = encoder(clip[None, :length], mask.new_ones(1, length))
        assert all_valid.all()
        torch.testing.assert_close(row[row_valid], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("widths", [(4,), (4, 6), (4, 6, 8), (4, 6, 8, 10), (4, 6, 8, 10, 12)])
def test_tokens_cover_the_clip_at_the_frame_rate(widths):
    encoder = ConvEncoder(widths=widths, mels=32, n_fft=512).eval()
    assert isinstance(encoder, Encoder)
    waveform, mask = batch(160000)
    tokens, valid = encoder(waveform, mask)
    assert tokens.shape == (1, valid.shape[1], encoder.dim)
    assert valid.sum() - 1 <= 10 * encoder.frame_rate <= valid.sum()


def test_the_branches_are_averaged(encoder):
    waveform, mask = batch(20000, 32000)
    (first, valid), (second, _) = (branch(waveform, mask) for branch in encoder.branches)
    assert not torch.allclose(first, second, atol=0.1)
    torch.testing.assert_close(encoder(waveform, mask)[0], (first + second) / 2)
    assert torch.equal(encoder(waveform, mask)[1], valid)


@pytest.mark.parametrize("widths", [(4, 8, 16, 32), (8, 16, 24)])
def test_gradients_without_avx512(widths):
    """oneDNN's float32 convolutions against PyTorch's own in float64, in a process that may die."""
    program = f"""
import torch
from lamb.model.encoders.conv import ConvEncoder

encoder = ConvEncoder({widths}, mels=32, n_fft=512).train()
for module in encoder.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        torch.nn.init.constant_(module.bias, 10)  # far from the kink of the ReLU, where rounding is not enough to tell
log_mel, valid = torch.randn(4, 51, 32), torch.ones(4, 51, dtype=torch.bool)
gradients = []
for dtype in (torch.float32, torch.float64):
    encoder.to(dtype).zero_grad()
    tokens, _ = encoder.branches[0].encode(log_mel.to(dtype), valid)
    (tokens * torch.linspace(-1, 1, tokens.numel()).view_as(tokens)).sum().backward()
    gradients.append([parameter.grad.double() for parameter in encoder.parameters()])
for found, expected in zip(*gradients, strict=True):
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_one_branch_at_least():
    with pytest.raises(ValueError, match="n_fft"):
        ConvEncoder(n_fft=())


def test_a_click_shows_at_its_time(encoder):
    waveform = torch.zeros(1, 64000)
    waveform[:, 32000] = 1
    for branch in encoder.branches:
        log_mel, _ = branch.log_mel(waveform, torch.ones_like(waveform, dtype=torch.bool))
        assert log_mel[0].mean(1).argmax() == 32000 // branch.hop


def test_the_level_does_not_matter(encoder):
    waveform, mask = batch(20000)
    torch.testing.assert_close(encoder(0.01 * waveform, mask)[0], encoder(waveform, mask)[0], atol=1e-4, rtol=1e-4)


def test_digital_silence_is_finite(encoder):
    assert encoder(torch.zeros(1, 8000), torch.ones(1, 8000, dtype=torch.bool))[0].isfinite().all()


def test_mel_filters_are_triangles_on_the_htk_scale():
    filters = mel_matrix(16000, 1024, 64)
    assert filters.shape == (513, 64)
    assert filters.min() == 0
    assert filters.max() <= 1
    assert (filters > 0).any(0).all()  # no filter between two bins
    hertz = torch.linspace(0, 8000, 513)[filters.argmax(0)]
    mel = 2595 * torch.log10(1 + hertz / 700)
    spacing = 2595 * torch.log10(torch.tensor(1 + 8000 / 700)) / 65
    torch.testing.assert_close(mel, spacing * torch.arange(1, 65), atol=15, rtol=0)  # a bin is 15.6 Hz
    inside = filters[(hertz.min() < torch.linspace(0, 8000, 513)) & (torch.linspace(0, 8000, 513) < hertz.max())]
    torch.testing.assert_close(inside.sum(1), torch.ones(len(inside)), atol=1e-5, rtol=0)  # neighbours add up to 1


def test_a_tone_lies_in_its_band(encoder):
    tone = torch.sin(2 * torch.pi * 1000 / 16000 * torch.arange(16000))[None]
    for branch in encoder.branches:
        log_mel, _ = branch.log_mel(tone, torch.ones_like(tone, dtype=torch.bool))
        band = int(branch.mel[round(1000 / 16000 * branch.n_fft)].argmax())
        assert (log_mel[0].argmax(1) == band).all()
        assert log_mel.max() == pytest.approx(2, abs=1e-5)  # the peak
        assert log_mel.min() >= -2


def test_loads_what_was_saved(encoder_folder):
    first, second = (ConvEncoder.from_pretrained(encoder_folder).eval() for _ in range(2))
    waveform, mask = batch(8000)
    assert torch.equal(first(waveform, mask)[0], second(waveform, mask)[0])


def test_only_a_complete_checkpoint_loads(encoder_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    def broken(name: str):
        folder = tmp_path / name
        shutil.copytree(encoder_folder, folder)
        return folder

    missing, extra, shape, garbage, options = map(broken, ("missing", "extra", "shape", "garbage", "options"))
    weights = load_file(encoder_folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "branches.0.norm.weight"}, missing / "model.safetensors")
    save_file({**weights, "more": torch.zeros(1)}, extra / "model.safetensors")
    save_file({**weights, "branches.0.norm.weight": torch.zeros(3)}, shape / "model.safetensors")
    (garbage / "model.safetensors").write_bytes(b"not safetensors")
    (options / "config.json").write_text(json.dumps({"width": 3}))
    for folder in (missing, extra, shape, garbage, options, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=str(folder)):
            ConvEncoder.from_pretrained(folder)
