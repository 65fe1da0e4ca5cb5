"""The public face: products with packed factors as torch.library ops.

`delta_linear`, `linear`, `delta_embedding` and `reconstruct` take a `Bank` and a `Routing` and call the op of the same
name in the namespace ``dts``, which has a fake (shapes without data), autograd for x (factors are
constants) and an implementation for every device.
"""

from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import check, contents, dispatch, reference
from .bank import Bank
from .contents import factors_of
from .cpu import native
from .cpu import paths as cpu_paths
from .dispatch import Problem
from .gpu import products
from .routing import Routing, add_rows

_library = torch.library.Library("dts", "DEF")
_BANK = "Tensor[] packed, Tensor table, Tensor slots, Tensor weights, int out_features, int max_rank, str layout"
_library.define(f"delta_linear(Tensor x, Tensor? y, {_BANK}, bool transposed) -> Tensor")
_library.define(f"linear(Tensor x, Tensor weight, Tensor? bias, {_BANK}) -> Tensor")
_library.define(
    "reconstruct(Tensor[] packed, Tensor table, Tensor gamma, Tensor? base, int out_features, int in_features, "
    "int max_rank, str layout, ScalarType dtype) -> Tensor"
)

_library.define(f"delta_embedding(Tensor ids, {_BANK}, int in_features, ScalarType dtype) -> Tensor")

# path name -> implementation; the fast paths add theirs when they are imported
DELTA_LINEAR, LINEAR, RECONSTRUCT, DELTA_EMBEDDING = {}, {}, {}, {}


def delta_linear(
    x: Tensor, bank: Bank, routing: Routing, y: Tensor | None = None, adds: Tensor | None = None
) -> Tensor:
    """y + sum over a row's tasks of gamma (((x V^T) o sigma) U^T + adds[task]).

    x: [..., in_features] fp16, bf16, fp32 or fp64; y: [..., out_features] or None for zeros;
    adds: float32 [slots, out_features] or None (biases that differ from task to task).
    Returns [..., out_features] in x's dtype; sums run in float32 (float64 for float64).
    Raises ValueError with all sizes if they do not fit.

    Under autocast x and y are taken in its dtype, as `torch.nn.Linear` takes its input; float64 stays.

    A row's result does not depend, bit for bit, on the other rows of the batch nor on their tasks.  It depends on their
    number where the routing has one entry for all of them: from `cpu.rules`' crossover on, factors are unpacked for the
    library's products.  The two differ by no more than the rounding of the packed ones, x and t = (x V) o sigma in 16
    bits (2^-16 of the largest of each, through |V| and |U|; float32's own in `exact_products`), and for bf16 that of
    the library's (3 2^-9 of |t| |U^T|).
    """
    if direct(x, y, adds):
        return _delta_linear(*_flat(bank, routing, x, y), False, adds, bank.in_features)
    check.product(
        x,
        y if _same_autocast(x, y) else None,
        routing.slots,
        routing.weights,
        adds,
        bank.in_features,
        bank.out_features,
    )
    out = torch.ops.dts.delta_linear(*_flat(bank, routing, x, y), False)
    return out if adds is None else add_rows(out, adds, routing)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, bank: Bank, routing: Routing, adds: Tensor | None = None
) -> Tensor:
    """x W^T + b + the delta (and ``adds``, as in `delta_linear`) of each row's tasks, in one call.

    weight: [out_features, in_features] and bias [out_features] in x's dtype.

    Under autocast it does what `torch.nn.Linear` does there: x, weight and bias are taken in autocast's dtype, which
    the result has; float64 stays.  The base product is the library's, of all rows at once: a plain model's bits.
    """
    if direct(x, weight, bias, adds):
        return _linear(*_flat(bank, routing, x, weight, bias), adds, bank.in_features)
    if weight.shape != bank.shape:
        raise ValueError(f"weight {list(weight.shape)} must be {list(bank.shape)}, as the bank's tasks are")
    check.product(x, None, routing.slots, routing.weights, adds, bank.in_features, bank.out_features)
    out = torch.ops.dts.linear(*_flat(bank, routing, x, weight, bias))
    return out if adds is None else add_rows(out, adds, routing)


