"""Numerics of every kernel in Triton's interpreter, on the CPU.  Run by test_interpreter.py with TRITON_INTERPRET=1.

bf16 is left out of `tl.dot`, which the interpreter has wrong in some versions: sampled elements have none.
"""

from collections import Counter

import pytest
import torch

import dts_kernels as kernels
from dts_kernels import dispatch, reference
from dts_kernels.gpu import library_products, products, rules, sweep
from dts_kernels.gpu.config import Config
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
    whole = launch.combine(parts, launch.scratch(1))
    assert count == 2 and whole.dtype == dtype
    assert torch.equal(launch.expand(whole, 1, None), launch.expand(parts, 2, None))


def test_every_half_word_decodes_to_its_codes(every_half_word, dtype):
    """The product with the identity is the decoded words: 65,536 of them, all low and all high halves."""
    x, operands, wanted = every_half_word(dtype, "cpu")
    t, _ = products.Launch(x, operands, {"shrink": Config(block_t=128, block_n=1024)}).shrink()
    assert torch.equal(t[0, 0].float(), wanted)


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
    got = kernels.delta_linear(x[None], made, routing)[0] if not levels or dtype == torch.float32 else None
    if got is None:
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


def test_opcheck():
    made, routing = bank(), kernels.Routing.of([2, None])
    arguments = (
        torch.randn(2, IN, requires_grad=True),
        None,
        *made.operands(routing),
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
    for slot, strides in ((0, (7,)), (2, (13, 64, 1)), (3, (5,))):
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
