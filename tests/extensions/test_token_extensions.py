"""Before the adapter: channel dropout, class prototypes, positional encoding; where they are plugged in."""

import pytest
import torch
from safetensors.torch import save_file

from lamb.config import ChannelDropoutConfig, ClassPrototypesConfig, ConfigError
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
    prototypes, h_a = ClassPrototypes(ClassPrototypesConfig(labels=3), 16), torch.randn(2, 5, 16)
    for sure, label in ((0.0, None), (1e4, 1)):
        prototypes.head.bias.data = torch.tensor([0.0, sure, 0.0])
        share = prototypes.head(h_a).softmax(-1) if label is None else torch.eye(3)[label]
        towards = share @ (prototypes.head.weight / prototypes.head.weight.norm(dim=1, keepdim=True))
        torch.testing.assert_close(prototypes(h_a, torch.ones(2, 5)), h_a + 4 * towards, atol=1e-5, rtol=1e-5)


def test_prototypes_come_from_the_encoders_folder(make_model, tmp_path):
    head = {"frame.weight": torch.randn(5, 32), "frame.bias": torch.randn(5)}
    save_file(head, tmp_path / "heads.safetensors")
    model = make_model(extensions={"class_prototypes": {"labels": 5, "source": str(tmp_path)}})
    again = load(save(model, tmp_path / "model", standalone=True, card={}))
    for found in (model, again):
        assert torch.equal(found.extensions["class_prototypes"].head.weight, head["frame.weight"])
        assert not found.extensions["class_prototypes"].head.weight.requires_grad
    for own in ({"labels": 4, "source": str(tmp_path)}, {"labels": 5}, {"labels": 5, "source": str(tmp_path / "no")}):
        with pytest.raises(
            ConfigError, match=r"extensions\.class_prototypes: .*heads\.safetensors does not hold a head"
        ):
            make_model(extensions={"class_prototypes": own})


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
