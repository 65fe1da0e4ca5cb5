"""From two checkpoints to a folder of the bytes asked for, and back."""

import json

import pytest
import torch

import dts
from dts.adapter import AdapterError, BudgetError, compress, write_checkpoint
from dts.checkpoint import Mismatch, open_checkpoint
from dts.codec import Unencodable

transformers = pytest.importorskip("transformers")


def on_disk(folder) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def hidden(tmp_path) -> list[str]:
    return [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("method", ["residual", "paper"])
@pytest.mark.parametrize("nbytes", [22_000, 30_000, 40_000])
def test_whole_folder_takes_the_bytes_asked_for(bert_folders, tmp_path, method, nbytes):
    base, finetuned = bert_folders
    planned = compress(base, finetuned, out=tmp_path / "a", nbytes=nbytes, method=method, dry_run=True)
    assert not list(tmp_path.iterdir())
    adapter = compress(base, finetuned, out=tmp_path / "a", nbytes=nbytes, method=method)
    assert 0.99 * nbytes <= adapter.nbytes <= nbytes
    assert adapter.nbytes == on_disk(tmp_path / "a") == dts.Adapter.load(tmp_path / "a").nbytes
    assert abs(planned.nbytes - adapter.nbytes) <= 0.01 * nbytes
    assert planned.config["squared_error"] == pytest.approx(adapter.config["squared_error"], abs=0.1)
    assert not hidden(tmp_path)
    loaded = dts.Adapter.load(tmp_path / "a")
    assert loaded.verify(base, finetuned).problems == []
    assert loaded.class_names == ["abbreviation", "entity", "human"] and loaded.name == "trec"
    assert loaded.amr == pytest.approx(adapter.nbytes / (4 * open_checkpoint(base).parameters), rel=1e-6)


def test_budget_is_a_fraction_of_the_base_in_fp32(bert_folders):
    base, finetuned = bert_folders
    adapter = compress(base, finetuned, budget=0.08)
    assert 0.99 * 0.08 <= adapter.amr <= 0.08


def test_larger_budgets_give_smaller_errors(bert_folders):
    errors = [compress(*bert_folders, nbytes=size).config["squared_error"] for size in (20_000, 25_000, 35_000)]
    assert errors[0] > errors[1] > errors[2]


def test_budget_over_the_model_beats_the_same_fraction_everywhere():
    generator = torch.Generator().manual_seed(0)
    base = {f"layer.{i}.weight": torch.randn(96, 96, generator=generator) for i in range(4)}
    tuned = {
        name: value + 0.1 / 4**i * torch.randn(96, 96, generator=generator)
        for i, (name, value) in enumerate(base.items())
    }
    even = compress(base, tuned, rank_fraction=0.2)
    planned = compress(base, tuned, nbytes=even.nbytes)
    assert planned.config["squared_error"] < 0.8 * even.config["squared_error"]


@pytest.mark.parametrize("target", [0.3, 0.1])
def test_target_error_is_reached(bert_folders, target):
    adapter = compress(*bert_folders, target_error=target)
    report = adapter.verify(*bert_folders)
    energy = {name: adapter.entries[name].norm ** 2 for name in report.errors if name in adapter.entries}
    energy |= {name: norm**2 for name, norm in adapter.config["dropped"].items()}
    exact = sum(e.norm**2 for e in adapter.entries.values() if e.name not in energy)
    error = sum(report.errors[name][1] * e for name, e in energy.items()) / (sum(energy.values()) + exact)
    assert 0.7 * target < error <= target
    assert adapter.config["squared_error"] == pytest.approx(error, abs=1e-3)


def test_paper_ranks_are_the_published_ones(bert_folders):
    adapter = compress(*bert_folders, rank_fraction=0.3, method="paper")
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert adapter.entries[name].rank == int(0.3 * 64)
    assert adapter.entries["bert.embeddings.token_type_embeddings.weight"].kind == "factors"


def test_a_budget_below_the_fixed_parts_names_the_smallest_possible(bert_folders, tmp_path):
    with pytest.raises(BudgetError) as error:
        compress(*bert_folders, out=tmp_path / "a", nbytes=1000)
    smallest = int(str(error.value).split("takes ")[1].split(" bytes")[0].replace(",", ""))
    adapter = compress(*bert_folders, out=tmp_path / "a", nbytes=smallest)
    assert adapter.nbytes == smallest == on_disk(tmp_path / "a")
    assert all(entry.factors is None for entry in adapter.entries.values()) and adapter.config["dropped"]
    assert adapter.verify(*bert_folders).problems == []


def test_vectors_and_heads_come_back_exactly_and_untouched_rows_stay(bert_folders):
    base, finetuned = (open_checkpoint(path) for path in bert_folders)
    adapter = compress(base, finetuned, nbytes=26_000, vectors="exact")
    state = dict(adapter.apply(base))
    assert set(state) == set(finetuned.names)
    for name in finetuned.names:
        assert state[name].shape == finetuned.shape(name) and state[name].dtype == finetuned.dtype(name)
        if len(finetuned.shape(name)) == 1 or name.startswith("classifier"):
            assert torch.equal(state[name], finetuned.load(name)), name
    assert adapter.entries["classifier.weight"].task_only
    words = state["bert.embeddings.word_embeddings.weight"]
    untouched = torch.arange(len(words)) % 7 != 0
    assert torch.equal(words[untouched], base.load("embeddings.word_embeddings.weight")[untouched])


def test_identical_models_need_no_tensor(bert):
    adapter = compress(bert[0], bert[0], allow_empty=True)
    assert adapter.entries == {} and adapter.config["squared_error"] == 0
    assert all(torch.equal(tensor, bert[0].state_dict()[name]) for name, tensor in adapter.apply(bert[0]))


def test_nan_is_refused_with_the_tensors_name(bert):
    state = dict(bert[0].state_dict())
    name = "encoder.layer.1.output.dense.weight"
    state[name] = state[name].clone()
    state[name][3, 3] = float("nan")
    with pytest.raises(Unencodable, match=name):
        compress(bert[0], state)


def test_existing_folders_are_kept(bert_folders, tmp_path):
    base, finetuned = bert_folders
    compress(base, finetuned, out=tmp_path / "a", nbytes=26_000)
    before = (tmp_path / "a/dts_config.json").read_bytes()
    with pytest.raises(FileExistsError, match="overwritten"):
        compress(base, finetuned, out=tmp_path / "a", nbytes=30_000)
    with pytest.raises(Unencodable):  # asked to overwrite, but fails: the old adapter stays
        broken = {k: v * float("nan") for k, v in open_state(finetuned).items()}
        compress(base, broken, out=tmp_path / "a", nbytes=30_000, overwrite=True)
    assert (tmp_path / "a/dts_config.json").read_bytes() == before
    assert compress(base, finetuned, out=tmp_path / "a", nbytes=30_000, overwrite=True).nbytes > 26_000
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("do not lose me")
    with pytest.raises(FileExistsError, match="not an adapter"):
        compress(base, finetuned, out=tmp_path / "other", overwrite=True)


def open_state(folder) -> dict:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.load(name) for name in checkpoint.names}


