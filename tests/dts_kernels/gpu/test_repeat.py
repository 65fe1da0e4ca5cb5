"""Launches that are repeated without Triton's look at their arguments, with a launcher that launches nothing: no two
launches share a compiled kernel that Triton would not have picked for both.  Their numbers: interpreted/launches.py."""

import copy
import sys
import threading
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="needs Triton (pip install triton)")

import dts  # noqa: E402
import dts_kernels as kernels  # noqa: E402
from benchmarks.kernels import host  # noqa: E402
from dts.nn.deltas.packed import Packed  # noqa: E402
from dts_kernels import contents, dispatch, sample_contents  # noqa: E402
from dts_kernels.gpu import launch, repeat, repeat_samples, sample_products  # noqa: E402
from dts_kernels.gpu.tune import random_factors  # noqa: E402
from dts_kernels.ops import add_rows, task_rows  # noqa: E402
from tests.dts_kernels.gpu.watching import Watching, repeats  # noqa: E402

IN, OUT = 96, 80
OWN = tuple(str(Path(package.__file__).parent) for package in (dts, kernels))


@pytest.fixture(autouse=True)
def launcher():
    watching = Watching()
    with host.as_on_a_card(watching), torch.no_grad():
        yield watching


def bank(ranks=(7, 130)) -> kernels.Bank:
    made = kernels.Bank(IN, OUT)
    for slot, rank in enumerate(ranks):
        made.add(slot, random_factors(OUT, IN, rank, slot, "cpu"))
    return made


def operands(rows=4, dtype=torch.float16):
    return torch.randn(rows, IN).to(dtype), torch.randn(OUT, IN).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("entries", [[0], [0, 1, None, 1], [{0: 0.5, 1: 2.0}]], ids=["one", "rows", "mixture"])
def test_the_second_call_is_launched_as_triton_would_have(launcher, entries, dtype):
    made, routing, (x, weight) = bank(), kernels.Routing.of(entries), operands(dtype=dtype)
    calls = [
        lambda: kernels.linear(x, weight, None, made, routing),
        lambda: kernels.delta_linear(x, made, routing),
        lambda: kernels.delta_linear(x, made, routing, torch.randn(4, OUT).to(dtype)),
    ]
    assert [repeats(launcher, call) for call in calls + calls] == [False] * 3 + [True] * 3
    x = torch.randn(4, IN).to(dtype)  # elsewhere in memory
    assert all(repeats(launcher, call) for call in calls)
    counted = {("linear", "triton"): 3, ("delta_linear", "triton"): 6}
    assert all(dispatch.ran[key] >= count for key, count in counted.items())


@pytest.mark.parametrize("rows", [1, 2, 16, 17])
def test_another_number_of_rows_is_another_launch(launcher, rows):
    made, routing, (x, weight) = bank(), kernels.Routing.of([0]), operands(4)
    kernels.linear(x, weight, None, made, routing)
    other, _ = operands(rows)
    assert [repeats(launcher, lambda: kernels.linear(other, weight, None, made, routing)) for _ in "12"] == [
        False,
        True,
    ]
    assert repeats(launcher, lambda: kernels.linear(x, weight, None, made, routing))


def test_what_lies_otherwise_in_memory_takes_the_long_way(launcher):
    made, routing, (x, weight) = bank(), kernels.Routing.of([0, 1]), operands()
    run = lambda x, routing=routing: repeats(launcher, lambda: kernels.linear(x, weight, None, made, routing))  # noqa: E731
    assert [run(x), run(x)] == [False, True]
    odd = torch.randn(4 * IN + 1).half()[1:].view(4, IN)
    assert odd.data_ptr() % 16 and not run(odd)
    assert not run(torch.randn(IN, 4).half().T)
    assert not run(torch.complex(torch.randn(4, IN), torch.randn(4, IN)).conj().imag.half()._neg_view())
    room = torch.zeros(9, dtype=torch.int32)
    unaligned = kernels.Routing(room[1:3].view(2, 1), routing.weights)
    assert unaligned.slots.data_ptr() % 16 and not run(x, unaligned)
    assert run(x)


