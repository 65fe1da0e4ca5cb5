"""Sampled elements: where they are, and products with them, against dense float64 matrices."""

import copy
import math
import pickle
import struct
import warnings
from dataclasses import replace

import pytest
import torch

from dts_kernels import Routing, SampleBank, Samples, add_dense_samples, add_sampled_rows, add_samples, dispatch, pack
from dts_kernels.layout import VALUES, packed_width, unpack
from dts_kernels.reference import decode
from dts_kernels.sample_table import PLAIN, SHARED, fields_of, read, row_of
from dts_kernels.sample_words import to_words, turn, words_of
from dts_kernels.samples import SHARES, columns, dense, elements_of, groups, groups_of


def samples(shape, stride, seed=7, scale=0.01, share=(1, 1)):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(4, (shape[0], elements_of(shape[1], stride, share)), dtype=torch.uint8, generator=generator)
    return Samples(pack(codes), scale, stride, seed, shape, share)


def test_a_copy_has_memory_of_its_own_and_no_more():
    """An adapter's samples share the memory of its file."""
    own = samples((24, 60), 4)
    whole = torch.cat([own.codes.new_zeros(100, own.codes.shape[1]), own.codes])
    for copied in (copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        again = copied(replace(own, codes=whole[100:]))
        assert torch.equal(again.codes, own.codes) and replace(again, codes=own.codes) == own
        assert again.codes.untyped_storage().nbytes() == own.nbytes


def mix(h):
    """The hash of the module's docstring, in Python's integers."""
    h ^= h >> 16
    h = h * 0x85EBCA6B & 0xFFFFFFFF
    h ^= h >> 13
    h = h * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ h >> 16


def naive_dense(s: Samples) -> torch.Tensor:
    out, codes = torch.zeros(s.shape, dtype=torch.float64), unpack(s.codes, s.elements)
    scale, (c, w) = torch.tensor(s.scale).double(), s.share
    for i in range(s.shape[0]):
        h = lambda g: mix((s.seed + 0x9E3779B1 * (i // s.stride) + 0x85EBCA77 * g) & 0xFFFFFFFF)  # noqa: B023, E731
        for t in range(s.elements):
            u, j = divmod(t, c)
            turn = h(-1 - w * u // 64) >> 26
            g = w * u + ((w >> j) % w ^ turn % w)
            column = g * s.stride + (i + ((h(g) >> 16) * s.stride >> 16)) % s.stride
            if column < s.shape[1]:
                out[i, column] = VALUES[codes[i, t]] * scale
    return out


SHAPES = [((40, 64), 8), ((37, 50), 7), ((16, 16), 1), ((5, 33), 40), ((130, 96), 13)]


@pytest.mark.parametrize("shape, stride", SHAPES)
@pytest.mark.parametrize("share", [(1, 1), (3, 4), (1, 8)])
def test_dense_is_the_definition(shape, stride, share):
    for seed in (0, 7, 2**32 - 1):
        s = samples(shape, stride, seed=seed, share=share)
        assert torch.equal(dense(s, torch.float64), naive_dense(s))


def test_a_smaller_share_is_part_of_a_larger_one():
    blocks = torch.arange(9)
    found = [groups(4 * 130, 4, 5, blocks, share) for share in SHARES]
    for larger, smaller, (kept, window) in zip(found, found[1:], SHARES[1:]):
        assert smaller.shape[1] == kept * -(-130 // window)
        for block in range(9):
            of_larger = larger[min(block, len(larger) - 1)].tolist()
            of_smaller = smaller[block].tolist()
            assert len(set(of_smaller)) == len(of_smaller)
            assert {g for g in of_smaller if g < 130} <= set(of_larger)


def test_each_group_of_a_window_is_as_likely():
    for share in ((1, 4), (3, 8)):
        taken = torch.bincount(torch.cat([groups(64, 1, seed, torch.zeros(1).long(), share)[0] for seed in range(900)]))
        wanted = 900 * share[0] / share[1]
        assert len(taken) == 64 and (taken - wanted).abs().max() < 5 * wanted**0.5


def test_only_a_table_with_a_thinned_sample_has_shares():
    for share in SHARES:
        one = samples((5, 33), 2, share=share)
        assert fields_of([samples((5, 33), 2), one]) == (PLAIN if share == (1, 1) else SHARED)
        row = row_of(3, 64, one, SHARED)
        assert read(row) == (3, 64, 2, 7, share) and row[PLAIN:] == [2 * int(math.log2(share[1])) + (share[0] == 3)]
        if share == (1, 1):
            assert read(row_of(3, 64, one, PLAIN)) == read(row)
        else:
            with pytest.raises(ValueError, match="no thinned samples"):
                row_of(3, 64, one, PLAIN)
    for number in (-1, 1, 3, 14, 15, 1 << 62, 2**63 - 1):
        with pytest.raises(ValueError, match=f"a sample in slot 3 has stride 0, {number} for its share"):
            read([3, 64, 0, 7, number])


def test_every_block_is_a_turned_diagonal_and_every_element_is_as_likely():
    where = columns((48, 96), 12, 3)
    kept = torch.zeros(48, 96).scatter_(1, where, 1.0)
    blocks = kept.view(4, 12, 8, 12).permute(0, 2, 1, 3)
    assert (blocks.sum(2) == 1).all() and (blocks.sum(3) == 1).all()
    often = torch.zeros(12, 12)
    for seed in range(1200):
        often.scatter_add_(1, columns((12, 12), 12, seed), torch.ones(12, 1))
    assert often.min() > 60 and often.max() < 145  # 100 expected, a deviation of 9.6


def bank_of(*tasks, shape=(40, 64), device="cpu"):
    bank = SampleBank(shape[1], shape[0], device)
    for slot, own in enumerate(tasks):
        if own is not None:
            bank.add(slot, own)
    return bank


def dense_of(bank, slot):
    return sum((dense(s, torch.float64) for s in bank.samples(slot)), torch.zeros(40, 64, dtype=torch.float64))


@pytest.fixture
def bank():
    shape = (40, 64)
    return bank_of((samples(shape, 8),), None, (samples(shape, 5, 1), samples(shape, 64, 2)), ())


ROUTINGS = [[0], [2], [None], [1], [{0: 0.3, 2: -2.0}], [0, 2, None, {2: 0.5, 0: 1.0}, 3, 9]]


@pytest.mark.parametrize("entries", ROUTINGS)
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize("each", [1, 3])
def test_products_are_those_of_dense_matrices(bank, entries, dtype, tolerance, each):
    rows = len(entries) * each
    x, y = torch.randn(rows, 64).to(dtype), torch.randn(rows, 40).to(dtype)
    wanted, sizes = y.to(torch.float64, copy=True), torch.zeros(rows, 40, dtype=torch.float64)
    for i, entry in enumerate(entries):
        for slot, gamma in (entry if isinstance(entry, dict) else {} if entry is None else {entry: 1.0}).items():
            if slot in bank.slots:
                at, matrix = slice(i * each, (i + 1) * each), torch.tensor(gamma).double() * dense_of(bank, slot)
                wanted[at] += x[at].double() @ matrix.T
                sizes[at] += matrix.abs().sum(1)
    # the compiled library takes x of small strides in 16 bits: half a step of them for each element of D
    digits = x.double().abs().amax(1, keepdim=True) / 32512 / 2 * sizes
    before = y.clone()
    for exact in (True, False):
        with dispatch.exact_products(exact):
            out = add_samples(x, y, bank, Routing.of(entries))
        assert out.dtype == dtype and torch.equal(y, before)
        most = tolerance * (1 + wanted.abs()) + (0 if exact or dtype is torch.float64 else digits)
        assert ((out.double() - wanted).abs() <= most).all()


def test_gradients(bank):
    routing = Routing.of([0, {2: 0.5, 0: -1.0}])
    x = torch.randn(4, 64, dtype=torch.float64, requires_grad=True)
    y = torch.randn(4, 40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: add_samples(x, y, bank, routing), (x, y))


def test_the_op_is_well_behaved(bank):
    routing = Routing.of([0, 2])
    x, y = torch.randn(4, 64, requires_grad=True), torch.randn(4, 40)
    torch.library.opcheck(torch.ops.dts.add_samples, (x, y, *bank.arguments, routing.slots, routing.weights, False))


def test_rows_and_the_whole(bank):
    ids = torch.tensor([[3, -1], [39, 0]])
    y = torch.randn(2, 2, 64, dtype=torch.float64)
    out = add_sampled_rows(ids, y, bank, Routing.of([0, {2: 0.5}]))
    wanted = y.clone()
    wanted[0, 0] += dense_of(bank, 0)[3]
    wanted[1] += 0.5 * dense_of(bank, 2)[ids[1]]
    torch.testing.assert_close(out, wanted)
    base = torch.randn(40, 64, dtype=torch.float64)
    whole = add_dense_samples(base, bank, torch.tensor([2.0, 1.0, 0.5]))
    torch.testing.assert_close(whole, base + 2 * dense_of(bank, 0) + 0.5 * dense_of(bank, 2))
    with pytest.raises(IndexError, match="40"):
        add_sampled_rows(torch.tensor([40]), y[0, :1], bank, Routing.of([0]))


def test_what_does_not_fit_is_refused(bank):
    with pytest.raises(ValueError, match="stride.*seed"):
        Samples(torch.zeros(4, 1, dtype=torch.uint8), 1.0, 0, -1, (4, 8))
    with pytest.raises(ValueError, match=r"uint8 \[4, 1\]"):
        Samples(torch.zeros(4, 2, dtype=torch.uint8), 1.0, 4, 0, (4, 8))
    with pytest.raises(ValueError, match=r"\[40, 64\]"):
        bank.add(1, (samples((40, 65), 8),))
    x, y = torch.randn(3, 64), torch.randn(3, 40)
    with pytest.raises(ValueError, match="end in 64"):
        add_samples(x[:, :63], y, bank, Routing.of([0]))
    with pytest.raises(ValueError, match=r"\[3, 40\]"):
        add_samples(x, y[:2], bank, Routing.of([0]))
    with pytest.raises(ValueError, match="multiple"):
        add_samples(x, y, bank, Routing.of([0, 2]))


def test_a_slot_can_be_emptied_and_moved(bank):
    bank.remove(0)
    x, y = torch.randn(2, 64), torch.randn(2, 40)
    assert torch.equal(add_samples(x, y, bank, Routing.of([0])), y)
    assert bank.to("cpu").slots == [2, 3]


def test_an_arena_stays_where_it_is_while_tasks_come_and_go():
    """What was captured with its tensors must see the tasks that are there now."""
    shape, x = (40, 64), torch.randn(2, 64, dtype=torch.float64)
    bank = SampleBank(64, 40, arena=True)
    bank.add(0, (samples(shape, 8),))
    captured = bank.arguments

    def product(slot):
        routing = Routing.of([slot])
        y = torch.zeros(2, 40, dtype=torch.float64)
        return torch.ops.dts.add_samples(x, y, *captured, routing.slots, routing.weights, False)

    for slot, strides in ((3, (16, 32)), (1, (64,)), (0, (20,))):
        bank.add(slot, tuple(samples(shape, stride, seed=slot + stride) for stride in strides))
        bank.remove(5)
        for other in bank.slots:
            torch.testing.assert_close(product(other), x @ dense_of(bank, other).T)
    bank.remove(3)
    assert not product(3).any() and [t.data_ptr() for t in captured[1:]] == [t.data_ptr() for t in bank.arguments[1:]]
    for slot in range(20):  # more than there was room for
        bank.add(slot, (samples(shape, 2, seed=slot),))
    assert all(torch.equal(dense_of(bank, s), dense(samples(shape, 2, seed=s), torch.float64)) for s in bank.slots)
    assert bank.to("cpu").arena is None


def test_what_holds_a_table_that_had_to_grow_sees_the_tasks_that_it_has_room_for():
    """A captured graph goes on with the tensors it was given: a row that is not in them must never be read."""
    shape, x = (40, 64), torch.randn(2, 64, dtype=torch.float64)
    bank = SampleBank(64, 40, arena=True)
    bank.add(1, (samples(shape, 8),))
    held = [bank.arguments]

    def product(stored, slot):
        routing = Routing.of([slot])
        y = torch.zeros(2, 40, dtype=torch.float64)
        return torch.ops.dts.add_samples(x, y, *stored, routing.slots, routing.weights, False)

    bank.add(0, (samples(shape, 4, share=(3, 8)),))  # a table with shares
    held.append(bank.arguments)
    bank.add(30, (samples(shape, 5),))  # more slots
    held.append(bank.arguments)
    bank.add(2, tuple(samples(shape, 9, seed=seed) for seed in range(8)))  # more rows
    held.append(bank.arguments)
    bank.add(1, (samples(shape, 3),))
    sees = [{1}, {0, 1}, {0, 1, 30}, {0, 1, 2, 30}]
    for stored, those in zip(held, sees, strict=True):
        assert stored.starts[-1] <= stored.table.shape[0]
        for slot in bank.slots:
            wanted = x @ dense_of(bank, slot).T if slot in those else torch.zeros(2, 40)
            torch.testing.assert_close(product(stored, slot), wanted.double())
    assert len({stored.table.data_ptr() for stored in held}) == 4
    copied = copy.deepcopy(bank)
    assert len(copied.arena.tables) == 1
    assert all(torch.equal(dense_of(copied, slot), dense_of(bank, slot)) for slot in bank.slots)


def test_gradients_of_what_rows_and_the_whole_are_added_to(bank):
    y = torch.randn(3, 64, requires_grad=True)
    base = torch.randn(40, 64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = add_sampled_rows(torch.tensor([0, -1, 39]), y, bank, Routing.of([0])).sum()
        (2 * out + 3 * add_dense_samples(base, bank, torch.ones(1)).sum()).backward()
    assert (y.grad == 2).all() and (base.grad == 3).all()


@pytest.mark.parametrize("shape, stride", [*SHAPES, ((384, 384), 100), ((7, 4), 1), ((9, 1000), 3)])
def test_words_give_the_bytes_back_and_take_as_much_room(shape, stride):
    made = SampleBank(shape[1], shape[0], arena=True)
    own = samples(shape, stride), samples(shape, stride, 8)
    noise = torch.randint(256, own[0].codes.shape, dtype=torch.uint8)  # codes that mean nothing, too
    own = (own[0], replace(own[1], codes=noise))
    made.add(3, own)
    for got, wanted in zip(made.samples(3), own):
        assert torch.equal(got.codes, wanted.codes) and got.scale == wanted.scale and got.seed == wanted.seed
    assert torch.equal(made.to("cpu").samples(3)[1].codes, noise)


@pytest.mark.parametrize("shape", [(384, 384), (768, 768), (1152, 2000), (4096, 4096), (14336, 4096), (11008, 4099)])
def test_words_take_no_more_room_than_the_bytes_of_the_disk(shape):
    for stride in range(1, 101):
        width = packed_width(groups_of(shape[1], stride))
        assert 4 * words_of(shape[0], width) <= 1.05 * shape[0] * width


def test_a_word_turned_is_a_quarter_of_a_value():
    codes = torch.randint(256, (24, 5), dtype=torch.uint8)
    values, words = decode(codes, 20, dtype=torch.float32), to_words(codes).to(torch.int64) & 0xFFFFFFFF
    for row in range(24):
        for group in range(20):
            word, by = words[group // 4, row // 8, group % 4 // 2].item(), turn(row, group)
            bits = (word >> by | word << 32 - by) & 0x81000000 | 0x3E800000
            assert 4 * struct.unpack("f", struct.pack("I", bits))[0] == values[row, group]


ARENA = [[0, 0, 8, 7], [0, 80, 8, 1]]  # slot, offset, stride, seed of two samples of [40, 64]: 20 words each


@pytest.mark.parametrize(
    "table, starts, match",
    [
        ([[0, 102, 8, 7]], [0, 1], "102"),
        ([[0, -2, 8, 7]], [0, 1], "-2"),
        ([[0, 1, 8, 7]], [0, 1], "from 1"),
        ([[0, 0, 0, 7]], [0, 1], "stride 0"),
        ([[0, 0, 1, 7]], [0, 1], "stride 1"),
        ([[0, 0, 8, -1]], [0, 1], "seed -1"),
        ([[0, 0, 8, 7, 1]], [0, 1], "1 for its share"),
        ([[0, 112, 8, 7, 2]], [0, 1], "112"),
        ([[0, 0, 8, 7, 2, 0]], [0, 1], "4 or 5"),
        (ARENA, [0, 3], "starts"),
        (ARENA, [1, 0], "starts"),
        (ARENA, [-1, 1], "starts"),
    ],
)
def test_tables_of_others_that_point_outside_their_words_are_refused(table, starts, match):
    routing = Routing.of([0])
    words, scales = torch.zeros(120, dtype=torch.int32), torch.ones(2)
    x, y = torch.randn(2, 64), torch.randn(2, 40)

    def product(table, starts, x=x, y=y):
        arena = [words], torch.tensor(table), torch.tensor(starts), scales
        return torch.ops.dts.add_samples(x, y, *arena, routing.slots, routing.weights, False)

    product(ARENA, [0, 2])
    with pytest.raises(ValueError, match=match):
        product(table, starts)
    with pytest.raises(ValueError, match="fit"):
        torch.ops.dts.add_sampled_rows(
            torch.tensor([0]), y[:1], [words], torch.tensor([[0, 0, 1, 7]]), torch.tensor([0, 1]), scales[:1],
            routing.slots, routing.weights, 400,
        )  # fmt: skip


def test_a_bank_s_own_table_with_other_tensors_or_sizes_is_read_again():
    routing, bank = Routing.of([0]), SampleBank(64, 40, arena=True)
    bank.add(0, (samples((40, 64), 8),))
    codes, *rest = bank.arguments

    def product(codes, n):
        x, y = torch.randn(2, n), torch.randn(2, 40)
        return torch.ops.dts.add_samples(x, y, codes, *rest, routing.slots, routing.weights, False)

    product(codes, 64)
    with pytest.raises(ValueError, match="fit"):
        product([codes[0][:16].clone()], 64)
    with pytest.raises(ValueError, match="fit"):
        product(codes, 64000)
    others = rest[0].clone()
    torch.ops.dts.add_samples(torch.randn(2, 64), torch.randn(2, 40), codes, others, *rest[1:], routing.slots,
                              routing.weights, False)  # fmt: skip
    others[0, 1] = 10**6
    with pytest.raises(ValueError, match="1000000"):
        torch.ops.dts.add_samples(torch.randn(2, 64), torch.randn(2, 40), codes, others, *rest[1:], routing.slots,
                                  routing.weights, False)  # fmt: skip
