"""A layer's products launched again in a row, with a launcher that launches nothing: as Triton would have picked them,
and only where all of it is as it was.  Their numbers: interpreted/launches.py."""

import copy
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip("triton", reason="needs Triton (pip install triton)")

import dts_kernels as kernels  # noqa: E402
from benchmarks.kernels import host  # noqa: E402
from dts.nn.deltas import Piece  # noqa: E402
from dts.nn.deltas.packed import Packed  # noqa: E402
from dts_kernels import dispatch  # noqa: E402
from dts_kernels.gpu import alike, repeat  # noqa: E402
from dts_kernels.gpu.tune import random_factors  # noqa: E402
from dts_kernels.ops import Replay, ReplayRows, kinds  # noqa: E402
from dts_kernels.parts.components import COMPONENTS  # noqa: E402
from tests.dts_kernels.gpu.watching import Watching, repeats  # noqa: E402

IN, OUT = 96, 80
ADDS = torch.randn(3, OUT)
CONTENTS = [(("factors",), None), (("sample",), ADDS), (("factors", "sample"), ADDS)]


@pytest.fixture(autouse=True)
def launcher():
    watching = Watching()
    with host.as_on_a_card(watching), torch.no_grad():
        yield watching


@pytest.fixture(autouse=True)
def replayed(monkeypatch):
    """() -> how many of the calls since the last question were replayed."""
    real, found = Replay.linear, []
    monkeypatch.setattr(Replay, "linear", lambda *given: found.append(real(*given)) or found[-1])

    def ask() -> int:
        count = sum(y is not None for y in found)
        found.clear()
        return count

    return ask


