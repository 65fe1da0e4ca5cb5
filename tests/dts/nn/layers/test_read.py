"""A parameter that a task changes acts however it is read: past its forward, by hooks, in modules of torch."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dts
from dts.adapter.entries import Entry
from dts.nn import DTSModel
from dts.nn.layers.read import Lazy


class Reads(nn.Module):
    """Children's parameters used by their parent, as Mamba, BEiT and others do."""

    def __init__(self):
        super().__init__()
        self.emb, self.l, self.norm = nn.Embedding(11, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.einsum, self.conv = nn.Linear(8, 8, bias=False), nn.Conv1d(8, 8, 3, groups=8, padding=2)
        self.qkv = nn.Linear(8, 24, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
        self.register_buffer("k_bias", torch.zeros(8))

    def forward(self, ids):
        x = F.embedding(ids, self.emb.weight).to(self.l.weight.dtype)
        x = F.linear(x, self.l.weight) + self.l.bias
        x = F.layer_norm(x, self.norm.normalized_shape, self.norm.weight, self.norm.bias)
        x = x + torch.einsum("bsd,ed->bse", x, self.einsum.weight)
        x = self.conv(x.mT)[..., : x.shape[1]].mT + (self.conv.weight.squeeze(1)[:, 0] * x)
        q, k, v = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, self.k_bias, self.v_bias])).chunk(3, -1)
        return (torch.softmax(q @ k.mT, -1) @ v) @ self.l.weight.data.T


TASKS = ["a", None, "b", {"a": 0.5, "b": 0.25}]


def weights(task, tasks):
    mixture = {} if task is None else task if isinstance(task, dict) else {task: 1.0}
    return [(tasks[name], gamma) for name, gamma in mixture.items()]


def check(base, maker, dense_twin, batch, entries=None):
    """One task, and a task a row, against the dense twins."""
    base = base.double().eval()
    tasks = entries or {t: maker.entries(base, skip=0) for t in "ab"}
    model = DTSModel(copy.deepcopy(base))
    for t, own in tasks.items():
        model.load_task(t, own)
    first = lambda y: getattr(y, "logits", y[0] if isinstance(y, tuple) else y)  # noqa: E731
    with torch.no_grad():
        mixed = first(model(*batch, tasks=TASKS))
        for i, task in enumerate(TASKS):
            expected = first(dense_twin(base, weights(task, tasks))(*[x[i : i + 1] for x in batch]))
            torch.testing.assert_close(mixed[i : i + 1], expected, rtol=1e-7, atol=1e-7)
            alone = first(model(*[x[i : i + 1] for x in batch], tasks=[task]))
            torch.testing.assert_close(alone, expected, rtol=1e-7, atol=1e-7)
            assert (task is None) == torch.allclose(expected, first(base(*[x[i : i + 1] for x in batch])), atol=1e-7)
        model.set_task("b")
        expected = first(dense_twin(base, weights("b", tasks))(*batch))
        torch.testing.assert_close(first(model.model(*batch)), expected, rtol=1e-7, atol=1e-7)
    return model


def test_a_parent_reads_its_children_s_parameters(maker, dense_twin):
    torch.manual_seed(0)
    model = check(Reads(), maker, dense_twin, (torch.randint(0, 11, (4, 5)),))
    assert model.status()["once_a_task"] and not model.status()["grouped"]


def test_a_parent_without_parameters_of_its_own(maker, dense_twin):
    """Nothing but the read tells that rows of several tasks cannot pass; looking at the dtype alone does not."""
    torch.manual_seed(0)

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 5)

        def forward(self, x):
            x = self.first(x.to(self.first.weight.dtype))
            return F.linear(x, self.second.weight, self.second.bias)

    model = check(Reads(), maker, dense_twin, (torch.randn(4, 6, dtype=torch.float64),))
    assert list(model.status()["grouped"]) == ["second"]


