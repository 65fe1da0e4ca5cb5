"""Bytes that a task takes in kernel words, which are what a GPU holds, beside its packed bytes."""

import copy
import gc
import pickle
import weakref
from functools import partial

import pytest
import torch

import dts_kernels as kernels
from dts_kernels import Bank, PackedFactors, SampleBank, Samples, pack
from dts_kernels.arena import GRAIN
from dts_kernels.layout import packed_width
from dts_kernels.samples import groups_of

MOST = 1.05  # times the packed bytes
# [out, in] of all-MiniLM-L6-v2, and of a Llama of 1.1 B
MINILM, LLAMA = [(384, 384), (1536, 384), (384, 1536)], [(2048, 2048), (512, 2048), (8192, 2048), (2048, 8192)]


def rank_of(m, n, share):
    """Factors of so large a share of the matrix in float32."""
    return int(share * 4 * m * n / ((m + n) / 4 + 4))


def layers():
    for ratio in (0.05, 0.3):
        yield 4096, 4096, int(ratio * 4096)
    for m, n in MINILM:
        yield m, n, rank_of(m, n, 0.01)
    for m, n in LLAMA:
        for share in (0.005, 0.01):
            yield m, n, rank_of(m, n, share)


def empty_factors(m, n, rank):
    width = packed_width(rank)
    return PackedFactors(
        torch.zeros(m, width, dtype=torch.uint8), torch.zeros(n, width, dtype=torch.uint8), torch.ones(rank)
    )


@pytest.mark.parametrize("m,n,rank", list(layers()))
@pytest.mark.parametrize("tasks", [1, 8, 50])
def test_a_task_takes_its_packed_bytes(m, n, rank, tasks):
    """All that the bank holds for them, the table too; an empty bank takes what CUDA's allocator gives at least."""
    bank, factors = Bank(n, m, layout="planar"), empty_factors(m, n, rank)
    assert bank.nbytes == GRAIN
    for slot in range(tasks):
        bank.add(slot, factors)
    taken = sum(t.untyped_storage().nbytes() for t in {t.data_ptr(): t for t in bank.held()}.values())
    assert bank.nbytes == taken <= MOST * tasks * factors.nbytes + GRAIN


@pytest.mark.parametrize("m,n", [(4096, 4096), *MINILM, *LLAMA])
@pytest.mark.parametrize("stride", [6, 12])
@pytest.mark.parametrize("tasks", [1, 8, 50])
def test_a_sample_takes_its_packed_bytes(m, n, stride, tasks):
    bank = SampleBank(n, m, arena=True)
    codes = torch.zeros(m, packed_width(groups_of(n, stride)), dtype=torch.uint8)
    for slot in range(tasks):
        bank.add(slot, (Samples(codes, 0.1, stride, slot, (m, n)),))
    assert codes.numel() * tasks < bank.nbytes <= MOST * tasks * codes.numel() + 4 * GRAIN + 1024


def random_factors(m, n, rank, seed, levels=False):
    generator = torch.Generator().manual_seed(seed)
    u, v = (pack(torch.randint(0, 4, (rows, rank), dtype=torch.uint8, generator=generator)) for rows in (m, n))
    return PackedFactors(u, v, torch.rand(rank, generator=generator), torch.ones(2, 4) if levels else None)


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("u", "v")) and torch.allclose(
        one.sigma, other.sigma
    )


def test_loading_moves_nothing_and_what_goes_is_room_for_the_next():
    bank, make = Bank(150, 60, layout="planar"), partial(random_factors, 60, 150)
    bank.add(0, make(40, 0))
    held = bank.packed, bank.table, [t.data_ptr() for t in bank.held()]
    for slot in range(1, 8):  # the first table's slots
        bank.add(slot, make(40 + slot, slot))
    assert bank.packed is held[0] and bank.table is held[1]
    assert {t.data_ptr() for t in bank.held()} >= set(held[2])
    assert all(same(bank.factors(slot), make(40 + slot, slot)) for slot in range(8))
    size = bank.nbytes
    for slot in range(8):
        bank.remove(slot)
        assert not bank.table[slot].any()
    assert bank.nbytes == GRAIN < size
    bank.add(3, make(47, 9))
    assert same(bank.factors(3), make(47, 9)) and bank.nbytes < size / 4 and bank.table is held[1]


def test_reserved_room_is_used_and_stays():
    bank, make = Bank(150, 60, layout="planar"), partial(random_factors, 60, 150)
    bank.reserve(tasks=20, rank=300)
    held, size = (bank.packed, bank.table, bank.max_rank), bank.nbytes
    for _ in range(2):
        for slot in range(20):
            bank.add(slot, make(300 - slot, slot))
        assert all(a is b for a, b in zip((bank.packed, bank.table, bank.max_rank), held)) and bank.nbytes == size
        for slot in range(20):
            bank.remove(slot)
    assert bank.nbytes == size
    bank.reserve(tasks=20, rank=300)
    assert bank.nbytes == size


