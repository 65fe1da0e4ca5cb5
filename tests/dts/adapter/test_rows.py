"""Every kind of entry is given back by its row and its tensors."""

import json
from dataclasses import replace

import pytest
import torch

from dts.adapter import AdapterError, Entry, check
from dts.adapter.rows import Load, base_name_of, entry_from, entry_row, entry_tensors
from dts.adapter.vectors import Rounding, in_few_bits
from dts.checkpoint.safetensors_file import layout_of
from dts.codec import compress_tensor

CONFIG = {"finetuned": {"dtype": "float32", "renamed": {"head.x": "tail.x"}, "prefix": "bert.", "base_prefix": ""}}


class Held(Load):
    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors = tensors

    def __call__(self, key: str) -> torch.Tensor | None:
        return self.tensors.get(key)


def draw(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def factors(method="residual", shape=(40, 96)):
    return compress_tensor(draw(*shape), method, rank=18)


def entries() -> dict[str, Entry]:
    made = lambda kind, shape, **more: Entry("bert.a", "a", shape, kind, norm=1.0, **more)  # noqa: E731
    vector = made("delta", (40,), tensor=draw(40))
    return {
        "residual": made("factors", (40, 96), factors=factors(), squared_error=0.5),
        "paper": made("factors", (40, 96), factors=factors("paper"), squared_error=None),
        "sketch": made("factors", (40, 96), factors=factors("sketch"), squared_error=2.0),
        "convolution": made("factors", (40, 8, 12), factors=factors()),
        "half": made("factors", (40, 96), factors=factors(), dtype=torch.float16),
        "longer": made("factors", (42, 96), factors=factors(), added_rows=draw(2, 96)),
        "only longer": made("factors", (42, 96), added_rows=draw(2, 96)),
        "experts": made("experts", (3, 40, 96), factors=[factors(), None, factors("sketch")]),
        "delta": vector,
        "8 bit": replace(vector, tensor=torch.arange(40).to(torch.int8), scale=0.1, squared_error=0.01),
        "rounded": in_few_bits(vector, vector.whole, Rounding(3)),
        "rounded head": in_few_bits(
            Entry("bert.a", None, (4, 40), "value", tensor=draw(4, 40), task_only=True), draw(4, 40), Rounding(None, 8)
        ),
        "value": made("value", (5,), tensor=torch.arange(5), dtype=torch.int64),
        "head": Entry("bert.a", None, (4, 40), "value", tensor=draw(4, 40), task_only=True),
        "tied": Entry("bert.a", "a", (40,), "tied", tied_to="bert.b"),
    }


def stored(entry: Entry) -> tuple[dict, dict[str, torch.Tensor]]:
    tensors = entry_tensors(entry)
    row = entry_row(entry, torch.float32, "digest", layout_of(tensors.items()))
    return json.loads(json.dumps(row)), tensors


@pytest.mark.parametrize("kind", entries())
def test_it_is_given_back(kind):
    entry = entries()[kind]
    row, tensors = stored(entry)
    needed, optional = check.rows()[entry.kind]
    known = needed | optional
    assert all(known[key](value) for key, value in row.items()) and needed.keys() <= row.keys() | {"sha256", "base"}
    again = entry_from("bert.a", row, CONFIG, Held(tensors))
    for field in ("name", "base_name", "shape", "kind", "dtype", "task_only", "tied_to", "norm", "scale", "rank"):
        assert getattr(again, field) == getattr(entry, field), field
    assert stored(again)[0] == row
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in stored(again)[1].items())


@pytest.mark.parametrize("kind", [kind for kind in entries() if kind != "tied"])
def test_without_one_of_its_tensors_it_is_refused_by_name(kind):
    row, tensors = stored(entries()[kind])
    for missing in tensors:
        left = {key: tensor for key, tensor in tensors.items() if key != missing}
        with pytest.raises(AdapterError, match="bert.a"):
            entry_from("bert.a", row, CONFIG, Held(left))


def test_the_fragments_of_an_expert_stand_in_the_order_of_the_kinds():
    residual, nothing, sketch = stored(entries()["experts"])[0]["experts"]
    assert len(residual) == 3 and nothing is None and len(sketch) == 4
    assert check.expert(residual) and check.expert(sketch)
    assert not check.expert([*residual, None]) and not check.expert([*sketch, []]) and not check.expert(residual[:2])


def test_names_of_the_base():
    names = {name: base_name_of(name, CONFIG["finetuned"]) for name in ("bert.a", "a", "head.x")}
    assert names == {"bert.a": "a", "a": "a", "head.x": "tail.x"}
