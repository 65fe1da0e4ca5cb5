"""Quantised models as the numbers they compute with: checkpoints that a difference can be taken of.

Reading codes is the business of the library that wrote them: transformers loads the model, and each layer is asked for
its matrix when that is read (`dts.sites.dequantised`).  The codes stay in memory meanwhile, the numbers do not.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dts.checkpoint.checkpoint import Checkpoint, Lazy
from dts.checkpoint.errors import CheckpointError
from dts.checkpoint.quantised import class_method, method_of
from dts.checkpoint.state import config_of, from_tensors
from dts.sites import dequantised, dequantised_dtype, is_quantised, parameter_shape, raw

NEEDED = "pip install '.[hf]', and the library that its method needs ('.[quantised]' has torchao and bitsandbytes)"


def from_quantised(model: nn.Module) -> Checkpoint:
    """A model in memory.  A quantised layer has a ``weight`` and perhaps a ``bias`` here, and nothing else.

    Its state dict is not asked: making one changes the codes of some libraries.
    """
    plain: dict[str, Tensor] = {}
    own: dict[str, nn.Module] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        coded = is_quantised(module)
        if coded:
            own[f"{prefix}.weight" if prefix else "weight"] = module
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            kept = tensor is not None and name not in module._non_persistent_buffers_set
            if kept and (not coded or name == "bias"):
                plain[f"{prefix}.{name}" if prefix else name] = tensor
    checkpoint = from_tensors(plain, type(model).__name__)
    first: dict[int, str] = {}
    for name, module in own.items():
        if first.setdefault(id(module), name) != name:
            checkpoint.tied[name] = first[id(module)]
        shape = parameter_shape(module, "weight")
        checkpoint.tensors[name] = Lazy(shape, dequantised_dtype(module), partial(_numbers, module))
    checkpoint.config = config_of(model)
    checkpoint.quantised = _method(own, checkpoint.config)
    return checkpoint


def _numbers(module: nn.Module) -> Tensor:
    return dequantised(module).cpu()


def _method(layers: dict[str, nn.Module], config: dict | None) -> str | None:
    """Who quantised these layers, or the whole model while it was read; None where nobody did."""
    stated = method_of(config)
    if stated or not layers:
        return stated
    module = next(iter(layers.values()))
    return class_method(raw(module, "weight")) or type(module).__name__


def from_gguf(path: Path) -> Checkpoint:
    checkpoint = from_quantised(_loaded(path.parent, None, {"gguf_file": path.name, "dtype": torch.float32}))
    checkpoint.config = _without_method(checkpoint.config)
    checkpoint.source, checkpoint.quantised = str(path), "GGUF"
    return checkpoint


def from_quantised_folder(folder: Path, config: dict | None, variant: str | None = None) -> Checkpoint:
    """One that transformers loads;  config: its ``config.json``."""
    checkpoint = from_quantised(_loaded(folder, config, {"variant": variant} if variant else {}))
    checkpoint.config = _without_method(checkpoint.config if config is None else config)
    return checkpoint


def _without_method(config: dict | None) -> dict | None:
    return {key: value for key, value in (config or {}).items() if key != "quantization_config"} or None


def gguf_architecture(config: Any) -> list[str]:
    """The class of a model in a GGUF file, which names none: a causal language model's where there is one."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal

    return [causal[config.model_type]] if config.model_type in causal else []


def _loaded(path: Path, config: dict | None, options: dict[str, Any]) -> nn.Module:
    try:
        import transformers

        built = transformers.AutoConfig.from_pretrained(path, **{k: v for k, v in options.items() if k != "dtype"})
        names = (config or {}).get("architectures") or built.architectures or []
        if "gguf_file" in options:
            names = names or gguf_architecture(built)
        cls = getattr(transformers, names[0], None) if len(names) == 1 else None
        return (cls or transformers.AutoModel).from_pretrained(path, device_map="cpu", **options).eval()
    except ImportError as error:
        raise CheckpointError(f"the quantised {path} cannot be read without {NEEDED}: {error}") from error
