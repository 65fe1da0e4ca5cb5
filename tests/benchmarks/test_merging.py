"""The suite of merging, unseen tasks and routing, end to end on tiny encoders, and its own arithmetic."""

import importlib
import json

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

from benchmarks.quality.merging import routing, study, tables, tested, unseen
from dts.demo.finetune import head_of
from dts.demo.tasks import Task

command = importlib.import_module("benchmarks.quality.merging.__main__")
WORDS = [f"word{i}" for i in range(3000)]  # a tokenizer larger than an adapter here


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=3005,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def finetune(base, folder, number: int) -> tuple[Task, int, object]:
    """A task of four words of its own, and a model whose matrices moved along the embeddings of these words."""
    torch.manual_seed(number)
    own = slice(4 * number, 4 * number + 4)
    texts = [" ".join(WORDS[own][(i + j) % 4] for j in range(6)) for i in range(60)]
    labels = [0] * 20 + [1] * 20 + [0, 1] * 10  # the training set is sorted by class
    names = [f"even{number}", f"odd{number}"]
    task = Task(f"t{number}", "which?", texts, labels, ["train"] * 40 + ["test"] * 20, names, "here", "none")
    model = BertForSequenceClassification.from_pretrained(base, **head_of(names))
    embedded = model.bert.embeddings.word_embeddings.weight[5:][own].detach()
    for weight in model.bert.encoder.parameters():
        if weight.dim() == 2 and weight.shape[1] == 32:
            weight.data += torch.randn(len(weight), 4) @ embedded
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base, model_max_length=16).save_pretrained(folder)
    return task, 0, folder


@pytest.fixture(scope="module")
def suite(base, tmp_path_factory):
    """The folder of the command's rows, with the command on four such fine-tunes."""
    folder = tmp_path_factory.mktemp("suite")
    trained = [finetune(base, folder / f"t{i}", i) for i in range(4)]

    def encode(texts):
        seeds = (torch.Generator().manual_seed(sum(map(ord, text))) for text in texts)
        return torch.stack([torch.randn(8, generator=seed) for seed in seeds])

    with pytest.MonkeyPatch.context() as patch:
        for module in (study, routing):
            patch.setattr(module, "base_folder", lambda: base)
        patch.setattr(study, "open_encoder", lambda name: encode)
        patch.setattr(command, "TRAINING", {task.name: None for task, *_ in trained})
        patch.setattr(command, "finetunes", lambda names, seeds: [one for one in trained if one[0].name in names])
        patch.setattr(command, "ROWS", folder / "rows.jsonl")
        yield folder


ARGUMENTS = "--tasks t0,t1,t2,t3 --methods average,ties --budgets 0.2 --budget 0.2 --samples 20".split()


@pytest.fixture(scope="module")
def rows(suite):
    assert command.main([*ARGUMENTS, "--out", str(suite / "rows.json")]) == 0
    return json.loads((suite / "rows.json").read_text())


def test_all_parts_are_measured(rows):
    assert [r["method"] for r in rows if r["part"] == "bases"] == ["pretrained", "average", "ties", "fine-tuned"]
    assert {r["task"] for r in rows if r["part"] == "unseen"} == {"t0", "t1", "t2", "t3"}
    assert all(r["task"] not in r["seen"] for r in rows if r["part"] == "unseen")
    routers = {r["router"]: sum(r["routed"].values()) / 4 for r in rows if r["part"] == "routing"}
    for router in ("energy, 0 blocks, none", "64 examples", "64 examples, energy, scrambled"):
        assert routers[router] > 0.9


def test_nothing_is_measured_twice_and_tables_need_only_the_rows(suite, rows, capsys):
    lines = (suite / "rows.jsonl").read_text()
    assert command.main([*ARGUMENTS, "--out", str(suite / "again.json")]) == 0
    assert (suite / "rows.jsonl").read_text() == lines
    assert (suite / "again.json").read_text() == (suite / "rows.json").read_text()
    printed = capsys.readouterr().out
    for title in ("Merged models alone", "Adapters at equal bytes", "Tasks never seen, own heads", "Routing among all"):
        assert title in printed
    assert command.main(["--results", str(suite / "rows.json")]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == printed.splitlines()[:3]


def test_difference_adapters_do_not_carry_the_tokenizer(suite, rows):
    """A merged base in memory has none to share, and every adapter to it held a copy."""
    nbytes = {row["base"]: row["nbytes"] for row in rows if row["part"] == "adapters"}
    tokenizer = sum(f.stat().st_size for f in (suite / "t0").glob("tokenizer*"))
    assert set(nbytes) == {"pretrained", "average", "ties"}
    assert max(nbytes.values()) - min(nbytes.values()) < tokenizer / 2


def test_wrong_names_and_missing_data(suite, capsys, monkeypatch):
    for words, said in (
        (["--tasks", "t0,x"], "no task x; there are t0"),
        (["--methods", "y"], "no method y"),
        (["--parts", "z"], "no part z"),
    ):
        with pytest.raises(SystemExit) as stopped:
            command.main([*ARGUMENTS, *words])
        assert stopped.value.code == 2 and said in capsys.readouterr().err

    def missing(names, seeds):
        raise command.MissingData("no data sets at x")

    monkeypatch.setattr(command, "finetunes", missing)
    assert command.main([*ARGUMENTS, "--out", str(suite / "none.json")]) == 2
    assert "no data sets at x" in capsys.readouterr().err


def test_pools_are_spread_over_data_sorted_by_class():
    labels = [0] * 500 + [1] * 500
    assert sum(tested.spread(labels, 50)) == 25
    assert tested.spread([1, 2, 3], 50) == [1, 2, 3]


def test_routed_counts_answers_of_another_head_as_wrong():
    figures = routing.routed(["a", "b", None, "b"], ["a", "a", "b", "b"], ["a", "b"], [True, True, True, False])
    assert figures["routed"] == {"a": 0.5, "b": 0.5}
    assert figures["wrong"] == {"a": {"b": 1}, "b": {"None": 1}}
    assert figures["accuracy"] == {"a": 1.0, "b": 0.5}
    assert figures["accuracy_routed"] == {"a": 0.5, "b": 0.0}


def test_every_task_is_held_out_once():
    names = list("abcdefgh")
    assert unseen.groups_of_three(names) == [list("abc"), list("def"), list("gh")]
    assert unseen.groups_of_three(["a", "b"]) == [["a"], ["b"]]


def test_the_deviation_is_over_seeds_and_the_best_single_task_is_of_each_seed_and_task():
    rows = [
        {"seed": seed, "task": task, "encoder": encoder, "accuracy": accuracy}
        for seed, task, encoder, accuracy in [
            (0, "a", "single x", 0.1),
            (0, "a", "single y", 0.3),
            (0, "b", "single x", 0.5),
            (1, "a", "single x", 0.2),
        ]
    ]
    best = tables.with_best_single(rows)
    ((name, values),) = tables.by(best, lambda r: r["encoder"], lambda r: r["accuracy"])
    assert name.startswith("best single") and values == [0.4, 0.2]
    assert tables.table("t", [("a", [0.4, 0.2]), ("b", [0.5])]).splitlines()[1:] == [
        f"  {'a':44}  30.00 ± 14.14 %",
        f"  {'b':44}  50.00 %",
    ]
