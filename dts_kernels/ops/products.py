"""y + x Delta^T and x W^T + b + x Delta^T: products of packed factors with the rows of x."""

import torch
from torch import Tensor

from .. import check
from ..bank import Bank
from ..gpu import repeat
from ..operands import FactorOperands, schema
from ..paths import TAKES_ADDS
from ..rounded import Addends, as_tensor, if_tensor
from ..routing import Routing
from .library import direct, op
from .run import chosen, fit, readable
from .vectors import add_rows


def delta_linear(
    x: Tensor, bank: Bank, routing: Routing, y: Tensor | None = None, adds: Addends | None = None
) -> Tensor:
    """y + sum over a row's tasks of gamma (((x V^T) o sigma) U^T + adds[task]).

    x: [..., in_features] fp16, bf16, fp32 or fp64; y: [..., out_features] or None for zeros;
    adds: float32 [slots, out_features], perhaps in few bits, or None (biases that differ from task to task).
    Returns [..., out_features] in x's dtype; sums run in float32 (float64 for float64).
    Raises ValueError with all sizes if they do not fit.

    Under autocast x and y are taken in its dtype, as `torch.nn.Linear` takes its input; float64 stays.

    A row's result does not depend, bit for bit, on the other rows of the batch nor on their tasks.  It depends on their
    number where the routing has one entry for all of them: from `cpu.rules`' crossover on, factors are unpacked for the
    library's products.  The two differ by no more than the rounding of the packed ones, x and t = (x V) o sigma in 16
    bits (2^-16 of the largest of each, through |V| and |U|; float32's own in `exact_products`), and for bf16 that of
    the library's (3 2^-9 of |t| |U^T|).
    """
    if direct(x, y, if_tensor(adds)):
        adds = as_tensor(adds, routing.slots)
        again = None if bank.layout == "disk" else repeat.delta_linear(x, y, bank.table, routing, adds)
        if again is not None:
            return again
        return _delta_linear(x, y, bank.operands(routing), False, adds, bank.in_features)
    same = y if _same_autocast(x, y) else None
    check.product(x, same, routing.slots, routing.weights, if_tensor(adds), bank.in_features, bank.out_features)
    out = torch.ops.dts.delta_linear(x, y, *bank.new_operands(routing), False)
    return out if adds is None else add_rows(out, adds, routing)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, bank: Bank, routing: Routing, adds: Addends | None = None
) -> Tensor:
    """x W^T + b + the delta (and ``adds``, as in `delta_linear`) of each row's tasks, in one call.

    weight: [out_features, in_features] and bias [out_features] in x's dtype.

    Under autocast it does what `torch.nn.Linear` does there: x, weight and bias are taken in autocast's dtype, which
    the result has; float64 stays.  The base product is the library's, of all rows at once: a plain model's bits.
    """
    if direct(x, weight, bias, if_tensor(adds)):
        adds = as_tensor(adds, routing.slots)
        again = None if bank.layout == "disk" else repeat.linear(x, weight, bias, bank.table, routing, adds)
        if again is not None:
            return again
        return _linear(x, weight, bias, bank.operands(routing), adds, bank.in_features)
    if weight.shape != bank.shape:
        raise ValueError(f"weight {list(weight.shape)} must be {list(bank.shape)}, as the bank's tasks are")
    if wrong := check.elsewhere(x, weight=weight, bias=bias):  # one of the meta device would make all of it shapes only
        raise ValueError("; ".join(wrong))
    check.product(x, None, routing.slots, routing.weights, if_tensor(adds), bank.in_features, bank.out_features)
    out = torch.ops.dts.linear(x, weight, bias, *bank.new_operands(routing))
    return out if adds is None else add_rows(out, adds, routing)


def _same_autocast(x: Tensor, y: Tensor | None) -> bool:
    """Whether y must have x's dtype already: autocast makes them one."""
    return y is None or not torch.is_autocast_enabled(x.device.type)


# ---- the ops ---------------------------------------------------------------------------------------------------


def _delta_linear(
    x: Tensor,
    y: Tensor | None,
    operands: FactorOperands,
    transposed: bool,
    adds: Tensor | None = None,
    in_features: int | None = None,
) -> Tensor:
    """in_features: of the bank, where it is known; else x has the right one."""
    slots, weights, m = operands.slots, operands.weights, operands.out_features
    n = in_features if in_features is not None else x.shape[-1] if x.dim() else 0
    plain = check.product(x, y, slots, weights, adds, n, m)
    fit(x, operands, *((n, m) if transposed else (m, n)))
    if not plain or check.signed(x, weights, adds):
        x, operands, adds = readable(x, operands, adds)
    y = None if y is None else check.real(y)
    rows = x.numel() // n if n else x.shape[:-1].numel()
    layout, rank = operands.layout, operands.max_rank
    sizes = (0, 0, 0) if layout == "disk" else (m, n, rank)
    path = chosen("delta_linear", x, x.dtype, rows, slots.shape, layout, transposed, rank == 0, sizes)
    if adds is None:
        return path(x, y, operands, transposed)
    if path in TAKES_ADDS:
        return path(x, y, operands, transposed, adds=adds)
    return add_rows(path(x, y, operands, transposed), adds, Routing(operands.slots, operands.weights))


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    operands: FactorOperands,
    adds: Tensor | None = None,
    in_features: int | None = None,
) -> Tensor:
    slots, weights, m = operands.slots, operands.weights, operands.out_features
    n = in_features if in_features is not None else x.shape[-1] if x.dim() else 0
    plain = check.product(x, None, slots, weights, adds, n, m)
    if weight.shape != (m, n) or weight.dtype is not x.dtype or weight.layout is not torch.strided:
        raise ValueError(f"weight {list(weight.shape)} {weight.dtype} must be dense [{m}, {n}] {x.dtype}")
    if bias is not None and (bias.shape != (m,) or bias.dtype is not x.dtype):
        raise ValueError(f"bias {list(bias.shape)} {bias.dtype} must be [{m}] {x.dtype}")
    if not (x.is_cpu and weight.is_cpu) and (wrong := check.elsewhere(x, weight=weight, bias=bias)):
        raise ValueError("; ".join(wrong))
    fit(x, operands, m, n)
    if not plain or check.signed(x, weights, adds):
        x, operands, adds = readable(x, operands, adds)
    rows = x.numel() // n if n else x.shape[:-1].numel()
    layout, rank = operands.layout, operands.max_rank
    sizes = (0, 0, 0) if layout == "disk" else (m, n, rank)
    path = chosen("linear", x, x.dtype, rows, slots.shape, layout, False, rank == 0, sizes)
    if adds is None:
        return path(x, weight, bias, operands)
    if path in TAKES_ADDS:
        return path(x, weight, bias, operands, adds=adds)
    return add_rows(path(x, weight, bias, operands), adds, Routing(operands.slots, operands.weights))


