"""Biases, norms and heads in few bits: what they cost, how far they are off, and where they stay exact."""

from pathlib import Path

import pytest
import torch

import dts
from dts.adapter import AdapterError, compress
from dts.adapter.entries import Entry
from dts.adapter.vectors import SHORT, Rounding, in_few_bits
from dts.checkpoint import open_checkpoint
from tests.dts.adapter import tiny
from tests.fuzz.form import opened, signed

transformers = pytest.importorskip("transformers")


def vectors(adapter):
    return {name: e for name, e in adapter.entries.items() if e.kind == "delta" and len(e.shape) == 1}


@pytest.mark.parametrize(("nbytes", "bits"), [(20_000, 3), (40_000, 4), (400_000, 8)])
def test_a_budget_rounds_vectors_and_says_how_far_they_are_off(bert_folders, tmp_path, nbytes, bits):
    base, finetuned = bert_folders
    adapter = compress(base, finetuned, out=tmp_path / "a", nbytes=nbytes)
    theta, tuned = open_checkpoint(base), open_checkpoint(finetuned)
    found = vectors(adapter)
    assert len(found) > 10
    for name, entry in found.items():
        delta = tuned.load(name).double() - theta.load(entry.base_name).double()
        off = (entry.delta(dtype=torch.float64) - delta).square().sum() / delta.square().sum()
        assert entry.grid.bits == bits and entry.squared_error == pytest.approx(off.item(), rel=1e-6)
        assert 0 < off < 4.0 ** (4 - bits) / 50
    report = dts.Adapter.load(tmp_path / "a").verify(base, finetuned)
    assert report.ok and all(
        report.errors[name][1] == pytest.approx(e.squared_error, rel=1e-2) for name, e in found.items()
    )


def test_heads_take_8_bits_under_a_budget_where_they_are_much_of_it(bert_folders):
    base, finetuned = bert_folders
    head = open_checkpoint(finetuned).load("classifier.weight")
    small, large, exact = (compress(base, finetuned, nbytes=n, **how) for n, how in HEADS)
    for adapter in (large, exact):
        assert torch.equal(adapter.entries["classifier.weight"].tensor, head)
    entry = small.entries["classifier.weight"]
    assert entry.grid.bits == 8 and entry.tensor is None
    off = (entry.apply(None) - head).square().sum() / head.square().sum()
    assert 0 < off < 1e-4 and entry.squared_error == pytest.approx(off.item(), rel=1e-4)
    assert small.entries["classifier.bias"].grid is None  # three numbers
    assert torch.equal(dict(small.apply(base))["classifier.weight"], entry.grid.values())


HEADS = [(40_000, {}), (400_000, {}), (40_000, {"vectors": "exact"})]


def test_exact_vectors_are_exact_and_cost_more(bert_folders):
    base, finetuned = bert_folders
    exact, rounded = (compress(base, finetuned, nbytes=40_000, vectors=how) for how in ("exact", "3bit"))
    sizes = [sum(a.config["tensors"][name]["bytes"] for name in vectors(a)) for a in (exact, rounded)]
    assert sizes[0] > 8 * sizes[1]
    assert rounded.config["squared_error"] < exact.config["squared_error"]  # the matrices got what the vectors left
    state, tuned = dict(exact.apply(base)), open_checkpoint(finetuned)
    assert all(torch.equal(state[name], tuned.load(name)) for name in vectors(exact))


@pytest.mark.parametrize("how", [{"rank_fraction": 0.3}, {"target_error": 0.2}, {"nbytes": 40_000, "method": "paper"}])
def test_vectors_are_exact_unless_bytes_are_asked_for(bert_folders, how):
    assert not any(e.is_rounded for e in vectors(compress(*bert_folders, **how)).values())


def test_what_few_bits_cannot_hold_stays_exact():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    base = {
        "w.weight": draw(64, 64),
        "short.bias": draw(SHORT - 1),
        "endless.bias": draw(64),
        "table": torch.arange(64),
    }
    tuned = {name: value + (1 if name == "table" else 0.1 * draw(*value.shape)) for name, value in base.items()}
    tuned["endless.bias"] = tuned["endless.bias"].index_fill(0, torch.tensor([3]), torch.inf)
    adapter = compress(base, tuned, nbytes=6_000)
    assert [adapter.entries[name].grid for name in ("short.bias", "endless.bias", "table")] == [None] * 3


