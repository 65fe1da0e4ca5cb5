"""Tasks over bases that torchao and bitsandbytes quantised, and adapters that were made for them."""

import copy
import json
import re
import warnings

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import dts
from dts.adapter import write_checkpoint
from dts.cli.app import app
from dts.nn.base import QuantisedBase
from dts.nn.dequantise import dequantise, quantised_weights
from dts.sites import dequantised
from tests.quantised.conftest import CLOSE, FAST, QUANTISERS, batch, make

pytestmark = pytest.mark.quantised
KINDS = list(QUANTISERS)


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_adds_what_it_adds_to_the_numbers(family, kind):
    """Each row another task, over the quantised base: as the merged floating-point model of the same numbers."""
    model = dts.DTSModel.from_pretrained(
        family.base, adapters={"a": family.folder / "adapter"}, quantization_config=QUANTISERS[kind]()
    )
    if not quantised_weights(model.model):
        assert "gpt2" in str(family.folder) and "torchao" in kind  # whose layers torchao leaves alone
        return
    merged = copy.deepcopy(model).merge_and_unload("a", dequantise=True)
    ids = batch()
    numbers = family.load(kind)
    assert len(dequantise(numbers)) >= 8
    base = dts.DTSModel(numbers)
    base.load_task("a", family.folder / "adapter")
    logits = model(ids, tasks=["a", None, "a", None]).logits
    effect = far(base(ids, tasks="a").logits, base(ids).logits)
    assert effect > 0.1
    assert far(logits[[0, 2]], merged(ids).logits[[0, 2]]) < 0.02
    assert far(logits[[1, 3]], base(ids).logits[[1, 3]]) < 0.02
    status = model.status()
    assert not status["grouped"] and not status["once_a_task"]
    assert sum(n for name, n in status["layers"].items() if name.startswith("DTSQuantised")) >= 8
    with pytest.raises(ValueError, match="cannot write into quantised weights"):
        model.merge_and_unload("a")


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_is_saved_and_loaded_as_any_other(llama, kind, tmp_path):
    model = dts.DTSModel.from_pretrained(
        llama.base, adapters={"a": llama.folder / "adapter"}, quantization_config=QUANTISERS[kind]()
    )
    merged = model.merge_and_unload("a", dequantise=True)
    merged.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in config
    again = llama.dense(tmp_path)
    torch.testing.assert_close(again(batch()).logits, merged(batch()).logits)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "bitsandbytes" in kind])
