"""What is planned is what is there: the base's pages and copies, a pass's tensors, and the least limit to the byte."""

import gc
import shutil
import sys

import pytest
import torch
from torch import nn

import dts
from dts.plan import TooSmall, plan
from dts.plan import plan as _plan_function
from dts.plan.base import base_size
from dts.plan.passes import NotFollowed, pass_size

transformers = pytest.importorskip("transformers")

SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
plan_file = sys.modules["dts.plan.plan"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A base, and two adapters of it with heads of their own."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(vocab_size=600, **SMALL)).save_pretrained(folder / "base")
    make = transformers.BertForSequenceClassification
    for name, classes in (("one", 3), ("two", 5)):
        tuned = make.from_pretrained(folder / "base", num_labels=classes)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        tuned.save_pretrained(folder / "tuned" / name)
        dts.compress(folder / "base", folder / "tuned" / name, out=folder / name, name=name, rank_fraction=0.5)
    return folder


@pytest.fixture
def steady(monkeypatch):
    """A process that takes 100 MB whenever it is asked."""
    monkeypatch.setattr(plan_file, "settled", lambda: 100_000_000)


def adapters(bert):
    return {name: bert / name for name in ("one", "two")}


def rows(made, task=False):
    return {row.what: row for row in made.rows if row.task == task}


def empty(kind, config):
    with torch.device("meta"):
        return getattr(transformers, kind)(config).eval()


# ---- the base ----------------------------------------------------------------------------------------------------


def in_file(tensor, path):
    """Whether a tensor's memory is pages of a file."""
    at = tensor.data_ptr()
    for row in open("/proc/self/maps"):
        start, stop = (int(end, 16) for end in row.split()[0].split("-"))
        if start <= at < stop:
            return str(path) in row
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_base_is_where_the_plan_says(bert, dtype, steady):
    """In the pages of its file, not a byte copied; or copied where it is converted."""
    options = {} if dtype is None else {"dtype": dtype}
    made = plan(bert / "base", adapters(bert), **options)
    model = dts.DTSModel.from_pretrained(bert / "base", **options).model
    parameters = list(model.parameters())
    mapped = sum(p.nbytes for p in parameters if in_file(p, bert / "base"))
    found = rows(made)
    assert mapped == (found["base"].nbytes if dtype is None else 0)
    assert found["base"].nbytes == sum(p.nbytes for p in parameters)
    assert found["base"].where == ("mapped" if dtype is None else "resident")
    assert found["buffers"].nbytes == sum(b.nbytes for b in model.buffers())
    assert found["heads"].nbytes == (32 + 1) * 2 * (4 if dtype is None else 2)
    assert made.dtype == ("float32" if dtype is None else "bfloat16")


def test_a_base_that_says_another_dtype_than_it_has_is_taken_as_it_is_stored(bert, tmp_path, steady):
    folder = tmp_path / "half"
    transformers.BertModel.from_pretrained(bert / "base", dtype=torch.bfloat16).save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("bfloat16", "float32"))
    made = plan(folder, {})
    assert made.dtype == "bfloat16" and rows(made)["base"].where == "mapped"
    model = dts.DTSModel.from_pretrained(folder, memory="1GB")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_experts_that_the_loader_stacks_are_copied_and_ties_count_once():
    config = transformers.MixtralConfig(
        vocab_size=40, num_key_value_heads=2, num_local_experts=3, tie_word_embeddings=True, **SMALL
    )
    model = empty("MixtralForCausalLM", config)
    on_disk = {}
    for name, p in model.state_dict().items():
        if "gate_up_proj" in name:
            for e in range(3):
                stem = name.replace("mlp.experts.gate_up_proj", f"block_sparse_moe.experts.{e}")
                on_disk |= {f"{stem}.w1.weight": torch.zeros(64, 32), f"{stem}.w3.weight": torch.zeros(64, 32)}
        elif "down_proj" in name:
            stem = name.replace("mlp.experts.down_proj", "block_sparse_moe.experts.{}.w2.weight")
            on_disk |= {stem.format(e): torch.zeros(32, 64) for e in range(3)}
        elif name != "lm_head.weight":
            on_disk[name.replace("mlp.gate.", "block_sparse_moe.gate.")] = torch.zeros(p.shape)
    checkpoint = dts.open_checkpoint(on_disk)
    for name, lazy in checkpoint.tensors.items():  # as if it were a mapped file
        checkpoint.tensors[name] = type(lazy)(lazy.shape, lazy.dtype, lazy.load, lambda: None)
    size = base_size(model, checkpoint, torch.float32)
    assert size.copied == 4 * 2 * 3 * 3 * 64 * 32 and size.lacking == 0
    assert size.mapped + size.copied == 4 * sum(p.numel() for p in model.parameters())
    assert base_size(model, checkpoint, torch.float32, mappable=False).mapped == 0
    assert checkpoint.main_dtype == torch.float32


