"""EfficientAT against the golden tensors of the published mn04, its checkpoints, padding, training, its own heads."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lamb.model.encoders import efficientat
from lamb.model.encoders.base import Encoder
from lamb.model.encoders.efficientat import EfficientAT, channels, mean

TEACHER = Path(__file__).parents[4] / "shared" / "teacher"
WEIGHTS = TEACHER / "efficientat_mn04_as.safetensors"
needs_teacher = pytest.mark.skipif(not WEIGHTS.exists(), reason=f"the published mn04 is not at {TEACHER}")
OURS = {"sample_rate": 16000, "window": (512, 2048), "mels": 64, "f_max": 8000, "strides": (2, 2, 2, 2, 1), "dim": 64}


def batch(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise clips of several levels in one batch; the padding is noise as well, as it must not matter."""
    waveform = torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(0))
    waveform *= torch.logspace(-2, 0, len(lengths))[:, None]
    return waveform, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@pytest.fixture(params=["published", "ours"])
def encoder(request) -> EfficientAT:
    """A small network whose BatchNorms shift: zeros beyond a clip's end would not stay zero by themselves."""
    torch.manual_seed(0)
    options = {"outputs": 5} if request.param == "published" else OURS | {"relative": True, "labels": ("a", "b", "c")}
    encoder = EfficientAT(width=0.1, **options).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias)
            torch.nn.init.normal_(module.running_mean)
    return encoder


# --- parity


