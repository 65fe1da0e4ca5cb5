"""Factors as tensors and fragments, and back; what does not belong together is refused by name."""

from dataclasses import replace

import pytest
import torch
from held import Held
from matrices import power_law

from dts.codec import Factors, Undecodable, compress_tensor
from dts.codec.disk import factors_from, fragments_of, tensors_of


@pytest.fixture(scope="module", params=["residual", "paper", "sketch"])
def factors(request):
    delta = power_law(40, 96, 0.7)
    delta[3], delta[:, :90:2] = 0, 0
    return compress_tensor(delta, request.param, rank=18)


def back(factors, tensors=None, fragments=None) -> Factors:
    tensors = tensors_of(factors) if tensors is None else tensors
    fragments = fragments_of(factors) if fragments is None else fragments
    return factors_from("a", factors.shape, Held(tensors), fragments, factors.norm, factors.squared_error)


def test_what_is_stored_is_what_is_read(factors):
    again = back(factors)
    assert again.parts == factors.parts and again.shape == factors.shape
    assert torch.equal(again.rows, factors.rows) and torch.equal(again.columns, factors.columns)
    assert torch.equal(again.reconstruct(), factors.reconstruct())
    assert sum(tensor.nbytes for tensor in tensors_of(factors).values()) == factors.nbytes
    assert list(fragments_of(factors)) == ["parts", "samples"][: len(factors.stored)]


def test_without_its_index_nothing_fits(factors):
    tensors = tensors_of(factors)
    for side in ("rows", "columns"):
        with pytest.raises(Undecodable, match="a: "):
            back(factors, {key: tensor for key, tensor in tensors.items() if key != side})


def test_numbers_that_are_none_or_too_large_are_refused(factors):
    tensors = tensors_of(factors)
    for value in (float("nan"), float("inf"), 3e38):
        with pytest.raises(Undecodable, match="numbers of its parts"):
            back(factors, tensors | {"sigma": torch.full_like(tensors["sigma"], value)})


def test_a_sample_is_of_what_components_leave():
    factors = compress_tensor(power_law(40, 96, 0.7), "sketch", rank=18)
    for parts in ({}, {"parts": None}):
        with pytest.raises(Undecodable, match="neither parts"):
            back(factors, fragments={"samples": fragments_of(factors)["samples"]} | parts)
    assert back(replace(factors, stored=factors.stored[:1])).parts == factors.parts[:1]
