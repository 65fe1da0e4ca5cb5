"""What all DTS layers have in common: the base layer itself, with packed deltas beside its parameters.

A DTS layer *is* its base layer: `adopt` changes the class of the module in place and keeps its parameters, hooks,
name and ``state_dict`` keys, `release` changes it back.  So ties between modules, ``isinstance`` checks and checkpoints
stay as they were.
"""

from __future__ import annotations

import copyreg
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn, Self, TypeVar

import torch
from torch import Tensor, nn

from dts.nn.deltas import ParameterDelta, Piece
from dts.nn.layers.kept import ABSENT, Kept, alone
from dts.nn.layers.kept_values import FIELDS, Fields, copied, unchanged, written
from dts.nn.layers.layer_deltas import LayerDeltas
from dts.nn.layers.read import Lazy, dense_parameter, read
from dts.nn.layers.wrapped import bind
from dts.nn.parallel.split import local_shape, split_of
from dts.nn.routing import RoutingState, tracing
from dts.sites import is_distributed, is_quantised, parameter_shape, raw
from dts_kernels import Routing

L = TypeVar("L", bound="Layer")

NOT_META = (
    "tasks are loaded, whose bits the meta device does not keep: delete them first (delete_task), or make the base "
    "there and load them where it gets its weights"
)


