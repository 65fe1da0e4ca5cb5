"""Where each changed parameter of a model goes in a PEFT LoRA, which has a place for some kinds of layers only.

    lora    the weight of a linear layer (transformers' Conv1D too), an embedding, a plain convolution
    bias    the bias of such a layer
    whole   everything else: its module is kept as it is, with all that is in it (``modules_to_save``)
    lost    stacked experts, and parameters of the model itself: neither has a place

PEFT finds modules by their names' ends: a module kept whole brings every other module whose name ends in its name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from dts.exports.fitted import Fitted, Source
from dts.exports.held import owners
from dts.exports.reads import Reads, reads
from dts.nn.layers import kind_of

EXPERTS = "PEFT has no LoRA for a stack of experts, and keeping all of it whole is keeping the model"
OF_EXPERTS = {  # as PEFT's `_MOE_TARGET_MODULE_MAPPING` has them
    "mixtral": frozenset({"gate", "w1", "w2", "w3"}),
    "qwen2_moe": frozenset({"gate", "gate_proj", "up_proj", "down_proj"}),
}
OF_THE_MODEL = "it is the model's own and in no module that could be kept whole"


@dataclass
class Places:
    """lora: modules whose weight becomes a LoRA -> its kind;  biases: modules of ``lora`` whose bias changed;
    whole: modules, none in another;  lost: parameter -> why;
    unseen: functions of which it is not known whether they read a layer's weight."""

    lora: dict[str, str] = field(default_factory=dict)
    biases: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)

    def whole_of(self, name: str) -> str | None:
        """The module kept whole that a parameter or module is in."""
        return next((module for module in self.whole if name == module or name.startswith(f"{module}.")), None)


def places(fit: Fitted) -> Places:
    """Where each parameter that an adapter changes goes."""
    read, around = reads(fit.model), owners(fit.model)
    result, whole = Places(lost=dict(fit.lost), unseen=sorted(read.unseen)), set[str]()
    for name, sources in fit.changed().items():
        module, _, leaf = name.rpartition(".")
        kind = None if module in around else lora_kind(fit.model, module, read)
        if any(one.target.expert is not None or one.entry and one.entry.kind == "experts" for one in sources):
            result.lost[name] = EXPERTS
        elif kind and leaf == "weight" and all(map(_is_difference, sources)):
            result.lora[module] = kind
        elif kind and kind != "embedding" and leaf == "bias" and all(map(_is_difference, sources)):
            result.biases.append(module)
        elif owner := around.get(kept := _kept_by(fit.model, module), kept):
            whole.add(owner)
        else:
            result.lost[name] = OF_THE_MODEL
    result.whole = closed(whole, [name for name, _ in fit.model.named_modules(remove_duplicate=False)])
    result.lora |= {module: lora_kind(fit.model, module, read) or "" for module in result.biases}
    result.lora = {module: kind for module, kind in result.lora.items() if result.whole_of(module) is None}
    result.biases = [module for module in result.biases if module in result.lora]
    result.lora = result.lora or _any_layer(fit, result, read, around)
    result.lost = {name: why for name, why in result.lost.items() if result.whole_of(name) is None}
    return result


def _any_layer(fit: Fitted, there: Places, read: Reads, around: Collection[str]) -> dict[str, str]:
    """A layer to be given a LoRA of zero: PEFT loads none without a layer, whatever modules it keeps whole."""
    for module, _ in fit.model.named_modules():
        kind = lora_kind(fit.model, module, read)
        if kind and module not in around and there.whole_of(module) is None and f"{module}.weight" in fit.sites:
            return {module: kind}
    return {}


def lora_kind(model: nn.Module, name: str, read: Reads) -> str | None:
    """linear, conv1d (transformers' layer with a weight [in, out]), embedding, conv, or None: no layer of a LoRA."""
    module = model.get_submodule(name)
    outer, _, last = name.rpartition(".")
    if module in read.by or last in _of_experts(model):
        return None
    if name and last in kind_of(model.get_submodule(outer)).dts_reads:
        return None  # the module around it reads the weight and never calls the layer
    if isinstance(module, nn.Linear):
        return "linear" if _as_its_kind(module) else None
    if kind_of(module).transposed:
        return "conv1d"
    if isinstance(module, nn.Embedding):
        scaled = isinstance(getattr(module, "embed_scale", None), float | Tensor)  # which PEFT does itself
        return "embedding" if module.max_norm is None and (scaled or _as_its_kind(module)) else None
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):  # PEFT makes its own with these settings alone
        plain = module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
        return "conv" if plain and _as_its_kind(module) else None
    return None


def _as_its_kind(module: nn.Module) -> bool:
    """Does it compute what PyTorch's class does?  PEFT gives its inputs to B A: of a table that makes positions of a
    mask (OPT's, BART's), or a convolution that pads or standardises by itself, that is another product."""
    kinds = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return any(type(module).forward is kind.forward for kind in kinds)


def _of_experts(model: nn.Module) -> frozenset[str]:
    """Last parts of names by which PEFT means experts, whatever bears them: in families whose experts transformers 5
    stacks it looks for all of these in the stacks, and a dense layer of such a name is left as it was."""
    try:
        from transformers.conversion_mapping import _MODEL_TO_CONVERSION_PATTERN as families
    except ImportError:  # transformers 4, and models of others
        return frozenset()
    family = families.get(str(getattr(getattr(model, "config", None), "model_type", None)))
    return OF_EXPERTS.get(str(family), frozenset())


def _is_difference(source: Source) -> bool:
    entry = source.entry
    return entry is None or entry.kind in ("factors", "delta") and entry.added_rows is None


def _kept_by(model: nn.Module, module: str) -> str:
    """The module to keep whole: the one itself, or the one around it that reads its weight; "" is the model."""
    around, _, own = module.rpartition(".")
    return around if module and own in kind_of(model.get_submodule(around)).dts_reads else module


def closed(whole: Iterable[str], modules: list[str]) -> list[str]:
    """With every module that PEFT takes to be meant too, and without those that are in another one of them."""
    found = {module for module in modules for name in whole if module.endswith(name)}
    return sorted(module for module in found if not any(module.startswith(f"{other}.") for other in found))


def target_modules(lora: Iterable[str], modules: list[str], whole: Iterable[str]) -> list[str] | str:
    """The shortest list that means these modules and no others: last parts of names, as is usual, or whole names; a
    pattern where the whole name of one is the end of another's."""
    lora, kept = set(lora), Places(whole=list(whole))
    rest = [module for module in modules if module and module not in lora and kept.whole_of(module) is None]
    ends = {module.rpartition(".")[2] for module in lora}
    taken = {module.rpartition(".")[2] for module in rest} & ends
    names = (ends - taken) | {module for module in lora if module.rpartition(".")[2] in taken}
    if any(module.endswith(f".{name}") for module in rest for name in names):
        return f"(?:{'|'.join(map(re.escape, sorted(lora)))})"
    return sorted(names)


def pattern_of(module: str, lora: Iterable[str]) -> str:
    """The key of a module in ``rank_pattern``: its name, from its start where that is the end of another's too."""
    return f"^{module}" if any(other.endswith(f".{module}") for other in lora) else module
