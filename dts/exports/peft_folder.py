"""A PEFT LoRA on disk, read and judged: what it adds to each parameter of the model it was made for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dts.checkpoint import CheckpointError, Lazy, SafetensorsFile
from dts.checkpoint.errors import NotRead, first
from dts.checkpoint.files import load_tensors
from dts.checkpoint.json_file import json_object
from dts.files import expanded
from dts.warn import warn

CONFIG, MODEL, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
SHOWN = 10  # of what is wrong
MERGE = "merge it with PEFT (merge_and_unload) and give dts compress the merged model"
# keys of a config that make it more than B A, and what they are
MORE = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "aLoRA",
    "layer_replication": "a LoRA of replicated layers",
    "target_parameters": "a LoRA of single parameters (target_parameters)",
    "trainable_token_indices": "a LoRA with trainable tokens",
    "arrow_config": "Arrow",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "megatron_config": "a LoRA of Megatron layers",
}
# what else a config says; of other keys it is not known what they change
KNOWN = {
    *MORE,
    *"task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode".split(),
    *"r target_modules exclude_modules lora_alpha lora_dropout fan_in_fan_out bias use_rslora modules_to_save".split(),
    *"init_lora_weights layers_to_transform layers_pattern rank_pattern alpha_pattern megatron_core".split(),
    *"loftq_config eva_config corda_config lora_ga_config kasa_config qalora_group_size runtime_config".split(),
    *"lora_bias ensure_weight_tying ephemeral_gpu_offload".split(),
}
SWITCHES = ("use_rslora", "fan_in_fan_out", "lora_bias")  # which a text such as "no" would turn on
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "loraga")
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<leaf>lora_(?:embedding_)?[AB])(?:\.(?P<adapter>[^.]+))??(?P<of>\.weight|\.bias)?"
)


@dataclass
class Layer:
    """The LoRA of one module: B A times ``scaling`` is added to its weight, ``bias`` times it to its bias.

    a, b: names of the tensors in the file;  embedding: they are an embedding's, whose weight is (B A) transposed.
    """

    a: str = ""
    b: str = ""
    bias: str | None = None
    embedding: bool = False
    scaling: float = 1.0


@dataclass
class PeftFolder:
    """layers: by module;  values: parameter -> name of the tensor in the file that takes its place;
    twice: pairs of tensors that would be one and the same."""

    folder: Path
    config: dict[str, Any]
    file: Mapping[str, Any]
    layers: dict[str, Layer] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.file[name].shape)

    def load(self, name: str) -> Tensor:
        found = self.file[name]
        return found if isinstance(found, Tensor) else found.load()

    def delta(self, module: str, shape: tuple[int, ...], transposed: bool) -> Tensor:
        """What is added to the module's weight of this shape: float32.  transposed: it is stored [in, out]."""
        layer = self.layers[module]
        a, b = self.load(layer.a).float(), self.load(layer.b).float()
        product = b.flatten(1) @ a.flatten(1) * layer.scaling
        if layer.embedding or transposed:
            product = product.T
        if a.dim() > 2 and a.shape[1] != shape[1]:
            raise CheckpointError(
                f"{self.folder}: {module} is a convolution in groups, whose LoRA is not read: {MERGE}"
            )
        if product.numel() != torch.Size(shape).numel() or product.shape[0] != shape[0]:
            raise CheckpointError(
                f"{self.folder}: the LoRA of {module} is of {list(product.shape)}, the model has {list(shape)}"
            )
        return product.reshape(shape)

    def bias(self, module: str, shape: tuple[int, ...]) -> Tensor:
        """What is added to the module's bias of this shape: float32."""
        layer = self.layers[module]
        assert layer.bias is not None
        if self.shape(layer.bias) != shape:
            raise CheckpointError(
                f"{self.folder}: {layer.bias} is of {list(self.shape(layer.bias))}, the model's bias of {list(shape)}"
            )
        return self.load(layer.bias).float() * layer.scaling


def read_peft(folder: str | Path) -> PeftFolder:
    """Raises CheckpointError for what is no LoRA of PEFT, of another type, or changes more than matrices by B A."""
    folder = expanded(folder)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} is no PEFT folder: it has no {CONFIG}.  Give the one that PEFT's save_pretrained() wrote"
        )
    config = json_object(folder / CONFIG)
    _refuse(folder, config)
    found = PeftFolder(folder, config, _tensors(folder))
    wrong = []
    strange = [name for name in found.file if not _sort(found, name)]
    if strange:
        wrong.append(f"{len(strange)} tensors are no LoRA's, {first(strange, 3)}: {MERGE}")
    if found.twice:
        wrong.append(f"tensors that are there twice, {first(found.twice, 3)}: save one adapter alone")
    if odd := [name for name in found.values.values() if found.file[name].dtype.is_complex]:
        wrong.append(f"tensors of complex numbers, {first(odd, 3)}")
    for module, layer in found.layers.items():
        if not layer.a or not layer.b:
            wrong.append(f"the LoRA of {module} has no {'B' if layer.a else 'A'}")
            continue
        if why := _no_product(found, layer):
            wrong.append(f"the LoRA of {module} {why}")
            continue
        try:
            layer.scaling = _scaling(folder, config, module, found.shape(layer.a)[0])
        except CheckpointError as error:
            wrong.append(str(error).removeprefix(f"{folder}: "))
    if wrong:
        raise CheckpointError(f"{folder}: {first(wrong, SHOWN, '; ')}")
    return found


