"""Each DTS layer against its base layer with base + reconstruction in its weights."""

import copy

import pytest
import torch
from torch import nn

from dts.adapter.entries import Entry
from dts.nn import DTSConv2d, DTSEmbedding, DTSLayerNorm, DTSLinear, DTSModel, DTSMultiheadAttention, DTSNorm, Owner
from dts.nn.deltas import Piece

TASKS = ["a", None, "b", {"a": 0.5, "b": 0.25}]


def weights(task, tasks):
    mixture = {} if task is None else task if isinstance(task, dict) else {task: 1.0}
    return [(tasks[name], gamma) for name, gamma in mixture.items()]


def check(base, layer_class, maker, dense_twin, *inputs, **kwargs):
    """Every row of a batch of tasks equals the dense twin's, for a module alone in a model."""
    base = base.double().eval()
    tasks = {t: maker.entries(base, skip=0) for t in "ab"}
    model = DTSModel(copy.deepcopy(base))
    for t, entries in tasks.items():
        model.load_task(t, entries)
    kinds = {type(m).__name__ for m in model.model.modules() if hasattr(m, "dts")}
    assert layer_class.__name__ in kinds
    found = model(*inputs, **kwargs, tasks=TASKS)
    found = found[0] if isinstance(found, tuple) else found
    for i, task in enumerate(TASKS):
        one = [x[i : i + 1] for x in inputs]
        expected = dense_twin(base, weights(task, tasks))(*one, **kwargs)
        expected = expected[0] if isinstance(expected, tuple) else expected
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-9, atol=1e-9)
    merged = model.merge_and_unload("b")
    assert {type(m) for m in merged.modules()} == {type(m) for m in base.modules()}
    expected = dense_twin(base, weights("b", tasks))(*inputs, **kwargs)
    torch.testing.assert_close(merged(*inputs, **kwargs), expected, rtol=1e-12, atol=1e-12)
    return model


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(4, 9), (4, 5, 9), (4, 2, 3, 9)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape, bias, maker, dense_twin):
    check(nn.Linear(9, 6, bias=bias), DTSLinear, maker, dense_twin, maker.randn(*shape, scale=1.0))


def test_linear_of_a_batch_in_the_second_axis(maker, dense_twin):
    net = nn.Sequential(nn.Linear(9, 6), nn.LayerNorm(6))

    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x.transpose(0, 1)).transpose(0, 1)

    check(SequenceFirst(), DTSLinear, maker, dense_twin, maker.randn(4, 4, 9, scale=1.0))


