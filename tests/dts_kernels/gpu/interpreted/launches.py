"""Launches that are repeated, and those beside the base's product."""

import ctypes
from collections import Counter

import pytest
import torch

import dts_kernels as kernels
from dts.nn.deltas.packed import Packed
from dts_kernels import dispatch
from dts_kernels.gpu import launch, products, rules, sample_products
from dts_kernels.gpu.config import Config
from dts_kernels.ops import Replay, add_rows
from dts_kernels.parts.components import ComponentBank
from dts_kernels.parts.sample import SamplePartBank
from dts_kernels.paths import PATHS
from tests.dts_kernels.gpu.interpreted.capturing import Capturing
from tests.dts_kernels.gpu.interpreted.common import EIGHT, IN, LAID, OUT, SPLIT_DIRECT, bank, error, sample_bank, truth

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
        assert len(repeating.first) == count and len(repeating.again) == 4 * 2
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


class OnACard(Repeating):
    """The same, which adds what tasks change of a bias by a kernel, as on a card."""

    def index(self, tensor):
        return 0

    def properties(self, index):
        return super().properties(-1)

    def captures(self, index):
        return False

    def prepare(self, call):
        return None


@pytest.mark.parametrize(
    "entries,rows,kinds,fused",
    [
        ([2, None, 0], 3, "components and sample", False),
        ([{0: 0.5, 2: -0.25}], 2, "sample", False),
        ([2], 2, "components and sample", True),
    ],
    ids=["rows", "mixture", "fused"],
)
def test_a_layers_products_in_a_row_have_the_same_bits(monkeypatch, entries, rows, kinds, fused, dtype):
    monkeypatch.setattr(launch, "launcher", OnACard())
    monkeypatch.setattr(launch, "_bound", {})
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    if fused:
        monkeypatch.setattr(products.config, "fused", lambda *case: True)
        monkeypatch.setattr(products.config, "choose", lambda *case: Config(block_n=32, block_k=32, stages=2))
    routing, weight, bias = (
        kernels.Routing.of(entries),
        (torch.randn(OUT, IN) / 12).to(dtype),
        torch.randn(OUT).to(dtype),
    )
    adds, inputs = torch.randn(4, OUT), [torch.randn(rows, IN).to(dtype) for _ in range(2)]
    components, samples = bank() if "components" in kinds else None, sample_bank((OUT, IN))

    def one_by_one(x):
        if components is None:
            y = add_rows(torch.nn.functional.linear(x, weight, bias), adds, routing)
        else:
            y = kernels.linear(x, weight, bias, components, routing, adds)
        return kernels.add_samples(x, y, samples, routing)

    in_a_row = Replay(components, samples)
    with torch.no_grad():
        assert in_a_row.linear(inputs[0], weight, bias, routing, adds) is None
        wanted = [one_by_one(x) for x in inputs]
        if components is not None and not fused:  # expand adds as `task_rows` does
            y = add_rows(kernels.linear(inputs[0], weight, bias, components, routing), adds, routing)
            assert torch.equal(kernels.add_samples(inputs[0], y, samples, routing), wanted[0])
        count, kept = len(launch.launcher.first), [x.clone() for x in inputs]
        found = [in_a_row.linear(x, weight, bias, routing, adds) for x in (*inputs, inputs[0])]
    assert len(launch.launcher.first) == count
    assert all(torch.equal(one, other) for one, other in zip(found, (*wanted, wanted[0])))
    assert all(torch.equal(one, other) for one, other in zip(inputs, kept))


# ---- launches beside the base's product --------------------------------------------------------------------------


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
