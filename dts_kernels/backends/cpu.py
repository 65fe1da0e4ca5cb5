"""The CPU's paths: C (`cpu.native`, `cpu.native_samples`), and unpacked factors for the library's products."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from .. import check, dispatch
from ..contents import factors_of
from ..cpu import library_products, native, native_samples, rules
from ..cpu.native_samples import SampleArray
from ..cpu.tasks import Tasks
from ..embedding_parts import EmbeddingParts
from ..operands import DenseOperands, FactorOperands, SampleOperands, StoredSamples
from ..paths import register
from ..routing import Routing

dispatch.chooser(rules.choose)


def base_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b in new memory: `functional.linear` of more than two dimensions returns a view, which no op may that
    gradients go through."""
    if x.dim() == 2 or not torch.is_grad_enabled():
        return functional.linear(x, weight, bias)
    if not x.is_contiguous():  # the library alone knows how it multiplies such rows, and so their bits
        y = functional.linear(x, weight, bias)
        return y.clone() if y._is_view() else y
    out = x.new_empty(x.shape[:-1] + weight.shape[:1])
    rows, flat = x.reshape(-1, x.shape[-1]), out.view(-1, weight.shape[0])
    if bias is None:
        torch.mm(rows, weight.t(), out=flat)
    else:
        torch.addmm(bias, rows, weight.t(), out=flat)
    return out


# ---- C ---------------------------------------------------------------------------------------------------------


def _delta_linear(x, y, operands: FactorOperands, transposed, *, exact, adds=None) -> Tensor:
    packed, table, slots, weights, out_features, _, _ = operands
    tasks = Tasks.of(packed, table)
    return native.delta_linear(x, y, tasks, slots, weights, out_features, transposed, exact, adds=adds)


def _linear(x, weight, bias, operands: FactorOperands, *, exact, adds=None) -> Tensor:
    packed, table, slots, weights, out_features, _, _ = operands
    tasks = Tasks.of(packed, table)
    # the base's product on top, see `ops.together`; the library's own has other bits where rows are not side by side
    if x.dtype is torch.float32 and (x.dim() < 3 or x.is_contiguous()):
        bias = None if bias is None else check.real(bias)
        y = native.delta_linear(x, bias, tasks, slots, weights, out_features, False, exact, adds=adds)
        rows = x.shape[:-1].numel()
        y.view(rows, out_features).addmm_(x.reshape(rows, x.shape[-1]), weight.t())
        return y
    y = base_product(x, weight, bias)
    if y.dtype is not x.dtype or not y.is_contiguous():
        y = y.to(x.dtype).contiguous()
    return native.delta_linear(x, y, tasks, slots, weights, out_features, False, exact, out=y, adds=adds)


def _reconstruct(operands: DenseOperands, dtype: torch.dtype, *, exact) -> Tensor:
    packed, table, gamma, base, out_features, in_features, _, _ = operands
    return native.reconstruct(Tasks.of(packed, table), gamma, base, (out_features, in_features), dtype, exact)


for _name, _exact in (("native", False), ("native_exact", True)):
    register("delta_linear", _name, adds=True)(partial(_delta_linear, exact=_exact))
    register("linear", _name, adds=True)(partial(_linear, exact=_exact))
    register("reconstruct", _name)(partial(_reconstruct, exact=_exact))


@register("add_embedding", "native")
def add_embedding(ids: Tensor, y: Tensor, parts: EmbeddingParts, routing: Routing) -> Tensor:
    """Into y itself."""
    tasks = parts.tasks
    if tasks is None:
        each = [(bank.tasks or Tasks.of(bank.packed, bank.table), lookup) for bank, lookup in parts.banks]
        tasks = parts.tasks = Tasks.join(each)
    n, dtype = parts.columns, y.dtype
    return native.embedding(ids, y, tasks, routing.slots, routing.weights, parts.rows, n, dtype, in_place=True)


@register("add_samples", "native")
def add_samples(x: Tensor, y: Tensor, operands: SampleOperands, transposed: bool) -> Tensor:
    codes, table, starts, scales, slots, weights = operands
    array, exact = SampleArray.of(codes, table, starts, scales), dispatch.exact()
    return native_samples.add_samples(x, y, array, slots, weights, transposed, exact=exact)


@register("add_sampled_rows", "native")
def add_sampled_rows(ids: Tensor, y: Tensor, operands: SampleOperands, rows: int) -> Tensor:
    codes, table, starts, scales, slots, weights = operands
    return native_samples.add_sampled_rows(ids, y, SampleArray.of(codes, table, starts, scales), slots, weights, rows)


@register("add_dense_samples", "native")
def add_dense_samples(base: Tensor, stored: StoredSamples, gamma: Tensor) -> Tensor:
    """Every row of the matrix, as an embedding of all of its rows would have them."""
    slots = gamma.nonzero()[:, 0].to(torch.int32)[None]
    weights, ids = gamma[slots[0].long()][None], torch.arange(base.shape[0])
    return native_samples.add_sampled_rows(ids, base, SampleArray.of(*stored), slots, weights, base.shape[0])


# ---- unpacked, for the library's products ----------------------------------------------------------------------


def _unpacked_delta_linear(x, y, operands: FactorOperands, transposed, *, decode) -> Tensor:
    packed, table, slots, weights, out_features, _, _ = operands
    sizes: tuple[int, int] = (out_features, x.shape[-1]) if transposed else (x.shape[-1], out_features)
    factors, _ = factors_of(packed, table, *sizes, transposed)
    return library_products.delta_linear(x, y, factors, slots, weights, out_features, decode)


def _unpacked_linear(x, weight, bias, operands: FactorOperands, *, decode) -> Tensor:
    return _unpacked_delta_linear(x, base_product(x, weight, bias), operands, False, decode=decode)


for _name, _decode in (("unpack", native.unpack), ("table", library_products.table_unpack)):
    register("delta_linear", _name)(partial(_unpacked_delta_linear, decode=_decode))
    register("linear", _name)(partial(_unpacked_linear, decode=_decode))


@register("reconstruct", "table")
def unpacked_reconstruct(operands: DenseOperands, dtype: torch.dtype) -> Tensor:
    packed, table, gamma, base, out_features, in_features, _, _ = operands
    factors, _ = factors_of(packed, table, in_features, out_features)
    return library_products.reconstruct(factors, gamma, base, (out_features, in_features), dtype)
