"""Tasks that keep every bit: the model computes what the fine-tune computes, beside packed tasks and the base."""

import copy
import io

import pytest
import torch
from torch import nn

import dts
from dts.adapter import Adapter
from dts.codec.exact import same_bits
from dts.nn.sizes import OBJECTS, bytes_of, exact_tensors

transformers = pytest.importorskip("transformers")
KINDS = {
    "bert": transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, num_labels=3
    ),
    "gpt2": transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=32),
    "llama": transformers.LlamaConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    ),
}
CLASSES = {"bert": "BertForSequenceClassification", "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}


def tuned(model: nn.Module, share: float, seed: int) -> nn.Module:
    """A copy of which this share of every parameter's elements moved."""
    other, draw = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            step = 0.05 * torch.randn(p.shape, generator=draw)
            p.copy_(torch.where(torch.rand(p.shape, generator=draw) < share, p.float() + step, p.float()))
    return other


class Case:
    """A base, two exact tasks of it, one held as what changed and one whole, and a packed one."""

    def __init__(self, kind: str, dtype: torch.dtype = torch.float32):
        torch.manual_seed(0)
        self.base = getattr(transformers, CLASSES[kind])(KINDS[kind]).to(dtype).eval()
        self.dense = {"light": tuned(self.base, 0.05, 1), "heavy": tuned(self.base, 0.9, 2), None: self.base}
        self.adapters = {
            name: dts.compress(self.base.state_dict(), self.dense[name].state_dict(), method="exact", name=name)
            for name in ("light", "heavy")
        }
        other = tuned(self.base, 1.0, 3).state_dict()
        self.adapters["packed"] = dts.compress(self.base.state_dict(), other, method="residual", rank_fraction=0.5)
        self.model = dts.DTSModel(copy.deepcopy(self.base)).eval()
        for name, adapter in self.adapters.items():
            self.model.load_task(name, adapter)
        self.ids = torch.randint(0, 60, (5, 7), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def run(self, model, **how) -> torch.Tensor:
        return model(input_ids=self.ids, **how).logits


@pytest.fixture(scope="module", params=list(KINDS))
def case(request):
    return Case(request.param)


def test_a_task_alone_has_the_fine_tunes_bits(case):
    for name in ("light", "heavy"):
        case.model.set_task(name)
        assert torch.equal(case.run(case.model), case.run(case.dense[name]))
    case.model.set_task(None)
    assert torch.equal(case.run(case.model), case.run(case.base))


def test_rows_of_a_batch_have_what_each_task_gives(case):
    alone = {name: case.run(case.model, tasks=name) for name in ("light", "heavy", "packed")} | {
        None: case.run(case.base)
    }
    names = ["packed", "heavy", None, "light", "heavy"]
    rows = case.run(case.model, tasks=names)
    assert not case.model.status()["grouped"]
    for i, name in enumerate(names):
        assert torch.allclose(rows[i], alone[name][i], atol=1e-6), name
    assert case.model.status()["exact"].keys() == {"light", "heavy"}


def test_a_mixture_weighs_differences(case):
    weights = {"light": 0.5, "heavy": 0.25}
    mixed = copy.deepcopy(case.base)
    with torch.no_grad():
        for name, p in mixed.named_parameters():
            others = {task: dict(case.dense[task].named_parameters())[name] for task in weights}
            p += sum(weight * (others[task] - p) for task, weight in weights.items())
    assert torch.allclose(case.run(case.model, tasks=weights), case.run(mixed), atol=1e-5)


def test_a_copy_and_a_pickle_have_it_too(case):
    copied = copy.deepcopy(case.model)
    file = io.BytesIO()
    torch.save(case.model, file)
    file.seek(0)
    for other in (copied, torch.load(file, weights_only=False)):
        assert torch.equal(case.run(other, tasks="light"), case.run(case.dense["light"]))


def test_merged_it_is_the_fine_tune_bit_for_bit(case):
    for name in ("light", "heavy"):
        merged = copy.deepcopy(case.model).merge_and_unload(name).state_dict()
        wanted = case.dense[name].state_dict()
        assert merged.keys() == wanted.keys() and all(same_bits(merged[key], wanted[key]) for key in wanted)


def test_packed_tasks_stay_on_their_way_and_a_deleted_task_leaves_nothing(case):
    model = dts.DTSModel(copy.deepcopy(case.base)).eval()
    model.load_task("packed", case.adapters["packed"])
    before = case.run(model, tasks="packed")
    model.load_task("light", case.adapters["light"])
    model.load_task("again", case.adapters["packed"])
    assert torch.equal(case.run(model, tasks="packed"), before) and torch.equal(case.run(model, tasks="again"), before)
    assert not [name for name in model.status()["once_a_task"] if name]
    model.delete_task("light")
    assert not model.status()["exact"] and torch.equal(case.run(model, tasks="packed"), before)


def test_memory_decides_what_is_held_and_it_is_said(case):
    held = case.model.status()["exact"]
    assert held["light"]["whole"] < held["light"]["changed"] and held["heavy"]["changed"] == 0 < held["heavy"]["whole"]
    for name in ("light", "heavy"):
        adapter, model = case.adapters[name], dts.DTSModel(copy.deepcopy(case.base))
        model.load_task(name, adapter)
        patches = sum(entry.patch is not None for entry in adapter.entries.values())
        assert sum(exact_tensors(adapter.config)) == patches
        stored = sum(row["bytes"] for row in adapter.config["tensors"].values() if "bytes" in row)
        assert bytes_of(adapter) - OBJECTS * len(adapter.entries) - stored == model.status()["nbytes"]


def test_a_model_in_a_wider_dtype_has_its_values_and_in_a_narrower_one_it_is_refused():
    case = Case("bert", torch.bfloat16)
    wide = dts.DTSModel(copy.deepcopy(case.base).float())
    wide.load_task("light", case.adapters["light"])
    merged, wanted = wide.merge_and_unload("light").state_dict(), case.dense["light"].state_dict()
    assert all(torch.equal(merged[key], wanted[key].to(merged[key].dtype)) for key in wanted)
    case = Case("bert")
    narrow = dts.DTSModel(copy.deepcopy(case.base).bfloat16())
    with pytest.raises(ValueError, match="bit for bit: .* here it is bfloat16") as error:
        narrow.load_task("light", case.adapters["light"])
    assert str(error.value).count("bit for bit") > 10  # all of them at once
    assert not narrow.tasks


def test_numbers_that_are_none_and_negative_zeros_are_merged_as_they_are():
    base = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with torch.no_grad():
        base[0].weight.view(-1)[:3] = torch.tensor([0.0, float("nan"), 1.0])
    other = {key: value.clone() for key, value in base.state_dict().items()}
    other["0.weight"].view(-1)[:4] = torch.tensor([-0.0, float("nan"), float("inf"), float("nan")])
    adapter = dts.compress({k: v.clone() for k, v in base.state_dict().items()}, other, method="exact")
    model = dts.DTSModel(copy.deepcopy(base))
    model.load_task("a", adapter)
    merged = model.merge_and_unload("a").state_dict()
    assert all(same_bits(merged[key], other[key]) for key in other)


class Every(nn.Module):
    """A convolution, attention of PyTorch, a parameter of its own, a counter."""

    def __init__(self):
        super().__init__()
        self.conv, self.attention = nn.Conv2d(3, 8, 2, stride=2), nn.MultiheadAttention(8, 2, batch_first=True)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.register_buffer("steps", torch.tensor([3, 4]))
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        x = torch.cat([self.token.expand(len(images), 1, 8), self.conv(images).flatten(2).mT], 1)
        return self.head(self.attention(x, x, x, need_weights=False)[0])[:, 0] * self.scale


def test_layers_of_every_kind():
    torch.manual_seed(0)
    base = Every().eval()
    dense = {"light": tuned(base, 0.05, 1), "heavy": tuned(base, 0.9, 2), None: base}
    dense["light"].steps[1] = 9
    with torch.no_grad():
        dense["light"].scale += 1
    model = dts.DTSModel(copy.deepcopy(base)).eval()
    for name in ("light", "heavy"):
        model.load_task(name, dts.compress(base.state_dict(), dense[name].state_dict(), method="exact"))
    images, names = torch.randn(4, 3, 4, 4), ["light", None, "heavy", "light"]
    with torch.no_grad():
        for name in dense:
            # torch's own attention has a way of its own where no task can be
            assert torch.allclose(model(images, tasks=name), dense[name](images), atol=1e-6)
        rows = model(images, tasks=names)
        for i, name in enumerate(names):
            assert torch.allclose(rows[i], dense[name](images)[i], atol=1e-6)
    merged = model.merge_and_unload("light").state_dict()
    assert all(same_bits(merged[key], value) for key, value in dense["light"].state_dict().items())


def test_a_grown_vocabulary(case):
    if not isinstance(case.base, transformers.LlamaForCausalLM):
        pytest.skip("one kind is enough")
    grown = tuned(case.base, 0.05, 4)
    grown.resize_token_embeddings(63)
    with torch.no_grad():
        grown.model.embed_tokens.weight[-1, 0] = float("nan")
    adapter = dts.compress(case.base.state_dict(), grown.state_dict(), method="exact", name="grown")
    model = dts.DTSModel(copy.deepcopy(case.base)).eval()
    model.load_task("grown", adapter)
    model.load_task("light", case.adapters["light"])
    ids = case.ids.clone()
    ids[:, 0] = 61
    with torch.no_grad():
        wanted = grown(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids, tasks="grown").logits, wanted)
        ids[1:, 0] = 5
        rows = model(input_ids=ids, tasks=["grown", "light", None, "light", None]).logits
    assert rows.shape[-1] == 63 and torch.allclose(rows[0], wanted[0], atol=1e-6)
    assert (rows[1:, :, 60:] == -torch.inf).all()
    assert all(
        same_bits(a, b)
        for a, b in zip(model.merge_and_unload("grown").state_dict().values(), grown.state_dict().values())
    )


def test_within_a_limit_of_memory_it_comes_and_goes(case, tmp_path):
    case.base.save_pretrained(tmp_path / "base")
    for name in ("light", "heavy"):
        folder = tmp_path / f"{name}-model"
        case.dense[name].save_pretrained(folder)
        dts.compress(tmp_path / "base", folder, tmp_path / name, method="exact")
    model = dts.DTSModel.from_pretrained(tmp_path / "base").eval()
    sizes = {name: bytes_of(Adapter.load(tmp_path / name)) for name in ("light", "heavy")}
    model.keep_within(max(sizes.values()), {})
    for name in ("light", "heavy"):
        model.load_task(name, tmp_path / name)
    for name in ("light", "heavy", "light"):
        assert torch.equal(case.run(model, tasks=name), case.run(case.dense[name]))
        assert list(model.status()["exact"]) == [name]
    told = dts.plan.plan(tmp_path / "base", {"light": tmp_path / "light"}).rows[-1]
    assert told.nbytes == sizes["light"] and "tensors as what changed" in told.note
    with pytest.raises(ValueError, match="no prefix of it is a model"):
        dts.plan.plan(tmp_path / "base", {"light": tmp_path / "light"}, prefix=1e-4)


def test_a_program_is_refused_by_name(case):
    with pytest.raises(ValueError, match=r"keeps every bit \(method exact\) of \d+ layers"):
        dts.exports.torch_program(case.model, {"input_ids": case.ids})
    with pytest.raises(ValueError, match="light, heavy keep every bit"):
        case.model.choose_tasks({"input_ids": case.ids})