def test_rounded_vectors_and_heads_run_from_the_adapter_as_they_are_applied(bert, bert_folders, tmp_path):
    compress(*bert_folders, out=tmp_path / "a", nbytes=40_000)
    adapter = dts.Adapter.load(tmp_path / "a")
    dense = transformers.BertForSequenceClassification(bert[1].config).eval()
    dense.load_state_dict(dict(adapter.apply(bert_folders[0])))
    model = dts.DTSModel.from_pretrained(bert_folders[0], adapters={"trec": adapter})
    ids = torch.randint(0, 500, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids, tasks="trec").logits, dense(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bits", [None, 5, 4, 8, "3", True])
def test_other_bits_than_are_stored_are_refused(bert_folders, tmp_path, bits):
    compress(*bert_folders, out=tmp_path / "a", nbytes=20_000)
    inner = opened(tmp_path / "a")
    inner.config["tensors"]["bert.embeddings.LayerNorm.bias"]["bits"] = bits
    signed(inner)
    inner.write(tmp_path / "a")
    with pytest.raises(AdapterError, match="embeddings.LayerNorm.bias: (bits|.* bytes and .* scales)"):
        dts.Adapter.load(tmp_path / "a")


def test_an_int8_delta_without_its_scale_is_refused(tmp_path):
    inner = opened(Path(__file__).parent / "golden" / "4-vectors")
    del inner.config["tensors"]["body.0.bias"]["scale"]
    signed(inner)
    inner.write(tmp_path / "a")
    with pytest.raises(AdapterError, match="scale"):
        dts.Adapter.load(tmp_path / "a")


@pytest.mark.parametrize("largest", [1e35, float("inf"), float("nan")])
def test_a_vector_whose_scales_could_not_be_stored_stays_exact(largest):
    """A scale of 1e33 is refused by whoever reads it."""
    delta = torch.ones(64)
    delta[3] = largest
    entry = Entry("b", "b", (64,), "delta", tensor=delta, norm=1.0)
    assert in_few_bits(entry, delta, Rounding(3, 8)) is entry


def test_a_cut_rounds_what_is_exact_or_in_8_bits_and_no_more(bert_folders):
    base, finetuned = bert_folders
    for how in ("exact", "8bit", "4bit"):
        adapter = compress(base, finetuned, nbytes=60_000, vectors=how).truncate(nbytes=15_000)
        found = vectors(adapter)
        assert {entry.grid.bits for entry in found.values()} == (
            {4} if how == "4bit" else {8} if how == "8bit" else {3}
        )
        assert adapter.verify(base, finetuned).ok


def test_a_cut_sketch_has_its_vectors_in_as_few_bits_as_its_size_takes(bert_folders):
    """Else a tenth of it would have nearly three times the bytes of vectors that compressing gives it."""
    base, finetuned = bert_folders
    for how in ("exact", "8bit", "3bit"):
        whole = compress(base, finetuned, nbytes=60_000, method="sketch", vectors=how)
        small = whole.truncate(nbytes=30_000)
        found, before = vectors(small), vectors(whole)
        assert any(f.samples for entry in whole.entries.values() for f in entry.matrices if f is not None)
        assert {entry.grid.bits for entry in found.values()} == {3} and small.nbytes <= 30_000
        for name, entry in found.items():
            assert entry is before[name] if how == "3bit" else (entry.squared_error is None) == (how == "8bit")
            off = (entry.delta() - before[name].delta()).square().sum() / before[name].delta().square().sum()
            assert off < 0.1
        assert small.verify(base, finetuned).ok


def test_an_old_8_bit_vector_is_rounded_again_where_it_is_cut(tmp_path):
    old = dts.Adapter.load(Path(__file__).parent / "golden" / "4-vectors")
    before = old.entries["body.0.bias"]
    after = in_few_bits(before, before.numbers(torch.float64), Rounding(3, 8))
    off = (after.delta() - before.delta()).square().sum() / before.delta().square().sum()
    assert after.grid.bits == 3 and after.scale is None and 0 < off.item() < after.squared_error
    old.entries["body.0.bias"] = after
    old.save(tmp_path / "a")
    assert dts.Adapter.load(tmp_path / "a").verify(tiny.base(), tiny.finetuned(4)).ok
