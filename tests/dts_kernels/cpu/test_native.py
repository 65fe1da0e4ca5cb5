"""Every compiled variant that this machine can run against float64."""

import copy

import pytest
import torch

from dts_kernels import PackedFactors, add_rows, delta_linear, pack, reference
from dts_kernels.bank import Bank, Routing
from dts_kernels.cpu import library_products, native

VARIANTS = native.variants() or [pytest.param("", marks=pytest.mark.skip(reason="needs a C compiler"))]
# of the whole result: float32 sums in all cases, two digits add 2^-16 of the largest number of a row
TOLERANCE = {torch.float32: (3e-4, 3e-6), torch.bfloat16: (3e-3, 3e-3), torch.float16: (6e-4, 5e-4)}
LEVELS = torch.tensor([[0.5, 2.2, -0.4, -1.9], [0.7, 1.9, -0.6, -3.0]])


def factors(m, n, rank, levels=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = [torch.randint(0, 4, (rows, rank), dtype=torch.uint8, generator=generator) for rows in (m, n)]
    return PackedFactors(pack(codes[0]), pack(codes[1]), torch.rand(rank, generator=generator) + 0.1, levels)


def bank_of(m, n, rank, with_levels=True):
    bank = Bank(n, m)
    for slot, levels in enumerate((None, None, LEVELS if with_levels else None)):
        bank.add(slot, factors(m, n, rank, levels, slot))
    return bank


def run(bank, x, routing, variant, y=None, exact=False, transposed=False, threads=1):
    tasks = native.Tasks(bank.packed, bank.table)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = x.new_full(x.shape[:-1] + (bank.in_features if transposed else bank.out_features,), torch.nan)
        return native.delta_linear(
            x, y, tasks, routing.slots, routing.weights, out.shape[-1], transposed, exact, variant, out
        )
    finally:
        torch.set_num_threads(before)


def expected(bank, x, routing, y=None, transposed=False):
    stored = {s: bank.factors(s).transpose() if transposed else bank.factors(s) for s in bank.slots}
    out = reference.delta_linear(
        x.double(), stored, routing.slots, routing.weights, bank.in_features if transposed else bank.out_features
    )
    return out if y is None else out + y.double()


def error(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


def routing_of(rows):
    return Routing.of([(0, 1, 2, None, {0: 0.5, 2: -0.7}, 0)[i % 6] for i in range(rows)])


SHAPES = [
    (64, 64, 16),
    (100, 77, 7),
    (130, 2049, 1),
    (2049, 130, 300),
    (50, 3424, 1228),
    (33, 40, 64),
    (3, 5, 2),
    (1, 1, 1),
]


@pytest.mark.skipif(not native.variants(), reason="needs a C compiler")
@pytest.mark.parametrize(
    "shape, dtype", [(s, d) for s in SHAPES for d in TOLERANCE if d == torch.float32 or max(s) < 500], ids=str
)
def test_delta_linear(shape, dtype):
    bank = bank_of(*shape)
    for rows, routing in ((1, Routing.of([1])), (2, Routing.of([0])), (13, routing_of(13))):
        seeded = torch.Generator().manual_seed(rows)
        x = torch.randn(rows, shape[1], generator=seeded).to(dtype)
        y = torch.randn(rows, shape[0], generator=seeded).to(dtype)
        delta = expected(bank, x, routing)
        for variant in native.variants():
            for exact in (False, True):
                got = run(bank, x, routing, variant, exact=exact)
                assert error(got, delta) < TOLERANCE[dtype][exact], (variant, rows, exact)
        got = run(bank, x, routing, variant, y)
        assert error(got, delta + y.double()) < TOLERANCE[dtype][0]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("exact", [False, True])
def test_more_rows_than_one_sweep_holds_and_more_than_one_task_a_row(variant, exact):
    bank = bank_of(70, 90, 33)
    for rows, routing in ((530, Routing.of([{0: 1.0, 1: -0.5}])), (265, routing_of(265)), (530, routing_of(265))):
        x = torch.randn(rows, 90)
        got = run(bank, x, routing, variant, exact=exact)
        assert error(got, expected(bank, x, routing)) < TOLERANCE[x.dtype][exact]


@pytest.mark.parametrize("variant", VARIANTS)
def test_digits_keep_the_documented_bound(variant):
    """|error of x| <= max |x| / 65024 an element, so of t = x V by sum |v| times that, and the same again for t."""
    m, n, rank = 64, 512, 40
    bank = bank_of(m, n, rank, with_levels=False)
    u, v = reference.factor_values(bank.factors(0), torch.float64)
    sigma = bank.factors(0).sigma.double()
    x = torch.randn(4, n)
    x[1, 7] = 300.0  # outliers like those of real activations
    x[2] *= 1e-20
    x[3] *= 1e20
    got = run(bank, x, Routing.of([0]), variant).double()
    t = (x.double() @ v) * sigma
    step = x.double().abs().amax(1, keepdim=True) / 65024
    t_error = step * v.abs().sum(0) * sigma
    bound = t_error @ u.abs().T + (t.abs() + t_error).amax(1, keepdim=True) / 65024 * u.abs().sum(1)
    slack = 1e-5 * expected(bank, x, Routing.of([0])).abs().amax(1, keepdim=True)  # float32 scaling of t and y
    assert ((got - expected(bank, x, Routing.of([0]))).abs() <= bound + slack).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("exact", [False, True])
def test_a_row_does_not_depend_on_its_neighbours_nor_on_the_threads(variant, exact):
    bank = bank_of(300, 513, 99)
    x, routing = torch.randn(40, 513), routing_of(40)
    together = run(bank, x, routing, variant, exact=exact)
    assert torch.equal(together, run(bank, x, routing, variant, exact=exact, threads=2))
    assert torch.equal(together, run(bank, x, routing, variant, exact=exact, threads=5))
    for i in range(0, 40, 3):
        alone = Routing(routing.slots[i : i + 1], routing.weights[i : i + 1])
        assert torch.equal(together[i : i + 1], run(bank, x[i : i + 1], alone, variant, exact=exact))
    x[4] = torch.nan
    x[6, 5] = torch.inf
    other = run(bank, x, routing, variant, exact=exact)
    keep = [i for i in range(40) if i not in (4, 6)]
    assert torch.equal(together[keep], other[keep])
    assert other[6].isnan().all() if not exact else not other[6].isfinite().any()


@pytest.mark.skipif(not native.variants(), reason="needs a C compiler")
def test_variants_agree_on_digits():
    bank = bank_of(300, 513, 99, with_levels=False)
    x, routing = torch.randn(7, 513), Routing.of([0, 1, 2, None, 0, 0, 1])
    results = [run(bank, x, routing, variant) for variant in native.variants()]
    for result in results[1:]:
        assert error(result, results[0]) < 1e-6  # exact integer sums; the scales around them are float32


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("code", range(4))
def test_the_largest_digits_and_codes_do_not_overflow(variant, code):
    """Sums of the longest runs, every digit the lowest or the highest there is: wherever 16 bits hold parts of them."""
    m, n, rank = 40, 800, 600
    codes = [torch.full((rows, rank), code, dtype=torch.uint8) for rows in (m, n)]
    bank = Bank(n, m)
    bank.add(0, PackedFactors(pack(codes[0]), pack(codes[1]), torch.ones(rank)))
    lowest, highest = -(126 * 256 + 128) / 32512, (126 * 256 + 127) / 32512
    for rows in (1, 11):  # from the bytes, and in row blocks
        x = torch.tensor([1.0, -1.0, lowest, highest])[torch.arange(rows) % 4, None].repeat(1, n)
        x[:, 0] = 1
        got = run(bank, x, Routing.of([0]), variant)
        assert error(got, expected(bank, x, Routing.of([0]))) < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_transposed_and_in_place_and_without_tasks(variant):
    bank = bank_of(90, 130, 35)
    x, routing = torch.randn(6, 90), routing_of(6)
    got = run(bank, x, routing, variant, transposed=True)
    assert error(got, expected(bank, x, routing, transposed=True)) < 3e-4
    y = torch.randn(6, 90)
    kept = y.clone()
    x = torch.randn(6, 130)
    tasks = native.Tasks(bank.packed, bank.table)
    native.delta_linear(x, y, tasks, routing.slots, routing.weights, 90, False, False, variant, out=y)
    assert error(y, expected(bank, x, routing, kept)) < 3e-4
    assert torch.equal(run(bank, x, Routing.of([None]), variant, kept), kept)
    assert torch.equal(run(bank, x, Routing.of([7]), variant), torch.zeros(6, 90))
    assert torch.equal(run(Bank(130, 90), x, Routing.of([0]), variant), torch.zeros(6, 90))
    assert run(bank, x[:0], Routing.of([0]), variant).shape == (0, 90)


@pytest.mark.parametrize("variant", VARIANTS)
def test_slices_prefixes_and_ends_of_memory(variant):
    """Factors that are views (a prefix of the ranks, a fused projection's rows) are used where they lie."""
    whole = factors(200, 150, 90)
    part = whole.prefix(37).rows(50, 111)
    bank = Bank(150, 61)
    bank.add(0, part)
    x = torch.randn(3, 150)
    tasks = native.Tasks(bank.packed, bank.table)
    assert tasks.array[0].v == whole.v.data_ptr() and tasks.array[0].v_stride == 23
    assert error(run(bank, x, Routing.of([0]), variant), expected(bank, x, Routing.of([0]))) < 3e-4


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_reconstruct(variant, exact, dtype):
    for m, n, rank in ((300, 70, 41), (5, 2049, 7), (129, 33, 1)):
        bank = bank_of(m, n, rank)
        gamma, base = torch.tensor([0.5, 0.0, -2.0]), torch.randn(m, n).to(dtype)
        tasks = native.Tasks(bank.packed, bank.table)
        want = base.double()
        for slot in (0, 2):
            want = want + gamma[slot].double() * reference.reconstruct(bank.factors(slot), torch.float64)
        got = native.reconstruct(tasks, gamma, base, (m, n), dtype, exact, variant)
        assert error(got, want) < TOLERANCE[dtype][exact]
        got = native.reconstruct(tasks, gamma, None, (m, n), dtype, exact, variant)
        assert error(got, want - base.double()) < TOLERANCE[dtype][exact]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_one_task_is_reconstructed_as_it_is_beside_others(variant, dtype):
    """In row blocks, with the bits of a sweep of several tasks; on any number of threads."""
    before = torch.get_num_threads()
    for m, n, rank in ((300, 70, 41), (5, 2049, 7), (129, 33, 1), (1, 1, 3), (700, 900, 90)):
        bank, gamma = bank_of(m, n, rank, with_levels=False), torch.tensor([-0.7])
        base = torch.randn(m, n, generator=torch.Generator().manual_seed(m)).to(dtype)
        tasks = native.Tasks(bank.packed, bank.table)
        nothing = torch.tensor([-0.7, 1.0])  # a second task, of scales that are 0
        bank.add(1, PackedFactors(bank.factors(1).u, bank.factors(1).v, torch.zeros(rank)))
        beside = native.Tasks(bank.packed, bank.table)
        for own in (base, None):
            got = native.reconstruct(tasks, gamma, own, (m, n), dtype, False, variant)
            want = -0.7 * reference.reconstruct(bank.factors(0), torch.float64) + (0 if own is None else own.double())
            assert error(got, want) < TOLERANCE[dtype][0]
            assert torch.equal(got, native.reconstruct(beside, nothing, own, (m, n), dtype, False, variant))
            try:
                torch.set_num_threads(3)
                assert torch.equal(got, native.reconstruct(tasks, gamma, own, (m, n), dtype, False, variant))
            finally:
                torch.set_num_threads(before)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_unpack(variant, dtype):
    packed = torch.randint(0, 256, (130, 21), dtype=torch.uint8)[:, 2:19]
    for levels in (None, LEVELS[0]):
        got = native.unpack(packed, levels, dtype, variant)
        assert torch.equal(got, reference.decode(packed.contiguous(), 68, levels, torch.float32).to(dtype))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_numbers_convert_as_torch_does(variant, dtype):
    """Every 16-bit number survives reading and writing: y + 0 is y."""
    y = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype)[None]
    bank, x = Bank(4, 65536), torch.zeros(1, 4, dtype=dtype)
    got = run(bank, x, Routing.of([None]), variant, y)
    torch.testing.assert_close(got, y + 0.0, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("decode", ["table", "unpack"])
@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.float64], ids=str)
def test_library_products(decode, dtype, monkeypatch):
    if decode == "unpack" and (dtype == torch.float64 or not native.variants()):
        pytest.skip("the library writes fp32, bf16 and fp16, and needs a C compiler")
    monkeypatch.setattr(library_products, "TILE_BYTES", 1 << 14)  # several blocks of ranks
    function = native.unpack if decode == "unpack" else library_products.table_unpack
    bank = bank_of(90, 130, 259)
    tolerance = {torch.float64: 1e-7, torch.float32: 3e-6, torch.float16: 6e-4, torch.bfloat16: 8e-3}[dtype]
    for rows in (1, 12):
        x, y = torch.randn(rows, 130).to(dtype), torch.randn(rows, 90).to(dtype)
        stored = {s: bank.factors(s) for s in bank.slots}
        for routing in (Routing.of([0]), Routing.of([{0: 0.5, 2: 2.0}]), routing_of(rows)):
            got = library_products.delta_linear(x, y, stored, routing.slots, routing.weights, 90, function)
            assert error(got, expected(bank, x, routing, y)) < tolerance


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_addends_of_the_tasks(variant, dtype):
    """Few and many rows, one and several places, ragged columns, tasks without factors or addend."""
    for m, places in ((70, 1), (128, 1), (70, 2)):
        bank = bank_of(m, 90, 33, with_levels=False)
        tasks, adds = native.Tasks(bank.packed, bank.table), torch.randn(5, m)
        adds[1] = 0
        for rows in (1, 2, 24, 120):
            mixtures = [(0, 1, 2, 4, None, {2: -0.5})[i % 6] if rows > 1 else 0 for i in range(min(rows, 12))]
            if places == 2:
                mixtures[0] = {0: 0.5, 4: 2.0}
            routing = Routing.of(mixtures)
            x, y = torch.randn(rows, 90).to(dtype), torch.randn(rows, m).to(dtype)
            want = add_rows(expected(bank, x, routing, y), adds.double(), routing)
            for exact in (False, True):
                out = torch.full_like(y, torch.nan)
                native.delta_linear(x, y, tasks, routing.slots, routing.weights, m, False, exact, variant, out, adds)
                assert error(out, want) < TOLERANCE[dtype][exact], (m, rows, exact)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_embedding(variant, dtype):
    """Banks of all rows and of some, rows without a task, an id without a row, mixtures."""
    whole, part = Bank(70, 50), Bank(70, 9)
    whole.add(0, factors(50, 70, 33))
    part.add(2, factors(9, 70, 7, seed=2))
    lookup = torch.full((50,), -1, dtype=torch.int32)
    lookup[::6] = torch.arange(9, dtype=torch.int32)
    tasks = native.Tasks.join([(native.Tasks(b.packed, b.table), at) for b, at in ((whole, None), (part, lookup))])
    ids, y = torch.randint(0, 50, (12, 5)), torch.randn(12, 5, 70).to(dtype)
    ids[3, 2] = -1
    dense = {0: reference.reconstruct(whole.factors(0), torch.float64), 2: torch.zeros(50, 70, dtype=torch.float64)}
    dense[2][::6] = reference.reconstruct(part.factors(2), torch.float64)
    for mixtures in ([0] * 12, [2], [0, 2, None, {0: 0.5}], [{0: 0.5, 2: 2.0}, {2: 1.0}]):
        routing, want = Routing.of(mixtures), y.double()
        for row in range(12):
            mixture = mixtures[row * len(mixtures) // 12]
            mixture = mixture if isinstance(mixture, dict) else {} if mixture is None else {mixture: 1}
            for slot, gamma in mixture.items():
                want[row] += gamma * dense[slot][ids[row]] * (ids[row] >= 0)[:, None]
        got = native.embedding(ids, y, tasks, routing.slots, routing.weights, 50, 70, dtype, variant)
        assert error(got, want) < TOLERANCE[dtype][0]
        into = y.clone()
        native.embedding(ids, into, tasks, routing.slots, routing.weights, 50, 70, dtype, variant, in_place=True)
        assert error(into, want) < TOLERANCE[dtype][0]
    with pytest.raises(IndexError, match="beyond the matrix's 50 rows"):
        native.embedding(ids + 45, y, tasks, routing.slots, routing.weights, 50, 70, dtype, variant)


def test_a_copy_of_a_bank_that_has_run_stands_alone():
    bank, x, routing = bank_of(40, 33, 8), torch.randn(6, 33), routing_of(6)
    first = delta_linear(x, bank, routing)
    again = copy.deepcopy(bank)
    del bank
    torch.testing.assert_close(delta_linear(x, again, routing), first, rtol=0, atol=0)
