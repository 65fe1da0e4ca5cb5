"""Quantised weights: codes, not numbers that a difference could be taken of.  Told by names, dtypes and config."""

from collections.abc import Mapping

import torch

from dts.checkpoint.errors import some

ORIGINAL = "give the fine-tune as it was before it was quantised (float32, bfloat16 or float16)"
LOADED = "or load it with transformers{how}, dequantise it and save_pretrained() it"
BASE = "Tasks can run over a quantised base: dts compress --base-is quantised"
WAYS = {  # method -> the arguments of from_pretrained with which transformers dequantises; "" has model.dequantize()
    "fp8": "(quantization_config=FineGrainedFP8Config(dequantize=True))",
    "mxfp4": "(quantization_config=Mxfp4Config(dequantize=True))",
    "compressed-tensors": "(quantization_config=CompressedTensorsConfig(run_compressed=False))",
    "bitsandbytes": " and call model.dequantize()",
    "hqq": " and call model.dequantize()",
    "torchao": " and call model.dequantize()",
}
ONE_BYTE = {dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype) and dtype.itemsize == 1}
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# last part of a name -> the method that writes it
LEAVES = {
    "weight_scale_inv": "fp8",
    "weight_packed": "compressed-tensors",
    "weight_global_scale": "compressed-tensors",
    "weight_zero_point": "compressed-tensors",
    "absmax": "bitsandbytes",
    "nested_absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "nested_quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "bitsandbytes__nf4": "bitsandbytes",
    "bitsandbytes__fp4": "bitsandbytes",
    "weight_format": "bitsandbytes",
    "qzeros": "GPTQ or AWQ",
    "g_idx": "GPTQ",
    "q_weight": "EXL2",
    "q_invperm": "EXL2",
    "_packed_params": "torch.ao",
    "weight_scale_2": "NVFP4 (ModelOpt)",
    "weight_double_scale": "NVFP4 (ModelOpt)",
    "tables2": "HIGGS",
    "res_centroids": "VPTQ",
}
# these only where they hold codes, not numbers
CODES = {
    "qweight": "GPTQ, AWQ or EETQ",
    "W_q": "HQQ",
    "codes": "AQLM",
    "_data": "quanto",
    "_packed": "quanto",
    "qdata": "torchao",
    "weight_qdata": "torchao",
    "_weight_qdata": "torchao",
    "dense_weights": "SpQR",
}
NAMED = {*LEAVES.values(), *CODES.values(), "MXFP4"}  # told by a name; a dtype alone says less
CLASSES = {  # of tensors: the start of their module -> method
    "torchao": "torchao",
    "bitsandbytes": "bitsandbytes",
    "optimum.quanto": "quanto",
    "quanto": "quanto",
    "hqq": "HQQ",
    "transformer_engine": "fp8 (Transformer Engine)",
    "compressed_tensors": "compressed-tensors",
    "gguf": "GGUF",
    "diffusers.quantizers.gguf": "GGUF",
}


def way(method: str) -> str:
    """What to do with a model of this method."""
    how = next((WAYS[key] for key in WAYS if method.lower().startswith(key)), None)
    words = ORIGINAL if how is None else f"{ORIGINAL}, {LOADED.format(how=how)}"
    return f"{words}.  {BASE}"


def quantised(tensors: Mapping, config: Mapping | None) -> str | None:
    """ "quantised by <method> (<what tells>): <what to do>" of a model that is, else None.

    tensors: name -> anything with ``shape`` and ``dtype``.
    """
    methods: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        method = _method(name, tensor, tensors)
        if method:
            methods.setdefault(method, []).append(name)
    stated = method_of(config)
    if stated is None and not methods:
        return None
    method = stated or max(methods, key=lambda m: (m in NAMED, len(methods[m])))
    tells = [f"{some(names, 3)}" for names in methods.values()]
    tells += ["quantization_config in its config.json"] if stated else []
    text = f"quantised by {method} ({'; '.join(tells)}): {way(method)}"
    if not methods:
        text += ".  If its weights are not quantised, remove quantization_config from its config.json"
    return text


def method_of(config: Mapping | None) -> str | None:
    """What a ``config.json`` says, or one of the configs inside it (of a text or vision model)."""
    if not config:
        return None
    for part in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        stated = part.get("quantization_config") or part.get("compression_config")
        if isinstance(stated, Mapping) and stated:
            method = stated.get("quant_method") or stated.get("quant_library") or stated.get("format")
            if not method and (stated.get("load_in_4bit") or stated.get("load_in_8bit")):
                method = "bitsandbytes"
            return str(getattr(method, "value", method) or "an unnamed method")
        if stated is not None and not isinstance(stated, Mapping) and hasattr(stated, "quant_method"):
            return str(getattr(stated.quant_method, "value", stated.quant_method))
    return None


def class_method(value) -> str | None:
    """The method of a tensor of a quantising library's own class."""
    for cls in type(value).__mro__:
        module = getattr(cls, "__module__", "") or ""
        for start, method in CLASSES.items():
            if module == start or module.startswith(start + "."):
                return method
    return "torch.ao" if getattr(value, "is_quantized", False) else None


def _method(name: str, tensor, tensors: Mapping) -> str | None:
    stem, _, leaf = name.replace(":", ".").rpartition(".")
    if leaf in LEAVES:
        return LEAVES[leaf]
    coded = tensor.dtype not in FLOATS and tensor.dtype is not torch.bool
    if leaf in CODES and coded:
        return CODES[leaf]
    if tensor.dtype is torch.uint8 and leaf.endswith("_blocks") and name[: -len("blocks")] + "scales" in tensors:
        return "MXFP4"
    if leaf in ("weight_scale", "weight_scales", "scale_weight", "scales") and f"{stem}.weight" in tensors:
        weight = tensors[f"{stem}.weight"].dtype
        return None if weight in FLOATS else "fp8" if weight.is_floating_point else "8-bit integers with scales"
    if tensor.dtype.is_floating_point and tensor.dtype not in FLOATS and torch.Size(tensor.shape).numel():
        return f"fp8 ({str(tensor.dtype).removeprefix('torch.')})" if tensor.dtype.itemsize == 1 else str(tensor.dtype)
    if coded and tensor.dtype in ONE_BYTE and leaf.endswith("weight") and len(tensor.shape) > 1:
        return f"{str(tensor.dtype).removeprefix('torch.')} weights"
    return None