def test_operands_that_do_not_fit_are_refused_as_in_the_first_call(launcher):
    made, routing, (x, weight) = bank(), kernels.Routing.of([0, 1]), operands()
    for _ in range(2):
        kernels.linear(x, weight, None, made, routing)
        kernels.delta_linear(x, made, routing, torch.zeros(4, OUT).half())
    with pytest.raises(ValueError, match="weight"):
        kernels.linear(x, weight[:-1], None, made, routing)
    with pytest.raises(ValueError, match="bias"):
        kernels.linear(x, weight, torch.zeros(1).half(), made, routing)
    with pytest.raises(ValueError, match="in_features"):
        kernels.linear(x.view(IN, 4), weight, None, made, routing)
    with pytest.raises(ValueError, match="y "):
        kernels.delta_linear(x, made, routing, torch.zeros(4, OUT))
    with pytest.raises(ValueError, match="adds"):
        kernels.linear(x, weight, None, made, routing, torch.zeros(2, 1))
    routing.slots.data = torch.zeros(2, 1, dtype=torch.int64)  # leaves no trace
    with pytest.raises(ValueError, match="int32"):
        kernels.linear(x, weight, None, made, routing)


def test_a_fused_launch_is_not_repeated_for_another_form_of_weight(launcher, monkeypatch):
    monkeypatch.setattr("dts_kernels.gpu.config.fused", lambda *case: True)
    made, routing, (x, weight) = bank(), kernels.Routing.of([0]), operands()
    bias, other = torch.zeros(OUT).half(), torch.zeros(OUT).half()
    run = lambda w, b: repeats(launcher, lambda: kernels.linear(x, w, b, made, routing))  # noqa: E731
    assert [run(weight, bias), run(weight.clone(), other)] == [False, True]
    assert [kernel.__name__ for kernel in launcher.again] == ["shrink", "base_expand"]
    assert launcher.pointers[-1][2] == other.data_ptr()
    assert not run(weight, None)
    assert not run(weight.T.contiguous().T, bias)
    launched = lambda: [kernel.__name__ for kernel in launcher.first + launcher.again].count("base_expand")  # noqa: E731
    for negated in ((torch._neg_view(-weight), bias), (weight, torch._neg_view(-bias))):
        run(weight, bias)
        count = launched()
        run(*negated)
        assert launched() == count  # the library reads what is to be negated, the kernel would not


def test_operands_of_another_device_are_refused_before_a_launch(launcher, monkeypatch):
    made, routing, (x, weight) = bank(), kernels.Routing.of([0]), operands()
    away = lambda *shape: torch.empty(*shape, dtype=torch.float16, device="meta")  # noqa: E731
    for fused in (False, True):
        monkeypatch.setattr("dts_kernels.gpu.config.fused", lambda *case, fused=fused: fused)
        for grad in (False, True):
            for again in (False, True):
                if again:
                    kernels.linear(x, weight, None, made, routing)
                count = len(launcher.first) + len(launcher.again)
                with torch.set_grad_enabled(grad):
                    with pytest.raises(ValueError, match="weight is on meta, x on cpu"):
                        kernels.linear(x, away(OUT, IN), None, made, routing)
                    with pytest.raises(ValueError, match="bias is on meta, x on cpu"):
                        kernels.linear(x, weight, away(OUT), made, routing)
                    with pytest.raises(ValueError, match="y is on meta, x on cpu"):
                        kernels.delta_linear(x, made, routing, away(4, OUT))
                assert len(launcher.first) + len(launcher.again) == count


def test_zeros_that_were_never_written_have_no_address(launcher):
    made, routing, (x, _) = bank(), kernels.Routing.of([0]), operands()
    run = lambda y: repeats(launcher, lambda: kernels.delta_linear(x, made, routing, y))  # noqa: E731
    assert [run(torch.zeros(4, OUT).half()) for _ in "12"] == [False, True]
    assert not run(torch._efficientzerotensor((4, OUT), dtype=torch.float16))


