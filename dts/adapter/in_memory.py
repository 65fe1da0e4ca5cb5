"""An adapter applied to a model in memory, under that model's own names.

A loader may rename a checkpoint's tensors, and join several to one: an adapter made from the files has their names, the
model its own.  `dts.sites` knows which part of which parameter each of them is.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from dts.adapter.apply import base_mismatches, base_of
from dts.adapter.effects import Effects
from dts.adapter.rows import base_name_of
from dts.adapter.text import dtype_name
from dts.checkpoint import Mismatch, sampled_digest
from dts.sites import resolve, sites
from dts.sites.transformers import renamer


def applied_in_memory(adapter, model, check: bool = True) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the reconstructed fine-tune; model: an ``nn.Module`` or a state dict."""
    base = base_of(adapter, model)
    wrong = base_mismatches(adapter, base)
    fits = not any(entry.base_name and entry.base_name not in base.tensors for entry in adapter.entries.values())
    new = [name for name, entry in adapter.entries.items() if entry.task_only and name not in base.tensors]
    if fits and (not wrong or not check) and (new or isinstance(model, Mapping)):
        return _as_files(adapter, base, keep=bool(new))
    if isinstance(model, Mapping):
        hint = (
            " (if its names are those a loader gave a model, give the model itself)"
            if any(line.endswith(": missing") for line in wrong)
            else ""
        )
        raise Mismatch(f"{base.source} is not the base of the adapter {adapter.name!r}{hint}", wrong)
    return _as_module(adapter, model, base, check)


def _as_files(adapter, base, keep: bool) -> Iterator[tuple[str, Tensor]]:
    """keep: the fine-tune's names, of which the base lacks some."""
    made, effects = adapter.on(base, check=False), Effects(adapter, base)
    section, taken = adapter.config["finetuned"], set()
    for name in made.names:
        own = base_name_of(name, section)
        own = name if keep or own not in base.tensors or own in taken else own
        taken.add(own)
        yield own, effects.see(name, made.load(name))
    if not keep:  # what the model ties, and a checkpoint has once
        for alias, first in base.tied.items():
            if alias not in taken and first in taken:
                name = next(n for n in made.names if base_name_of(n, section) == first)
                yield alias, made.load(name)
    effects.check()


def _as_module(adapter, model: nn.Module, base, check: bool) -> Iterator[tuple[str, Tensor]]:
    entries = {name: entry for name, entry in adapter.entries.items() if entry.kind != "tied"}
    heads = {name: entry for name, entry in entries.items() if entry.task_only}
    wrong: list[str] = []
    rename, known = renamer(model), sites(model)
    targets = resolve({n: e for n, e in entries.items() if n not in heads}, known, rename, wrong)
    for name in heads:
        targets |= resolve({name: heads[name]}, known, rename, [])
    canonical = {name: base.tied.get(name, name) for name in base.names}
    by_tensor: dict[str, list] = {}
    for name, target in targets.items():
        if target.pieces > 1:
            wrong.append(f"{name}: the model has its rows in {target.pieces} parameters: apply it to the checkpoint")
            continue
        where = canonical.get(target.name)
        if where is None:
            wrong.append(f"{name}: {target.name} is not in the model's state dict")
            continue
        by_tensor.setdefault(where, []).append((entries[name], target))
        if check and not entries[name].task_only:
            wrong += _mismatch(adapter, entries[name], base, where, target)
    if wrong:
        raise Mismatch(f"{base.source} is not the base of the adapter {adapter.name!r}", wrong)

    def tensors():
        effects = Effects(adapter, base)
        for name in base.names:
            yield name, _changed(base.load(name), by_tensor.get(canonical[name], ()), effects)
        for name, entry in heads.items():
            if name not in targets:
                yield name, entry.apply(None)
        effects.check()

    return tensors()


def _mismatch(adapter, entry, base, name: str, target) -> list[str]:
    part = target.part_of(base.load(name))
    if tuple(part.shape) != tuple(entry.base_shape):
        return [f"{name}: shape {list(part.shape)}, not {list(entry.base_shape)}"]
    if sampled_digest(part.contiguous()) != adapter.config["tensors"][entry.name]["base"]:
        return [f"{name}: other values ({dtype_name(part.dtype)})"]
    return []


def _changed(tensor: Tensor, pieces, effects: Effects) -> Tensor:
    """The tensor with every piece applied to its part; in the fine-tune's dtype where one piece is all of it."""
    result = tensor
    for entry, target in pieces:
        if target.expert is None and target.parts == 1:
            value = entry.apply(None if entry.task_only else tensor)
            return value if entry.task_only else effects.compare(entry, tensor, value)
        if result is tensor:
            result = tensor.clone()
        part = target.part_of(result)
        before = part.clone()
        part.copy_(effects.compare(entry, before, entry.apply(before)))
    return result
