"""How often unlabelled examples find the task: the command's measurement, on a tiny model."""

import torch
from transformers import BertConfig, BertModel

from benchmarks.quality import routing


def test_rows_of_each_group_and_number_of_examples():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    model = BertModel(BertConfig(vocab_size=60, **sizes)).eval()
    words = {"low": torch.arange(2, 30), "high": torch.arange(30, 60)}

    def batches(ids, count):
        return [{"input_ids": ids[torch.randint(len(ids), (count, 12))]} for _ in range(2)]

    tasks = {name: {"train": batches(ids, 20), "test": batches(ids, 15)} for name, ids in words.items()}
    rows = routing.measured(model, tasks, {"both": ["low", "high"], "again": ["high", "low"]}, [8, 32], draws=2)
    assert [(row["among"], row["examples"]) for row in rows] == [("both", 8), ("both", 32), ("again", 8), ("again", 32)]
    for row in rows[1::2]:  # chance is a half
        assert row["right"] > 0.85 and set(row["tasks"]) == {"low", "high"}
        assert 0 < row["share_of_a_pass"] and "32 examples" in routing.shown(row)


def test_what_is_chosen_on_is_not_reported():
    assert not set(routing.CHOSEN_ON) & set(routing.TASKS)
    groups = routing.groups(False)
    assert [len(names) for names in groups.values()] == [7, 6, 8]
