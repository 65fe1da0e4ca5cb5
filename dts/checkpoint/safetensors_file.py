"""Reading and writing .safetensors files one tensor at a time.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, the data.  Read by
hand rather than through the library so that a truncated file is refused by the names of the tensors it lost, and so
that a file larger than memory can be written as its tensors are made.  Whatever the library refuses is refused here.
"""

import json
import mmap
import os
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dts.checkpoint.errors import AGAIN, CheckpointError, first, some
from dts.checkpoint.strict_json import NotStrict, parse

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ODD = {torch.complex64, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu}  # no model's weights are
LARGEST_HEADER = 100_000_000  # bytes, the library's own limit
LARGEST_SIZE = 2**63 - 1  # elements and bytes of a tensor


class Damaged(CheckpointError):
    """A file that is not what its own header says.  advice: what to do about it."""

    advice = AGAIN


class UnknownDtype(Damaged):
    """A file, whole or not, with tensors of a dtype that is not known here."""

    advice = "Write it anew in one of them, as save_pretrained() of model.to(torch.bfloat16) does"


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies: ``start`` and ``stop`` are byte offsets in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


class SafetensorsFile:
    """A .safetensors file of which tensors are read one at a time; nothing is read ahead.

    mapped: tensors are views on the mapped file (copy-on-write), for files larger than memory.  A page that is gone
    because the file was cut off meanwhile would kill the process: each `load` looks first whether the file is as it was
    when it was opened.  Otherwise tensors are read into memory of their own, which nothing that becomes of the file can
    change.
    """

    def __init__(self, path: str | Path, mapped: bool = True, largest_header: int = LARGEST_HEADER):
        self.path, self.mapped = Path(path), mapped
        self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  its pages or bytes are read by `load`
        weakref.finalize(self, self._file.close)
        self._seen = self._state()
        self.tensors, self.metadata = _read_header(self._file, self.path, self._seen[0], largest_header)
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY) if mapped else None

    def load(self, name: str) -> Tensor:
        """Raises Damaged if the file was altered since it was opened."""
        stored = self.tensors[name]
        return self.part(name, 0, (stored.stop - stored.start) // stored.dtype.itemsize).view(stored.shape)

    def content(self, name: str) -> memoryview | None:
        """The bytes of a tensor if they are here without it, which they never are: only `load` has them."""
        return None

    def part(self, name: str, first: int, count: int) -> Tensor:
        """``count`` elements of a tensor from the ``first`` on, in the file's order: [count].  Of a mapped file a view.

        Raises Damaged if the file was altered since it was opened, ValueError for elements that the tensor has not.
        """
        stored = self.tensors[name]
        start = stored.start + first * stored.dtype.itemsize
        stop = start + count * stored.dtype.itemsize
        if first < 0 or count < 0 or stop > stored.stop:
            raise ValueError(f"{name} has no elements {first} to {first + count}")
        if self._state() != self._seen:
            raise Damaged(f"{self.path} was altered while it was read: {name} cannot be read any more")
        if not count:
            return torch.empty(0, dtype=stored.dtype)
        if self._map is None:
            return torch.frombuffer(self._read(start, stop, name), dtype=stored.dtype)
        if start % stored.dtype.itemsize:  # a foreign writer's; torch needs aligned elements
            return torch.frombuffer(bytearray(self._map[start:stop]), dtype=stored.dtype)
        return torch.frombuffer(self._map, dtype=stored.dtype, count=count, offset=start)

    def _state(self) -> tuple[int, int]:
        """(bytes, time of the last change) of the open file, which stays the same one whatever becomes of its name."""
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def release(self, name: str) -> None:
        """Gives back the memory of a tensor's mapped pages; they are read again where it is used again.

        Whoever wrote to a view on them loses what was written.
        """
        stored = self.tensors[name]
        start = -(-stored.start // mmap.PAGESIZE) * mmap.PAGESIZE  # pages shared with another tensor stay
        length = stored.stop // mmap.PAGESIZE * mmap.PAGESIZE - start
        if self._map is not None and length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, length)

    def _read(self, start: int, stop: int, name: str) -> bytearray:
        raw, at = bytearray(stop - start), 0
        self._file.seek(start)
        while at < len(raw):
            got = self._file.readinto(memoryview(raw)[at:])
            if not got:
                raise Damaged(f"{self.path} was cut off while it was read: {name} is incomplete")
            at += got
        return raw


def _read_header(file, path: Path, size: int, largest: int) -> tuple[dict[str, Stored], dict[str, str]]:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise Damaged(f"{path} is cut off within its header ({size} bytes)")
    if length > largest:
        raise Damaged(f"{path} has a header of {length:,} bytes, more than the {largest:,} that are read")
    text = file.read(length)
    if text[:1] != b"{":
        raise Damaged(f"{path} has an unreadable header: it does not begin with {{")
    try:
        header = parse(text, largest)
    except NotStrict as error:
        raise Damaged(f"{path} has an unreadable header: {error}") from None
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Damaged(f"{path} has an unreadable header: its __metadata__ is not text by name")
    tensors, wrong, unknown = {}, [], dict[str, list[str]]()
    for name, row in header.items():
        problem = _row_problem(row)
        if problem:
            wrong.append(f"{name!r} has {problem}")
            continue
        if row["dtype"] not in DTYPES:
            unknown.setdefault(row["dtype"], []).append(name)
            continue
        start, stop = row["data_offsets"]
        tensors[name] = Stored(DTYPES[row["dtype"]], tuple(row["shape"]), 8 + length + start, 8 + length + stop)
    if wrong:
        raise Damaged(f"{path} has an altered header: {first(wrong, between='; ')}")
    if unknown:
        which = first((f"{dtype:.40} ({some(names, 3)})" for dtype, names in sorted(unknown.items())), between="; ")
        raise UnknownDtype(f"{path} has tensors of a dtype that is not read here, {which}: {', '.join(DTYPES)} are")
    wrong = [name for name, t in tensors.items() if t.stop - t.start != _bytes_of(t.shape, t.dtype)]
    if wrong:
        raise Damaged(f"{path} has an altered header: sizes do not fit for {some(wrong)}")
    lost = [name for name, t in tensors.items() if t.stop > size]
    if lost:
        raise Damaged(f"{path} is cut off at {size} bytes: {some(lost)} incomplete")
    end = 8 + length
    for name, t in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if t.start != end:
            what = "overlaps the one before it" if t.start < end else "does not follow the one before it"
            raise Damaged(f"{path} has an altered header: {name!r} {what}")
        end = t.stop
    if end != size:
        raise Damaged(f"{path} has {size - end} bytes more than its header describes")
    return tensors, metadata


def _row_problem(row) -> str | None:
    """What is wrong with {dtype, shape, data_offsets} by itself."""
    if not isinstance(row, dict) or not {"dtype", "shape", "data_offsets"} <= row.keys():
        return "no dtype, shape and data_offsets"
    if not isinstance(row["dtype"], str):
        return f"the dtype {row['dtype']!r:.40}, which is no name"
    shape, offsets = row["shape"], row["data_offsets"]
    if not isinstance(shape, list) or not all(map(_size, shape)):
        return "a shape that is no list of sizes"
    count = DTYPES[row["dtype"]].itemsize if row["dtype"] in DTYPES else 1
    for size in shape:
        count *= size
        if count > LARGEST_SIZE:
            return "a shape too large for any file"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_size, offsets)) or offsets[0] > offsets[1]:
        return "data_offsets that are no two ascending positions"
    return None


