"""Numerics of every kernel in Triton's interpreter, on the CPU.  Run by test_interpreter.py with TRITON_INTERPRET=1.

bf16 is left out of `tl.dot`, which the interpreter has wrong in some versions: sampled elements have none.
"""

import ctypes
import weakref
from collections import Counter

import pytest
import torch

import dts_kernels as kernels
from dts.nn.deltas.packed import Packed
from dts_kernels import dispatch, reference
from dts_kernels.gpu import launch, library_products, products, rules, sample_matrices, sample_products, sweep, vectors
from dts_kernels.gpu.config import Config
from dts_kernels.gpu.launch import run
from dts_kernels.layout import rank_order
from dts_kernels.parts.components import ComponentBank
from dts_kernels.parts.sample import SamplePartBank
from dts_kernels.paths import PATHS
from dts_kernels.samples import dense as dense_samples

IN, OUT = 150, 60  # neither a multiple of 16
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3}
MIXED = [2, None, 0, 2, 5, 0]  # 5 is an empty slot


def factors(rank, levels=False, out_features=OUT, in_features=IN, seed=0, size=1e-3):
    torch.manual_seed(seed)
    u, v = (kernels.pack(torch.randint(0, 4, (rows, rank), dtype=torch.uint8)) for rows in (out_features, in_features))
    return kernels.PackedFactors(u, v, torch.rand(rank) * size, torch.randn(2, 4) * 0.1 if levels else None)


def bank(levels=False, **options):
    made = kernels.Bank(IN, OUT, layout="planar")
    for slot, rank in ((0, 7), (2, 130), (3, 1)):
        made.add(slot, factors(rank, levels and slot == 2, seed=slot, **options))
    return made


def truth(x, made, routing, y=None):
    """float64, from the factors that the words give back."""
    known = {slot: made.factors(slot) for slot in made.slots}
    out = reference.delta_linear(x.double(), known, routing.slots, routing.weights, OUT)
    return out if y is None else out + y.double()


def error(got, wanted):
    assert torch.isfinite(got).all()
    return ((got.double() - wanted).norm() / wanted.norm()).item()


