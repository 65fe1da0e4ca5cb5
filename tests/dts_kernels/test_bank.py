"""A bank: what adding a task costs, and whose memory it uses."""

import copy
import dataclasses
import random
import weakref

import pytest
import torch

from dts_kernels import Bank, PackedFactors, Routing, SampleBank, Samples, delta_linear, pack, reconstruct
from dts_kernels.cpu.tasks import Tasks
from dts_kernels.disk_store import DiskStore
from dts_kernels.ops import Together, add_samples

MANY = 24
LEVELS = torch.tensor([[1.0, 3.0, -1.0, -3.0]] * 2)


def some_factors(seed: int, levels: bool = False, width: int = 24) -> PackedFactors:
    generator = torch.Generator().manual_seed(seed)
    codes = lambda size: pack(torch.randint(0, 4, (size, 8), generator=generator, dtype=torch.uint8))  # noqa: E731
    return PackedFactors(codes(width), codes(16), torch.rand(8, generator=generator) + 0.1, LEVELS if levels else None)


def counted(monkeypatch, kind, name):
    found, own = [], getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda *given: found.append(given) or own(*given))
    return found


def test_adding_many_tasks_does_not_go_through_all_of_them_each_time(monkeypatch):
    derived, written = counted(monkeypatch, DiskStore, "derived"), counted(monkeypatch, Tasks, "_set")
    bank = Bank(16, 24)
    for slot in range(MANY):
        bank.add(slot, some_factors(slot))
    assert not derived and len(written) == MANY
    for _ in range(2):
        assert len(bank.table) == MANY and bank.max_rank == 8 and len(bank.packed) == 3 * MANY
        assert Tasks.of(bank.packed, bank.table) is bank.tasks
    for slot in range(MANY):
        bank.remove(slot)
    assert len(derived) == 1 and len(written) == 2 * MANY and not len(bank) and not bank.max_rank


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
            packed, table = fresh.packed, fresh.table.clone()  # of which nobody was told what is in it
            found, expected = bank.tasks, Tasks(packed, table)
            assert found.count == expected.count
            assert [bytes(task) for task in found.array] == [bytes(task) for task in expected.array]
            assert found.kept.keys() == there.keys() and bank.table.tolist() == table.tolist()
            assert bank.slots == sorted(there) and bank.room == len(table)
            assert bank.max_rank == fresh.max_rank == max([0, *(f.rank for f in there.values())])


def test_tensors_that_are_not_kept_are_made_again_where_they_lay():
    """Of many tasks C's addresses are all there is, whatever slices the factors were given as."""
    bank, there = Bank(16, 24), {}
    for slot in range(MANY):
        wide = some_factors(slot, levels=slot % 5 == 0, width=40)
        there[slot] = wide.rows(3, 27).prefix(8 if slot % 2 else 5)
        bank.add(slot, there[slot])
    assert len(bank.slots) == MANY
    for slot, given in there.items():
        made = bank.factors(slot)
        assert [t.data_ptr() for t in made.tensors] == [t.data_ptr() for t in given.tensors]
        assert all(map(torch.equal, made.tensors, given.tensors))
    assert bank.nbytes == sum(f.nbytes for f in there.values())
    copied = copy.deepcopy(bank)
    assert copied.nbytes == bank.nbytes and copied.table.tolist() == bank.table.tolist()
    assert not {t.data_ptr() for t in copied.held()} & {t.data_ptr() for t in bank.held()}


@torch.no_grad()
@pytest.mark.parametrize("count", [3, 12])
def test_the_memory_of_a_task_goes_when_it_goes(count):
    """Whatever was multiplied with before, and without another product."""
    bank, samples, alive = Bank(16, 24), SampleBank(16, 24), list[tuple]()
    for slot in range(count):
        arrays = some_factors(slot).u.numpy().copy(), torch.zeros(24, 1, dtype=torch.uint8).numpy()
        u, codes = map(torch.from_numpy, arrays)
        bank.add(slot, dataclasses.replace(some_factors(slot), u=u))
        samples.add(slot, (Samples(codes, 1.0, 4, slot, (24, 16)),))
        alive.append(tuple(map(weakref.ref, arrays)))
    del arrays, u, codes
    both, x, weight, routing = Together(bank, samples), torch.ones(2, 16), torch.ones(24, 16), Routing.of([1])
    for slot in (0, count - 1, 1):
        y = both.linear(x, weight, None, routing, None)
        wanted = add_samples(x, delta_linear(x, bank, routing, x @ weight.T), samples, routing)
        torch.testing.assert_close(y, wanted, rtol=1e-3, atol=1e-3)
        reconstruct(bank, {1: 1.0})
        assert all(one() is not None for one in alive[slot])
        bank.remove(slot), samples.remove(slot)
        assert all(one() is None for one in alive[slot])


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