@op(f"delta_linear(Tensor x, Tensor? y, {schema(FactorOperands)}, bool transposed) -> Tensor", cast=(0, 1))
def _delta_linear_op(x, y, *rest):
    *flat, transposed = rest
    return _delta_linear(x, y, FactorOperands(*flat), transposed)


def _autocast_linear(x, weight, bias, *flat):
    y = torch.nn.functional.linear(x, weight, bias)  # as autocast makes it, the weight's copy kept for the region
    return torch.ops.dts.delta_linear(x.to(y.dtype), y, *flat, False)


@op(f"linear(Tensor x, Tensor weight, Tensor? bias, {schema(FactorOperands)}) -> Tensor", autocast=_autocast_linear)
def _linear_op(x, weight, bias, *flat):
    return _linear(x, weight, bias, FactorOperands(*flat))


# ---- fakes and gradients ---------------------------------------------------------------------------------------


@torch.library.register_fake("dts::delta_linear")
def _(x, y, *rest):
    *flat, _ = rest
    operands = FactorOperands(*flat)
    n, m = x.shape[-1] if x.dim() else 0, operands.out_features
    check.product(x, y, operands.slots, operands.weights, None, n, m)
    return x.new_empty(x.shape[:-1] + (m,))


@torch.library.register_fake("dts::linear")
def _(x, weight, bias, *flat):
    return x.new_empty(x.shape[:-1] + (FactorOperands(*flat).out_features,))


def _save(ctx, in_features: int, operands: FactorOperands, *others: Tensor | None) -> None:
    """Everything that backward reads, so that a change in place meanwhile is an error."""
    packed, table, slots, weights, _, max_rank, layout = operands
    ctx.save_for_backward(*others, table, slots, weights, *packed)
    ctx.sizes, ctx.tensors = (in_features, max_rank, layout), len(packed)


def _grad_x(ctx, saved, grad: Tensor) -> Tensor:
    """dx = ((dy U) o sigma) V: the same op with the roles of U and V exchanged.

    saved: what `_save` kept; checkpoints let it be taken out of the context once only.
    """
    table, slots, weights, *packed = saved
    return torch.ops.dts.delta_linear(grad, None, *FactorOperands(packed, table, slots, weights, *ctx.sizes), True)


def _no_gradients(ctx) -> list:
    """For the operands, which are constants."""
    return [[None] * ctx.tensors, *[None] * (len(FactorOperands._fields) - 1)]


def _delta_linear_setup(ctx, inputs, output):
    x, y, *flat, transposed = inputs
    if transposed:
        raise RuntimeError("second derivatives of delta_linear are not supported")
    _save(ctx, x.shape[-1], FactorOperands(*flat))
    ctx.has_y = y is not None


def _delta_linear_backward(ctx, grad):
    grad_x = _grad_x(ctx, ctx.saved_tensors, grad) if ctx.needs_input_grad[0] else None
    return grad_x, grad if ctx.has_y else None, *_no_gradients(ctx), None


def _linear_setup(ctx, inputs, output):
    x, weight, bias, *flat = inputs
    _save(ctx, x.shape[-1], FactorOperands(*flat), weight, x if weight.requires_grad else None)


def _linear_backward(ctx, grad):
    grad_x = grad_weight = grad_bias = None
    weight, x, *saved = ctx.saved_tensors
    rows = grad.flatten(0, -2) if grad.dim() > 1 else grad[None]
    if ctx.needs_input_grad[0]:
        grad_x = torch.nn.functional.linear(grad, weight.T) + _grad_x(ctx, saved, grad)
    if ctx.needs_input_grad[1]:
        grad_weight = rows.T @ (x.flatten(0, -2) if x.dim() > 1 else x[None])
    if ctx.needs_input_grad[2]:
        grad_bias = rows.sum(0)
    return grad_x, grad_weight, grad_bias, *_no_gradients(ctx)


torch.library.register_autograd("dts::delta_linear", _delta_linear_backward, setup_context=_delta_linear_setup)
torch.library.register_autograd("dts::linear", _linear_backward, setup_context=_linear_setup)