def test_sizes_contradicting_or_absent(bert):
    with pytest.raises(ValueError, match="one size"):
        compress(*bert, budget=0.01, nbytes=5)
    with pytest.raises(ValueError, match="one size"):
        compress(*bert, budget=-1)
    with pytest.raises(ValueError, match="residual, paper"):
        compress(*bert, method="best")


def test_progress_counts_to_the_end(bert):
    calls = []
    compress(*bert, rank_fraction=0.1, progress=lambda done, total, name: calls.append((done, total, name)))
    assert calls[-1][0] == calls[-1][1] and all(0 <= done <= total for done, total, _ in calls)
    assert "classifier.weight" in {name for _, _, name in calls}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_of_the_fine_tune_come_back(bert, dtype):
    base = {name: value.clone() for name, value in bert[0].state_dict().items()}
    tuned = {
        name: (value + 0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))).to(dtype)
        for name, value in base.items()
    }
    adapter = compress(base, tuned, rank_fraction=0.5)
    assert adapter.verify(base, tuned).problems == []
    assert all(tensor.dtype == dtype for _, tensor in adapter.apply(base))


def test_written_checkpoint_loads_in_transformers_and_is_base_plus_delta(bert_folders, bert, tmp_path):
    base, finetuned = bert_folders
    adapter = compress(base, finetuned, nbytes=45_000)
    write_checkpoint(base, adapter, tmp_path / "full", shard_bytes=60_000)
    assert (tmp_path / "full/model.safetensors.index.json").is_file() and not hidden(tmp_path)
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "full").eval()
    dense = transformers.BertForSequenceClassification(bert[1].config).eval()
    dense.load_state_dict(dict(adapter.apply(base)))
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, dense(tokens).logits)
        near, far = model(tokens).logits - bert[1](tokens).logits, bert[1](tokens).logits
    assert near.norm() < 0.2 * far.norm()


def test_the_wrong_base_is_refused_with_every_mismatch(bert_folders, bert):
    adapter = compress(*bert_folders, nbytes=26_000)
    wrong = {name: value.clone() for name, value in bert[0].state_dict().items()}
    wrong["encoder.layer.0.output.dense.weight"] += 1
    wrong["encoder.layer.1.output.dense.weight"] = torch.zeros(3, 3)
    del wrong["encoder.layer.1.output.dense.bias"]
    with pytest.raises(Mismatch) as error:
        adapter.apply(wrong)
    assert len(error.value.mismatches) == 3
    report = adapter.verify(wrong)
    assert not report.ok and len(report.problems) == 3
    wrong = dict(bert[0].state_dict()) | {"extra.weight": torch.ones(2)}
    with pytest.raises(Mismatch, match="fingerprint"):
        adapter.apply(wrong)


def test_tokenizer_files_that_differ_travel_and_count(bert_folders, bert, tmp_path):
    for name, model in zip(("base", "tuned"), bert):
        model.save_pretrained(tmp_path / name)
        (tmp_path / name / "vocab.txt").write_text("a\nb\n")
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"a": 1}, "padding": name}))
    (tmp_path / "tuned/tokenizer_config.json").write_text("{}")
    adapter = compress(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "a", nbytes=26_000)
    assert set(adapter.files) == {"tokenizer_config.json"}
    assert adapter.nbytes == on_disk(tmp_path / "a")
    write_checkpoint(tmp_path / "base", dts.Adapter.load(tmp_path / "a"), tmp_path / "full")
    assert {"vocab.txt", "tokenizer.json", "tokenizer_config.json"} <= {p.name for p in (tmp_path / "full").iterdir()}


def test_not_an_adapter(tmp_path):
    with pytest.raises(AdapterError, match="no dts_config.json"):
        dts.Adapter.load(tmp_path)
