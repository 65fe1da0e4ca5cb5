"""`dts plan` as a user runs it."""

import json

import pytest
import torch

import dts as package
from tests.dts.cli.said import said

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.BertModel(config)
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    for name in ("a", "b"):
        package.compress(folder / "base", model, out=folder / "adapters" / name, name=name, rank_fraction=0.5)
    return folder


def test_a_plan_is_shown_and_given_as_json(dts, bert):
    shown = dts("plan", bert / "base", bert / "adapters", "--batch", "2", "--length", "16")
    assert shown.exit_code == 0, shown.stderr
    assert "activations" in shown.stdout and "mapped" in shown.stdout and "2 rows of 16 tokens" in shown.stdout
    made = json.loads(dts("plan", bert / "base", bert / "adapters" / "a", "--memory", "4GiB", "--json").stdout)
    assert made["memory"] == 4 << 30 and made["unknown"] == []
    assert [row["what"] for row in made["rows"] if row["task"]] == ["a"]
    assert made["total"] == sum(row["bytes"] for row in made["rows"])


@pytest.mark.parametrize(
    "words, why",
    [
        (["--memory", "1MB"], "the smallest limit that would do is"),
        (["--memory", "5%"], "in bytes"),
        (["--pin", "x"], "no tasks"),
        (["--pin", "a"], "without memory= (--memory) there is no limit"),
        (["--prefix", "200%"], "between 0 and 1"),
        (["--batch", "0"], "at least"),
    ],
)
def test_what_does_not_do_is_refused(dts, bert, words, why):
    result = dts("plan", bert / "base", bert / "adapters", *words)
    assert result.exit_code == 2 and why in said(result)


def test_folders_without_adapters_and_names_twice_are_refused(dts, bert):
    result = dts("plan", bert / "base", bert / "base")
    assert result.exit_code == 2 and "holds none" in said(result)
