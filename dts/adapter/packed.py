"""An adapter's configuration as it lies on disk since version 5: rows in a table, tensors in a blob a dtype.

What the rest of the package reads and writes is as it was before, a row a tensor; docs/format.md has both forms.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dts.adapter.errors import AdapterError
from dts.adapter.table import Unpackable, pack, unpack
from dts.checkpoint import Damaged, SafetensorsFile
from dts.checkpoint.safetensors_file import DTYPES, NAMES, Layout, tensor_bytes
from dts.values import DIMENSIONS, MOST, count
from dts_kernels.borrowed import BorrowedFactors, Memory, tensor_in
from dts_kernels.layout import PackedFactors, packed_width

TABLE = "table"
ALIGN = 16  # bytes at which each factor begins in memory, as where malloc gives it one of its own
AT_ONCE = 1 << 26  # bytes of a blob that is read whole
FACTORS = (".u", ".v", ".sigma")  # ends of the names of a matrix's components
AS_THEY_ARE = (*FACTORS, ".samples", ".scales")  # of tensors that a model computes with as they are
CODES = ".delta"  # of others, where it is of bytes
EMPTY = {"base_prefix": str, "prefix": str, "renamed": dict, "base_only": list, "dtypes": dict}  # left out where empty
PLACES = {str(place): place for place in range(100)}
ROWS = ("tensors", "dropped")  # of a configuration, in the table
INDEX = re.compile(r"0|[1-9][0-9]{0,17}")
TASK_LABELS, INVERSE = "task", "id2label"  # what stands for labels that are said already


def packed(config: Mapping[str, Any], layouts: Mapping[str, Layout]) -> tuple[dict[str, Any], bytes]:
    """(content of ``dts_config.json``, table); layouts: of the tensors of every row, by its name.

    Raises AdapterError for numbers that no table holds.
    """
    rows = [(name, _stored(name, row, layouts[name])) for name, row in config["tensors"].items()]
    try:
        names, templates, table = pack([*rows, *config["dropped"].items()])
    except Unpackable as error:
        raise AdapterError(f"the adapter {config['task']['name']!r} cannot be written: {error}") from None
    text = {key: value for key, value in config.items() if key not in ROWS}
    text["finetuned"] = {key: value for key, value in config["finetuned"].items() if value or key not in EMPTY}
    text["model_config"] = _without_labels(config["model_config"], config["task"]["class_names"])
    return text | {"names": names, "rows": templates}, table


def _stored(name: str, row: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """A row with its tensors' dtypes and shapes, from which their ``bytes`` follow."""
    if row["kind"] == "tied":
        return dict(row)
    shape, used = row["shape"], set[int]()
    tensors = {}
    for key, (dtype, sizes) in layout.items():
        dims: list[int | str] = []
        for size in sizes:
            like = [i for i, other in enumerate(shape) if other == size]
            if like:  # the first that no other is said to be like, so that square matrices have the rows of others
                place = next((i for i in like if i not in used), like[0])
                used.add(place)
            dims.append(str(place) if like else size)
        tensors[key.removeprefix(name)] = [NAMES[dtype], *dims]
    return {key: value for key, value in row.items() if key != "bytes"} | {"tensors": tensors}


def blobs_of(layouts: Iterable[Layout], table: bytes) -> tuple[Layout, dict[str, list[str]]]:
    """(layout of the file, tensors of each blob in order)."""
    members: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for layout in layouts:
        for key, (dtype, shape) in layout.items():
            members.setdefault(NAMES[dtype], []).append(key)
            sizes[NAMES[dtype]] = sizes.get(NAMES[dtype], 0) + math.prod(shape)
    blobs: Layout = {blob: (DTYPES[blob], (size,)) for blob, size in sizes.items()}
    return blobs | {TABLE: (torch.uint8, (len(table),))}, members


