"""The ops' contract on every layout: shapes, errors, gradients, torch.library, compilation without recompilation."""

import pytest
import torch

import dts_kernels as kernels
from dts_kernels import reference

ROUTINGS = [[0, 2, None, {0: 0.5, 2: 0.25}], [2], [None]]


def factors(m, n, k, levels=False):
    u, v = (kernels.pack(torch.randint(0, 4, (rows, k), dtype=torch.uint8)) for rows in (m, n))
    return kernels.PackedFactors(u, v, torch.rand(k) * 1e-3, torch.randn(2, 4) * 0.1 if levels else None)


@pytest.fixture(params=["disk", "planar"])
def bank(request):
    torch.manual_seed(0)
    made = kernels.Bank(13, 9, layout=request.param)
    made.add(0, factors(9, 13, 5))
    made.add(2, factors(9, 13, 7, levels=True))
    return made


def truth(x, bank, routing):
    known = {slot: bank.factors(slot) for slot in bank.slots}
    flat = x.double().reshape(-1, x.shape[-1])
    out = reference.delta_linear(flat, known, routing.slots, routing.weights, bank.out_features)
    return out.reshape(*x.shape[:-1], bank.out_features)


@pytest.mark.parametrize("entries", ROUTINGS)
@pytest.mark.parametrize(
    "dtype,tolerance", [(torch.float64, 1e-7), (torch.float32, 1e-4), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)]
)
def test_every_dtype_and_routing(bank, entries, dtype, tolerance):
    x, routing = torch.randn(4, 3, 13).to(dtype), kernels.Routing.of(entries)
    got, wanted = kernels.delta_linear(x, bank, routing), truth(x, bank, routing)
    assert got.dtype == dtype and got.shape == (4, 3, 9)
    assert (got.double() - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize("shape", ["rows side by side", "every second row", "columns apart", "turned"])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("gradients", [False, True], ids=["no gradients", "gradients"])
def test_rows_without_a_task_have_the_librarys_bits(shape, biased, gradients):
    """In float32 too, where the base's product comes last on a CPU."""
    torch.manual_seed(0)
    m, n, whole = 96, 256, torch.randn(16, 2, 512)
    x = {"rows side by side": whole[:, :1, :n].contiguous(), "every second row": whole[:, :1, :n]}
    x = x.get(shape, whole[..., ::2] if shape == "columns apart" else torch.randn(3, 16, n).transpose(0, 1))
    weight, bias, bank = torch.randn(m, n), torch.randn(m) if biased else None, kernels.Bank(n, m)
    bank.add(0, factors(m, n, 8))
    with torch.set_grad_enabled(gradients):
        found = kernels.linear(x, weight, bias, bank, kernels.Routing.of([0, None] * 8))
        expected = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(found[1::2], expected[1::2], rtol=0, atol=0)
    assert not torch.equal(found[::2], expected[::2])


def test_non_contiguous_and_empty_inputs(bank):
    routing = kernels.Routing.of([0])
    x = torch.randn(13, 6, dtype=torch.float64).T
    torch.testing.assert_close(kernels.delta_linear(x, bank, routing), truth(x, bank, routing))
    assert kernels.delta_linear(torch.zeros(0, 13), bank, routing).shape == (0, 9)
    assert kernels.delta_linear(torch.zeros(13), bank, routing).shape == (9,)


def test_linear_adds_base_and_bias(bank):
    x, weight, bias = (torch.randn(*s, dtype=torch.float64) for s in ((4, 13), (9, 13), (9,)))
    routing = kernels.Routing.of(ROUTINGS[0])
    wanted = x @ weight.T + bias + truth(x, bank, routing)
    torch.testing.assert_close(kernels.linear(x, weight, bias, bank, routing), wanted)


def test_reconstruct_mixes_tasks(bank):
    base = torch.randn(9, 13, dtype=torch.float64)
    wanted = base + sum(g * reference.reconstruct(bank.factors(s), torch.float64) for s, g in ((0, 0.5), (2, 2.0)))
    torch.testing.assert_close(kernels.reconstruct(bank, {0: 0.5, 2: 2.0}, base), wanted)
    assert kernels.reconstruct(bank, {0: 1.0}, dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(KeyError, match=r"slot \[5\].*\[0, 2\]"):
        kernels.reconstruct(bank, {5: 1.0})


def test_factors_come_back_and_slots_empty(bank):
    assert bank.slots == [0, 2] and bank.factors(0).rank == 5
    assert (bank.factors(0).levels is None) and bank.factors(2).levels is not None
    moved = bank.to("cpu")
    assert torch.equal(moved.factors(2).u, bank.factors(2).u)
    bank.remove(2)
    assert not kernels.delta_linear(torch.randn(2, 13), bank, kernels.Routing.of([2])).any()


def test_what_does_not_fit_says_all_sizes(bank):
    routing = kernels.Routing.of([0, 2])
    with pytest.raises(ValueError, match=r"\[3, 12\].*13.*3 rows.*2 entries"):
        kernels.delta_linear(torch.zeros(3, 12), bank, routing)
    with pytest.raises(ValueError, match="floating point"):
        kernels.delta_linear(torch.zeros(2, 13, dtype=torch.int64), bank, routing)
    with pytest.raises(ValueError, match=r"y \[2, 8\].*\[2, 9\]"):
        kernels.delta_linear(torch.zeros(2, 13), bank, routing, torch.zeros(2, 8))
    with pytest.raises(ValueError, match=r"\[9, 12\].*\[9, 13\]"):
        kernels.linear(torch.zeros(2, 13), torch.zeros(9, 12), None, bank, routing)
    with pytest.raises(ValueError, match=r"\[9, 12\].*\[9, 13\]"):
        bank.add(1, factors(9, 12, 3))
    with pytest.raises(ValueError, match="not -1"):
        bank.add(-1, factors(9, 13, 3))


def test_routing_checks_shapes_and_dtypes():
    with pytest.raises(ValueError, match=r"\[2, 1\].*\[1, 2\]"):
        kernels.Routing(torch.zeros(2, 1, dtype=torch.int32), torch.zeros(1, 2))
    with pytest.raises(TypeError, match="int64"):
        kernels.Routing(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1))


def test_gradients_of_x_y_weight_and_bias(bank):
    x, y, weight, bias = (
        torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((4, 13), (4, 9), (9, 13), (9,))
    )
    routing = kernels.Routing.of(ROUTINGS[0])
    assert torch.autograd.gradcheck(lambda x, y: kernels.delta_linear(x, bank, routing, y), (x, y))
    assert torch.autograd.gradcheck(lambda x, w, b: kernels.linear(x, w, b, bank, routing), (x, weight, bias))


def test_opcheck(bank, in_one_piece):
    routing, ops = kernels.Routing.of(ROUTINGS[0]), torch.ops.dts
    x, weight = torch.randn(4, 13, dtype=torch.float64, requires_grad=True), torch.randn(9, 13, dtype=torch.float64)
    held = in_one_piece(bank.packed, bank.table)
    tail = (*held, routing.slots, routing.weights, 9, bank.max_rank, bank.layout)
    gamma = torch.ones(bank.table.shape[0])
    for op, arguments in (
        (ops.delta_linear, (x, None, *tail, False)),
        (ops.delta_linear, (x, torch.randn(4, 9, dtype=torch.float64), *tail, False)),
        (ops.linear, (x, weight, None, *tail)),
        (ops.reconstruct, (*held, gamma, None, 9, 13, bank.max_rank, bank.layout, torch.float32)),
        (ops.delta_embedding, (torch.tensor([0, 3, -1, 8]), *tail, 13, torch.float64)),
    ):
        assert set(torch.library.opcheck(op.default, arguments).values()) == {"SUCCESS"}, op


def test_embedding_rows_are_rows_of_the_delta(bank):
    ids, routing = torch.tensor([0, 8, 3, -1]), kernels.Routing.of([0, 2, None, 2])
    got = kernels.delta_embedding(ids, bank, routing, torch.float64)
    dense = {s: reference.reconstruct(bank.factors(s), torch.float64) for s in bank.slots}
    wanted = torch.stack([dense[0][0], dense[2][8], 0 * dense[0][0], 0 * dense[0][0]])
    torch.testing.assert_close(got, wanted)


def test_compiled_without_break_and_switching_tasks_does_not_recompile(bank):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    weight = torch.randn(9, 13)
    step = torch.compile(lambda x, r: kernels.linear(x, weight, None, bank, r), backend=counter, fullgraph=True)
    x = torch.randn(4, 13)
    for entries in ([0, 2, None, 2], [2, 2, 2, 2], [None, 0, 0, None]):
        routing = kernels.Routing.of(entries)
        assert torch.equal(step(x, routing), kernels.linear(x, weight, None, bank, routing))
    assert counter.frame_count == 1
