"""What a module keeps from call to call, where it runs with a task's weights: nothing that it made of these.

Some modules make something of their weights once and take it ever after: LeViT the biases of its places, others weights
that are normalised, or fused.  Made with one task's weights it would be every later task's, without a word.  What is
made of the weights alone is forgotten, so each call makes it anew; what inputs have a part in (a recurrent state, sizes
that were seen) is kept, as the module means it to be.  Which is which is tried, once: with other weights, and with
other inputs.
"""

from __future__ import annotations

import cmath
import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

ABSENT: Any = object()
FIELDS = {*vars(nn.Module()), "dts"}  # of every module: its tensors, children and hooks
PLAIN = (Tensor, bool, int, float, str, type(None), torch.dtype, torch.device)  # arguments without a state
NEAR = 1e-5  # of two runs of the same: their largest difference, relative to the largest number
Fields = dict[str, Any]
Run = Callable[[Fields, Mapping[str, Tensor], Sequence[Any], Mapping[str, Any]], Fields]
# (fields, tensors in place of parameters, args, kwargs of a forward) -> the fields after it


class Kept:
    """Of one layer.  made: fields that are made of weights;  judged: those that were tried, and these."""

    def __init__(self) -> None:
        self.made: set[str] = set()
        self.judged: set[str] = set()
        self.begun = False  # what the module brought with it was looked at

    def begin(
        self, module: nn.Module, own: Fields, run: Run, raw: Mapping[str, Tensor], args: Sequence[Any], kwargs: Any
    ) -> Fields:
        """Fields that the module made of its weights before it had tasks, as they were before that.

        raw: the base's parameters that tasks change.
        """
        self.begun = True
        found: Fields = {}
        for name, value in fields_of(own).items():
            if not holds_numbers(value):
                continue
            without = fields_of(own)
            if isinstance(getattr(type(module), name, None), cached_property):
                del without[name]
            else:
                without[name] = snapshot(value, 1) if is_container(value) else None
                if without[name] is not None:
                    without[name].clear()
            try:
                again = run(without, raw, args, kwargs)
            except Exception:  # it cannot be made again
                continue
            if name in again and again[name] is not None and same(again[name], value):
                found[name] = without.get(name, ABSENT)
        return found

    def carried(
        self,
        before: Fields,
        changed: Fields,
        run: Run,
        tensors: Mapping[str, Tensor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Fields:
        """Those of the changed fields that are kept."""
        new = {name for name in changed if name not in self.judged and _empty(before.get(name))}
        if new:
            self.judged |= new
            self._judge(new, before, changed, run, tensors, args, kwargs)
        return {name: value for name, value in changed.items() if name not in self.made}

    def _judge(
        self,
        new: set[str],
        before: Fields,
        changed: Fields,
        run: Run,
        tensors: Mapping[str, Tensor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        try:
            other = run(before, {name: _other(tensor) for name, tensor in tensors.items()}, args, kwargs)
            if all(name in other and same(other[name], changed[name]) for name in new):
                return
            args, kwargs = tree_map(lambda leaf: _other(leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
            moved = run(before, tensors, args, kwargs)
        except Exception:  # a forward that takes no other weights or inputs: it keeps what it keeps
            return
        # flags that say that it was made go with what was made
        alone = {name for name in changed if name in moved and same(moved[name], changed[name])}
        if any(not same(other.get(name), changed[name]) for name in new & alone):
            self.made |= alone


@contextmanager
def alone(given: Any, modules: Iterable[nn.Module] = ()) -> Iterator[Any]:
    """Arguments for a forward that leaves nothing behind: no gradients, no random numbers drawn, copies of what it is
    given, and the modules `as_they_were`.  Raises what copying an object among the arguments does."""
    leaves, spec = tree_flatten(given)
    devices = {leaf.device for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices), as_they_were(modules):
        yield tree_unflatten([_copy(leaf) for leaf in leaves], spec)


def _copy(leaf: Any) -> Any:
    """Of an argument; a cache of keys and values, too, is written into."""
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    if isinstance(leaf, nn.Module):
        raise ValueError("a module is among the arguments")
    return leaf if isinstance(leaf, PLAIN) else copy.deepcopy(leaf)


@contextmanager
def as_they_were(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, forwards of these modules write into copies of their buffers; after it, their fields are what they were,
    too: running means, counters, what they keep."""
    found = [(module, fields_of(vars(module)), copied(vars(module)), dict(module._buffers)) for module in modules]
    unlooked = [module.__dict__["dts"] for module, *_ in found if "dts" in module.__dict__]
    unlooked = [deltas for deltas in unlooked if deltas.kept is None]  # layers that are to look at what they brought
    try:
        for module, _, _, buffers in found:
            module._buffers.update({name: b.clone() for name, b in buffers.items() if b is not None})
        yield
    finally:
        for module, fields, containers, buffers in found:
            own = vars(module)
            for name in fields_of(own).keys() - fields.keys():
                del own[name]
            own.update(fields)
            for name, before in containers.items():
                if not unchanged(own[name], before):
                    written(own[name], before)
            for name in module._buffers.keys() - buffers.keys():
                del module._buffers[name]
            module._buffers.update(buffers)
        for deltas in unlooked:
            deltas.kept = None


def is_container(value: Any) -> bool:
    """Python's own, which can be copied and filled; classes made of them may forbid either."""
    return type(value) in (dict, list, set, OrderedDict, defaultdict)


def fields_of(own: Mapping[str, Any]) -> Fields:
    return {name: value for name, value in own.items() if name not in FIELDS}


def copied(own: Mapping[str, Any]) -> Fields:
    """Copies of what a forward may write into beside tensors."""
    return {name: snapshot(value) for name, value in own.items() if is_container(value) and name not in FIELDS}


def snapshot(value: Any, depth: int = 2) -> Any:
    """A copy of a container and of those in it; anything else itself."""
    if not depth or not is_container(value):
        return value
    made: Any = copy.copy(value)
    if isinstance(value, dict):
        made.update({key: snapshot(one, depth - 1) for key, one in value.items()})
    elif isinstance(value, list):
        made[:] = [snapshot(one, depth - 1) for one in value]
    return made


def written(original: Any, now: Any) -> None:
    """Puts into a container what a copy of it has."""
    original.clear()
    original.extend(now) if isinstance(original, list) else original.update(now)


def unchanged(one: Any, other: Any) -> bool:
    """Whether two containers hold the same objects."""
    if one is other:
        return True
    if type(one) is not type(other) or not is_container(one) or len(one) != len(other):
        return False
    if isinstance(one, dict):
        return all(key in other and unchanged(value, other[key]) for key, value in one.items())
    return one == other if isinstance(one, set) else all(map(unchanged, one, other))


def _empty(value: Any) -> bool:
    """What a module has where it has made nothing yet; a container may get more."""
    return value is None or is_container(value)


def holds_numbers(value: Any, depth: int = 3) -> bool:
    if (is_container(value) or isinstance(value, tuple)) and depth:
        return any(holds_numbers(one, depth - 1) for one in (value.values() if isinstance(value, dict) else value))
    number = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
    return number or isinstance(value, float | complex)


def same(one: Any, other: Any) -> bool:
    """Whether two runs kept the same.  Of what is no number that cannot be told: yes."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device or one.is_meta:
            return False
        one, other = (
            (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).detach().double().nan_to_num()
            for t in (one, other)
        )
        return not one.numel() or bool((one - other).abs().max() <= NEAR * one.abs().max())
    if (is_container(one) or isinstance(one, tuple)) and type(one) is type(other):
        if isinstance(one, dict) and isinstance(other, dict):
            return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
        return isinstance(one, set) or len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, int | float | complex) and isinstance(other, int | float | complex):
        return cmath.isclose(one, other, rel_tol=NEAR)
    return type(one) is type(other)


@torch.no_grad()
def _other(tensor: Tensor) -> Tensor:
    """Of the same kind, with other numbers; integers in another order, which are ids or places, or other ones."""
    if not tensor.is_floating_point():
        turned = tensor.flip(-1) if tensor.dim() else tensor.clone()
        if tensor.dtype is torch.bool or tensor.is_complex() or not torch.equal(turned, tensor):
            return turned
        return (tensor == 0).to(tensor.dtype)  # the same in either order, as one token a row is
    wave = torch.cos(torch.arange(tensor.numel(), device=tensor.device, dtype=torch.float32)).view(tensor.shape)
    size = tensor.detach().float().nan_to_num(0, 0, 0).abs().amax() if tensor.numel() else 0.0
    return tensor.detach() + (wave * (size + 0.1)).to(tensor.dtype)
