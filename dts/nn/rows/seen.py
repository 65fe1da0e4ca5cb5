"""What layers see of a run: of every call of each, a digest of every tensor, row by row of its first two axes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dts.nn.layers import Layer, Owner
from dts.nn.layers.kept import PLAIN
from dts.nn.trees import opened
from dts.sites import local

NUMBERS = 8  # of a digest: of one number rows of others are as near to each other as SAME one time in twenty
SAME = 0.05  # two runs of one row differ by less, relative to its size; half precision leaves about 0.01
MISSED: Any = object()  # a hook that is taken away while another thread calls gets no keywords

Inputs = tuple[Sequence[Any], Mapping[str, Any]]  # args and kwargs of a call


@dataclass
class Seen:
    """One tensor of one call: its shape and, for each row of each axis that may be the batch, a digest (`NUMBERS` of
    them) and a size."""

    shape: torch.Size
    digests: list[tuple[Tensor, Tensor]]
    near: float  # by how much two runs of one row may differ

    @classmethod
    def of(cls, tensor: Tensor) -> Seen:
        digests = []
        for axis in range(min(tensor.dim(), 2)):
            flat = tensor.detach().float().nan_to_num(0, 0, 0).movedim(axis, 0)
            flat = flat.flatten(1) if flat.dim() > 1 else flat[:, None]
            places = torch.arange(flat.shape[1], device=flat.device, dtype=torch.float32)
            mixer = torch.cos(places[:, None] * torch.arange(1, NUMBERS + 1, device=flat.device))
            digests.append((flat @ mixer, flat.norm(dim=1)))
        return cls(tensor.shape, digests, SAME if tensor.dtype.itemsize == 2 else SAME / 5)


Calls = list[tuple[list[Seen], list[Seen]]]  # (tensors in, tensors out) of each call of a layer
Record = dict[str, Calls]  # by the layer's name


def recorded(
    layers: dict[str, Layer], run: Callable[..., Any], inputs: Inputs, alone: dict[str, str]
) -> tuple[object, Record]:
    """The output and what the layers saw.  alone: gets those that are given what the rows have one of, and why."""
    record: Record = {name: [] for name in layers}
    thread = threading.get_ident()  # calls of others go through the hooks, too
    before: dict[str, tuple[list[Tensor], dict[str, Tensor]]] = {}
    handles = []
    for name, layer in layers.items():

        def enters(module: nn.Module, args: Any, kwargs: Any = MISSED, name: str = name) -> None:
            if threading.get_ident() != thread or kwargs is MISSED:
                return
            before[name] = [tensor.clone() for tensor in tensors_in((args, kwargs))], _kept(module)

        def leaves(module: nn.Module, args: Any, kwargs: Any, output: Any = MISSED, name: str = name) -> None:
            if threading.get_ident() != thread or output is MISSED:
                return
            if not all(isinstance(leaf, PLAIN) for leaf in tree_leaves((args, kwargs))):
                alone[name] = "it is given an object, a cache perhaps, of which each task would need its own"
            if name in before:
                (given, kept), now = before.pop(name), tensors_in((args, kwargs))
                if len(given) != len(now) or not all(map(_identical, given, now)):
                    alone[name] = "it writes into what it is given, of which each task would need its own"
                if any(tensor is not kept.get(key) for key, tensor in _kept(module).items()):
                    alone[name] = "it keeps a state from call to call, of which each task would need its own"
            record[name].append((seen_in((args, kwargs)), seen_in(output)))

        if isinstance(layer, Owner):
            handles.append(layer.register_forward_pre_hook(enters, with_kwargs=True))
        handles.append(layer.register_forward_hook(leaves, with_kwargs=True))
    try:
        return run(*inputs[0], **inputs[1]), record
    finally:
        for handle in handles:
            handle.remove()


def _identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN and all."""
    return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())


def _kept(module: nn.Module) -> dict[str, Tensor]:
    """Tensors that a module holds beside its parameters."""
    return {k: v for k, v in {**vars(module), **module._buffers}.items() if isinstance(v, Tensor)}


def tensors_in(tree: object) -> list[Tensor]:
    """Of those that lie on several processes what is here, which has the batch where they have it."""
    return [local(leaf) for leaf in tree_leaves(opened(tree)) if isinstance(leaf, Tensor)]


def seen_in(tree: object) -> list[Seen]:
    return [Seen.of(tensor) for tensor in tensors_in(tree)]


def begins_with(more: Seen, few: Seen, axis: int) -> bool:
    """Whether the first rows of one are those of the other; where that cannot be told, yes."""
    if axis >= len(few.digests) or more.shape[axis] < few.shape[axis]:
        return True
    (a, size), (b, _) = few.digests[axis], more.digests[axis]
    return a.shape[1:] == b.shape[1:] and not bool(((a - b[: len(a)]).abs() > few.near * size.max()).any())


def grows(layer: Layer, one: Calls, now: Calls, rows: int) -> bool:
    """Whether a layer's inputs are of one row's sizes, or have one axis so many times as long."""
    if len(one) != len(now):
        return False
    for (before, _), (after, _) in zip(one, now):
        if not isinstance(layer, Owner):
            before, after = before[:1], after[:1]
        if len(before) != len(after):
            return False
        for a, b in zip(before, after):
            if len(a.shape) != len(b.shape):
                return False
            other = [(x, y) for x, y in zip(a.shape, b.shape) if x != y]
            if len(other) > 1 or any(y != rows * x for x, y in other):
                return False
    return True


def is_sorted(calls: Sequence[Any], turned: Sequence[Any], axis: int) -> bool:
    """Whether two rows reach a layer in one order, whichever the batch has them in: by a length of theirs, perhaps."""
    for (before, _), (after, _) in zip(calls, turned):
        for one, two in zip(before[:1], after[:1]):
            if one.shape != two.shape or axis >= len(one.digests) or one.shape[axis] != 2:
                continue
            (a, size), (b, _) = one.digests[axis], two.digests[axis]
            near = SAME * size.max()
            if bool((a[0] - a[1]).abs().max() > 2 * near) and bool((a - b).abs().max() <= near):
                return True
    return False
