"""From the names of an adapter to the parameters of a model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dts.adapter.entries import Entry
from dts.nn.deltas import Piece
from dts.nn.layer import base_class, parameter_shape, raw


@dataclass(frozen=True)
class Target:
    """Where a tensor of a checkpoint is in the model: a parameter, or a part of one.

    expert: index into a parameter [E, m, n];  part: which of ``parts`` equal runs of rows of a fused matrix.
    """

    name: str
    expert: int | None = None
    part: int = 0
    parts: int = 1


@dataclass
class Site:
    """One parameter or buffer of one module."""

    module: nn.Module
    parameter: str
    name: str  # full name in the model

    @property
    def tensor(self) -> Tensor:
        return raw(self.module, self.parameter)

    @property
    def shape(self) -> tuple[int, ...]:
        return parameter_shape(self.module, self.parameter)


def sites(model: nn.Module) -> dict[str, Site]:
    """Every name of every parameter and buffer; one that is shared has several names."""
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for parameter in (*module._parameters, *module._buffers):
            if raw(module, parameter) is not None:
                name = f"{prefix}.{parameter}" if prefix else parameter
                found[name] = Site(module, parameter, name)
    return found


def place(
    model: nn.Module, entries: dict[str, Entry], rename: Callable[[str], Target] = Target, untied: bool = False
) -> list[tuple[Site, list[Piece], bool]]:
    """What each parameter of the model gets of an adapter: (site, pieces, whether only the fine-tune has it).

    rename: how the model's loader names a tensor of a checkpoint;  untied: the fine-tune does not share the tensors
    that the model shares.  Raises ValueError that lists every tensor that does not fit.
    """
    known, wrong = sites(model), []
    own = {name: entry for name, entry in entries.items() if entry.kind != "tied"}
    targets = _resolve(own, known, rename, wrong)
    meant = Counter((t.name, t.expert, t.part) for t in targets.values())
    wrong += [
        f"{name}: another entry is for {t.name} too"
        for name, t in targets.items()
        if meant[t.name, t.expert, t.part] > 1
    ]
    placed: dict[tuple[int, str], tuple[Site, list[Piece], bool]] = {}
    for name, target in targets.items():
        site, entry = known[target.name], own[name]
        pieces = _pieces(entry, target, site, wrong)
        _, there, _ = placed.setdefault((id(site.module), site.parameter), (site, [], entry.task_only))
        there += pieces
    if not untied:
        _share(known, placed)
    _check_tied(entries, targets, known, wrong, rename)
    if wrong:
        raise ValueError("the adapter does not fit the model:\n  " + "\n  ".join(wrong))
    return list(placed.values())


def _share(known: dict[str, Site], placed: dict) -> None:
    """A parameter that the model uses in several places changes in all of them."""
    by_tensor = {}
    for site, pieces, task_only in placed.values():
        by_tensor[id(site.tensor)] = (pieces, task_only)
    for site in known.values():
        if id(site.tensor) in by_tensor and (id(site.module), site.parameter) not in placed:
            placed[id(site.module), site.parameter] = (site, *by_tensor[id(site.tensor)])


def _check_tied(
    entries: dict[str, Entry], targets: dict[str, Target], known: dict[str, Site], wrong: list[str], rename
) -> None:
    """A tensor that the fine-tune ties must be the same tensor, or an equal one, in the base."""
    for name, entry in entries.items():
        tied, canonical = rename(name).name, targets.get(entry.tied_to)
        if entry.kind != "tied" or tied not in known or canonical is None:
            continue
        a, b = known[tied].tensor, known[canonical.name].tensor
        if a is not b and not (a.shape == b.shape and torch.equal(a, b)):
            wrong.append(f"{name} is tied to {entry.tied_to} in the fine-tune, but they differ in the base")


def _resolve(entries: dict[str, Entry], known: dict[str, Site], rename, wrong: list[str]) -> dict[str, Target]:
    """The target of each entry: by its name, else its name in the base, else either with a prefix more or less."""
    targets, open_entries = {}, {}
    for name, entry in entries.items():
        choices = [rename(n) for n in (name, entry.base_name) if n is not None]
        direct = next((t for t in choices if t.name in known), None)
        if direct is not None:
            targets[name] = direct
        else:
            open_entries[name] = choices
    suffixes = defaultdict(list)
    if open_entries:
        for name in known:
            parts = name.split(".")
            for i in range(1, len(parts)):
                suffixes[".".join(parts[i:])].append(".".join(parts[:i]) + ".")
    options = {
        name: [(change, _changed(t, change)) for t in choices for change in _changes(t.name, known, suffixes)]
        for name, choices in open_entries.items()
    }
    votes = Counter(change for found in options.values() for change, _ in found)
    for name, found in options.items():
        if found:
            targets[name] = max(found, key=lambda option: votes[option[0]])[1]
        else:
            wrong.append(
                f"{name} {list(entries[name].shape)}: the model has no such parameter"
                + (
                    " (only the fine-tune has it: build the model with the fine-tune's architecture, or load with "
                    "heads=False)"
                    if entries[name].task_only
                    else ""
                )
            )
    return targets


def _changes(name: str, known, suffixes) -> list[tuple[str, str]]:
    """Prefix changes that make a name known: ("add", prefix) or ("strip", prefix)."""
    parts = name.split(".")
    strips = [("strip", ".".join(parts[:i]) + ".") for i in range(1, len(parts)) if ".".join(parts[i:]) in known]
    return [("add", prefix) for prefix in suffixes.get(name, [])] + strips


def _changed(target: Target, change: tuple[str, str]) -> Target:
    kind, prefix = change
    name = prefix + target.name if kind == "add" else target.name[len(prefix) :]
    return Target(name, target.expert, target.part, target.parts)


def _whole(entry: Entry, target: Target, site: Site, row: int | None, wrong: list[str]) -> Piece:
    """A whole value of a tensor that the base has too: as a difference where mixing must make sense (floats)."""
    if target.expert is not None or row is not None:
        wrong.append(f"{entry.name}: a whole value cannot be a part of the fused {target.name}")
    if site.tensor.is_floating_point() and entry.tensor.is_floating_point():
        wide = torch.float64 if site.tensor.dtype == torch.float64 else torch.float32
        return Piece("raw", entry.delta(site.tensor.detach(), wide))
    return Piece("value", entry.tensor)


def _pieces(entry: Entry, target: Target, site: Site, wrong: list[str]) -> list[Piece]:
    if entry.task_only:
        classes = slice(-1, None) if base_class(site.module).__name__ == "Conv1D" else slice(0, 1)  # their axis
        own, expected = list(entry.shape), list(site.shape)
        del own[classes], expected[classes]
        if own != expected:
            wrong.append(
                f"{entry.name}: the fine-tune's own {list(entry.shape)} does not fit the model's "
                f"{list(site.shape)}: only the number of outputs may differ"
            )
            return []
        return [Piece("value", entry.tensor)]
    expected = site.shape if target.expert is None else site.shape[1:]
    row = None
    if target.parts > 1:
        expected = (expected[0] // target.parts, *expected[1:])
        row = target.part * expected[0]
    if tuple(entry.base_shape) != tuple(expected):
        wrong.append(f"{entry.name}: the adapter is for {list(entry.base_shape)}, the model has {list(expected)}")
        return []
    for factors in entry.factors if isinstance(entry.factors, list) else [entry.factors]:
        for axis, index in (("row", factors and factors.rows), ("column", factors and factors.columns)):
            size = 0 if factors is None else factors.shape[axis == "column"]
            if index is not None and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
                wrong.append(f"{entry.name}: a {axis} {int(index.max())} or {int(index.min())} is none of its {size}")
                return []
        for samples in () if factors is None else factors.samples:
            if tuple(samples.shape) != tuple(factors.packed.shape):
                wrong.append(
                    f"{entry.name}: a sample of {list(samples.shape)} is not of its factors' "
                    f"{list(factors.packed.shape)}"
                )
                return []
    pieces = []
    if entry.kind == "experts":
        pieces += [Piece("factors", f, e, row) for e, f in enumerate(entry.factors) if f is not None]
    elif entry.kind == "factors" and entry.factors is not None:
        pieces.append(Piece("factors", entry.factors, target.expert, row))
    elif entry.kind == "delta":
        pieces.append(Piece("raw", entry.tensor if entry.scale is None else entry.delta(), target.expert, row))
    elif entry.kind == "value":
        pieces.append(_whole(entry, target, site, row, wrong))
    if entry.added_rows is not None:
        pieces.append(Piece("added", entry.added_rows))
    return pieces
