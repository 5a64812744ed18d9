"""The picture of a timeline: drawn whole or not at all, in bounded memory."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from lamb.inference.captions import Segment
from lamb.inference.picture import COLUMNS, HOP, MELS, N_FFT, Picture, PictureError

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


def test_blocks_of_any_size_are_the_same_picture(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    one, other = Picture(RATE, tmp_path / "a.png"), Picture(RATE, tmp_path / "a.png")
    one.listen(x)
    for part in np.split(x, [1, 700, 701, 20_000, 49_999]):
        other.listen(part)
    # Among other frames the bins of a band, at most N_FFT // 2 positive terms, may be added up in another order.
    np.testing.assert_allclose(one.columns, other.columns, rtol=N_FFT // 2 * 2.0**-24)
    assert len(one.columns) == (len(x) - N_FFT) // HOP + 1


def test_memory_is_bounded_and_the_mean_stays(tmp_path: Path) -> None:
    picture = Picture(RATE, tmp_path / "a.png")
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