def test_the_numbers_are_the_librarys_own(llama, kind):
    import bitsandbytes

    layer = llama.load(kind).model.layers[0].mlp.down_proj
    if "int8" in kind:
        expected = bitsandbytes.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
    else:
        expected = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    before = copy.deepcopy(layer.weight.data)
    torch.testing.assert_close(dequantised(layer), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(layer.weight.data, before)


def test_codes_that_its_library_rewrote_while_it_ran_are_still_read(llama):
    """On some CPUs bitsandbytes stores its codes anew, more coarsely, when a layer first runs."""
    model = llama.load("bitsandbytes nf4")
    layer = model.model.layers[0].mlp.down_proj
    before = dequantised(layer)
    logits = model(batch()).logits
    assert far(dequantised(layer), before) < 0.005
    torch.testing.assert_close(model(batch()).logits, logits)  # reading them changed nothing


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_the_base_over_its_quantised_folder(family, kind):
    folder = family.quantised(kind)
    if "quantization_config" not in json.loads((folder / "config.json").read_text()):
        return
    if "gpt2" in str(family.folder) and "torchao" in kind:
        return
    with pytest.warns(QuantisedBase, match=r"is taken for a quantised form of base, which tuned was made for: \d+ ten"):
        model = dts.DTSModel.from_pretrained(folder, adapters={"a": family.folder / "adapter"})
    straight = dts.DTSModel.from_pretrained(
        family.base, adapters={"a": family.folder / "adapter"}, quantization_config=QUANTISERS[kind]()
    )
    torch.testing.assert_close(model(batch(), tasks="a").logits, straight(batch(), tasks="a").logits)


@pytest.mark.parametrize("kind", ["torchao int4", "bitsandbytes nf4"])
def test_another_models_adapter_is_refused(llama, kind, tmp_path):
    """Of a model of the same shapes, however near its own task is."""
    torch.manual_seed(1)
    other = make(tmp_path / "other", "LlamaForCausalLM", json.loads((llama.base / "config.json").read_text()))
    base = other.dense()
    for p in base.parameters():
        p += 0.3 * torch.randn_like(p)
    base.save_pretrained(tmp_path / "base")
    tuned = copy.deepcopy(base)
    for p in tuned.parameters():
        p += 0.02 * torch.randn_like(p)
    tuned.save_pretrained(tmp_path / "tuned")
    adapter = dts.compress(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "adapter", **FAST)
    folder = llama.quantised(kind)
    with pytest.raises(ValueError, match=r"\(which is quantised\) is not the base of: tuned was made for") as error:
        dts.DTSModel.from_pretrained(folder, adapters={"a": adapter})
    assert "is other than here" in str(error.value)
    with pytest.raises(ValueError, match="this is no quantised form of that"):
        dts.DTSModel.from_pretrained(folder, adapters={"a": adapter}, quantised_from=tmp_path / "base")


@pytest.mark.parametrize("kind", ["torchao int8", "bitsandbytes nf4"])
def test_a_base_of_which_nothing_tells_is_declared(llama, kind):
    folder, adapter = llama.quantised(kind), llama.folder / "adapter-frozen"
    with pytest.raises(ValueError, match="nothing was left unquantised by which to tell; .*quantised_from="):
        dts.DTSModel.from_pretrained(folder, adapters={"a": adapter})
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantisedBase)
        model = dts.DTSModel.from_pretrained(folder, adapters={"a": adapter}, quantised_from=llama.base)
    full = dts.DTSModel.from_pretrained(llama.base, adapters={"a": adapter})
    assert far(model(batch(), tasks="a").logits, full(batch(), tasks="a").logits) < 0.3
    with pytest.raises(ValueError, match="was made for"):
        dts.DTSModel.from_pretrained(folder, adapters={"a": adapter}, quantised_from=llama.tuned)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_made_for_the_quantised_base_repairs_it(small, close, kind, tmp_path):
    folder = small.quantised(kind)
    with pytest.raises(dts.CheckpointError, match="is quantised by"):
        dts.compress(folder, small.tuned, out=tmp_path / "x")
    made = dts.compress(folder, small.tuned, out=tmp_path / "made", base_is="quantised", **CLOSE)
    assert made.config["base"]["quantised"] == kind.split()[0]
    want = small.dense(small.tuned)(batch()).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantisedBase)
        model = dts.DTSModel.from_pretrained(folder, adapters={"made": tmp_path / "made"})
    with pytest.warns(QuantisedBase):
        model.load_task("usual", close)
    made_far, usual_far = (far(model(batch(), tasks=task).logits, want) for task in ("made", "usual"))
    assert made_far < (1.0 if "int8" in kind else 0.5) * usual_far, (made_far, usual_far)
    # in memory it is the same base
    again = dts.compress(small.load(kind), small.tuned, base_is="quantised", **FAST)
    assert again.config["base"]["fingerprint"] == made.config["base"]["fingerprint"]
    # and where the base is quantised while it is loaded
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantisedBase)
        dts.DTSModel.from_pretrained(small.base, adapters={"a": made}, quantization_config=QUANTISERS[kind]())
    # over the base as it was before, or codes of another kind, it is the wrong one
    with pytest.raises(
        ValueError, match=f"made for the numbers of a base quantised by {kind.split()[0]}, and this one"
    ):
        dts.DTSModel.from_pretrained(small.base, adapters={"a": made})
    other = "torchao int8" if kind != "torchao int8" else "torchao int4"
    with pytest.warns(QuantisedBase, match="what it repairs is not what is wrong here"):
        dts.DTSModel.from_pretrained(small.quantised(other), adapters={"a": made})


def test_a_full_model_of_an_adapter_made_for_a_quantised_base(llama, tmp_path):
    folder = llama.quantised("torchao int4")
    adapter = dts.compress(folder, llama.tuned, out=tmp_path / "adapter", base_is="quantised", **FAST)
    assert adapter.verify(folder, llama.tuned).ok
    write_checkpoint(folder, adapter, tmp_path / "again")
    model = dts.DTSModel.from_pretrained(folder, adapters={"a": adapter})
    torch.testing.assert_close(
        llama.dense(tmp_path / "again")(batch()).logits, model(batch(), tasks="a").logits, rtol=1e-3, atol=1e-3
    )
    with pytest.raises(dts.Mismatch):
        write_checkpoint(llama.base, adapter, tmp_path / "wrong")


