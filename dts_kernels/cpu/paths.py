"""The CPU paths in the form `ops.py` calls, by name."""

from functools import partial

import torch
from torch.nn import functional

from ..contents import factors_of
from . import library_products, native, native_samples


def _native_delta_linear(x, y, packed, table, slots, weights, out_features, max_rank, transposed, *, exact, adds=None):
    tasks = native.Tasks.of(packed, table)
    return native.delta_linear(x, y, tasks, slots, weights, out_features, transposed, exact, adds=adds)


def _base_product(x, weight, bias):
    """x W^T + b in new memory: `functional.linear` of more than two dimensions returns a view, which no op may that
    gradients go through."""
    if x.dim() == 2 or not torch.is_grad_enabled():
        return functional.linear(x, weight, bias)
    out = x.new_empty(x.shape[:-1] + weight.shape[:1])
    rows, flat = x.reshape(-1, x.shape[-1]), out.view(-1, weight.shape[0])
    if bias is None:
        torch.mm(rows, weight.t(), out=flat)
    else:
        torch.addmm(bias, rows, weight.t(), out=flat)
    return out


def _native_linear(x, weight, bias, packed, table, slots, weights, out_features, max_rank, *, exact, adds=None):
    y = _base_product(x, weight, bias)
    if y.dtype is not x.dtype or not y.is_contiguous():
        y = y.to(x.dtype).contiguous()
    tasks = native.Tasks.of(packed, table)
    return native.delta_linear(x, y, tasks, slots, weights, out_features, False, exact, out=y, adds=adds)


def _native_reconstruct(packed, table, gamma, base, out_features, in_features, max_rank, dtype, *, exact):
    return native.reconstruct(native.Tasks.of(packed, table), gamma, base, (out_features, in_features), dtype, exact)


def _library_delta_linear(x, y, packed, table, slots, weights, out_features, max_rank, transposed, *, decode):
    sizes = (out_features, x.shape[-1]) if transposed else (x.shape[-1], out_features)
    factors, _ = factors_of(packed, table, *sizes, transposed)
    return library_products.delta_linear(x, y, factors, slots, weights, out_features, decode)


def _library_linear(x, weight, bias, packed, table, slots, weights, out_features, max_rank, *, decode):
    y = _base_product(x, weight, bias)
    return _library_delta_linear(x, y, packed, table, slots, weights, out_features, max_rank, False, decode=decode)


def _library_reconstruct(packed, table, gamma, base, out_features, in_features, max_rank, dtype):
    factors, _ = factors_of(packed, table, in_features, out_features)
    return library_products.reconstruct(factors, gamma, base, (out_features, in_features), dtype)


def _native_add_samples(x, y, codes, table, starts, scales, slots, weights, transposed):
    samples = native_samples.SampleArray.of(codes, table, starts, scales)
    return native_samples.add_samples(x, y, samples, slots, weights, transposed)


def _native_add_sampled_rows(ids, y, codes, table, starts, scales, slots, weights, rows):
    samples = native_samples.SampleArray.of(codes, table, starts, scales)
    return native_samples.add_sampled_rows(ids, y, samples, slots, weights, rows)


ADDS = ("native", "native_exact")  # paths that take the tasks' addends along
_EXACT = {"native": False, "native_exact": True}
_DECODE = {"unpack": native.unpack, "table": library_products.table_unpack}

DELTA_LINEAR = {name: partial(_native_delta_linear, exact=exact) for name, exact in _EXACT.items()} | {
    name: partial(_library_delta_linear, decode=decode) for name, decode in _DECODE.items()
}
LINEAR = {name: partial(_native_linear, exact=exact) for name, exact in _EXACT.items()} | {
    name: partial(_library_linear, decode=decode) for name, decode in _DECODE.items()
}
RECONSTRUCT = {name: partial(_native_reconstruct, exact=exact) for name, exact in _EXACT.items()} | {
    "table": _library_reconstruct
}
ADD_SAMPLES = {"native": _native_add_samples}
ADD_SAMPLED_ROWS = {"native": _native_add_sampled_rows}