class Layer(nn.Module):
    """Mixin in front of a module class; see the module's docstring.  ``dts`` holds its `LayerDeltas`.

    A kind of layer is a subclass that `dts.nn.layers.registry.register` names the modules of.  It says how its weight
    is stored, what of it tasks may change (`supports`), and has a ``forward`` that adds each row's deltas.

    What a kind may say besides is named dts_..., so that it hides nothing of the class behind it.
    """

    transposed = False  # the weight is stored [in, out]
    dts_one_input = True  # its forward takes one tensor
    dts_splits = False  # runs where its parameters are DTensors, see `dts.nn.parallel`
    dts_reads: tuple[str, ...] = ()  # children whose weight it reads past their forward, and whose deltas it must know
    dts_before: ClassVar[type[nn.Module]]  # the class behind this one, looked for once: norms ask at every token
    dts: LayerDeltas

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.dts_before = next(c for c in cls.__mro__ if issubclass(c, nn.Module) and not issubclass(c, Layer))

    @classmethod
    def supports(cls, module: nn.Module, pieces: dict[str, list[Piece]]) -> bool:
        """Whether rows of several tasks can go through this layer at once; if not, it runs once a task (`Owner`)."""
        raise NotImplementedError

    @property
    def dts_base(self) -> type[nn.Module]:
        """The class that the module had, for rooms that know nothing of layers."""
        return base_class(self)

    def load(self, slot: int, pieces: dict[str, list[Piece]]) -> None:
        """Put what one task changes of each parameter, as far as this process has it, into a slot."""
        self.dts.kept = None  # other parameters may be changed now, of which something else was made
        split = self.dts.split = None if self.dts.gathered else split_of(self)
        for name, parts in pieces.items():
            self.dts.own[name] = self._parameters.get(name)
            if name not in self.dts.parameters:
                transposed = type(self).transposed and name == "weight"  # convolutions have one of their own
                device = device_of(self, raw(self, name))
                shape = parameter_shape(self, name) if split is None else local_shape(self, name)
                self.dts.parameters[name] = ParameterDelta(shape, device, transposed)
            own = parts if split is None else [split.cut(name, piece) for piece in parts]
            for piece in own:
                if piece is not None:
                    self.dts.parameters[name].add(slot, piece)

    def remove(self, slot: int) -> None:
        for parameter in self.dts.parameters.values():
            parameter.remove(slot)

    def dts_resized(self) -> tuple[int, int] | None:
        """Lets the layer's own idea of its sizes follow its parameters, after a task was written into them.

        Returns (outputs, or rows of a table, before and now), None where they are as they were.
        """
        rows, layer = None, self
        if isinstance(layer, nn.Linear):
            weight = raw(layer, "weight")
            rows = layer.out_features, weight.shape[0]
            layer.out_features, layer.in_features = weight.shape
        elif isinstance(layer, nn.Embedding):
            rows = layer.num_embeddings, raw(layer, "weight").shape[0]
            layer.num_embeddings = rows[1]
        return rows if rows and rows[0] != rows[1] else None

    @property
    def dts_resizing(self) -> bool:
        """Whether `dts_rows` is anything for some slot."""
        weight = self.dts.get("weight")
        return weight is not None and (weight.values.filled or weight.added.filled)

    def dts_rows(self, slots: list[int]) -> tuple[int, int] | None:
        """(outputs, or rows of a table, of the base and of a mixture of these slots) where they differ, else None."""
        weight = self.dts.get("weight")
        if weight is None or not weight.shape:
            return None
        before = weight.shape[1 if self.transposed and len(weight.shape) == 2 else 0]
        whole = [weight.values.tensors[slot].shape[0] for slot in slots if slot in weight.values.tensors]
        added = [weight.added.tensors[slot].shape[0] for slot in slots if slot in weight.added.tensors]
        now = whole[0] if whole else before + max(added, default=0)
        return (before, now) if now != before else None

    def dts_width(self, slots: list[int], widest: int) -> int | None:
        """Of ``widest`` outputs of the model, those that a mixture of these slots has: None if not known by this layer.

        A layer that classifies, or maps to a vocabulary, knows it where a task brings its own.
        """
        return None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.dts.own = {name: self._parameters.get(name) for name in self.dts.own}
        tensor = next((t for t in (*self._parameters.values(), *self._buffers.values()) if t is not None), None)
        if tensor is not None:
            if tensor.is_meta and self.dts.slots:
                raise ValueError(NOT_META)
            for parameter in self.dts.parameters.values():
                if parameter.device != tensor.device:
                    parameter.to(tensor.device)
            if self.dts.state.device != tensor.device:
                self.dts.state.to(tensor.device)
        return self

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Raises RuntimeError where a layer with tasks is split over processes: they are whole in each."""
        dts = self.__dict__.get("dts")  # a part of a list of parameters, which has the list's class, has none
        if is_distributed(param) and dts is not None:
            if dts.slots:
                raise RuntimeError(
                    f"{dts.name or 'a layer'} is split over processes under its tasks: delete_task() them, "
                    f"parallelise the model, and load_task() them again"
                )
            dts.parameters.pop(name, None)  # an empty one, of the size that it had
        super().register_parameter(name, param)
        if dts is not None and name in dts.own:
            dts.own[name] = param

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self.dts.parameters:
            given, own = state_dict.get(prefix + name), raw(self, name)
            if isinstance(given, Tensor) and own is not None and not _same(given, own):
                self.dts.state.rebased(self.dts.name or prefix.rstrip("."))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Within a forward it is the task's, as attributes are: what saves it there tells nobody whose it is."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.dts.parameters:
            if prefix + name in destination and self.dts.acts(name) and not tracing() and not is_quantised(self, name):
                tensor = getattr(self, name)
                destination[prefix + name] = tensor if keep_vars else tensor.detach()

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise RuntimeError(
            "nn.DataParallel copies a model to other devices and calls it in other threads, where its "
            "tasks are not: use DistributedDataParallel, or one DTSModel a device"
        )

    def __getattr__(self, name: str) -> Any:
        """A parameter that tasks change acts also where somebody else reads it; see `dts.nn.layers.read`."""
        value: Any = super().__getattr__(name)
        dts = self.__dict__.get("dts")
        return read(dts, name, value) if dts is not None and name in dts.parameters else value

    def dts_swapped(self) -> list[str]:
        """Names of parameters that tasks change in whose place a call has other tensors, as
        `torch.func.functional_call` puts them there: these are what the caller wants computed with, and nothing is to
        be added to them.

        What was there before the call of the model began is another base's, as another `nn.Parameter` is, and a view of
        the layer's own is that; so are, where a library moves parameters, the parts and wholes that it puts there.
        """
        dts = self.dts
        found: list[str] = []
        if dts.state.given:
            return found
        if not tracing():
            now = dts.state.now()
            if not now.called and now.bypassed is None:
                return found
        for name in dts.parameters:
            tensor = self._parameters.get(name)
            if tensor is None:
                if type(self._buffers.get(name)) is Lazy:
                    found.append(name)
            elif type(tensor) is nn.Parameter or type(tensor) is not Lazy and isinstance(tensor, nn.Parameter):
                continue
            elif dts.split is None and not dts.gathered and not _same_memory(tensor, dts.own.get(name)):
                found.append(name)
        return found

    def base_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base layer's own forward with its raw parameters."""
        return self.forward_with({}, *args, **kwargs)

    def unrouted(self, *args: Any, **kwargs: Any) -> Any:
        """What there is to run where deltas do not apply, or not to what lies in the parameters' places."""
        swapped = self.dts_swapped()
        if not swapped:
            return self.base_forward(*args, **kwargs)
        tensors = {name: raw(self, name) for name in self.dts.parameters}
        made = {n: t if n in swapped else dense_parameter(self.dts, n, t) for n, t in tensors.items()}
        return self.forward_with(made, *args, **kwargs)

    def forward_with(self, tensors: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """The base layer's own forward with other tensors in place of these parameters and buffers.

        It runs on a twin of the base's class: threads do not meet, and what it reads of itself is what it is given.
        What the forward changes of the module beside tensors (counters, caches) is carried over, but for what it made
        of weights that are a task's, see `dts.nn.layers.kept`.
        """
        base: Any = base_class(self)
        taken: Any = self._modules.get("parametrizations")
        if taken is not None and any(name in taken for name in self.dts.parameters):
            raise RuntimeError(
                f"{self.dts.name or 'a layer'} is parametrised under its tasks, of which what takes a parameter's "
                "place knows nothing: take that off, or delete_task() them"
            )
        if tracing():  # programs are made in one thread
            with with_tensors(self, tensors):
                return base.forward(self, *args, **kwargs)
        own = self.__dict__
        if tensors and self.dts.kept is None:
            self._forget(tensors, args, kwargs)
        kept = self.dts.kept  # with the base's weights, too: what these make once would be every later task's
        copies = copied(own) if tensors or kept is not None else {}
        twin = self._twin(tensors, copies)
        others = {id(raw(self, name)): tensor for name, tensor in tensors.items()}
        before = dict(twin.__dict__)
        for name, value in before.items():  # aliases of parameters, as recurrent layers keep them
            if type(value) is list and any(isinstance(v, Tensor) and id(v) in others for v in value):
                before[name] = twin.__dict__[name] = [others.get(id(v), v) for v in value]
        result = base.forward(twin, *args, **kwargs)
        fields, buffers = twin.__dict__, own["_buffers"]
        changed = {name: value for name, value in fields.items() if value is not before.get(name, before)}
        changed |= {name: fields[name] for name, copy in copies.items() if not unchanged(own[name], fields[name])}
        moved = {n: b for n, b in twin._buffers.items() if n not in tensors and b is not buffers.get(n, before)}
        if kept is not None and (changed or moved):
            made_of = tensors or {name: raw(self, name) for name in self.dts.parameters}
            carried = kept.carried({**own, **buffers}, changed | moved, self._run_alone, made_of, args, kwargs)
            changed = {name: value for name, value in changed.items() if name in carried}
            moved = {name: buffer for name, buffer in moved.items() if name in carried}
        for name, value in changed.items():
            if name in copies and type(value) is type(own[name]):
                written(own[name], value)
            else:
                own[name] = value
        buffers.update(moved)
        return result

    def _twin(self, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> nn.Module:
        """A module of the base's class with other tensors in place of these parameters and buffers, other fields."""
        twin: nn.Module = object.__new__(base_class(self))
        twin.__dict__ = {**self.__dict__, **fields}
        for store in ("_parameters", "_buffers"):
            twin.__dict__[store] = {name: tensors.get(name, t) for name, t in self.__dict__[store].items()}
        return twin

    def _run_alone(
        self, own: Fields, tensors: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Fields:
        """The fields and buffers of a twin that had these, after a forward that leaves nothing else behind.

        Raises what that does, and for arguments that it might write into and that cannot be copied."""
        twin = self._twin(tensors, {})
        fields = twin.__dict__
        for name in [name for name in fields if name not in FIELDS]:
            del fields[name]
        fields.update({name: value for name, value in own.items() if name not in twin._buffers and name not in FIELDS})
        fields.update(copied(fields))
        twin._buffers.update({name: own[name] for name in twin._buffers if name in own and name not in tensors})
        twin._buffers.update({name: b.clone() for name, b in twin._buffers.items() if b is not None})
        inner = [module for module in self.modules() if module is not self]
        with alone((args, kwargs), inner) as (args, kwargs):
            base_class(self).forward(twin, *args, **kwargs)
        return {**{name: value for name, value in fields.items() if name not in FIELDS}, **twin._buffers}

    def _forget(self, tensors: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Without what the module made of its weights before it had tasks."""
        kept = self.dts.kept = Kept()
        raws = {name: raw(self, name) for name in tensors}
        own, buffers = self.__dict__, self.__dict__["_buffers"]
        there = {**own, **{name: b for name, b in buffers.items() if name in self._non_persistent_buffers_set}}
        for name, value in kept.begin(self, there, self._run_alone, raws, args, kwargs).items():
            store = buffers if name in buffers else own
            if value is ABSENT:
                del store[name]
            else:
                store[name] = value

    def forward_made(self, made: Callable[[ParameterDelta, Tensor, Routing], Tensor], *args: Any, **kwargs: Any) -> Any:
        """`forward_with` what is made of each parameter that tasks change, of its delta, the base's and the routing."""
        tensors = {}
        for name, delta in self.dts.parameters.items():
            if delta.slots:
                base = raw(self, name)
                tensors[name] = made(delta, base, self.dts.state.on(base.device))
        return self.forward_with(tensors, *args, **kwargs)

    def extra_repr(self) -> str:
        """The base layer's, of its raw parameters: that of a task may not be there."""
        base: Any = base_class(self)
        twin: nn.Module = object.__new__(base)
        twin.__dict__ = self.__dict__
        return base.extra_repr(twin)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Classes that `adopt` makes are made again where the layer is unpickled."""
        reduced = super().__reduce_ex__(protocol)
        new_object = copyreg.__newobj__  # type: ignore[attr-defined]  # not in the stubs
        if not isinstance(reduced, tuple) or reduced[:2] != (new_object, (type(self),)):
            return reduced
        layer = next(c for c in type(self).__mro__ if issubclass(c, Layer) and c.__dict__.get("joined") is None)
        return (rebuilt, (layer, base_class(self)), *reduced[2:])


def _same(given: Tensor, own: Tensor) -> bool:
    """Whether a tensor of a state dict is what a layer has."""
    if given.shape != own.shape or type(given).dequantize is not type(own).dequantize:
        return False
    if type(own).dequantize is not Tensor.dequantize:  # such classes cannot be compared
        given, own = given.dequantize(), own.dequantize()
    return torch.equal(given.to(own.device, own.dtype), own)


def _same_memory(tensor: Tensor, own: Tensor | None) -> bool:
    """Whether a tensor, or what a transform of torch.func wraps in it, is the layer's own or a view of it.

    Raises NotImplementedError in a program, which cannot tell.
    """
    if tracing():
        raise NotImplementedError(
            "torch.func.functional_call of a layer that tasks change, within a compiled program: leave it out of the "
            "program (torch.compiler.disable)"
        )
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    if own is None or type(tensor) is Lazy:
        return False
    memory = memory_of(tensor)
    return tensor is own if memory is None else memory == memory_of(own)


def memory_of(tensor: Tensor) -> int | None:
    """What tells the memory of a tensor, and of all its views, from others; None where its class has no storage."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


def by_name(layer: Layer, x: Tensor | None, named: dict[str, Any]) -> Tensor:
    """The one input of a layer, given by the name that the base's forward has for it.  Raises TypeError for others, or
    if it was given by place too."""
    base = base_class(layer)
    name = list(inspect.signature(base.forward).parameters)[1]  # behind self
    if x is not None or list(named) != [name]:
        given = ["one by place"] * (x is not None) + sorted(named)
        raise TypeError(f"{base.__name__}.forward() takes one input, {name}: it was given {', '.join(given) or 'none'}")
    return named[name]


def device_of(module: nn.Module, tensor: Tensor) -> torch.device:
    """Where a parameter is when its module runs: of one that accelerate has offloaded, where its hook brings it."""
    if not tensor.is_meta:
        return tensor.device
    hook: Any = getattr(module, "_hf_hook", None)
    found = [getattr(one, "execution_device", None) for one in getattr(hook, "hooks", [hook])]
    return next((torch.device(device) for device in found if device is not None), torch.device("cpu"))


@contextmanager
def with_tensors(module: Layer, tensors: dict[str, Tensor]) -> Iterator[None]:
    """The module with other tensors in place of its own parameters and buffers, for a while.  Not thread-safe."""
    stores: dict[str, dict[str, Any]] = {
        name: module._parameters if name in module._parameters else module._buffers for name in tensors
    }
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


def rebuilt(layer: type[Layer], base: type[nn.Module]) -> Layer:
    return object.__new__(layer if base in layer.__mro__ else joined(layer, base))


_classes: dict[tuple[type[Layer], type[nn.Module]], Any] = {}  # those made so far: layers of one kind have one type


def joined(layer: type[Layer], base: type[nn.Module]) -> Any:
    """A class that is both."""
    if (layer, base) not in _classes:
        made = type(layer.__name__, (layer, base), {"__module__": layer.__module__, "joined": True})
        _classes.setdefault((layer, base), made)
    return _classes[layer, base]


def adopt(module: nn.Module, layer: type[L], deltas: LayerDeltas) -> L:
    """Turn a module into a DTS layer, in place.  Raises ValueError for one whose class does not let it."""
    base = base_class(module)
    adopted: Any = module
    if type(module) is _classes.get((layer, base), layer) and module.__dict__.get("dts") is deltas:
        return adopted  # as nearly all are, but for the first task's: an attribute of a module takes 5 microseconds
    try:
        adopted.__class__ = layer if base in layer.__mro__ else joined(layer, base)
    except TypeError as error:  # of classes that are built otherwise, with slots or a base before nn.Module
        raise ValueError(
            f"a {base.__module__}.{base.__name__} cannot run tasks, as Python lets nothing else take the place of its "
            f"class ({error}): load the base without what made it one, or leave these layers as they were"
        ) from error
    adopted.dts = deltas
    bind(adopted, base)
    return adopted


def release(module: nn.Module) -> nn.Module:
    """Turn a DTS layer back into its base layer, in place."""
    if isinstance(module, Layer):
        released: Any = module
        released.__class__ = base = base_class(module)
        del released.dts
        bind(released, base)
    return module


def base_class(module: nn.Module) -> type[nn.Module]:
    """The class a module has, or had before `adopt`."""
    kind = type(module)
    return kind.dts_before if issubclass(kind, Layer) else kind


def standalone(module: nn.Module, layer: type[L]) -> L:
    """A DTS layer of its own that shares the parameters of ``module`` and leaves that as it is."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    twin = object.__new__(type(module))
    twin.__dict__ = dict(module.__dict__)
    for store in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[store] = dict(module.__dict__[store])
    return adopt(twin, layer, LayerDeltas(RoutingState(device)))