class Slice(NamedTuple):
    """One tensor: ``first`` is its first element's place in its blob, ``stop`` that behind its last."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    first: int
    stop: int

    @property
    def nbytes(self) -> int:
        return (self.stop - self.first) * self.dtype.itemsize


class Blobs:
    """The tensors in a file of blobs; like the file itself, but for whole tensors.

    A blob that is not too large is read once, and factors, samples and vectors in few bits share one memory: an adapter
    has hundreds of them, and they stay as they are.  Other tensors have memory of their own, which goes when a model
    has made something else of them.
    """

    def __init__(self, file: SafetensorsFile, tensors: dict[str, Slice]):
        self.file, self.tensors = file, tensors
        self._read: dict[torch.dtype, memoryview | None] = {}  # None: of one that is too large
        self._memory: dict[torch.dtype, torch.UntypedStorage] = {}  # that factors share
        self._shared: dict[str, int] = {}  # factor -> its place in it, in elements
        self._both: Memory | None = None  # of codes and of numbers
        self._at = (0, 0)  # where they begin

    def load(self, key: str) -> Tensor:
        """Raises Damaged if the file was altered since it was opened."""
        own = self.tensors[key]
        if own.dtype not in self._read:
            self._read[own.dtype] = self._blob(own.dtype)
        if (first := self._shared.get(key)) is not None:
            return tensor_in(self._memory[own.dtype], first, own.dtype, own.shape, strides(own.shape))
        content = self.content(key)
        if content is None or not content.nbytes:
            return self.file.part(NAMES[own.dtype], own.first, own.stop - own.first).view(own.shape)
        return torch.frombuffer(bytearray(content), dtype=own.dtype).view(own.shape)

    def packed(self, place: str) -> PackedFactors | None:
        """The factors whose tensors' names begin with a place, without levels; None where `load` has to tell what is
        wrong with them, or they are too large to share memory.  Raises as `load` does."""
        keys = [place + end for end in FACTORS]
        u, v, sigma = map(self.tensors.get, keys)
        if u is None or v is None or sigma is None or f"{place}.levels" in self.tensors:
            return None
        if not u.dtype == v.dtype == torch.uint8 or sigma.dtype != torch.float32 or not sigma.stop > sigma.first:
            return None
        if not len(u.shape) == len(v.shape) == 2 or len(sigma.shape) != 1:
            return None
        (m, width), (n, other), (rank,) = u.shape, v.shape, sigma.shape
        if not width == other == packed_width(rank) or m * n == 0:
            return None
        for dtype in (torch.uint8, torch.float32):
            if dtype not in self._read:
                self._read[dtype] = self._blob(dtype)
        u_at, v_at, sigma_at = map(self._shared.get, keys)
        if u_at is None or v_at is None or sigma_at is None:
            return None
        if self._both is None:
            self._both = self._memory[torch.uint8], self._memory[torch.float32]
            self._at = self._both[0].data_ptr(), self._both[1].data_ptr()
        codes, numbers = self._at
        return BorrowedFactors.at(self._both, codes + u_at, codes + v_at, numbers + 4 * sigma_at, (m, n), rank)

    def content(self, key: str) -> memoryview | None:
        """The bytes of what `load` gives, None where only that has them."""
        dtype, _, first, stop = self.tensors[key]
        blob = self._read.get(dtype)
        if blob is None:
            return None
        size = dtype.itemsize
        return blob[first * size : stop * size]

    def _blob(self, dtype: torch.dtype) -> memoryview | None:
        stored = self.file.tensors[NAMES[dtype]]
        if stored.stop - stored.start > AT_ONCE:
            return None
        whole = self.file.load(NAMES[dtype])
        blob = tensor_bytes(whole)
        grain, at, places, moved = ALIGN // dtype.itemsize, 0, dict[str, int](), False
        ends = (*AS_THEY_ARE, CODES) if dtype == torch.uint8 else AS_THEY_ARE
        own = [(key, one) for key, one in self.tensors.items() if one.dtype == dtype and key.endswith(ends)]
        for key, (_, _, first, stop) in own:
            moved |= at != first
            places[key], at = at, at + stop - first
            at += -at % grain
        if at:  # of empty ones alone there is nothing to lie anywhere
            if moved or at != whole.shape[0]:  # else there is nothing but factors, and they lie as they should
                size, raw = dtype.itemsize, bytearray(at * dtype.itemsize)
                for key, (_, _, first, stop) in own:
                    to = places[key] * size
                    raw[to : to + (stop - first) * size] = blob[first * size : stop * size]
                whole = torch.frombuffer(raw, dtype=dtype)
            self._memory[dtype] = whole.untyped_storage()
            self._shared |= places
        return blob


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a tensor that lies row by row."""
    if len(shape) < 3:
        return (shape[1], 1) if len(shape) == 2 else (1,) * len(shape)
    found = [1]
    for size in shape[:0:-1]:
        found.append(found[-1] * size)
    return tuple(reversed(found[: len(shape)]))


def unpacked(
    text: Mapping[str, Any], table: bytes, blobs: Mapping[str, int], largest: int
) -> tuple[dict[str, Any], dict[str, Slice]]:
    """(configuration, tensors) of what lies on disk; nothing of the configuration is checked but its form.

    blobs: elements of each blob, by dtype;  largest: bytes that the rows may take as text.
    Raises Unpackable for what is no table, and for blobs that are not its.
    """
    rows: dict[str, Any] = {}
    dropped: dict[str, float] = {}
    tensors: dict[str, Slice] = {}
    ends = dict.fromkeys(blobs, 0)
    if twice := [key for key in ROWS if key in text]:
        raise Unpackable(f"it has {' and '.join(twice)}, which stand in its table")
    for name, row in unpack(text.get("names"), text.get("rows"), table, largest):
        of = dropped if isinstance(row, float) else rows
        if name in of:
            raise Unpackable(f"it has {name!r:.60} twice")
        of[name] = row
        if isinstance(row, dict):
            _take_tensors(name, row, tensors, ends)
    wrong = [f"{blobs.get(blob, 0)} of {blob} for {end}" for blob, end in ends.items() if blobs.get(blob) != end]
    if wrong:
        raise Unpackable(f"it has other elements than its table says: {', '.join(wrong)}")
    config = {key: value for key, value in text.items() if key not in ("names", "rows")}
    if isinstance(given := text.get("finetuned"), dict):
        config["finetuned"] = given | {key: value() for key, value in EMPTY.items() if key not in given}
    config["model_config"] = _with_labels(text.get("model_config"), text.get("task"))
    return config | {"tensors": rows, "dropped": dropped}, tensors