def _flat(bank: Bank, routing: Routing, *tensors):
    packed, table, max_rank = bank._derived()
    return (*tensors, packed, table, routing.slots, routing.weights, bank.out_features, max_rank, bank.layout)


def _same_autocast(x: Tensor, y: Tensor | None) -> bool:
    """Whether y must have x's dtype already: autocast makes them one."""
    return y is None or not torch.is_autocast_enabled(x.device.type)


def delta_embedding(ids: Tensor, bank: Bank, routing: Routing, dtype=torch.float32) -> Tensor:
    """Rows of the dense delta of each row's tasks: sum of gamma U[id] diag(sigma) V.

    ids: int64 or int32 [...], rows of the matrix, -1 for none (zeros).  Returns ``dtype`` [..., bank.in_features].
    Ids that no row has raise IndexError.  On a GPU this reads ids and routing on the host: right, but it waits for the
    device and cannot be captured in a CUDA graph.
    """
    check.ids(ids, routing.slots, routing.weights)
    return torch.ops.dts.delta_embedding(*_flat(bank, routing, ids), bank.in_features, dtype)


def add_embedding(ids: Tensor, y: Tensor, parts: "EmbeddingParts", routing: Routing) -> Tensor:
    """y + what `delta_embedding` gives, for banks that each hold some rows of one matrix.

    ids: int64 or int32 [...], rows of the whole matrix, -1 for none; y: [..., n].  May write into y, which is returned.
    """
    slots, weights = routing.slots, routing.weights
    plain = check.ids(ids, slots, weights, y, parts.columns) and parts.native and direct(ids, y)
    if plain and y.dtype in native.DTYPES and y.is_contiguous() and not (y.is_neg() or weights.is_neg()):
        tasks = parts.tasks()
        if tasks is not None:
            dispatch.ran["delta_embedding", "native"] += 1
            return native.embedding(ids, y, tasks, slots, weights, parts.rows, y.shape[-1], y.dtype, in_place=True)
    for bank, lookup in parts.banks:
        where = ids if lookup is None else torch.where(ids < 0, -1, lookup[ids.clamp(min=0).long()].long())
        y = y + delta_embedding(where, bank, routing, y.dtype)
    return y


class EmbeddingParts:
    """Banks of one matrix [rows, n] for `add_embedding`, no slot in two of them.

    banks: each with int32 [rows], the bank's row of every row of the matrix (-1: none), or None where it has all.
    """

    def __init__(self, banks: list[tuple[Bank, Tensor | None]], rows: int):
        self.banks, self.rows = banks, rows
        columns = {bank.in_features for bank, _ in banks}
        if len(columns) > 1:
            raise ValueError(f"banks of one matrix must have its columns, not {sorted(columns)}")
        self.columns = min(columns, default=None)
        slots = [slot for bank, _ in banks for slot in bank.slots]
        self.native = all(bank.layout == "disk" and bank.device.type == "cpu" for bank, _ in banks)
        self.native &= len(slots) == len(set(slots))
        self._tasks = None

    def tasks(self) -> "native.Tasks | None":
        """What C reads; None without the library or where a task has levels."""
        if self._tasks is None:
            if not native.variant():
                return None
            self._tasks = native.Tasks.join([(native.Tasks.of(b.packed, b.table), lookup) for b, lookup in self.banks])
        return None if self._tasks.levels else self._tasks


