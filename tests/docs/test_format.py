"""docs/format.md has every key and tensor of an adapter that is written now, and is enough to read one."""

import hashlib
import re

import numpy as np
import pytest
import torch

import dts
from dts.adapter.rows import entry_tensors
from tests.docs.pages import ROOT
from tests.docs.reader import components, exact, read, rounded, sample
from tests.dts.adapter import tiny
from tests.fuzz.form import opened, rows_of, tensors_in

PAGE = (ROOT / "docs" / "format.md").read_text("utf-8")
GOLDEN = ROOT / "tests/dts/adapter/golden"
FOLDERS = sorted(path for path in GOLDEN.iterdir() if path.name.startswith("5-") and path.is_dir())


def test_everything_that_is_written_is_on_the_page(tmp_path):
    torch.manual_seed(0)
    base = {"a.weight": torch.randn(64, 48), "a.bias": torch.randn(64), "e.experts": torch.randn(3, 40, 32)}
    tuned = {name: value + 0.05 * torch.randn_like(value) for name, value in base.items()}
    tuned["a.weight"][:5] = base["a.weight"][:5]
    tuned["head.weight"] = torch.randn(3, 48)
    tuned["head.bias"] = torch.tensor([torch.nan, 1])  # of kind exact, and whole
    options = {"residual": {"vectors": "3bit"}, "sketch": {}, "paper": {}, "exact": {"rank_fraction": None}}
    for method, how in options.items():
        ours = {name: value for name, value in tuned.items() if method == "exact" or not value.isnan().any()}
        dts.compress(base, ours, tmp_path / method, **{"method": method, "rank_fraction": 0.9} | how)
        config = opened(tmp_path / method).config
        rows = [*config["tensors"].values()]
        keys = set(config) | {key for row in rows for key in row} | {"names", "rows"}
        keys |= {key for section in ("task", "base", "finetuned") for key in config[section]}
        assert not sorted(key for key in keys if not re.search(rf"[`\"]{key}[`\"]", PAGE))
        suffixes = {name.rpartition(".")[2] for name in tensors_in(tmp_path / method)}
        assert not sorted(suffix for suffix in suffixes if f"`T.{suffix}`" not in PAGE)
        assert f"what is written now is version {config['format_version']}" in PAGE


def bits(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_reader_after_the_page_reads_what_this_one_does(folder):
    adapter = dts.Adapter.load(folder)
    rows, dropped, tensors = read(folder)
    assert dropped == adapter.config["dropped"] and list(rows) == list(adapter.config["tensors"])
    for name, row in adapter.config["tensors"].items():
        assert rows[name] == {key: value for key, value in row.items() if key != "bytes"}
    stored = {key: tensor for entry in adapter.entries.values() for key, tensor in entry_tensors(entry).items()}
    assert tensors.keys() == stored.keys()
    assert all(np.array_equal(tensors[key], bits(tensor), equal_nan=True) for key, tensor in stored.items())


def test_its_numbers_are_those_that_are_applied():
    folder = GOLDEN / "5-rounded"
    rows, _, tensors = read(folder)
    weights, base = dict(dts.Adapter.load(folder).apply(tiny.base())), tiny.base()
    dense = components(*(tensors[f"body.0.weight.{key}"] for key in ("u", "v", "sigma")))
    np.testing.assert_allclose(base["body.0.weight"].numpy() + dense, weights["body.0.weight"].numpy(), atol=1e-5)
    for name, kind in (("body.0.bias", "delta"), ("head.weight", "value")):
        row = rows[name]
        own = rounded(tensors[f"{name}.{kind}"], tensors[f"{name}.scales"], row["bits"], row["shape"])
        before = base[name].numpy() if kind == "delta" else 0
        np.testing.assert_allclose(before + own, weights[name].numpy(), atol=1e-7)


def test_every_bit_comes_out_as_the_page_says():
    rows, _, tensors = read(GOLDEN / "5-exact")
    base, tuned, forms = tiny.base(), tiny.lightly(5), set()
    for name, row in rows.items():
        stored = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        whole = stored.get("value", stored.get("own"))
        if row["kind"] == "tied":
            continue
        if whole is None:
            added = stored.pop("added", np.empty(0, np.uint8))
            before = base[name].numpy()
            elements = exact(stored, before.view(f"<u{before.itemsize}"))
            assert row["changed"] == np.count_nonzero(elements != before.view(elements.dtype).ravel())
            whole = np.frombuffer(elements.tobytes() + added.tobytes(), before.dtype)
        forms.add((row["kind"], *sorted(stored)))
        assert row["kind"] == "value" or row["result"] == hashlib.sha256(whole.tobytes()).hexdigest()[:16]
        assert whole.tobytes() == tuned[name].numpy().tobytes()
    assert rows.keys() == tuned.keys()
    kinds = {("value", "value"), ("exact", "own"), ("exact", "changes"), ("exact", "changes", "gaps")}
    assert forms == kinds


@pytest.mark.parametrize("folder", ["5-sketch", "5-thinned"])
def test_sampled_elements_are_where_the_page_says(folder):
    rows, _, tensors = read(GOLDEN / folder)
    weights, base = dict(dts.Adapter.load(GOLDEN / folder).apply(tiny.base())), tiny.base()
    name = "body.0.weight"
    dense = components(*(tensors[f"{name}.{key}"] for key in ("u", "v", "sigma")))
    (about,) = rows[name]["samples"]
    assert ("share" in about) == (folder == "5-thinned")
    dense = dense + sample(tensors[f"{name}.samples"], about, dense.shape[1])
    np.testing.assert_allclose(base[name].numpy() + dense, weights[name].numpy(), atol=1e-5)


def test_a_dropped_tensor_is_read(tmp_path):
    base = {f"{i}.weight": torch.randn(40, 48) for i in range(3)}
    tuned = {name: value + 0.1 * torch.randn(40, 48) for name, value in base.items()}
    adapter = dts.compress(base, tuned, tmp_path / "a", nbytes=1_900, method="residual")
    assert len(adapter.config["dropped"]) > 0 and read(tmp_path / "a")[1] == adapter.config["dropped"]


def test_the_example_is_what_the_table_begins_with():
    lines = re.search(r"```text\n(01 00 00 .*?)```", PAGE, re.S)[1].splitlines()
    example = bytes.fromhex("".join(re.match(r"((?:[0-9a-f]{2} )+) ", line)[1] for line in lines))
    content = (GOLDEN / "5-rounded/dts_model.safetensors").read_bytes()
    table = next(row[3] for row in rows_of(content) if row[0] == "table")
    assert table.startswith(example) and len(example) > 30
    row = read(GOLDEN / "5-rounded")[0]["body.0.weight"]
    assert f"rank {row['parts'][0]['rank']}\n" in PAGE and f"base, {row['base']}\n" in PAGE
    assert f"sha256, {row['sha256']}\n" in PAGE
    assert f"squared_error, {row['squared_error']:.5g}\n" in PAGE and f"norm, {row['norm']:.5g}\n" in PAGE
