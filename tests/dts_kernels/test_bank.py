"""A bank: what adding a task costs, and whose memory it uses."""

import torch

from dts_kernels import Bank, PackedFactors, Routing, SampleBank, Samples, pack
from dts_kernels.bank import EAGER


def some_factors(seed: int) -> PackedFactors:
    generator = torch.Generator().manual_seed(seed)
    codes = lambda size: pack(torch.randint(0, 4, (size, 8), generator=generator, dtype=torch.uint8))  # noqa: E731
    return PackedFactors(codes(24), codes(16), torch.rand(8, generator=generator) + 0.1)


def test_adding_many_tasks_does_not_go_through_all_of_them_each_time(monkeypatch):
    derived = []
    derive = Bank._derive
    monkeypatch.setattr(Bank, "_derive", lambda bank: derived.append(bank) or derive(bank))
    bank = Bank(16, 24)
    for slot in range(5 * EAGER):
        bank.add(slot, some_factors(slot))
    assert len(bank.table) == 5 * EAGER and bank.max_rank == 8 and len(bank.packed) == 3 * 5 * EAGER
    assert len(derived) == 1 + EAGER + 1  # empty, one by one up to EAGER, and once when it was asked for


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