def test_vectors_of_more_rows_than_a_grid_is_wide(launcher):
    routing, stack = kernels.Routing.of([0]), torch.randn(1, 2)
    add_rows(torch.zeros(70_000, 2).half(), stack, routing)
    assert len(launcher.first) == 1


def test_more_programs_than_cuda_has_are_an_error_not_a_launch():
    call = launch.Call(print, (1, 65_536), (torch.zeros(1),), (), {}, {})
    with pytest.raises(ValueError, match="give fewer rows at once"):
        launch.Launcher().launch(call)


def test_launches_go_with_the_table_that_they_were_made_for(launcher):
    """Tasks that come and go in it change no address; more ranks than all before have another table."""
    made, routing, (x, weight) = bank(), kernels.Routing.of([0]), operands()
    run = lambda made: repeats(launcher, lambda: kernels.linear(x, weight, None, made, routing))  # noqa: E731
    assert [run(made), run(made), run(copy.deepcopy(made)), run(made)] == [False, True, False, True]
    made.add(2, random_factors(OUT, IN, 300, 2, "cpu"))
    assert [run(made), run(made)] == [False, True]
    made.remove(2)
    made.add(1, random_factors(OUT, IN, 8, 3, "cpu"))
    assert run(made)


def test_a_table_that_somebody_else_wrote_into_is_looked_at_again(launcher):
    made, routing, (x, weight) = bank(), kernels.Routing.of([0]), operands()
    run = lambda: repeats(launcher, lambda: kernels.linear(x, weight, None, made, routing))  # noqa: E731
    assert [run(), run()] == [False, True]
    made.table[0, 0] += 1 << 40
    with pytest.raises(ValueError, match="table"):
        run()


def test_few_forms_are_kept(launcher):
    made, routing, (_, weight) = bank(), kernels.Routing.of([0]), operands()
    for rows in range(1, 2 * repeat.FORMS):
        kernels.linear(torch.randn(rows, IN).half(), weight, None, made, routing)
    assert len(getattr(made.table, contents.HELD).launches) <= repeat.FORMS


def test_nothing_is_repeated_where_the_launcher_says_no(launcher):
    """While a graph is captured, on another card than the current one, under a profiler."""
    made, routing, (x, weight) = bank(), kernels.Routing.of([0]), operands()
    kernels.linear(x, weight, None, made, routing)
    launcher.now = None
    assert not repeats(launcher, lambda: kernels.linear(x, weight, None, made, routing))
    assert not repeats(launcher, lambda: kernels.linear(x[:2], weight, None, made, routing))
    launcher.now = 0
    assert not repeats(launcher, lambda: kernels.linear(x[:2], weight, None, made, routing))  # nothing was kept of it
    assert repeats(launcher, lambda: kernels.linear(x, weight, None, made, routing))


def test_a_profilers_hook_is_noticed():
    from triton import knobs

    assert not launch._listening()
    hook = lambda metadata: None  # noqa: E731
    knobs.runtime.launch_enter_hook.add(hook)
    try:
        assert launch._listening()
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)


def test_every_thread_and_stream_has_a_t_of_its_own(launcher):
    made, routing, (x, weight) = bank(), kernels.Routing.of([0]), operands()
    kernels.linear(x, weight, None, made, routing)

    def t() -> int:
        """Where shrink writes, and expand reads."""
        kernels.linear(x, weight, None, made, routing)
        (*_, written), (read, *_) = launcher.pointers[-2:]
        assert written == read
        return read

    own = t()
    assert t() == own
    launcher.now = 1
    beside = t()
    launcher.now = 0
    found = []
    held = threading.Thread(target=lambda: found.append((t(), repeat.rooms.held)))
    with torch.no_grad():
        held.start()
        held.join()
    assert len({own, beside, found[0][0]}) == 3 and t() == own


def test_gradients_take_the_long_way(launcher):
    made, routing, (x, weight) = bank(), kernels.Routing.of([0]), operands()
    kernels.linear(x, weight, None, made, routing)
    with torch.enable_grad():
        assert not repeats(launcher, lambda: kernels.linear(x.requires_grad_(), weight, None, made, routing))


