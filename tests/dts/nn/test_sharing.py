"""Graphs in which layers that share an input take one launch, by a stand-in for a graph and kernels of PyTorch's."""

import ctypes
import warnings
from collections import Counter

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="needs Triton (pip install triton)")

from benchmarks.kernels.host import as_on_a_card  # noqa: E402
from dts.adapter.entries import Entry  # noqa: E402
from dts.codec.factors import Factors  # noqa: E402
from dts.nn import DTSModel  # noqa: E402
from dts.nn.deltas import stack  # noqa: E402
from dts.nn.layers.linear import DTSLinear, LinearForward  # noqa: E402
from dts.nn.routing import state as states  # noqa: E402
from dts_kernels import PackedFactors, pack  # noqa: E402
from dts_kernels.gpu import products  # noqa: E402
from dts_kernels.ops import products as dispatched  # noqa: E402
from tests.dts_kernels.gpu.computing import Computing  # noqa: E402

HIDDEN = 32


class Block(nn.Module):
    """Of a Llama: seven linear layers, of which three and two share an input.  between: is given that of q, k and v."""

    def __init__(self):
        super().__init__()
        sizes = {"q": (32, 32), "k": (32, 16), "v": (32, 16), "o": (32, 32), "gate": (32, 48), "up": (32, 48)}
        for name, size in (sizes | {"down": (48, 32)}).items():
            setattr(self, name, nn.Linear(*size, bias=name == "q"))
        self.norm, self.between = nn.LayerNorm(HIDDEN), lambda x: x

    def forward(self, x, calls=None):
        own = self.norm(x)
        q = self.q(own)
        own = self.between(own)
        mixed = q * torch.cat([self.k(own), self.v(own)], -1).tanh()
        if calls is not None:
            calls += 1
            mixed = mixed * calls
        x = x + self.o(mixed)
        own = self.norm(x)
        return x + self.down(nn.functional.silu(self.gate(own)) * self.up(own))


