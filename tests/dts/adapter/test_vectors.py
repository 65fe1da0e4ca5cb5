"""Biases and norms in 8 bits: what they cost, how far they are off, and where they stay exact."""

import pytest
import torch

import dts
from dts.adapter import AdapterError, compress
from dts.adapter.entries import Entry
from dts.adapter.vectors import SHORT, eight_bit
from dts.checkpoint import open_checkpoint

transformers = pytest.importorskip("transformers")


def vectors(adapter):
    return {name: e for name, e in adapter.entries.items() if e.kind == "delta" and len(e.shape) == 1}


def test_a_budget_rounds_vectors_to_8_bits_and_says_how_far_they_are_off(bert_folders, tmp_path):
    base, finetuned = bert_folders
    adapter = compress(base, finetuned, out=tmp_path / "a", nbytes=40_000)
    theta, tuned = open_checkpoint(base), open_checkpoint(finetuned)
    found = vectors(adapter)
    assert len(found) > 10
    for name, entry in found.items():
        delta = tuned.load(name).double() - theta.load(entry.base_name).double()
        off = (entry.delta(dtype=torch.float64) - delta).abs().max()
        assert entry.tensor.dtype == torch.int8 and 0 < off <= delta.abs().max() / 254 * (1 + 1e-6)
    report = dts.Adapter.load(tmp_path / "a").verify(base, finetuned)
    assert report.ok and all(
        report.errors[name][1] == pytest.approx(e.squared_error, rel=1e-2) for name, e in found.items()
    )


def test_exact_vectors_cost_four_times_as_much_and_are_exact(bert_folders):
    base, finetuned = bert_folders
    exact = compress(base, finetuned, nbytes=40_000, vectors="exact")
    rounded = compress(base, finetuned, nbytes=40_000)
    size = {name: sum(e.tensor.nbytes for e in vectors(a).values()) for name, a in (("e", exact), ("r", rounded))}
    assert size["e"] == 4 * size["r"]
    assert rounded.config["squared_error"] < exact.config["squared_error"]  # the matrices got what the vectors left
    state, tuned = dict(exact.apply(base)), open_checkpoint(finetuned)
    assert all(torch.equal(state[name], tuned.load(name)) for name in vectors(exact))


@pytest.mark.parametrize("how", [{"rank_fraction": 0.3}, {"target_error": 0.2}, {"nbytes": 40_000, "method": "paper"}])
def test_vectors_are_exact_unless_bytes_are_asked_for(bert_folders, how):
    assert all(e.scale is None for e in vectors(compress(*bert_folders, **how)).values())


def test_what_8_bits_cannot_hold_stays_exact():
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
    assert [adapter.entries[name].scale for name in ("short.bias", "endless.bias", "table")] == [None] * 3


def test_8_bit_vectors_run_from_the_adapter_as_they_are_applied(bert, bert_folders, tmp_path):
    compress(*bert_folders, out=tmp_path / "a", nbytes=40_000)
    adapter = dts.Adapter.load(tmp_path / "a")
    dense = transformers.BertForSequenceClassification(bert[1].config).eval()
    dense.load_state_dict(dict(adapter.apply(bert_folders[0])))
    model = dts.DTSModel.from_pretrained(bert_folders[0], adapters={"trec": adapter})
    ids = torch.randint(0, 500, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids, tasks="trec").logits, dense(ids).logits, rtol=1e-3, atol=1e-3)


def test_an_int8_delta_without_its_scale_is_refused(bert_folders, tmp_path):
    compress(*bert_folders, out=tmp_path / "a", nbytes=40_000)
    path = tmp_path / "a" / "dts_config.json"
    text = path.read_text("utf-8")
    path.write_text(text.replace('"scale"', '"escal"', 1), "utf-8")
    with pytest.raises(AdapterError, match="scale"):
        dts.Adapter.load(tmp_path / "a")


@pytest.mark.parametrize("largest", [1e35, float("inf"), float("nan")])
def test_a_vector_whose_scale_could_not_be_stored_stays_exact(largest):
    """A scale of 1e33 is refused by whoever reads it."""
    delta = torch.ones(64)
    delta[3] = largest
    entry = Entry("b", "b", (64,), "delta", tensor=delta, norm=1.0)
    assert eight_bit(entry, delta) is entry
