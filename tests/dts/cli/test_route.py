"""`dts route` and `dts compress --route-with`, as a user runs them."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

import dts as package
from tests.dts.cli.said import said

transformers = pytest.importorskip("transformers")

SIZES = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with a base that has a tokenizer, two fine-tunes of it, and a text file of examples for each."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("route")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", *WORDS])}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    base = transformers.BertModel(transformers.BertConfig(vocab_size=42, **SIZES))
    base.save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    for i, task in enumerate(("low", "high")):
        tuned = transformers.BertModel.from_pretrained(place / "base")
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter += 1e-3 * torch.randn_like(parameter)
        tuned.save_pretrained(place / task)
        texts = [" ".join(WORDS[20 * i + (j * k) % 20] for k in range(1, 7)) for j in range(30)]
        (place / f"{task}.txt").write_text("\n".join(texts) + "\n")
    return place


@pytest.fixture(scope="module")
def adapter(places):
    """A folder of an adapter that was told nothing."""
    return package.compress(places / "base", places / "low", out=places / "adapter", rank_fraction=0.3).folder


def test_an_adapter_is_told_and_forgets_again(dts, places, adapter):
    plain = package.Adapter.load(adapter)
    plain.save("low")
    before = plain.nbytes
    tried = dts("route", "low", "--base", places / "base", "--examples", places / "low.txt", "--dry-run", "--json")
    assert tried.exit_code == 0, tried.stderr
    assert package.Adapter.load("low").inputs is None
    found = dts("route", "low", "--base", places / "base", "--examples", places / "low.txt", "--json")
    assert found.exit_code == 0, found.stderr
    row = json.loads(found.stdout)
    told = package.Adapter.load("low")
    assert row["examples"] == told.inputs.examples == 30
    assert row["bytes"] == told.nbytes == json.loads(tried.stdout)["bytes"] and row["router_bytes"] == told.beside
    assert told.inputs.layer == "encoder.layer.0.attention.self.query.weight"
    shown = dts("inspect", "low")
    assert "router" in shown.stdout
    assert "low" in dts("route", "low", "--remove").stdout
    assert package.Adapter.load("low").nbytes == before
    again = dts("route", "low", "--remove")
    assert again.exit_code == 2 and "nothing for a router" in again.stderr


def test_compress_tells_it_within_the_size(dts, places):
    for task in ("low", "high"):
        made = dts(
            "compress", places / "base", places / task, "-o", task, "-s", "40%", "--route-with", places / f"{task}.txt"
        )
        assert made.exit_code == 0, made.stderr
        whole = package.Adapter.load(task)
        assert whole.inputs.examples == 30 and whole.amr <= 0.4
    model = package.DTSModel.from_pretrained(places / "base", adapters={task: task for task in ("low", "high")})
    ids = torch.cat([torch.randint(2, 22, (10, 6)), torch.randint(22, 42, (10, 6))])
    right = zip(model.choose_tasks({"input_ids": ids}).tasks, ["low"] * 10 + ["high"] * 10, strict=True)
    assert sum(one == other for one, other in right) >= 17


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--examples", "none.txt", "--base", "b"), "none.txt is not there: the file of examples takes"),
        (("--examples", "x.txt"), "--base is missing"),
        ((), "give --examples FILE and --base MODEL, or --remove alone"),
        (("--remove", "--base", "b", "--device", "cpu"), "--base, --device would be of what is put in: leave out"),
    ],
)
def test_what_is_missing_is_said(dts, adapter, words, says):
    found = dts("route", adapter, *words)
    assert found.exit_code == 2 and says in said(found)


def test_few_examples_are_warned_of_and_several_tasks_refused(dts, places, adapter, tmp_path):
    (tmp_path / "few.txt").write_text("w1 w2\nw3 w4\nw5 w6\nw7 w8\n")
    found = dts("route", adapter, "--base", places / "base", "--examples", "few.txt", "-o", "told")
    assert found.exit_code == 0 and "4 inputs: of fewer than 16" in " ".join(found.stderr.split())
    both = (places / "low", places / "high")
    found = dts("compress", places / "base", *both, "-o", "all", "--route-with", "few.txt")
    assert found.exit_code == 2 and "--route-with is of one task" in found.stderr


def test_the_layer_is_chosen_as_in_python(dts, places, adapter):
    package.Adapter.load(adapter).save("low")
    words = ("route", "low", "--base", places / "base", "--examples", places / "low.txt", "--layer")
    layer = "encoder.layer.0.output.dense.weight"
    found = dts(*words, layer, "--json")
    assert found.exit_code == 0 and json.loads(found.stdout)["layer"] == layer, found.stderr
    wrong = dts(*words, "nothing.weight")
    assert wrong.exit_code == 2 and "no layer whose weight is called 'nothing.weight'" in said(wrong)
    assert dts("route", "low", "--remove", "--layer", layer).exit_code == 2