SMALL = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
ATTENTION = dict(num_attention_heads=2, num_key_value_heads=1, intermediate_size=32)
STATE = dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1)
HYBRID = {
    "Mamba": dict(**SMALL, state_size=4, time_step_rank=4),
    "Mamba2": dict(**SMALL, state_size=8, num_heads=4, head_dim=8, n_groups=1, chunk_size=4),
    "Jamba": dict(
        **SMALL,
        **ATTENTION,
        mamba_dt_rank=4,
        mamba_d_state=4,
        num_experts=1,
        use_mamba_kernels=False,
        attn_layer_offset=1,
        attn_layer_period=2,
    ),
    "FalconH1": dict(**SMALL, **ATTENTION, **STATE, mamba_chunk_size=4, head_dim=8),
    "Lfm2": dict(**SMALL, **ATTENTION, layer_types=["conv", "full_attention"], block_multiple_of=8),
}


@pytest.mark.parametrize("name", HYBRID)
def test_state_space_models(name, maker, dense_twin):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**HYBRID[name])
    base = getattr(transformers, f"{name}ForCausalLM")(config)
    check(base, maker, dense_twin, (torch.randint(3, 40, (4, 6)),))


def test_recurrent_layers_keep_aliases_of_their_weights(maker, dense_twin):
    torch.manual_seed(0)
    check(nn.LSTM(6, 5, batch_first=True), maker, dense_twin, (torch.randn(4, 7, 6, dtype=torch.float64),))


def test_attention_with_extra_keys(maker, dense_twin):
    torch.manual_seed(0)

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    base = Attends()
    tasks = {t: {n: e for n, e in maker.entries(base, skip=0).items() if "bias_" not in n} for t in "ab"}
    check(base, maker, dense_twin, (torch.randn(4, 7, 8, dtype=torch.float64),), tasks)


def test_a_hook_that_makes_the_weight(maker, dense_twin):
    """Weight normalisation computes the weight before the layer's forward, from parameters of the layer."""
    torch.manual_seed(0)

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 5)
            self.linear.register_parameter("gain", nn.Parameter(torch.rand(5) + 1))
            self.linear.register_forward_pre_hook(lambda m, args: (args[0] * m.gain.mean(),))

        def forward(self, x):
            return self.linear(x)

    check(Scaled(), maker, dense_twin, (torch.randn(4, 6, dtype=torch.float64),))


def test_parametrised_weights(maker, dense_twin):
    torch.manual_seed(0)
    base = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))).double()
    check(base, maker, dense_twin, (torch.randn(4, 6, dtype=torch.float64),))


def test_gated_norms(maker, dense_twin):
    torch.manual_seed(0)

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x, gate=None):
            return x * self.weight * F.silu(gate)

    class Uses(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = Gated()

        def forward(self, x):
            return self.norm(x, gate=x + 1)

    check(Uses(), maker, dense_twin, (torch.randn(4, 6, dtype=torch.float64),))


@pytest.fixture
def loaded(maker):
    torch.manual_seed(0)
    model = DTSModel(nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5)).double())
    factors = maker.factors(5, 6)
    model.load_task("a", {"0.weight": Entry("0.weight", "0.weight", (5, 6), "factors", factors=factors)})
    model.set_task("a")
    return model, factors.reconstruct(dtype=torch.float64)


def test_metadata_costs_nothing_and_writes_go_to_the_base(loaded, monkeypatch):
    model, delta = loaded
    layer, raw = model.model[0], model.model[0]._parameters["weight"]
    weight = layer.weight
    assert type(weight) is Lazy
    monkeypatch.setattr("dts.nn.layers.read.dense_parameter", lambda *_: pytest.fail("made dense for nothing"))
    assert weight.shape == (5, 6) and weight.dtype == torch.float64 and weight.device.type == "cpu" and len(weight) == 5
    assert weight.requires_grad and weight.size(0) == 5 and weight.numel() == 30 and weight.data_ptr() == raw.data_ptr()
    with torch.no_grad():
        nn.init.constant_(layer.weight, 2.0)
        assert (raw == 2).all()
        layer.weight.data.mul_(2)
        layer.weight[0] = 1.0
        layer.weight.copy_(torch.cat([raw[:1], raw[1:] + 1]))
    assert (raw[0] == 1).all() and (raw[1:] == 5).all()
    monkeypatch.undo()
    torch.testing.assert_close(layer.weight + 0, raw + delta)
    assert all(p is not weight and type(p) is nn.Parameter for p in model.parameters())
    assert type(model.state_dict()["0.weight"]) is torch.Tensor


