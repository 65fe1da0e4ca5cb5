"""Small dense products, a matrix a task: heads, raw deltas."""

from __future__ import annotations

from torch import Tensor, nn

from dts.nn.deltas.held import as_op, in_program
from dts.nn.deltas.stack import Stack
from dts.nn.routing import beside, gammas
from dts_kernels import Routing
from dts_kernels.ops import direct


def per_task_product(x: Tensor, weights: Stack, routing: Routing, transposed: bool = False) -> Tensor:
    """x W_t^T weighted by each row's gammas, for a small dense W_t a task (heads, raw deltas).

    weights: [tasks, out, in] ([tasks, in, out] if transposed).  On a CPU only the products of tasks that some row uses
    are taken.  Elsewhere, and in programs, all of them at once and the row's chosen: another task is another choice,
    never another shape.  Returns [..., out].
    """
    if in_program(x):
        width = weights.size[1 if transposed else 0]
        name = "_transposed_product_in_program" if transposed else "_product_in_program"
        return as_op(weights, name, [x], routing, (*x.shape[:-1], width), x.dtype)
    used = _used(x, weights, routing)
    if used is not None:
        return _of_used(x, weights, routing, used, transposed)
    stack = weights.stack.transpose(1, 2) if transposed else weights.stack
    tasks, width = stack.shape[:2]
    products = nn.functional.linear(x, stack.flatten(0, 1).to(x.dtype)).unflatten(-1, (tasks, width))
    gamma = gammas(routing, tasks).to(x.dtype) * (weights.length > 0)
    return (products * beside(products, gamma[:, :, None])).sum(-2)


def _used(x: Tensor, weights: Stack, routing: Routing) -> list[int] | None:
    """Slots that some row uses and that have a matrix; None where the host cannot know, or should not."""
    slots = routing.slots
    if not slots.is_cpu or not direct(x, slots, routing.weights):
        return None
    return sorted({slot for row in slots.tolist() for slot in row if slot in weights.slots})


def _of_used(x: Tensor, weights: Stack, routing: Routing, used: list[int], transposed: bool) -> Tensor:
    """The same product from these slots' matrices, without a stack: of heads of several sizes that is mostly zeros."""
    width = weights.size[1 if transposed else 0]
    gamma, y = gammas(routing, weights.count).to(x.dtype), None
    for slot in used:
        own = weights.stack[slot].T if transposed else weights.tensor(slot)
        product = nn.functional.linear(x, own.to(x.dtype))
        if own.shape[0] < width:
            product = nn.functional.pad(product, (0, width - own.shape[0]))
        product = product * beside(product, gamma[:, slot : slot + 1])
        y = product if y is None else y + product
    return x.new_zeros(*x.shape[:-1], width) if y is None else y
