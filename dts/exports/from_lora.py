"""A PEFT LoRA as an adapter: its difference to the base, a tensor at a time, through `dts.compress`.

What mergekit extracts from a fine-tune is such a folder too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dts.adapter import Adapter, compress
from dts.checkpoint import Checkpoint, CheckpointError, Lazy, open_checkpoint
from dts.codec.methods import LOSSLESS
from dts.exports.fitted import model_of
from dts.exports.peft_folder import MERGE, PeftFolder, read_peft
from dts.files import Watch, real
from dts.nn.layers import kind_of
from dts.shapes import SMALL
from dts.sites import Unchanged, resolve, sites
from dts.sites.transformers import renamer
from dts.warn import warn

CLASSES = {  # task_type -> transformers' table of classes by model_type
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "CAUSAL_LM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "SEQ_2_SEQ_LM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "FEATURE_EXTRACTION": "MODEL_MAPPING_NAMES",
}
Change = Callable[[Tensor], Tensor]
LABELLED = ("SEQ_CLS", "TOKEN_CLS")


class Shared(UserWarning):
    """A LoRA of one use of a tensor that the model uses several times."""


def import_lora(
    folder: str | Path, base, out: str | Path | None = None, model: nn.Module | None = None, **options: Any
) -> Adapter:
    """An adapter that makes of the base what PEFT's ``merge_and_unload`` makes of the base and the LoRA.

    folder: ``adapter_config.json`` with ``adapter_model.safetensors`` (or ``.bin``);  base: anything `open_checkpoint`
    takes;  out: the adapter's folder, None keeps it in memory
    model: of the class the LoRA was made for; by default what its config and the base's say
    options: of `dts.compress`: sizes, method ("residual" by default), name, class_names, ...

    The adapter's ``config["squared_error"]`` is of its components against the LoRA's own difference, in float32
    whatever the base's dtype.  Raises CheckpointError for DoRA and other types, for a LoRA of another model, and what
    `dts.compress` raises.
    """
    if options.get("method") == LOSSLESS.name:
        raise ValueError(
            "a LoRA is no tensor's bits but a product that is added, so method exact has nothing to keep: "
            "import it with a size, or merge it with PEFT (merge_and_unload) and dts compress that"
        )
    watch = Watch(folder, base)
    opened = open_checkpoint(base)
    merged = merged_checkpoint(read_peft(folder), opened, model)
    options = {"method": "residual", "name": real(folder).name} | options
    progress = watch.during(options.pop("progress", None))
    return compress(opened, merged, out, progress=progress, **options)


def merged_checkpoint(lora: PeftFolder, base: Checkpoint, model: nn.Module | None = None) -> Checkpoint:
    """Base and LoRA as the full fine-tune they are, whose tensors are made when they are loaded.

    Matrices of a base in half precision are given in float32: rounded to the base's dtype, a small difference drowns.
    """
    config = _config(lora, base)
    model = model_of(config, str(lora.folder)) if model is None else model
    known, wrong = sites(model), list[str]()
    stored = {name: Unchanged(base.shape(name)) for name in base.names if name not in base.tied}
    targets = resolve(stored, known, renamer(model), wrong)
    changes = _Changes(lora, model)
    tensors: dict[str, Lazy] = {}
    found: set[str] = set()
    for name in stored:
        target = targets.get(name)
        if target is None:  # the class has no such tensor: a pooler, a head of another one
            if base.part_of(name)[0]:  # nor has it the other modules of a sentence-transformers folder
                tensors[name] = base.tensors[name]
            continue
        if any(changes.of(one.name) is not None for one in target.beside):
            raise CheckpointError(f"{name} is {target.pieces} parameters in the model, whose LoRA is not read: {MERGE}")
        change = changes.of(target.name)
        plain = target.parts == target.pieces == 1 and target.expert is None
        own = target.name if plain else name
        if change is None:
            tensors[own] = base.tensors[name]
            continue
        if not plain:
            raise CheckpointError(f"{name} is a part of {target.name} in the model, whose LoRA is not read: {MERGE}")
        found |= changes.aliases[target.name]
        shape = changes.shape(target.name)
        load = partial(_merged, base, name, change, _wide(shape))
        tensors[own] = Lazy(shape, base.dtype(name), load, partial(base.release, name))
    for name, value in lora.values.items():
        if name not in found and name in known:
            tensors[name] = Lazy(lora.shape(value), base.main_dtype, partial(_value, lora, value, base.main_dtype))
            found.add(name)
    lost = sorted(changes.names() - found)
    if lost:
        raise CheckpointError(
            f"{lora.folder} does not belong to {base.source}: {len(lost)} of the parameters it changes are not there, "
            f"{', '.join(lost[:5])}"
        )
    return Checkpoint(str(lora.folder), tensors, {}, config, base.folder, None, base.parts)


class _Changes:
    """What a LoRA changes of a model's parameters: those that share a tensor change together, as PEFT merges them."""

    def __init__(self, lora: PeftFolder, model: nn.Module):
        self.lora, self.model, self.sites = lora, model, sites(model)
        by_tensor: dict[int, set[str]] = {}
        for name, site in self.sites.items():
            by_tensor.setdefault(id(site.tensor), set()).add(name)
        self.aliases = {name: by_tensor[id(site.tensor)] for name, site in self.sites.items()}

    def names(self) -> set[str]:
        """Of all parameters that the LoRA names."""
        weights = {f"{module}.weight" for module in self.lora.layers}
        biases = {f"{module}.bias" for module, layer in self.lora.layers.items() if layer.bias}
        return weights | biases | set(self.lora.values)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the parameter once it is changed: a value may have more rows."""
        value = next((self.lora.values[alias] for alias in self.aliases[name] if alias in self.lora.values), None)
        return tuple(self.sites[name].shape) if value is None else self.lora.shape(value)

    def of(self, name: str) -> Change | None:
        """The parameter's value, given the base's in float32; None if it is the base's."""
        own = sorted(self.aliases[name])
        values = [self.lora.values[alias] for alias in own if alias in self.lora.values]
        modules = [(alias.rpartition(".")[0], alias.rpartition(".")[2]) for alias in own]
        layers = [module for module, leaf in modules if leaf == "weight" and module in self.lora.layers]
        biases = [module for module, leaf in modules if leaf == "bias" and self._has_bias(module)]
        if not values and not layers and not biases:
            return None
        if layers and len(layers) < len(own):
            text = f"{', '.join(own)} are one tensor: the LoRA of {', '.join(layers)} changes all of them once merged"
            warn(text, Shared)
        return partial(self._changed, values, layers, biases)

    def _has_bias(self, module: str) -> bool:
        return module in self.lora.layers and self.lora.layers[module].bias is not None

    def _changed(self, values: list[str], layers: list[str], biases: list[str], base: Tensor) -> Tensor:
        for value in values:
            base = self.lora.load(value).float()
        deltas = [self.delta(module, tuple(base.shape)) for module in layers]
        if any(not torch.allclose(delta, deltas[0], rtol=1e-5, atol=1e-8) for delta in deltas[1:]):
            raise CheckpointError(
                f"{self.lora.folder} has a LoRA each for {' and '.join(layers)}, which are one tensor in the base, and "
                f"they differ: untie the base's first"
            )
        for delta in deltas[:1]:
            base = base + delta
        for module in biases:
            base = base + self.lora.bias(module, tuple(base.shape))
        return base

    def delta(self, module: str, shape: tuple[int, ...]) -> Tensor:
        layer = self.model.get_submodule(module)
        if isinstance(layer, nn.MultiheadAttention):
            raise CheckpointError(f"{self.lora.folder}: {module} is a LoRA of an nn.MultiheadAttention: {MERGE}")
        return self.lora.delta(module, shape, kind_of(layer).transposed)


