"""From the names of a checkpoint's tensors to the parameters of a model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Prefix = tuple[str, str]  # a change of a name: ("add", prefix) or ("strip", prefix)


@dataclass(frozen=True)
class Target:
    """Where a tensor of a checkpoint is in the model: a parameter, or a part of one.

    expert: index into a parameter [E, m, n];  part: which of ``parts`` equal runs of rows of a fused matrix.
    piece: the other way round, which of ``pieces`` equal runs of the tensor's rows the parameter is;  beside: where its
    other pieces are.
    """

    name: str
    expert: int | None = None
    part: int = 0
    parts: int = 1
    piece: int = 0
    pieces: int = 1
    beside: tuple[Target, ...] = ()

    @property
    def all(self) -> tuple[Target, ...]:
        """Every parameter that the tensor becomes; one, as a rule."""
        return self, *self.beside

    def part_of(self, tensor: Tensor) -> Tensor:
        """The view of the parameter that the tensor of the checkpoint became."""
        if self.expert is not None:
            tensor = tensor[self.expert]
        if self.parts > 1:
            rows = tensor.shape[0] // self.parts
            tensor = tensor[self.part * rows : (self.part + 1) * rows]
        return tensor


class Stored(Protocol):
    """What must be known of a tensor of an adapter to find its place."""

    @property
    def base_name(self) -> str | None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def task_only(self) -> bool: ...


@dataclass(frozen=True)
class Unchanged:
    """A `Stored` tensor that no entry of an adapter changes."""

    shape: tuple[int, ...]
    base_name: str | None = None
    task_only: bool = False


def resolve(
    tensors: Mapping[str, Stored], known: Collection[str], rename: Callable[[str], Target], wrong: list[str]
) -> dict[str, Target]:
    """The target of each tensor: by its name, else its name in the base, else either with a prefix more or less.

    known: names in the model;  rename: how the model's loader names a tensor of a checkpoint;
    wrong: gets a line for every tensor that has no place.
    """
    targets, without = {}, {}
    for name, tensor in tensors.items():
        choices = [rename(n) for n in (name, tensor.base_name) if n is not None]
        direct = next((t for t in choices if t.name in known), None)
        if direct is not None:
            targets[name] = direct
        else:
            without[name] = choices
    suffixes = _suffixes(known) if without else {}
    options = {
        name: [(change, _changed(t, change)) for t in choices for change in _changes(t.name, known, suffixes)]
        for name, choices in without.items()
    }
    votes = Counter(change for found in options.values() for change, _ in found)
    for name, found in options.items():
        if found:
            targets[name] = max(found, key=lambda option: votes[option[0]])[1]
        else:
            wrong.append(
                f"{name} {list(tensors[name].shape)}: the model has no such parameter"
                + (
                    " (only the fine-tune has it: build the model with the fine-tune's architecture, or load with "
                    "heads=False)"
                    if tensors[name].task_only
                    else ""
                )
            )
    return targets


def _suffixes(known: Collection[str]) -> dict[str, list[str]]:
    """The end of a known name -> what stands before it."""
    suffixes = defaultdict(list)
    for name in known:
        parts = name.split(".")
        for i in range(1, len(parts)):
            suffixes[".".join(parts[i:])].append(".".join(parts[:i]) + ".")
    return suffixes


def _changes(name: str, known: Collection[str], suffixes: Mapping[str, list[str]]) -> list[Prefix]:
    """Prefix changes that make a name known."""
    parts = name.split(".")
    strips = [("strip", ".".join(parts[:i]) + ".") for i in range(1, len(parts)) if ".".join(parts[i:]) in known]
    return [("add", prefix) for prefix in suffixes.get(name, [])] + strips


def _changed(target: Target, change: Prefix) -> Target:
    kind, prefix = change
    name = prefix + target.name if kind == "add" else target.name[len(prefix) :]
    return replace(target, name=name, beside=tuple(_changed(other, change) for other in target.beside))
