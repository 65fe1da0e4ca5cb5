"""The public face: products with packed factors as torch.library ops.

`delta_linear`, `linear`, `delta_embedding` and `reconstruct` take a `Bank` and a `Routing` and call the op of the same
name in the namespace ``dts``, which has a fake (shapes without data), autograd for x (factors are
constants) and an implementation for every device.
"""

from functools import lru_cache, partial

import torch
from torch import Tensor

from . import dispatch, reference
from .bank import Bank, Routing, factors_of
from .cpu import native
from .cpu import paths as cpu_paths
from .dispatch import Problem
from .gpu import products

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


def delta_linear(x: Tensor, bank: Bank, routing: Routing, y: Tensor | None = None,
                 adds: Tensor | None = None) -> Tensor:
    """y + sum over a row's tasks of gamma (((x V^T) o sigma) U^T + adds[task]).

    x: [..., in_features] fp16, bf16, fp32 or fp64; y: [..., out_features] or None for zeros;
    adds: float32 [slots, out_features] or None (biases that differ from task to task).
    Returns [..., out_features] in x's dtype; sums run in float32 (float64 for float64).
    Raises ValueError with all sizes if they do not fit.
    """
    _check(x, bank, routing, y, adds)
    if direct(x, y, adds):
        return _delta_linear(*_flat(bank, routing, x, y), False, adds)
    out = torch.ops.dts.delta_linear(*_flat(bank, routing, x, y), False)
    return out if adds is None else add_rows(out, adds, routing)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, bank: Bank, routing: Routing,
           adds: Tensor | None = None) -> Tensor:
    """x W^T + b + the delta (and ``adds``, as in `delta_linear`) of each row's tasks, in one call.

    weight: [out_features, in_features] and bias [out_features] in x's dtype.
    """
    if weight.shape != bank.shape:
        raise ValueError(
            f"weight {list(weight.shape)} does not fit the bank's [{bank.out_features}, {bank.in_features}]"
        )
    _check(x, bank, routing, None, adds)
    if direct(x, weight, bias, adds):
        return _linear(*_flat(bank, routing, x, weight, bias), adds)
    out = torch.ops.dts.linear(*_flat(bank, routing, x, weight, bias))
    return out if adds is None else add_rows(out, adds, routing)


def _flat(bank: Bank, routing: Routing, *tensors):
    return (*tensors, bank.packed, bank.table, routing.slots, routing.weights, bank.out_features, bank.max_rank,
            bank.layout)


def add_rows(y: Tensor, adds: Tensor, routing: Routing) -> Tensor:
    """y + each row's sum of gamma adds[slot]; a slot beyond the table adds nothing.

    y: [..., m]; adds: [slots, m].
    """
    index = routing.slots.clamp(0, adds.shape[0] - 1)
    gamma = torch.where(index == routing.slots, routing.weights, 0.0)
    rows = (adds[index].to(y.dtype) * gamma[..., None].to(y.dtype)).sum(1)
    if rows.shape[0] <= 1:
        return y + rows.sum(0)
    return (y.reshape(rows.shape[0], -1, rows.shape[1]) + rows[:, None]).view(y.shape)


def delta_embedding(ids: Tensor, bank: Bank, routing: Routing, dtype=torch.float32) -> Tensor:
    """Rows of the dense delta of each row's tasks: sum of gamma U[id] diag(sigma) V.

    ids: int64 [...], rows of the bank's matrix, -1 for none (zeros).  Returns ``dtype`` [..., bank.in_features].
    Ids that no row has raise IndexError.  On a GPU this reads ids and routing on the host: right, but it waits for the
    device and cannot be captured in a CUDA graph.
    """
    _check_ids(ids, routing)
    return torch.ops.dts.delta_embedding(*_flat(bank, routing, ids), bank.in_features, dtype)