def test_from_the_command_line(llama, tmp_path):
    def run(*words) -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(word) for word in words], prog_name="dts")
        return done.exit_code, " ".join(re.sub("[│╭╮╰╯─]", " ", done.output).split())

    folder, out = llama.quantised("bitsandbytes nf4"), tmp_path / "adapter"
    code, words = run("compress", folder, llama.tuned, "-o", out, "--rank-fraction", "0.4", "-m", "paper")
    assert code != 0 and "is quantised by bitsandbytes" in words and "--base-is quantised" in words
    more = ("--rank-fraction", "0.4", "-m", "paper", "--base-is", "quantised")
    assert run("compress", folder, llama.tuned, "-o", out, *more)[0] == 0
    assert run("verify", out, folder, llama.tuned)[0] == 0
    file = tmp_path / "many.yaml"
    file.write_text(
        f"base: {folder}\nbase_is: quantised\nout: several\nmethod: paper\nrank_fraction: 40%\n"
        f"finetunes: [{{path: {llama.tuned}, name: one}}]"
    )
    assert run("compress", "--config", file)[0] == 0
    made, alone = tmp_path / "several" / "one", out
    assert (made / "dts_model.safetensors").read_bytes() == (alone / "dts_model.safetensors").read_bytes()
    assert dts.Adapter.load(made).config["base"] == dts.Adapter.load(alone).config["base"]
    code, words = run("compress", "--config", file)
    assert code == 0 and "there already" in words
    assert run("verify", out, llama.base)[0] == 1
    assert run("apply", folder, out, "-o", tmp_path / "again")[0] == 0
    assert "quantization_config" not in (tmp_path / "again" / "config.json").read_text()
    code, words = run("compress", llama.base, llama.tuned, "-o", tmp_path / "x", *more)
    assert code != 0 and "is not quantised: leave base_is (--base-is) out" in words


def test_quantised_by_hand_after_tasks_were_loaded(llama):
    """torchao's quantize_ on the model itself takes the head too, which the model ties to its table."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    before = dts.DTSModel.from_pretrained(llama.base, adapters={"a": llama.folder / "adapter"})
    want = before(batch(), tasks=["a", None, None, "a"]).logits
    quantize_(before.model, Int8WeightOnlyConfig())
    assert far(before(batch(), tasks=["a", None, None, "a"]).logits, want) < 0.05
    base = llama.dense()
    quantize_(base, Int8WeightOnlyConfig())
    after = dts.DTSModel(base)
    after.load_task("a", llama.folder / "adapter")
    assert far(after(batch(), tasks=["a", None, None, "a"]).logits, want) < 0.05
    assert isinstance(base.lm_head, nn.Linear)


@pytest.mark.parametrize("kind", ["bitsandbytes 8 bit", "bitsandbytes nf4"])
def test_a_quantised_embedding(kind):
    import bitsandbytes as bnb

    torch.manual_seed(0)
    table = nn.Embedding(64, 128)
    if "8" in kind:
        layer = bnb.nn.Embedding8bit(64, 128)
        layer.weight = bnb.nn.Int8Params(table.weight.data, requires_grad=False, has_fp16_weights=False).to("cpu")
    else:
        layer = bnb.nn.EmbeddingNF4(64, 128)
        layer.weight = bnb.nn.Params4bit(table.weight.data, requires_grad=False, quant_type="nf4", module=layer)
        layer.weight = layer.weight.to("cpu")
    ids = torch.arange(6).view(2, 3)
    plain, tuned = layer(ids), copy.deepcopy(table)
    tuned.weight += torch.randn(64, 2) @ torch.randn(2, 128)
    adapter = dts.compress(nn.Sequential(table), nn.Sequential(tuned), **FAST)
    model = dts.DTSModel(nn.Sequential(layer))
    model.load_task("a", adapter)
    delta = adapter.entries["0.weight"].delta()
    torch.testing.assert_close(model(ids, tasks=["a", None]), torch.stack([plain[0] + delta[ids[0]], plain[1]]))
    merged = model.merge_and_unload("a", dequantise=True)
    assert type(merged[0]) is nn.Embedding
    torch.testing.assert_close(merged(ids), plain + delta[ids], rtol=1e-4, atol=1e-4)
