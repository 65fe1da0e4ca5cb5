"""What all DTS layers have in common: the base layer itself, with packed deltas beside its parameters.

A DTS layer *is* its base layer: `adopt` changes the class of the module in place and keeps its parameters, hooks,
name and ``state_dict`` keys, `release` changes it back.  So ties between modules, ``isinstance`` checks and checkpoints
stay as they were.
"""

from __future__ import annotations

import copyreg
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from dts.nn.deltas import ParameterDelta, Piece
from dts.nn.read import read
from dts.nn.routing import Current, RoutingState, tracing
from dts_kernels import Routing

SHARED = -1  # the input has no batch axis but size 1 in the first: repeated for every row
UNROUTABLE = -2  # the rows of the input cannot be told apart: only one mixture at a time


class LayerDeltas:
    """Deltas of one layer's parameters, and where the batch is in its input.

    heads: slots of the tasks that bring this layer whole
    in_base: the base has this layer too, for the tasks that do not; else it is only random numbers there
    inside: the layer's own forward is being traced, which reads the raw parameters (eager code reads `raw`)

    Where the batch is in the input depends on the call (`Current`): the axis of the input whose size is a multiple of
    the batch's rows, row by row; or SHARED or UNROUTABLE; 0 where nobody looked.
    """

    def __init__(self, state: RoutingState, name: str = ""):
        self.state, self.name = state, name
        self.parameters: dict[str, ParameterDelta] = {}
        self.heads: set[int] = set()
        self.in_base = False
        self.inside = False

    @property
    def slots(self) -> set[int]:
        return set().union(*[p.slots for p in self.parameters.values()])

    def get(self, name: str) -> ParameterDelta | None:
        return self.parameters.get(name)

    def axis(self, now: Current) -> int:
        return 0 if now.axis is None else now.axis.get(self.name, UNROUTABLE)

    def routed(self) -> bool:
        """Whether deltas apply at all in the present call."""
        now = self.state.now()
        if not tracing() and now.seen is not None:
            now.seen.add(self.name)
        return now.rows == 1 or self.axis(now) != UNROUTABLE

    def enter(self, x: Tensor) -> tuple[Tensor, Routing]:
        """The input with its batch axis first, and the routing on its device."""
        now = self.state.now()
        routing = now.on(x.device)
        rows = routing.slots.shape[0]
        if rows == 1:
            return x, routing
        axis = self.axis(now)
        if axis == SHARED and x.dim() and x.shape[0] == 1:
            return x.expand(rows, *x.shape[1:]), routing
        if axis < 0 or axis >= x.dim() or x.shape[axis] % rows:
            raise RuntimeError(
                f"{self.name or 'a layer'} got an input {list(x.shape)} in which the {rows} rows of the batch cannot "
                f"be told apart; give rows of one task at a time"
            )
        return x.movedim(axis, 0), routing

    def leave(self, y: Tensor) -> Tensor:
        """Undo `enter` on the output."""
        now = self.state.now()
        axis = self.axis(now) if now.rows > 1 else 0
        return y.movedim(0, axis) if axis > 0 else y