# ---- a pass ------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """x [batch, length, 8] -> 32 -> 8, by hand."""

    main_input_name = "input_ids"

    def __init__(self, ask=False):
        super().__init__()
        self.words, self.up, self.down = nn.Embedding(10, 8), nn.Linear(8, 32), nn.Linear(32, 8)
        self.ask = ask

    def forward(self, input_ids, attention_mask):
        if self.ask and input_ids.max().item() > 3:
            return input_ids
        return self.down(torch.relu(self.up(self.words(input_ids))))


def test_a_pass_counts_what_is_alive_at_its_worst_moment():
    with torch.device("meta"):
        model = Two()
    token = 4 * 3 * 7  # bytes of a number of each
    # the product and its relu, while nothing lets go of the words
    assert pass_size(model, 3, 7).activations in (token * (8 + 32 + 32), token * (32 + 32))
    with torch.device("meta"), pytest.raises(NotFollowed, match="asks for a number"):
        pass_size(Two(ask=True), 3, 7)


@pytest.mark.parametrize("batch, length", [(2, 9), (5, 33)])
def test_the_cache_of_a_language_model_is_that_of_a_real_pass(batch, length):
    config = transformers.LlamaConfig(vocab_size=50, num_key_value_heads=2, **SMALL)
    size = pass_size(empty("LlamaForCausalLM", config), batch, length)
    assert size.cache == 2 * 2 * batch * 2 * length * 8 * 4  # keys and values, layers, heads
    real = transformers.LlamaForCausalLM(config)(torch.ones(batch, length, dtype=torch.long), use_cache=True)
    layers = real.past_key_values.layers
    assert size.cache == sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    assert size.activations > 0


@pytest.mark.parametrize(
    "kind, config, why",
    [
        ("T5ForConditionalGeneration", dict(d_model=32, num_layers=1, vocab_size=40), "encoder and a decoder"),
        ("Wav2Vec2Model", dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2), "input_values"),
    ],
)
def test_what_cannot_be_followed_is_said(kind, config, why):
    cls = getattr(transformers, kind)
    with pytest.raises(NotFollowed, match=why):
        pass_size(empty(kind, cls.config_class(**config)), 2, 8)


# ---- the plan ----------------------------------------------------------------------------------------------------


def test_the_smallest_limit_that_is_named_does_and_a_byte_less_does_not(bert, steady):
    with pytest.raises(TooSmall, match=r"process 100 MB, base .* the largest task") as caught:
        plan(bert / "base", adapters(bert), "1MB")
    least = caught.value.least
    made = plan(bert / "base", adapters(bert), least)
    assert made.total <= least and made.at_most == least
    assert [row.where for row in made.rows if row.task].count("on disk") == 1
    with pytest.raises(TooSmall, match=f"{least} bytes"):
        plan(bert / "base", adapters(bert), least - 1)
    whole = plan(bert / "base", adapters(bert))
    tasks = rows(whole, task=True)
    assert whole.total == whole.fixed + sum(row.nbytes for row in tasks.values()) and whole.room is None
    assert plan(bert / "base", adapters(bert), whole.total).resident == ["one", "two"]
    assert plan(bert / "base", adapters(bert), whole.total - 1).resident == ["one"]
    made = plan(bert / "base", adapters(bert), whole.total, pin=["two"])
    assert "pinned" in rows(made, task=True)["two"].note
    with pytest.raises(TooSmall, match="pinned tasks .*largest other task"):
        plan(bert / "base", adapters(bert), whole.total - 1, pin=["two"])


def test_what_is_not_known_is_not_counted_and_said(bert, steady, monkeypatch):
    def fail(*args):
        raise NotFollowed("it is a riddle")

    monkeypatch.setattr(plan_file, "pass_size", fail)
    monkeypatch.setattr(plan_file, "settled", lambda: None)
    made = plan(bert / "base", {})
    assert len(made.unknown) == 2 and "riddle" in str(made) and "this system does not say" in str(made)
    assert not {"activations", "cache", "process"} & rows(made).keys()
    monkeypatch.undo()
    made = plan(bert / "base", {}, device="cuda")
    assert "the driver of cuda" in made.unknown[0] and rows(made)["base"].where == "resident"


def test_a_row_is_no_longer_than_the_model_takes(tmp_path, steady):
    transformers.BertModel(transformers.BertConfig(max_position_embeddings=16, vocab_size=20, **SMALL)).save_pretrained(
        tmp_path
    )
    made = plan(tmp_path, {})
    assert made.length == 16 and not made.unknown
    with pytest.raises(ValueError, match="17 tokens is longer than the 16 that"):
        plan(tmp_path, {}, length=17)


