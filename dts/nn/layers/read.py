"""A parameter that is read past its layer's own forward: base + delta of the present tasks, made when it is used.

Some modules take a child's weight and use it themselves, ``F.linear(x, self.l.weight)``: Mamba, BEiT, attention of
torch.  A DTS layer's own forward takes its raw parameters from ``_parameters``; what anybody else gets who reads the
attribute while a task changes it is a `Lazy` tensor.  Sizes, dtype and device are the raw parameter's and cost nothing,
writes go to it, any other operation gets the dense tensor of the present mixture.  Nothing has to be found out about
a model beforehand, and no dense tensor outlives the operation that asked for it, but for one whose address was asked
for, as Triton does.  ``parameters()``, optimizers, ``to`` and copies of modules do not come this way: they see the raw
parameter, see `dts.nn.past`; nor does ``state_dict()``, but within a forward.

Why lazy: models look at ``weight.dtype`` in every forward, which must not cost a reconstruction.  Why no storage: C++
that reads a pointer past Python would compute with the base; it fails instead.  Why sparse to C++: an assignment to
``other.data`` asks nobody in Python, and would leave ``other`` without numbers, which many operations read from address
zero.  Of a sparse tensor it is refused.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from dts.nn.layers.layer_deltas import LayerDeltas, RowsApart
from dts.nn.routing import tracing
from dts.sites import is_distributed

_DENSE = {"T", "mT", "H", "mH", "real", "imag"}  # properties that are made of the values
_RAW = {
    "size",
    "dim",
    "ndimension",
    "nelement",
    "numel",
    "stride",
    "element_size",
    "is_contiguous",
    "is_floating_point",
    "is_complex",
    "is_signed",
    "is_pinned",
    "is_shared",
    "is_inference",
    "is_same_size",
    "storage_offset",
    "get_device",
    "__len__",
    "__hash__",
    "register_hook",
    "retain_grad",
    "dim_order",
}
_PLACES = {"data_ptr", "storage", "untyped_storage"}  # where the numbers lie
_PRINTED = {"__repr__", "__str__", "__format__"}


class Lazy(Tensor):
    """Stands for one parameter of one layer; see the module's docstring.

    One that was read in a call of the model is a parameter to those who ask, as what it stands for is, and is never
    written into: outside of calls an assignment to ``weight.data`` is the base's.
    """

    @staticmethod
    def __new__(cls, raw: Tensor, dts: LayerDeltas, name: str) -> Lazy:
        lazy = Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            raw.stride(),
            raw.storage_offset(),
            dtype=raw.dtype,
            layout=torch.sparse_coo,  # ``lazy.layout`` is the raw one's
            device=raw.device,
        )
        now = dts.state.now()
        called = now.called or now.bypassed is not None
        lazy.__dict__.update(raw=raw, dts=dts, name=name, called=called, kept=(None, None))
        if called and isinstance(raw, nn.Parameter):
            lazy.__dict__["_is_param"] = True
        return lazy

    @staticmethod
    def detached(first: Lazy, raw: Tensor) -> Lazy:
        """What ``data`` and ``detach()`` are.  One of a call has the task's numbers in memory of its own, which what
        takes it for its own, ``other.data = weight.data``, goes on to read without a word to anybody."""
        own = vars(first)
        if not own["called"]:
            return Lazy(raw, own["dts"], own["name"])
        dense = _dense(first).detach()
        lazy = Tensor._make_subclass(Lazy, dense)
        lazy.__dict__.update({**own, "raw": raw, "kept": (own["dts"].state.now(), dense)})
        lazy.__dict__.pop("_is_param", None)
        return lazy

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in ("__get__", "__set__"):
            attribute = getattr(getattr(function, "__self__", None), "__name__", "")
            if name == "__get__" and attribute == "data":
                return Lazy.detached(args[0], _raw(args[0]).data)
            take = _dense if name == "__get__" and attribute in _DENSE else _raw if name == "__get__" else _written
            if name == "__set__" and type(args[1]) is Lazy:
                args = args[0], _dense(args[1]).detach()
        elif name == "detach":
            return Lazy.detached(args[0], _raw(args[0]).detach())
        elif name in _RAW or name == "type" and len(args) == 1 and not kwargs:
            take = _raw
        elif name in _PLACES:
            take = _kept
        elif name in _PRINTED:
            try:
                args, take = (_dense(args[0]), *args[1:]), _dense
            except (RuntimeError, ValueError) as error:  # who prints is never stopped by it
                return f"<{error}>"
        elif name == "requires_grad_":
            _raw(args[0]).requires_grad_(*args[1:], **kwargs)
            return args[0]
        elif name == "__deepcopy__":
            return _copied(args[0])
        elif name == "to" and _to_meta(args, kwargs):
            take = _raw  # accelerate puts an offloaded layer's parameters away again
        else:
            take = _dense
            if _writes(name):
                args = tuple(_written(a) if i == 0 and type(a) is Lazy else a for i, a in enumerate(args))
                kwargs = {
                    k: _written(v) if k in ("tensor", "input", "self") and type(v) is Lazy else v
                    for k, v in kwargs.items()
                }
            if type(kwargs.get("out")) is Lazy:
                kwargs = kwargs | {"out": _written(kwargs["out"])}
        with torch._C.DisableTorchFunctionSubclass():
            args, kwargs = tree_map_only(Lazy, take, (args, kwargs))
        return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """What comes past ``__torch_function__``: operations that C++ calls."""
        with torch._C.DisableTorchFunctionSubclass():
            args, kwargs = tree_map_only(Lazy, _dense, (args, kwargs or {}))
        return function(*args, **kwargs)


def _writes(name: str) -> bool:
    special = name.startswith("__") and name.endswith("__")
    return (
        name == "__setitem__"
        or special
        and name.startswith("__i")
        and name not in ("__int__", "__invert__", "__index__", "__iter__")
        or not special
        and name.endswith("_")
    )


def _to_meta(args: Any, kwargs: Any) -> bool:
    """Whether these are arguments of ``to`` that ask for no numbers."""
    return any(isinstance(a, str | torch.device) and str(a) == "meta" for a in (*args, *kwargs.values()))


def _raw(lazy: Lazy) -> Tensor:
    return vars(lazy)["raw"]


def _dense(lazy: Lazy) -> Tensor:
    own = vars(lazy)
    call, kept = own["kept"]
    if call is own["dts"].state.now():
        return kept
    return dense_parameter(own["dts"], own["name"], own["raw"])


def _kept(lazy: Lazy) -> Tensor:
    """What is asked where its numbers lie: in a call it is the task's, which stays as long as this does."""
    own = vars(lazy)
    if not own["called"]:
        return own["raw"]
    own["kept"] = own["dts"].state.now(), _dense(lazy)
    return own["kept"][1]


