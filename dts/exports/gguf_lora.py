"""An adapter as a GGUF LoRA, as llama.cpp's convert_lora_to_gguf.py lays it out.

    NAME.lora_a, NAME.lora_b    [k, in], [out, k] of a matrix; of token_embd [rows, k], [width, k], as it is looked up
    adapter.lora.alpha          0: llama.cpp then takes B A as it is, whatever each tensor's own rank

Names are those of gguf's own tables.  llama.cpp turns the rows of q and k of Llama to its order of rotation, and a
LoRA's B with them.  It applies LoRAs to matrices alone: norms, biases and heads of one's own are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dts.adapter import Adapter
from dts.exports.fitted import Fitted, opened
from dts.exports.lora import Writer
from dts.exports.places import Places, places
from dts.exports.report import Export
from dts.files import expanded, one_file

ARCHITECTURES = {  # whose conversion changes no matrix but as written here
    "LlamaForCausalLM": "LLAMA",
    "MistralForCausalLM": "LLAMA",
    "Qwen2ForCausalLM": "QWEN2",
    "Qwen3ForCausalLM": "QWEN3",
    "GPT2LMHeadModel": "GPT2",
}
DTYPES = {"float32": torch.float32, "float16": torch.float16}
MATRICES = "llama.cpp applies a LoRA to matrices alone"
SHARED = "the output is tied to it: llama.cpp has one tensor for both, and a LoRA of it for one use only"
LOOKED_UP = "llama.cpp looks it up without its LoRA"


def export_gguf_lora(
    adapter: Adapter | str | Path,
    base,
    out: str | Path,
    rank: int | None = None,
    dtype: str = "float32",
    model: nn.Module | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Export:
    """Writes a file that llama.cpp takes as ``--lora`` over the GGUF of the same base.

    As `dts.exports.export_lora`, but for dtype, "float32" (exact) or "float16", and what has no place: that is left
    out, by name, with its share in the error.  Raises ImportError without the package gguf, ValueError for an
    architecture whose conversion is not known here and an adapter of no such matrix, NotExact, Mismatch,
    FileExistsError.
    """
    try:
        import gguf
    except ImportError as error:
        raise ImportError("GGUF files are written with llama.cpp's own package: pip install gguf") from error
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {' or '.join(DTYPES)}, not {dtype!r}")
    out = expanded(out)
    _check_file(out, overwrite)
    fit, watch = opened(adapter, base, rank, model)
    named = type(fit.model).__name__
    if named not in ARCHITECTURES:
        raise ValueError(f"how llama.cpp lays out {named} is not known here, only {', '.join(ARCHITECTURES)}")
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[named]]
    config: Any = fit.model.config
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    writer = Writer(fit, _places(fit, names), rank, DTYPES[dtype])
    writer.check_exact()
    if not writer.places.lora:
        raise ValueError(
            f"the adapter {fit.adapter.name!r} changes nothing that llama.cpp applies a LoRA to: {MATRICES}"
        )
    with one_file(out) as partial:
        file = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[architecture], use_temp_file=True)
        file.add_type(gguf.GGUFType.ADAPTER)
        file.add_string(gguf.Keys.Adapter.TYPE, "lora")
        file.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)
        for done, (module, kind) in enumerate(writer.places.lora.items()):
            if progress is not None:
                progress(done, len(writer.places.lora), module)
            name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
            a, b = writer.factors(module)
            writer.note()
            if kind == "embedding":
                a = a.T
            elif architecture == gguf.MODEL_ARCH.LLAMA:
                b = turned(b, module.rpartition(".")[2], config)
            file.add_tensor(f"{name}.lora_a", a.contiguous().numpy())
            file.add_tensor(f"{name}.lora_b", b.contiguous().numpy())
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_tensors_to_file()
        file.close()
        watch.check()
    made = writer.report(out)
    return Export(out, out.stat().st_size, made.parameters)


def turned(b: Tensor, layer: str, config: Any) -> Tensor:
    """B [out, k] of q or k with the two halves of each head's rows interleaved, as llama.cpp rotates them."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(layer)
    if heads is None:
        return b
    return b.reshape(heads, 2, b.shape[0] // heads // 2, b.shape[1]).transpose(1, 2).reshape(b.shape)


def _places(fit: Fitted, names: Any) -> Places:
    """LoRAs of what llama.cpp applies one to; all else is lost, with the reason."""
    found, result = places(fit), Places()
    for name in fit.changed():
        module, _, leaf = name.rpartition(".")
        kind, there = found.lora.get(module), names.get_name(name, try_suffixes=(".weight",))
        uses = [other for other, site in fit.sites.items() if site.tensor is fit.sites[name].tensor]
        if kind is None or leaf != "weight" or kind == "conv" or there is None:
            result.lost[name] = found.lost.get(name, MATRICES)
        elif len(uses) > 1:
            result.lost[name] = SHARED
        elif kind == "embedding" and there != "token_embd.weight":
            result.lost[name] = LOOKED_UP
        else:
            result.lora[module] = kind
    result.lost |= fit.lost
    return result


def _check_file(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise FileExistsError(f"{out} is a folder: choose a file")
    if out.exists() and not (overwrite and _start(out) == b"GGUF"):
        raise FileExistsError(f"{out} exists{'' if overwrite else ' (overwrite replaces a GGUF file)'}: choose another")


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4)
