"""Every method: what it plans is what it makes, to the byte, at the bytes of as many components."""

import numpy as np
import pytest
import torch

from dts.adapter.table import pack
from dts.codec import compress_tensor
from dts.codec.auto import NEAR
from dts.codec.methods import CHOICES, METHODS, method_of, register
from dts.codec.parts import kind_of

SHAPE = (48, 200)


def delta():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(48, 6, generator=generator) @ torch.randn(6, 200, generator=generator) / 3
    return 0.01 * (low + torch.randn(48, 200, generator=generator))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("rank", [4, 17, 40])
def test_what_is_planned_is_what_is_made(method, rank):
    planned, made = method.planned(rank, SHAPE), compress_tensor(delta(), method.name, rank=rank).stored
    for ours, theirs in zip(planned, made, strict=True):
        kind = kind_of(theirs)
        assert kind_of(ours) is kind and kind.rank(ours) == kind.rank(theirs) and kind.shape(ours) == SHAPE
        stored, given = kind.tensors(0, ours), kind.tensors(0, theirs)
        assert stored.keys() == given.keys()
        assert all(stored[key].dtype == given[key].dtype and stored[key].shape == given[key].shape for key in stored)
        assert in_table(kind.fragment([ours])) >= in_table(kind.fragment([theirs]))
    assert sum(kind_of(one).rank(one) for one in planned) == method.components(rank, SHAPE)
    nbytes = sum(kind_of(one).nbytes(one) for one in planned)
    assert 0 <= method.nbytes(np.array([rank]), SHAPE)[0] - nbytes <= (0 if len(planned) == 1 else 48 + 248 + 20)


def in_table(fragment: list) -> int:
    return len(pack([("a", fragment)])[2])


def test_a_rule_chooses_by_size_and_distance():
    auto = CHOICES["auto"]
    assert auto.for_size(in_bytes=False) is METHODS["residual"] and auto.for_size(in_bytes=True) is auto
    assert auto.for_distance(NEAR / 2) is METHODS["sketch"] and auto.for_distance(NEAR) is METHODS["residual"]
    for method in METHODS.values():
        assert method.for_size(True) is method.for_size(False) is method.for_distance(1.0) is method


def test_names_are_taken_once_and_unknown_ones_refused():
    with pytest.raises(ValueError, match="sketch"):
        register(METHODS["sketch"])
    with pytest.raises(ValueError, match="one of residual, paper, sketch, not 'auto'"):
        method_of("auto")


def test_only_those_that_search_take_an_error():
    for method in METHODS.values():
        if not method.searches:
            with pytest.raises(ValueError, match=method.name):
                method.encode_to_error(delta(), 0.1, 8)
