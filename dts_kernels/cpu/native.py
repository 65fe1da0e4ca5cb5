"""Products with packed factors in the compiled library (`load`), a record of arguments a call."""

import math
import struct

import torch
from torch import Tensor

from .load import loaded, name_of, named, variant, variants
from .tasks import Tasks

__all__ = [
    "DTYPES",
    "MOST_PLACES",
    "Tasks",
    "delta_linear",
    "embedding",
    "reconstruct",
    "unpack",
    "variant",
    "variants",
]

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in sizes.h
SIZES = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}
MOST_PLACES = 256  # tasks a row may mix

# the records of dts.h: ctypes takes as long for 28 arguments as C for a small product
delta_linear_record = struct.Struct("@P3qP5qP2qP3qPqPqP3qPqPqPqP2q").pack
NO_SAMPLES = (0,) * 4  # in place of `native_samples.SampleArray.addresses`
_embedding_record = struct.Struct("@PqP2qPP3qPqPPq").pack


def check(code: int, what: str) -> None:
    if code == 1:
        raise MemoryError(f"{what}: no memory")
    if code == 4:
        raise ValueError(f"{what}: a tensor is smaller than the product reads or writes, or a task is of another size")
    if code:
        raise RuntimeError(f"{what}: this machine cannot run it")


def delta_linear(
    x: Tensor,
    y: Tensor | None,
    tasks: Tasks,
    slots: Tensor,
    weights: Tensor,
    out_features: int,
    transposed: bool,
    exact: bool,
    name: str | None = None,
    out: Tensor | None = None,
    adds: Tensor | None = None,
) -> Tensor:
    """y + the delta of every row; x [rows..., n] and y in fp32, bf16 or fp16; ``out`` may be y.

    y: [rows..., m], or [m] for all rows, or None: zeros.

    exact: float32 products instead of two 8-bit digits;  adds: float32 [slots, out_features], added like the deltas.
    slots (int32), weights (float32) and adds are contiguous, which the ops have seen to; C looks at all sizes.
    """
    sizes, dtype, count, (entries, places) = [*x.shape], x.dtype, x.numel(), slots.shape
    n, sizes[-1] = sizes[-1], out_features
    rows = count // n if n else math.prod(sizes[:-1])
    one = y is not None and y.dim() == 1
    if not x.is_contiguous():
        x = x.contiguous()
    if y is not None:
        if not y.is_contiguous():
            y = y.contiguous()
        if y.dtype is not dtype:
            raise ValueError(f"y must be in x's dtype {dtype}, not {y.dtype}")
    if out is None:
        out = x.new_empty(sizes) if y is None or one else torch.empty_like(y)
    elif out is not y and not (out.is_contiguous() and out.dtype is dtype):
        raise ValueError("out must be contiguous and in x's dtype")
    size, to, have = SIZES[dtype], out.data_ptr(), out.numel()
    given, given_have = (0, 0) if y is None else (to, have) if y is out else (y.data_ptr(), y.numel())
    add, adds_have, add_count = (0, 0, 0) if adds is None else (adds.data_ptr(), adds.numel(), adds.shape[0])
    code = loaded().dts_delta_linear(
        delta_linear_record(
            name_of(name),
            torch.get_num_threads(),
            exact,
            transposed,
            x.data_ptr(),
            count,
            DTYPES[dtype],
            n * size,
            rows,
            n,
            given,
            given_have,
            0 if one else out_features * size,
            to,
            have,
            out_features * size,
            out_features,
            tasks.pointer,
            tasks.count,
            slots.data_ptr(),
            entries * places,
            weights.data_ptr(),
            weights.numel(),
            entries,
            places,
            add,
            adds_have,
            0,
            add_count,
            *NO_SAMPLES,
            False,
        )
    )
    if code:
        check(code, "delta_linear")
    return out