def reconstruct(
    bank: Bank, gamma: dict[int, float] | Tensor, base: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """base + sum_s gamma_s U_s diag(sigma_s) V_s, dense.

    gamma: slot -> weight, or float32 [slots]; base: [out_features, in_features] or None for zeros.
    Returns [out_features, in_features] in ``dtype`` (default: base's, else float32).
    """
    if isinstance(gamma, dict):
        unknown = [s for s in gamma if s not in bank.slots]
        if unknown:
            raise KeyError(f"no task in slot {unknown}; the bank's slots are {bank.slots}")
        gamma = torch.tensor([gamma.get(s, 0.0) for s in range(bank.table.shape[0])], device=bank.table.device)
    dtype = dtype or (base.dtype if base is not None else torch.float32)
    packed, table, max_rank = bank._derived()
    return torch.ops.dts.reconstruct(
        packed, table, gamma, base, bank.out_features, bank.in_features, max_rank, bank.layout, dtype
    )


def direct(*tensors: Tensor | None) -> bool:
    """Whether the dispatcher has nothing to add: plain tensors on the CPU, no gradient, nobody tracing.

    It costs as much as the product of a small layer.
    """
    if _is_compiling() or _dispatch_modes() or _tracing():
        return False
    if _functorch_level() is not None or _any_autocast() or forward_ad._current_level >= 0:
        return False
    grad = torch.is_grad_enabled()
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN or not t.is_cpu or grad and t.requires_grad):
            return False
    return True


_PLAIN, _is_compiling = (Tensor, torch.nn.Parameter), torch.compiler.is_compiling
_dispatch_modes, _tracing = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state
_functorch_level, _any_autocast = torch._C._functorch.peek_interpreter_stack, torch._C._is_any_autocast_enabled


@lru_cache(maxsize=4096)
def _path(
    op: str,
    device: str,
    dtype: torch.dtype,
    rows: int,
    in_features: int,
    out_features: int,
    max_rank: int,
    entries: int,
    places: int,
    tasks: int,
    layout: str,
    transposed: bool,
    exact: bool,
) -> str:
    dtype = str(dtype).removeprefix("torch.")
    return dispatch.choose(
        Problem(
            op,
            device,
            dtype,
            rows,
            in_features,
            out_features,
            max_rank,
            entries,
            places,
            tasks,
            layout,
            transposed,
            exact,
        )
    )


@lru_cache(maxsize=4096)
def _disk_path(op: str, dtype: torch.dtype, rows: int, entries: int, places: int, exact: bool) -> str:
    """`_path` of a product with disk bytes on the CPU, from all that it looks at there: fewer things to hash."""
    return _path(op, "cpu", dtype, rows, 0, 0, 0, entries, places, 0, "disk", False, exact)


def _run(
    paths: dict,
    op: str,
    x: Tensor,
    slots: Tensor,
    weights: Tensor,
    table: Tensor,
    out_features: int,
    max_rank: int,
    layout: str,
    transposed: bool,
    adds: Tensor | None,
    *arguments,
):
    n, (entries, places) = x.shape[-1], slots.shape
    rows = x.numel() // n if n else x.shape[:-1].numel()
    if layout == "disk" and x.is_cpu:
        path = _disk_path(op, x.dtype, rows, entries, places, dispatch.exact())
    else:
        device = x.device.type if layout == "disk" else dispatch.device_kind(x.device.type)
        path = _path(
            op,
            device,
            x.dtype,
            rows,
            n,
            out_features,
            max_rank,
            entries,
            places,
            table.shape[0],
            layout,
            transposed,
            dispatch.exact(),
        )
    dispatch.ran[op, path] += 1
    if adds is None:
        return paths[path](*arguments)
    if path in cpu_paths.ADDS:
        return paths[path](*arguments, adds=adds)
    return add_rows(paths[path](*arguments), adds, Routing(slots, weights))


# ---- implementations -------------------------------------------------------------------------------------------


def _held(x: Tensor, packed, table, layout: str, max_rank: int, m: int, n: int) -> None:
    if forward_ad._current_level >= 0:
        check.no_forward_mode()
    held = contents.of(packed, table)
    if held.shape != (m, n) or not held.on_cpu or not x.is_cpu or layout != "disk":
        held.fit(layout, (m, n), max_rank, table, x.device)