def unpacked_file(text: Mapping[str, Any], file: SafetensorsFile, largest: int) -> tuple[dict[str, Any], Blobs]:
    """`unpacked` of a file and its tensors; raises Damaged."""
    blobs = {}
    for name, stored in file.tensors.items():
        of_table = name == TABLE and stored.dtype == torch.uint8
        if len(stored.shape) != 1 or not of_table and NAMES[stored.dtype] != name:
            raise Damaged(f"{file.path} is damaged: {name!r:.60} is neither a table nor a blob of its dtype")
        blobs[name] = stored.shape[0]
    if blobs.pop(TABLE, None) is None:
        raise Damaged(f"{file.path} is damaged: it has no {TABLE}")
    try:
        config, tensors = unpacked(text, file.load(TABLE).numpy().tobytes(), blobs, largest)
    except Unpackable as error:
        raise Damaged(f"{file.path} is damaged: {error}") from None
    return config, Blobs(file, tensors)


def _take_tensors(name: str, row: dict[str, Any], tensors: dict[str, Slice], ends: dict[str, int]) -> None:
    """Takes the tensors out of a row, whose ``bytes`` they give; ends: elements of each blob so far."""
    if "tensors" not in row:
        return
    given, shape, nbytes = row.pop("tensors"), row.get("shape"), 0
    if not isinstance(given, dict):
        raise Unpackable(f"{name!r:.60} has no tensors by name")
    for suffix, about in given.items():
        key = name + suffix
        dtype, *dims = about if isinstance(about, list) and about else [None]
        if not isinstance(dtype, str) or dtype not in DTYPES or key in tensors:
            raise Unpackable(f"{key!r:.80} is no tensor of its own")
        sizes = tuple([_size(name, size, shape) for size in dims])
        elements = math.prod(sizes)
        if len(sizes) > DIMENSIONS or elements > MOST:
            raise Unpackable(f"{key!r:.80} is too large for any file")
        first = ends.get(dtype, 0)
        tensors[key] = Slice(DTYPES[dtype], sizes, first, first + elements)
        ends[dtype] = first + elements
        nbytes += elements * DTYPES[dtype].itemsize
    row["bytes"] = nbytes


def _size(name: str, size: Any, shape: Any) -> int:
    """A dimension; of text, the row's one of this place."""
    if type(size) is int and 0 <= size <= MOST:
        return size
    if isinstance(size, str) and isinstance(shape, list) and (place := PLACES.get(size)) is not None:
        size = shape[place] if place < len(shape) else None
    if not count(size):
        raise Unpackable(f"{name:.200}: {size!r:.40} is no size of a tensor")
    return size


def _without_labels(given: dict | None, classes: list[str] | None) -> dict | None:
    """A model's configuration with a word for labels that are the task's, and for what is their inverse."""
    if given is None:
        return None
    short = dict(given)
    labels = given.get("id2label")
    if labels and given.get("label2id") == _inverse(labels):
        short["label2id"] = INVERSE
    if labels and labels == _numbered(classes):
        short["id2label"] = TASK_LABELS
    return short


def _with_labels(given: Any, task: Any) -> Any:
    """The inverse of `_without_labels`, which leaves what cannot be as it is, for whoever checks it."""
    if not isinstance(given, dict):
        return given
    full = dict(given)
    classes = task.get("class_names") if isinstance(task, dict) else None
    if full.get("id2label") == TASK_LABELS and isinstance(classes, list) and classes:
        full["id2label"] = _numbered(classes)
    if full.get("label2id") == INVERSE and isinstance(full.get("id2label"), dict):
        full["label2id"] = _inverse(full["id2label"])
    return full


def _numbered(classes: list[str] | None) -> dict[str, str] | None:
    return {str(i): label for i, label in enumerate(classes)} if classes else None


def _inverse(labels: Any) -> dict[str, int] | None:
    """Label -> number; None where that is not the whole of it."""
    if not isinstance(labels, dict) or not all(isinstance(label, str) for label in labels.values()):
        return None
    numbers = {label: int(i) for i, label in labels.items() if INDEX.fullmatch(i)}
    return numbers if len(numbers) == len(labels) else None
