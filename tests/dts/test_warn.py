"""Warnings point at the program's own line."""

import warnings

import pytest
import torch

import dts
from dts.adapter import Suspicious


def test_a_warning_from_deep_inside_points_here():
    torch.manual_seed(0)
    base, other = ({f"l.{i}.weight": torch.randn(24, 24) for i in range(4)} for _ in range(2))
    with pytest.warns(Suspicious) as caught:
        dts.compress(base, other, rank_fraction=0.5)
    assert [w.filename for w in caught] == [__file__]


def test_at_most_once_a_line():
    torch.manual_seed(0)
    base, other = ({f"l.{i}.weight": torch.randn(24, 24) for i in range(4)} for _ in range(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            dts.compress(base, other, rank_fraction=0.5)
    assert len(caught) == 1