def part(kind: str, slot: int, rank: int = 7):
    if kind == "factors":
        return random_factors(OUT, IN, rank, slot, "cpu")
    codes = kernels.pack(torch.randint(4, (OUT, -(-IN // 5)), dtype=torch.uint8))
    return kernels.Samples(codes, 0.1, 5, slot, (OUT, IN))


def packed(kinds=("factors", "sample"), slots=(0, 1)) -> Packed:
    made = Packed((OUT, IN))
    for slot in slots:
        made.add(slot, [part(kind, slot) for kind in kinds])
    return made


def operands(rows=4, dtype=torch.float16):
    return torch.randn(rows, IN).to(dtype), torch.randn(OUT, IN).to(dtype), torch.randn(OUT).to(dtype)


def again(made, replayed, *given) -> bool:
    """Whether a call was replayed."""
    made.linear(*given)
    return replayed() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("entries", [[0], [0, 1, None, 1], [{0: 0.5, 1: 2.0}]], ids=["one", "rows", "mixture"])
@pytest.mark.parametrize("kinds,adds", CONTENTS, ids=["components", "sample", "sketch"])
def test_all_products_of_a_call_are_launched_again_as_triton_would_have(
    launcher, replayed, kinds, adds, entries, dtype
):
    made, routing, (x, weight, bias) = packed(kinds), kernels.Routing.of(entries), operands(dtype=dtype)
    dispatch.ran.clear()
    made.linear(x, weight, bias, routing, adds)
    counted, first = dict(dispatch.ran), len(launcher.first)
    names = {kernel.__name__ for kernel in launcher.first}
    assert ("expand" in names, "sampled_product" in names) == ("factors" in kinds, "sample" in kinds)
    assert ("task_rows" in names) is (adds is not None and "factors" not in kinds)  # expand adds them, too
    other, slots, weights = torch.randn(4, IN).to(dtype), routing.slots.clone(), routing.weights.clone()
    assert not replayed() and again(made, replayed, other, weight, bias, kernels.Routing(slots, weights), adds)
    assert len(launcher.first) == first and launcher.again == launcher.first
    assert dispatch.ran == {key: 2 * count for key, count in counted.items()}
    pointers = {pointer for launched in launcher.pointers for pointer in launched}
    assert {other.data_ptr(), slots.data_ptr(), weights.data_ptr()} <= pointers
    assert not {t.data_ptr() for t in (x, routing.slots, routing.weights)} & pointers
    assert (ADDS.data_ptr() in pointers) is (adds is not None)


def test_all_is_added_to_what_the_library_made_and_that_is_returned(launcher, replayed):
    made, routing, (x, weight, bias) = packed(), kernels.Routing.of([0]), operands(1)
    made.linear(x, weight, bias, routing, ADDS)
    y = made.linear(x, weight, bias, routing, ADDS)
    assert replayed() and torch.equal(y, torch.nn.functional.linear(x, weight, bias))  # nothing was launched
    names = [kernel.__name__ for kernel in launcher.again]
    assert names[:2] == ["shrink", "expand"] and ADDS.data_ptr() in launcher.pointers[1]
    assert launcher.pointers[1].count(y.data_ptr()) == 2
    assert y.data_ptr() in launcher.pointers[-1] and y.data_ptr() not in launcher.pointers[0]


def test_the_fused_kernel_makes_the_bases_product_too(launcher, replayed, monkeypatch):
    monkeypatch.setattr("dts_kernels.gpu.config.fused", lambda *case: True)
    made, routing, (x, weight, bias) = packed(), kernels.Routing.of([0]), operands(8)
    for given in (bias, None):
        made.linear(x, weight, given, routing, ADDS)
        other, moved = torch.randn(8, IN).half(), weight.clone()
        launcher.pointers.clear()
        assert again(made, replayed, other, moved, given, routing, ADDS)
        of_base = launcher.pointers[1]
        assert of_base[:3] == (other.data_ptr(), moved.data_ptr(), (moved if given is None else given).data_ptr())
    odd = torch.randn(OUT * IN + 1).half()[1:].view(OUT, IN)
    assert not again(made, replayed, x, odd, None, routing, ADDS)


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Own(torch.Tensor):
    pass


def test_what_is_not_as_it_was_is_left_to_the_products(launcher, replayed):
    made, routing, (x, weight, bias) = packed(), kernels.Routing.of([0, 1]), operands()
    run = lambda x=x, weight=weight, bias=bias, routing=routing, adds=ADDS: again(  # noqa: E731
        made, replayed, x, weight, bias, routing, adds
    )
    assert [run(), run()] == [False, True]
    odd = torch.randn(4 * IN + 1).half()[1:].view(4, IN)
    room = torch.zeros(9, dtype=torch.int32)
    signed = kernels.Routing(routing.slots, torch._neg_view(-routing.weights))
    for other in (
        {"x": odd},
        {"x": torch.randn(IN, 4).half().T},
        {"x": torch._neg_view(x)},
        {"x": x.as_subclass(Own)},
        {"x": x.double(), "weight": weight.double(), "bias": bias.double()},
        {"weight": weight.as_subclass(Own)},
        {"routing": signed},
        {"routing": kernels.Routing(room[1:3].view(2, 1), routing.weights)},
    ):
        assert not run(**other), other
        assert run()
    grown = torch.cat([ADDS, ADDS])
    assert not run(adds=grown) and run(adds=grown)  # another number of tasks is another launch
    moved = ADDS.clone()
    launcher.pointers.clear()
    assert run(adds=moved) and moved.data_ptr() in launcher.pointers[1]
    run(bias=None, adds=None)
    launcher.pointers.clear()
    assert run(bias=None, adds=None) and not {p for of in launcher.pointers for p in of} & {
        moved.data_ptr(),
        ADDS.data_ptr(),
    }
    with torch.autocast("cpu"):
        assert not run()
    with Mode():
        assert not run()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError):
        run()
    replayed()
    torch.func.vmap(lambda one: one * again(made, replayed, x, weight, bias, routing, ADDS))(torch.ones(2))
    assert not replayed()
    with torch.enable_grad():
        assert not run(x=x.clone().requires_grad_())
    launcher.now = None  # a graph is captured, a profiler listens, another card is current
    assert not run()
    launcher.now = 0
    assert run()


def test_without_pytorchs_comparison_each_product_is_repeated_by_itself(launcher, replayed, monkeypatch):
    monkeypatch.setattr(alike, "_guards", lambda: None)
    made, routing, (x, weight, bias) = packed(), kernels.Routing.of([0]), operands()
    call = lambda: made.linear(x, weight, bias, routing, ADDS)  # noqa: E731
    assert [repeats(launcher, call) for _ in "123"] == [False, True, True] and not replayed()


def test_operands_that_do_not_fit_are_refused_as_in_the_first_call(replayed):
    made, routing, (x, weight, bias) = packed(), kernels.Routing.of([0, 1]), operands()
    for _ in "123":
        made.linear(x, weight, bias, routing, ADDS)
    assert replayed()
    away = torch.empty(OUT, IN, dtype=torch.float16, device="meta")
    for given, named in (
        ((x[:3], weight, bias, routing, ADDS), "multiple"),
        ((x, weight[:-1], bias, routing, ADDS), "weight"),
        ((x, weight, bias[:1], routing, ADDS), "bias"),
        ((x, weight, bias, routing, ADDS[:, :-1]), "adds"),
        ((x, away, bias, routing, ADDS), "weight is on meta"),
    ):
        with pytest.raises(ValueError, match=named):
            made.linear(*given)
    routing.slots.data = torch.zeros(2, 1, dtype=torch.int64)  # leaves no trace
    with pytest.raises(ValueError, match="int32"):
        made.linear(x, weight, bias, routing, ADDS)


def test_tasks_that_come_and_go_are_followed(launcher, replayed):
    """In the tables that there are no address changes, but what the banks derive is looked at again; more ranks than
    all before have another table, a copy and a bank that was moved have their own."""
    made, routing, (x, weight, _) = packed(), kernels.Routing.of([0]), operands()
    run = lambda of=made: again(of, replayed, x, weight, None, routing, None)  # noqa: E731

    def tables() -> set[int]:
        """Those of now that were launched with."""
        components, samples = (one.bank for one in made.banks.values())
        now = {components.table.data_ptr(), samples.arguments.table.data_ptr()}
        return now & {pointer for launched in launcher.pointers for pointer in launched}

    assert [run(), run()] == [False, True]
    made.add(0, [part("factors", 0), part("sample", 9)])
    assert [run(), run()] == [False, True]  # samples that changed are launched anew
    made.remove(1)
    run()
    made.add(2, [part("factors", 2, 300)])
    launcher.pointers.clear()
    assert [run(), run()] == [False, True] and len(tables()) == 2
    other = copy.deepcopy(made)
    launcher.pointers.clear()
    assert [run(other), run(other)] == [False, True] and not tables()
    for slot in (0, 2):
        made.remove(slot)
    assert not made.filled and made.replay is None
    assert torch.equal(made.linear(x, weight, None, routing, None), torch.nn.functional.linear(x, weight))


def test_components_alone_go_on_at_once_where_no_address_changed(launcher, replayed):
    made, routing, (x, weight, _) = packed(("factors",)), kernels.Routing.of([0]), operands()
    run = lambda: again(made, replayed, x, weight, None, routing, None)  # noqa: E731
    assert [run(), run()] == [False, True]
    made.remove(1)
    assert run()
    made.add(1, [part("factors", 1)])
    assert run()
    made.banks["components"].bank.table[0, 0] += 1 << 40
    with pytest.raises(ValueError, match="table"):
        run()


def test_few_calls_are_kept_and_none_of_banks_that_are_no_more(replayed):
    made, routing, (_, weight, _) = packed(("factors",)), kernels.Routing.of([0]), operands()
    for rows in range(1, 2 * kinds.KINDS):
        for _ in "12":
            made.linear(torch.randn(rows, IN).half(), weight, None, routing, None)
    assert 0 < len(made.replay._recorded) <= kinds.KINDS
    made.remove(1)
    for _ in "12":
        made.linear(torch.randn(1, IN).half(), weight, None, routing, None)
    assert len(made.replay._recorded) == 1


def test_the_strides_of_axes_of_one_element_do_not_count(replayed):
    made, routing, (_, weight, _) = packed(("factors",)), kernels.Routing.of([0]), operands()
    lengths = [torch.randn(1, length, IN).half()[:, -1:] for length in (8, 8, 3, 1)]
    assert [again(made, replayed, x, weight, None, routing, None) for x in lengths] == [False, True, True, True]
    assert len(made.replay._recorded) == 1


def test_threads_and_streams_share_no_scratch(launcher, replayed):
    made, routing, (x, weight, _) = packed(), kernels.Routing.of([0]), operands(1)
    made.linear(x, weight, None, routing, None)

    def scratch() -> int:
        """Where shrink writes, and expand reads."""
        launcher.pointers.clear()
        assert again(made, replayed, x, weight, None, routing, None)
        shrink, expand, *_ = launcher.pointers
        assert shrink[-1] == expand[0]
        return shrink[-1]

    own, found = scratch(), []
    launcher.now = 1
    beside = scratch()
    launcher.now = 0

    def inside():
        with torch.no_grad():
            found.append((scratch(), repeat.rooms.held))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert len({own, beside, found[0][0]}) == 3 and scratch() == own


# ---- rows of embeddings ------------------------------------------------------------------------------------------


@pytest.fixture
def rows_replayed(monkeypatch):
    real, found = ReplayRows.add, []
    monkeypatch.setattr(ReplayRows, "add", lambda *given: found.append(real(*given)) or found[-1])
    return lambda: bool(found.pop() is not None or found.clear())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("entries", [[0], [0, 1, None, 1], [{0: 0.5, 1: 2.0}]], ids=["one", "rows", "mixture"])
def test_rows_are_added_again_by_one_launch(launcher, rows_replayed, entries, dtype):
    bank, routing = packed(("factors",)).banks["components"], kernels.Routing.of(entries)
    joined = COMPONENTS.join([(bank, None)], OUT)
    ids, y = torch.randint(OUT, (4, 3)), torch.randn(4, 3, IN).to(dtype)

    def run(ids=ids, y=y, routing=routing) -> bool:
        assert joined.add(ids, y, routing) is y
        return rows_replayed()

    assert [run(), run()] == [False, True]
    other = torch.randint(OUT, (4, 3)), torch.randn(4, 3, IN).to(dtype), kernels.Routing.of(entries)
    assert run(*other) and [kernel.__name__ for kernel in launcher.first + launcher.again] == ["delta_rows"] * 3
    given = [other[0], other[1], other[1], other[2].slots, other[2].weights]
    assert {t.data_ptr() for t in given} <= {*launcher.pointers[-1]}
    for other in ((torch.randint(OUT, (3, 4)).T, y), (ids, y.double())):
        joined.add(*other, routing)
        assert not rows_replayed()
    assert not run(y=torch.randn(12 * IN + 1).to(dtype)[1:].view(4, 3, IN))
    with torch.autocast("cpu"):
        joined.add(ids, y, routing)
    assert not rows_replayed()
    launcher.now = None
    assert not run()
    launcher.now = 0
    bank.bank.remove(1)
    assert run()
    bank.bank.add(1, part("factors", 1, 300))
    assert run() and bank.bank.table.data_ptr() in launcher.pointers[-1]  # of another table the same launch
    bank.bank.table[0, 0] += 1 << 40
    with pytest.raises(ValueError, match="table"):
        run()


# ---- whole layers ------------------------------------------------------------------------------------------------


def layer_of(kind: str):
    plain, layer_class, pieces = host.kinds()[kind]
    layer = host.standalone(plain.requires_grad_(False), layer_class)
    for task in range(2):
        layer.load(task, pieces(task))
    return layer, pieces


@pytest.mark.parametrize("kind", ["linear, components", "linear, components and biases", "linear, sketch"])
def test_a_layer_follows_tasks_and_routing(launcher, replayed, kind):
    layer, pieces = layer_of(kind)
    x = torch.randn(2, host.SIZE)
    run = lambda: layer(x) is not None and replayed() > 0  # noqa: E731
    slots = lambda: launcher.pointers[-1] if "biases" in kind else launcher.pointers[0]  # noqa: E731
    for mixtures in ([{0: 1.0}], [{0: 1.0}, {1: 1.0}]):
        layer.dts.state.set(mixtures)
        assert [run(), run()] == [False, True]
        launcher.pointers.clear()
        assert run() and layer.dts.state.chosen.routing.slots.data_ptr() in slots()
    with layer.dts.state.using([{1: 1.0}, {0: 1.0}]):
        own = layer.dts.state.now().routing.slots.data_ptr()
        launcher.pointers.clear()
        assert run() and own in slots()
    layer.remove(1)
    layer.load(1, pieces(1))
    assert [run(), run()][1]
    layer.load(7, pieces(7))
    layer.load(8, pieces(8))  # beyond the tables that there were
    launcher.pointers.clear()
    layer.dts.state.set([{8: 1.0}, {0: 1.0}])
    assert [run(), run()][1]
    last = {pointer for launched in launcher.pointers[-5:] for pointer in launched}
    main = layer.dts.parameters["weight"].matrices[None].main
    assert main.banks["components"].bank.table.data_ptr() in last
    if "biases" in kind:
        assert layer.dts.parameters["bias"].raw.wide.data_ptr() in last
    layer.dts.state.set([{}, {}])
    assert run()  # the base is rows of no task


def test_a_layer_whose_rows_are_elsewhere_or_that_cannot_run_is_not_replayed(replayed):
    layer, _ = layer_of("linear, components")
    layer.dts.state.set([{0: 1.0}, {1: 1.0}])
    x = torch.randn(2, host.SIZE)
    for _ in "123":
        layer(x)
    assert replayed()
    with layer.dts.state.using([{0: 1.0}, {1: 1.0}], axis={layer.dts.name: 1}), pytest.raises(RuntimeError):
        layer(torch.randn(2, 3, host.SIZE))
    with layer.dts.state.using([{0: 1.0}, {1: 1.0}], axis={layer.dts.name: -2}):
        assert torch.equal(layer(x), layer.base_forward(x))
    with layer.dts.state.using([{0: 1.0}, {1: 1.0}], missing={layer.dts.name: "not here"}):
        with pytest.raises(ValueError, match="not here"):
            layer(x)
    layer.load(0, {"weight": [Piece("raw", torch.randn(host.SIZE, host.SIZE))]})
    assert not torch.equal(layer(x), layer.base_forward(x))  # beside what is replayed
