"""Whatever an op is given: the float64 answer or a Python error, never another answer and never a crash."""

import os
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import dts_kernels as kernels
from dts_kernels import Routing, dispatch
from dts_kernels.cpu import native
from dts_kernels.samples import dense

ops = torch.ops.dts
M, N = 9, 13
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 6e-2}
EXAMPLES = int(os.environ.get("DTS_EXAMPLES", "150"))  # of each property; `make sanitize` takes more


def codes(m, n):
    return kernels.pack(torch.randint(0, 4, (m, n), dtype=torch.uint8))


def banks():
    torch.manual_seed(0)
    bank, sampled = kernels.Bank(N, M), kernels.SampleBank(N, M)
    for slot, rank in ((0, 5), (2, 7)):
        bank.add(slot, kernels.PackedFactors(codes(M, rank), codes(N, rank), torch.rand(rank) * 0.1))
        sampled.add(slot, (kernels.Samples(codes(M, -(-N // 4)), 0.1, 4, slot, (M, N)),))
    return bank, sampled


BANK, SAMPLED = banks()
DENSE = {s: kernels.reference.reconstruct(BANK.factors(s), torch.float64) for s in (0, 2)}
SAMPLES = {s: dense(SAMPLED.samples(s)[0], torch.float64) for s in (0, 2)}
TAIL = (BANK.packed, BANK.table)


def laid_out(t: torch.Tensor, how: str) -> torch.Tensor:
    """The same numbers in other memory."""
    if how == "plain" or not t.dim():
        return t
    if how == "gaps":
        wide = t.new_zeros(*t.shape[:-1], 2 * t.shape[-1] + 1)
        wide[..., 1::2] = t
        return wide[..., 1::2]
    if how == "turned":
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "offset":
        flat = torch.cat([t.new_zeros(1), t.flatten()])
        return flat[1:].view(t.shape)
    if how == "negated" and t.is_floating_point():
        return torch._neg_view(-t)
    if how == "expanded":
        return t[..., :1].expand(t.shape)
    return t


LAYOUTS = st.sampled_from(["plain", "gaps", "turned", "offset", "negated", "expanded"])
DTYPES = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64])
ROWS = st.sampled_from([0, 1, 2, 3, 6, 12, 70, 300, 4100])


@st.composite
def routings(draw, rows):
    entries = draw(st.sampled_from([1, rows, max(1, rows // 3), 2, 5, 0]))
    places = draw(st.sampled_from([1, 1, 2, 0]))
    pattern = draw(st.lists(st.sampled_from([0, 2, -1, 1, 7, -9]), min_size=1, max_size=12))
    slots = torch.tensor(pattern, dtype=torch.int32).repeat(entries * places // len(pattern) + 1)
    slots = slots[: entries * places].view(entries, places)
    weights = torch.randn(entries, places)
    return laid_out(slots, draw(LAYOUTS)), laid_out(weights, draw(LAYOUTS))


def delta(x, slots, weights, matrices):
    x = x.reshape(-1, x.shape[-1])
    each = x.shape[0] // max(1, slots.shape[0])
    out = torch.zeros(x.shape[0], M, dtype=torch.float64)
    for e, (own, gamma) in enumerate(zip(slots.tolist(), weights.tolist())):
        for s, g in zip(own, gamma):
            if s in matrices:
                out[e * each : (e + 1) * each] += g * (x[e * each : (e + 1) * each].double() @ matrices[s].T)
    return out


def close(got, want, dtype):
    assert got.shape == want.shape
    scale = want.abs().max().item() + 1 if want.numel() else 1
    assert ((got.double() - want).abs() <= TOLERANCE[dtype] * scale * 4).all()


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.data())
def test_products(data):
    draw, rows, dtype = data.draw, data.draw(ROWS), data.draw(DTYPES)
    x = laid_out(torch.randn(rows, N).to(dtype), draw(LAYOUTS))
    y = laid_out(torch.randn(rows, M).to(dtype if draw(st.integers(0, 9)) else torch.float32), draw(LAYOUTS))
    weight, bias = laid_out(torch.randn(M, N).to(dtype), draw(LAYOUTS)), torch.randn(M).to(dtype)
    slots, weights = draw(routings(rows))
    adds = laid_out(torch.randn(draw(st.sampled_from([0, 1, 3])), M), draw(LAYOUTS)) if draw(st.booleans()) else None
    kind, mode = draw(st.integers(0, 3)), draw(st.sampled_from(["none", "grad", "autocast", "inference", "raw"]))
    wrong = draw(st.sampled_from(["", "", "", "x", "out", "dtype"]))
    x = x[:, 1:] if wrong == "x" else x.int() if wrong == "dtype" else x
    out, tail = M + (wrong == "out" and mode == "raw"), (7, "disk")
    before = y.clone()
    try:
        routing = Routing(slots, weights)
        if mode == "grad" and x.is_floating_point():
            x = x.detach().requires_grad_()
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast")
        with autocast, torch.inference_mode(mode == "inference"):
            if mode == "raw":
                adds = None
                held = (*TAIL, slots, weights, out, *tail)
                got = (
                    ops.delta_linear(x, None, *held, False)
                    if kind == 0
                    else ops.delta_linear(x, y, *held, False)
                    if kind == 1
                    else ops.linear(x, weight, bias, *held)
                    if kind == 2
                    else ops.add_samples(x, y, *SAMPLED.arguments, slots, weights, False)
                )
            else:
                got = (
                    kernels.delta_linear(x, BANK, routing, adds=adds)
                    if kind == 0
                    else kernels.delta_linear(x, BANK, routing, y, adds)
                    if kind == 1
                    else kernels.linear(x, weight, bias, BANK, routing, adds)
                    if kind == 2
                    else kernels.add_samples(x, y, SAMPLED, routing)
                )
            if mode == "grad":
                got.sum().backward()
    except (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError):
        entries = slots.shape[0]
        assert wrong or (rows % entries if entries else rows) or y.dtype != dtype
        return
    assert wrong in ("", "out") and torch.equal(y, before)
    lowest = torch.bfloat16 if mode == "autocast" and dtype != torch.float64 else dtype
    assert got.dtype == lowest
    want = delta(x.detach(), slots, weights, SAMPLES if kind == 3 else DENSE)
    if kind in (1, 3):
        want = want + y.double()
    if kind == 2:
        want = want + x.detach().double() @ weight.double().T + bias.double()
    if adds is not None and kind < 3:
        columns = {s: adds[s, :, None].double() for s in range(len(adds))}
        want = want + delta(torch.ones(rows, 1), slots, weights, columns)
    close(got.detach(), want, lowest)
    if mode == "grad" and x.grad is not None and rows:
        assert x.grad.isfinite().all() and x.grad.shape == x.shape


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.data())
def test_rows(data):
    draw, count = data.draw, data.draw(st.sampled_from([0, 1, 2, 6, 40]))
    most = draw(st.sampled_from([M - 1, M - 1, M - 1, M, 2**31]))
    ids = torch.tensor(draw(st.lists(st.integers(-1, 8), min_size=count, max_size=count)), dtype=torch.int64)
    if count:
        ids[0] = most
    of_int = draw(st.sampled_from([torch.int64, torch.int32, torch.float32, torch.int16]))
    ids = laid_out(ids.to(of_int), draw(st.sampled_from(["plain", "gaps", "offset"])))
    dtype, (slots, weights) = draw(DTYPES), draw(routings(count))
    y, kind = torch.randn(count, N).to(dtype), draw(st.integers(0, 2))
    y = laid_out(y, draw(LAYOUTS))
    before = y.double()
    try:
        routing = Routing(slots, weights)
        with torch.autocast("cpu", torch.bfloat16, enabled=draw(st.booleans())):
            if kind == 0:
                got = kernels.add_sampled_rows(ids, y, SAMPLED, routing)
            elif kind == 1:
                got = kernels.add_embedding(ids, y, kernels.EmbeddingParts([(BANK, None)], M), routing)
            else:
                got = y + kernels.delta_embedding(ids, BANK, routing, dtype)
    except (ValueError, IndexError):
        entries = slots.shape[0]
        bad = of_int not in (torch.int64, torch.int32) or count and most >= M
        assert bad or (count % entries if entries else count)
        return
    rows = torch.where(ids.long()[:, None] < 0, 0.0, torch.eye(M, dtype=torch.float64)[ids.long().clamp(min=0)])
    matrices = {s: m.T for s, m in (SAMPLES if kind == 0 else DENSE).items()}
    each, want = count // max(1, slots.shape[0]), before.clone()
    for e, (own, gamma) in enumerate(zip(slots.tolist(), weights.tolist())):
        for s, g in zip(own, gamma):
            if s in matrices:
                want[e * each : (e + 1) * each] += g * (rows[e * each : (e + 1) * each] @ matrices[s].T)
    assert got.dtype == dtype
    close(got, want, dtype)


def routing_of(*slots):
    return Routing.of(list(slots))


@pytest.mark.parametrize(
    "table",
    [
        [[0, 1, 9, -1, 5, 0]],
        [[0, 1, 2, -1, 6, 0]],
        [[0, 1, 2, -1, 10**9, 0]],
        [[0, -2, 2, -1, 5, 0]],
        [[1, 0, 2, -1, 5, 0]],
        [[0, 1, 2, 1, 5, 0]],
        [[0, 1, 2, -1, 5, 9999]],
        [[0, 1, 2, -1, 5]],
        [[2, 1, 0, -1, 5, 0]],
    ],
)
@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_table_with_wrong_numbers_is_refused(table, rows, dtype):
    routing, table = routing_of(0), torch.tensor(table)
    held = (BANK.packed[:3], table, routing.slots, routing.weights, M, 5, "disk")
    for call in (
        lambda: ops.delta_linear(torch.randn(rows, N, dtype=dtype), None, *held, False),
        lambda: ops.delta_embedding(torch.zeros(rows, dtype=torch.int64), *held, N, dtype),
        lambda: ops.reconstruct(*held[:2], torch.ones(1), None, M, N, 5, "disk", dtype),
    ):
        with pytest.raises(ValueError):
            call()


def test_planar_tables_too():
    planar = kernels.Bank(N, M, layout="planar")
    planar.add(0, BANK.factors(0))
    routing, x = routing_of(0), torch.randn(2, N)
    tail = (routing.slots, routing.weights, M, planar.max_rank, "planar", False)
    good = ops.delta_linear(x, None, planar.packed, planar.table.clone(), *tail)
    torch.testing.assert_close(good, kernels.delta_linear(x, planar, routing))
    for column, value in ((0, 10**6), (1, -16), (2, 7), (3, 100_000), (3, -1)):
        table = planar.table.clone()
        table[0, column] = value
        with pytest.raises(ValueError, match="slot 0|max_rank"):
            ops.delta_linear(x, None, planar.packed, table, *tail)
    with pytest.raises(ValueError, match="layout"):
        ops.delta_linear(x, None, planar.packed, planar.table, *tail[:4], "disk", False)


@pytest.mark.parametrize(
    "change",
    [
        {1: [[0, 0, 0, 1]]},
        {1: [[0, 0, 9999, 1]]},
        {2: [0, 5]},
        {2: [-1, 1]},
        {2: [1, 0]},
        {1: [[0, 0, 4, -1]]},
        {0: torch.float32},
        {3: torch.float64},
    ],
)
def test_wrong_samples_are_refused(change):
    own = SAMPLED.samples(0)[0]
    arguments = [[own.codes], torch.tensor([[0, 0, 4, 0]]), torch.tensor([0, 1]), torch.tensor([0.1])]
    for at, value in change.items():
        if at == 0:
            arguments[0] = [own.codes.to(value)]
        else:
            arguments[at] = arguments[at].to(value) if isinstance(value, torch.dtype) else torch.tensor(value)
    routing = routing_of(0)
    with pytest.raises((ValueError, TypeError)):
        ops.add_samples(torch.randn(2, N), torch.randn(2, M), *arguments, routing.slots, routing.weights, False)


def test_a_table_that_changed_or_points_to_other_tensors_is_read_again():
    routing, x = routing_of(0), torch.randn(2, N)
    table = torch.tensor([[0, 1, 2, -1, 5, 0]])
    packed = list(BANK.packed[:3])

    def product():
        return ops.delta_linear(x, None, packed, table, routing.slots, routing.weights, M, 5, "disk", False)

    first = product()
    packed[2] = 2 * packed[2]
    torch.testing.assert_close(product(), 2 * first)
    table[0] = torch.tensor([-1, -1, -1, -1, 0, 0])
    assert not product().any()
    table[0, :3] = torch.tensor([0, 1, 40])
    with pytest.raises(ValueError, match="slot 0"):
        product()


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.resize_(1, 1),
        lambda t: t.resize_(4000, 3),
        lambda t: t.t_(),
        lambda t: t.unsqueeze_(0),
        lambda t: t.as_strided_((2, 2), (0, 1)),
        lambda t: t.set_(t.new_zeros(1).untyped_storage(), 0, (2, 2), (0, 0)),
        lambda t: setattr(t, "data", torch.zeros(2, 2, dtype=torch.int8)),
        lambda t: t.copy_(t.flip(0)),
        lambda t: setattr(t, "data", t.new_zeros(1, 1).expand(2, 2)),
        lambda t: setattr(t, "data", t.flip(0)),
    ],
)
@pytest.mark.parametrize("which", ["slots", "weights"])
def test_a_routing_that_changed_is_looked_at_again(change, which):
    routing, x, y, ids = routing_of({0: 0.5, 2: 1.5}, {2: 2.0, 0: -1.0}), torch.randn(2, N), torch.randn(2, M), [3, 8]
    parts = kernels.EmbeddingParts([(BANK, None)], M)
    calls = (
        lambda r: kernels.delta_linear(x, BANK, r),
        lambda r: kernels.add_samples(x, y, SAMPLED, r),
        lambda r: kernels.linear(x, torch.ones(M, N), None, BANK, r),
        lambda r: kernels.add_embedding(torch.tensor(ids), torch.zeros(2, N), parts, r),
        lambda r: kernels.add_sampled_rows(torch.tensor(ids), torch.zeros(2, N), SAMPLED, r),
    )
    for call in calls:
        call(routing)
    change(getattr(routing, which))
    for call in calls:
        try:
            want = call(Routing(routing.slots.clone().contiguous(), routing.weights.clone().contiguous()))
        except (ValueError, TypeError):
            with pytest.raises(ValueError):
                call(routing)
            continue
        close(call(routing), want.double(), torch.float32)  # rows of embeddings by another path, if not contiguous


def test_a_routing_without_places_is_the_base():
    routing, ids = Routing(torch.zeros(2, 0, dtype=torch.int32), torch.zeros(2, 0)), torch.tensor([3, 8])
    y = torch.randn(2, N)
    assert torch.equal(kernels.add_embedding(ids, y.clone(), kernels.EmbeddingParts([(BANK, None)], M), routing), y)
    assert torch.equal(kernels.add_sampled_rows(ids, y, SAMPLED, routing), y)


def test_zero_tensors_and_sparse_ones():
    routing = routing_of(0)
    for x in (torch._efficientzerotensor((2, N)), torch.randn(2, N).to_sparse()):
        try:
            got = kernels.delta_linear(x, BANK, routing)
        except (ValueError, RuntimeError, NotImplementedError):
            continue
        assert not got.any()


@pytest.mark.parametrize("grad", [False, True])
def test_operands_of_another_device_are_refused(grad):
    """One of the meta device made all of it shapes, of numbers that nobody had written."""
    routing, x, away = routing_of(0), torch.randn(2, N), lambda *shape: torch.empty(*shape, device="meta")
    with torch.set_grad_enabled(grad):
        for call, name in (
            (lambda: kernels.delta_linear(x, BANK, routing, away(2, M)), "y"),
            (lambda: kernels.linear(x, away(M, N), None, BANK, routing), "weight"),
            (lambda: kernels.linear(x, torch.randn(M, N), away(M), BANK, routing), "bias"),
        ):
            with pytest.raises(ValueError, match=f"{name} is on meta, x on cpu"):
                call()
        with pytest.raises(ValueError, match="y is on meta, x on cpu"):
            kernels.add_samples(x, away(2, M), SAMPLED, routing)


def test_int32_ids_are_ids():
    ids, routing = torch.tensor([[3, -1], [8, 0]]), routing_of(0, 2)
    parts = kernels.EmbeddingParts([(BANK, None)], M)
    for call in (
        lambda i: kernels.delta_embedding(i, BANK, routing),
        lambda i: kernels.add_embedding(i, torch.zeros(2, 2, N), parts, routing),
        lambda i: kernels.add_sampled_rows(i, torch.zeros(2, 2, N), SAMPLED, routing),
    ):
        assert torch.equal(call(ids.int()), call(ids))


def test_autocast_is_that_of_a_linear_layer():
    x, weight, bias, routing = torch.randn(6, N), torch.randn(M, N), torch.randn(M), routing_of(0, 2, None)
    for wrap in (lambda x: x, lambda x: x.clone().requires_grad_()):
        with torch.autocast("cpu", torch.bfloat16):
            got = kernels.linear(wrap(x), weight, bias, BANK, routing)
            assert got.dtype == torch.nn.functional.linear(x, weight, bias).dtype == torch.bfloat16
            assert kernels.linear(x.double(), weight.double(), None, BANK, routing).dtype == torch.float64
        want = x.double() @ weight.double().T + bias.double() + delta(x, routing.slots, routing.weights, DENSE)
        close(got.detach(), want, torch.bfloat16)
    step = torch.compile(lambda x: kernels.linear(x, weight, bias, BANK, routing), backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(step(x), kernels.linear(x, weight, bias, BANK, routing))


def test_a_weight_changed_before_backward_is_noticed():
    routing = routing_of(0)
    for changed in ("weight", "x"):
        x, weight = torch.randn(2, N, requires_grad=True), torch.randn(M, N, requires_grad=True)
        own = {"x": x * 1, "weight": weight * 1}
        out = kernels.linear(own["x"], own["weight"], None, BANK, routing)
        with torch.no_grad():
            own[changed].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def test_functorch_forward_derivatives_and_fakes_answer_or_refuse():
    x, weight, routing = torch.randn(4, N, dtype=torch.float64), torch.randn(M, N, dtype=torch.float64), routing_of(0)
    f = lambda x: kernels.linear(x, weight, None, BANK, routing).sum()  # noqa: E731
    want = (weight + DENSE[0]).sum(0).expand(4, N)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jacfwd(f)(x)
    for call in (lambda: torch.func.grad(f)(x), lambda: torch.func.vmap(torch.func.grad(f))(x[:, None])[:, 0]):
        try:
            got = call()
        except (RuntimeError, NotImplementedError):
            got = want
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    try:
        got = torch.func.vmap(lambda x: kernels.linear(x, weight, None, BANK, routing))(x[:, None])[:, 0]
    except (RuntimeError, NotImplementedError):
        return
    torch.testing.assert_close(got, x @ (weight + DENSE[0]).T, rtol=1e-6, atol=1e-6)


def test_fakes_have_the_shapes_of_answers():
    x, weight, routing = torch.randn(4, N), torch.randn(M, N), routing_of(0)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            kernels.delta_linear(dual, BANK, routing)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(x)
        assert kernels.linear(fake, mode.from_tensor(weight), None, BANK, routing).shape == (4, M)


@pytest.mark.parametrize("autocast", [False, True])
def test_opcheck_of_every_op(autocast):
    routing, x = routing_of(0, 2), torch.randn(4, N, requires_grad=True)
    tail = (BANK.packed, BANK.table, routing.slots, routing.weights, M, BANK.max_rank, "disk")
    weight, y, gamma = torch.randn(M, N), torch.randn(4, M), torch.ones(3)
    ids = torch.tensor([0, -1, 3, 8])
    samples = (*SAMPLED.arguments, routing.slots, routing.weights)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for op, arguments in (
            (ops.delta_linear, (x, y, *tail, False)),
            (ops.linear, (x, weight, torch.randn(M), *tail)),
            (ops.reconstruct, (BANK.packed, BANK.table, gamma, None, M, N, BANK.max_rank, "disk", torch.float32)),
            (ops.delta_embedding, (ids, *tail, N, torch.float32)),
            (ops.add_samples, (x, y, *samples, False)),
            (ops.add_sampled_rows, (ids, torch.randn(4, N), *samples, M)),
            (ops.add_dense_samples, (weight, *SAMPLED.arguments, gamma)),
        ):
            assert set(torch.library.opcheck(op.default, arguments).values()) == {"SUCCESS"}, op


def test_exact_products_are_of_one_thread():
    entered, leave, seen = threading.Event(), threading.Event(), []

    def other():
        with dispatch.exact_products():
            seen.append(dispatch.exact())
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10) and not dispatch.exact()
    dispatch.ran.clear()
    kernels.delta_linear(torch.randn(1, N), BANK, routing_of(0))
    leave.set()
    thread.join()
    assert seen == [True] and ("delta_linear", "native_exact") not in dispatch.ran
    with dispatch.exact_products():
        kernels.delta_linear(torch.randn(1, N), BANK, routing_of(0))
    assert not native.variants() or dispatch.ran["delta_linear", "native_exact"] == 1