def test_vectors_are_one_launch(launcher):
    routing, stack = kernels.Routing.of([0, 1]), torch.randn(3, 32)
    for _ in range(2):
        add_rows(torch.randn(6, 32).half(), stack, routing)
        task_rows(stack, routing, torch.float32)
        task_rows(stack, routing, torch.float16, torch.randn(32).half())
    assert Counter(kernel.__name__ for kernel in launcher.first) == {"task_rows": 3}
    assert Counter(kernel.__name__ for kernel in launcher.again) == {"task_rows": 3}
    odd = torch.randn(33).half()[1:]
    assert not repeats(launcher, lambda: task_rows(stack, routing, torch.float16, odd))
    assert not repeats(launcher, lambda: task_rows(stack, routing, torch.float16, torch.randn(32)))


class Loading(Watching):
    """A driver that loads no kernel while a graph is captured."""

    def __init__(self):
        super().__init__()
        self.loaded, self.captured = set(), False

    def launch(self, call):
        compiled = super().launch(call)
        key = call.kernel.fn.__name__, str(compiled.seen)
        assert not self.captured or key in self.loaded, f"{key[0]} is not loaded"
        self.loaded.add(key)
        return compiled

    def prepare(self, call):
        compiled = super().prepare(call)
        self.loaded.add((call.kernel.fn.__name__, str(compiled.seen)))

    def captures(self, index):
        return self.captured

    def stream(self, index):
        return None if self.captured else 0

    def beside(self, index, name):
        beside = nullcontext()
        beside.join = lambda: None
        return beside