@pytest.fixture(autouse=True)
def fill_with_nan(monkeypatch):
    """Whatever a kernel forgets to write is NaN."""
    for name in ("empty", "new_empty"):
        owner = torch if name == "empty" else torch.Tensor
        real = getattr(owner, name)

        def full_of_nan(*args, real=real, **kwargs):
            made = real(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        monkeypatch.setattr(owner, name, full_of_nan)


@pytest.fixture(params=[torch.float32, torch.float16], ids=["fp32", "fp16"])
def dtype(request):
    return request.param


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


# ---- sampled elements --------------------------------------------------------------------------------------------


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def sampled_dtype(request):
    return request.param


SAMPLED_TOLERANCE = TOLERANCE | {torch.bfloat16: 1e-2}  # the interpreter cuts a bf16 off where a GPU rounds it


def sample_bank(shape=(37, 50), transposed=False, size=0.01):
    made = kernels.SampleBank(*(shape if transposed else shape[::-1]), transposed=transposed, arena=True)
    for slot, strides in ((0, (7,)), (2, (13, 64, 1)), (3, (5,))):  # blocks that runs of eight rows cross, and do not
        own = []
        for stride in strides:
            codes = torch.randint(4, (shape[0], -(-shape[1] // stride)), dtype=torch.uint8)
            own.append(kernels.Samples(kernels.pack(codes), size * stride, stride, 2**32 - 5 - stride, shape))
        made.add(slot, tuple(own))
    return made


SAMPLED = {
    "one": [0],
    "several samples": [2],
    "none": [None],
    "unknown": [9],
    "mixture": [{0: 0.5, 2: -1.5}],
    "mixed batch": [2, None, 0, 3, 5, {0: 0.3, 3: 2.0}],
}


@pytest.mark.parametrize("entries", SAMPLED.values(), ids=SAMPLED)
@pytest.mark.parametrize("each", [1, 3, 11])
@pytest.mark.parametrize("path", ["triton", "dense"])
def test_sampled_products(entries, each, path, sampled_dtype):
    dtype = sampled_dtype
    torch.manual_seed(0)
    made, routing = sample_bank(), kernels.Routing.of(entries)
    x, y = torch.randn(len(entries) * each, 50).to(dtype), torch.randn(len(entries) * each, 37).to(dtype)
    wanted = PATHS["add_samples"]["reference"](x.double(), y.double(), made.operands(routing), False)
    out = PATHS["add_samples"][path](x, y, made.operands(routing), False)
    assert out.shape == y.shape and out.dtype == dtype and error(out, wanted) < SAMPLED_TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (37, 1), (5, 3), (33, 129)], ids=str)
@pytest.mark.parametrize("path", ["triton", "dense"])
def test_sampled_products_of_odd_shapes(shape, path):
    torch.manual_seed(0)
    made, routing = sample_bank(shape), kernels.Routing.of([2, {0: 0.5, 3: 1.0}])
    x, y = torch.randn(6, shape[1]), torch.randn(6, shape[0])
    wanted = PATHS["add_samples"]["reference"](x.double(), y.double(), made.operands(routing), False)
    out = PATHS["add_samples"][path](x, y, made.operands(routing), False)
    assert error(out, wanted) < 3e-6


DIRECT, SPLIT_DIRECT, LAID = (sample_products.Shape(1, *rest) for rest in ((2, 1, False), (1, 3, False), (2, 2, True)))
TWO, FOUR, EIGHT = (sample_products.Shape(*rest, True) for rest in ((2, 1, 1), (4, 1, 2), (8, 2, 1)))
LAUNCHES = [
    *((6, shape) for shape in (DIRECT, LAID, FOUR, EIGHT)),
    *((7, shape) for shape in (DIRECT, LAID, EIGHT)),
    *((12, shape) for shape in (DIRECT, SPLIT_DIRECT, LAID, TWO, FOUR, EIGHT)),
    *((33, shape) for shape in (SPLIT_DIRECT, LAID, FOUR)),
    *((513, shape) for shape in (DIRECT, LAID, EIGHT)),
    (2, TWO),
    (8, LAID),
    (16, LAID),
    (4095, LAID),
]


@pytest.mark.parametrize("stride,shape", LAUNCHES, ids=str)
def test_sampled_products_of_every_shape_of_launch_and_stride(stride, shape):
    """Laid out or not, lanes and parts, blocks smaller and larger than a run of rows and than the matrix."""
    torch.manual_seed(stride)
    m, n, per_entry = 37, 101, 5 if shape.block_t > 1 else 1
    made, routing = kernels.SampleBank(n, m, arena=True), kernels.Routing.of([0, 1])
    for slot in (0, 1):
        codes = kernels.pack(torch.randint(4, (m, -(-n // stride)), dtype=torch.uint8))
        made.add(slot, (kernels.Samples(codes, 0.5, stride, 77 * stride + slot, (m, n)),))
    x, y = torch.randn(2 * per_entry, n).half(), torch.randn(2 * per_entry, m).half()
    wanted = PATHS["add_samples"]["reference"](x.double(), y.double(), made.operands(routing), False)
    out = sample_products.add_samples(x, y, made.operands(routing), False, shape)
    assert error(out, wanted) < 1e-3


def test_groups_that_are_not_there_and_infinite_numbers_stay_out_of_other_rows():
    """The last quad of groups has columns beyond x; an infinite number must not get into rows that do not meet it."""
    made, routing = sample_bank((37, 50)), kernels.Routing.of([0])
    x, y = torch.ones(1, 50), torch.zeros(1, 37)
    x[0, 3] = float("inf")
    hit = dense_samples(made.samples(0)[0])[:, 3] != 0
    for laid in (False, True):
        out = sample_products.add_samples(x, y, made.operands(routing), False, sample_products.Shape(1, 2, 2, laid))
        assert torch.equal(out[0].isfinite(), ~hit) and hit.any()


def test_rows_of_samples_for_an_embedding():
    torch.manual_seed(0)
    made, routing = sample_bank(), kernels.Routing.of([2, {0: 0.5, 3: -1.0}, None])
    ids, y = torch.tensor([[0, 36, -1], [7, 8, 20], [5, 6, 7]]), torch.randn(3, 3, 50)
    dispatch.ran.clear()
    out = kernels.add_sampled_rows(ids, y, made, routing)
    assert dispatch.ran == Counter({("add_sampled_rows", "triton"): 1})
    wanted = PATHS["add_sampled_rows"]["reference"](ids, y.double(), made.operands(routing), 37)
    assert error(out, wanted) < 1e-6 and torch.equal(out[2], y[2]) and torch.equal(out[0, 2], y[0, 2])
    with pytest.raises(IndexError, match="37"):
        kernels.add_sampled_rows(torch.tensor([37]), y[0, :1], made, kernels.Routing.of([0]))


@pytest.mark.parametrize("stride", [1, 3, 7, 12, 100])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_dense_matrix_of_samples_is_exact(stride, transposed):
    shape = (33, 130)
    made = kernels.SampleBank(*(shape if transposed else shape[::-1]), transposed=transposed, arena=True)
    codes = kernels.pack(torch.randint(4, (33, -(-130 // stride)), dtype=torch.uint8))
    made.add(0, (kernels.Samples(codes, 0.3, stride, 99, shape),))
    matrix, factor = sample_matrices.dense(made.operands(kernels.Routing.of([0])), 0, shape, torch.float16)
    assert torch.equal(matrix.float() * factor, dense_samples(made.samples(0)[0]))


@pytest.mark.parametrize("path", ["triton", "dense"])
def test_scales_that_fp16_cannot_hold(path):
    torch.manual_seed(0)
    made, routing = sample_bank(size=1e-8), kernels.Routing.of([{2: 0.37, 0: -1e-3}])
    x, y = torch.randn(4, 50).half() * 1e4, torch.zeros(4, 37).half()
    wanted = PATHS["add_samples"]["reference"](x.double(), y.double(), made.operands(routing), False)
    out = PATHS["add_samples"][path](x, y, made.operands(routing), False)
    assert wanted.abs().max() > 1e-3 and error(out, wanted) < 1e-3


def test_transposed_sampled_products_take_the_dense_path(sampled_dtype):
    dtype = sampled_dtype
    torch.manual_seed(0)
    made = sample_bank(transposed=True)
    x, y = torch.randn(2, 3, 37).to(dtype), torch.randn(2, 3, 50).to(dtype)
    routing = kernels.Routing.of([0, {2: 0.5}])
    dispatch.ran.clear()
    out = kernels.add_samples(x, y, made, routing)
    assert dispatch.ran["add_samples", "dense"] == 1
    wanted = y.double()
    wanted[0] += x[0].double() @ dense_samples(made.samples(0)[0], torch.float64)
    wanted[1] += 0.5 * x[1].double() @ sum(dense_samples(s, torch.float64) for s in made.samples(2))
    assert error(out, wanted) < SAMPLED_TOLERANCE[dtype]


def test_gradients_of_sampled_products():
    torch.manual_seed(0)
    made, routing = sample_bank(), kernels.Routing.of([0, 2])
    x, y = torch.randn(4, 50, requires_grad=True), torch.randn(4, 37, requires_grad=True)
    out = kernels.add_samples(x, y, made, routing)
    grad = torch.randn_like(out)
    out.backward(grad)
    matrices = [sum(dense_samples(s, torch.float64) for s in made.samples(slot)) for slot in (0, 2)]
    wanted = torch.cat([g.double() @ m for g, m in zip(grad.split(2), matrices)])
    assert error(x.grad, wanted) < 3e-6 and torch.equal(y.grad, grad)


# ---- launches that are repeated ----------------------------------------------------------------------------------


class Again:
    """What Triton's compiled kernel is on a card: pointers come as integers, and there is memory behind them."""

    function = packed_metadata = None

    def __init__(self, call, runs):
        self.call, self.runs = call, runs

    def run(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
        call = self.call
        assert (x, y, z) == (*call.grid, 1, 1)[:3] and stream == 7
        assert arguments[len(call.pointers) :] == (*call.sizes, *call.constants.values())
        self.runs.append(call.kernel)
        tensors = [self.at(pointer, like) for pointer, like in zip(arguments, call.pointers)]
        call.kernel[call.grid](*tensors, *call.sizes, **call.constants, **call.options)

    @staticmethod
    def at(pointer, like):
        memory = (ctypes.c_char * (like.numel() * like.element_size())).from_address(pointer)
        return torch.frombuffer(memory, dtype=like.dtype).view(like.shape)


class Repeating(launch.Launcher):
    """The interpreter as if its launches could be repeated."""

    def __init__(self):
        self.first, self.again, self.now = [], [], 7

    def launch(self, call):
        super().launch(call)
        self.first.append(call.kernel)
        names = call.kernel.arg_names[len(call.pointers) + len(call.sizes) :]
        return Again(call._replace(constants={name: call.constants[name] for name in names}), self.again)

    def stream(self, index):
        return self.now


@pytest.fixture
def repeating():
    launcher = Repeating()
    before = launch.use(launcher)
    yield launcher
    launch.use(before)


@pytest.mark.parametrize(
    "entries,shape", [([2, None, 0], (3,)), ([2], (2, 1)), ([{0: 0.5, 2: -0.25}], (2,))], ids=["rows", "one", "mixture"]
)
def test_a_product_that_is_made_again_has_the_same_bits(repeating, entries, shape, dtype):
    made, routing = bank(), kernels.Routing.of(entries)
    weight, bias, adds = (torch.randn(OUT, IN) / 12).to(dtype), torch.randn(OUT).to(dtype), torch.randn(4, OUT)
    inputs = [torch.randn(*shape, IN).to(dtype) for _ in range(2)]
    y = torch.randn(*shape, OUT).to(dtype)
    kept = y.clone()

    def products(x):
        return [
            kernels.linear(x, weight, bias, made, routing),
            kernels.linear(x, weight, None, made, routing, adds),
            kernels.delta_linear(x, made, routing),
            kernels.delta_linear(x, made, routing, y, adds),
        ]

    with torch.no_grad():
        products(inputs[0])
        count = len(repeating.first)
        dispatch.ran.clear()
        again = products(inputs[1])
        assert len(repeating.first) == count and len(repeating.again) == 4 * 2 + 2
        assert dispatch.ran == Counter({("linear", "triton"): 2, ("delta_linear", "triton"): 2})
        repeating.now = None  # as in a capture
        first = products(inputs[1])
    assert torch.equal(y, kept)
    for one, other in zip(again, first):
        assert one.shape == other.shape == (*shape, OUT) and torch.equal(one, other)


def test_the_fused_kernel_again_has_the_same_bits(repeating, monkeypatch, dtype):
    monkeypatch.setattr(products.config, "fused", lambda *case: True)
    monkeypatch.setattr(products.config, "choose", lambda *case: Config(block_n=32, block_k=32, stages=2))
    made, routing = bank(), kernels.Routing.of([2])
    weight, bias = (torch.randn(OUT, IN) / 12).to(dtype), torch.randn(OUT).to(dtype)
    x, other = torch.randn(6, IN).to(dtype), torch.randn(6, IN).to(dtype)
    with torch.no_grad():
        wanted = kernels.linear(x, weight, bias, made, routing)
        kernels.linear(other, weight, bias, made, routing)
        assert torch.equal(kernels.linear(x, weight, bias, made, routing), wanted)
        assert len(repeating.first) == 2 and len(repeating.again) == 4
        kernels.linear(x, weight, None, made, routing)
        assert len(repeating.first) == 4  # without a bias it is another kernel


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


# ---- launches beside the base's product --------------------------------------------------------------------------


class Aside:
    """What runs beside: as late as a card may run it, when it is joined, from memory that somebody still holds."""

    def __init__(self, launcher, name):
        self.launcher, self.name, self.calls = launcher, name, []
        launcher.order.append(f"fork {name}")

    def __enter__(self):
        assert self.launcher.inside is None
        self.launcher.inside = self

    def __exit__(self, *raised):
        self.launcher.inside = None

    def join(self):
        self.launcher.order.append(f"join {self.name}")
        for call, pointers in self.calls:
            held = tuple(pointer() for pointer in pointers)
            assert all(tensor is not None for tensor in held), "freed while it is used beside"
            self.launcher.now(call._replace(pointers=held))


class Capturing(launch.Launcher):
    """The interpreter as if a CUDA graph were captured.  order: what was forked, launched and joined."""

    def __init__(self):
        self.order, self.inside, self.captured = [], None, True

    def captures(self, index):
        return self.captured

    def beside(self, index, name):
        return Aside(self, name)

    def launch(self, call):
        if self.inside is None:
            return self.now(call)
        self.inside.calls.append((call._replace(pointers=()), [weakref.ref(t) for t in call.pointers]))

    def now(self, call):
        self.order.append(call.kernel.fn.__name__)
        return super().launch(call)


@pytest.fixture
def capturing(monkeypatch):
    launcher = Capturing()
    before = launch.use(launcher)
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        real = getattr(owner, name)

        def taken(*args, real=real, **kwargs):
            assert launcher.inside is None, "memory of another stream"
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, taken)
    monkeypatch.setattr(sample_products, "beside_pays", lambda *case: True)  # of so small sizes it is not
    with torch.no_grad():
        yield launcher
    launch.use(before)


def sketch(entries=(2, None, 0)):
    """(components, samples, routing) of tasks that have both."""
    torch.manual_seed(0)
    components, samples = ComponentBank(IN, OUT), SamplePartBank(IN, OUT)
    components.bank, samples.bank = bank(), kernels.SampleBank(IN, OUT, arena=True)
    for slot, strides in ((0, (7,)), (2, (13, 64))):
        codes = [kernels.pack(torch.randint(4, (OUT, -(-IN // g)), dtype=torch.uint8)) for g in strides]
        samples.add(slot, [kernels.Samples(own, 0.1, g, g, (OUT, IN)) for own, g in zip(codes, strides)])
    return components, samples, kernels.Routing.of(list(entries))


def test_shrink_beside_the_bases_product_has_the_same_bits(capturing, monkeypatch, dtype):
    made, routing = bank(), kernels.Routing.of([{2: 0.5, 0: 1.5}])
    x, weight = torch.randn(3, IN).to(dtype), (torch.randn(OUT, IN) / 12).to(dtype)
    configs = {"shrink": Config(split=2, block_n=32)}
    beside = products.Launch(x, made.operands(routing), configs).linear(weight, None)
    assert capturing.order == ["fork shrink", "join shrink", "shrink", "combine_parts", "expand"]
    capturing.captures = lambda index: False
    assert torch.equal(products.Launch(x, made.operands(routing), configs).linear(weight, None), beside)


@pytest.mark.parametrize("entries,rows", [([2], 1), ([2, None, 0], 3), ([{0: 0.5, 2: -1.5}], 3)], ids=str)
def test_samples_beside_the_bases_product_have_the_same_bits(capturing, entries, rows, dtype):
    """As they are added in the same order: base, components, samples."""
    components, samples, routing = sketch(entries)
    x, weight, bias = torch.randn(rows, IN).to(dtype), (torch.randn(OUT, IN) / 12).to(dtype), torch.randn(OUT).to(dtype)
    dispatch.ran.clear()
    finish = samples.start(x, routing)
    beside = finish(components.linear(x, weight, bias, routing))
    assert dispatch.ran == Counter({("linear", "triton"): 1, ("add_samples", "triton"): 1})
    capturing.captured = False
    assert samples.start(x, routing) is None
    y = components.linear(x, weight, bias, routing)
    assert torch.equal(samples.product(x, y, routing), beside) and not torch.equal(beside, y)


@pytest.mark.parametrize("pays", [True, False])
def test_samples_are_forked_first_and_joined_last(capturing, monkeypatch, pays):
    monkeypatch.setattr(sample_products, "beside_pays", lambda *case: pays)
    components, samples, routing = sketch([2])
    packed = Packed((OUT, IN))
    packed.banks = {"components": components, "sample": samples}
    packed._refresh()
    x, weight = torch.randn(1, IN), torch.randn(OUT, IN) / 12
    got, exact = packed.linear(x, weight, None, routing, None), torch.zeros(1, OUT, dtype=torch.float64)
    shrunk, sums = ["fork shrink", "join shrink", "shrink", "expand"], ["sampled_product", "add_parts"]
    order = [name for name in capturing.order if name != "combine_parts"]
    assert order == (["fork samples", *shrunk, "join samples", *sums] if pays else [*shrunk, sums[0]])
    exact = PATHS["add_samples"]["reference"](x.double(), exact, samples.bank.operands(routing), False)
    base = x.double() @ weight.double().T
    assert error(got, truth(x, components.bank, routing, base + exact)) < 3e-6
    del packed.banks["components"]
    packed._refresh()
    capturing.order.clear()
    assert error(packed.linear(x, weight, None, routing, None), base + exact) < 3e-6
    assert capturing.order == (["fork samples", "join samples", *sums] if pays else sums[:1])


@pytest.mark.parametrize("shape", [SPLIT_DIRECT, LAID, EIGHT], ids=str)
def test_every_shape_of_launch_beside_has_the_same_bits(capturing, shape, sampled_dtype):
    _, samples, routing = sketch([0, 0])
    each = 1 if shape.block_t == 1 else 5
    x, y = (torch.randn(2 * each, n).to(sampled_dtype) for n in (IN, OUT))
    operands = samples.bank.operands(routing)
    beside = sample_products.start_samples(x, operands, OUT, shape)(y)
    assert torch.equal(beside, sample_products.add_samples(x, y, operands, False, shape))


def test_samples_wait_for_the_base_where_nothing_is_won(capturing):
    _, samples, routing = sketch([2])
    start = lambda x, bank=samples, routing=routing: bank.start(x, routing)  # noqa: E731
    x = torch.randn(1, IN)
    assert start(x) is not None
    assert start(torch.randn(rules.DENSE_ROWS, IN)) is None  # the dense path
    assert start(x.double()) is None
    transposed = SamplePartBank(37, 50, transposed=True)
    transposed.bank = sample_bank(transposed=True)
    assert start(torch.randn(1, 37), transposed) is None
    with torch.enable_grad():
        assert start(x) is None
    with pytest.raises(ValueError, match="in_features"):
        start(torch.randn(1, IN + 1))
    with pytest.raises(ValueError, match="y "):
        start(x)(torch.randn(1, OUT + 1))
    capturing.order.clear()
    with pytest.raises(ValueError, match="rows"):
        start(torch.randn(3, IN), routing=kernels.Routing.of([2, 0]))
    assert not capturing.order
