"""A kind of part and a method that only this file knows go from a delta to a folder and back, cut and mixed too."""

import copy
import shutil
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import dts
from dts import values
from dts.adapter import AdapterError, Entry
from dts.codec import Factors, Undecodable, compress_tensor, residual
from dts.codec.methods import CHOICES, METHODS
from dts.codec.parts import KINDS, PartKind, components
from dts_kernels.parts import KINDS as RUNTIME_KINDS
from dts_kernels.parts import Kind, PlainBank
from tests.fuzz.form import opened


@dataclass(frozen=True)
class Elements:
    """Some elements of a matrix, exactly.  at: int32 [count], m n of them;  values: float16 [count];  shape: (m, n)."""

    at: torch.Tensor
    values: torch.Tensor
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        return self.at.nbytes + self.values.nbytes

    def to(self, device) -> "Elements":
        return Elements(self.at.to(device), self.values.to(device), self.shape)


class ElementsKind(PartKind[Elements]):
    name, data, key, version = "elements", Elements, "elements", 4

    def tensors(self, place, data):
        return {f"at{place}": data.at, f"values{place}": data.values}

    def fragment(self, parts):
        return [{"count": len(data.at)} for data in parts]

    def fits(self, fragment):
        return values.list_of(values.exactly(count=values.positive))(fragment)

    def decode(self, name, fragment, shape, load):
        found = []
        for place, about in enumerate(fragment):
            at, stored = load(f"at{place}"), load(f"values{place}")
            if at is None or stored is None or not len(at) == len(stored) == about["count"]:
                raise Undecodable(f"{name}: its elements are missing or not {about['count']}")
            found.append(Elements(at, stored, shape))
        return found

    def shape(self, data):
        return data.shape

    def dense(self, data, dtype=torch.float32):
        out = torch.zeros(data.shape, dtype=dtype)
        out.view(-1)[data.at.long()] = data.values.to(dtype)
        return out

    def largest(self, data):
        return data.values.double().abs().max().item()

    def times(self, data, factor):
        return Elements(data.at, (data.values.double() * factor).half(), data.shape)


