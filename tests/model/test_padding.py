"""Sequences of many lengths as one batch."""

import numpy as np
import torch

from lamb.model.padding import pad


def test_pad():
    batch, mask = pad([np.array([1, 2, 3], np.float32), np.array([4], np.float32)])
    assert batch.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]


def test_pad_with_a_value_and_more_dimensions():
    batch, mask = pad([torch.ones(1, 2, dtype=torch.long), torch.zeros(2, 2, dtype=torch.long)], 7)
    assert batch.tolist() == [[[1, 1], [7, 7]], [[0, 0], [0, 0]]]
    assert mask.tolist() == [[True, False], [True, True]]