def _no_product(found: PeftFolder, layer: Layer) -> str:
    """Why B and A have no product, or nothing."""
    a, b = found.shape(layer.a), found.shape(layer.b)
    if len(a) < 2 or len(b) < 2 or a[0] != b[1] or not a[0]:
        return f"is no product: its A is {list(a)}, its B {list(b)}"
    named = [name for name in (layer.a, layer.b, layer.bias) if name]
    if odd := [f"{name} ({found.file[name].dtype})" for name in named if not found.file[name].dtype.is_floating_point]:
        return f"is not of real floats: {', '.join(odd)}".replace("torch.", "")
    return ""


def _refuse(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{folder} is a {kind} adapter of PEFT, not a LoRA: {MERGE}, if PEFT merges it")
    wrong = []
    more = [what for key, what in MORE.items() if config.get(key)]
    if more:
        wrong.append(f"{folder} is {' and '.join(more)}, more than a LoRA: {MERGE}")
    init = str(config.get("init_lora_weights", "")).lower()
    if init.startswith(CHANGE_THE_BASE):
        wrong.append(
            f"{folder} was initialised by {init}, which changes the base's own weights: save it anew with "
            f"path_initial_model_for_weight_conversion, or {MERGE}"
        )
    for key in SWITCHES:
        if config.get(key) not in (None, True, False):
            wrong.append(f"{folder / CONFIG} is damaged: {key} is {config[key]!r}, neither true nor false")
    mapping = config.get("auto_mapping")
    named = mapping.get("base_model_class") if isinstance(mapping, dict) else mapping
    if mapping is not None and not (isinstance(mapping, dict) and (named is None or isinstance(named, str))):
        wrong.append(f"{folder / CONFIG} is damaged: auto_mapping is {mapping!r:.80}")
    if wrong:
        raise CheckpointError("; ".join(wrong))
    if unknown := [key for key, value in config.items() if value and key not in KNOWN]:
        warn(
            f"{folder / CONFIG} says {first(unknown, 3)}, which is not known here: where that makes it more than B A, "
            f"{MERGE}",
            NotRead,
        )


def _tensors(folder: Path) -> Mapping[str, Any]:
    if (folder / MODEL).is_file():
        file = SafetensorsFile(folder / MODEL)
        return {
            name: Lazy(stored.shape, stored.dtype, partial(file.load, name)) for name, stored in file.tensors.items()
        }
    if (folder / PICKLE).is_file():
        return load_tensors(folder / PICKLE)
    raise CheckpointError(f"{folder} has no {MODEL} and no {PICKLE}")


def _sort(found: PeftFolder, name: str) -> bool:
    """Puts a tensor where it belongs; False if it is nothing that is known."""
    own = name.removeprefix("base_model.model.")
    factor = _FACTOR.fullmatch(own)
    if factor:
        layer = found.layers.setdefault(factor["module"], Layer())
        layer.embedding |= "embedding" in factor["leaf"]
        place = "bias" if factor["of"] == ".bias" else factor["leaf"][-1].lower()
        if before := getattr(layer, place):
            found.twice.append(f"{before} and {name}")
        setattr(layer, place, name)
        return place != "bias" or factor["leaf"] == "lora_B"
    if "lora_" in own:
        return False
    if ".original_module." in own:  # the base's own, beside the module that takes its place
        return True
    own = re.sub(r"\.modules_to_save(\.[^.]+)?\.(?=[^.]+$)", ".", own.replace(".base_layer.", "."))
    # PEFT writes the biases of a module that it keeps whole twice where it trains every bias
    if own in found.values and not torch.equal(found.load(found.values[own]), found.load(name)):
        found.twice.append(f"{found.values[own]} and {name}")
    found.values[own] = name
    return True


def _scaling(folder: Path, config: Mapping[str, Any], module: str, rank: int) -> float:
    """As PEFT has it: lora_alpha / r, or by the root of r, with the patterns' own where a module's name ends in one."""
    stated = _of_pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _of_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if stated != rank or isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise CheckpointError(
            f"{folder}: the LoRA of {module} has rank {rank}, its {CONFIG} says {stated!r} and lora_alpha {alpha!r}"
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    try:
        return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)
    except (re.error, AttributeError) as error:
        raise CheckpointError(f"{CONFIG} is damaged: the pattern {pattern!r} is none ({error})") from error