def _merged(base: Checkpoint, name: str, change: Change, wide: bool) -> Tensor:
    """wide: in float32, else in the base's dtype."""
    tensor = base.load(name)
    made = change(tensor.float())
    return made if wide else made.to(tensor.dtype)


def _value(lora: PeftFolder, name: str, dtype: torch.dtype) -> Tensor:
    value = lora.load(name)
    return value.to(dtype) if value.is_floating_point() else value


def _wide(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and min(shape[0], torch.Size(shape[1:]).numel()) > SMALL


def _config(lora: PeftFolder, base: Checkpoint) -> dict | None:
    """The base's config with the class that the LoRA was made for, and as many labels as its head has."""
    if base.config is None:
        return None
    config, task = dict(base.config), lora.config.get("task_type")
    named = (lora.config.get("auto_mapping") or {}).get("base_model_class") or _class_of(task, config.get("model_type"))
    if named:
        config["architectures"] = [named]
    heads = [lora.shape(name) for name in lora.values.values() if len(lora.shape(name)) == 2]
    labelled = (
        task in LABELLED or bool(named) and str(named).endswith(("SequenceClassification", "ImageClassification"))
    )
    if labelled and heads and len(config.get("id2label") or {}) != heads[-1][0]:
        labels = {str(label): f"LABEL_{label}" for label in range(heads[-1][0])}
        config |= {"id2label": labels, "label2id": {text: int(label) for label, text in labels.items()}}
    return config


def _class_of(task: str | None, model_type: Any) -> str | None:
    """The class that PEFT's task_type means."""
    if task not in CLASSES:
        return None
    from transformers.models.auto import modeling_auto

    table: Mapping[str, Any] = getattr(modeling_auto, CLASSES[task], {})
    named = table.get(model_type)
    return named[0] if isinstance(named, tuple | list) else named
