"""One model in two layouts: what a library's versions call and join otherwise, brought into the base's.

transformers renames modules between versions (``language_model.model.`` of a vision-language model, now
``model.language_model.``), and joins in memory what files hold apart: experts' matrices in one tensor [experts, m, n],
the gate's and the up projection's rows in one matrix.  A file may have either form, so both models' names are followed
to the places in memory that the loader of their classes takes them to (`dts.sites.transformers.renamer`); where these
meet, the fine-tune's tensors get the base's names, cut or joined as the base's are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dts.checkpoint.checkpoint import Checkpoint, Lazy
from dts.sites.resolve import Target
from dts.sites.transformers import built, renamer, taken_apart

Placed = dict[str, list[tuple[str, Target]]]  # place in memory -> the tensors that it is made of


def in_layout_of(base: Checkpoint, finetuned: Checkpoint) -> tuple[Checkpoint, dict[str, str]]:
    """(the fine-tune in the base's layout, {name now: what it was in the file} of those that changed)."""
    if all(name in base.tensors for name in finetuned.names):
        return finetuned, {}
    base_places, own_places = Places.of(base, finetuned.config), Places.of(finetuned, base.config)
    theirs, ours = base_places.placed(base.names), own_places.placed(finetuned.names)
    tensors, origin = dict(finetuned.tensors), dict[str, str]()
    for place in filter(ours.__contains__, theirs):
        there, here = theirs[place], ours[place]
        there = [(own_places.prefixed(name, t, here[0][1], base_places), t) for name, t in there]
        if {name for name, _ in there} == {name for name, _ in here}:
            continue
        made = _made(base, there, finetuned, here)
        if made and not (made.keys() & (tensors.keys() - {name for name, _ in here})):
            for name, _ in here:
                del tensors[name]
            tensors |= {name: tensor for name, (tensor, _) in made.items()}
            origin |= {name: saved for name, (_, saved) in made.items()}
    if not origin:
        return finetuned, {}
    now = {saved: name for name, saved in origin.items()}
    tied = {now.get(name, name): now.get(other, other) for name, other in finetuned.tied.items()}
    return replace(finetuned, tensors=_in_order(base, tensors), tied=tied), origin


def _in_order(base: Checkpoint, tensors: dict[str, Lazy]) -> dict[str, Lazy]:
    """Those that the base has in its order, then all others."""
    return {name: tensors[name] for name in base.names if name in tensors} | tensors


@dataclass
class Places:
    """Where the loader of the class that a config names puts the tensors of a checkpoint.

    renamer: name in a file -> its place;  known: names in memory;  body: what those of the class's body start with;
    embedding: the name of the module that tokens are looked up in.
    """

    names: list[str]
    known: frozenset[str]
    body: str
    renamer: Callable[[str], Target]
    embedding: str = ""

    @classmethod
    def of(cls, checkpoint: Checkpoint, otherwise: dict | None = None) -> Places:
        """By its own config, or another where it has none; of a class that is not known, the names themselves."""
        config = checkpoint.config or otherwise
        model = built(config)
        if model is None:
            return cls(checkpoint.names, frozenset(), "", Target)
        prefix = getattr(model, "base_model_prefix", "")
        rename = renamer(model)
        table = _embedding(model)
        groups = taken_apart(model)
        known = frozenset(model.state_dict()) | {_joint(group) for group in groups.values()}
        places = cls([], known, f"{prefix}." if prefix else "", _by_whole(rename, groups), table)
        places.names = [places.name(name) for name in checkpoint.names]
        return places

    def target(self, name: str) -> Target | None:
        """None of a tensor that is computed in a way that cannot be followed."""
        try:
            return self.renamer(name)
        except ValueError:
            return None

    def name(self, name: str) -> str:
        target = self.target(name)
        return name if target is None else target.name

    def has(self, name: str) -> bool:
        """Is there a place for a tensor of this name?"""
        return self.name(name) in (self.known or self.names)

    def placed(self, names: list[str]) -> Placed:
        """The tensors of each place, without the body's own prefix; nothing where the class is not known."""
        found = defaultdict(list)
        for name in names if self.known else ():
            target = self.target(name)
            if target is not None:
                found[target.name.removeprefix(self.body)].append((name, target))
        return found

    def prefixed(self, name: str, target: Target, own: Target, other: Places) -> str:
        """The name of another model's tensor with this model's prefix of the body, or without one as here.

        target: its place there;  own: that of the same tensor here.
        """
        here, there = own.name.startswith(self.body), target.name.startswith(other.body)
        if self.body and here and not (there and other.body):
            return self.body + name
        if other.body and there and not (here and self.body):
            return name.removeprefix(other.body)
        return name


def _by_whole(rename: Callable[[str], Target], groups: dict[str, tuple[str, ...]]) -> Callable[[str], Target]:
    """Names to places; several parameters that one tensor is taken apart into are one place, and each a part of it."""

    def place(name: str) -> Target:
        target = rename(name)
        group = groups.get(target.name)
        if group is None:
            return target
        if target.pieces > 1:
            return Target(_joint(group))
        return Target(_joint(group), part=group.index(target.name), parts=len(group))

    return place if groups else rename


def _joint(group: tuple[str, ...]) -> str:
    return f"{group[0]}, one of {len(group)}"


def _embedding(model: nn.Module) -> str:
    try:
        table = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):  # a model that takes no tokens
        return ""
    return next((name for name, module in model.named_modules() if module is table), "")


