"""Before the adapter: channel dropout, class prototypes, positional encoding; where they are plugged in."""

import pytest
import torch
from safetensors.torch import load_file

from lamb.config import ChannelDropoutConfig, ConfigError
from lamb.extensions import load
from lamb.extensions.channel_dropout import ChannelDropout
from lamb.extensions.class_prototypes import ClassPrototypes
from lamb.extensions.positional_encoding import PositionalEncoding, sinusoids
from lamb.model.checkpoint import save

MASK = torch.arange(12) < torch.tensor([9, 1, 4, 12])[:, None]


def test_channel_dropout_takes_channels_of_a_clip():
    dropout, h_a, mask = ChannelDropout(ChannelDropoutConfig(0.5)), torch.ones(8, 5, 32), torch.ones(8, 5)
    assert torch.equal(dropout.eval()(h_a, mask), h_a)
    dropped = dropout.train()(h_a, mask)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}  # the channels that stay make up for the others
    assert torch.equal(dropped, dropped[:, :1].expand_as(h_a))  # the same ones for all tokens of a clip
    assert len({tuple(clip[0].tolist()) for clip in dropped}) == 8


def test_tokens_are_shifted_towards_prototypes():
    torch.manual_seed(0)
    head, h_a = torch.nn.Linear(16, 3), torch.randn(2, 5, 16)
    for sure, label in ((0.0, None), (1e4, 1)):
        head.bias.data = torch.tensor([0.0, sure, 0.0])
        share = head(h_a).softmax(-1) if label is None else torch.eye(3)[label]
        towards = share @ (head.weight / head.weight.norm(dim=1, keepdim=True))
        torch.testing.assert_close(ClassPrototypes(head)(h_a, torch.ones(2, 5)), h_a + 4 * towards)


def test_the_prototypes_are_those_of_the_encoder(make_model, tmp_path):
    options = {"width": 0.1, "dim": 32, "relative": True, "labels": ("dog", "rain")}
    encoder = {"name": "efficientat", "options": options, "source": None}
    model = make_model(encoder=encoder, extensions={"class_prototypes": {"enabled": True}})
    assert model.extensions["class_prototypes"].head is model.encoder.frame_head
    assert not model.encoder.frame_head.weight.requires_grad  # it is frozen with the encoder
    file = save(model, tmp_path / "model", card={}) / "model.safetensors"
    assert not [name for name in load_file(file) if name.startswith("extensions")]  # held once
    again = load(tmp_path / "model")
    assert again.extensions["class_prototypes"].head is again.encoder.frame_head
    assert torch.equal(again.encoder.frame_head.weight, model.encoder.frame_head.weight)


def test_an_encoder_without_heads_has_no_prototypes(make_model):
    with pytest.raises(ConfigError, match=r"extensions\.class_prototypes: the encoder has no label heads"):
        make_model(extensions={"class_prototypes": {"enabled": True}})


def test_positions_in_time():
    encoding = sinusoids(MASK, 18)
    assert encoding.shape == (4, 12, 18)
    alone = sinusoids(torch.ones(1, 4, dtype=torch.bool), 18)
    torch.testing.assert_close(encoding[2:3, :4], alone)  # a clip's own length counts, not the batch's
    whole = encoding[3]
    assert torch.cdist(whole, whole).fill_diagonal_(1).min() > 0.1  # no two positions are alike
    # the slowest sinusoid of the first half: half a period over the clip
    torch.testing.assert_close(whole[:, 0], ((torch.arange(12) + 0.5) / 12 * torch.pi).sin())
    torch.testing.assert_close(whole[:, 4], ((torch.arange(12) + 0.5) / 12 * torch.pi).cos())
    h_a = torch.randn(4, 12, 18)
    assert torch.equal(PositionalEncoding()(h_a, MASK), h_a + encoding)


def test_a_model_has_those_that_are_switched_on(make_model):
    assert not make_model().extensions
    on = {"positional_encoding": {"enabled": True}, "channel_dropout": {"rate": 0.5}}
    model = make_model(extensions=on).eval()
    assert list(model.extensions) == ["channel_dropout", "positional_encoding"]
    seen = []
    model.adapter.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    h_a = torch.randn(4, 12, 32)
    model.audio_tokens(h_a, MASK)
    assert torch.equal(seen[0], h_a + sinusoids(MASK, 32))
