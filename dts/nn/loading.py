"""Putting a task into the layers of a model: whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from dts.adapter import Entry
from dts.checkpoint.errors import some
from dts.nn.deltas import Piece
from dts.nn.fit import Change
from dts.nn.layers import Layer, LayerDeltas, adopt, base_class, layer_class
from dts.nn.parallel.split import check, split_of
from dts.nn.routing import RoutingState
from dts.nn.survey import Survey
from dts.sites import has_codes, is_quantised, local


@dataclass
class ModuleChange:
    """What one task changes of one module.

    name: of the module;  pieces: by parameter;  head: the task brings the module whole;  in_base: the base has it too.
    gathered: its parameters lie on several processes, and are put together for each forward.
    """

    module: nn.Module
    name: str = ""
    pieces: dict[str, list[Piece]] = field(default_factory=dict)
    head: bool = False
    in_base: bool = False
    gathered: bool = False


def without_effect(entries: Mapping[str, Entry], heads: bool) -> dict[str, str]:
    """Entries that change nothing by themselves, and why; heads: whether what only the fine-tune has is loaded."""
    left_out = "only the fine-tune has it (heads=False)"
    skipped = {} if heads else {key: left_out for key, entry in entries.items() if entry.task_only}
    return skipped | {key: f"tied to {entry.tied_to}" for key, entry in entries.items() if entry.kind == "tied"}


def by_module(survey: Survey, changes: list[Change], missing: frozenset[str] | None) -> list[ModuleChange]:
    """The changes of each module; missing: names of parameters that the base's checkpoint lacks, None: not known.

    Raises ValueError that lists every module whose parameters lie on several processes as no task can.
    """
    found: dict[int, ModuleChange] = {}
    has = _in_base(survey, changes, missing)
    for change in changes:
        site = change.site
        there = found.get(id(site.module))
        if there is None:
            there = ModuleChange(site.module, site.name.rpartition(".")[0], in_base=id(site.module) in has)
            found[id(site.module)] = there
        there.pieces[site.parameter] = change.pieces
        there.head |= change.task_only
    for name, module, read in survey.readers:  # what reads the weight of a child must know that child's deltas
        if any(id(child) in found for child in read):
            found.setdefault(id(module), ModuleChange(module, name))
    together = survey.gathered
    wrong: list[str] = []
    for own in found.values():
        own.gathered = id(own.module) in together
        wrong += _cannot_be_split(own) if survey.split and not own.gathered else []
    if wrong:
        raise ValueError("the adapter cannot be split over these processes:\n  " + "\n  ".join(wrong))
    return list(found.values())


def _cannot_be_split(change: ModuleChange) -> list[str]:
    """Why what a task changes of a module cannot lie on several processes as the module's parameters do."""
    module, name = change.module, change.name
    try:
        split = split_of(module)
    except ValueError as error:
        return [f"{name}: {error}"]
    if split is None:
        return []
    if is_quantised(module) or any(p is not None and has_codes(local(p)) for p in module._parameters.values()):
        return [f"{name}: a quantised layer that is split runs no tasks: load the base in floating point"]
    if not layer_class(module, change.pieces).dts_splits:
        return [f"{name}: {base_class(module).__name__} runs no tasks where its parameters lie on several processes"]
    return [f"{name}.{why}" for why in check(split, change.pieces)]


def _in_base(survey: Survey, changes: list[Change], missing: frozenset[str] | None) -> set[int]:
    """Ids of the modules of which the base has the parameters that an adapter changes.

    The checkpoint's loader knows that; else it has those that an adapter changes by a difference, and shared ones.
    """
    lacking: set[int] = set()
    found: set[int] = set()
    for change in changes:
        site = change.site
        if missing is not None:
            has = site.name not in missing
        else:
            has = not change.task_only or survey.uses[id(site.tensor)] > 1
        (found if has else lacking).add(id(site.module))
    return found - lacking


def refuse_other_models(changes: Iterable[ModuleChange], state: RoutingState) -> None:
    """Raises ValueError where layers have tasks of another `DTSModel` over the same base: one call would route both."""
    layers = [(change.name, change.module) for change in changes if isinstance(change.module, Layer)]
    others = [name for name, layer in layers if layer.dts.state is not state]
    if others:
        raise ValueError(
            f"{some(others, 3)} are layers of another DTSModel over the same base already: load_task() gives that one "
            "further tasks; another one needs a base of its own: loaded anew, or copied before it had tasks; or take "
            "copy.deepcopy(that DTSModel), tasks and all"
        )


def put(slot: int, changes: Iterable[ModuleChange], state: RoutingState, known: dict[tuple, type[Layer]]) -> None:
    """Put a task into a slot that no task has.  Undone whole where it fails.

    known: the survey's, see `layer_class`.
    """
    before: list[_Before] = []
    try:
        for change in changes:
            kind = layer_class(change.module, change.pieces, known)
            own = change.module.dts if isinstance(change.module, Layer) else None
            deltas = own or LayerDeltas(state)
            deltas.gathered = change.gathered
            before.append(_Before(change.module, type(change.module), own, set(deltas.parameters), deltas.in_base))
            adopt(change.module, kind, deltas).load(slot, change.pieces)
            if change.head:
                deltas.heads.add(slot)
            deltas.in_base |= change.in_base
    except BaseException:
        for was in reversed(before):
            was.restore(slot)
        raise


@dataclass
class _Before:
    """A module as it was."""

    module: nn.Module
    kind: type[nn.Module]
    deltas: LayerDeltas | None
    parameters: set[str]
    in_base: bool

    def restore(self, slot: int) -> None:
        """Without the slot, and what was made for it."""
        self.module.__class__ = self.kind
        if self.deltas is None:
            self.module.__dict__.pop("dts", None)
            return
        self.deltas.in_base = self.in_base
        self.deltas.heads.discard(slot)
        for name in set(self.deltas.parameters) - self.parameters:
            del self.deltas.parameters[name]
        for parameter in self.deltas.parameters.values():
            if slot in parameter.slots:
                parameter.remove(slot)


def take_out(slot: int, layers: Iterable[Layer]) -> None:
    """Empty a slot."""
    for layer in layers:
        layer.remove(slot)
        layer.dts.heads.discard(slot)
