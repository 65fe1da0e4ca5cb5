"""What tasks add to vectors (biases, norms): as in `routing`, and by one launch on a GPU where nobody traces."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import check, dispatch, routing
from ..cpu import native, native_vectors
from ..gpu import vectors
from ..rounded import Addends, if_tensor
from ..routing import Routing
from .library import direct


def add_rows(y: Tensor, adds: Addends, of: Routing) -> Tensor:
    """y + each row's sum of gamma adds[slot], a new tensor; a slot beyond the table adds nothing.

    y: [..., m]; adds: [slots, m].
    """
    entries, rows = of.slots.shape[0], y.numel() // max(1, adds.shape[-1])
    fits = adds.dim() == 2 and adds.shape[1:] == y.shape[-1:] and entries and rows and not rows % entries
    if fits and isinstance(adds, Tensor) and _by_kernel(adds, of, y.dtype, y):
        return vectors.task_rows(adds, of, y, torch.empty_like(y), rows, adds.shape[1])
    return routing.add_rows(y, adds, of)


def task_rows(stack: Addends, of: Routing, dtype: torch.dtype, base: Tensor | None = None) -> Tensor:
    """base (None: zeros) + each entry's sum of gamma stack[slot], [R, ...] in ``dtype``.

    stack: [slots, ...]; base: [...].  With a base the sum is rounded once, from the wider of the two or float32.
    """
    entries = of.slots.shape[0]
    fits = entries and (base is None or base.shape == stack.shape[1:])
    if fits and isinstance(stack, Tensor) and _by_kernel(stack, of, dtype, base):
        out = torch.empty(entries, *stack.shape[1:], dtype=dtype, device=stack.device)
        return vectors.task_rows(stack, of, base, out, entries, 0)
    if base is None:
        return routing.task_rows(stack, of, dtype)
    wide = torch.promote_types(base.dtype, stack.dtype)
    return (base.to(wide) + routing.task_rows(stack, of, wide)).to(dtype)


def vectors_here(given: Sequence[tuple[Tensor, Addends]], of: Routing) -> list[Tensor] | None:
    """`task_rows` of at most two (base [n], stack [slots, n]), float32 on a CPU, in one call of C; None, with nothing
    done, where they are to be asked for one by one."""
    slots, weights = of.slots, of.weights
    n = given[0][0].numel()
    if not check.plain(slots, weights) or weights.is_neg() or not native.variants():
        return None
    for base, stack in given:
        if (
            stack.dtype is not torch.float32
            or base.dtype is not torch.float32
            or stack.dim() != 2
            or base.shape != stack.shape[1:]
            or base.numel() != n
            or not (base.is_cpu and stack.is_cpu and base.is_contiguous())
            or base.is_neg()
            or isinstance(stack, Tensor)
            and (stack.is_neg() or not stack.is_contiguous())
        ):
            return None
    if not direct(*[t for base, stack in given for t in (base, if_tensor(stack))]):
        return None
    return native_vectors.add_vectors(given, slots, weights)


def _by_kernel(stack: Tensor, of: Routing, dtype: torch.dtype, y: Tensor | None) -> bool:
    if torch.compiler.is_compiling() or not vectors.readable(stack, of, dtype, y):
        return False
    return direct(stack, of.slots, of.weights, y) and dispatch.has_triton()