def test_rows_that_are_interleaved_run_once_a_task(maker, dense_twin):
    class Interleaved(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(9, 6)

        def forward(self, x):
            b, s, _ = x.shape
            return self.linear(x.transpose(0, 1).reshape(s * b, -1)).view(s, b, -1).transpose(0, 1)

    base = Interleaved().double()
    tasks = {t: maker.entries(base, skip=0) for t in "ab"}
    model = DTSModel(copy.deepcopy(base))
    for t, entries in tasks.items():
        model.load_task(t, entries)
    x = maker.randn(4, 4, 9, scale=1.0)
    found = model(x, tasks=TASKS)
    for i, task in enumerate(TASKS):
        torch.testing.assert_close(
            found[i : i + 1], dense_twin(base, weights(task, tasks))(x[i : i + 1]), rtol=1e-9, atol=1e-9
        )
    assert "linear" in model.status()["grouped"]


def test_outputs_in_which_rows_meet_run_once_a_task(maker, dense_twin):
    """As CLIP's image-text similarities: row i of the result is the fine-tune's of row i, against all texts."""

    class Similarity(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.text = nn.Linear(9, 6), nn.Linear(5, 6)

        def forward(self, image, text):
            return self.image(image) @ self.text(text).T

    base = Similarity().double()
    tasks = {t: maker.entries(base, skip=0) for t in "ab"}
    model = DTSModel(copy.deepcopy(base))
    for t, entries in tasks.items():
        model.load_task(t, entries)
    for texts in (4, 7):
        image, text = maker.randn(4, 9, scale=1.0), maker.randn(texts, 5, scale=1.0)
        found = model(image, text, tasks=TASKS)
        for i, task in enumerate(TASKS):
            expected = dense_twin(base, weights(task, tasks))(image, text)[i]
            torch.testing.assert_close(found[i], expected, rtol=1e-9, atol=1e-9)
    assert model.status()["grouped"]


@pytest.mark.parametrize(
    "options",
    [
        dict(kernel_size=3),
        dict(kernel_size=(2, 3), stride=(2, 1), padding=1),
        dict(kernel_size=3, padding="same"),
        dict(kernel_size=3, dilation=2, padding=2, padding_mode="reflect"),
        dict(kernel_size=4, stride=4, bias=False),
    ],
    ids=str,
)
def test_conv2d(options, maker, dense_twin):
    check(nn.Conv2d(3, 5, **options), DTSConv2d, maker, dense_twin, maker.randn(4, 3, 8, 8, scale=1.0))


def test_conv2d_with_groups(maker, dense_twin):
    model = nn.Conv2d(4, 6, 3, groups=2)
    check(model, Owner, maker, dense_twin, maker.randn(4, 4, 6, 6, scale=1.0))


def test_a_transposed_convolution_runs_once_a_task(maker, dense_twin):
    """It calls itself transposed, and means another thing by it than a weight stored [in, out]."""
    check(nn.ConvTranspose2d(6, 4, 3), Owner, maker, dense_twin, maker.randn(4, 6, 5, 5, scale=1.0))


@pytest.mark.parametrize("sizes", [(6, 6), (6, 9)])
def test_a_raw_delta_of_a_weight_stored_in_by_out(sizes, maker):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    base, delta, x = conv1d(sizes[1], sizes[0]).double(), maker.randn(*sizes), maker.randn(4, sizes[0], scale=1.0)
    model = DTSModel(nn.Sequential(copy.deepcopy(base)))
    model.load_task("a", {"0.weight": Entry("0.weight", "0.weight", sizes, "delta", tensor=delta)})
    torch.testing.assert_close(model(x, tasks="a"), base(x) + x @ delta)
    torch.testing.assert_close(model(x, tasks=["a", None, "a", None])[1::2], base(x)[1::2])
    torch.testing.assert_close(model.merge_and_unload("a")(x), base(x) + x @ delta)


def test_conv1d_and_batch_norm_run_once_a_task(maker, dense_twin):
    net = nn.Sequential(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5))
    base = net.double().eval()
    entries = {
        "1.weight": Entry("1.weight", "1.weight", (5,), "delta", tensor=maker.randn(5)),
        "1.running_mean": Entry("1.running_mean", "1.running_mean", (5,), "delta", tensor=maker.randn(5)),
        "1.num_batches_tracked": Entry(
            "1.num_batches_tracked", "1.num_batches_tracked", (), "value", tensor=torch.tensor(7)
        ),
        "0.weight": Entry("0.weight", "0.weight", (5, 3, 3), "experts", factors=[maker.factors(3, 3)] * 5),
    }
    twin = copy.deepcopy(base)
    with torch.no_grad():
        for name in ("1.weight", "0.weight"):
            twin.get_parameter(name).add_(entries[name].delta(dtype=torch.float64))
        twin[1].running_mean += entries["1.running_mean"].tensor
    model = DTSModel(copy.deepcopy(base))
    model.load_task("a", entries)
    x = maker.randn(3, 3, 8, scale=1.0)
    found = model(x, tasks=[None, "a", "a"])
    torch.testing.assert_close(found[:1], base(x[:1]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1:], twin(x[1:]), rtol=1e-9, atol=1e-9)
    assert model.merge_and_unload("a")[1].num_batches_tracked == 7


@pytest.mark.parametrize("shape", [(4,), (4, 6), (4, 2, 3)])
def test_embedding(shape, maker, dense_twin):
    ids = torch.randint(0, 11, shape)
    check(nn.Embedding(11, 6, padding_idx=0), DTSEmbedding, maker, dense_twin, ids)


def test_embedding_of_a_small_raw_delta(maker):
    base = nn.Embedding(5, 6).double()
    layer = DTSEmbedding.from_embedding(base)
    delta = maker.randn(5, 6)
    layer.load(0, {"weight": [Piece("raw", delta)]})
    layer.dts.state.set([{0: 2.0}, {}])
    ids = torch.tensor([[1, 2], [1, 2]])
    expected = base.weight[ids] + torch.stack([2 * delta[ids[0]], torch.zeros(2, 6)])
    torch.testing.assert_close(layer(ids), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [6, (3, 6)])
def test_layer_norm(shape, maker, dense_twin):
    norm = nn.LayerNorm(shape)
    if isinstance(shape, tuple):  # its own delta is 2-D and raw
        layer = DTSLayerNorm.from_layer_norm(norm.double())
        delta = maker.randn(3, 6)
        layer.load(0, {"weight": [Piece("raw", delta)]})
        layer.dts.state.set([{0: 1.0}, {}])
        x = maker.randn(2, 3, 6, scale=1.0)
        expected = nn.functional.layer_norm(x, (3, 6)) * torch.stack([1 + delta, torch.ones(3, 6)])
        torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
    else:
        check(norm, DTSLayerNorm, maker, dense_twin, maker.randn(4, 5, 6, scale=1.0))


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_layer_norm_of_which_one_parameter_changed(parameter, maker):
    layer = DTSLayerNorm.from_layer_norm(nn.LayerNorm(6))
    delta = maker.randn(6, dtype=torch.float32)
    layer.load(0, {parameter: [Piece("raw", delta)]})
    layer.dts.state.set([{0: 1.0}, {}])
    x = maker.randn(4, 5, 6, scale=1.0, dtype=torch.float32)
    changed = {"weight": torch.ones(6), "bias": torch.zeros(6)}
    changed[parameter] = changed[parameter] + delta
    expected = torch.cat([nn.functional.layer_norm(x[:2], (6,), **changed), nn.functional.layer_norm(x[2:], (6,))])
    torch.testing.assert_close(layer(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 4, 12])
def test_linear_in_float32_follows_every_change(rows, maker):
    """The short way to the CPU kernel: switches, other tasks, parameters written in place."""
    linear = nn.Linear(20, 12)
    layer = DTSLinear.from_linear(linear)
    x = maker.randn(rows, 3, 20, scale=1.0, dtype=torch.float32)
    made = {name: (maker.factors(12, 20, 7), maker.randn(12, dtype=torch.float32)) for name in "ab"}

    def check(mixture):
        want = linear(x)
        for name, gamma in mixture.items():
            factors, bias = made[name]
            want = want + gamma * (x @ factors.reconstruct().float().T + bias)
        torch.testing.assert_close(layer(x), want, rtol=1e-3, atol=1e-3 * want.abs().max().item())

    for name, (factors, bias) in made.items():
        layer.load_task(name, factors, bias)
    check({})
    for mixture in ({"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": -1.0}, {"b": 2.0}):
        layer.set_task(mixture)
        check(mixture)
    linear.bias.add_(1)
    linear.weight.data.mul_(2)
    check({"b": 2.0})
    made["b"] = maker.factors(12, 20, 3), maker.randn(12, dtype=torch.float32)
    layer.load_task("b", *made["b"])
    check({"b": 2.0})


@pytest.mark.parametrize("norm", [nn.RMSNorm(6), nn.GroupNorm(2, 6), nn.PReLU(6)], ids=lambda m: type(m).__name__)
def test_other_vectors(norm, maker, dense_twin):
    x = maker.randn(4, 6, 6, scale=1.0) if isinstance(norm, nn.RMSNorm) else maker.randn(4, 6, 5, scale=1.0)
    check(norm, DTSNorm, maker, dense_twin, x)


@pytest.mark.parametrize(
    "options", [{}, dict(batch_first=True), dict(bias=False), dict(batch_first=True, kdim=8, vdim=8)], ids=str
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention(options, masked, need_weights, maker, dense_twin):
    class BatchFirst(nn.Module):
        """The first axis of a model's inputs is the batch, whatever its layers use."""

        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, **options)

        def forward(self, *inputs, **kwargs):
            if self.attention.batch_first:
                return self.attention(*inputs, **kwargs)
            y, shares = self.attention(*(x.transpose(0, 1) for x in inputs), **kwargs)
            return y.transpose(0, 1), shares

    query, key, value = (maker.randn(4, length, 8, scale=1.0) for length in (3, 5, 5))
    mask = torch.ones(3, 5).triu(2).bool() if masked else None
    check(
        BatchFirst(),
        DTSMultiheadAttention,
        maker,
        dense_twin,
        query,
        key,
        value,
        need_weights=need_weights,
        attn_mask=mask,
    )


def test_self_attention_with_padding(maker, dense_twin):
    base = nn.MultiheadAttention(8, 2, batch_first=True).double()
    entries = maker.entries(base, skip=0)
    layer = DTSModel(copy.deepcopy(base))
    layer.load_task("a", entries)
    x = maker.randn(2, 4, 8, scale=1.0)
    padding = torch.tensor([[False, False, True, True], [False, False, False, True]])
    found, shares = layer(x, x, x, key_padding_mask=padding, tasks="a")
    expected, expected_shares = dense_twin(base, [(entries, 1.0)])(x, x, x, key_padding_mask=padding)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shares, expected_shares, rtol=1e-9, atol=1e-9)


