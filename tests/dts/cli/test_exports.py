"""`dts export` on tiny models; what is written is loaded in tests/dts/exports."""

import json
import sys

import pytest

pytest.importorskip("transformers")

from tests.dts.exports.conftest import made  # noqa: E402, F401


def test_export_lora_says_what_it_wrote_and_lost(dts, made, tmp_path):  # noqa: F811
    folder = made("llama")
    words = ("export", "lora", folder / "adapter", "out", "--base", folder / "base")
    shown = dts(*words)
    assert shown.exit_code == 0 and "squared relative error 0\n" in shown.stdout, shown.output
    assert dts(*words).exit_code == 2  # what is there is not replaced
    result = json.loads(dts(*words, "--rank", 2, "--overwrite", "--json").stdout)
    assert 0 < result["squared_error"] < 1
    assert result["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert {one["how"] for one in result["parameters"]} == {"lora", "whole"}
    cut = dts(*words, "--rank", 2, "--overwrite")
    assert "What loses most" in cut.stdout and "rank 2 to 2" in cut.stdout


def test_export_lora_refuses_with_a_way_on(dts, made, tmp_path):  # noqa: F811
    folder = made("llama")
    assert (
        dts("compress", folder / "base", folder / "tuned", "-o", "a", "-s", "30%", "--method", "sketch").exit_code == 0
    )
    wrong = dts("export", "lora", "a", "out", "--base", folder / "base")
    assert wrong.exit_code == 2 and "--rank 64" in " ".join(wrong.stderr.split()) and not (tmp_path / "out").exists()
    assert dts("export", "lora", "a", "out", "--base", folder / "base", "--rank", 4).exit_code == 0
    assert dts("export", "lora", folder / "adapter", "other", "--base", folder / "tuned").exit_code == 2


def test_import_lora_makes_an_adapter_of_what_was_exported(dts, made, tmp_path):  # noqa: F811
    folder = made("llama")
    assert dts("export", "lora", folder / "adapter", "lora", "--base", folder / "base").exit_code == 0
    words = ("import", "lora", "lora", "--base", folder / "base", "--out", "again", "--name", "back")
    result = json.loads(dts(*words, "--target-error", "5%", "--json").stdout)
    assert result["name"] == "back" and 0 < result["squared_error"] <= 0.05
    assert dts("verify", "again", folder / "base").exit_code == 0
    assert dts(*words, "--target-error", "5%").exit_code == 2  # what is there is not replaced
    assert dts(*words, "--target-error", "5%", "--budget", "1%").exit_code == 2


def test_an_import_that_was_interrupted_goes_on(dts, made, tmp_path, monkeypatch):  # noqa: F811
    """What it had done lay there, and no option took it up."""
    from dts.adapter.work import KeptWork

    folder, keep = made("llama"), KeptWork.keep
    assert dts("export", "lora", folder / "adapter", "lora", "--base", folder / "base").exit_code == 0
    words = ("import", "lora", "lora", "--base", folder / "base", "--budget", "30%", "--out")
    assert dts(*words, "whole").exit_code == 0

    def stopped(*given, **more):
        keep(*given, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(KeptWork, "keep", stopped)
    assert dts(*words, "again").exit_code == 130 and (tmp_path / ".again.partial").is_dir()
    monkeypatch.setattr(KeptWork, "keep", keep)
    done = dts(*words, "again", "--resume")
    assert done.exit_code == 0 and not (tmp_path / ".again.partial").exists(), done.stderr
    model = "dts_model.safetensors"
    assert (tmp_path / "again" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()


def test_export_gguf_lora_says_what_is_left_out(dts, made, tmp_path):  # noqa: F811
    pytest.importorskip("gguf")
    folder = made("llama")
    words = ("export", "gguf-lora", folder / "adapter", "out.gguf", "--base", folder / "base")
    shown = dts(*words)
    assert shown.exit_code == 0 and "5 parameters are left out" in shown.stdout, shown.output
    assert (tmp_path / "out.gguf").read_bytes()[:4] == b"GGUF"
    assert dts(*words).exit_code == 2
    assert json.loads(dts(*words, "--overwrite", "--json").stdout)["squared_error"] > 0


def test_the_package_that_is_missing_is_named(dts, made, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "gguf", None)
    wrong = dts("export", "gguf-lora", made("llama") / "adapter", "out.gguf", "--base", made("llama") / "base")
    assert wrong.exit_code == 2 and "pip install gguf" in wrong.stderr and not list(tmp_path.iterdir())


@pytest.mark.exports
def test_export_torch_says_what_it_loses(dts, made, tmp_path):  # noqa: F811
    folder = made("llama")
    words = ("export", "torch", folder / "adapter", "--base", folder / "base", "--out")
    shown = dts(*words, "p.pt2", "--routing", "call", "--json")
    assert shown.exit_code == 0, shown.output
    result = json.loads(shown.stdout)
    assert result["tasks"] == {"tuned": 0} and result["inputs"] == ["slots", "weights", "input_ids", "attention_mask"]
    assert result["bytes"] == (tmp_path / "p.pt2").stat().st_size
    assert result["bytes_graph"] > 0 and result["bytes_factors"] > result["bytes_adapters"] > 0
    assert result["difference"] < 1e-4 and result["difference_of_fast_products"] > 0
    assert dts(*words, "p.pt2").exit_code == 2  # what is there is not replaced
    assert dts(*words, "p.onnx").exit_code == 2
    twice = dts("export", "torch", folder / "adapter", *words[2:], "q.pt2")
    assert twice.exit_code == 2 and "several adapters are called" in " ".join(twice.stderr.split())


def test_a_model_whose_inputs_cannot_be_made_up_is_sent_to_python(dts, made, tmp_path, monkeypatch):  # noqa: F811
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "main_input_name", "input_values")
    folder = made("llama")
    wrong = dts("export", "torch", folder / "adapter", "--base", folder / "base", "--out", "p.pt2")
    assert wrong.exit_code == 2 and "dts.exports.torch_program" in wrong.stderr and not list(tmp_path.iterdir())


@pytest.mark.exports
def test_the_package_for_onnx_is_named(dts, made, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    folder = made("llama")
    wrong = dts("export", "onnx", folder / "adapter", "--base", folder / "base", "--out", "p.onnx", "--routing", "call")
    assert wrong.exit_code == 2 and "dts-merge[onnx]" in wrong.stderr and not list(tmp_path.iterdir())
