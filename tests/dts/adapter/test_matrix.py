"""What is planned of a matrix is what the codec makes of it: bytes exactly, errors nearly."""

import numpy as np
import pytest
import torch

from dts.adapter.matrix import Matrix
from dts.adapter.sizes import HEADER_BYTES
from dts.codec import compress_tensor
from dts.codec.methods import METHODS


@pytest.fixture(scope="module")
def delta():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(48, 6, generator=generator) @ torch.randn(6, 200, generator=generator)
    delta = 0.01 * (low + torch.randn(48, 200, generator=generator))
    delta[5], delta[:, 11] = 0, 0
    return delta


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_planned_factors_have_the_bytes_and_nearly_the_error(delta, method):
    matrix = Matrix.of(delta, "a", spectrum=True)
    assert matrix.compact_shape == (47, 199) and matrix.elements == 47 * 199
    planned, made = matrix.planned(24, method), compress_tensor(delta, method.name, rank=24)
    assert planned.nbytes == made.nbytes and planned.parts == made.parts
    assert planned.squared_error == pytest.approx(made.squared_error, rel=0.2)


@pytest.mark.parametrize("name", ["residual", "paper"])
def test_a_curve_has_the_bytes_of_every_rank(delta, name):
    method = METHODS[name]
    curve = Matrix.of(delta, "a", spectrum=True).curve(method)
    assert curve.ranks[0] == curve.bytes[0] == 0 and curve.ranks[-1] == method.rank_limit * 47
    assert curve.errors[0] == pytest.approx(delta.norm().item() ** 2) and (np.diff(curve.errors) <= 0).all()
    for i in (1, 5):
        made = compress_tensor(delta, name, rank=int(curve.ranks[i]))
        assert curve.bytes[i] == made.nbytes + HEADER_BYTES
    assert Matrix.of(delta, "a", spectrum=True).curve(method, limit=10).ranks.tolist() == [0, 4, 8, 10]


def test_without_singular_values_only_bytes_are_known(delta):
    matrix, method = Matrix.of(delta, "a", spectrum=False), METHODS["residual"]
    assert matrix.planned(8, method).nbytes == compress_tensor(delta, rank=8).nbytes
    with pytest.raises(ValueError, match="without its singular values"):
        matrix.curve(method)


def test_nothing_is_planned_of_what_did_not_change():
    matrix = Matrix.of(torch.zeros(6, 7), "a", spectrum=True)
    method = METHODS["residual"]
    assert matrix.planned(4, method) is None and matrix.most(method) == 0 and matrix.curve(method).ranks.tolist() == [0]
