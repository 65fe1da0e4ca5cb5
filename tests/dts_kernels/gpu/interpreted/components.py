"""Products with components, factors and gradients, and what tasks add to vectors."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dts_kernels as kernels
from dts_kernels import dispatch, reference
from dts_kernels.gpu import library_products, products, rules, sweep, vectors
from dts_kernels.gpu.config import Config
from dts_kernels.gpu.launch import run
from dts_kernels.layout import rank_order
from dts_kernels.paths import PATHS
from tests.dts_kernels.gpu.interpreted.common import IN, MIXED, OUT, TOLERANCE, bank, error, factors, truth


@pytest.mark.parametrize(
    "entries,levels",
    [
        (MIXED, False),
        (MIXED, True),
        ([2], False),
        ([None], False),
        ([{0: 0.5, 2: -0.25}], False),
        ([{0: 0.5, 2: 2.0}, {3: 1.0}], False),
        ([{0: 0.5, 2: 2.0}, {3: 1.0}], True),
    ],
    ids=["rows", "rows-levels", "one", "none", "mixture", "mixtures", "mixtures-levels"],
)
def test_delta_linear_and_linear(entries, levels, dtype):
    made, routing = bank(levels), kernels.Routing.of(entries)
    x, weight, bias = torch.randn(6, IN).to(dtype), (torch.randn(OUT, IN) / 12).to(dtype), torch.randn(OUT).to(dtype)
    dispatch.ran.clear()
    y = torch.randn(6, OUT).to(dtype)
    assert error(kernels.delta_linear(x, made, routing, y), truth(x, made, routing, y)) < TOLERANCE[dtype]
    base = x.double() @ weight.double().T
    wanted = truth(x, made, routing, base + bias.double())
    assert error(kernels.linear(x, weight, bias, made, routing), wanted) < TOLERANCE[dtype]
    suffix = "_levels" if levels else ""
    assert dispatch.ran == Counter({("delta_linear", "triton" + suffix): 1, ("linear", "triton" + suffix): 1})
    if entries == [None]:
        assert torch.equal(kernels.delta_linear(x, made, routing), torch.zeros(6, OUT, dtype=dtype))


@pytest.mark.parametrize("entries", [MIXED, [2], [{0: 0.5, 2: -0.25}]], ids=["rows", "one", "mixture"])
def test_base_and_delta_in_one_kernel(entries, dtype):
    """Whether or not a device is known on which it is the faster way."""
    made, routing = bank(), kernels.Routing.of(entries)
    x, weight, bias = torch.randn(6, IN).to(dtype), (torch.randn(OUT, IN) / 12).to(dtype), torch.randn(OUT).to(dtype)
    launch = products.Launch(x, made.operands(routing), FUSED)
    wanted = truth(x, made, routing, x.double() @ weight.double().T + bias.double())
    assert error(launch.base_expand(weight, bias), wanted) < TOLERANCE[dtype]


FUSED = {"base_expand": Config(block_n=32, block_k=32, stages=2)}


@pytest.mark.parametrize("entries", [[2], [2, None, 0]], ids=["one", "several"])
@pytest.mark.parametrize("with_y", [False, True])
@pytest.mark.parametrize("size", [1e-8, 1e-3, 1e6])
def test_many_rows_in_bfloat16_are_rounded_once(entries, with_y, size):
    """A task's scale goes into t, which a power of two leaves exact: t and the result are rounded, nothing else."""
    made, routing = bank(size=size), kernels.Routing.of(entries)
    x = torch.randn(3 * len(entries), IN).bfloat16()
    y = (size * torch.randn(len(x), OUT)).bfloat16() if with_y else None
    got = library_products.delta_linear(x, y, made.operands(routing), False)
    wanted = truth(x, made, routing, y)
    assert got.dtype == torch.bfloat16 and error(got, wanted) < 4e-3
    assert (got[:3].double() - wanted[:3]).norm() < 4e-3 * wanted[:3].norm()


