"""Models whose code lies beside their weights: run where that is allowed, carried by `apply`, never by an adapter."""

import dataclasses
import json
import sys

import pytest
import torch
from typer.testing import CliRunner

import dts
from dts.adapter import write_checkpoint
from dts.adapter.code import OtherCode, with_code_of
from dts.cli.app import app
from tests.dts.cli.said import said
from tests.dts.serve.asking import ask

transformers = pytest.importorskip("transformers")

LAYER = """
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, x):
        return x + self.dense(x).tanh()
"""
MODEL = """
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from .layers_small import Block


class SmallConfig(PretrainedConfig):
    model_type = "small-own"

    def __init__(self, vocab_size=50, width=32, **more):
        self.vocab_size, self.width = vocab_size, width
        super().__init__(**more)


class SmallPre(PreTrainedModel):
    config_class = SmallConfig
    base_model_prefix = "small"

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.1)
            nn.init.zeros_(module.bias)


class SmallModel(SmallPre):
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.block = nn.ModuleList([Block(config.width)])
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, **more):
        return BaseModelOutput(self.block[0](self.embed(input_ids)))


class SmallForSequenceClassification(SmallPre):
    def __init__(self, config):
        super().__init__(config)
        self.small = SmallModel(config)
        self.classifier = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, input_ids, labels=None, **more):
        return SequenceClassifierOutput(logits=self.classifier(self.small(input_ids).last_hidden_state.mean(1)))
"""
CLASSES = {"AutoConfig": "SmallConfig", "AutoModel": "SmallModel"} | {
    "AutoModelForSequenceClassification": "SmallForSequenceClassification"
}
IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with ``base``, ``tuned`` and the adapter between them."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "cache")
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:  # of another test's cache
        monkeypatch.delitem(sys.modules, name)
    source = tmp_path / "source"
    source.mkdir()
    (source / "modeling_small.py").write_text(MODEL)
    (source / "layers_small.py").write_text(LAYER)
    auto_map = {auto: f"modeling_small.{name}" for auto, name in CLASSES.items()}
    (source / "config.json").write_text(json.dumps({"model_type": "small-own", "auto_map": auto_map}))
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=True)
    transformers.AutoModel.from_config(config, trust_remote_code=True).save_pretrained(tmp_path / "base")
    tuned = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", trust_remote_code=True, num_labels=3
    )
    with torch.no_grad():
        for value in tuned.parameters():
            value.add_(0.01 * torch.randn_like(value))
    tuned.save_pretrained(tmp_path / "tuned")
    dts.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter", rank_fraction=1.0)
    return tmp_path


def test_it_runs_where_that_is_allowed_and_is_carried(own):
    with pytest.raises(ValueError, match="none of transformers'.*trust_remote_code=True") as refused:
        dts.DTSModel.from_pretrained(own / "base", adapters={"a": own / "adapter"})
    assert str(own / "base") in str(refused.value)
    model = dts.DTSModel.from_pretrained(own / "base", adapters={"a": own / "adapter"}, trust_remote_code=True)
    write_checkpoint(own / "base", dts.Adapter.load(own / "adapter"), own / "full")
    full = transformers.AutoModelForSequenceClassification.from_pretrained(own / "full", trust_remote_code=True).eval()
    assert torch.allclose(model(IDS, tasks=["a", "a"]).logits, full(IDS).logits, atol=1e-5)
    model.set_task("a")
    model.save_pretrained(own / "saved")
    for folder in ("full", "saved"):
        assert (own / folder / "layers_small.py").read_text() == LAYER
        assert (own / folder / "modeling_small.py").is_file()