def _copied(lazy: Lazy) -> Tensor:
    """By `copy.deepcopy`."""
    dense = _dense(lazy).detach().clone()
    raw = _raw(lazy)
    return nn.Parameter(dense, raw.requires_grad) if isinstance(raw, nn.Parameter) else dense


def _written(lazy: Lazy) -> Tensor:
    """The base's tensor, to be written into; not by a model's forward, whose writes are meant for the task's."""
    own = vars(lazy)
    dts = own["dts"]
    if own["called"] or dts.state.now().called:
        raise RuntimeError(
            f"a forward writes into {dts.name}.{own['name']}, which is another tensor for each task: "
            f"an option of the model may keep it from that"
        )
    return own["raw"]


def read(dts: LayerDeltas, name: str, raw: Tensor) -> Tensor:
    """What reading a parameter or buffer gives that some task changes."""
    if dts.inside or is_distributed(raw) and dts.split is None:  # FSDP's own: in a forward they are whole, and plain
        return raw
    if tracing():
        return dense_parameter(dts, name, raw)  # in a program another task is another input, also from or to the base
    if raw.is_meta:  # offloaded, with nothing to add to: accelerate brings it before the forward
        return raw
    now = dts.state.now()
    delta = dts.parameters[name]
    if now.bypassed is None and not now.uses(delta.slots) and not (delta.values.filled and dts.name in now.missing):
        if now.seen is not None:  # the first call after a load, in which a model would prepare weights for itself
            now.seen.add(f"{dts.name}.{name}")
            return Lazy(raw, dts, name) if now.called else raw
        return raw
    if delta.values.filled or delta.added.filled:
        return dense_parameter(dts, name, raw)  # of another shape, perhaps
    return Lazy(raw, dts, name)


def dense_parameter(dts: LayerDeltas, name: str, raw: Tensor) -> Tensor:
    """The whole tensor of the present mixture; gradients go to the base's.

    Raises RuntimeError if rows have different tasks: what reads the tensor cannot tell rows apart.
    """
    delta, now = dts.parameters[name], dts.state.now()
    if not tracing() and now.seen is not None:
        now.seen.add(f"{dts.name}.{name}")
    if now.bypassed is not None:
        if now.rows > 1:
            now.bypassed.add(dts.name)
        return raw
    if delta.values.filled and dts.name in now.missing:
        raise ValueError(now.missing[dts.name])
    if now.rows != 1:
        raise RowsApart(
            f"{dts.name}.{name} is read past the forward of its layer, which has no value for each of {now.rows} rows",
            dts.name,
            "another module reads its parameters, for all rows at once",
        )
    if not tracing() and not now.uses(delta.slots):
        return raw
    if is_distributed(raw):
        raise RuntimeError(
            f"{dts.name}.{name} is read past the forward of its layer, and lies on several processes: leave the layer "
            f"out of the plan"
        )
    plain = nullcontext() if tracing() else torch.no_grad()
    with plain:
        full = delta.whole(raw, now.on(raw.device))
    if torch.is_grad_enabled() and raw.requires_grad and full.shape == raw.shape:
        return full.detach() + (raw - raw.detach()) if tracing() else _Moved.apply(raw, full)
    return full


class _Moved(torch.autograd.Function):
    """The dense tensor, whose gradient is the base parameter's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(raw: Tensor, full: Tensor) -> Tensor:
        return full.view_as(full)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