def elements_of(rank: int, shape) -> int:
    """How many elements take the bytes of a quarter of the components."""
    return int(components.bytes_at(shape, np.array([rank // 4]))[0]) // 6


class Spiky(residual.Residual):
    """Residual components of three quarters of the rank, and the largest elements of what they leave."""

    name, searches = "spiky", False

    def components(self, rank, shape):
        return rank - rank // 4

    def encode(self, delta, rank, seed=0):
        shape = tuple(delta.shape)
        packed, error = residual.encode(delta, self.components(rank, shape), seed)
        left, count = delta - components.KIND.dense(packed), elements_of(rank, shape)
        if not count:
            return (packed,), error
        at = left.abs().flatten().topk(count).indices.sort().values
        made = Elements(at.int(), left.flatten()[at].half(), shape)
        left = left - KINDS["elements"].dense(made)
        return (packed, made), (left.norm() / delta.norm()).item() ** 2

    def planned(self, rank, shape):
        count = elements_of(rank, shape)
        packed = components.planned(self.components(rank, shape), shape)
        at, stored = torch.zeros((), dtype=torch.int32).expand(count), torch.ones((), dtype=torch.half).expand(count)
        return (packed, Elements(at, stored, shape)) if count else (packed,)

    def limit(self, asked, found):
        return asked


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    kind = ElementsKind()
    monkeypatch.setitem(KINDS, kind.name, kind)
    bank = partial(PlainBank, matrix=kind.dense)
    monkeypatch.setitem(RUNTIME_KINDS, kind.name, Kind(kind.name, Elements, bank))
    for registry in (METHODS, CHOICES):
        monkeypatch.setitem(registry, "spiky", Spiky())


def models():
    draw = lambda *shape, seed: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    base = {"a.weight": draw(64, 80, seed=0), "experts.up": draw(3, 40, 48, seed=1), "a.bias": draw(64, seed=2)}
    tuned = {}
    for i, (name, value) in enumerate(base.items()):
        change = 0.01 * draw(*value.shape, seed=3 + i)
        change[torch.rand(value.shape, generator=torch.Generator().manual_seed(i)) < 0.01] *= 30
        tuned[name] = value + change
    tuned["experts.up"][1] = base["experts.up"][1]
    tuned["a.weight"][5] = base["a.weight"][5]  # a row that no part covers
    return base, tuned


def test_from_a_delta_to_a_folder_and_back(tmp_path):
    base, tuned = models()
    adapter = dts.compress(base, tuned, tmp_path / "a", method="spiky", budget=0.15)
    assert adapter.amr <= 0.15
    assert adapter.nbytes == sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    loaded = dts.Adapter.load(tmp_path / "a")
    assert loaded.method == "spiky" and loaded.verify(base, tuned).problems == []
    assert [part.kind for part in loaded.entries["a.weight"].factors.parts] == ["residual", "elements"]
    ours, theirs = dict(adapter.apply(base)), dict(loaded.apply(base))
    assert all(torch.equal(ours[name], theirs[name]) for name in base)
    error = lambda state: sum((state[name] - tuned[name]).square().sum() for name in base)  # noqa: E731
    assert error(theirs) < 0.3 * error(base)
    loaded.save(tmp_path / "again")
    for file in ("dts_config.json", "dts_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.a, self.b = nn.Embedding(50, 40), nn.Linear(40, 48), nn.Linear(48, 40)

    def forward(self, ids):
        return self.b(self.a(self.words(ids)).relu())


@torch.no_grad()
def test_rows_of_other_tasks_run_from_it(tmp_path):
    """No kernel of its own: the naive bank of every kind.  Each row is that of the model which `apply` writes."""
    torch.manual_seed(0)
    base, models = Net(), {}
    for seed, name in enumerate("xy"):
        tuned = copy.deepcopy(base)
        for parameter in tuned.parameters():
            change = 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter += change * (1 + 30 * (torch.rand(parameter.shape) < 0.02))
        dts.compress(base, tuned, tmp_path / name, method="spiky", budget=0.14)
        models[name] = copy.deepcopy(base)
        models[name].load_state_dict(dict(dts.Adapter.load(tmp_path / name).apply(base)))
    model, ids = dts.DTSModel(copy.deepcopy(base)), torch.randint(0, 50, (4, 5))
    for name in "xy":
        model.load_task(name, tmp_path / name)
    stored = [part.kind for f in model._loaded["x"].adapter.entries["a.weight"].matrices for part in f.parts]
    assert stored == ["residual", "elements"]
    names = ["x", "y", None, "x"]
    found = model(ids, tasks=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(found[row], models.get(name, base)(ids)[row], rtol=1e-4, atol=1e-4)
    merged = model.merge_and_unload("y")
    torch.testing.assert_close(merged(ids), models["y"](ids), rtol=1e-4, atol=1e-5)


def test_a_dry_run_knows_the_bytes():
    planned, made = (dts.compress(*models(), method="spiky", budget=0.15, dry_run=dry) for dry in (True, False))
    assert abs(planned.nbytes - made.nbytes) <= 0.02 * made.nbytes


def test_cut_it_is_the_components_and_then_fewer_of_them(tmp_path):
    base, tuned = models()
    adapter = dts.compress(base, tuned, method="spiky", budget=0.15)
    for share in (0.9, 0.6, 0.4):
        small = adapter.truncate(nbytes=int(share * adapter.nbytes))
        small.save(tmp_path / str(share))
        assert small.nbytes <= share * adapter.nbytes
        assert dts.Adapter.load(tmp_path / str(share)).verify(base, tuned).problems == []
    kinds = {part.kind for entry in small.entries.values() for f in entry.matrices if f for part in f.parts}
    assert kinds == {"residual"}


def test_a_mixture_is_exact(tmp_path):
    base, tuned = models()
    adapter = dts.compress(base, tuned, method="spiky", budget=0.15)
    mixed = dts.unseen.mix({"a": adapter, "b": adapter}, {"a": 0.25, "b": 0.5}, tmp_path / "m")
    for loaded in (mixed, dts.Adapter.load(tmp_path / "m")):
        ours, whole = dict(loaded.apply(base)), dict(adapter.apply(base))
        for name, value in base.items():
            torch.testing.assert_close(ours[name] - value, 0.75 * (whole[name] - value), rtol=1e-3, atol=1e-5)


def test_it_may_be_all_there_is(tmp_path):
    base, tuned = models()
    adapter = dts.compress(base, tuned, method="spiky", budget=0.15)
    matrix = compress_tensor(tuned["a.weight"] - base["a.weight"], "spiky", rank=16)
    expert = compress_tensor(tuned["experts.up"][0] - base["experts.up"][0], "spiky", rank=16)
    alone = [Factors(f.stored[1:], f.shape, f.rows, f.columns, f.norm, None) for f in (matrix, expert)]
    for name, factors in (("a.weight", alone[0]), ("experts.up", [alone[1], None, None])):
        old = adapter.entries[name]
        adapter.entries[name] = Entry(
            name, name, old.shape, old.kind, factors=factors, norm=old.norm, squared_error=None
        )
    adapter.save(tmp_path / "a")
    loaded = dts.Adapter.load(tmp_path / "a")
    state = dict(loaded.apply(base))
    torch.testing.assert_close(state["a.weight"] - base["a.weight"], alone[0].reconstruct())
    torch.testing.assert_close(state["experts.up"][0] - base["experts.up"][0], alone[1].reconstruct())
    assert loaded.truncate(nbytes=loaded.nbytes - 100).nbytes <= loaded.nbytes - 100


@pytest.mark.parametrize("damage", ["tensor", "row", "unknown"])
def test_what_it_refuses_is_refused_by_the_tensors_name(tmp_path, monkeypatch, damage):
    dts.compress(*models(), tmp_path / "a", method="spiky", budget=0.15)
    folder = shutil.copytree(tmp_path / "a", tmp_path / "b")
    if damage == "tensor":
        inner = opened(folder)
        inner.rows = [row for row in inner.rows if row[0] != "a.weight.at0"]
        inner.write(folder)
    elif damage == "row":
        inner = opened(folder)
        inner.config["tensors"]["a.weight"]["elements"][0]["count"] = 0
        inner.write(folder)
    else:
        monkeypatch.delitem(KINDS, "elements")
    with pytest.raises(AdapterError, match="a.weight.*elements"):
        dts.Adapter.load(folder)