def factors(m, n, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = [pack(torch.randint(0, 4, (rows, rank), dtype=torch.uint8, generator=generator)) for rows in (m, n)]
    return PackedFactors(*codes, torch.rand(rank, generator=generator) * 0.05)


def task(seed, leave_out=(), rank=5):
    entries = {}
    for i, (name, tensor) in enumerate(Block().named_parameters()):
        if tensor.dim() == 2 and name.split(".")[0] not in leave_out:
            m, n = tensor.shape
            stored = factors(m, n, rank + i, 10 * seed + i)
            entries[name] = Entry(
                name, name, (m, n), "factors", factors=Factors((stored,), (m, n), None, None, 1.0, 0.1)
            )
    return entries


class Graph:
    """Repeats a call as a graph does, into the outputs that there are, with launches as a capture makes them."""

    def __init__(self, launcher, monkeypatch):
        self.launcher, self.patch = launcher, monkeypatch

    def record(self, run):
        run()
        out = self._captured(run)
        return lambda: out.copy_(self._captured(run)), out

    def _captured(self, run):
        self.launcher.captured = True
        self.launcher.order.clear()
        try:
            with self.patch.context() as patch:
                patch.setattr(states, "_capturing", lambda device: True)
                return run()
        finally:
            self.launcher.captured = False

    @property
    def shrinks(self):
        return Counter(name for name in self.launcher.order if name in ("shrink", "shrink_together"))


@pytest.fixture
def graph(monkeypatch):
    """Kernel words and tables in place, as on a GPU."""
    monkeypatch.setattr(stack, "_holds_addresses", lambda device: True)
    launcher = Computing()
    with as_on_a_card(launcher), torch.no_grad():
        yield Graph(launcher, monkeypatch)


SHARED, ALONE = {"shrink_together": 2, "shrink": 2}, {"shrink": 7}
TASKS = ["a", "b", None, "a"]


@pytest.fixture
def model(graph):
    torch.manual_seed(0)
    made = DTSModel(Block().eval())
    made.load_task("a", task(1))
    made.load_task("b", task(2, leave_out=("k", "up"), rank=9))
    made.set_tasks(TASKS)
    return made


X = torch.randn(4, 2, HIDDEN, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_block_takes_four_launches_where_it_took_seven(graph, model, quiet):
    plain = model.capture(graph.record, x=X)
    wanted = plain(x=X).clone()
    assert graph.shrinks == ALONE
    step = model.capture(graph.record, share_inputs=True, x=X)
    assert graph.launcher.captured is False and torch.equal(step(x=X), wanted) and graph.shrinks == SHARED
    assert torch.equal(step(x=2 * X), plain(x=2 * X))
    assert model.capture(graph.record, share_inputs=False, x=X)(x=X).equal(wanted) and graph.shrinks == ALONE
    assert torch.equal(model(x=X), wanted)  # eagerly as before


def test_tasks_come_and_go_and_rows_change_theirs(graph, model, quiet):
    model.reserve(tasks=8)
    step = model.capture(graph.record, share_inputs=True, x=X)
    model.set_tasks(["b", None, "b", "a"])
    assert torch.equal(model(x=X), step(x=X)) and graph.shrinks == SHARED
    model.load_task("c", task(3, leave_out=("q", "gate"), rank=2))
    model.set_tasks(["c", "a", {"c": 0.5}, None])
    assert torch.equal(model(x=X), step(x=X)) and graph.shrinks == SHARED
    model.delete_task("b")
    model.load_task("a", task(4, rank=1))
    model.set_tasks(["a", "c", None, "c"])
    assert torch.equal(model(x=X), step(x=X)) and graph.shrinks == SHARED
    again = model.capture(graph.record, share_inputs=True, x=X)
    assert torch.equal(again(x=X), step(x=X)) and graph.shrinks == SHARED


def in_place(x):
    x[:, 1:] *= 2
    return x


def foreach(x):
    torch._foreach_mul_([x], 2)
    return x


def part(x):
    x.view(-1)[:4].zero_()
    return x


def uncounted(x):
    """In place, past the version counter."""
    x.data.mul_(2)
    return x


def elsewhere(x):
    torch.empty(3).zero_()
    return x


def hidden(x, scale=2.0):
    """By a kernel that is given a pointer."""
    numbers = (ctypes.c_float * x.numel()).from_address(x.data_ptr())
    numbers[:] = [scale * one for one in numbers]
    return x


ONE_LESS = {"shrink": 3, "shrink_together": 2}  # k and v still share
SECOND = {"shrink": 5, "shrink_together": 1}  # gate and up alone


@pytest.mark.parametrize(
    "between,shrinks",
    [
        (in_place, ONE_LESS),
        (lambda x: x + 1, ONE_LESS),
        (lambda x: x.clone(), ONE_LESS),
        (lambda x: torch.sigmoid(x, out=x), ONE_LESS),
        (lambda x: nn.functional.dropout(x, 1.0, training=True, inplace=True), SECOND),  # zeros prove nothing
        (foreach, ONE_LESS),
        (part, ONE_LESS),
        (uncounted, ONE_LESS),
        (elsewhere, SHARED),
        (lambda x: x.view(x.shape), SHARED),
    ],
    ids=["in place", "another", "copy", "out=", "dropout", "foreach", "part", ".data", "elsewhere", "view"],
)
def test_an_input_that_is_written_or_swapped_is_not_shared(graph, model, recwarn, between, shrinks):
    model.model.between = between
    wanted = model(x=X)
    step = model.capture(graph.record, share_inputs=True, x=X)
    assert torch.equal(step(x=X), wanted) and graph.shrinks == shrinks


def test_an_input_that_counts_no_writes_is_not_shared(graph, model):
    with torch.inference_mode(), pytest.warns(UserWarning, match="torch.no_grad"):
        step = model.capture(graph.record, share_inputs=True, x=X)
        assert torch.equal(step(x=X), model.capture(graph.record, x=X)(x=X)) and graph.shrinks == ALONE


def test_a_hook_that_swaps_an_input_is_heeded(graph, model, quiet):
    model.model.k.register_forward_pre_hook(lambda module, given: (given[0] * 3,))
    wanted = model(x=X)
    step = model.capture(graph.record, share_inputs=True, x=X)
    assert torch.equal(step(x=X), wanted) and graph.shrinks == {"shrink": 5, "shrink_together": 1}


def test_what_no_operation_shows_is_seen_in_the_bits(graph, model):
    model.model.between = hidden
    wanted = model(x=X)
    with pytest.warns(UserWarning, match="1 of 2 groups.* keep a launch each"):
        step = model.capture(graph.record, share_inputs=True, x=X)
    assert torch.equal(step(x=X), wanted) and graph.shrinks == SECOND


def test_what_no_row_of_the_capture_shows_is_seen_with_tasks_that_do(graph, model):
    """Rows of the base add nothing, whatever they are multiplied with."""
    model.model.between = hidden
    model.set_tasks([None] * 4)
    with pytest.warns(UserWarning, match="1 of 2 groups"):
        step = model.capture(graph.record, share_inputs=True, x=X)
    assert torch.equal(step(x=X), model.capture(graph.record, x=X)(x=X))
    model.set_tasks(TASKS)
    assert torch.equal(step(x=X), model(x=X))


@pytest.mark.parametrize("between", [lambda x: x, lambda x: hidden(x) if x.any() else x], ids=["nothing", "hidden"])
def test_inputs_of_zeros_prove_by_others(graph, model, recwarn, between):
    model.model.between = between
    step = model.capture(graph.record, share_inputs=True, x=0 * X)
    assert torch.equal(step(x=X), model(x=X))


def zeros(module, given):
    return torch.cat([0 * given[0][:1], given[0][1:]])


def test_a_row_of_zeros_proves_nothing(graph, model):
    """As those of padding, whatever is written into it."""
    model.model.norm.register_forward_hook(lambda module, given, out: zeros(module, [out]))
    with pytest.warns(UserWarning, match="2 of 2 groups"):
        step = model.capture(graph.record, share_inputs=True, x=X)
    assert torch.equal(step(x=X), model(x=X))
    step(x=X)
    assert graph.shrinks == ALONE


def test_a_layer_that_no_loaded_task_changes_takes_no_part(graph, model, quiet):
    model.delete_task("a")
    model.set_tasks(["b", None, "b", "b"])  # which has no k and no up
    step = model.capture(graph.record, share_inputs=True, x=X)
    assert torch.equal(step(x=X), model(x=X))
    step(x=X)
    assert graph.shrinks == {"shrink_together": 1, "shrink": 3}  # q with v; o, gate, down


def test_products_within_an_operation_are_not_shared(graph, model, monkeypatch, quiet):
    """As those of compiled programs, whose buffers have other contents without a word."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(dispatched, "direct", lambda *given: seen.append(1))
        patch.setattr(DTSLinear, "forward", LinearForward.forward)
        step = model.capture(graph.record, share_inputs=True, x=X)
        assert seen and torch.equal(step(x=X), model.capture(graph.record, x=X)(x=X)) and graph.shrinks == ALONE


def test_routing_is_as_before(graph, model, quiet):
    """The proof sets other tasks for its replays."""
    model.set_tasks(["b", {"a": 0.25, "b": 2.0}, None, "a"])
    wanted = model(x=X)
    step = model.capture(graph.record, share_inputs=True, x=X)
    assert torch.equal(model(x=X), wanted) and torch.equal(step(x=X), wanted) and graph.shrinks == SHARED


def test_what_a_call_counts_is_as_after_a_capture_without(graph, model, quiet):
    """The proof replays both graphs from one state, and leaves it: as two calls of the stand-in do."""
    calls = [torch.zeros(()) for _ in range(2)]
    model.capture(graph.record, x=X, calls=calls[0])
    step = model.capture(graph.record, share_inputs=True, x=X, calls=calls[1])
    assert graph.shrinks == SHARED and step._given["calls"] == 2


def test_bits_that_differ_from_call_to_call_prove_nothing(graph, model):
    model.model.between = lambda x: x + 1e-3 * torch.randn(())
    model.model.o.register_forward_hook(lambda module, given, out: out + torch.randn(()))
    with pytest.warns(UserWarning, match="other bits from call to call"):
        model.capture(graph.record, share_inputs=True, x=X)


def test_nothing_to_share_is_one_capture(graph, quiet):
    torch.manual_seed(0)
    made, count = DTSModel(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()), []
    entries = {}
    for name in ("0.weight", "2.weight"):
        own = Factors((factors(8, 8, 3, 0),), (8, 8), None, None, 1.0, 0.1)
        entries[name] = Entry(name, name, (8, 8), "factors", factors=own)
    made.load_task("a", entries)
    made.set_task("a")
    step = made.capture(lambda run: count.append(1) or graph.record(run), share_inputs=True, input=torch.randn(2, 8))
    assert count == [1] and step is not None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_graphs_of_a_card_share_with_the_same_bits(dtype, monkeypatch, quiet):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.manual_seed(0)
    made = DTSModel(Block().eval().to("cuda", dtype))
    for name, seed in ("a", 1), ("b", 2):
        made.load_task(name, task(seed, rank=9))
    made.set_tasks(TASKS)
    x, launched, real = X.to("cuda", dtype), [], products.Launch.shrink_together
    monkeypatch.setattr(products.Launch, "shrink_together", lambda *given: launched.append(1) or real(*given))
    with torch.no_grad():
        alone = made.capture(x=x)
        assert not launched
        shared = made.capture(share_inputs=True, x=x)
        assert len(launched) == 4  # two groups, to prove and to keep
        for tasks in (TASKS, ["b", None, "b", "a"], ["a", {"a": 0.5, "b": 1.5}, None, "b"]):
            made.set_tasks(tasks)
            for given in (x, -3 * x):
                wanted = alone(x=given).clone()
                assert torch.equal(shared(x=given), wanted) and torch.equal(shared(x=given), wanted)
