"""What only a GPU can show: `make gpu`."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import dts_kernels as kernels
from dts.nn.deltas.packed import Packed
from dts_kernels import contents, dispatch, ops, reference
from dts_kernels import routing as plain_routing
from dts_kernels.gpu import products, sample_products
from dts_kernels.gpu.config import Config
from dts_kernels.gpu.tune import random_factors
from dts_kernels.layout import rank_order
from dts_kernels.parts.components import COMPONENTS, ComponentBank
from dts_kernels.parts.sample import SamplePartBank
from dts_kernels.paths import PATHS

pytestmark = pytest.mark.gpu

SIZES = [
    (768, 768),
    (3072, 1024),
    (2048, 2560),
    (4096, 4096),
    (5120, 3584),
    (14336, 4096),
    (4096, 11008),
    (8192, 28672),
    (2049, 3424),
    (17, 5),
]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True, scope="module")
def device():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def bank(m, n, ranks):
    made = kernels.Bank(n, m, "cuda")
    for slot, rank in enumerate(ranks):
        made.add(slot, random_factors(m, n, rank, slot, "cuda"))
    return made


def check(got, x, made, entries, y=None):
    """Against float64 dense deltas, a task at a time."""
    wanted = torch.zeros(got.shape, dtype=torch.float64, device="cuda") if y is None else y.double()
    per_entry = x.shape[0] // len(entries)
    mixtures = [e if isinstance(e, dict) else {} if e is None else {e: 1.0} for e in entries]
    for slot in {s for mixture in mixtures for s in mixture}:
        delta = reference.reconstruct(made.factors(slot), torch.float64)
        gamma = torch.tensor([mixture.get(slot, 0.0) for mixture in mixtures], dtype=torch.float64, device="cuda")
        wanted += gamma.repeat_interleave(per_entry)[:, None] * (x.double() @ delta.T)
    error = got.double() - wanted
    tolerance = TOLERANCE[x.dtype]
    assert error.norm() <= tolerance * wanted.norm()
    assert error.abs().max() <= 10 * tolerance * wanted.square().mean().sqrt()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("m,n", SIZES)
@pytest.mark.parametrize("rank", [1, 7, 409, 1228])
def test_sizes_ranks_and_rows(m, n, rank, dtype):
    if rank > min(m, n):
        rank = min(m, n)
    made = bank(m, n, [rank])
    for rows in (1, 3, 16, 300):
        x = torch.randn(rows, n, device="cuda", dtype=dtype)
        check(kernels.delta_linear(x, made, kernels.Routing.of([0], "cuda")), x, made, [0])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("tasks,rows", [(1, 4096), (4, 16), (16, 16), (64, 64), (3, 512)])
def test_a_task_a_row(tasks, rows, dtype):
    made = bank(1024, 768, [16 * (slot % 5) + 1 for slot in range(tasks)])
    entries = [None if row % 7 == 6 else row % tasks for row in range(rows)]
    x, weight = torch.randn(rows, 768, device="cuda", dtype=dtype), torch.randn(1024, 768, device="cuda", dtype=dtype)
    routing = kernels.Routing.of(entries, "cuda")
    dispatch.ran.clear()
    check(kernels.delta_linear(x, made, routing), x, made, entries)
    check(kernels.linear(x, weight, None, made, routing), x, made, entries, x.double() @ weight.double().T)
    assert set(dispatch.ran) == {("delta_linear", "triton"), ("linear", "triton")}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("asm", [False, True], ids=["pure", "asm"])
def test_every_half_word_decodes_to_its_codes(every_half_word, dtype, asm):
    x, operands, wanted = every_half_word(dtype, "cuda")
    for block_n in (32, 64, 128):
        t, _ = products.Launch(x, operands, {"shrink": Config(block_n=block_n, asm=asm)}).shrink()
        assert torch.equal(t[0, 0].float()[:, rank_order(t.shape[-1])], wanted)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_assembly_gives_the_same_bits_as_its_pure_twin(dtype, rows):
    made, routing = bank(1024, 768, [300]), kernels.Routing.of([0], "cuda")
    x, weight = (torch.randn(size, 768, device="cuda", dtype=dtype) for size in (rows, 1024))
    results = []
    for asm in (False, True):
        configs = {kernel: Config(asm=asm) for kernel in ("shrink", "expand")}
        configs["base_expand"] = Config(block_n=32, block_k=32, stages=2, asm=asm)
        launch = products.Launch(x, made.operands(routing), configs)
        results.append((launch.expand(*launch.shrink(), None), launch.base_expand(weight, None)))
    assert all(torch.equal(pure, assembly) for pure, assembly in zip(*results))


def test_mixtures_and_gradients():
    made, entries = bank(512, 640, [30, 129, 64]), [{0: 0.5, 2: -1.0}, None, {1: 2.0}, {1: 0.1, 0: 0.9}]
    routing = kernels.Routing.of(entries, "cuda")
    x = torch.randn(20, 640, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    out = kernels.delta_linear(x, made, routing)
    check(out.detach(), x.detach(), made, entries)
    upstream = torch.randn_like(out)
    (got,) = torch.autograd.grad(out, x, upstream)
    deltas = [
        sum(
            (g * reference.reconstruct(made.factors(s), torch.float64) for s, g in (e or {}).items()),
            torch.zeros(512, 640, dtype=torch.float64, device="cuda"),
        )
        for e in entries
    ]
    wanted = torch.cat([upstream[5 * i : 5 * i + 5].double() @ delta for i, delta in enumerate(deltas)])
    assert (got.double() - wanted).norm() <= 1e-2 * wanted.norm()


def test_a_rows_result_is_the_same_bits_among_any_neighbours():
    made, x = bank(1024, 1024, [64, 300, 7]), torch.randn(64, 1024, device="cuda", dtype=torch.bfloat16)
    entries = [row % 3 for row in range(64)]
    routing = kernels.Routing.of(entries, "cuda")
    first = kernels.delta_linear(x, made, routing)
    for _ in range(20):
        assert torch.equal(kernels.delta_linear(x, made, routing), first)
    shuffled = torch.randperm(64)
    again = kernels.delta_linear(x[shuffled.cuda()], made, kernels.Routing.of([entries[i] for i in shuffled], "cuda"))
    assert torch.equal(again, first[shuffled.cuda()])


def test_a_captured_graph_follows_tasks_that_are_swapped():
    made = bank(768, 768, [64, 100])
    made.reserve(tasks=4, rank=128)
    routing = kernels.Routing.of([0, 1, None, 1], "cuda")
    x, weight = (torch.randn(s, 768, device="cuda", dtype=torch.float16) for s in (4, 768))
    kernels.linear(x, weight, None, made, routing)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.linear(x, weight, None, made, routing)
    for entries in ([1, 0, 1, None], [2, 2, 0, 3]):
        if 2 in entries:
            made.add(2, random_factors(768, 768, 77, 9, "cuda"))
            made.add(3, random_factors(768, 768, 128, 8, "cuda"))
        routing.slots.copy_(kernels.Routing.of(entries, "cuda").slots)
        routing.weights.fill_(1.0)
        graph.replay()
        check(out, x, made, entries, x.double() @ weight.double().T)


def test_a_captured_graph_goes_on_when_more_is_loaded_than_there_was_room_for():
    """Chunks are added and nothing moves; a task of more ranks than the graph has scratch for adds nothing in it."""
    made, x = bank(768, 640, [64, 100]), torch.randn(3, 640, device="cuda", dtype=torch.float16)
    routing = kernels.Routing.of([0, 1, None], "cuda")
    kernels.delta_linear(x, made, routing)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.delta_linear(x, made, routing)
    for slot, rank in ((2, 128), (20, 10), (3, 500), (4, 7)):
        made.add(slot, random_factors(768, 640, rank, slot, "cuda"))
    made.remove(0)
    for entries, alone in (([2, 4, 1], [2, 4, 1]), ([0, 3, 20], [None, None, None])):
        routing.slots.copy_(kernels.Routing.of(entries, "cuda").slots)
        routing.weights.fill_(1.0)
        graph.replay()
        check(out, x, made, alone)
        check(kernels.delta_linear(x, made, routing), x, made, [e if e in made.slots else None for e in entries])


@pytest.mark.parametrize("m,n,rank", [(4096, 4096, 204), (4096, 4096, 1228), (8192, 2048, 130), (384, 384, 30)])
def test_a_task_takes_its_packed_bytes_on_the_device(m, n, rank):
    factors = random_factors(m, n, rank, 0, "cpu")
    torch.cuda.synchronize()
    before, made = torch.cuda.memory_allocated(), kernels.Bank(n, m, "cuda")
    for slot in range(8):
        made.add(slot, factors)
    held = torch.cuda.memory_allocated() - before
    assert made.nbytes <= held <= 1.05 * 8 * factors.nbytes + 1024


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("rows", [1, 16, 512, 8192])
def test_one_task_is_captured_too_whatever_the_rows(rows, dtype):
    """Shrink beside the base's product, the fused kernel, and long prompts by library products."""
    made, routing = bank(1024, 768, [600, 30]), kernels.Routing.of([0], "cuda")
    x, weight = (torch.randn(size, 768, device="cuda", dtype=dtype) for size in (rows, 1024))
    eager = kernels.linear(x, weight, None, made, routing)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [kernels.linear(x, weight, None, made, routing) for _ in range(3)]  # scratch of one is the next one's
    graph.replay()
    assert all(torch.equal(out, eager) for out in outs)
    routing.slots.fill_(1)
    graph.replay()
    check(outs[-1], x, made, [1], x.double() @ weight.double().T)


