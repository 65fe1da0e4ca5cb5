"""The compiled library: found, built if need be, and bound with ctypes (which releases the GIL around each call)."""

import ctypes
import functools
import math
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import contents
from ..layout import PackedFactors
from .build import build, library_name

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in sizes.h
SIZES = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}
MOST_PLACES = 256  # tasks a row may mix

# the records of dts.h: ctypes takes as long for 28 arguments as C for a small product
_delta_linear_record = struct.Struct("@P3qP5qP2qP3qPqPqP3qP2q").pack
_embedding_record = struct.Struct("@PqP2qPP3qPqPPq").pack


class Task(ctypes.Structure):
    """One task of a bank, where it lies: the struct of task.h."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("u", "v", "sigma", "levels")]
        + [(name, ctypes.c_int64) for name in ("u_stride", "v_stride", "rank")]
        + [("lookup", ctypes.c_void_p)]
        + [(name, ctypes.c_int64) for name in ("u_rows", "v_rows", "u_bytes", "v_bytes", "sigma_count", "lookup_count")]
    )


class Tasks:
    """All tasks of a bank as an array that C reads, and the tensors it points into."""

    def __init__(self, packed: list[Tensor], table: Tensor):
        self._set(contents.of(packed, table).factors, table.shape[0])

    def _set(self, stored: dict[int, PackedFactors], count: int) -> None:
        self.count = count
        self.array = (Task * max(count, 1))()
        self.kept: list[Any] = []  # whose memory C reads
        self.levels = False  # whether a task has its own
        for slot, one in stored.items():
            if not one.rank:
                continue
            task = self.array[slot]
            # detached: whoever exchanges the memory of a tensor that was given does not take it from under C
            factors = [t.detach() if t.stride(1) == 1 else t.contiguous() for t in (one.u, one.v)]
            numbers = [None if t is None else t.detach().contiguous() for t in (one.sigma, one.levels)]
            self.kept += factors + numbers
            task.u, task.v = (t.data_ptr() for t in factors)
            task.u_stride, task.v_stride = (t.stride(0) for t in factors)
            (task.u_rows, task.u_bytes), (task.v_rows, task.v_bytes) = (t.shape for t in factors)
            task.sigma, task.levels = (None if t is None else t.data_ptr() for t in numbers)
            task.rank = task.sigma_count = one.rank
            self.levels |= one.levels is not None
        self.pointer = ctypes.addressof(self.array)

    def __reduce__(self):
        return type(None), ()  # pointers mean nothing in a copy of the table: it makes its own

    @classmethod
    def join(cls, parts: list[tuple["Tasks", Tensor | None]]) -> "Tasks":
        """Tasks of several banks with the same columns, no slot in two of them.

        Beside each bank int32 [rows of the whole matrix], which row of the bank that is, -1 for none; or None.
        """
        joined = cls.__new__(cls)
        joined._set({}, max([tasks.count for tasks, _ in parts], default=0))
        for tasks, lookup in parts:
            lookup = None if lookup is None else _checked_lookup(lookup)
            for slot in range(tasks.count):
                if tasks.array[slot].rank:
                    joined.array[slot] = tasks.array[slot]
                    joined.array[slot].lookup = None if lookup is None else lookup.data_ptr()
                    joined.array[slot].lookup_count = 0 if lookup is None else lookup.numel()
            joined.kept += [tasks, lookup]
            joined.levels |= tasks.levels
        return joined

    @classmethod
    def of(cls, packed: list[Tensor], table: Tensor) -> "Tasks":
        """The array of a bank's table, made once a table."""
        held = getattr(table, contents.HELD, None)
        if held is None or held.given is not packed or held.tasks is None:  # not as the op has just seen it
            held = contents.of(packed, table)
            held.tasks = held.tasks or cls(packed, table)
        return held.tasks


def _checked_lookup(lookup: Tensor) -> Tensor:
    if lookup.dtype != torch.int32 or lookup.dim() != 1 or not lookup.is_cpu:
        raise ValueError(f"a lookup must be int32 [rows] on the CPU, not {lookup.dtype} {list(lookup.shape)}")
    return lookup.detach().contiguous()


def _package_folder() -> Path:
    return Path(__file__).parent


def cache_folder() -> Path:
    """Where a checkout that was never installed keeps its build."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dts"


def _bind(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointer, i32, i64, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_char_p
    library.dts_variant.argtypes, library.dts_variant.restype = [i32], text
    for record in ("delta_linear", "embedding", "add_samples", "add_sampled_rows"):
        getattr(library, f"dts_{record}").argtypes = [text]
    library.dts_reconstruct.argtypes = [
        text,
        i32,
        i32,
        pointer,
        i64,
        pointer,
        i64,
        pointer,
        i64,
        pointer,
        i64,
        i64,
        i32,
        i64,
        i64,
    ]
    library.dts_unpack.argtypes = [text, i32, pointer, i64, i64, i64, pointer, pointer, i64, i64, i32]
    return library


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library beside this file, in the cache, or built into the cache now; None (said once) without a compiler.

    DTS_NATIVE=0 in the environment turns it off.  DTS_LIBRARY=path takes that one, of these sources, and no other: a
    build with sanitizers, say (`make sanitize`).
    """
    if os.environ.get("DTS_NATIVE", "1") == "0":
        return None
    if os.environ.get("DTS_LIBRARY"):
        return _bind(Path(os.environ["DTS_LIBRARY"]))
    name, problem = library_name(), None
    for folder in (_package_folder(), cache_folder()):
        try:
            if (folder / name).exists():
                return _bind(folder / name)
        except OSError as error:
            problem = error
    try:
        return _bind(build(cache_folder()))
    except (RuntimeError, OSError) as error:
        warnings.warn(
            f"the compiled CPU kernels are not available, products with packed factors run as much slower PyTorch "
            f"operations: {problem or error}",
            RuntimeWarning,
            stacklevel=2,
        )
    return None


