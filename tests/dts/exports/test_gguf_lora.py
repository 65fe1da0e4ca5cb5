"""GGUF LoRAs, read back with gguf's own reader: B A is the adapter's difference in llama.cpp's order of rows."""

import resource

import pytest
import torch

import dts
from dts.exports import NotExact, export_gguf_lora
from tests.dts.exports.conftest import base_of

gguf = pytest.importorskip("gguf", reason="reads what is exported with llama.cpp's package: pip install gguf")

HEADS = {"attn_q": 2, "attn_k": 1}  # of the tiny Llama


def read(path):
    """(architecture, type, alpha, {name: (a, b)})."""
    reader = gguf.GGUFReader(path)
    fields = [reader.fields[key].contents() for key in ("general.architecture", "adapter.type", "adapter.lora.alpha")]
    assert reader.fields["general.type"].contents() == "adapter"
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()).float() for tensor in reader.tensors}
    names = {name.rpartition(".lora_")[0] for name in tensors}
    return *fields, {name: (tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]) for name in names}


def rotated(delta, heads):
    """Row by row: of each head llama.cpp has element i of the first half, then i of the second."""
    size = delta.shape[0] // heads
    rows = [head * size + half * size // 2 + i for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return delta[rows]


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_the_factors_are_the_difference(made, tmp_path, name):
    folder = made(name)
    result = export_gguf_lora(folder / "adapter", folder / "base", tmp_path / "lora.gguf")
    architecture, kind, alpha, layers = read(tmp_path / "lora.gguf")
    assert (architecture, kind, alpha) == (name, "lora", 0)
    assert result.nbytes == (tmp_path / "lora.gguf").stat().st_size and not list(tmp_path.glob(".*"))
    architecture = gguf.MODEL_ARCH[name.upper()]
    names = gguf.get_tensor_name_map(architecture, 2)
    entries = dts.Adapter.load(folder / "adapter").entries
    kept = {one.name for one in result.parameters if one.how == "lora"}
    assert len(layers) == len(kept) >= 8
    for parameter in kept:
        there = names.get_name(parameter, try_suffixes=(".weight",))
        (a, b), delta = layers[there], entries[parameter].delta()
        if there == "token_embd.weight":
            found = a @ b.T  # rows of a are looked up
        elif name == "gpt2":
            found = (b @ a).T  # Conv1D is stored [in, out], a LoRA never
        else:
            found = b @ a
        end = there.split(".")[-2]
        expected = rotated(delta, HEADS[end]) if name == "llama" and end in HEADS else delta
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=parameter)
    assert ("token_embd.weight" in layers) == (name == "llama")  # the others tie their output to it


def test_what_llama_cpp_cannot_hold_is_stated(made, tmp_path):
    folder = made("llama")
    result = export_gguf_lora(folder / "adapter", folder / "base", tmp_path / "lora.gguf")
    assert {one.name.rpartition(".")[0].rpartition(".")[2] for one in result.left_out} == {
        "input_layernorm",
        "post_attention_layernorm",
        "norm",
    }
    deltas = [e.delta() for e in dts.Adapter.load(folder / "adapter").entries.values() if e.kind != "tied"]
    vectors = sum(float(d.square().sum()) for d in deltas if d.dim() == 1)
    assert result.squared_error == pytest.approx(vectors / sum(float(d.square().sum()) for d in deltas), rel=1e-4)
    assert result.squared_error > 0
    cut = export_gguf_lora(folder / "adapter", folder / "base", tmp_path / "cut.gguf", rank=2, dtype="float16")
    assert cut.squared_error > 2 * result.squared_error and cut.nbytes < result.nbytes / 2


def test_a_tensor_that_is_used_twice_counts_once(made, tmp_path):
    """The tied embedding is left out in both of its uses."""
    folder = made("qwen2")
    result = export_gguf_lora(folder / "adapter", folder / "base", tmp_path / "lora.gguf")
    entries = [e for e in dts.Adapter.load(folder / "adapter").entries.values() if e.kind != "tied"]
    lost = {one.name for one in result.left_out}
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= lost
    energies = {e.name: float(e.delta().square().sum()) for e in entries}
    assert result.squared_error == pytest.approx(
        sum(energies[n] for n in energies if n in lost) / sum(energies.values())
    )


def test_bad_input_is_refused(made, tmp_path):
    folder, out = made("llama"), tmp_path / "lora.gguf"
    with pytest.raises(ValueError, match="BertForSequenceClassification is not known here, only LlamaForCausalLM"):
        export_gguf_lora(made("bert") / "adapter", made("bert") / "base", out)
    with pytest.raises(ValueError, match="dtype is float32 or float16, not 'bfloat16'"):
        export_gguf_lora(folder / "adapter", folder / "base", out, dtype="bfloat16")
    sketch = dts.compress(folder / "base", folder / "tuned", method="sketch", budget=0.3)
    with pytest.raises(NotExact):
        export_gguf_lora(sketch, folder / "base", out)
    assert not list(tmp_path.iterdir())
    out.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError):
            export_gguf_lora(folder / "adapter", folder / "base", out, overwrite=overwrite)
    assert out.read_text() == "mine"


def test_two_runs_that_write_one_file_do_not_meet(made, tmp_path):
    """One took away what the other was writing."""
    folder, out, inner = made("llama"), tmp_path / "out.gguf", []

    def again(done, total, name):
        if not inner:
            inner.append(export_gguf_lora(folder / "adapter", folder / "base", out, rank=1))

    export_gguf_lora(folder / "adapter", folder / "base", out, rank=2, progress=again)
    assert out.stat().st_size > inner[0].nbytes and [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_a_file_larger_than_allowed_is_told_in_words(made, tmp_path):
    """numpy says of a full disk how many elements it could not write, and no more."""
    folder, out = made("llama"), tmp_path / "out.gguf"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="a file of .*out.gguf is larger .*nothing was written there.*Choose another"):
            export_gguf_lora(folder / "adapter", folder / "base", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_no_matrix_is_refused(made, tmp_path):
    folder = made("llama")
    base = base_of(folder.parent, "llama")
    tuned = base_of(folder.parent, "llama")
    with torch.no_grad():
        tuned.model.norm.weight += 0.1
    adapter = dts.compress(base, tuned, budget=1.0)
    with pytest.raises(ValueError, match="changes nothing that llama.cpp applies a LoRA to"):
        export_gguf_lora(adapter, base, tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())