def add_embedding(ids: Tensor, y: Tensor, parts: "EmbeddingParts", routing: Routing) -> Tensor:
    """y + what `delta_embedding` gives, for banks that each hold some rows of one matrix.

    ids: int64 [...], rows of the whole matrix, -1 for none; y: [..., n].  May write into y, which is returned.
    """
    _check_ids(ids, routing)
    if parts.native and direct(ids, y, routing.slots) and y.dtype in native.DTYPES and y.is_contiguous():
        tasks = parts.tasks()
        if tasks is not None:
            dispatch.ran["delta_embedding", "native"] += 1
            return native.embedding(ids, y, tasks, routing.slots, routing.weights, parts.rows, y.shape[-1], y.dtype,
                                    in_place=True)
    for bank, lookup in parts.banks:
        where = ids if lookup is None else torch.where(ids < 0, -1, lookup[ids.clamp(min=0)].long())
        y = y + delta_embedding(where, bank, routing, y.dtype)
    return y


class EmbeddingParts:
    """Banks of one matrix [rows, n] for `add_embedding`, no slot in two of them.

    banks: each with int32 [rows], the bank's row of every row of the matrix (-1: none), or None where it has all.
    """

    def __init__(self, banks: list[tuple[Bank, Tensor | None]], rows: int):
        self.banks, self.rows = banks, rows
        slots = [slot for bank, _ in banks for slot in bank.slots]
        self.native = all(bank.layout == "disk" and bank.device.type == "cpu" for bank, _ in banks)
        self.native &= len(slots) == len(set(slots))
        self._tasks = None

    def tasks(self) -> "native.Tasks | None":
        """What C reads; None without the library or where a task has levels."""
        if not native.variant():
            return None
        if self._tasks is None:
            self._tasks = native.Tasks.join([(native.Tasks.of(b.packed, b.table), lookup) for b, lookup in self.banks])
        return None if self._tasks.levels else self._tasks


def _check_ids(ids: Tensor, routing: Routing) -> None:
    rows, entries = ids.numel(), routing.slots.shape[0]
    if entries == 0 and rows or entries and rows % entries:
        raise ValueError(f"{rows} ids {list(ids.shape)} are no multiple of the routing's {entries} entries")


def reconstruct(bank: Bank, gamma: dict[int, float] | Tensor, base: Tensor | None = None,
                dtype: torch.dtype | None = None) -> Tensor:
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
    return torch.ops.dts.reconstruct(
        bank.packed, bank.table, gamma, base, bank.out_features, bank.in_features, bank.max_rank, bank.layout, dtype
    )


def _check(x: Tensor, bank: Bank, routing: Routing, y: Tensor | None, adds: Tensor | None) -> None:
    shape, entries, width = x.shape, routing.slots.shape[0], bank.in_features
    fits = len(shape) > 0 and shape[-1] == width and x.is_floating_point() and (y is None) and (adds is None or (
        adds.dtype == torch.float32 and adds.dim() == 2 and adds.shape[1] == bank.out_features
    ))
    if fits and (entries == 1 or entries and width and x.numel() // width % entries == 0):
        return  # nothing else to look at, and no strings made for nobody
    wrong = []
    if x.dim() < 1 or x.shape[-1] != bank.in_features:
        wrong.append(f"x {list(x.shape)} must end in in_features = {bank.in_features}")
    if not x.is_floating_point():
        wrong.append(f"x must be floating point, not {x.dtype}")
    if x.dim() and y is not None and (y.shape != x.shape[:-1] + (bank.out_features,) or y.dtype != x.dtype):
        wrong.append(
            f"y {list(y.shape)} {y.dtype} must be {[*x.shape[:-1], bank.out_features]} {x.dtype}, as x and the bank say"
        )
    if adds is not None and (adds.dtype != torch.float32 or adds.dim() != 2 or adds.shape[1] != bank.out_features):
        wrong.append(f"adds {list(adds.shape)} {adds.dtype} must be float32 [slots, {bank.out_features}]")
    rows = x.shape[:-1].numel() if x.dim() else 1
    if entries == 0 and rows or entries and rows % entries:
        wrong.append(f"{rows} rows of x {list(x.shape)} are no multiple of the routing's {entries} entries")
    if wrong:
        raise ValueError("; ".join(wrong))


def direct(*tensors: Tensor | None) -> bool:
    """Whether the dispatcher has nothing to add: plain tensors on the CPU, no gradient, nobody tracing.

    It costs as much as the product of a small layer.
    """
    if torch.compiler.is_compiling() or _dispatch_modes() or _tracing():
        return False
    if _functorch_level() is not None:
        return False
    grad = torch.is_grad_enabled()
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN or not t.is_cpu or grad and t.requires_grad):
            return False
    return True


