"""The public face of sampled elements: y + x D^T, rows of D and the whole of D, as torch.library ops.

`add_samples`, `add_sampled_rows` and `add_dense_samples` take a `SampleBank` and a `Routing` and call the op of the
same name in the namespace ``dts``.  D is the sum of a row's tasks' samples (`dts_kernels.samples`), gamma each.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import check, dispatch
from .cpu import paths as cpu_paths
from .gpu import sample_products
from .ops import direct, register_autocast
from .routing import Routing
from .sample_bank import SampleBank, samples_of
from .samples import check_samples, dense

_library = torch.library.Library("dts", "FRAGMENT")
_BANK = "Tensor[] codes, Tensor table, Tensor starts, Tensor scales"
_library.define(f"add_samples(Tensor x, Tensor y, {_BANK}, Tensor slots, Tensor weights, bool transposed) -> Tensor")
_library.define(f"add_sampled_rows(Tensor ids, Tensor y, {_BANK}, Tensor slots, Tensor weights, int rows) -> Tensor")
_library.define(f"add_dense_samples(Tensor base, {_BANK}, Tensor gamma) -> Tensor")


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
    run = _add_samples if direct(x, y) else torch.ops.dts.add_samples
    return run(x, y, *bank.arguments, routing.slots, routing.weights, bank.transposed)


def add_sampled_rows(ids: Tensor, y: Tensor, bank: SampleBank, routing: Routing) -> Tensor:
    """y + rows ``ids`` (int64 or int32 [...], -1 = none) of D; y: [..., in_features].  Not of transposed matrices."""
    if bank.transposed:
        raise ValueError("rows of transposed samples would be columns: not supported")
    arguments = (ids, y, *bank.arguments, routing.slots, routing.weights, bank.out_features)
    if direct(ids, y):
        return _add_sampled_rows(*arguments, bank.in_features)
    check.ids(ids, routing.slots, routing.weights, y, bank.in_features)
    return torch.ops.dts.add_sampled_rows(*arguments)


def add_dense_samples(base: Tensor, bank: SampleBank, gamma: Tensor) -> Tensor:
    """base [out_features, in_features] + the sum of gamma D; gamma: float32 [slots], missing ones 0."""
    if tuple(base.shape) != (bank.out_features, bank.in_features):
        raise ValueError(f"base {list(base.shape)} must be {[bank.out_features, bank.in_features]}")
    full = torch.ops.dts.add_dense_samples(base.T if bank.transposed else base, *bank.arguments, gamma)
    return full.T if bank.transposed else full


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _add_samples_reference(x, y, codes, table, starts, scales, slots, weights, transposed):
    sizes = (y.shape[-1], x.shape[-1])
    found = samples_of(codes, table, starts, scales, sizes[::-1] if transposed else sizes)
    wide = _wide(x.dtype)
    rows, full = x.reshape(-1, sizes[1]).to(wide), y.to(wide, copy=True, memory_format=torch.contiguous_format)
    out = full.view(-1, sizes[0])
    each = rows.shape[0] // max(1, slots.shape[0])
    for entry, (own, gammas) in enumerate(zip(slots.tolist(), weights)):
        block = slice(entry * each, (entry + 1) * each)
        for slot, gamma in zip(own, gammas):
            for one in found.get(slot, ()):
                matrix = dense(one, wide)
                out[block] += gamma.to(wide) * (rows[block] @ (matrix if transposed else matrix.T))
    return full.to(y.dtype)


def _add_sampled_rows_reference(ids, y, codes, table, starts, scales, slots, weights, rows):
    if ids.numel() and int(ids.max()) >= rows:
        raise IndexError(f"an id of {int(ids.max())} is beyond the matrix's {rows} rows")
    found = samples_of(codes, table, starts, scales, (rows, y.shape[-1]))
    wide, flat = _wide(y.dtype), ids.flatten()
    full = y.to(wide, copy=True, memory_format=torch.contiguous_format)
    out = full.view(-1, y.shape[-1])
    each = flat.shape[0] // max(1, slots.shape[0])
    for entry, (own, gammas) in enumerate(zip(slots.tolist(), weights)):
        chosen = (flat[entry * each : (entry + 1) * each] >= 0).nonzero()[:, 0] + entry * each
        for slot, gamma in zip(own, gammas):
            for one in found.get(slot, ()):
                out[chosen] += gamma.to(wide) * dense(one, wide, flat[chosen])
    return full.to(y.dtype)


def _add_dense_samples_reference(base, codes, table, starts, scales, gamma):
    check.no_forward_mode()
    if base.dim() != 2:
        raise ValueError(f"base {list(base.shape)} must be a matrix")
    gamma = check.gamma(gamma, base, tuple(base.shape), 0)
    check_samples(codes, table, starts, scales, bool(codes) and codes[0].dim() == 1)
    base = check.real(base)
    wide = _wide(base.dtype)
    out = base.to(wide, copy=True, memory_format=torch.contiguous_format)
    for slot, own in samples_of(codes, table, starts, scales, tuple(base.shape)).items():
        for one in own if slot < gamma.shape[0] and gamma[slot] else ():
            out += gamma[slot].to(wide) * dense(one, wide)
    return out.to(base.dtype)


ADD_SAMPLES = (
    {"reference": _add_samples_reference}
    | cpu_paths.ADD_SAMPLES
    | {
        "triton": sample_products.add_samples,
        "dense": sample_products.add_dense,
    }
)


def _ready(like: Tensor, plain: bool, codes, table, starts, scales, slots, weights):
    """A bank's arguments and a routing (plain: that lies as C reads it) as kernels read them, on the device of
    ``like``, checked; on the CPU without an arena `native_samples` keeps what it has seen of a table."""
    array = getattr(table, "_dts_samples", None)
    if plain and array is not None and like.is_cpu and array.of_now(codes, table, starts, scales):
        return codes, table, starts, scales, slots, weights
    device = like.device
    arena, tensors = bool(codes) and codes[0].dim() == 1, (table, starts, scales, slots, weights)
    check_samples(codes, table, starts, scales, arena)
    codes = [check.flat(c, device) for c in codes] if arena else codes
    if any(c.device != device for c in codes):
        raise ValueError(f"all tensors of a product must be on one device: codes are not on {device}")
    return codes, *(check.flat(t, device) for t in tensors)


def _add_samples(x, y, codes, table, starts, scales, slots, weights, transposed):
    plain = check.product(x, y, slots, weights, None, x.shape[-1] if x.dim() else 0, y.shape[-1] if y.dim() else 0)
    if forward_ad._current_level >= 0:
        check.no_forward_mode()
    plain = plain and not check.signed(x, weights)
    codes, table, starts, scales, slots, weights = _ready(x, plain, codes, table, starts, scales, slots, weights)
    if not (plain and y.is_cpu and not y.is_neg()):
        x, y = check.real(x), check.flat(y, x.device)
    n = x.shape[-1]
    rows = x.numel() // n if n else x.shape[:-1].numel()
    path = dispatch.choose_samples(
        "cpu" if x.is_cpu else x.device.type,
        x.dtype,
        rows,
        slots.shape[0],
        transposed,
        bool(codes) and codes[0].dim() == 1,
    )
    dispatch.ran["add_samples", path] += 1
    return ADD_SAMPLES[path](x, y, codes, table, starts, scales, slots, weights, transposed)


ADD_SAMPLED_ROWS = {"reference": _add_sampled_rows_reference} | cpu_paths.ADD_SAMPLED_ROWS


def _add_sampled_rows(ids, y, codes, table, starts, scales, slots, weights, rows, columns=None):
    if forward_ad._current_level >= 0:
        check.no_forward_mode()
    plain = check.ids(ids, slots, weights, y, columns) and not check.signed(y, weights)
    if not (plain and ids.dtype is torch.int64 and ids.is_cpu and y.is_cpu and ids.is_contiguous()):
        ids, y = check.flat(ids.to(torch.int64), y.device), check.real(y)
    codes, table, starts, scales, slots, weights = _ready(y, plain, codes, table, starts, scales, slots, weights)
    arena = bool(codes) and codes[0].dim() == 1
    path = dispatch.choose_samples(
        "cpu" if y.is_cpu else y.device.type, y.dtype, ids.numel(), slots.shape[0], False, arena
    )
    path = "reference" if arena else path  # rows have no kernel on a GPU
    dispatch.ran["add_sampled_rows", path] += 1
    return ADD_SAMPLED_ROWS[path](ids, y, codes, table, starts, scales, slots, weights, rows)


_library.impl("add_samples", _add_samples, "CompositeExplicitAutograd")
_library.impl("add_sampled_rows", _add_sampled_rows, "CompositeExplicitAutograd")
_library.impl("add_dense_samples", _add_dense_samples_reference, "CompositeExplicitAutograd")


register_autocast(_library, "add_samples", (0, 1))
register_autocast(_library, "add_sampled_rows")
register_autocast(_library, "add_dense_samples")


@torch.library.register_fake("dts::add_samples")
def _(x, y, codes, table, starts, scales, slots, weights, transposed):
    return torch.empty_like(y, memory_format=torch.contiguous_format)


@torch.library.register_fake("dts::add_sampled_rows")
def _(ids, y, codes, table, starts, scales, slots, weights, rows):
    return torch.empty_like(y, memory_format=torch.contiguous_format)


@torch.library.register_fake("dts::add_dense_samples")
def _(base, codes, table, starts, scales, gamma):
    return torch.empty_like(base, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output):
    x, _, codes, *bank, ctx.transposed = inputs
    ctx.save_for_backward(*bank, *codes)
    ctx.features, ctx.tensors = x.shape[-1], len(codes)


def _backward(ctx, grad):
    """dx = dy D: the same op with the matrix the other way round; dy is y's own gradient."""
    grad_x = None
    if ctx.needs_input_grad[0]:
        table, starts, scales, slots, weights, *codes = ctx.saved_tensors
        zeros = grad.new_zeros(*grad.shape[:-1], ctx.features)
        grad_x = torch.ops.dts.add_samples(
            grad, zeros, codes, table, starts, scales, slots, weights, not ctx.transposed
        )
    return grad_x, grad, [None] * ctx.tensors, *[None] * 6


torch.library.register_autograd("dts::add_samples", _backward, setup_context=_setup)


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


torch.library.register_autograd("dts::add_sampled_rows", _unchanged, setup_context=_rows_setup)
torch.library.register_autograd("dts::add_dense_samples", _unchanged, setup_context=_dense_setup)