def test_it_is_declared(own):
    assert "trust_remote_code=True)" in (own / "adapter/README.md").read_text()
    assert not list((own / "adapter").glob("*.py"))
    words = ["apply", str(own / "base"), str(own / "adapter"), "-o", str(own / "said")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert "own code, layers_small.py, modeling_small.py: loads with trust_remote_code=True" in done.stdout


def test_eval_runs_it_where_that_is_allowed(own):
    rows = [{"input_ids": [i % 50, 3, 4 + i], "label": i % 3} for i in range(20)]
    (own / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["eval", *(str(own / name) for name in ("base", "tuned", "adapter")), "--data", str(own / "data.jsonl")]
    refused = CliRunner().invoke(app, words)
    told = "".join(refused.stderr.replace("│", "").split())  # wherever the box breaks its lines, paths too
    assert refused.exit_code == 2 and str(own / "tuned") in told and "--trust-remote-code" in told
    done = CliRunner().invoke(app, [*words, "--trust-remote-code", "--json"])
    assert done.exit_code == 0, done.stderr
    adapter = next(row for row in json.loads(done.stdout)["models"] if row["what"] == "adapter")
    assert adapter["agreement"] == 1 and adapter["kl"] < 1e-4


def test_route_runs_the_bases_where_that_is_allowed_and_never_an_adapters(own):
    from dts.evaluate.models import image_processor_of, tokenizer_of

    rows = [{"input_ids": [i % 50, 3, 4 + i]} for i in range(20)]
    (own / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["route", str(own / "adapter"), "--base", str(own / "base"), "--examples", str(own / "data.jsonl")]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2 and "--trust-remote-code" in said(refused)
    done = CliRunner().invoke(app, [*words, "--trust-remote-code", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["layer"] == "block.0.dense.weight"
    for place in ("adapter", "base"):
        (own / place / "tokens.py").write_text(f"raise SystemExit({place!r})")
        (own / place / "tokenizer.json").write_text("{}")
        own_code = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tokens.Own", None]}}
        (own / place / "tokenizer_config.json").write_text(json.dumps(own_code))
    with pytest.raises(SystemExit, match="base"):
        tokenizer_of(own / "adapter", own / "base", trusted=True)
    for place in ("adapter", "base"):
        own_code = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "tokens.Own"}}
        (own / place / "preprocessor_config.json").write_text(json.dumps(own_code))
    with pytest.raises(SystemExit, match="base"):
        image_processor_of(None, own / "base", trusted=True)
    with pytest.raises(ValueError, match="trust_remote_code"):
        image_processor_of(own / "adapter", own / "base", trusted=True)


def test_plan_and_compress_say_what_it_is_for(own):
    adapter, base = str(own / "adapter"), str(own / "base")
    refused = CliRunner().invoke(app, ["plan", base, adapter])
    assert refused.exit_code == 2 and "--trust-remote-code" in said(refused)
    done = CliRunner().invoke(app, ["plan", base, adapter, "--trust-remote-code", "--json"])
    assert done.exit_code == 0, done.stderr
    assert {"base", "adapter"} <= {row["what"] for row in json.loads(done.stdout)["rows"]}
    words = [
        "compress",
        base,
        str(own / "tuned"),
        "-o",
        str(own / "other"),
        "--rank-fraction",
        "1",
        "--trust-remote-code",
    ]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2 and "--route-with" in refused.stderr
    (own / "data.jsonl").write_text("\n".join(json.dumps({"input_ids": [i, 3, 4]}) for i in range(20)))
    done = CliRunner().invoke(app, [*words, "--route-with", str(own / "data.jsonl")])
    assert done.exit_code == 0 and dts.Adapter.load(own / "other").inputs.examples == 20, done.stderr


def test_serve_runs_it_where_that_is_allowed(own):
    from dts.serve.options import Options
    from dts.serve.start import serve

    options = Options(str(own / "base"), own / "served", name="base", device="cpu")
    (own / "served").mkdir()
    (own / "adapter").rename(own / "served/a")
    with pytest.raises(ValueError, match="none of transformers'.*--trust-remote-code"):
        serve(options)
    served = serve(dataclasses.replace(options, trusted=True))
    served.engine.start()
    job = ask(served, "classify", "a", IDS[0].tolist())
    (answer,) = job.collected.events()
    assert served.engine.drain(30)
    model = dts.DTSModel.from_pretrained(own / "base", adapters={"a": own / "served/a"}, trust_remote_code=True)
    assert torch.allclose(torch.tensor(answer.value), model(IDS[:1], tasks="a").logits[0], atol=1e-5)


def test_a_mixtures_head_is_made_without_it_or_where_it_was_allowed(own):
    from dts.checkpoint import open_checkpoint
    from dts.unseen.mix import _served

    with pytest.raises(ValueError, match=r"trust_remote_code.*--head nearest.*add_task\(\)"):
        _served(open_checkpoint(own / "base"), dts.Adapter.load(own / "adapter"))
    mixed = dts.unseen.mix(
        {"adapter": dts.Adapter.load(own / "adapter")}, {"adapter": 1.0}, base=own / "base", head="nearest"
    )
    assert "classifier.weight" in mixed.entries


def test_code_of_the_fine_tune_alone_is_not_carried(own):
    (own / "tuned/layers_small.py").write_text(LAYER + "\n# otherwise\n")
    with pytest.warns(OtherCode, match="code that is not the base's .layers_small.py., and an adapter carries none"):
        dts.compress(own / "base", own / "tuned", rank_fraction=0.5)


def test_a_config_from_anyone_names_no_other_code():
    base = {"auto_map": {"AutoModel": "modeling_small.SmallModel"}}
    given = {
        "auto_map": {
            "AutoModel": "else/where--modeling_other.Other",
            "AutoModelForCausalLM": "org/base--modeling_small.SmallForCausalLM",
            "AutoTokenizer": ["tokens.Slow", None],
        },
        "width": 3,
    }
    kept = {"width": 3, "auto_map": {"AutoModelForCausalLM": "modeling_small.SmallForCausalLM"}}
    assert with_code_of(base, given) == kept
    assert with_code_of({}, given) == {"width": 3} and with_code_of(base, {"width": 3}) == {"width": 3}
    hub = {"auto_map": {"AutoModel": "org/base--modeling_small.SmallModel"}}
    assert with_code_of(hub, base) == hub
