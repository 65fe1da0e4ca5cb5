"""The CPU paths in the form `ops.py` calls, by name."""

from functools import partial

from torch.nn import functional

from ..bank import factors_of
from . import library_products, native


def _native_delta_linear(x, y, packed, table, slots, weights, out_features, max_rank, transposed, *, exact):
    tasks = native.Tasks.of(packed, table)
    return native.delta_linear(x, y, tasks, slots, weights, out_features, transposed, exact)


def _native_linear(x, weight, bias, packed, table, slots, weights, out_features, max_rank, *, exact):
    y = functional.linear(x, weight, bias)
    tasks = native.Tasks.of(packed, table)
    return native.delta_linear(x, y, tasks, slots, weights, out_features, False, exact, out=y)


def _native_reconstruct(packed, table, gamma, base, out_features, in_features, max_rank, dtype, *, exact):
    return native.reconstruct(native.Tasks.of(packed, table), gamma, base, (out_features, in_features), dtype, exact)


def _library_delta_linear(x, y, packed, table, slots, weights, out_features, max_rank, transposed, *, decode):
    sizes = (out_features, x.shape[-1]) if transposed else (x.shape[-1], out_features)
    factors, _ = factors_of(packed, table, *sizes, transposed)
    return library_products.delta_linear(x, y, factors, slots, weights, out_features, decode)


def _library_linear(x, weight, bias, packed, table, slots, weights, out_features, max_rank, *, decode):
    y = functional.linear(x, weight, bias)
    return _library_delta_linear(x, y, packed, table, slots, weights, out_features, max_rank, False, decode=decode)


def _library_reconstruct(packed, table, gamma, base, out_features, in_features, max_rank, dtype):
    factors, _ = factors_of(packed, table, in_features, out_features)
    return library_products.reconstruct(factors, gamma, base, (out_features, in_features), dtype)


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