def test_positions_of_robertas_kind_begin_behind_padding():
    from dts.integrations.positions import positions

    config = transformers.RobertaConfig(max_position_embeddings=16, vocab_size=20, pad_token_id=1, **SMALL)
    model = transformers.RobertaModel(config)
    assert positions(model) == 14 and model(input_ids=torch.full((1, 14), 5)).last_hidden_state.shape[1] == 14
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 15), 5))
    assert positions(transformers.BertModel(transformers.BertConfig(vocab_size=20, **SMALL))) == 512
    assert positions(torch.nn.Linear(2, 2)) is None


def test_a_prefix_takes_less(bert, steady):
    whole = rows(plan(bert / "base", adapters(bert)), task=True)
    share = dts.Adapter.load(bert / "one").amr / 2
    cut = rows(plan(bert / "base", adapters(bert), prefix=share), task=True)
    assert "prefix of" in cut["one"].note and cut["one"].nbytes < whole["one"].nbytes
    model = dts.DTSModel.from_pretrained(bert / "base", adapters(bert), memory="1GB", prefix=share)
    taken = model._shelf.residents.loaded["one"]
    assert 0.7 * cut["one"].nbytes < taken <= cut["one"].nbytes  # small matrices are left out whole


def test_all_that_is_wrong_is_said_at_once(bert, tmp_path, steady):
    with pytest.raises(ValueError, match=r"memory is 0 bytes; a batch .* not 0 of 0; prefix .*; pinned \['x'\]"):
        plan(bert / "base", {}, 0, batch=0, length=0, prefix=2, pin=["x"])
    with pytest.raises(ValueError, match="(?s)'x'.*'y'"):
        plan(bert / "base", {"x": tmp_path, "y": bert / "base"})
    with pytest.raises(ValueError, match="in memory and not on disk"):
        plan(bert / "base", {"x": dts.compress(bert / "base", bert / "tuned" / "one", rank_fraction=0.5)})
    with pytest.raises(ValueError, match="in bytes"):
        plan(bert / "base", {}, "5%")
    with pytest.raises(ValueError, match="no dtype"):
        plan(bert / "base", {}, dtype="float99")
    other = tmp_path / "other"
    shutil.copytree(bert / "base", other)
    transformers.BertModel(transformers.BertConfig(vocab_size=600, **SMALL)).save_pretrained(other)
    with pytest.raises(ValueError, match="is not the base of"):
        plan(other, adapters(bert))


def test_a_model_says_its_plan_before_it_is_loaded_and_keeps_to_it(bert, capsys):
    least = None
    try:
        plan(bert / "base", adapters(bert), "1MB", batch=2, length=8)
    except TooSmall as error:
        least = error.least
    gc.collect()
    with pytest.raises(TooSmall):
        dts.DTSModel.from_pretrained(bert / "base", adapters(bert), memory="1MB")
    assert "in memory" not in capsys.readouterr().err
    memory = least + 20_000_000  # the process may have grown meanwhile
    model = dts.DTSModel.from_pretrained(bert / "base", adapters(bert), memory=memory, batch=2, length=8, pin=["two"])
    text = capsys.readouterr().err
    assert "two" in text and "pinned" in text and "of" in text.splitlines()[0]
    assert model.plan.limit == memory and model.tasks == ["one", "two"]
    with torch.no_grad():
        logits = model(input_ids=torch.ones(2, 8, dtype=torch.long), tasks=["one", "two"]).logits
    assert logits.shape == (2, 5)
    assert _plan_function is dts.plan.plan


@pytest.mark.parametrize(
    "options",
    [
        {"memory": 1.5e9},
        {"memory": float("nan")},
        {"memory": float("inf")},
        {"memory": True},
        {"memory": "9" * 400 + "GB"},
        {"memory": "-1GiB"},
        {"batch": 2.5},
        {"batch": True},
        {"length": 1.0},
        {"batch": 10**30},
        {"device": "gpu"},
        {"pin": "mood"},
        {"pin": None},
    ],
)
def test_numbers_and_names_that_make_no_sense_are_refused(bert, options, steady):
    with pytest.raises(
        ValueError, match="whole number|no machine holds|larger than any|not understood|none of this name|pin is a list"
    ):
        plan(bert / "base", adapters(bert), **{"memory": "900GB"} | options)


@pytest.mark.parametrize("option", [{"tp_plan": "auto"}, {"distributed_config": {"tp_size": 2}}])
def test_a_base_in_several_processes_is_not_planned(option):
    with pytest.raises(ValueError, match=f"a base in one process, and {next(iter(option))} splits it over several"):
        dts.DTSModel.from_pretrained("nowhere", {}, memory="1GB", **option)