def _made(base: Checkpoint, there, finetuned: Checkpoint, here) -> dict[str, tuple[Lazy, str]] | None:
    """{base's name: (the fine-tune's tensor, what it is in the file)} of one place; None where they do not fit."""
    tied = base.tied.keys() | finetuned.tied.keys()
    if len(there) == len(here) == 1 and _same_cut(there[0][1], here[0][1]):
        (name, _), (saved, _) = there[0], here[0]
        return {name: (finetuned.tensors[saved], saved)}
    if any(name in tied for name, _ in (*there, *here)):
        return None
    if len(here) == 1 and _whole(here[0][1]):
        return _cut(there, finetuned, here[0][0])
    if len(there) == 1 and _whole(there[0][1]):
        return _joined(there[0][0], finetuned, here)
    cut = {(target.expert, target.part, target.parts): saved for saved, target in here}
    pairs = {name: cut.get((target.expert, target.part, target.parts)) for name, target in there}
    if len(cut) != len(here) or len(here) != len(there) or None in pairs.values():
        return None
    return {name: (finetuned.tensors[saved], saved) for name, saved in pairs.items() if saved is not None}


def _whole(target: Target) -> bool:
    return target.expert is None and target.parts == 1


def _same_cut(one: Target, other: Target) -> bool:
    return (one.expert, one.part, one.parts) == (other.expert, other.part, other.parts)


def _cut(there, finetuned: Checkpoint, saved: str) -> dict[str, tuple[Lazy, str]] | None:
    """The base's pieces out of one tensor of the fine-tune."""
    whole, made = finetuned.tensors[saved], {}
    for name, target in there:
        shape = list(whole.shape)
        if target.expert is not None and (not shape or target.expert >= shape.pop(0)):
            return None
        if not shape or shape[0] % target.parts:
            return None
        shape[0] //= target.parts
        label = f"{saved}[{'' if target.expert is None else target.expert}]"
        label += f", part {target.part + 1} of {target.parts}" if target.parts > 1 else ""
        piece = lambda target=target: target.part_of(whole.load())  # noqa: E731
        made[name] = Lazy(tuple(shape), whole.dtype, piece, whole.release), label
    return made


def _joined(name: str, finetuned: Checkpoint, here) -> dict[str, tuple[Lazy, str]] | None:
    """The base's one tensor out of the fine-tune's pieces, each expert's parts one below the other."""
    pieces: dict[int | None, dict[int, Lazy]] = defaultdict(dict)
    for saved, target in here:
        pieces[target.expert][target.part] = finetuned.tensors[saved]
    parts, stacked = here[0][1].parts, None not in pieces
    numbers = sorted(pieces) if stacked else list(pieces)  # type: ignore[type-var]
    complete = sum(map(len, pieces.values())) == len(here) == parts * len(pieces)
    if not complete or stacked and numbers != list(range(len(pieces))):
        return None
    rows = [[pieces[number][part] for part in range(parts)] for number in numbers]
    one = rows[0][0]
    shape = (parts * one.shape[0], *one.shape[1:])
    shape = (len(rows), *shape) if stacked else shape
    if any(lazy.shape != one.shape for row in rows for lazy in row):
        return None

    def load() -> Tensor:
        joined = [torch.cat([lazy.load() for lazy in row]) if parts > 1 else row[0].load() for row in rows]
        return torch.stack(joined) if stacked else joined[0]

    def release() -> None:
        for row in rows:
            for lazy in row:
                if lazy.release is not None:
                    lazy.release()

    label = here[0][0] + (f" and {len(here) - 1} more" if len(here) > 1 else "")
    return {name: (Lazy(shape, one.dtype, load, release), label)}
