"""Which names of two models are of one tensor, by the prefixes alone.

No architecture is known: the fine-tune's names are the base's with one prefix exchanged for another ("" for "bert.",
"model." for "", ...), whichever pair of prefixes makes most elements meet at equal shapes, then the next such pair
among what is left.
"""

import re

import torch

from dts.checkpoint.checkpoint import Checkpoint

OLD_NAMES = {"gamma": "weight", "beta": "bias"}  # of norms in checkpoints first written for TensorFlow
SAME = 3  # tensors of equal names and shapes that make a further pair of prefixes: fewer could be chance


def swap_prefix(name: str, old: str, new: str) -> str:
    """``name`` with the prefix ``old`` exchanged for ``new``; names without it stay as they are."""
    return new + name[len(old) :] if name.startswith(old) else name


def align(base: Checkpoint, finetuned: Checkpoint) -> tuple[tuple[str, str], dict[str, str]]:
    """(the exchange of prefixes that most tensors follow, {fine-tune's name: base's name} of all that meet)."""
    first = exchange = _prefixes(base, finetuned)
    origin: dict[str, str] = {}
    left, open_names = list(base.names), set(finetuned.names)
    while True:
        met = {}
        for base_name in left:
            name = swap_prefix(base_name, *exchange)
            if name not in open_names:
                stem, _, leaf = name.rpartition(".")
                name = f"{stem}.{OLD_NAMES.get(leaf, leaf)}"
            if name in open_names:
                met[name] = base_name
        origin |= met
        used = set(met.values())
        left, open_names = [name for name in left if name not in used], open_names.difference(met)
        following = _next_prefixes(base, finetuned, left, open_names)
        if following is None:
            return first, origin
        exchange = following


def _next_prefixes(base, finetuned, left: list[str], open_names: set[str]) -> tuple[str, str] | None:
    """A further exchange, among what has not met; None if fewer than ``SAME`` tensors of equal shapes follow."""
    if min(len(left), len(open_names)) < SAME:
        return None
    part = lambda whole, names: Checkpoint(  # noqa: E731
        whole.source, {name: whole.tensors[name] for name in whole.names if name in names}
    )
    ours, theirs = part(finetuned, open_names), part(base, set(left))
    exchange = _prefixes(theirs, ours)
    there = {swap_prefix(name, *exchange): theirs.shape(name) for name in theirs.names}
    same = [name for name in ours.names if there.get(name) == ours.shape(name)]
    return exchange if len(same) >= SAME else None


def _prefixes(base: Checkpoint, finetuned: Checkpoint) -> tuple[str, str]:
    """The exchange of prefixes (base's, fine-tune's) that makes most elements meet; the shortest of equals."""

    def score(old: str, new: str) -> int:
        met = 0
        for base_name, tensor in base.tensors.items():
            other = finetuned.tensors.get(swap_prefix(base_name, old, new))
            if other is not None and other.shape[1:] == tensor.shape[1:]:
                met += torch.Size(tensor.shape).numel()
        return met

    pairs = [(old, new) for old in _wrappers(base) for new in _wrappers(finetuned)]
    best = max(pairs, key=lambda p: (score(*p), -len(p[0]) - len(p[1])))
    return _shortest(*best)


def _shortest(old: str, new: str) -> tuple[str, str]:
    """Without the components both prefixes end in: ("a.x.", "b.x.") is ("a.", "b.")."""
    old_parts, new_parts = old.split("."), new.split(".")
    while len(old_parts) > 1 and len(new_parts) > 1 and old_parts[-2] == new_parts[-2]:
        del old_parts[-2], new_parts[-2]
    return ".".join(old_parts), ".".join(new_parts)


def _wrappers(checkpoint: Checkpoint) -> list[str]:
    """ "" and the dotted prefixes that at least a third of the names share."""
    counts: dict[str, int] = {}
    for name in checkpoint.names:
        for at in [m.end() for m in re.finditer(r"\.", name)][:4]:
            counts[name[:at]] = counts.get(name[:at], 0) + 1
    return ["", *(prefix for prefix, count in counts.items() if 3 * count >= len(checkpoint.names))]