class Layer:
    """Mixin in front of a module class; see the module's docstring.  ``dts`` holds its `LayerDeltas`."""

    transposed = False  # the weight is stored [in, out]
    dts: LayerDeltas

    @classmethod
    def supports(cls, module: nn.Module, pieces: dict[str, list[Piece]]) -> bool:
        """Whether rows of several tasks can go through this layer at once; if not, it runs once a task (`Owner`)."""
        raise NotImplementedError

    def load(self, slot: int, pieces: dict[str, list[Piece]]) -> None:
        """Put what one task changes of each parameter into a slot."""
        for name, parts in pieces.items():
            if name not in self.dts.parameters:
                transposed = self.transposed and name == "weight"
                device = raw(self, name).device
                self.dts.parameters[name] = ParameterDelta(parameter_shape(self, name), device, transposed)
            for piece in parts:
                self.dts.parameters[name].add(slot, piece)

    def remove(self, slot: int) -> None:
        for parameter in self.dts.parameters.values():
            parameter.remove(slot)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        tensor = next((t for t in (*self._parameters.values(), *self._buffers.values()) if t is not None), None)
        if tensor is not None:
            for parameter in self.dts.parameters.values():
                if parameter.device != tensor.device:
                    parameter.to(tensor.device)
            if self.dts.state.device != tensor.device:
                self.dts.state.to(tensor.device)
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in self.dts.parameters:
            given, own = state_dict.get(prefix + name), raw(self, name)
            if (
                isinstance(given, Tensor)
                and own is not None
                and not (given.shape == own.shape and torch.equal(given.to(own.device, own.dtype), own))
            ):
                self.dts.state.rebased(self.dts.name or prefix.rstrip("."))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _replicate_for_data_parallel(self):
        raise RuntimeError(
            "nn.DataParallel copies a model to other devices and calls it in other threads, where its "
            "tasks are not: use DistributedDataParallel, or one DTSModel a device"
        )

    def __getattr__(self, name: str):
        """A parameter that tasks change acts also where somebody else reads it; see `dts.nn.read`."""
        value = super().__getattr__(name)
        dts = self.__dict__.get("dts")
        return read(self, name, value) if dts is not None and name in dts.parameters else value

    def base_forward(self, *args, **kwargs):
        """The base layer's own forward with its raw parameters."""
        return self.forward_with({}, *args, **kwargs)

    def forward_with(self, tensors: dict[str, Tensor], *args, **kwargs):
        """The base layer's own forward with other tensors in place of these parameters and buffers.

        It runs on a twin of the base's class: threads do not meet, and what it reads of itself is what it is given.
        What the forward changes of the module beside tensors (counters, caches) is carried over.
        """
        base = base_class(self)
        if tracing():  # programs are made in one thread
            with replaced(self, tensors):
                return base.forward(self, *args, **kwargs)
        twin = object.__new__(base)
        own = self.__dict__
        twin.__dict__ = dict(own)
        for store in ("_parameters", "_buffers"):
            twin.__dict__[store] = {name: tensors.get(name, tensor) for name, tensor in own[store].items()}
        others = {id(raw(self, name)): tensor for name, tensor in tensors.items()}
        before = dict(twin.__dict__)
        for name, value in before.items():  # aliases of parameters, as recurrent layers keep them
            if type(value) is list and any(isinstance(v, Tensor) and id(v) in others for v in value):
                before[name] = twin.__dict__[name] = [others.get(id(v), v) for v in value]
        result = base.forward(twin, *args, **kwargs)
        for name, value in twin.__dict__.items():
            if value is not before.get(name, before):
                own[name] = value
        for name, buffer in twin._buffers.items():
            if name not in tensors and buffer is not own["_buffers"].get(name, before):
                own["_buffers"][name] = buffer
        return result

    def __reduce_ex__(self, protocol):
        """Classes that `adopt` makes are made again where the layer is unpickled."""
        reduced = super().__reduce_ex__(protocol)
        if not isinstance(reduced, tuple) or reduced[:2] != (copyreg.__newobj__, (type(self),)):
            return reduced
        layer = next(c for c in type(self).__mro__ if issubclass(c, Layer) and c.__dict__.get("joined") is None)
        return (_rebuilt, (layer, base_class(self)), *reduced[2:])


@contextmanager
def replaced(module: Layer, tensors: dict[str, Tensor]):
    """The module with other tensors in place of its own parameters and buffers, for a while.  Not thread-safe."""
    stores = {name: module._parameters if name in module._parameters else module._buffers for name in tensors}
    before, inside = {name: store[name] for name, store in stores.items()}, module.dts.inside
    module.dts.inside = True
    try:
        for name, tensor in tensors.items():
            stores[name][name] = tensor
        yield
    finally:
        module.dts.inside = inside
        for name, store in stores.items():
            store[name] = before[name]


def _rebuilt(layer: type, base: type) -> Layer:
    return object.__new__(layer if base in layer.__mro__ else _joined(layer, base))


def raw(module: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer as it is, whatever tasks change of it."""
    own = module.__dict__
    for store in ("_parameters", "_buffers"):
        if name in own[store]:
            return own[store][name]
    return getattr(module, name)


@cache
def _joined(layer: type, base: type) -> type:
    return type(layer.__name__, (layer, base), {"__module__": layer.__module__, "joined": True})


def adopt(module: nn.Module, layer: type[Layer], deltas: LayerDeltas) -> Layer:
    """Turn a module into a DTS layer, in place."""
    base = base_class(module)
    module.__class__ = layer if base in layer.__mro__ else _joined(layer, base)
    module.dts = deltas
    return module


def release(module: nn.Module) -> nn.Module:
    """Turn a DTS layer back into its base layer, in place."""
    if isinstance(module, Layer):
        module.__class__ = base_class(module)
        del module.dts
    return module


def parameter_shape(module: nn.Module, name: str) -> tuple[int, ...]:
    """Shape of a parameter or buffer; that of the matrix it stands for if a linear layer's weight is quantised."""
    if name == "weight" and hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.out_features, module.in_features
    return tuple(raw(module, name).shape)


def base_class(module: nn.Module) -> type:
    """The class a module has, or had before `adopt`."""
    if not isinstance(module, Layer):
        return type(module)
    return next(c for c in type(module).__mro__ if not issubclass(c, Layer) and c is not object)


def beside(y: Tensor, entries: Tensor) -> Tensor:
    """Entries [R, ...] repeated to the rows of y (its first axis is a multiple of R), to broadcast over the middle."""
    repeated = entries.repeat_interleave(y.shape[0] // entries.shape[0], 0) if entries.shape[0] > 1 else entries
    return repeated.view(repeated.shape[0], *[1] * (y.dim() - entries.dim()), *entries.shape[1:])


def standalone(module: nn.Module, layer: type[Layer]) -> Layer:
    """A DTS layer of its own that shares the parameters of ``module`` and leaves that as it is."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    twin = object.__new__(type(module))
    twin.__dict__ = dict(module.__dict__)
    for store in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[store] = dict(module.__dict__[store])
    return adopt(twin, layer, LayerDeltas(RoutingState(device)))
