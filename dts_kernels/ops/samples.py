"""Sampled elements: y + x D^T, rows of D and the whole of D; D is the sum of a row's tasks' samples, gamma each."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import check, dispatch, sample_contents
from ..gpu import launch, repeat_samples
from ..operands import SampleOperands, StoredSamples, sample_layout, schema
from ..paths import STARTS, Finish
from ..routing import Routing
from ..sample_bank import SampleBank
from .library import direct, op
from .run import choice, chosen, readable_samples


def add_samples(x: Tensor, y: Tensor, bank: SampleBank, routing: Routing) -> Tensor:
    """y + sum over a row's tasks of gamma x D_task^T, a new tensor.

    x: [..., in_features] fp16, bf16, fp32 or fp64; y: [..., out_features] in x's dtype.  Sums run in float32
    (float64 for float64) and are rounded once.  Raises ValueError with all sizes if they do not fit.

    Under autocast x and y are taken in its dtype; float64 stays.  A row's result on a CPU does not depend, bit for bit,
    on the other rows, their number or their tasks.
    """
    if not x.dim() or x.shape[-1] != bank.in_features:
        raise ValueError(f"x {list(x.shape)} {x.dtype} must be floating point and end in {bank.in_features}")
    if y.dim() and y.shape[-1] != bank.out_features:
        raise ValueError(f"y {list(y.shape)} must be {[*x.shape[:-1], bank.out_features]}")
    if direct(x, y):
        operands = bank.operands(routing)
        again = None if bank.arena is None else repeat_samples.add_samples(x, y, operands)
        return _add_samples(x, y, operands, bank.transposed) if again is None else again
    if wrong := check.elsewhere(x, y=y):
        raise ValueError("; ".join(wrong))
    return torch.ops.dts.add_samples(x, y, *bank.new_operands(routing), bank.transposed)


def start_samples(x: Tensor, bank: SampleBank, routing: Routing) -> Finish | None:
    """`add_samples` in two, with the same bits: all of it that needs no y is launched now, to run beside what follows,
    and what is returned, called once with y, gives the result.

    None, with nothing launched, where that would not be faster: unless a CUDA graph is captured, without gradients.
    """
    if bank.arena is None or torch.compiler.is_compiling() or not launch.launcher.captures(launch.launcher.index(x)):
        return None
    return None if torch.is_grad_enabled() or not direct(x) else _start_samples(x, bank, routing)


def add_sampled_rows(ids: Tensor, y: Tensor, bank: SampleBank, routing: Routing) -> Tensor:
    """y + rows ``ids`` (int64 or int32 [...], -1 = none) of D; y: [..., in_features].  Not of transposed matrices."""
    if bank.transposed:
        raise ValueError("rows of transposed samples would be columns: not supported")
    if direct(ids, y):
        return _add_sampled_rows(ids, y, bank.operands(routing), bank.out_features, bank.in_features)
    check.ids(ids, routing.slots, routing.weights, y, bank.in_features)
    return torch.ops.dts.add_sampled_rows(ids, y, *bank.new_operands(routing), bank.out_features)


def add_dense_samples(base: Tensor, bank: SampleBank, gamma: Tensor) -> Tensor:
    """base [out_features, in_features] + the sum of gamma D; gamma: float32 [slots], missing ones 0."""
    if tuple(base.shape) != (bank.out_features, bank.in_features):
        raise ValueError(f"base {list(base.shape)} must be {[bank.out_features, bank.in_features]}")
    full = torch.ops.dts.add_dense_samples(base.T if bank.transposed else base, *bank.arguments, gamma)
    return full.T if bank.transposed else full


# ---- the ops ---------------------------------------------------------------------------------------------------


def _add_samples(x: Tensor, y: Tensor, operands: SampleOperands, transposed: bool) -> Tensor:
    n = x.shape[-1] if x.dim() else 0
    weights = operands.weights
    plain = check.product(x, y, operands.slots, weights, None, n, y.shape[-1] if y.dim() else 0)
    if forward_ad._current_level >= 0:
        check.no_forward_mode()
    plain = plain and not check.signed(x, weights)
    m = y.shape[-1]
    operands, layout = readable_samples(x, plain, operands, (n, m) if transposed else (m, n))
    if not (plain and y.is_cpu and not y.is_neg()):
        x, y = check.real(x), check.flat(y, x.device)
    rows = x.numel() // n if n else x.shape[:-1].numel()
    path = chosen("add_samples", x, x.dtype, rows, operands.slots.shape, layout, transposed)
    return path(x, y, operands, transposed)


def _start_samples(x: Tensor, bank: SampleBank, routing: Routing) -> Finish | None:
    m, n = bank.out_features, bank.in_features
    check.product(x, None, routing.slots, routing.weights, None, n, m)
    operands, layout = readable_samples(x, False, bank.operands(routing), bank.shape)
    x, device, rows = check.real(x), dispatch.device_kind(x.device.type), x.shape[:-1].numel()
    (entries, places), exact = operands.slots.shape, dispatch.exact()
    key, path = choice("add_samples", device, x.dtype, rows, entries, places, layout, bank.transposed, False, exact)
    start = STARTS.get(path)
    finish = None if start is None else start(x, operands, m)
    if finish is None:
        return None
    dispatch.ran[key] += 1

    def checked(y: Tensor) -> Tensor:
        check.product(x, y, operands.slots, operands.weights, None, n, m)
        return finish(check.flat(y, x.device))

    return checked


def _add_sampled_rows(
    ids: Tensor, y: Tensor, operands: SampleOperands, rows: int, columns: int | None = None
) -> Tensor:
    """columns: of the bank, where it is known; else y has the right ones."""
    weights = operands.weights
    if forward_ad._current_level >= 0:
        check.no_forward_mode()
    plain = check.ids(ids, operands.slots, weights, y, columns) and not check.signed(y, weights)
    if not (plain and ids.dtype is torch.int64 and ids.is_cpu and y.is_cpu and ids.is_contiguous()):
        ids, y = check.flat(ids.to(torch.int64), y.device), check.real(y)
    operands, layout = readable_samples(y, plain, operands, (rows, y.shape[-1]))
    path = chosen("add_sampled_rows", y, y.dtype, ids.numel(), operands.slots.shape, layout)
    return path(ids, y, operands, rows)


@op(f"add_samples(Tensor x, Tensor y, {schema(SampleOperands)}, bool transposed) -> Tensor", cast=(0, 1))
def _add_samples_op(x, y, *rest):
    *flat, transposed = rest
    return _add_samples(x, y, SampleOperands(*flat), transposed)


@op(f"add_sampled_rows(Tensor ids, Tensor y, {schema(SampleOperands)}, int rows) -> Tensor")
def _add_sampled_rows_op(ids, y, *rest):
    *flat, rows = rest
    return _add_sampled_rows(ids, y, SampleOperands(*flat), rows)


@op(f"add_dense_samples(Tensor base, {schema(StoredSamples)}, Tensor gamma) -> Tensor")
def _add_dense_samples_op(base, *rest):
    *flat, gamma = rest
    stored = StoredSamples(*flat)
    check.no_forward_mode()
    if base.dim() != 2:
        raise ValueError(f"base {list(base.shape)} must be a matrix")
    gamma = check.gamma(gamma, base, tuple(base.shape), 0)
    layout = sample_layout(stored.codes)
    check.samples(stored, layout == "arena")
    if layout == "arena":
        sample_contents.fit(stored, (base.shape[0], base.shape[1]))
    base = check.real(base)
    path = chosen("add_dense_samples", base, base.dtype, base.shape[0], (1, 1), layout)
    return path(base, stored, gamma)


# ---- fakes and gradients ---------------------------------------------------------------------------------------


@torch.library.register_fake("dts::add_samples")
def _(x, y, *rest):
    return torch.empty_like(y, memory_format=torch.contiguous_format)


@torch.library.register_fake("dts::add_sampled_rows")
def _(ids, y, *rest):
    return torch.empty_like(y, memory_format=torch.contiguous_format)


@torch.library.register_fake("dts::add_dense_samples")
def _(base, *rest):
    return torch.empty_like(base, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output):
    x, _, codes, *tensors, ctx.transposed = inputs
    ctx.save_for_backward(*tensors, *codes)
    ctx.features, ctx.tensors = x.shape[-1], len(codes)


def _backward(ctx, grad):
    """dx = dy D: the same op with the matrix the other way round; dy is y's own gradient."""
    grad_x = None
    if ctx.needs_input_grad[0]:
        table, starts, scales, slots, weights, *codes = ctx.saved_tensors
        operands = SampleOperands(codes, table, starts, scales, slots, weights)
        zeros = grad.new_zeros(*grad.shape[:-1], ctx.features)
        grad_x = torch.ops.dts.add_samples(grad, zeros, *operands, not ctx.transposed)
    return grad_x, grad, [None] * ctx.tensors, *[None] * len(SampleOperands._fields)


def _unchanged(ctx, grad):
    """The gradient of what is added to; ids, codes and weights are constants."""
    before, after = ctx.others
    return *before, grad, *after


def _rows_setup(ctx, inputs, output):
    ids, y, codes, *rest = inputs
    ctx.others = [None], [[None] * len(codes), *[None] * len(rest)]


def _dense_setup(ctx, inputs, output):
    base, codes, *rest = inputs
    ctx.others = [], [[None] * len(codes), *[None] * len(rest)]


torch.library.register_autograd("dts::add_samples", _backward, setup_context=_setup)
torch.library.register_autograd("dts::add_sampled_rows", _unchanged, setup_context=_rows_setup)
torch.library.register_autograd("dts::add_dense_samples", _unchanged, setup_context=_dense_setup)