def test_compiled_equals_eager():
    made, x = bank(768, 640, [64, 100]), torch.randn(4, 640, device="cuda", dtype=torch.float16)
    step = torch.compile(lambda x, r: kernels.delta_linear(x, made, r), fullgraph=True)
    for entries in ([0, 1, None, 1], [1, 1, 1, 1]):
        routing = kernels.Routing.of(entries, "cuda")
        assert torch.equal(step(x, routing), kernels.delta_linear(x, made, routing))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_reconstruct(dtype):
    made = bank(1000, 700, [64, 300])
    base = torch.randn(1000, 700, device="cuda", dtype=dtype)
    wanted = base.double() + sum(
        g * reference.reconstruct(made.factors(s), torch.float64) for s, g in ((0, 0.5), (1, 2.0))
    )
    got = kernels.reconstruct(made, {0: 0.5, 1: 2.0}, base)
    assert (got.double() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm()


def sample_bank(m, n, strides, transposed=False):
    made = kernels.SampleBank(*((m, n) if transposed else (n, m)), "cuda", transposed)
    for slot, stride in enumerate(strides):
        groups = -(-n // stride)
        codes = kernels.pack(torch.randint(4, (m, groups), dtype=torch.uint8))
        made.add(slot, (kernels.Samples(codes, 1e-3 * stride, stride, 12345 + slot, (m, n)),))
    return made


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("m,n", [(768, 768), (4096, 4096), (2049, 3424), (17, 5)])
@pytest.mark.parametrize(
    "entries,each,transposed",
    [
        ([0], 1, False),
        ([1], 5, False),
        ([0], 300, False),
        ([0, None, 2, {0: 0.5, 1: -1.0}], 2, False),
        ([0, 1, 2, None, 0, 2], 1, False),
        ([0, 2], 8, False),
        ([0, 1], 3, True),
    ],
)
def test_sampled_products(m, n, entries, each, transposed, dtype):
    made, routing = sample_bank(m, n, (12, 1, 49), transposed), kernels.Routing.of(entries, "cuda")
    rows = len(entries) * each
    x = torch.randn(rows, m if transposed else n, device="cuda", dtype=dtype)
    y = torch.randn(rows, n if transposed else m, device="cuda", dtype=dtype)
    dispatch.ran.clear()
    out = kernels.add_samples(x, y, made, routing)
    assert ("add_samples", "reference") not in dispatch.ran
    wanted = PATHS["add_samples"]["reference"](x.double(), y.double(), made.operands(routing), transposed)
    assert (out.double() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm()


@pytest.mark.parametrize("transposed,path", [(False, "triton"), (True, "dense")])
def test_sampled_products_in_a_cuda_graph_follow_the_routing(transposed, path):
    made, routing = sample_bank(512, 768, (12, 6), transposed), kernels.Routing.of([0, 1], "cuda")
    x, y = (torch.randn(2, f, device="cuda") for f in (made.in_features, made.out_features))
    dispatch.ran.clear()
    kernels.add_samples(x, y, made, routing)
    assert set(dispatch.ran) == {("add_samples", path)}
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.add_samples(x, y, made, routing)
    routing.slots.copy_(torch.tensor([[1], [0]], dtype=torch.int32))
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(out, kernels.add_samples(x, y, made, routing))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("entries,each", [([0], 1), ([0, 1, None, {0: 0.5, 1: -1.0}], 1), ([1], 24)], ids=str)
def test_captured_samples_beside_the_base_have_the_bits_of_those_behind_it(entries, each, dtype, monkeypatch):
    """Layers one after another, so that memory of one would be the next one's if it were let go of too early."""
    m, n, count = 1024, 1024, 4  # each makes numbers five times as large
    made, routing = sample_bank(m, n, (12, 7)), kernels.Routing.of(entries, "cuda")
    packed = Packed((m, n), "cuda")
    packed.banks = {"components": ComponentBank(n, m, "cuda"), "sample": SamplePartBank(n, m, "cuda")}
    packed.banks["components"].bank, packed.banks["sample"].bank = bank(m, n, [300, 40]), made
    packed._refresh()
    weights = [torch.randn(m, n, device="cuda", dtype=dtype) / 32 for _ in range(count)]

    def layers(x):
        for weight in weights:
            x = packed.linear(x, weight, None, routing, None)
        return x

    def captured():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layers(x)
        return graph, out

    x = torch.randn(len(entries) * each, n, device="cuda", dtype=dtype) / 64
    with torch.inference_mode():
        assert packed.rest[0].start(x, routing) is None  # eagerly
        monkeypatch.setattr(sample_products, "beside_pays", lambda *case: True)
        layers(x)
        torch.cuda.synchronize()
        graph, beside = captured()
        monkeypatch.setattr(sample_products, "beside_pays", lambda *case: False)
        other, behind = captured()
        for slots in (routing.slots.clone(), 1 - routing.slots):
            routing.slots.copy_(slots)
            x.copy_(torch.randn_like(x) / 64)
            for _ in range(20):
                graph.replay()
            other.replay()
            torch.cuda.synchronize()
            assert torch.isfinite(beside).all() and torch.equal(beside, behind)


def test_rows_of_samples_in_a_cuda_graph_follow_the_ids():
    made, routing = sample_bank(512, 768, (12, 6)), kernels.Routing.of([0, 1], "cuda")
    ids, y = torch.tensor([[3, -1], [511, 0]], device="cuda"), torch.randn(2, 2, 768, device="cuda")
    kernels.add_sampled_rows(ids, y, made, routing)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.add_sampled_rows(ids, y, made, routing)
    ids.copy_(torch.tensor([[7, 8], [-1, 100]]))
    graph.replay()
    torch.cuda.synchronize()
    wanted = PATHS["add_sampled_rows"]["reference"](ids, y, made.operands(routing), 512)
    torch.testing.assert_close(out, wanted)
    beyond = kernels.add_sampled_rows(torch.tensor([[512, 3], [-1, 511]], device="cuda"), y, made, routing)
    assert beyond[0, 0].isnan().all() and not beyond.flatten(0, 1)[1:].isnan().any()


def test_rows_of_components_in_a_cuda_graph_follow_the_ids():
    made, routing = bank(512, 768, (40, 200)), kernels.Routing.of([0, 1], "cuda")
    ids = torch.tensor([[3, -1], [511, 0]], device="cuda")
    kernels.delta_embedding(ids, made, routing, torch.bfloat16)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.delta_embedding(ids, made, routing, torch.bfloat16)
    ids.copy_(torch.tensor([[7, 8], [-1, 512]]))
    graph.replay()
    torch.cuda.synchronize()
    wanted = kernels.delta_embedding(ids.clamp(max=511), made, routing, torch.float64)
    assert out[1, 1].isnan().all()
    torch.testing.assert_close(out.flatten(0, 1)[:3].double(), wanted.flatten(0, 1)[:3], rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("entries,rows", [([0], 1), ([0], 16), ([0, 1, None, {1: 0.5}], 4)], ids=str)
def test_a_layers_products_in_a_row_have_the_bits_of_each_by_itself(entries, rows):
    """Launched again by one function (`ops.replay`), on the current stream and on another one."""
    packed, routing, adds = Packed((512, 768), "cuda"), kernels.Routing.of(entries, "cuda"), torch.randn(8, 512).cuda()
    for slot in range(2):
        codes = kernels.pack(torch.randint(4, (512, 192), dtype=torch.uint8))
        packed.add(
            slot, [random_factors(512, 768, 200, slot, "cuda"), kernels.Samples(codes, 0.01, 4, slot, (512, 768))]
        )
    x, weight = torch.randn(rows, 768, device="cuda").bfloat16(), torch.randn(512, 768, device="cuda").bfloat16()
    bias = torch.randn(512, device="cuda").bfloat16()
    with torch.inference_mode():
        in_a_row, packed.replay = packed.replay, None
        wanted = [packed.linear(one, weight, bias, routing, adds) for one in (x, -x)]
        for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                found = [in_a_row.linear(one, weight, bias, routing, adds) for one in (x, -x)]
            torch.cuda.synchronize()
            assert all(torch.equal(one, other) for one, other in zip(found, wanted))
        with torch.autocast("cuda", torch.float16):
            assert in_a_row.linear(x, weight, bias, routing, adds) is None
    assert in_a_row.linear(x.requires_grad_(), weight, bias, routing, adds) is None


@pytest.mark.parametrize("entries", [[0], [0, 1]], ids=str)
def test_rows_of_components_are_added_in_place_as_they_are_by_themselves(entries):
    made, routing = bank(512, 768, (40, 200)), kernels.Routing.of(entries, "cuda")
    ids, y = torch.tensor([[3, -1], [511, 0]], device="cuda"), torch.randn(2, 2, 768, device="cuda").bfloat16()
    wanted = y.double() + kernels.delta_embedding(ids, made, routing, torch.float64)
    joined = ComponentBank(768, 512, "cuda")
    joined.bank = made
    rows = COMPONENTS.join([(joined, None)], 512)
    with torch.inference_mode():
        found = [rows.add(ids, y.clone(), routing) for _ in "123"]
    torch.testing.assert_close(found[0].double(), wanted, rtol=1e-2, atol=1e-3)
    assert all(torch.equal(one, found[0]) for one in found)


def test_the_words_of_samples_give_their_bytes_back():
    codes = torch.randint(256, (130, 7), dtype=torch.uint8)
    one = kernels.Samples(codes, 0.1, 10, 5, (130, 270))
    made = kernels.SampleBank(270, 130, "cuda")
    made.add(0, (one,))
    assert torch.equal(made.samples(0)[0].codes.cpu(), codes)
    assert torch.equal(made.to("cpu").samples(0)[0].codes, codes)


# ---- launches that are repeated ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("entries", [[0], [0, 1, None, 1, 1, 0, 0, 1], [{0: 0.5, 1: 2.0}]], ids=["one", "rows", "mix"])
def test_a_product_that_is_made_again_has_the_same_bits(entries, dtype):
    """Whether by Triton's look at the arguments or without it, on whichever stream, for whichever x."""
    made, routing = bank(768, 640, [600, 100]), kernels.Routing.of(entries, "cuda")
    weight, bias = torch.randn(768, 640, device="cuda", dtype=dtype), torch.randn(768, device="cuda", dtype=dtype)
    inputs = [torch.randn(8, 640, device="cuda", dtype=dtype) for _ in range(4)]
    unaligned = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in inputs]
    adds = torch.randn(2, 768, device="cuda")
    y = torch.randn(8, 768, device="cuda", dtype=dtype)
    products = [
        lambda x: kernels.linear(x, weight, bias, made, routing),
        lambda x: kernels.linear(x, weight, None, made, routing, adds),
        lambda x: kernels.delta_linear(x, made, routing),
        lambda x: kernels.delta_linear(x, made, routing, y, adds),
    ]
    with torch.inference_mode():
        looked = [[product(x) for product in products] for x in unaligned]
        for product in products:
            product(inputs[0])
        forms = getattr(made.table, contents.HELD).launches
        assert len(forms) == 3
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        for _ in range(20):
            again = [[product(x) for product in products] for x in inputs]
            with torch.cuda.stream(side):
                beside = [[product(x) for product in products] for x in inputs]
        torch.cuda.synchronize()
    for one, two, three in zip(sum(looked, []), sum(again, []), sum(beside, [])):
        assert (one.double() - two.double()).norm() <= TOLERANCE[dtype] * one.double().norm()
        assert torch.equal(two, three)


def test_threads_that_repeat_launches_on_one_stream_do_not_meet():
    made, routing = bank(768, 768, [300]), kernels.Routing.of([0], "cuda")
    inputs = [torch.randn(1, 768, device="cuda", dtype=torch.float16) for _ in range(4)]
    with torch.no_grad():
        wanted = [kernels.delta_linear(x, made, routing) for x in inputs]

        def run(x):
            with torch.no_grad():
                return [kernels.delta_linear(x, made, routing) for _ in range(300)]

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(run, inputs))
    assert all(torch.equal(one, own) for own, many in zip(wanted, found) for one in many)


def test_a_graph_keeps_nothing_of_what_is_repeated_beside_it():
    """Captured after a product was repeated, replayed while other streams repeat it."""
    made, routing = bank(768, 768, [300]), kernels.Routing.of([0], "cuda")
    x, weight = (torch.randn(s, 768, device="cuda", dtype=torch.float16) for s in (1, 768))
    with torch.no_grad():
        for _ in range(3):
            wanted = kernels.linear(x, weight, None, made, routing)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = kernels.linear(x, weight, None, made, routing)
        side, other = torch.cuda.Stream(), torch.randn_like(x)
        torch.cuda.synchronize()
        for _ in range(50):
            with torch.cuda.stream(side):
                graph.replay()
            kernels.linear(other, weight, None, made, routing)
        torch.cuda.synchronize()
    assert (out - wanted).norm() <= 1e-3 * wanted.norm()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_vectors_of_tasks(dtype):
    routing = kernels.Routing.of([0, None, {1: 0.5, 2: -1.0}, 7], "cuda")
    stack, y, base = (torch.randn(n, 1100, device="cuda") for n in (3, 8, 1))
    y, base = y.to(dtype), base[0].to(dtype)
    rows = plain_routing.task_rows(stack, routing, torch.float32)
    for _ in range(2):
        got = ops.task_rows(stack, routing, dtype, base)
        torch.testing.assert_close(got, (base.float() + rows).to(dtype))
        got = ops.add_rows(y, stack, routing)
        torch.testing.assert_close(got, (y.float() + rows.repeat_interleave(2, 0)).to(dtype))