def _size(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_SIZE


def _bytes_of(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    count = dtype.itemsize
    for size in shape:
        count *= size
    return count


Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def header_bytes(layout: Layout, metadata: dict[str, str] | None = None) -> tuple[bytes, list[str]]:
    """The start of the file for tensors of these dtypes and shapes, and the order in which their data must follow."""
    order = sorted(layout, key=lambda name: (-layout[name][0].itemsize, name))  # so that every tensor is aligned
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name in order:
        dtype, shape = layout[name]
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def write_safetensors(
    path: str | Path, layout: Layout, load, metadata: dict[str, str] | None = None, release=None
) -> None:
    """Writes a file holding one tensor at a time in memory; ``load(name)`` makes each when its turn comes, whole or as
    a list of tensors that follow one another in it, and ``release(name)`` is called once it is written."""
    start, order = header_bytes(layout, metadata)
    with open(path, "wb") as file:
        file.write(start)
        for name in order:
            made = load(name)
            (dtype, shape), tensors = layout[name], made if isinstance(made, list) else [made]
            found = (sum(tensor.numel() for tensor in tensors),) if isinstance(made, list) else tuple(made.shape)
            if {tensor.dtype for tensor in tensors} != {dtype} or found != tuple(shape):
                raise ValueError(f"{name} is {tensors[0].dtype} {list(found)}, its header says {layout[name]}")
            for tensor in tensors:
                file.write(tensor_bytes(tensor))
            del made, tensors, tensor  # before the next ones are made
            if release is not None:
                release(name)
        file.flush()
        os.fsync(file.fileno())


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The elements of a tensor as bytes, row by row, little-endian; a view where it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def layout_of(tensors: Iterable[tuple[str, Tensor]]) -> Layout:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors}
