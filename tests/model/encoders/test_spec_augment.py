"""SpecAugment hides whole bands and whole frames, few enough, each clip its own."""

import pytest
import torch
from torch import Tensor

from lamb.model.encoders.spec_augment import BANDS, FRAMES, SHARE, STRETCHES, spec_augment


def runs(places: Tensor) -> int:
    """Number of stretches of True."""
    return int((places[1:] & ~places[:-1]).sum() + places[0])


def test_as_much_is_hidden_as_in_the_authors_earlier_captioner():
    """2 x 48 bands and 2 x 192 frames: section 7 of the paper's summary."""
    assert (STRETCHES, BANDS, FRAMES) == (2, 48, 192)


def test_hidden_stretches():
    torch.manual_seed(0)
    lengths = torch.tensor([1000, 300, 20, 1000] * 30)
    spectrogram = torch.randn(120, 64, 1000)
    found = spec_augment(spectrogram, lengths)
    hidden = found != spectrogram
    assert not found[hidden].any()
    most = []
    for mask, own in zip(hidden, lengths.tolist(), strict=True):
        bands, frames = mask.all(1), mask.all(0)
        assert torch.equal(mask, bands[:, None] | frames)  # nothing but bands and frames
        assert not frames[own:].any()
        assert runs(bands) <= 2
        assert runs(frames) <= 2
        assert bands.sum() <= 2 * BANDS
        assert frames.sum() <= 2 * min(FRAMES, SHARE * own) + 1
        most.append(int(frames.sum()))
    assert max(most) > 250  # of the 384 that two stretches may hide
    assert len({tuple(row) for row in hidden.all(2).tolist()}) > 100  # every clip its own


def test_a_seed_hides_the_same_whatever_the_device_and_the_padding():
    spectrogram, lengths = torch.randn(3, 64, 400), torch.tensor([400, 100, 37])
    masks = []
    for padding in (0, 50):
        torch.manual_seed(5)
        masks.append(spec_augment(torch.nn.functional.pad(spectrogram, (0, padding), value=1.0), lengths) == 0)
    assert torch.equal(masks[0], masks[1][..., :400])
    assert masks[0].any()
    torch.manual_seed(5)
    assert spec_augment(spectrogram.to("meta"), lengths).is_meta  # drawn on the CPU, used where the sound is


@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_shortest_clips(length):
    for seed in range(20):
        torch.manual_seed(seed)
        found = spec_augment(torch.ones(1, 64, length), torch.tensor([length]))
        assert (found[0] == 0).all(0).sum() <= 2


def test_what_is_hidden_has_the_mean_of_its_clip():
    """A mean without the padding, and no longer stretches than asked for."""
    torch.manual_seed(0)
    spectrogram, lengths = torch.randn(40, 32, 100), torch.tensor([100, 60] * 20)
    spectrogram[1::2, :, 60:] = 1e3  # padding
    found = spec_augment(spectrogram, lengths, bands=6, stretch=4, fill=None)
    hidden = found != spectrogram
    mean = torch.stack([clip[:, :own].mean() for clip, own in zip(spectrogram, lengths, strict=True)])[:, None, None]
    torch.testing.assert_close(found[hidden], mean.expand_as(found)[hidden])
    bands, frames = hidden.all(2), hidden.all(1)  # (B, mels), (B, F)
    assert 6 < bands.sum(1).max() <= 2 * 6
    assert 4 < frames.sum(1).max() <= 2 * 4