def test_gradients_of_a_weight_that_is_read_reach_the_base(loaded):
    model, delta = loaded
    raw, x = model.model[0]._parameters["weight"], torch.randn(3, 6, dtype=torch.float64)
    F.linear(x, model.model[0].weight).square().sum().backward()
    want = (raw.detach() + delta).requires_grad_()
    F.linear(x, want).square().sum().backward()
    torch.testing.assert_close(raw.grad, want.grad)


def test_code_past_python_gets_no_base_weights(loaded):
    (model, delta), x = loaded, torch.randn(3, 6, dtype=torch.float64)
    weight = model.model[0].weight
    want = x @ (model.model[0]._parameters["weight"] + delta).T
    torch.testing.assert_close(torch.ops.aten.linear(x, weight), want)
    with torch._C.DisableTorchFunctionSubclass():
        torch.testing.assert_close(x @ weight.T, want)
        assert weight.data_ptr() != model.model[0]._parameters["weight"].data_ptr()


def test_reading_in_a_compiled_program(maker, dense_twin):
    torch.manual_seed(0)
    base = Reads().double().eval()
    tasks = {t: maker.entries(base, skip=0) for t in "ab"}
    model = DTSModel(copy.deepcopy(base))
    for t, own in tasks.items():
        model.load_task(t, own)
    ids, programs = torch.randint(0, 11, (2, 5)), 0

    def count(graph, example_inputs):
        nonlocal programs
        programs += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=count)
    with torch.no_grad():
        for task in ("a", None, "b"):
            model.set_task(task)
            expected = dense_twin(base, weights(task, tasks))(ids)
            torch.testing.assert_close(compiled(ids), expected, rtol=1e-7, atol=1e-7)
    assert programs == 1


def test_a_forward_that_prepares_weights_in_a_call_of_the_base_is_refused_too(maker):
    """As RWKV divides them by powers of two, once: later calls of a task would not be the fine-tune's."""

    class Dividing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.done = nn.Linear(18, 18), False

        def forward(self, x):
            if not self.done:
                self.inner.weight.div_(2)
                self.done = True
            return self.inner(x)

    model = DTSModel(Dividing().double())
    model.load_task("a", maker.entries(model.model, skip=0))
    before = model.model.state_dict()["inner.weight"].clone()
    for options in ({}, {"tasks": dts.BASE}, {"tasks": "a"}):
        with torch.no_grad(), pytest.raises(RuntimeError, match="writes into inner.weight"):
            model(maker.randn(2, 18), **options)
    assert torch.equal(model.model.state_dict()["inner.weight"], before)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_weight_is_read_under_functorch(gradients, maker, dense_twin):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(18, 18)

        def forward(self, x):
            return torch.nn.functional.linear(x, self.inner.weight, self.inner.bias).square()

    base = Reads().double()
    model, entries, x = DTSModel(copy.deepcopy(base)), maker.entries(base, skip=0), maker.randn(4, 18)
    model.load_task("a", entries)
    model.set_task("a")
    twin = dense_twin(base, [(entries, 1.0)])
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(torch.func.vmap(model)(x), twin(x))
        slope = lambda one: torch.func.vmap(torch.func.grad(lambda row: one(row).sum()))(x)  # noqa: E731
        torch.testing.assert_close(slope(model), slope(twin))
