"""An adapter against the model that its user has in memory: which parts of which parameter each tensor is.

Other libraries name what they change by the modules of a model in memory, whatever its checkpoint calls them.  That
model is the fine-tune's class, built from its config without memory, or one that is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dts.adapter import Adapter, Entry
from dts.adapter.accounting import of_model
from dts.checkpoint import Checkpoint, open_checkpoint
from dts.files import Watch
from dts.sites import Site, Target, Unchanged, resolve, sites
from dts.sites.configs import OtherConfig, otherwise
from dts.sites.diffusers import class_name, on_meta
from dts.sites.transformers import renamer, with_numbers, without_weights
from dts.warn import warn


@dataclass(frozen=True)
class Source:
    """A tensor of the fine-tune's checkpoint that is a part of a parameter, or all of it; entry: None if unchanged."""

    name: str
    target: Target
    entry: Entry | None


@dataclass
class Fitted:
    """finetuned: the reconstructed fine-tune;  sources: by parameter's name in the model, in the order of its rows;
    lost: entry's name -> why it has no place in the model."""

    adapter: Adapter
    model: nn.Module
    finetuned: Checkpoint
    sites: dict[str, Site]
    sources: dict[str, list[Source]]
    lost: dict[str, str] = field(default_factory=dict)

    def changed(self) -> dict[str, list[Source]]:
        """The parameters of which anything changed."""
        return {name: found for name, found in self.sources.items() if any(one.entry for one in found)}

    def value(self, name: str) -> Tensor:
        """A parameter of the reconstructed fine-tune, in its dtype."""
        found = self.sources.get(name)
        if not found:
            raise ValueError(f"{name}: neither the base nor the adapter has it, so it cannot be written whole")
        parts = [self.finetuned.load(one.name) for one in found]
        if len(parts) == 1:
            return parts[0]
        if found[0].target.expert is not None:
            experts: dict[int | None, list[Tensor]] = {}
            for one, part in zip(found, parts):
                experts.setdefault(one.target.expert, []).append(part)
            return torch.stack([torch.cat(rows) for rows in experts.values()])
        return torch.cat(parts)

    def dtype(self, name: str) -> torch.dtype:
        found = self.sources.get(name)
        return self.finetuned.dtype(found[0].name) if found else torch.float32


def opened(
    adapter: Adapter | str | Path,
    base: Any,
    rank: int | None,
    model: nn.Module | None,
) -> tuple[Fitted, Watch]:
    """What every export begins with: the adapter and its base, opened, watched and fitted.

    adapter: or its folder;  base: anything `open_checkpoint` takes;  model: of the class to load into, by default a
    base that is one, or the one that the fine-tune's config names.  Raises ValueError for a rank below 1, and as
    `fitted` does.
    """
    adapter = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
    if any(entry.kind == "exact" for entry in adapter.entries.values()):
        raise ValueError(
            f"the adapter {adapter.name!r} keeps every bit (method exact), and a LoRA is a sum of few products, which "
            "does not: write the full model with dts apply, or compress with --method residual"
        )
    if rank is not None and rank < 1:
        raise ValueError(f"a rank is 1 or more, not {rank}")
    watch, checkpoint = Watch(base, adapter.folder), open_checkpoint(base)
    if how := otherwise(checkpoint.config, adapter.model_config):
        warn(
            f"{adapter.name!r} is of a model that does not compute as {checkpoint.source}: {how}.  A LoRA runs as the "
            "base does, and its answers are not the fine-tune's: dts apply writes a model that is",
            OtherConfig,
        )
    fit = fitted(adapter, checkpoint, base if model is None and isinstance(base, nn.Module) else model)
    of_model(adapter, checkpoint, fit.finetuned)
    return fit, watch


def fitted(adapter: Adapter, base: Checkpoint, model: nn.Module | None = None) -> Fitted:
    """Raises Mismatch for another base, ValueError where there is no class to build and no model is given."""
    finetuned = adapter.on(base)
    model = model_of(adapter.model_config or base.config, adapter.name) if model is None else model
    known, wrong = sites(model), list[str]()
    entries = adapter.entries
    stored: dict[str, Entry | Unchanged] = {
        name: entries[name] if name in entries else Unchanged(finetuned.shape(name)) for name in finetuned.names
    }
    targets = resolve(stored, known, renamer(model), wrong)
    lost = {name: "the model has no such parameter" for name in stored if name not in targets and name in entries}
    if several := [name for name, target in targets.items() if target.pieces > 1 and name in entries]:
        raise ValueError(
            f"{adapter.name!r} changes {several[0]}, whose rows are {targets[several[0]].pieces} parameters of the "
            "model: a LoRA of that is not written; dts apply makes the full model"
        )
    by_name: dict[str, list[Source]] = {}
    for name, target in targets.items():
        owner = finetuned.tied.get(name, name)
        by_name.setdefault(target.name, []).append(Source(owner, target, entries.get(owner)))
    for found in by_name.values():
        found.sort(key=lambda one: (one.target.expert or 0, one.target.part))
    return Fitted(adapter, model, finetuned, known, _shared(known, by_name), lost)


def _shared(known: dict[str, Site], by_name: dict[str, list[Source]]) -> dict[str, list[Source]]:
    """A parameter that the model uses in several places is the same in all of them."""
    by_tensor = {id(known[name].tensor): found for name, found in by_name.items()}
    named = {name: by_name.get(name) or by_tensor.get(id(site.tensor)) for name, site in known.items()}
    return {name: found for name, found in named.items() if found}


def model_of(config: dict | None, whose: str) -> nn.Module:
    """The class of transformers or diffusers that a config names, on the meta device: shapes and names, no weights.

    Raises ValueError where it names none of them.
    """
    if config and class_name(config):
        return on_meta(config)
    names = (config or {}).get("architectures") or []
    try:
        import transformers
    except ImportError as error:
        raise ImportError("the classes of models are transformers': pip install 'dts-merge[hf]'") from error
    kind = getattr(transformers, names[0], None) if len(names) == 1 else None
    if config is None or kind is None:
        what = f"names {', '.join(names)}" if names else "names no architecture"
        raise ValueError(
            f"which modules the model of {whose!r} has is not known: its config {what}.  Give the model itself: "
            "model= in Python"
        )
    return without_weights(lambda: kind(kind.config_class.from_dict(with_numbers(config))))