def test_tables_that_are_held_follow_what_their_kernels_can_do():
    bank, make = Bank(150, 60, layout="planar"), partial(random_factors, 60, 150)
    bank.add(0, make(100, 0))
    narrow = bank.table
    bank.add(1, make(200, 1))
    wide = bank.table
    assert wide is not narrow and torch.equal(narrow[0], wide[0]) and not narrow[1].any() and wide[1, 3] == 200
    bank.add(2, make(10, 2, levels=True))
    levels = bank.table
    assert bank.layout == "planar_levels" and levels[2, 3] == 10 and not wide[2].any()
    bank.add(9, make(10, 3))
    assert bank.table.shape[0] > 9 and torch.equal(bank.table[:8], levels)
    bank.add(0, make(90, 4))
    for table in (narrow, wide, levels, bank.table):
        assert table[0, 3] == 90 and torch.equal(table[0], bank.table[0])
    for _ in range(5):  # tables are kept for those who hold them, and are not made again
        bank.remove(2)
        assert bank.layout == "planar" and not levels[2].any()
        bank.add(2, make(10, 2, levels=True))
    assert len(bank._store.tables) <= 6


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_a_bank_has_memory_of_its_own(how):
    bank = Bank(150, 60, layout="planar")
    for slot, rank in ((0, 7), (2, 130), (11, 1)):
        bank.add(slot, random_factors(60, 150, rank, slot))
    samples = SampleBank(150, 60, arena=True)
    codes = pack(torch.randint(4, (60, groups_of(150, 7)), dtype=torch.uint8))
    samples.add(3, (Samples(codes, 0.5, 7, 1, (60, 150)),))
    twins = copy.deepcopy((bank, samples)) if how == "deepcopy" else pickle.loads(pickle.dumps((bank, samples)))
    for slot in (0, 2, 11):
        bank.remove(slot)
    samples.remove(3)
    assert all(same(twins[0].factors(slot), random_factors(60, 150, rank, slot)) for slot, rank in ((0, 7), (2, 130)))
    assert torch.equal(twins[1].samples(3)[0].codes, codes)
    x, routing = torch.randn(3, 150, dtype=torch.float64), kernels.Routing.of([0, 11, 2])
    out = kernels.delta_linear(x, twins[0], routing)
    disk = Bank(150, 60)
    for slot in twins[0].slots:
        disk.add(slot, twins[0].factors(slot))
    torch.testing.assert_close(out, kernels.delta_linear(x, disk, routing))
    assert {t.data_ptr() for t in twins[0].held()}.isdisjoint(t.data_ptr() for t in bank.held())


def test_a_table_that_points_into_another_banks_memory_is_refused():
    banks = [Bank(150, 60, layout="planar") for _ in range(2)]
    for seed, bank in enumerate(banks):
        bank.add(0, random_factors(60, 150, 30, seed))
    one, other = banks
    routing, x = kernels.Routing.of([0]), torch.randn(1, 150)
    operands = one.operands(routing)
    stolen = one.table.clone()
    stolen[0, :3] = other.table[0, :3] + (other.packed[0].data_ptr() - one.packed[0].data_ptr()) // 4
    call = torch.ops.dts.delta_linear
    right = call(x, None, *operands._replace(table=one.table.clone()), False)
    torch.testing.assert_close(right, kernels.delta_linear(x, one, routing))
    for wrong in (
        operands._replace(table=stolen),
        operands._replace(packed=[t.clone() for t in one.packed], table=one.table.clone()),
        operands._replace(packed=other.packed, table=one.table.clone()),
    ):
        with pytest.raises(ValueError, match="slot 0"):
            call(x, None, *wrong, False)
    gone = one.table.clone()
    one.remove(0)
    with pytest.raises(ValueError, match="slot 0"):
        call(x, None, *operands._replace(table=gone), False)


def test_operands_keep_the_memory_of_a_bank_that_is_gone():
    bank, x, routing = Bank(150, 60, layout="planar"), torch.randn(1, 150), kernels.Routing.of([0])
    bank.add(0, random_factors(60, 150, 30, 0))
    operands, wanted, memory = bank.operands(routing), kernels.delta_linear(x, bank, routing), weakref.ref(bank._store)
    del bank
    gc.collect()
    assert memory() is None
    assert torch.equal(torch.ops.dts.delta_linear(x, None, *operands, False), wanted)


def test_loading_neither_compiles_again_nor_forgets_launches():
    """Beyond reserved room too, as long as the table takes the task."""
    from torch._dynamo.testing import CompileCounter

    bank, counter = Bank(150, 60, layout="planar"), CompileCounter()
    bank.add(0, random_factors(60, 150, 7, 0))
    step = torch.compile(lambda x, r: kernels.delta_linear(x, bank, r), fullgraph=True, backend=counter)
    x = torch.randn(2, 150)
    for slot in range(8):
        bank.add(slot, random_factors(60, 150, 7 + slot, slot))
        routing = kernels.Routing.of([slot, 0])
        torch.testing.assert_close(step(x, routing), kernels.delta_linear(x, bank, routing))
    assert counter.frame_count == 1
    held = bank.table._dts_contents
    bank.remove(3)
    bank.add(3, random_factors(60, 150, 99, 3))
    assert bank.table._dts_contents is held and held.of_now(bank.packed, bank.table)
