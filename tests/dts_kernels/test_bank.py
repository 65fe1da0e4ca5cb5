"""A bank: what adding a task costs, and whose memory it uses."""

import dataclasses
import random

import pytest
import torch

from dts_kernels import Bank, PackedFactors, Routing, SampleBank, Samples, pack
from dts_kernels.bank import EAGER
from dts_kernels.cpu.tasks import Tasks

LEVELS = torch.tensor([[1.0, 3.0, -1.0, -3.0]] * 2)


def some_factors(seed: int, levels: bool = False) -> PackedFactors:
    generator = torch.Generator().manual_seed(seed)
    codes = lambda size: pack(torch.randint(0, 4, (size, 8), generator=generator, dtype=torch.uint8))  # noqa: E731
    return PackedFactors(codes(24), codes(16), torch.rand(8, generator=generator) + 0.1, LEVELS if levels else None)


def counted(monkeypatch, kind, name):
    found, own = [], getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda *given: found.append(given) or own(*given))
    return found


def test_adding_many_tasks_does_not_go_through_all_of_them_each_time(monkeypatch):
    derived, written = counted(monkeypatch, Bank, "_derive"), counted(monkeypatch, Tasks, "_set")
    bank = Bank(16, 24)
    for slot in range(5 * EAGER):
        bank.add(slot, some_factors(slot))
        Tasks.of(bank.packed, bank.table)
    assert len(bank.table) == 5 * EAGER and bank.max_rank == 8 and len(bank.packed) == 3 * 5 * EAGER
    assert len(derived) == 1 and len(written) == 5 * EAGER  # the empty one; each task once
    for slot in range(5 * EAGER):
        bank.remove(slot)
    assert len(derived) == 1 + EAGER + 1  # only the last ones, and none


@pytest.mark.parametrize("read", [True, False], ids=["read each time", "read at the end"])
def test_what_c_reads_follows_every_change(read):
    """Whatever comes and goes, with or without levels: the same as of a bank that was filled at once."""
    bank, there, draw = Bank(16, 24), {}, random.Random(0)
    for step in range(60):
        slot = draw.randrange(6)
        if draw.random() < 0.6:
            there[slot] = some_factors(step, levels=draw.random() < 0.2)
            bank.add(slot, there[slot])
        else:
            there.pop(slot, None)
            bank.remove(slot)
        if read or step % 20 == 19:
            fresh = Bank(16, 24)
            for other, factors in there.items():
                fresh.add(other, factors)
            fresh._ready = fresh._derive()  # which nobody has told what is in it
            found, expected = Tasks.of(bank.packed, bank.table), Tasks.of(fresh.packed, fresh.table)
            assert found.count == expected.count
            assert [bytes(task) for task in found.array] == [bytes(task) for task in expected.array]
            assert found.kept.keys() == there.keys() and bank.table.tolist() == fresh.table.tolist()


def test_levels_with_a_pending_sign_are_looked_at_too():
    bank, odd = Bank(16, 24), some_factors(1, levels=True)
    bank.add(0, some_factors(0))
    Tasks.of(bank.packed, bank.table)
    odd = dataclasses.replace(odd, levels=torch.complex(LEVELS, LEVELS).conj().imag)
    bank.add(1, odd)
    with pytest.raises(ValueError, match="no plain dense tensor"):
        Tasks.of(bank.packed, bank.table)


def test_a_bank_on_the_cpu_keeps_the_tensors_it_was_given():
    bank, factors = Bank(16, 24), some_factors(0)
    bank.add(0, factors)
    given = {t.data_ptr() for t in (factors.u, factors.v, factors.sigma)}
    assert {t.data_ptr() for t in bank.packed} == given


def test_operands_are_made_once_a_routing_and_anew_when_the_bank_changes():
    bank, samples = Bank(16, 24), SampleBank(16, 24)
    bank.add(0, some_factors(0))
    samples.add(0, (Samples(pack(torch.zeros(24, 4, dtype=torch.uint8)), 1.0, 4, 0, (24, 16)),))
    one, other = Routing.of([0]), Routing.of([None])
    for made in (bank, samples):
        first = made.operands(one)
        assert made.operands(one) is first and first.slots is one.slots and first.weights is one.weights
        assert made.operands(other).slots is other.slots
        assert made.new_operands(one) is not made.new_operands(one)
        first = made.operands(one)
        made.remove(0)
        assert made.operands(one) is not first and made.operands(one).table is not first.table
