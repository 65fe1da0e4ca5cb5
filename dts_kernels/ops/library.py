"""The namespace ``dts`` of torch.library: how an op is defined, what autocast does to it, and when it is passed by."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..recorded import recorded

_LIBRARY = torch.library.Library("dts", "DEF")
_AUTOCAST = ("AutocastCPU", "AutocastCUDA")


def op(schema: str, cast: tuple[int, ...] = (), autocast: Callable | None = None):
    """Decorator: the function is the op of that schema, on every device.

    cast: arguments that autocast takes in its dtype; everything inside then runs without it.
    autocast: what runs there instead.
    """
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema)

    def keep(function: Callable) -> Callable:
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        for key in _AUTOCAST:  # torch.library.register_autocast casts to one dtype for ever; this to the region's
            _LIBRARY.impl(name, autocast or _without_autocast(name, cast), key)
        return function

    return keep


def _without_autocast(name: str, cast: tuple[int, ...]) -> Callable:
    def run(*arguments):
        device = next(t for t in arguments if isinstance(t, Tensor)).device.type
        dtype = torch.get_autocast_dtype(device)
        given = [_cast(a, dtype) if i in cast else a for i, a in enumerate(arguments)]
        with torch.autocast(device, enabled=False):
            return getattr(torch.ops.dts, name)(*given)

    return run


def _cast(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return t if t is None or not t.is_floating_point() or t.dtype == torch.float64 else t.to(dtype)


def direct(*tensors: Tensor | None) -> bool:
    """Whether the dispatcher has nothing to add: plain tensors on CPU or GPU, no gradient, nobody tracing.

    It costs the host as much as the product of a small layer.
    """
    if not unwatched():
        return False
    grad = torch.is_grad_enabled()
    for t in tensors:
        if t is not None and (type(t) not in PLAIN or not (t.is_cpu or t.is_cuda) or grad and t.requires_grad):
            return False
    return True


def unwatched() -> bool:
    """The same but for the tensors and their gradients."""
    return not recorded() and not _any_autocast() and forward_ad._current_level < 0


PLAIN, _any_autocast = (Tensor, torch.nn.Parameter), torch._C._is_any_autocast_enabled
