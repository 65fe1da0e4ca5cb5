"""Reading and writing .safetensors files one tensor at a time.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, the data.  Read by
hand rather than through the library so that a truncated file is refused by the names of the tensors it lost, and so
that a file larger than memory can be written as its tensors are made.
"""

import json
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dts.checkpoint.errors import CheckpointError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Damaged(CheckpointError):
    """A file that is not what its own header says."""


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies: ``start`` and ``stop`` are byte offsets in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """A mapped .safetensors file: tensors are views on the mapping (copy-on-write), nothing is read ahead."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.tensors, self.metadata = _read_header(self.path)
        with open(self.path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def load(self, name: str) -> Tensor:
        stored = self.tensors[name]
        if stored.start == stored.stop:
            return torch.empty(stored.shape, dtype=stored.dtype)
        count = (stored.stop - stored.start) // stored.dtype.itemsize
        if stored.start % stored.dtype.itemsize:  # a foreign writer's; torch needs aligned elements
            raw = bytearray(self._map[stored.start : stored.stop])
            return torch.frombuffer(raw, dtype=stored.dtype).view(stored.shape)
        return torch.frombuffer(self._map, dtype=stored.dtype, count=count, offset=stored.start).view(stored.shape)


    def release(self, name: str) -> None:
        """Gives back the memory of a tensor's mapped pages; they are read again where it is used again.

        Whoever wrote to a view on them loses what was written.
        """
        stored = self.tensors[name]
        start = -(-stored.start // mmap.PAGESIZE) * mmap.PAGESIZE  # pages shared with another tensor stay
        length = stored.stop // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, length)


def _read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise Damaged(f"{path} is cut off within its header ({size} bytes)")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            tensors = {}
            for name, row in header.items():
                start, stop = row["data_offsets"]
                shape = tuple(torch.Size(row["shape"]))
                tensors[name] = Stored(DTYPES[row["dtype"]], shape, 8 + length + start, 8 + length + stop)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{path} has an unreadable header: {error!r}") from error
    wrong = [
        name for name, t in tensors.items()
        if t.stop - t.start != torch.Size(t.shape).numel() * t.dtype.itemsize or t.start < 8 + length
    ]  # fmt: skip
    if wrong:
        raise Damaged(f"{path} has an altered header: sizes do not fit for {', '.join(sorted(wrong))}")
    lost = [name for name, t in tensors.items() if t.stop > size]
    if lost:
        raise Damaged(f"{path} is cut off at {size} bytes: {_some(lost)} incomplete")
    end = max((t.stop for t in tensors.values()), default=8 + length)
    if end != size:
        raise Damaged(f"{path} has {size - end} bytes more than its header describes")
    return tensors, metadata


def _some(names: list[str], count: int = 10) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(sorted(names)[:count]) + more


Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def header_bytes(layout: Layout, metadata: dict[str, str] | None = None) -> tuple[bytes, list[str]]:
    """The start of the file for tensors of these dtypes and shapes, and the order in which their data must follow."""
    order = sorted(layout, key=lambda name: (-layout[name][0].itemsize, name))  # so that every tensor is aligned
    header = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name in order:
        dtype, shape = layout[name]
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def write_safetensors(path: str | Path, layout: Layout, load, metadata: dict[str, str] | None = None,
                      release=None) -> None:  # fmt: skip
    """Writes a file holding one tensor at a time in memory; ``load(name)`` makes each when its turn comes, and
    ``release(name)`` is called once it is written."""
    start, order = header_bytes(layout, metadata)
    with open(path, "wb") as file:
        file.write(start)
        for name in order:
            tensor = load(name)
            if (tensor.dtype, tuple(tensor.shape)) != (layout[name][0], tuple(layout[name][1])):
                raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, its header says {layout[name]}")
            file.write(tensor_bytes(tensor))
            del tensor  # before the next one is made
            if release is not None:
                release(name)
        file.flush()
        os.fsync(file.fileno())


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The elements of a tensor as bytes, row by row, little-endian; a view where it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def layout_of(tensors: Iterable[tuple[str, Tensor]]) -> Layout:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors}
