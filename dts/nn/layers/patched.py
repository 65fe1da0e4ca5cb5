"""Layers of which some task keeps every bit: its rows run through the base layer's own forward with the task's tensors
in place of the base's, all other rows through the layer as it would be without it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dts.nn.deltas import ParameterDelta
from dts.nn.layers.layer import Layer, base_class, by_name, joined, rebuilt
from dts.nn.layers.owner import join_rows, take_rows
from dts.nn.routing import groups, tracing


class Patched(Layer):
    """In front of a kind of layer with one input; `patched` makes the class.

    A product with the tensor that the fine-tune has is the fine-tune's own product, which no sum beside the base's
    could be.  The tensor is made in each call, for one layer at a time, unless the task holds it whole.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        dts = self.dts
        slots = {slot for parameter in dts.parameters.values() for slot in parameter.exact}
        now = dts.state.now()
        if not slots or not tracing() and not now.uses(slots) or not dts.routed() or self.dts_swapped():
            return super().forward(*args, **kwargs)
        if dts.name in now.missing:
            raise ValueError(now.missing[dts.name])
        if now.rows == 1:
            return self._of_one(*args, **kwargs)
        x = by_name(self, args[0] if args else None, kwargs) if kwargs or not args else args[0]
        return self._of_rows(x, slots)

    def _of_one(self, *args: Any, **kwargs: Any) -> Any:
        """The base layer's forward with the tensors of the one mixture."""
        return self.forward_made(ParameterDelta.whole, *args, **kwargs)

    def _of_rows(self, x: Tensor, slots: set[int]) -> Tensor:
        dts, now = self.dts, self.dts.state.now()
        x, _ = dts.enter(x)
        exact = [(mixture, rows) for mixture, rows in groups(now.mixtures) if slots & mixture.keys()]
        others = [i for i, mixture in enumerate(now.mixtures) if not slots & mixture.keys()]
        results, places = [], []
        for mixture, rows in exact:
            with dts.state.using([mixture], now.missing, called=now.called, padded=True):
                results.append(self._of_one(take_rows(x, 0, rows, now.rows)))
            places += rows
        if others:
            mixtures = [now.mixtures[i] for i in others]
            with dts.state.using(mixtures, now.missing, axis={dts.name: 0}, called=now.called, padded=True):
                results.append(super().forward(take_rows(x, 0, others, now.rows)))
            places += others
        widest = max(result.shape[-1] for result in results)
        return dts.leave(join_rows([_widened(result, widest) for result in results], places, None))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Made again where it is unpickled, as the classes of other layers are."""
        reduced = super().__reduce_ex__(protocol)
        if not isinstance(reduced, tuple) or reduced[0] is not rebuilt:
            return reduced
        return _patched_again, (_without(type(self)), base_class(self)), *reduced[2:]


def _widened(y: Tensor, width: int) -> Tensor:
    """Logits of a task with fewer classes, or a smaller vocabulary, end in -inf."""
    return y if y.shape[-1] == width else nn.functional.pad(y, (0, width - y.shape[-1]), value=-torch.inf)


_classes: dict[type[Layer], type[Layer]] = {}


def patched(kind: type[Layer]) -> type[Layer]:
    """A kind of layer, with `Patched` in front."""
    if issubclass(kind, Patched):
        return kind
    if kind not in _classes:
        made: Any = type(kind.__name__, (Patched, kind), {"__module__": kind.__module__, "joined": True})
        _classes.setdefault(kind, made)
    return _classes[kind]


def _patched_again(layer: type[Layer], base: type[nn.Module]) -> Layer:
    kind = patched(layer)
    return object.__new__(kind if base in kind.__mro__ else joined(kind, base))


def _without(layer: type[Layer]) -> type[Layer]:
    """The kind that a class was made of."""
    return next(kind for kind in layer.__mro__ if issubclass(kind, Layer) and not issubclass(kind, Patched))