@needs_teacher
def test_parity():
    golden, encoder = load_file(TEACHER / "golden.safetensors"), EfficientAT.from_pretrained(WEIGHTS).eval()
    waveform = golden["waveform"]
    with torch.no_grad():
        log_mel, valid = encoder.log_mel(waveform, torch.ones_like(waveform, dtype=torch.bool))
        feature_map, present = encoder.encode(log_mel, valid)
        tokens, _ = encoder(waveform, torch.ones_like(waveform, dtype=torch.bool))
        embedding = mean(feature_map, present[:, None, None])
        logits = encoder.classify(embedding)
    torch.testing.assert_close(log_mel[:, 0], golden["mel"], atol=1e-4, rtol=0)
    torch.testing.assert_close(feature_map, golden["feature_map"], atol=1e-4, rtol=0)
    torch.testing.assert_close(embedding, golden["embedding"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, golden["logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens, golden["feature_map"].mean(2).transpose(1, 2), atol=1e-4, rtol=0)
    assert (encoder.sample_rate, encoder.frame_rate) == (32000, 3.125)


@pytest.mark.parametrize(
    ("count", "rounded"), [(4, 8), (8, 8), (6.4, 8), (16, 16), (11, 16), (12, 16), (19, 24), (44.8, 48), (268.8, 272)]
)
def test_channels_are_multiples_of_8(count, rounded):
    assert channels(count) == rounded


# --- what a clip's tokens depend on


def test_alone_and_in_a_padded_batch(encoder):
    lengths = (1, 3, 160, 9999, 32000, 32001, 48001)
    waveform, mask = batch(*lengths)
    tokens, valid = encoder(waveform, mask)
    assert not tokens[~valid].any() or encoder.relative  # the LayerNorm's own bias is all there is
    for row, row_valid, clip, length in zip(tokens, valid, waveform, lengths, strict=True):
        alone, all_valid = encoder(clip[None, :length], mask.new_ones(1, length))
        assert alone.shape[1] == all_valid.sum() == row_valid.sum()
        torch.testing.assert_close(row[row_valid], alone[0], atol=1e-4, rtol=1e-4)


def test_the_order_in_a_batch_does_not_matter(encoder):
    waveform, mask = batch(20000, 40000, 30000)
    order = torch.tensor([2, 0, 1])
    tokens, valid = encoder(waveform, mask)
    moved, moved_valid = encoder(waveform[order], mask[order])
    assert torch.equal(valid[order], moved_valid)
    torch.testing.assert_close(tokens[order][moved_valid], moved[moved_valid], atol=1e-4, rtol=1e-4)


def test_tokens_cover_the_clip_at_the_frame_rate(encoder):
    assert isinstance(encoder, Encoder)
    seconds = 6
    waveform, mask = batch(seconds * encoder.sample_rate)
    tokens, valid = encoder(waveform, mask)
    assert tokens.shape == (1, valid.shape[1], encoder.dim)
    assert valid.sum() - 1 <= seconds * encoder.frame_rate <= valid.sum()


def test_a_click_shows_at_its_time(encoder):
    waveform = torch.zeros(1, 64000)
    waveform[:, 32000] = 1
    log_mel, _ = encoder.log_mel(waveform, torch.ones_like(waveform, dtype=torch.bool))
    for channel in log_mel[0]:
        peak = channel.mean(0).argmax()
        assert abs(int(peak) - 32000 // encoder.hop) <= max(encoder.windows) / encoder.hop / 2


def test_the_level_does_not_matter_where_relative():
    encoder = EfficientAT(width=0.1, relative=True, **OURS).eval()
    waveform, mask = batch(16000, 30000)
    torch.testing.assert_close(encoder(waveform, mask)[0], encoder(waveform * 0.1, mask)[0], atol=1e-4, rtol=1e-4)


# --- checkpoints


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("width", [0.4, 0.5, 1.0, 2.0])
def test_official_checkpoints_of_every_width(tmp_path, width, suffix):
    torch.manual_seed(0)
    original = EfficientAT(width=width, outputs=7)
    assert original.dim == {0.4: 384, 0.5: 480, 1.0: 960, 2.0: 1920}[width]
    file, state = tmp_path / f"mn{suffix}", {k: v.contiguous() for k, v in original.state_dict().items()}
    torch.save(state, file) if suffix == ".pt" else save_file(state, file)
    loaded = EfficientAT.from_pretrained(file)
    assert loaded.options == original.options
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[key])


def test_a_folder_of_lamb_train(tmp_path, encoder):
    encoder.save(tmp_path)
    loaded = EfficientAT.from_pretrained(tmp_path).eval()
    assert loaded.options == encoder.options
    waveform, mask = batch(20000, 40000)
    assert torch.equal(loaded(waveform, mask)[0], encoder(waveform, mask)[0])


def test_a_save_that_breaks_off_leaves_what_was_there(tmp_path, encoder, monkeypatch):
    encoder.save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def broken(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError("no more")

    monkeypatch.setattr(efficientat, "save_file", broken)
    with pytest.raises(OSError, match="no more"):
        encoder.save(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_strict(tmp_path):
    state = {k: v.contiguous() for k, v in EfficientAT(width=0.4, outputs=7).state_dict().items()}
    file = tmp_path / "model.safetensors"
    save_file({k: v for k, v in state.items() if k != "features.3.block.1.0.weight"}, file)
    with pytest.raises(ValueError, match=r"missing keys: features\.3\.block\.1\.0\.weight"):
        EfficientAT.from_pretrained(file)
    save_file(state | {"other": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="unexpected: other"):
        EfficientAT.from_pretrained(file)
    save_file(state | {"features.3.block.1.0.weight": torch.zeros(8, 1, 3, 3)}, file)
    with pytest.raises(ValueError, match="size mismatch"):
        EfficientAT.from_pretrained(file)
    save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="is not a checkpoint of EfficientAT"):
        EfficientAT.from_pretrained(file)
    (tmp_path / "config.json").write_text('{"widths": [1]}')
    with pytest.raises(ValueError, match=r"config\.json: does not describe an EfficientAT encoder"):
        EfficientAT.from_pretrained(tmp_path)


class Code:
    def __reduce__(self):
        return print, ("ran",)


def test_a_pickle_runs_no_code(tmp_path, capsys):
    torch.save({"features.0.0.weight": Code()}, tmp_path / "mn.pt")
    with pytest.raises(ValueError, match="could run code"):
        EfficientAT.from_pretrained(tmp_path / "mn.pt")
    assert "ran" not in capsys.readouterr().out


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no EfficientAT"):
        EfficientAT.from_pretrained(tmp_path / "mn10.pt")


def test_from_the_hub(tmp_path, monkeypatch):
    original = EfficientAT(width=0.4, outputs=7)
    torch.save(original.state_dict(), tmp_path / "mn.pt")
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args: asked.append(args) or tmp_path / "mn.pt")
    EfficientAT.from_pretrained("owner/name/mn.pt")
    EfficientAT.from_pretrained("owner/name")
    assert asked == [("owner/name", "mn.pt"), ("owner/name", "model.safetensors")]


def test_from_the_publishers_address(tmp_path, monkeypatch):
    address = "https://example.org/releases/mn.pt?raw=true"
    state, fetched = EfficientAT(width=0.4, outputs=7).state_dict(), []

    def download(address, file, progress):
        fetched.append(address)
        torch.save(state, file)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert torch.equal(EfficientAT.from_pretrained(address).classifier["5"].bias, state["classifier.5.bias"])
    assert fetched == [address]
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(ConnectionError, match=r"other\.pt could not be fetched"):
        EfficientAT.from_pretrained("https://example.org/other.pt")


@pytest.mark.parametrize("options", [{"window": ()}, {"strides": (2, 2)}])
def test_impossible_options(options):
    with pytest.raises(ValueError, match="one window at least and five strides"):
        EfficientAT(width=0.1, **options)


# --- training and heads


@pytest.mark.parametrize("bfloat16", [False, True])
def test_all_of_it_trains(bfloat16):
    torch.manual_seed(0)
    encoder = EfficientAT(width=0.1, relative=True, **OURS).train()
    waveform, mask = batch(20000, 40000)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        tokens, valid = encoder(waveform, mask)
    tokens[valid].square()[:, ::2].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert all(p.grad.any() for name, p in encoder.named_parameters() if name.endswith("0.weight"))


def test_tags():
    torch.manual_seed(0)
    encoder = EfficientAT(width=0.1, relative=True, labels=("a", "b", "c"), **OURS).eval()
    waveform, mask = batch(20000, 40000)
    tokens, valid = encoder(waveform, mask)
    padded = torch.nn.functional.pad(tokens, (0, 0, 0, 3), value=9.0)
    tags = encoder.tag(tokens, valid)
    assert tags.shape == (2, 3)
    torch.testing.assert_close(tags.sum(1), torch.ones(2))
    torch.testing.assert_close(tags, encoder.tag(padded, torch.nn.functional.pad(valid, (0, 3))))
    frames = encoder.tag_frames(tokens)
    assert frames.shape == (2, tokens.shape[1], 4)
    assert encoder.frame_head is encoder.heads["frame"]
    assert EfficientAT(width=0.1, **OURS).frame_head is None
