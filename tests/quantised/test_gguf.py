"""Models that transformers reads from GGUF, dequantised while they are loaded."""

import warnings

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

import dts
from dts.adapter import write_checkpoint
from dts.nn.base import QuantisedBase
from tests.quantised.conftest import CLOSE, Family, batch

pytestmark = pytest.mark.quantised
HEADS = 4
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def turned(weight: np.ndarray) -> np.ndarray:
    """Rows of queries and keys in the order that llama.cpp rotates them in."""
    rows, columns = weight.shape
    return weight.reshape(HEADS, 2, rows // HEADS // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(family: Family, kind: GGMLQuantizationType):
    """The base as a converter writes it: matrices quantised, vectors in float32."""
    model = family.dense()
    config = model.config
    path = family.folder / f"base-{kind.name}.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_name("base")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    for name, tensor in model.state_dict().items():
        stem, values = name.removesuffix(".weight"), tensor.numpy()
        if stem in TOP:
            stem = TOP[stem]
        else:
            _, _, block, inner = stem.split(".", 3)
            stem = f"blk.{block}.{NAMES[inner]}"
        if stem.endswith(("attn_q", "attn_k")):
            values = turned(values)
        if values.ndim == 2:
            writer.add_tensor(f"{stem}.weight", quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{stem}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def four_bit(llama):
    return write_gguf(llama, GGMLQuantizationType.Q4_0)


def loaded(path, adapters, **options):
    return dts.DTSModel.from_pretrained(path.parent, adapters=adapters, gguf_file=path.name, **options)


def test_a_task_over_a_gguf_base(llama, four_bit):
    with pytest.warns(QuantisedBase, match="taken for a quantised form of base"):
        model = loaded(four_bit, {"a": llama.folder / "adapter"})
    full = dts.DTSModel.from_pretrained(llama.base, adapters={"a": llama.folder / "adapter"})
    rows = ["a", None, "a", None]
    ours, theirs = model(batch(), tasks=rows).logits, full(batch(), tasks=rows).logits
    assert (ours - theirs).norm() < 0.4 * theirs.norm()
    assert (full(batch(), tasks="a").logits - full(batch()).logits).norm() > 0.3 * theirs.norm()
    alone = model(batch(), tasks="a").logits
    merged = model.merge_and_unload("a")  # its weights are numbers by now
    torch.testing.assert_close(merged(batch()).logits, alone, rtol=1e-3, atol=1e-3)


def test_a_gguf_base_of_which_nothing_tells_is_declared(llama, four_bit):
    adapter = llama.folder / "adapter-frozen"
    with pytest.raises(ValueError, match="quantised_from="):
        loaded(four_bit, {"a": adapter})
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantisedBase)
        loaded(four_bit, {"a": adapter}, quantised_from=llama.base)


def test_an_adapter_made_for_a_gguf_base(small, close, tmp_path):
    path = write_gguf(small, GGMLQuantizationType.Q4_0)
    with pytest.raises(dts.CheckpointError, match="is a GGUF file"):
        dts.compress(path, small.tuned, out=tmp_path / "x")
    made = dts.compress(path, small.tuned, out=tmp_path / "made", base_is="quantised", **CLOSE)
    assert made.config["base"]["quantised"] == "GGUF"
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantisedBase)
        model = loaded(path, {"made": made})
    with pytest.warns(QuantisedBase):
        model.load_task("usual", close)
    want = small.dense(small.tuned)(batch()).logits
    near, far = ((model(batch(), tasks=task).logits - want).norm() for task in ("made", "usual"))
    assert near < 0.5 * far
    assert made.verify(path, small.tuned).ok
    write_checkpoint(path, made, tmp_path / "again")
    torch.testing.assert_close(
        small.dense(tmp_path / "again")(batch()).logits, model(batch(), tasks="made").logits, rtol=1e-3, atol=1e-3
    )