@functools.cache
def loaded() -> ctypes.CDLL:
    """The library for those who have seen that it is there."""
    found = library()
    if found is None:
        raise RuntimeError("the compiled CPU kernels are not available here")
    return found


@functools.cache
def variants() -> tuple[str, ...]:
    """The instruction sets that this machine can run, fastest first; empty without the library.

    DTS_VARIANT in the environment keeps only the one it names.
    """
    found = library()
    if found is None:
        return ()
    names: list[str] = []
    while (name := found.dts_variant(len(names))) is not None:
        names.append(name.decode())
    only = os.environ.get("DTS_VARIANT")
    if only and only not in names:
        raise ValueError(f"DTS_VARIANT={only} is not one of this machine's {names}")
    return (only,) if only else tuple(names)


def variant() -> str:
    """The instruction set in use, "" without the library."""
    return variants()[0] if variants() else ""


@functools.cache
def _named(name: str | None) -> bytes:
    """What C calls a variant; None: the one in use."""
    return (name or variant()).encode()


@functools.cache
def _name_of(name: str | None) -> int:
    """The same in memory that stays, for records."""
    kept = _names.setdefault(name, ctypes.create_string_buffer(_named(name)))
    return ctypes.addressof(kept)


_names: dict[str | None, ctypes.Array] = {}


def _check(code: int, what: str) -> None:
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

    exact: float32 products instead of two 8-bit digits;  adds: float32 [slots, out_features], added like the deltas.
    slots (int32), weights (float32) and adds are contiguous, which the ops have seen to; C looks at all sizes.
    """
    sizes, dtype, count, (entries, places) = [*x.shape], x.dtype, x.numel(), slots.shape
    n, sizes[-1] = sizes[-1], out_features
    rows = count // n if n else math.prod(sizes[:-1])
    if not x.is_contiguous():
        x = x.contiguous()
    if y is not None:
        if not y.is_contiguous():
            y = y.contiguous()
        if y.dtype is not dtype:
            raise ValueError(f"y must be in x's dtype {dtype}, not {y.dtype}")
    if out is None:
        out = x.new_empty(sizes) if y is None else torch.empty_like(y)
    elif out is not y and not (out.is_contiguous() and out.dtype is dtype):
        raise ValueError("out must be contiguous and in x's dtype")
    size, to, have = SIZES[dtype], out.data_ptr(), out.numel()
    given, given_have = (0, 0) if y is None else (to, have) if y is out else (y.data_ptr(), y.numel())
    add, adds_have, add_count = (0, 0, 0) if adds is None else (adds.data_ptr(), adds.numel(), adds.shape[0])
    code = loaded().dts_delta_linear(
        _delta_linear_record(
            _name_of(name),
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
            out_features * size,
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
            add_count,
        )
    )
    if code:
        _check(code, "delta_linear")
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
        return torch.zeros(*ids.shape, n, dtype=dtype) if y is None else y if in_place else y.clone()
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
    out = y if in_place and y is not None else torch.empty(*ids.shape, n, dtype=dtype)
    to = out.data_ptr()
    given = 0 if y is None else to if y is out else y.data_ptr()
    code = loaded().dts_embedding(
        _embedding_record(
            _name_of(name),
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
        _check(code, "embedding")
    return out


def reconstruct(
    tasks: Tasks,
    gamma: Tensor,
    base: Tensor | None,
    shape: tuple[int, int],
    dtype: torch.dtype,
    exact: bool,
    name: str | None = None,
) -> Tensor:
    """base + sum of gamma U diag(sigma) V^T, dense [m, n] in fp32, bf16 or fp16."""
    out = torch.empty(shape, dtype=dtype)
    if base is not None:
        if tuple(base.shape) != tuple(shape):
            raise ValueError(f"base {list(base.shape)} must be {list(shape)}")
        base = base.to(dtype).contiguous()
    stride = shape[1] * out.element_size()
    gamma = gamma.to(torch.float32).contiguous()
    _check(
        loaded().dts_reconstruct(
            _named(name),
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
    out = torch.empty(packed.shape[0], 4 * packed.shape[1], dtype=dtype)
    levels = None if levels is None else levels.contiguous()
    _check(
        loaded().dts_unpack(
            _named(name),
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