def _readable(x: Tensor, slots: Tensor, weights: Tensor, adds: Tensor | None):
    """These as kernels read them."""
    device = x.device
    x, slots, weights = check.real(x), check.flat(slots, device), check.flat(weights, device)
    return x, slots, weights, None if adds is None else check.flat(adds, device)


def _delta_linear(
    x, y, packed, table, slots, weights, out_features, max_rank, layout, transposed, adds=None, in_features=None
):
    n = in_features if in_features is not None else x.shape[-1] if x.dim() else 0
    plain = check.product(x, y, slots, weights, adds, n, out_features)
    m, n = (n, out_features) if transposed else (out_features, n)
    _held(x, packed, table, layout, max_rank, m, n)
    if not plain or check.signed(x, weights, adds):
        x, slots, weights, adds = _readable(x, slots, weights, adds)
    y = None if y is None else check.real(y)
    return _run(
        DELTA_LINEAR,
        "delta_linear",
        x,
        slots,
        weights,
        table,
        out_features,
        max_rank,
        layout,
        transposed,
        adds,
        x,
        y,
        packed,
        table,
        slots,
        weights,
        out_features,
        max_rank,
        transposed,
    )


def _linear(
    x, weight, bias, packed, table, slots, weights, out_features, max_rank, layout, adds=None, in_features=None
):
    n = in_features if in_features is not None else x.shape[-1] if x.dim() else 0
    plain = check.product(x, None, slots, weights, adds, n, out_features)
    if weight.shape != (out_features, n) or weight.dtype is not x.dtype or weight.layout is not torch.strided:
        raise ValueError(f"weight {list(weight.shape)} {weight.dtype} must be dense [{out_features}, {n}] {x.dtype}")
    if bias is not None and (bias.shape != (out_features,) or bias.dtype is not x.dtype):
        raise ValueError(f"bias {list(bias.shape)} {bias.dtype} must be [{out_features}] {x.dtype}")
    _held(x, packed, table, layout, max_rank, out_features, n)
    if not plain or check.signed(x, weights, adds):
        x, slots, weights, adds = _readable(x, slots, weights, adds)
    return _run(
        LINEAR,
        "linear",
        x,
        slots,
        weights,
        table,
        out_features,
        max_rank,
        layout,
        False,
        adds,
        x,
        weight,
        bias,
        packed,
        table,
        slots,
        weights,
        out_features,
        max_rank,
    )


def _reconstruct(packed, table, gamma, base, out_features, in_features, max_rank, layout, dtype):
    check.no_forward_mode()
    if dtype not in check.FLOATS:
        raise ValueError(f"a dense matrix must be floating point of 16, 32 or 64 bits, not {dtype}")
    gamma = check.gamma(gamma, base, (out_features, in_features), table.shape[0])
    base = None if base is None else check.real(base)
    held = contents.of(packed, table)
    held.fit(layout, (out_features, in_features), max_rank, table, None if base is None else base.device)
    device = packed[0].device.type if packed else "cpu"
    path = _path(
        "reconstruct",
        dispatch.device_kind(device) if layout != "disk" else device,
        dtype,
        out_features,
        in_features,
        out_features,
        max_rank,
        1,
        1,
        table.shape[0],
        layout,
        False,
        dispatch.exact(),
    )
    dispatch.ran["reconstruct", path] += 1
    return RECONSTRUCT[path](packed, table, gamma, base, out_features, in_features, max_rank, dtype)


def _delta_linear_reference(x, y, packed, table, slots, weights, out_features, max_rank, transposed):
    sizes = (out_features, x.shape[-1]) if transposed else (x.shape[-1], out_features)
    factors, exponents = factors_of(packed, table, *sizes, transposed)
    out = reference.delta_linear(
        x.flatten(0, -2) if x.dim() > 1 else x[None], factors, slots, weights, out_features, exponents
    )
    out = out.reshape(x.shape[:-1] + (out_features,))
    return (out if y is None else out + y).to(x.dtype)


