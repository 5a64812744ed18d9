"""The wrapper around `transformers` encoders: tiny random models of every family, saved to and loaded from a folder."""

import json
import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"

import transformers as hf

from lamb.model.encoders.base import Encoder
from lamb.model.encoders.huggingface import FAMILIES, HuggingFaceEncoder

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
CONVOLUTIONS = {"conv_dim": (8, 8), "conv_kernel": (400, 2), "conv_stride": (160, 2), "num_feat_extract_layers": 2}
RAW = SMALL | CONVOLUTIONS | {"num_conv_pos_embeddings": 15, "num_conv_pos_embedding_groups": 4}


def raw(config, model, **options):
    return model(config(**RAW, **options)), hf.Wav2Vec2FeatureExtractor(do_normalize=True)


def ast():
    config = hf.ASTConfig(**SMALL, max_length=64, num_mel_bins=32)
    return hf.ASTModel(config), hf.ASTFeatureExtractor(max_length=64, num_mel_bins=32)


def clap(fusion=False):
    audio = {
        "spec_size": 64, "num_mel_bins": 16, "window_size": 2, "depths": [1, 1], "num_attention_heads": [1, 2],
        "num_hidden_layers": 2, "patch_embeds_hidden_size": 8, "hidden_size": 16, "enable_fusion": fusion,
        "aff_block_r": 2,
    }  # fmt: skip
    text = SMALL | {"vocab_size": 10, "max_position_embeddings": 8, "pad_token_id": 0}
    config = hf.ClapConfig(text_config=text, audio_config=audio, projection_dim=8)
    extractor = hf.ClapFeatureExtractor(
        feature_size=16, sampling_rate=16000, hop_length=160, max_length_s=1, frequency_max=8000,
        truncation="fusion" if fusion else "rand_trunc",
    )  # fmt: skip
    return hf.ClapModel(config), extractor


def whisper():
    config = hf.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=16, max_source_positions=50, max_target_positions=8,
        vocab_size=10, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return hf.WhisperModel(config), hf.WhisperFeatureExtractor(feature_size=16, chunk_length=1)


# name -> (model and extractor, samples of the window or None, tokens of the window)
CASES = {
    "audio-spectrogram-transformer": (ast, 64 * 160, 5),
    "clap": (clap, 16000, 32),
    "clap, fused": (lambda: clap(fusion=True), 16000, 32),
    "whisper": (whisper, 16000, 50),
    "data2vec-audio": (lambda: raw(hf.Data2VecAudioConfig, hf.Data2VecAudioModel, conv_pos_kernel_size=5), None, 49),
    "hubert": (lambda: raw(hf.HubertConfig, hf.HubertModel), None, 49),
    "unispeech-sat": (lambda: raw(hf.UniSpeechSatConfig, hf.UniSpeechSatModel), None, 49),
    "wav2vec2": (lambda: raw(hf.Wav2Vec2Config, hf.Wav2Vec2Model), None, 49),
    "wavlm": (lambda: raw(hf.WavLMConfig, hf.WavLMModel), None, 49),
}


def save(name, folder):
    torch.manual_seed(0)
    model, extractor = CASES[name][0]()
    model.half().save_pretrained(folder)  # the wrapper has to ask for float32
    extractor.save_pretrained(folder)
    return model.float().eval(), extractor


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    save(request.param, tmp_path)
    return HuggingFaceEncoder.from_pretrained(tmp_path), *CASES[request.param][1:]


def batch(*lengths):
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(len(lengths), max(lengths), generator=generator)
    return waveform, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def test_every_family_is_tested():
    assert {name.split(",")[0] for name in CASES} == set(FAMILIES)