@pytest.mark.parametrize("rows,tasks", [(1, 1), (4, 4), (16, 1)])
@pytest.mark.parametrize("rank,stride", [(16, 12), (200, None), (None, 5)])
def test_an_eager_call_loads_all_that_a_captured_one_launches(rows, tasks, rank, stride, monkeypatch):
    """`combine_parts`, `expand` of whole t and a sample's sum in one part without y are launched in graphs only."""
    monkeypatch.setattr("dts_kernels.gpu.sample_products.beside_pays", lambda *case: True)
    loading, size = Loading(), 256
    launch.use(loading)
    packed, routing = Packed((size, size)), kernels.Routing.of(list(range(tasks)))
    for slot in range(tasks):
        parts = [] if rank is None else [random_factors(size, size, rank, slot, "cpu")]
        if stride is not None:
            codes = kernels.pack(torch.randint(4, (size, -(-size // stride)), dtype=torch.uint8))
            parts.append(kernels.Samples(codes, 0.1, stride, slot, (size, size)))
        packed.add(slot, parts)
    x, weight = torch.randn(rows, size).half(), torch.randn(size, size).half()
    packed.linear(x, weight, None, routing, None)
    eager, loading.captured = len(loading.first), True
    packed.linear(x, weight, None, routing, None)
    assert len(loading.first) > eager
    names = {kernel.fn.__name__ for kernel in loading.first[eager:]}
    assert ("add_parts" in names) is (stride is not None) and ("expand" in names) is (rank is not None)
    loading.loaded.clear()
    with pytest.raises(AssertionError, match="not loaded"):
        packed.linear(x, weight, None, routing, None)


def test_a_layer_asks_for_little_of_the_host():
    """Frames of our own in a call: each costs a tenth of a microsecond at least."""
    plain, layer_class, pieces = host.kinds()["linear, components"]
    layer = host.standalone(plain.requires_grad_(False), layer_class)
    layer.load(0, pieces(0))
    layer.dts.state.set([{0: 1.0}])
    x, names = torch.randn(1, host.SIZE), []

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(OWN):
            names.append(frame.f_code.co_qualname)

    launch.use(host.Nothing())
    for _ in "12":  # what is kept of the first, and the scratch that the second makes
        layer(x)
    sys.setprofile(note)
    try:
        layer(x)
    finally:
        sys.setprofile(None)
    assert "Replay.linear" in names and len(names) <= 7, names


def sample_bank(strides=(3, 12)) -> kernels.SampleBank:
    made = kernels.SampleBank(IN, OUT, arena=True)
    for slot, stride in enumerate(strides):
        codes = kernels.pack(torch.randint(4, (OUT, -(-IN // stride)), dtype=torch.uint8))
        made.add(slot, (kernels.Samples(codes, 0.1, stride, slot, (OUT, IN)),))
    return made


@pytest.fixture
def repeated(launcher, monkeypatch):
    """(x, y, bank, routing) -> whether a product with samples was repeated as a whole; of the long way's launches each
    alone may have been (`launch.run`)."""
    found, real = [], repeat_samples.add_samples
    monkeypatch.setattr(repeat_samples, "add_samples", lambda *given: found.append(real(*given)) or found[-1])

    def run(x, y, made, routing) -> bool:
        kernels.add_samples(x, y, made, routing)
        return found.pop() is not None

    return run


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rows,entries", [(1, [0]), (2, [0, 1]), (8, [0]), (8, [0, 1, None, 1, 0, 1, 0, {0: 0.5}])])
def test_products_with_samples_are_repeated_as_triton_would_have_launched_them(
    launcher, repeated, monkeypatch, rows, entries, dtype
):
    monkeypatch.setattr(launch, "_bound", {})
    made, routing = sample_bank(), kernels.Routing.of(entries)
    x, y = torch.randn(rows, IN).to(dtype), torch.randn(rows, OUT).to(dtype)
    before = dispatch.ran["add_samples", "triton"]
    assert [repeated(x, y, made, routing) for _ in "12"] == [False, True]
    assert launcher.first == launcher.again and dispatch.ran["add_samples", "triton"] == before + 2
    other = kernels.Routing(routing.slots.clone(), routing.weights.clone())
    given = x.clone(), y.clone()
    assert repeated(*given, made, other)
    pointers = {p for launched in launcher.pointers[-len(launcher.first) :] for p in launched}
    assert {t.data_ptr() for t in (*given, other.slots, other.weights)} <= pointers
    assert not {t.data_ptr() for t in (x, y, routing.slots, routing.weights)} & pointers
    odd = torch.randn(rows * IN + 1).to(dtype)[1:].view(rows, IN)
    assert not repeated(odd, y, made, routing) and repeated(x, y, made, routing)
    assert rows == 1 or not repeated(x, torch.randn(OUT, rows).to(dtype).T, made, routing)
    made.add(1, made.samples(0))
    assert [repeated(x, y, made, routing) for _ in "12"] == [False, True]
    with pytest.raises(ValueError, match="y "):
        repeated(x, y.double(), made, routing)
    launcher.now = None
    assert not repeated(x, y, made, routing)


def test_scratch_of_products_with_samples_holds_all_that_they_write(launcher, repeated):
    """`lay` and the parts do not overlap."""
    made, routing = sample_bank(), kernels.Routing.of([0, 1, 0, 1])
    x, y = torch.randn(4, IN).half(), torch.randn(4, OUT).half()
    operands, shape = made.operands(routing), sample_products.Shape(1, 2, 3, True)  # laid out, in parts
    sample_products.add_samples(x, y, operands, False, shape)
    assert repeated(x, y, made, routing)
    (form,) = getattr(operands.table, sample_contents.HELD).launches.values()
    laid = 4 * sample_products.room_of(IN) * 4
    assert form.parts >= laid and form.room - form.parts == 3 * 4 * OUT * 4
    lay, product, parts = launcher.pointers[-3:]
    assert lay[1] == product[1] and product[3] == parts[0] == lay[1] + form.parts
    memory = repeat.rooms.held[-1, 0]
    assert lay[1] == memory[2] and memory[1] >= form.room


def test_scales_of_somebody_else_beside_a_banks_table_are_not_kept(launcher, repeated):
    made, routing = sample_bank(), kernels.Routing.of([0])
    x, y = torch.randn(1, IN).half(), torch.randn(1, OUT).half()
    theirs = made.new_operands(routing)._replace(scales=torch.ones(8))
    torch.ops.dts.add_samples(x, y, *theirs, False)
    assert [repeated(x, y, made, routing) for _ in "12"] == [False, True]
