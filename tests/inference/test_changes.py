"""Boundaries: against all segmentations, in a stream, in silence and damage."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamb.inference.changes import (
    AHEAD,
    LONGEST,
    PAUSE,
    PENALTY,
    SHORTEST,
    Kind,
    Segmenter,
    changes,
    features,
)

SOUND, SILENCE, LOST = Kind.SOUND, Kind.SILENCE, Kind.LOST


def cost(x: np.ndarray, ends: tuple[int, ...]) -> float:
    parts = [x[a:b] for a, b in itertools.pairwise([0, *ends])]
    return sum(float(np.square(part - part.mean(0)).sum()) + PENALTY for part in parts)


def blocks(lengths: list[int], seed: int = 0, noise: float = 0.1) -> np.ndarray:
    """Features of stretches of these lengths, each about a direction of its own."""
    rng = np.random.default_rng(seed)
    means = np.eye(8)[np.arange(len(lengths)) % 8].repeat(lengths, 0)
    return 2 * means + noise * rng.standard_normal(means.shape)


@given(st.integers(1, 12), st.integers(0, 99))
def test_no_segmentation_is_cheaper(n: int, seed: int) -> None:
    x = 2 * np.random.default_rng(seed).standard_normal((n, 2))
    found = tuple(changes(x))
    every = [
        (*inner, n)
        for count in range(n)
        for inner in itertools.combinations(range(1, n), count)
        if all(b - a >= min(SHORTEST, n) for a, b in itertools.pairwise((0, *inner, n)))
    ]
    assert found in every
    assert cost(x, found) == pytest.approx(min(cost(x, ends) for ends in every))


def test_boundaries_are_found() -> None:
    assert changes(blocks([20, 7, 33, 6])) == [20, 27, 60, 66]
    assert changes(blocks([50])) == [50]


def test_features_have_length_one_and_a_level() -> None:
    x = features(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([-20.0, -np.inf]))
    assert x[0, :2] == pytest.approx([0.6, 0.8])
    assert np.isfinite(x).all()
    assert x[0, 2] > x[1, 2]


def pieces(kinds: list[Kind], x: np.ndarray, sizes: list[int]) -> list[tuple[int, int, Kind, bool]]:
    segmenter, found, at = Segmenter(), [], 0
    for k, size in enumerate(sizes):
        end = k == len(sizes) - 1
        found += segmenter.push(kinds[at : at + size], x[at : at + size], end)
        assert len(segmenter.kinds) <= LONGEST + size
        at += size
    return [(p.start, p.end, p.kind, p.goes_on) for p in found]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(list(Kind)), st.integers(1, 60)), min_size=1, max_size=12), st.integers(1, 40)
)
def test_a_stream_is_covered_without_gaps(runs: list[tuple[Kind, int]], size: int) -> None:
    kinds = [kind for kind, n in runs for _ in range(n)]
    x = blocks([n for _, n in runs])
    sizes = [size] * (len(kinds) // size) + [len(kinds) % size]
    found = pieces(kinds, x, sizes if sizes[-1] else sizes[:-1])
    assert [a for a, *_ in found] == [0, *[b for _, b, *_ in found][:-1]]
    assert found[-1][1] == len(kinds)
    for a, b, kind, _ in found:
        if kind is not SOUND:
            assert set(kinds[a:b]) == {kind}, "silence and damage are exact"
        else:
            assert LOST not in kinds[a:b]


@pytest.mark.parametrize("size", [1, 10, 25, 1000])
def test_a_stream_finds_what_the_whole_finds(size: int) -> None:
    x = blocks([40, 12, 60, 30, 45])
    sizes = [min(size, 187 - at) for at in range(0, 187, size)]
    assert [(b, g) for _, b, _, g in pieces([SOUND] * 187, x, sizes)] == [(b, False) for b in (40, 52, 112, 142, 187)]


def test_a_piece_is_final_soon() -> None:
    segmenter, x = Segmenter(), blocks([40, 60])
    assert list(segmenter.push([SOUND] * 40, x[:40])) == []
    (piece,) = segmenter.push([SOUND] * (AHEAD + 5), x[40 : 45 + AHEAD])
    assert (piece.start, piece.end) == (0, 40)


def test_sound_without_a_change_goes_on() -> None:
    x = blocks([4 * LONGEST])
    found = pieces([SOUND] * len(x), x, [25] * (len(x) // 25))
    assert len(found) > 2
    assert [goes_on for *_, goes_on in found] == [True] * (len(found) - 1) + [False]


def test_a_short_pause_is_no_silence() -> None:
    x = np.ones((40, 2))
    for pause, kinds in ((PAUSE - 1, [SOUND]), (PAUSE, [SOUND, SILENCE, SOUND])):
        cells = [SOUND] * 15 + [SILENCE] * pause + [SOUND] * (25 - pause)
        assert [kind for *_, kind, _ in pieces(cells, x, [8] * 5)] == kinds