def test_encoder(case):
    encoder, window, per_window = case
    assert isinstance(encoder, Encoder)
    assert (encoder.sample_rate, encoder.dim) == (16000, 16)
    weights = dict(encoder.encoder.named_parameters())
    assert all(weight.dtype == torch.float32 and not weight.requires_grad for weight in weights.values())
    assert not encoder.train().encoder.training

    # 0.1 s, an odd length, the window, little more than it (a rest too short for a frame), and several of them
    length = window or 16000
    lengths = [1600, length // 2 + 1, length, length + 10, 3 * length + length // 3]
    waveform, mask = batch(*lengths)
    waveform[~mask] = 9  # what lies in the padding must not matter
    tokens, present = encoder(waveform, mask)
    counts = present.sum(1).tolist()
    assert tokens.shape == (5, max(counts), 16)
    assert present.dtype == torch.bool
    assert tokens.isfinite().all()
    assert not tokens[~present].any()
    if window:
        assert counts == [-(-n * per_window // window) for n in lengths]
        assert encoder.frame_rate == pytest.approx(per_window / window * 16000)
    else:
        assert counts[2] == per_window
        assert encoder.frame_rate == 50

    for i, n in enumerate(lengths):  # alone as in the batch
        alone, there = encoder(waveform[i : i + 1, :n], torch.ones(1, n, dtype=torch.bool))
        assert there.all()
        torch.testing.assert_close(alone[0], tokens[i, present[i]], atol=1e-5, rtol=0)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(encoder(waveform[order], mask[order])[0], tokens[order], atol=1e-5, rtol=0)
    if window:  # a long clip is its pieces, one after the other
        pieces = waveform[4, : 3 * window].view(3, window)
        expected, _ = encoder(pieces, torch.ones_like(pieces, dtype=torch.bool))
        torch.testing.assert_close(tokens[4, : 3 * per_window], expected.flatten(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["clap", "clap, fused"])
def test_clap_is_in_time_order(name, tmp_path):
    """CLAP folds time into an image: a burst in noise moves the token of its own time the most."""
    save(name, tmp_path)
    encoder = HuggingFaceEncoder.from_pretrained(tmp_path)
    quiet = 0.01 * batch(16000)[0]
    mask = torch.ones_like(quiet, dtype=torch.bool)
    before, _ = encoder(quiet, mask)
    for i in range(8):
        burst = quiet.clone()
        burst[0, i * 2000 : i * 2000 + 1000] *= 30
        change = (encoder(burst, mask)[0] - before)[0].norm(dim=1)  # (32,)
        assert int(change.argmax()) * 500 + 250 == pytest.approx(i * 2000 + 500, abs=1000)


def test_weights_are_those_of_the_folder(tmp_path):
    """Against the model itself, called by hand: class tokens dropped, the mean over frequency."""
    model, extractor = save("audio-spectrogram-transformer", tmp_path)
    waveform, mask = batch(64 * 160)
    features = extractor(waveform[0].numpy(), sampling_rate=16000, return_tensors="pt")
    hidden = model(**features).last_hidden_state  # (1, 2 + 2 * 5, 16)
    expected = (hidden[0, 2:7] + hidden[0, 7:]) / 2
    tokens, _ = HuggingFaceEncoder.from_pretrained(tmp_path)(waveform, mask)
    torch.testing.assert_close(tokens[0], expected, atol=1e-3, rtol=0)


def test_another_kind_of_model(tmp_path):
    hf.LlamaConfig(**SMALL, vocab_size=10).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'llama', not an audio encoder.*whisper"):
        HuggingFaceEncoder.from_pretrained(tmp_path)
    hf.Wav2Vec2Config(**RAW, add_adapter=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'wav2vec2 with an adapter'"):
        HuggingFaceEncoder.from_pretrained(tmp_path)


def test_missing_weights(tmp_path):
    save("whisper", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"encoder_layers": 2}))
    with pytest.raises(ValueError, match=r"no weights for encoder\.layers\.1"):
        HuggingFaceEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(tmp_path, monkeypatch, file):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # the question whether to run it
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    save("wav2vec2", tmp_path)
    (tmp_path / "foreign.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Foreign:\n    pass\n")
    content = json.loads((tmp_path / file).read_text())
    kind = "AutoConfig" if file == "config.json" else "AutoFeatureExtractor"
    content |= {"auto_map": {kind: "foreign.Foreign"}, "model_type": "foreign", "feature_extractor_type": "Foreign"}
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises((OSError, ValueError)):
        HuggingFaceEncoder.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_weights_in_a_pickle_are_not_read(tmp_path):
    model, _ = save("wav2vec2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"could not be loaded: .*no file named model\.safetensors"):
        HuggingFaceEncoder.from_pretrained(tmp_path)


def test_missing_folder_or_files(tmp_path):
    for source in (tmp_path / "nothing", str(tmp_path / "nothing"), "some/where/else"):
        with pytest.raises(FileNotFoundError, match="no model folder"):
            HuggingFaceEncoder.from_pretrained(source)
    with pytest.raises((OSError, ValueError), match=str(tmp_path)):
        HuggingFaceEncoder.from_pretrained(tmp_path)
    save("whisper", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(OSError, match=r"could not be loaded.*(?s:.)*preprocessor_config\.json"):
        HuggingFaceEncoder.from_pretrained(tmp_path)


def test_hub_that_cannot_be_reached():
    with pytest.raises(OSError, match=r"openai/whisper-x could not be loaded(?s:.)*local folder"):
        HuggingFaceEncoder.from_pretrained("openai/whisper-x")