_PLAIN = (Tensor, torch.nn.Parameter)
_dispatch_modes, _tracing = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state
_functorch_level = torch._C._functorch.peek_interpreter_stack


@lru_cache(maxsize=4096)
def _path(op: str, device: str, dtype: torch.dtype, rows: int, in_features: int, out_features: int, max_rank: int,
          entries: int, places: int, tasks: int, layout: str, transposed: bool, exact: bool) -> str:
    dtype = str(dtype).removeprefix("torch.")
    return dispatch.choose(Problem(op, device, dtype, rows, in_features, out_features, max_rank, entries, places, tasks,
                                   layout, transposed, exact))


def _run(paths: dict, op: str, x: Tensor, slots: Tensor, weights: Tensor, table: Tensor, out_features: int,
         max_rank: int, layout: str, transposed: bool, adds: Tensor | None, *arguments):
    device = "cpu" if x.is_cpu else x.device.type
    device = device if layout == "disk" else dispatch.device_kind(device)
    shape, (entries, places) = x.shape, slots.shape
    path = _path(op, device, x.dtype, shape[:-1].numel(), shape[-1], out_features, max_rank, entries, places,
                 table.shape[0], layout, transposed, dispatch.exact())
    dispatch.ran[op, path] += 1
    if adds is None:
        return paths[path](*arguments)
    if path in cpu_paths.ADDS:
        return paths[path](*arguments, adds=adds)
    return add_rows(paths[path](*arguments), adds, Routing(slots, weights))


# ---- implementations -------------------------------------------------------------------------------------------


def _delta_linear(x, y, packed, table, slots, weights, out_features, max_rank, layout, transposed, adds=None):
    return _run(DELTA_LINEAR, "delta_linear", x, slots, weights, table, out_features, max_rank, layout, transposed,
                adds, x, y, packed, table, slots, weights, out_features, max_rank, transposed)


def _linear(x, weight, bias, packed, table, slots, weights, out_features, max_rank, layout, adds=None):
    return _run(LINEAR, "linear", x, slots, weights, table, out_features, max_rank, layout, False, adds,
                x, weight, bias, packed, table, slots, weights, out_features, max_rank)


def _reconstruct(packed, table, gamma, base, out_features, in_features, max_rank, layout, dtype):
    device = packed[0].device.type if packed else "cpu"
    path = _path("reconstruct", dispatch.device_kind(device) if layout != "disk" else device, dtype, out_features,
                 in_features, out_features, max_rank, 1, 1, table.shape[0], layout, False, dispatch.exact())
    dispatch.ran["reconstruct", path] += 1
    return RECONSTRUCT[path](packed, table, gamma, base, out_features, in_features, max_rank, dtype)


def _delta_linear_reference(x, y, packed, table, slots, weights, out_features, max_rank, transposed):
    sizes = (out_features, x.shape[-1]) if transposed else (x.shape[-1], out_features)
    factors, exponents = factors_of(packed, table, *sizes, transposed)
    out = reference.delta_linear(x.flatten(0, -2) if x.dim() > 1 else x[None], factors, slots, weights, out_features,
                                 exponents)
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
    path = _path("delta_embedding", ids.device.type, dtype, ids.numel(), in_features, out_features, max_rank,
                 *slots.shape, table.shape[0], layout, False, dispatch.exact())
    dispatch.ran["delta_embedding", path] += 1
    return DELTA_EMBEDDING[path](ids, packed, table, slots, weights, out_features, in_features, dtype)


