"""The picture of a timeline: drawn whole or not at all, in bounded memory."""

import io
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from lamb.inference.captions import Segment
from lamb.inference.picture import COLUMNS, HOP, MELS, N_FFT, Picture, PictureError, Spectrogram, spectrogram_png

RATE = 16000
SEGMENTS = [Segment(k, k + 1, f"caption $number$ {k % 30} " + "x" * k) for k in range(60)]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_it_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    picture = Picture(RATE, path)
    picture.listen(np.random.default_rng(0).standard_normal(60 * RATE).astype(np.float32) / 9)
    picture.draw(SEGMENTS, "a $strange_name.wav")
    assert path.stat().st_size > 5000
    assert list(tmp_path.iterdir()) == [path]


def test_blocks_of_any_size_are_the_same_picture() -> None:
    x = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    one, other = Spectrogram(RATE), Spectrogram(RATE)
    one.listen(x)
    for part in np.split(x, [1, 700, 701, 20_000, 49_999]):
        other.listen(part)
    # the block decides in which order up to 42 float32 powers, each rounded by 2^-24, are added up to a band
    np.testing.assert_allclose(one.columns, other.columns, rtol=1e-5, atol=1e-6 * np.max(one.columns))
    assert len(one.columns) == (len(x) - N_FFT) // HOP + 1


def test_memory_is_bounded_and_the_mean_stays() -> None:
    picture = Spectrogram(RATE)
    x = np.sin(np.arange(60 * RATE)).astype(np.float32)
    for _ in range(10):
        picture.listen(x)
    assert len(picture.columns) < 2 * COLUMNS
    assert picture.every == 16
    assert np.array(picture.columns).shape[1] == MELS
    assert np.ptp(np.log(np.array(picture.columns).max(1))) < 0.1


def test_a_moment_without_sound(tmp_path: Path) -> None:
    picture = Picture(RATE, tmp_path / "a.png")
    picture.listen(np.zeros(200, np.float32))
    picture.draw([Segment(0, 0.1, "Silence.")], "short")
    assert (tmp_path / "a.png").exists()


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"a\.xyz: a picture ends in one of .*png"):
        Picture(RATE, tmp_path / "a.xyz")
    (tmp_path / "b.png").mkdir()
    for path in (tmp_path / "none" / "a.png", tmp_path / "b.png"):
        with pytest.raises(PictureError, match=rf"{path}: cannot be written; "):
            Picture(RATE, path)


def test_a_spectrogram_shows_where_the_sound_is() -> None:
    from matplotlib.image import imread

    x = np.concatenate([np.zeros(RATE), np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)]).astype(np.float32)
    light = imread(io.BytesIO(spectrogram_png(x, RATE)))[..., :3].sum(-1)  # (rows, columns), low tones below
    middle = light.shape[1] // 2
    assert light[:, : middle - 2].max() < 0.1 < light[:, middle + 2 :].max()
    assert light[:32, middle + 2 :].mean() < light[32:, middle + 2 :].mean()
