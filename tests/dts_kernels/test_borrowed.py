"""Factors that lie in memory which others share are those of the tensors that they are asked for."""

import copy
import dataclasses
import pickle

import pytest
import torch

from dts_kernels import Bank, PackedFactors, Routing, delta_linear, pack
from dts_kernels.borrowed import BorrowedFactors
from dts_kernels.reference import range_exponent, reconstruct

M, N, RANK = 24, 16, 6


def both(seed: int = 0) -> tuple[PackedFactors, BorrowedFactors]:
    """The same factors as tensors, and in larger memory."""
    draw = torch.Generator().manual_seed(seed)
    u, v = (pack(torch.randint(0, 4, (rows, RANK), generator=draw, dtype=torch.uint8)) for rows in (M, N))
    sigma = torch.rand(RANK, generator=draw) - 0.5
    codes = torch.cat([torch.zeros(16, dtype=torch.uint8), u.flatten(), v.flatten()])
    numbers = torch.cat([torch.zeros(4), sigma])
    memory = codes.untyped_storage(), numbers.untyped_storage()
    u_at, v_at, sigma_at = codes.data_ptr() + 16, codes.data_ptr() + 16 + u.numel(), numbers.data_ptr() + 16
    return PackedFactors(u, v, sigma), BorrowedFactors.at(memory, u_at, v_at, sigma_at, (M, N), RANK)


def test_it_is_what_its_tensors_are():
    plain, borrowed = both()
    for found, wanted in (
        (borrowed, plain),
        (borrowed.transpose(), plain.transpose()),
        (borrowed.rows(3, 9), plain.rows(3, 9)),
    ):
        assert all(map(torch.equal, found.tensors, wanted.tensors)) and found.levels is None
        assert (found.shape, found.rank, found.nbytes) == (wanted.shape, wanted.rank, wanted.nbytes)
        assert found.scales == wanted.scales and range_exponent(found) == range_exponent(wanted)
        assert torch.equal(reconstruct(found), reconstruct(wanted))
    assert borrowed.to("cpu") is borrowed and borrowed.u.data_ptr() == borrowed.u.data_ptr()
    with pytest.raises(dataclasses.FrozenInstanceError):
        borrowed.u = plain.u


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_has_memory_of_its_own_and_no_more(copied):
    plain, borrowed = both()
    other = copied(borrowed)
    assert type(other) is PackedFactors and all(map(torch.equal, other.tensors, plain.tensors))
    assert [t.untyped_storage().nbytes() for t in other.tensors] == [t.nbytes for t in plain.tensors]


def test_what_is_changed_of_it_is_of_tensors():
    plain, borrowed = both()
    other = dataclasses.replace(borrowed, sigma=2 * borrowed.sigma)
    assert type(other) is PackedFactors and torch.equal(other.u, plain.u) and torch.equal(other.sigma, 2 * plain.sigma)


@torch.no_grad()
def test_a_bank_multiplies_with_it_without_making_tensors(monkeypatch):
    banks, x = (Bank(N, M), Bank(N, M)), torch.randn(4, N)
    for slot in range(3):
        for bank, one in zip(banks, both(slot)):
            bank.add(slot, one)
    made = []
    monkeypatch.setattr(BorrowedFactors, "tensors", property(made.append))
    assert [bytes(task)[24:] for task in banks[0].tasks.array] == [bytes(task)[24:] for task in banks[1].tasks.array]
    banks[1].remove(1), banks[0].remove(1)
    assert not made and banks[1].nbytes == banks[0].nbytes and banks[1].max_rank == RANK
    monkeypatch.undo()
    for slot in (0, 2):
        assert isinstance(banks[1].factors(slot), BorrowedFactors)
        routing = Routing.of([slot])
        assert torch.equal(*(delta_linear(x, bank, routing) for bank in banks))
