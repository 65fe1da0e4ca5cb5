"""Products with sampled elements in the compiled library."""

import ctypes
import struct
from operator import is_

import torch
from torch import Tensor

from .. import check
from ..operands import StoredSamples
from ..sample_table import read
from . import native
from .load import loaded, name_of

# as in dts.h
add_samples_record = struct.Struct("@P3qP5qPqPqPqPqPqP3q").pack
_add_sampled_rows_record = struct.Struct("@PqP3qPqP2qPqPqPqP3q").pack


HELD = "_dts_samples"  # the attribute of a table that keeps its `SampleArray`


class Sample(ctypes.Structure):
    """One sample of a bank, where it lies: the struct of samples.h."""

    _fields_ = [
        ("codes", ctypes.c_void_p),
        ("row_bytes", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("seed", ctypes.c_uint32),
        ("scale", ctypes.c_float),
        ("rows", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("kept", ctypes.c_int64),
        ("window", ctypes.c_int64),
    ]


class SampleArray:
    """All samples of a bank as an array that C reads, and the tensors it points into."""

    def __init__(self, codes: list[Tensor], table: Tensor, starts: Tensor, scales: Tensor):
        self.given, self.codes, self.others = codes, tuple(codes), (starts, scales)
        self.versions = tuple(None if t.is_inference() else t._version for t in (table, starts, scales))
        check.samples(StoredSamples(codes, table, starts, scales), False)
        self.array = (Sample * max(len(codes), 1))()
        side_by_side = [c if c.stride(1) == 1 else c.contiguous() for c in codes]
        # their memory: whoever exchanges that of a tensor that was given does not take it from under C
        self.kept = [c.untyped_storage() for c in side_by_side]
        for sample, own, row, scale in zip(self.array, side_by_side, map(read, table.tolist()), scales.tolist()):
            sample.codes, sample.row_bytes = own.data_ptr(), own.stride(0)
            sample.stride, sample.seed, sample.scale = row.stride, row.seed, scale
            sample.kept, sample.window = row.share
            sample.rows, sample.bytes = own.shape
        self.starts = starts.detach().clone(memory_format=torch.contiguous_format)
        # samples, their number, starts, slots, as records of dts.h have them
        self.addresses = ctypes.addressof(self.array), len(codes), self.starts.data_ptr(), starts.shape[0] - 1

    def __reduce__(self):
        return type(None), ()  # pointers mean nothing in a copy of the table: it makes its own

    def of_now(self, codes: list[Tensor], *others: Tensor) -> bool:
        """Whether these are the tensors that were looked at, (table, starts, scales) unchanged since."""
        if codes is self.given:  # a bank's own: it makes other tensors
            return others[1] is self.others[0] and others[2] is self.others[1]
        if not (len(codes) == len(self.codes) and all(map(is_, codes, self.codes))):
            return False
        return (
            others[1] is self.others[0]
            and others[2] is self.others[1]
            and all(version is None or t._version == version for t, version in zip(others, self.versions))
        )

    @classmethod
    def of(cls, codes: list[Tensor], table: Tensor, starts: Tensor, scales: Tensor) -> "SampleArray":
        """The array of a bank's table, made once a table."""
        array = getattr(table, HELD, None)
        if array is not None and array.given is codes and array.others[0] is starts and array.others[1] is scales:
            return array  # as the op has just seen it
        if array is None or not array.of_now(codes, table, starts, scales):
            array = cls(codes, table, starts, scales)
            setattr(table, HELD, array)
        return array


def add_samples(
    x: Tensor,
    y: Tensor,
    samples: SampleArray,
    slots: Tensor,
    weights: Tensor,
    transposed: bool,
    name: str | None = None,
    exact: bool = False,
) -> Tensor:
    """y + x D^T (transposed: x D) of every row's samples; x and y in fp32, bf16 or fp16, summed in float32.

    exact: of samples with small strides float32 products, too, instead of those of x in two 8-bit digits.
    """
    n, (entries, places), m, count = x.shape[-1], slots.shape, y.shape[-1], y.numel()
    if not x.is_contiguous():
        x = x.contiguous()
    if not y.is_contiguous():
        y = y.contiguous()
    out = torch.empty_like(y)
    rows = count // m if m else y.shape[:-1].numel()
    m, n = (n, m) if transposed else (m, n)
    code = loaded().dts_add_samples(
        add_samples_record(
            name_of(name),
            torch.get_num_threads(),
            exact,
            transposed,
            x.data_ptr(),
            x.numel(),
            native.DTYPES[x.dtype],
            rows,
            m,
            n,
            y.data_ptr(),
            count,
            out.data_ptr(),
            out.numel(),
            *samples.addresses,
            slots.data_ptr(),
            entries * places,
            weights.data_ptr(),
            weights.numel(),
            entries,
            places,
        )
    )
    if code:
        native.check(code, "add_samples")
    return out


def add_sampled_rows(
    ids: Tensor,
    y: Tensor,
    samples: SampleArray,
    slots: Tensor,
    weights: Tensor,
    rows: int,
    name: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """y + rows ``ids`` (int64 [...], negative: none) of every id's samples; y [..., n] in fp32, bf16 or fp16.

    slots and weights are contiguous.  out: takes it, without gaps; y itself may.  Raises IndexError for an id from
    ``rows`` on.
    """
    if ids.dtype is not torch.int64 or not ids.is_contiguous():
        ids = ids.to(torch.int64).contiguous()
    if not y.is_contiguous():
        y = y.contiguous()
    out, (entries, places) = torch.empty_like(y) if out is None else out, slots.shape
    code = loaded().dts_add_sampled_rows(
        _add_sampled_rows_record(
            name_of(name),
            torch.get_num_threads(),
            ids.data_ptr(),
            ids.numel(),
            rows,
            y.shape[-1],
            y.data_ptr(),
            y.numel(),
            out.data_ptr(),
            out.numel(),
            native.DTYPES[y.dtype],
            *samples.addresses,
            slots.data_ptr(),
            entries * places,
            weights.data_ptr(),
            weights.numel(),
            entries,
            places,
        )
    )
    if code == 3:
        raise IndexError(f"an id of {int(ids.max())} is beyond the matrix's {rows} rows")
    if code:
        native.check(code, "add_sampled_rows")
    return out
