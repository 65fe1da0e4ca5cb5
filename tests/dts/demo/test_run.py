"""The whole demo on a toy: two tasks, a tiny encoder, its report, its plot and its second run."""

import io
import json

import pytest
import torch
from rich.console import Console
from transformers import BertConfig, BertModel, BertTokenizerFast

import dts
from dts.cli import demo as shown
from dts.demo import run as demo
from dts.demo.finetune import Recipe
from dts.demo.tasks import Task

WORDS = ["the", "a", "sea", "sky", "blood", "rose"]
SIZES = (demo.Size("paper", "r=.5", {"rank_fraction": 0.5}), demo.Size("auto", "r=.5", {"rank_fraction": 0.5}))


@pytest.fixture
def toy(tmp_path, monkeypatch):
    base = tmp_path / "base"
    base.mkdir()
    (base / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(base / "vocab.txt")).save_pretrained(base)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=11,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(base)
    texts = [f"{article} {word}" for article in WORDS[:2] for word in WORDS[2:]] * 6
    splits = ["train"] * 40 + ["test"] * 8
    tasks = [
        Task("colours", "Which colour?", texts, [0, 0, 1, 1] * 12, splits, ["blue", "red"], "here", "none"),
        Task("articles", "Which article?", texts, ([0] * 4 + [1] * 4) * 6, splits, ["the", "a"], "here", "none"),
    ]
    monkeypatch.setattr(demo, "_tasks", lambda data, names: tasks)
    monkeypatch.setattr(demo, "base_folder", lambda: base)
    monkeypatch.setattr(demo, "SIZES", SIZES)
    monkeypatch.setattr(demo, "SHOWN", tuple(size.slug for size in SIZES))
    monkeypatch.setattr(demo, "SERVED", SIZES[1].slug)
    monkeypatch.setattr(demo, "RECIPE", Recipe(epochs=12, batch_size=8, learning_rate=1e-2, head_learning_rate=1e-2))
    return tmp_path


def run(toy):
    text = io.StringIO()
    report = demo.run(out=toy / "demo", cache=toy / "cache", console=Console(file=text, width=120))
    return report, text.getvalue()


@pytest.mark.slow
def test_first_and_second_run(toy, monkeypatch, capsys):
    report, text = run(toy)
    assert all(what in text for what in ("fine-tune 1/2: colours", "compress 2 tasks at 2 sizes", "measure articles"))
    assert json.loads((toy / "demo" / "report.json").read_text())["tasks"] == report["tasks"]
    assert (toy / "demo" / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    for row in report["tasks"]:
        assert row["accuracy_finetuned"] == 1.0  # eight texts, all seen
        for adapter in row["adapters"]:
            folder = toy / "demo" / "adapters" / row["name"] / adapter["adapter"]
            assert adapter["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
            assert adapter["kl"] >= 0 and 0 <= adapter["agreement"] <= 1
        lines = (toy / "demo" / "models" / f"{row['name']}.jsonl").read_text().splitlines()
        assert len(lines) == 8 and json.loads(lines[0])["label"] in row["class_names"]
        dts.Adapter.load(folder).on(toy / "demo" / "models" / "base")  # the base that it is for
        assert (toy / "demo" / "models" / row["name"] / "model.safetensors").is_file()
    assert report["mean"]["adapters"][0]["bytes"] == sum(r["adapters"][0]["bytes"] for r in report["tasks"]) / 2
    assert [row["task"] for row in report["mixed_batch"]] == ["colours", "articles"] * demo.MIXED_ROWS
    assert all(row["finetuned"] == row["truth"] for row in report["mixed_batch"])

    shown._show(report)
    printed = capsys.readouterr().out
    assert "colours (2)" in printed and "auto r=.5" in printed and "→ " in printed
    assert "dts eval" in printed and str(toy / "demo" / "models" / "colours.jsonl") in printed

    def never(*_, **__):
        raise AssertionError("a second run must not compress or measure")

    monkeypatch.setattr(demo, "_measure", never)
    monkeypatch.setattr(demo, "ProcessPoolExecutor", never)
    again, text = run(toy)
    assert again["tasks"] == report["tasks"] and again["mixed_batch"] == report["mixed_batch"]
    assert text.count("cached") == 4


def test_unknown_tasks_name_the_known_ones(monkeypatch):
    monkeypatch.setattr(demo, "demo_tasks", lambda: [Task("bbc", "?", [], [], [], [], "", "")])
    with pytest.raises(ValueError, match="no task bcb; it has bbc"):
        demo._tasks(None, ["bcb"])


def test_data_folders_have_a_default_choice(shared):
    assert [task.name for task in demo._tasks(shared / "data", None)] == list(demo.DATA_TASKS)