@pytest.mark.parametrize("slot", [2, 5, -1, 9, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize(
    "dtype,scaled", [(torch.float32, False), (torch.float16, False), (torch.bfloat16, True)], ids=str
)
def test_t_is_rounded_once_and_nothing_without_a_task(slot, scaled, dtype):
    """A power of two then leaves it exact; what lies beyond the task's rank is 0 whatever the product has there."""
    made, routing = (
        bank(),
        kernels.Routing(torch.tensor([[0], [slot]], dtype=torch.int32), torch.tensor([[9.0], [0.7]])),
    )
    operands = made.operands(routing)
    wide = torch.randn(5, made.max_rank)
    slots, gammas = routing.slots.flatten(), routing.weights.flatten()
    got = library_products.round_t(wide, operands, slots, gammas, 1, dtype, scaled)
    wanted = torch.zeros(5, made.max_rank, dtype=dtype)
    if slot == 2:
        sigma = made.factors(2).sigma
        exponent = reference.range_exponent(made.factors(2))
        wanted[:, : len(sigma)] = (wide[:, : len(sigma)] * (sigma * 2.0**exponent * 0.7)).to(dtype)
        wanted = (wanted.float() * 2.0**-exponent).to(dtype) if scaled else wanted
    rtol = {torch.float32: 3e-7, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]  # a step, as products may differ
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=0)


@pytest.mark.parametrize("with_y", [False, True])
@pytest.mark.parametrize("entries", [[2], [2, None, 0], [{0: 0.5, 2: 2.0}], [9, 2, -1]], ids=str)
def test_library_products_leave_what_they_were_given(entries, with_y, dtype):
    """But for a base's product of their own, which they add to."""
    made, routing = bank(), kernels.Routing.of(entries)
    x, weight = torch.randn(3 * len(entries), IN).to(dtype), (torch.randn(OUT, IN) / 12).to(dtype)
    y = torch.randn(len(x), OUT).to(dtype) if with_y else None
    kept = None if y is None else y.clone()
    got = library_products.delta_linear(x, y, made.operands(routing), False)
    assert error(got, truth(x, made, routing, y)) < TOLERANCE[dtype]
    assert y is None or torch.equal(y, kept)
    whole = library_products.linear(x, weight, None, made.operands(routing))
    assert error(whole, truth(x, made, routing, x.double() @ weight.double().T)) < TOLERANCE[dtype]


def test_a_long_prompt_in_bfloat16_is_few_launches(monkeypatch):
    """The base, two factors, x V, t, and one product that adds: none more, and no copy of y."""
    found, made, routing = [], bank(), kernels.Routing.of([2])
    for name in ("dequantise", "round_t", "wide_mm"):
        real = getattr(library_products, name)
        monkeypatch.setattr(library_products, name, lambda *a, name=name, real=real: found.append(name) or real(*a))
    x, weight = torch.randn(4, IN).bfloat16(), torch.randn(OUT, IN).bfloat16()

    class Ops(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found.append(func.name())
            return func(*args, **(kwargs or {}))

    operands = made.operands(routing)
    with Ops():
        library_products.linear(x, weight, None, operands)
    computing = [
        name for name in found if not any(part in name for part in ("empty", "view", "slice", "alias", "::t", "fill"))
    ]
    assert computing.count("aten::addmm_") == 1 and "aten::clone" not in computing and "aten::mul" not in computing
    assert [name for name in computing if "::" not in name] == ["dequantise", "dequantise", "wide_mm", "round_t"]


@pytest.mark.parametrize("levels", [False, True], ids=["codes", "levels"])
@pytest.mark.parametrize(
    "entries,each",
    [([2], 19), (MIXED, 1), (MIXED, 5), ([{0: 0.5, 2: -0.25}, {3: 1.0}], 3), ([None], 2)],
    ids=["one", "a task a row", "several rows", "mixtures", "none"],
)
def test_rows_of_an_embedding(entries, each, levels, dtype):
    made, routing = bank(levels), kernels.Routing.of(entries)
    ids = torch.randint(OUT, (len(entries), each), generator=torch.Generator().manual_seed(1))
    ids.view(-1)[:3] = torch.tensor([0, OUT - 1, -1])[: ids.numel()]
    dispatch.ran.clear()
    out = kernels.delta_embedding(ids, made, routing, dtype)
    assert dispatch.ran == Counter({("delta_embedding", "triton" + "_levels" * levels): 1})
    known = {slot: made.factors(slot) for slot in made.slots}
    wanted = reference.delta_embedding(ids.flatten(), known, routing.slots, routing.weights, IN, torch.float64)
    assert out.shape == (*ids.shape, IN) and out.dtype == dtype
    assert error(out.flatten(0, 1), wanted) < 2 * TOLERANCE[dtype] if wanted.any() else not out.any()
    assert torch.equal(out.flatten(0, 1)[wanted.sum(1) == 0], torch.zeros_like(out.flatten(0, 1)[wanted.sum(1) == 0]))
    y, parts = torch.randn(*ids.shape, IN).to(dtype), kernels.EmbeddingParts([(made, None)], OUT)
    dispatch.ran.clear()
    with torch.no_grad():
        added = kernels.add_embedding(ids, y.clone(), parts, routing)
    assert dispatch.ran == Counter({("add_embedding", "triton"): 1})
    assert error(added.flatten(0, 1), y.flatten(0, 1).double() + wanted) < TOLERANCE[dtype]  # rounded once
    assert torch.equal(added.flatten(0, 1)[wanted.sum(1) == 0], y.flatten(0, 1)[wanted.sum(1) == 0])
    for call in (
        lambda: kernels.delta_embedding(torch.full_like(ids, OUT), made, routing, dtype),
        lambda: kernels.add_embedding(torch.full_like(ids, OUT), y, parts, routing),
    ):
        with pytest.raises(IndexError, match=f"{OUT}"):
            call()


def test_ids_that_no_row_has_are_nan_where_nobody_waits_to_know():
    """What a GPU does: on tensors of a CPU the op looks first."""
    made, routing = bank(), kernels.Routing.of([2])
    ids = torch.tensor([OUT, 3, 2**40, -(2**40)])
    out = PATHS["delta_embedding"]["triton"](ids, made.operands(routing), IN, torch.float32)
    assert out.isnan().all(1).tolist() == [True, False, True, False] and not out[3].any()
    made.remove(2)
    assert not PATHS["delta_embedding"]["triton"](torch.tensor([3]), made.operands(routing), IN, torch.float32).any()


def test_banks_without_ranks_are_not_read():
    """Their table is on a device, and a graph may be captured that would have to wait for it."""
    made, routing = kernels.Bank(IN, OUT, layout="planar"), kernels.Routing.of([2])
    unread = made.operands(routing)._replace(table=torch.zeros(1, 4, dtype=torch.int64, device="meta"))
    x, y = torch.randn(2, IN), torch.randn(2, OUT)
    assert torch.equal(PATHS["delta_linear"]["reference"](x, y, unread, False), y)
    assert not PATHS["delta_linear"]["reference"](x, None, unread, False).any()
    assert PATHS["delta_embedding"]["reference"](torch.zeros(3), unread, IN, torch.float16).shape == (3, IN)


@pytest.mark.parametrize("rows,split", [(1, 2), (17, 1), (17, 2)])
def test_row_blocks_and_split_contractions(rows, split, dtype):
    made, routing = bank(), kernels.Routing.of([2])
    x = torch.randn(rows, IN).to(dtype)
    launch = products.Launch(
        x,
        made.operands(routing),
        {"shrink": Config(split=split, block_n=32), "expand": Config(block_n=32)},
    )
    t, parts = launch.shrink()
    assert parts == split
    assert error(launch.expand(t, parts, None), truth(x, made, routing)) < TOLERANCE[dtype]


def test_parts_that_are_added_up_before_give_the_same_bits(dtype):
    made, routing = bank(), kernels.Routing.of([{2: 0.5, 0: 1.5}])
    x = torch.randn(3, IN).to(dtype)
    launch = products.Launch(x, made.operands(routing), {"shrink": Config(split=2, block_n=32)})
    parts, count = launch.shrink()
    whole = launch.scratch(1)
    run(launch.combine_call(parts, whole))
    assert count == 2 and whole.dtype == dtype
    assert torch.equal(launch.expand(whole, 1, None), launch.expand(parts, 2, None))


def test_every_half_word_decodes_to_its_codes(every_half_word, dtype):
    """The product with the identity is the decoded words: 65,536 of them, all low and all high halves."""
    x, operands, wanted = every_half_word(dtype, "cpu")
    t, _ = products.Launch(x, operands, {"shrink": Config(block_t=128, block_n=1024)}).shrink()
    assert torch.equal(t[0, 0].float()[:, rank_order(t.shape[-1])], wanted)


def test_one_program_gathers_the_rows_of_a_task_wherever_they_are():
    """36 rows, 18 of them of one task: more than a row block holds."""
    made, routing = bank(), kernels.Routing.of([0, 3] * 18)
    dtype = torch.float16
    x = torch.randn(36, IN).to(dtype)
    assert error(kernels.delta_linear(x, made, routing), truth(x, made, routing)) < TOLERANCE[dtype]


def test_several_rows_an_entry():
    dtype = torch.float16
    made, routing = bank(), kernels.Routing.of([2, None, 0])
    x = torch.randn(3, 5, IN).to(dtype)
    wanted = truth(x.flatten(0, 1), made, routing)
    assert error(kernels.delta_linear(x, made, routing).flatten(0, 1), wanted) < TOLERANCE[dtype]


def test_rows_do_not_depend_on_their_neighbours_bitwise():
    made = bank()
    dtype = torch.float16
    x = torch.randn(6, IN).to(dtype)
    together = kernels.delta_linear(x, made, kernels.Routing.of(MIXED))
    for row in (0, 1, 5):
        entries = [MIXED[row], 0, 3, 2]
        others = torch.cat([x[row : row + 1], torch.full((3, IN), 7.0).to(dtype)])
        assert torch.equal(kernels.delta_linear(others, made, kernels.Routing.of(entries))[0], together[row])


def test_a_nan_stays_in_its_row():
    made = bank()
    x = torch.randn(6, IN)
    x[3, 5] = float("nan")
    out = kernels.delta_linear(x, made, kernels.Routing.of(MIXED))
    assert out[3].isnan().all() and out[[0, 1, 2, 4, 5]].isfinite().all()


@pytest.mark.parametrize("size", [1e-6, 10.0])
def test_fp16_neither_overflows_nor_underflows(size):
    made, routing = bank(size=size), kernels.Routing.of([2])
    x = (torch.randn(4, IN) * (100 if size < 1 else 0.01)).half()
    wanted = truth(x, made, routing)
    if wanted.abs().max() < 6e-5:  # the output itself would be subnormal
        pytest.fail("the case no longer tests what it says")
    assert error(kernels.delta_linear(x, made, routing), wanted) < 2e-3


@pytest.mark.parametrize("levels", [False, True], ids=["4:1", "levels"])
@pytest.mark.parametrize("side", ["u", "v"])
def test_dequantise_is_the_factor(side, levels):
    made = bank(levels)
    slots = torch.tensor([0, 2, 5, -1], dtype=torch.int32)
    for place in range(4):
        sizes = (made.max_rank, OUT) if side == "u" else (IN, made.max_rank)
        got = library_products.dequantise(
            made.packed, made.table, slots, place, *sizes, side == "u", torch.float32, levels
        )
        wanted = torch.zeros(sizes)
        if slots[place] in (0, 2):
            u, v = reference.factor_values(made.factors(int(slots[place])))
            wanted[tuple(map(slice, (u.T if side == "u" else v).shape))] = u.T if side == "u" else v
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("levels", [False, True], ids=["4:1", "levels"])
def test_many_rows_use_dequantised_factors(levels, dtype):
    made, routing = bank(levels), kernels.Routing.of([{2: 0.5, 0: 1.0}])
    x = torch.randn(rules.DEQUANTISE_ROWS, IN).to(dtype)
    dispatch.ran.clear()
    got = kernels.delta_linear(x[None], made, routing)[0] if dtype == torch.float32 else None
    if got is None:  # so small a matrix has no rows of 16 bits that are enough
        got = library_products.delta_linear(x, None, made.operands(routing), False)
    else:
        assert set(dispatch.ran) == {("delta_linear", "dequantise" + ("_levels" if levels else ""))}
    assert error(got, truth(x, made, routing)) < TOLERANCE[dtype]


@pytest.mark.parametrize("levels", [False, True], ids=["4:1", "levels"])
def test_gradient_of_x(levels, dtype):
    made, routing = bank(levels), kernels.Routing.of([2, None, 0])
    x, upstream = torch.randn(3, IN).to(dtype).requires_grad_(), torch.randn(3, OUT).to(dtype)
    (got,) = torch.autograd.grad(kernels.delta_linear(x, made, routing), x, upstream)
    exact = x.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(truth(exact, made, routing), exact, upstream.double())
    assert error(got, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("levels", [False, True], ids=["4:1", "levels"])
@pytest.mark.parametrize("with_base", [False, True])
def test_reconstruct(levels, with_base, dtype):
    made = bank(levels)
    base = torch.randn(OUT, IN).to(dtype) if with_base else None
    delta = sum(g * reference.reconstruct(made.factors(s), torch.float64) for s, g in ((0, 0.5), (2, 0.25)))
    got = kernels.reconstruct(made, {0: 0.5, 2: 0.25}, base, dtype)
    assert got.dtype == dtype
    assert error(got, delta if base is None else delta + base.double()) < TOLERANCE[dtype]


def test_tasks_switch_in_place():
    """What a captured graph holds on to stays where it is while tasks come and go within the capacity."""
    made = bank()
    made.reserve(tasks=8, rank=130)
    held = [*made.packed, made.table]
    x = torch.randn(3, IN)
    for slot in (1, 4):
        made.add(slot, factors(100, seed=9 + slot))
    made.remove(2)
    assert all(one is other for one, other in zip(held, [*made.packed, made.table]))
    routing = kernels.Routing.of([1, 2, 4])
    wanted = truth(x, made, routing)
    got = torch.ops.dts.delta_linear(
        x, None, held[:2], held[2], routing.slots, routing.weights, OUT, made.max_rank, made.layout, False
    )
    assert error(got, wanted) < 3e-6 and not got[1].any()


@pytest.mark.parametrize("new", [dict(rank=300), dict(rank=5, levels=True), dict(rank=5, slot=11)], ids=str)
def test_what_was_launched_before_goes_on_beyond_the_room(new):
    """A task that kernels cannot do, of more ranks than they have scratch for, adds nothing in them; all others do."""
    made = bank()
    before = made.operands(kernels.Routing.of([0, 2, None])), made.max_rank
    held, layout, x = [*made.packed, made.table], made.layout, torch.randn(3, IN)
    slot = new.pop("slot", 5)
    made.add(slot, factors(**new, seed=9))
    made.add(4, factors(90, seed=8))
    made.remove(0)
    assert made.table is not held[2]
    routing = kernels.Routing.of([slot, 4, 0])
    launch = products.Launch(x, before[0]._replace(slots=routing.slots, weights=routing.weights))
    got = launch.expand(*launch.shrink(), None)
    assert (launch.width, launch.levels) == (before[1], layout == "planar_levels")
    assert error(got[1], truth(x, made, routing)[1]) < 3e-6 and not got[[0, 2]].any()
    assert error(kernels.delta_linear(x, made, routing), truth(x, made, routing)) < 3e-6


@pytest.mark.parametrize("rank", [1, 9, 16, 127, 128, 136, 249])
@pytest.mark.parametrize("levels", [False, True], ids=["4:1", "levels"])
def test_ranks_beside_whole_blocks(rank, levels, dtype):
    """The last ranks of U have a row of words for 16 of them, of half words for 8."""
    made = kernels.Bank(IN, OUT, layout="planar")
    made.add(1, factors(rank, levels, size=1.0))
    routing = kernels.Routing.of([1, 1])
    x = torch.randn(2, IN).to(dtype)
    launch = products.Launch(x, made.operands(routing), {"shrink": Config(split=2, block_n=32)})
    assert error(launch.expand(*launch.shrink(), None), truth(x, made, routing)) < TOLERANCE[dtype]
    flat = library_products.delta_linear(x, None, made.operands(routing), False)
    assert error(flat, truth(x, made, routing)) < TOLERANCE[dtype]
    dense = reference.reconstruct(made.factors(1), torch.float64)
    assert error(kernels.reconstruct(made, {1: 1.0}, dtype=dtype), dense) < TOLERANCE[dtype]


def test_opcheck(in_one_piece):
    made, routing = bank(), kernels.Routing.of([2, None])
    arguments = (
        torch.randn(2, IN, requires_grad=True),
        None,
        *in_one_piece(made.packed, made.table),
        *made.operands(routing)[2:],
        False,
    )
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    assert set(torch.library.opcheck(torch.ops.dts.delta_linear.default, arguments, test_utils=utilities).values()) == {
        "SUCCESS"
    }


@pytest.mark.parametrize("entries", [MIXED, [2], [None], [{0: 0.5, 2: -0.25}]], ids=["rows", "one", "none", "mixture"])
@pytest.mark.parametrize("width", [5, 700])
def test_what_tasks_add_to_vectors(entries, width, dtype):
    routing, stack = kernels.Routing.of(entries), torch.randn(4, width).to(dtype)
    rows = 2 * len(entries)
    y = torch.randn(rows, width).to(dtype)
    gamma = torch.zeros(len(entries), 4, dtype=torch.float64)
    for row, (slots, weights) in enumerate(zip(routing.slots.tolist(), routing.weights.tolist())):
        for slot, weight in zip(slots, weights):
            if 0 <= slot < 4:
                gamma[row, slot] += weight
    wanted = gamma @ stack.double()
    got = vectors.task_rows(stack, routing, y, torch.empty_like(y), rows, width)
    assert error(got, y.double() + wanted.repeat_interleave(2, 0)) < TOLERANCE[dtype]
    base = torch.randn(width).to(dtype)
    got = vectors.task_rows(stack, routing, base, torch.empty(len(entries), width, dtype=dtype), len(entries), 0)
    assert error(got, base.double() + wanted) < TOLERANCE[dtype]
    got = vectors.task_rows(stack, routing, None, torch.empty(len(entries), width, dtype=dtype), len(entries), 0)
    assert torch.isfinite(got).all() and (got.double() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm()


@pytest.mark.parametrize("k,first", [(70, 0), (70, 64), (9, 0)])
def test_a_chunk_of_components_is_swept_one_after_the_other(k, first):
    """Against the definition: each component's best value beside what all the others are by then, then rounded."""
    torch.manual_seed(0)
    ranks, columns = [k, max(first + 1, k - 5)], 37
    delta, v = torch.randn(2, columns, 50, dtype=torch.float64), torch.randn(2, k, 50).sign() * 1.0
    factor, sigma = torch.randn(2, k, columns).sign() * 1.0, torch.rand(2, k) + 0.1
    for i, rank in enumerate(ranks):
        v[i, rank:], factor[i, rank:], sigma[i, rank:] = 0, 0, 0
    gram = v @ v.mT
    step = torch.where(sigma > 0, 1.3 / (gram.diagonal(dim1=1, dim2=2) * sigma), 0.0)
    last = min(first + sweep.CHUNK, k)
    misfit = (v @ delta.float().mT - (gram * sigma[:, None]) @ factor)[:, first:last]
    moved = factor.clone()
    sweep.sweep(factor, moved, misfit.contiguous(), gram, sigma, step, torch.tensor(ranks, dtype=torch.int32), first)
    for i, rank in enumerate(ranks):
        naive = factor[i].double()
        for j in range(first, min(last, rank)):
            left = delta[i] - (naive.T * sigma[i]) @ v[i].double()
            target = naive[j] + 1.3 * (left @ v[i, j].double()) / (sigma[i, j] * v[i, j].square().sum())
            naive[j] = torch.where(target.abs() > 2.5, 4.0, 1.0) * target.sign()
        assert torch.equal(moved[i].double(), naive)


def test_what_cannot_be_swept_is_refused():
    x, ranks = torch.ones(1, 4, 8), torch.ones(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="misfit, gram, step cannot be swept"):
        sweep.sweep(x, x.clone(), x[:, :2], torch.ones(1, 4, 5), torch.ones(1, 4), torch.ones(1, 4).double(), ranks, 0)
