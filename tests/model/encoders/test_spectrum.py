"""The spectrogram of traces against `torch.stft`."""

import pytest
import torch

from lamb.model.encoders.spectrum import _by_products, power_spectrogram


@pytest.mark.parametrize(("size", "hop"), [(512, 160), (768, 320), (1024, 320), (1280, 320), (400, 100), (97, 10)])
def test_two_products_are_the_fourier_transform(size, hop):
    signal = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    window = torch.hann_window(size)
    expected = power_spectrogram(signal, window, hop)
    assert expected.shape == (2, size // 2 + 1, (5000 - size) // hop + 1)
    # float32 rounds each of the sums to about 1e-7 of the largest
    torch.testing.assert_close(
        _by_products(signal, window, hop), expected, atol=3e-6 * expected.max().item(), rtol=1e-4
    )


def test_a_trace_holds_any_length():
    window = torch.hann_window(64)
    traced = torch.jit.trace(lambda x: power_spectrogram(x, window, 16), torch.randn(1, 500), check_trace=False)
    signal = torch.randn(3, 901)
    torch.testing.assert_close(traced(signal), power_spectrogram(signal, window, 16), atol=1e-4, rtol=1e-4)