def test_transformer_encoder_takes_no_shortcut(maker, dense_twin):
    """torch's fused encoder reads the weights of its layers; with tasks it must not, and unloaded it may again."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    base = copy.deepcopy(encoder)
    with torch.no_grad():
        model = check(encoder, DTSMultiheadAttention, maker, dense_twin, maker.randn(4, 5, 8, scale=1.0))
    assert model.model.layers[0].activation_relu_or_gelu == base.layers[0].activation_relu_or_gelu == 1


@pytest.mark.parametrize("rows,columns", [(None, None), (3, None), (None, 4), (3, 4)])
@pytest.mark.parametrize("levels", [False, True])
def test_factors_with_gaps(rows, columns, levels, maker):
    linear, embedding = nn.Linear(9, 6).double(), nn.Embedding(6, 9).double()
    factors = maker.factors(6, 9, 3, rows, columns, levels)
    delta = factors.reconstruct(dtype=torch.float64)
    layer = DTSLinear.from_linear(linear)
    layer.load_task("a", factors, maker.randn(6))
    layer.set_task({"a": 0.5})
    x = maker.randn(4, 9, scale=1.0)
    bias = layer.dts.parameters["bias"].raw.tensors[0]
    torch.testing.assert_close(layer(x), linear(x) + 0.5 * (x @ delta.T + bias), rtol=1e-9, atol=1e-9)
    table = DTSEmbedding.from_embedding(embedding)
    table.load(0, {"weight": [Piece("factors", factors)]})
    table.dts.state.set([{0: 1.0}])
    ids = torch.arange(6)
    torch.testing.assert_close(table(ids), embedding.weight + delta, rtol=1e-9, atol=1e-9)
    assert type(linear) is nn.Linear and type(embedding) is nn.Embedding


def test_a_layer_alone_names_its_tasks(maker):
    layer = DTSLinear.from_linear(nn.Linear(9, 6))
    layer.load_task("a", maker.factors(6, 9))
    with pytest.raises(ValueError, match=r"no task 'b'; this layer has \['a'\]"):
        layer.set_task("b")
    with pytest.raises(ValueError, match=r"\[9, 6\] of task 'c' do not fit the weight \[6, 9\]"):
        layer.load_task("c", maker.factors(9, 6))


def test_a_base_layer_that_computes_in_its_own_way(maker):
    """A quantised base layer: the delta is added to whatever it computes."""

    class Rounded(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.register_buffer("weight", (linear.weight.detach() * 16).round().to(torch.int8).flatten())

        def forward(self, x):
            return x @ (self.weight.view(self.out_features, self.in_features).to(x.dtype) / 16).T

    base = nn.Sequential(Rounded(nn.Linear(9, 6)))
    factors = maker.factors(6, 9)
    model = DTSModel(copy.deepcopy(base))
    model.load_task("a", {"0.weight": Entry("0.weight", "0.weight", (6, 9), "factors", factors=factors)})
    x = maker.randn(2, 9, scale=1.0)
    delta = factors.reconstruct(dtype=torch.float64)
    torch.testing.assert_close(
        model(x, tasks=["a", None]), base(x) + torch.stack([x[0] @ delta.T, torch.zeros(6)]), rtol=1e-9, atol=1e-9
    )
    with pytest.raises(ValueError, match="quantised weights: 0.weight"):
        model.merge_and_unload("a")
    torch.testing.assert_close(model(x), base(x), rtol=0, atol=0)


def test_a_linear_layer_of_another_kind_is_not_taken_for_one(maker, dense_twin):
    """A subclass of `nn.Linear` that computes something else runs its own forward."""

    class Cosine(nn.Linear):
        def forward(self, x):
            normalise = nn.functional.normalize
            return nn.functional.linear(normalise(x, dim=-1), normalise(self.weight, dim=-1))

    check(Cosine(9, 6), Owner, maker, dense_twin, maker.randn(4, 9, scale=1.0))


def test_whole_values_of_tensors_that_the_base_has(maker):
    """They mix as differences do; integers are the task's own."""
    base = nn.Sequential(nn.Linear(9, 6), nn.LayerNorm(6)).double()
    base.register_buffer("steps", torch.tensor([3]))
    whole = {n: maker.randn(*p.shape, scale=1.0) for n, p in base.named_parameters() if n in ("0.bias", "1.weight")}
    entries = {n: Entry(n, n, tuple(t.shape), "value", tensor=t) for n, t in whole.items()}
    entries["steps"] = Entry("steps", "steps", (1,), "value", dtype=torch.int64, tensor=torch.tensor([5]))
    model = DTSModel(copy.deepcopy(base))
    model.load_task("a", entries)
    x = maker.randn(3, 9, scale=1.0)
    found = model(x, tasks=["a", None, {"a": 0.25}])
    for i, gamma in enumerate((1, 0, 0.25)):
        twin = copy.deepcopy(base)
        with torch.no_grad():
            for name, tensor in whole.items():
                twin.get_parameter(name).lerp_(tensor, gamma)
        torch.testing.assert_close(found[i], twin(x[i]), rtol=1e-9, atol=1e-9)
    assert model.merge_and_unload("a").steps == 5