def _delta_embedding_reference(ids, packed, table, slots, weights, out_features, in_features, dtype):
    factors = factors_of(packed, table, in_features, out_features)[0]
    out = reference.delta_embedding(ids.flatten(), factors, slots, weights, in_features,
                                    torch.float64 if dtype == torch.float64 else torch.float32)
    return out.reshape(*ids.shape, in_features).to(dtype)


DELTA_EMBEDDING["reference"] = _delta_embedding_reference
DELTA_LINEAR["reference"] = _delta_linear_reference
LINEAR["reference"] = _linear_reference
RECONSTRUCT["reference"] = _reconstruct_reference
DELTA_LINEAR.update(cpu_paths.DELTA_LINEAR)
LINEAR.update(cpu_paths.LINEAR)
RECONSTRUCT.update(cpu_paths.RECONSTRUCT)

for paths, name, path in (
    (DELTA_LINEAR, "triton", products.delta_linear), (DELTA_LINEAR, "dequantise", products.dequantised_delta_linear),
    (LINEAR, "triton", products.linear), (LINEAR, "dequantise", products.dequantised_linear),
    (RECONSTRUCT, "triton", products.reconstruct),
):
    paths[name], paths[name + "_levels"] = path, partial(path, levels=True)

_library.impl("delta_linear", _delta_linear, "CompositeExplicitAutograd")
_library.impl("linear", _linear, "CompositeExplicitAutograd")
_library.impl("reconstruct", _reconstruct, "CompositeExplicitAutograd")
_library.impl("delta_embedding", _delta_embedding, "CompositeExplicitAutograd")


# ---- fakes and gradients ---------------------------------------------------------------------------------------


@torch.library.register_fake("dts::delta_linear")
def _(x, y, packed, table, slots, weights, out_features, max_rank, layout, transposed):
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


def _save(context, in_features, bank):
    packed, table, slots, weights, out_features, max_rank, layout = bank
    context.save_for_backward(table, slots, weights, *packed)
    context.sizes, context.tensors = (in_features, max_rank, layout), len(packed)


def _grad_x(context, grad):
    """dx = ((dy U) o sigma) V: the same op with the roles of U and V exchanged."""
    table, slots, weights, *packed = context.saved_tensors
    in_features, max_rank, layout = context.sizes
    return torch.ops.dts.delta_linear(grad, None, packed, table, slots, weights, in_features, max_rank, layout, True)


def _delta_linear_setup(ctx, inputs, output):
    x, y, *bank, transposed = inputs
    if transposed:
        raise RuntimeError("second derivatives of delta_linear are not supported")
    _save(ctx, x.shape[-1], bank)
    ctx.has_y = y is not None


def _delta_linear_backward(ctx, grad):
    grad_x = _grad_x(ctx, grad) if ctx.needs_input_grad[0] else None
    return grad_x, grad if ctx.has_y else None, [None] * ctx.tensors, *[None] * 7


def _linear_setup(ctx, inputs, output):
    x, weight, bias, *bank = inputs
    _save(ctx, x.shape[-1], bank)
    ctx.weight, ctx.x = weight, x if weight.requires_grad else None


def _linear_backward(ctx, grad):
    grad_x = grad_weight = grad_bias = None
    rows = grad.flatten(0, -2) if grad.dim() > 1 else grad[None]
    if ctx.needs_input_grad[0]:
        grad_x = torch.nn.functional.linear(grad, ctx.weight.T) + _grad_x(ctx, grad)
    if ctx.needs_input_grad[1]:
        grad_weight = rows.T @ (ctx.x.flatten(0, -2) if ctx.x.dim() > 1 else ctx.x[None])
    if ctx.needs_input_grad[2]:
        grad_bias = rows.sum(0)
    return grad_x, grad_weight, grad_bias, [None] * ctx.tensors, *[None] * 6


torch.library.register_autograd("dts::delta_linear", _delta_linear_backward, setup_context=_delta_linear_setup)
torch.library.register_autograd("dts::linear", _linear_backward, setup_context=_linear_setup)
