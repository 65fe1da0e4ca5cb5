"""What transformers' loader makes of the names in a checkpoint: read off its own tables, so that ours never differ."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from dts.sites.resolve import Target
from dts.sites.site import sites, walked


def renamer(model: nn.Module, known: Collection[str] | None = None) -> Callable[[str], Target]:
    """How the loader turns the names of a checkpoint into those of a model in memory.

    That of transformers renames modules between versions, stacks experts' matrices, joins matrices and takes them
    apart; all is read off its own conversion tables.  Names of any other model are those on disk.

    known: the model's `sites`, if they are there already.
    """
    renamings, converters = _tables(model)
    if not renamings and not converters:
        return Target
    known = sites(model) if known is None else known

    def rename(name: str) -> Target:
        if name in known:
            return Target(name)
        renamed = name
        for renaming in renamings:
            renamed, _ = renaming.rename_source_key(renamed)
        for converter in converters:
            target, pattern = converter.rename_source_key(renamed)
            if pattern is not None:
                return _converted(name, renamed, target, pattern, converter)
        return Target(renamed)

    return rename


def taken_apart(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Each parameter that the loader makes of a run of a tensor's rows -> those of the whole tensor, in order."""
    known, found = sites(model), dict[str, tuple[str, ...]]()
    for converter in _tables(model)[1]:
        if not _apart(converter):
            continue
        first, *others = converter.target_patterns
        for name in known:
            if first in name:
                group = (name, *(name.replace(first, other, 1) for other in others))
                if all(one in known for one in group):
                    found |= dict.fromkeys(group, group)
    return found


def _tables(model: nn.Module) -> tuple[list[Any], list[Any]]:
    """The loader's renamings and converters of tensors for a model; nothing for one of another library."""
    if not (hasattr(model, "config") and hasattr(model, "base_model_prefix")):
        return [], []
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming
    except ImportError:  # transformers 4: names in memory are those on disk
        return [], []
    mapping = get_model_conversion_mapping(_as_built(model))
    return [m for m in mapping if isinstance(m, WeightRenaming)], [m for m in mapping if isinstance(m, WeightConverter)]


def _apart(converter: Any) -> bool:
    """Whether it takes a tensor apart into equal runs of rows, a parameter each."""
    steps = converter.operations
    if [type(step).__name__ for step in steps] != ["Chunk"] or len(converter.source_patterns) != 1:
        return False
    plain = not any(set(pattern) & set("*\\^$") for pattern in converter.target_patterns)
    return steps[0].dim == 0 and steps[0].num_shards_attribute is None and plain and len(converter.target_patterns) > 1


def _as_built(model: nn.Module) -> Any:
    """The model with every module of the class that it was built with: the loader finds its tables by their names.

    A module that tasks change has a class of its own, which says what it was: ``dts_base``.
    """

    def twin(module: nn.Module) -> nn.Module:
        if not hasattr(type(module), "dts_base"):  # of the class: what a module lacks takes it microseconds to say
            return module
        built: Any = getattr(module, "dts_base")  # noqa: B009  # whoever has it says so of himself
        made: nn.Module = object.__new__(built)
        made.__dict__ = dict(module.__dict__)
        return made

    top = twin(model)
    walk = walked(model)
    modules = [(name, twin(module)) for name, module in walk]
    if all(made is module for (_, made), (_, module) in zip(modules, walk)):
        return model
    if top is model:
        top = object.__new__(type(model))
        top.__dict__ = dict(model.__dict__)
    top.__dict__["named_modules"] = lambda: iter(modules)
    return top


def _converted(name: str, renamed: str, target: str, pattern: str, converter: Any) -> Target:
    """The part of a fused parameter that one tensor of a checkpoint becomes, or the parameters of its runs of rows."""
    if _apart(converter) and converter.target_patterns[0] in target:
        first, *others = converter.target_patterns
        names = [target, *(target.replace(first, other, 1) for other in others)]
        places = [Target(one, piece=i, pieces=len(names)) for i, one in enumerate(names)]
        return replace(places[0], beside=tuple(places[1:]))
    steps = [type(op).__name__ for op in converter.operations]
    stacked = "MergeModulelist" in steps
    joined = [op for op in converter.operations if type(op).__name__ == "Concatenate"]
    rows = 1 if stacked else 0
    if set(steps) - {"MergeModulelist", "Concatenate"} or any(op.dim != rows for op in joined):
        raise ValueError(f"{name}: transformers turns it into {target} by {', '.join(steps)}, which cannot be followed")
    expert = None
    if stacked:
        plain = re.sub(r"\\(.)", r"\1", pattern)  # the loader's patterns may be escaped, but for their star
        regex = re.escape(plain).replace(r"\*", r"(\d+)").replace("\\^", "").replace("\\$", "")
        found = re.search(regex, renamed)
        assert found is not None  # the loader has matched it
        expert = int(found.group(1))
    sources = list(converter.source_patterns)
    return Target(target, expert, sources.index(pattern), len(sources) if joined else 1)


def loadable(config: dict | None) -> tuple[frozenset[str], str] | None:
    """(names of the tensors of the class a config names, the prefix of its body).

    The class is built without memory.  None where that is not known: no config, no class of transformers, or
    transformers is not installed.
    """
    model = built(config)
    return None if model is None else (frozenset(model.state_dict()), getattr(model, "base_model_prefix", ""))


def built(config: dict | None) -> nn.Module | None:
    """A model of the class a config names, without memory; None where `loadable` is."""
    if config is None:
        return None
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(config.get("model_type"), str):
        return None
    try:
        return _built(json.dumps(config, sort_keys=True))
    except Exception:  # a config that transformers cannot build from: then the names are judged by the base's alone
        return None


@lru_cache(maxsize=8)
def _built(text: str) -> nn.Module | None:
    import transformers

    config = json.loads(text)
    cls = getattr(transformers, config["architectures"][0], None)
    if cls is None:
        return None
    return without_weights(lambda: cls(cls.config_class.from_dict(with_numbers(config))))


def without_weights(make: Callable[[], nn.Module]) -> nn.Module:
    """The model that ``make`` builds, on the meta device: shapes, names and shared tensors, no weights."""
    with torch.device("meta"):
        model = make()
    # transformers 5.0 shares no tensor of a model that has no weights to set first; once more changes nothing
    if tie := getattr(model, "tie_weights", None):
        tie()
    return model


def with_numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as its class takes it: of what JSON has no number for transformers writes
    {"__float__": "Infinity"}, and makes a number of it only where it reads the file itself."""

    def number(value: Any) -> Any:
        if isinstance(value, Mapping):
            return float(value["__float__"]) if value.keys() == {"__float__"} else with_numbers(value)
        return [number(inner) for inner in value] if isinstance(value, list) else value

    return {key: number(value) for key, value in config.items()}