def test_autocast(maker):
    base = nn.Linear(9, 6)
    layer = DTSLinear.from_linear(base)
    layer.load_task("a", maker.factors(6, 9))
    layer.set_task("a")
    x = torch.randn(4, 9)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), layer(x), rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 2),
        lambda: nn.MultiheadAttention(16, 2, batch_first=True),
    ],
)
def test_attention_under_autocast_is_close_to_float32(make, maker):
    """fp32 weights whose base product comes back in bf16: it is that dtype's answer, and the process lives."""
    torch.manual_seed(0)
    base = make().eval().float()
    model = DTSModel(base)
    model.load_task("a", maker.entries(base, skip=0))
    model.set_task("a")
    x = torch.randn(3, 5, 16)
    inputs = (x, x, x) if isinstance(base, nn.MultiheadAttention) else (x,)
    first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
    with torch.no_grad():
        want = first(model(*inputs))
        with torch.autocast("cpu", torch.bfloat16):
            got = first(model(*inputs))
    assert got.isfinite().all() and (got.float() - want).norm() < 0.05 * want.norm()


@pytest.mark.parametrize("name", ["conv", "attention", "encoder", "embedding", "norms"])
def test_autocast_around_a_model(name, maker):
    """bfloat16 where torch takes it, next to the model in float32."""
    image, x = torch.randn(4, 3, 8, 8), torch.randn(4, 5, 8)
    net, given = {
        "conv": (nn.Conv2d(3, 5, 3), image),
        "attention": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0).self_attn, x),
        "encoder": (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), x),
        "embedding": (nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8)), torch.randint(0, 9, (4, 5))),
        "norms": (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.RMSNorm(8)), x),
    }[name]
    model = DTSModel(net.eval())
    for task in "ab":
        model.load_task(task, maker.entries(net, skip=0))
    arguments = (given,) * 3 if name == "attention" else (given,)
    first = lambda y: (y[0] if isinstance(y, tuple) else y).float()  # noqa: E731
    with torch.no_grad():
        for tasks in ("a", TASKS):
            want = first(model(*arguments, tasks=tasks))
            with torch.autocast("cpu", torch.bfloat16):
                found = first(model(*arguments, tasks=tasks))
            torch.testing.assert_close(found, want, rtol=0.05, atol=0.05 * want.abs().max().item())


def test_conv2d_of_one_image(maker, dense_twin):
    base = nn.Conv2d(3, 5, 3).double()
    entries, model = maker.entries(base, skip=0), DTSModel(copy.deepcopy(base))
    model.load_task("a", entries)
    model.set_task("a")
    x = torch.randn(3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x), dense_twin(base, [(entries, 1.0)])(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_embedding_of_narrow_ids(dtype, maker):
    base = nn.Embedding(11, 6).double()
    model = DTSModel(base)
    for task in "ab":
        model.load_task(task, maker.entries(base, skip=0))
    ids = torch.randint(0, 11, (4, 5))
    for tasks in ("a", TASKS):
        torch.testing.assert_close(model(ids.to(dtype), tasks=tasks), model(ids, tasks=tasks), rtol=0, atol=0)