def embedding(
    ids: Tensor,
    y: Tensor | None,
    tasks: Tasks,
    slots: Tensor,
    weights: Tensor,
    id_count: int,
    n: int,
    dtype: torch.dtype,
    name: str | None = None,
    in_place: bool = False,
) -> Tensor:
    """y + rows ``ids`` (int64 [...], negative: zeros) of each row's tasks' dense deltas: dtype [..., n].

    No task may have levels; slots and weights are contiguous.  in_place: y's own memory takes the result.  Raises
    IndexError for an id from id_count on.
    """
    entries, places = slots.shape
    if not places:
        return torch.zeros(*ids.shape, n, dtype=dtype, device="cpu") if y is None else y if in_place else y.clone()
    if places > 1:  # a place at a time, rounded once
        total = None
        for place in range(places):
            own, gamma = (t[:, place].contiguous()[:, None] for t in (slots, weights))
            total = embedding(ids, total, tasks, own, gamma, id_count, n, torch.float32, name, True)
        assert total is not None
        return total.to(dtype) if y is None else y.add_(total) if in_place else (y + total).to(dtype)
    if ids.dtype is not torch.int64 or not ids.is_contiguous():
        ids = ids.to(torch.int64).contiguous()
    if y is not None and not y.is_contiguous():
        y, in_place = y.contiguous(), True
    out = y if in_place and y is not None else torch.empty(*ids.shape, n, dtype=dtype, device="cpu")
    to = out.data_ptr()
    given = 0 if y is None else to if y is out else y.data_ptr()
    code = loaded().dts_embedding(
        _embedding_record(
            name_of(name),
            torch.get_num_threads(),
            ids.data_ptr(),
            ids.numel(),
            id_count,
            given,
            to,
            out.numel(),
            DTYPES[dtype],
            n,
            tasks.pointer,
            tasks.count,
            slots.data_ptr(),
            weights.data_ptr(),
            entries,
        )
    )
    if code == 3:
        raise IndexError(f"an id of {int(ids.max())} is beyond the matrix's {id_count} rows")
    if code:
        check(code, "embedding")
    return out


def reconstruct(
    tasks: Tasks,
    gamma: Tensor,
    base: Tensor | None,
    shape: tuple[int, int],
    dtype: torch.dtype,
    exact: bool,
    name: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """base + sum of gamma U diag(sigma) V^T, dense [m, n] in fp32, bf16 or fp16;  out: takes it, without gaps."""
    out = torch.empty(shape, dtype=dtype, device="cpu") if out is None else out
    if base is not None:
        if tuple(base.shape) != tuple(shape):
            raise ValueError(f"base {list(base.shape)} must be {list(shape)}")
        base = base.to(dtype).contiguous()
    stride = shape[1] * out.element_size()
    gamma = gamma.to(torch.float32).contiguous()
    check(
        loaded().dts_reconstruct(
            named(name),
            torch.get_num_threads(),
            exact,
            tasks.pointer,
            tasks.count,
            gamma.data_ptr(),
            gamma.numel(),
            None if base is None else base.data_ptr(),
            stride,
            out.data_ptr(),
            out.numel(),
            stride,
            DTYPES[dtype],
            *shape,
        ),
        "reconstruct",
    )
    return out


def unpack(packed: Tensor, levels: Tensor | None, dtype: torch.dtype, name: str | None = None) -> Tensor:
    """Values of disk bytes [rows, width]: dtype [rows, 4 * width], the last byte's pad ranks included."""
    packed = packed if packed.stride(1) == 1 else packed.contiguous()
    out = torch.empty(packed.shape[0], 4 * packed.shape[1], dtype=dtype, device="cpu")
    levels = None if levels is None else levels.contiguous()
    check(
        loaded().dts_unpack(
            named(name),
            torch.get_num_threads(),
            packed.data_ptr(),
            packed.stride(0),
            *packed.shape,
            None if levels is None else levels.data_ptr(),
            out.data_ptr(),
            out.numel(),
            out.shape[1] * out.element_size(),
            DTYPES[dtype],
        ),
        "unpack",
    )
    return out
