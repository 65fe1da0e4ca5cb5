"""What a module keeps from call to call, where it runs with a task's weights: nothing that it made of these.

Some modules make something of their weights once and take it ever after: LeViT the biases of its places, others weights
that are normalised, or fused.  Made with one task's weights it would be every later task's, without a word.  What is
made of the weights alone is forgotten, so each call makes it anew; what inputs have a part in (a recurrent state, sizes
that were seen) is kept, as the module means it to be.  Which is which is tried, once: with other weights, and with
other inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from dts.nn.layers.kept_values import Fields, fields_of, holds_numbers, is_container, same, snapshot
from dts.nn.layers.module_state import ModuleState

ABSENT: Any = object()
PLAIN = (Tensor, bool, int, float, str, type(None), torch.dtype, torch.device)  # arguments without a state
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
def as_they_were(modules: Iterable[nn.Module]) -> Iterator[Callable[[], None]]:
    """Within, forwards of these modules write into copies of what they hold; after it, that is what it was: running
    means, counters, what they keep.  Gives a function that makes other copies."""
    found = list(modules)
    unlooked = [module.__dict__["dts"] for module in found if "dts" in module.__dict__]
    unlooked = [deltas for deltas in unlooked if deltas.kept is None]  # layers that are to look at what they brought
    state = ModuleState(("", module) for module in found)
    try:
        state.lend()
        yield state.lend
    finally:
        state.put_back()
        for deltas in unlooked:
            deltas.kept = None


def _empty(value: Any) -> bool:
    """What a module has where it has made nothing yet; a container may get more."""
    return value is None or is_container(value)


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