def _linear_reference(x, weight, bias, packed, table, slots, weights, out_features, max_rank):
    y = torch.nn.functional.linear(x, weight, bias)
    return _delta_linear_reference(x, y, packed, table, slots, weights, out_features, max_rank, False)


def _reconstruct_reference(packed, table, gamma, base, out_features, in_features, max_rank, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    device = base.device if base is not None else packed[0].device if packed else None
    shape = (out_features, in_features)
    out = torch.zeros(shape, dtype=wide, device=device) if base is None else base.to(wide, copy=True)
    for slot, factors in factors_of(packed, table, in_features, out_features)[0].items():
        if gamma[slot]:
            out += gamma[slot] * reference.reconstruct(factors, wide)
    return out.to(dtype)


def _delta_embedding(ids, packed, table, slots, weights, out_features, max_rank, layout, in_features, dtype):
    check.ids(ids, slots, weights)
    if dtype not in check.FLOATS:
        raise ValueError(f"rows must be floating point of 16, 32 or 64 bits, not {dtype}")
    _held(ids, packed, table, layout, max_rank, out_features, in_features)
    ids, slots, weights = (check.flat(t, ids.device) for t in (ids.to(torch.int64), slots, weights))
    if ids.numel() and (largest := int(ids.max())) >= out_features:
        raise IndexError(f"an id of {largest} is beyond the matrix's {out_features} rows")
    path = _path(
        "delta_embedding",
        ids.device.type,
        dtype,
        ids.numel(),
        in_features,
        out_features,
        max_rank,
        *slots.shape,
        table.shape[0],
        layout,
        False,
        dispatch.exact(),
    )
    dispatch.ran["delta_embedding", path] += 1
    return DELTA_EMBEDDING[path](ids, packed, table, slots, weights, out_features, in_features, dtype)


def _delta_embedding_reference(ids, packed, table, slots, weights, out_features, in_features, dtype):
    factors = factors_of(packed, table, in_features, out_features)[0]
    out = reference.delta_embedding(
        ids.flatten(), factors, slots, weights, in_features, torch.float64 if dtype == torch.float64 else torch.float32
    )
    return out.reshape(*ids.shape, in_features).to(dtype)


DELTA_EMBEDDING["reference"] = _delta_embedding_reference
DELTA_LINEAR["reference"] = _delta_linear_reference
LINEAR["reference"] = _linear_reference
RECONSTRUCT["reference"] = _reconstruct_reference
DELTA_LINEAR.update(cpu_paths.DELTA_LINEAR)
LINEAR.update(cpu_paths.LINEAR)
RECONSTRUCT.update(cpu_paths.RECONSTRUCT)

for paths, name, path in (
    (DELTA_LINEAR, "triton", products.delta_linear),
    (DELTA_LINEAR, "dequantise", products.dequantised_delta_linear),
    (LINEAR, "triton", products.linear),
    (LINEAR, "dequantise", products.dequantised_linear),
    (RECONSTRUCT, "triton", products.reconstruct),
):
    paths[name], paths[name + "_levels"] = path, partial(path, levels=True)

_library.impl("delta_linear", _delta_linear, "CompositeExplicitAutograd")
_library.impl("linear", _linear, "CompositeExplicitAutograd")
_library.impl("reconstruct", _reconstruct, "CompositeExplicitAutograd")
_library.impl("delta_embedding", _delta_embedding, "CompositeExplicitAutograd")


# ---- autocast --------------------------------------------------------------------------------------------------


def _without_autocast(op: str, dtype_of):
    """An op's kernel of autocast: the arguments ``dtype_of`` in its dtype, and everything inside without it."""

    def run(*arguments):
        device = next(t for t in arguments if isinstance(t, Tensor)).device.type
        dtype = torch.get_autocast_dtype(device)
        arguments = [_cast(a, dtype) if i in dtype_of else a for i, a in enumerate(arguments)]
        with torch.autocast(device, enabled=False):
            return getattr(torch.ops.dts, op)(*arguments)

    return run


def _cast(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return t if t is None or not t.is_floating_point() or t.dtype == torch.float64 else t.to(dtype)


def register_autocast(library: torch.library.Library, op: str, dtype_of=()) -> None:
    """`torch.library.register_autocast` casts to one dtype for ever; this one to that of the region."""
    for key in ("AutocastCPU", "AutocastCUDA"):
        library.impl(op, _without_autocast(op, dtype_of), key)


def _autocast_linear(x, weight, bias, packed, table, slots, weights, out_features, max_rank, layout):
    y = torch.nn.functional.linear(x, weight, bias)  # as autocast makes it, the weight's copy kept for the region
    return torch.ops.dts.delta_linear(
        x.to(y.dtype), y, packed, table, slots, weights, out_features, max_rank, layout, False
    )


for key in ("AutocastCPU", "AutocastCUDA"):
    _library.impl("linear", _autocast_linear, key)
register_autocast(_library, "delta_linear", (0, 1))
register_autocast(_library, "delta_embedding")
register_autocast(_library, "reconstruct")


# ---- fakes and gradients ---------------------------------------------------------------------------------------


@torch.library.register_fake("dts::delta_linear")
def _(x, y, packed, table, slots, weights, out_features, max_rank, layout, transposed):
    check.product(x, y, slots, weights, None, x.shape[-1] if x.dim() else 0, out_features)
    return x.new_empty(x.shape[:-1] + (out_features,))


@torch.library.register_fake("dts::linear")
def _(x, weight, bias, packed, table, slots, weights, out_features, max_rank, layout):
    return x.new_empty(x.shape[:-1] + (out_features,))


@torch.library.register_fake("dts::delta_embedding")
def _(ids, packed, table, slots, weights, out_features, max_rank, layout, in_features, dtype):
    return ids.new_empty((*ids.shape, in_features), dtype=dtype)


@torch.library.register_fake("dts::reconstruct")
def _(packed, table, gamma, base, out_features, in_features, max_rank, layout, dtype):
    like = base if base is not None else packed[0] if packed else gamma
    return like.new_empty((out_features, in_features), dtype=dtype)


def _save(context, in_features, bank, *others):
    """Everything that backward reads, so that a change in place meanwhile is an error."""
    packed, table, slots, weights, out_features, max_rank, layout = bank
    context.save_for_backward(*others, table, slots, weights, *packed)
    context.sizes, context.tensors = (in_features, max_rank, layout), len(packed)


def _grad_x(context, saved, grad):
    """dx = ((dy U) o sigma) V: the same op with the roles of U and V exchanged.

    saved: what `_save` kept; checkpoints let it be taken out of the context once only.
    """
    table, slots, weights, *packed = saved
    in_features, max_rank, layout = context.sizes
    return torch.ops.dts.delta_linear(grad, None, packed, table, slots, weights, in_features, max_rank, layout, True)


def _delta_linear_setup(ctx, inputs, output):
    x, y, *bank, transposed = inputs
    if transposed:
        raise RuntimeError("second derivatives of delta_linear are not supported")
    _save(ctx, x.shape[-1], bank)
    ctx.has_y = y is not None


def _delta_linear_backward(ctx, grad):
    grad_x = _grad_x(ctx, ctx.saved_tensors, grad) if ctx.needs_input_grad[0] else None
    return grad_x, grad if ctx.has_y else None, [None] * ctx.tensors, *[None] * 7


def _linear_setup(ctx, inputs, output):
    x, weight, bias, *bank = inputs
    _save(ctx, x.shape[-1], bank, weight, x if weight.requires_grad else None)


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
    return grad_x, grad_weight, grad_bias, [None] * ctx.tensors, *[None] * 6


torch.library.register_autograd("dts::delta_linear", _delta_linear_backward, setup_context=_delta_linear_setup)
torch.library.register_autograd("dts::linear", _linear_backward, setup_context=_linear_setup)
