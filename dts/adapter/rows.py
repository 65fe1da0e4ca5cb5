"""One entry as it is stored: the names of its tensors, its row of ``dts_config.json``, and both read again.

    <tensor>.u .v ...    parts of one matrix, as their kinds store them (`dts.codec.parts`);  <tensor>[e].u: of expert e
    <tensor>.delta       int8 where the tensor's row has a ``scale``, its step;  <tensor>.value
    <tensor>.delta       with <tensor>.scales, where its row has ``bits`` (`dts.adapter.grid`); so a value
    <tensor>.changes     and perhaps <tensor>.gaps, of a patch (`dts.codec.exact`);  <tensor>.own: what only it has
    <tensor>.added       rows beyond the base's vocabulary, whole, in the fine-tune's dtype

docs/format.md has all of it byte by byte.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from dts.adapter.entries import Entry
from dts.adapter.errors import AdapterError
from dts.adapter.grid import grid_from
from dts.adapter.text import dtype_name, measure
from dts.checkpoint.prefixes import swap_prefix
from dts.checkpoint.safetensors_file import Layout
from dts.codec import Factors, Undecodable
from dts.codec.disk import factors_from, fragments_of, tensors_of
from dts.codec.exact import Patch
from dts.codec.exact import check as check_patch
from dts.codec.parts import KINDS, kind
from dts_kernels.layout import PackedFactors

OWN = "own"  # suffix of what only the fine-tune has, kept bit for bit


class Load(ABC):
    """What an adapter's file holds."""

    @abstractmethod
    def __call__(self, key: str) -> Tensor | None:
        """The tensor of a name, None if there is none."""

    def packed(self, place: str) -> PackedFactors | None:
        """Components whose tensors' names begin so, see `dts.codec.parts.kind.Load`."""
        return None


class _Of(kind.Load):
    """Of the matrix whose tensors' names begin with a place."""

    def __init__(self, load: Load, place: str):
        self.load, self.place = load, place

    def __call__(self, suffix: str) -> Tensor | None:
        return self.load(f"{self.place}.{suffix}")

    def packed(self) -> PackedFactors | None:
        return self.load.packed(self.place)


def entry_tensors(entry: Entry) -> dict[str, Tensor]:
    """Name in the file -> tensor, of everything an entry stores."""
    tensors: dict[str, Tensor] = {}
    for place, factors in zip(entry.places, entry.matrices):
        if factors is not None:
            tensors |= {f"{place}.{key}": tensor for key, tensor in tensors_of(factors).items()}
    if entry.tensor is not None:
        tensors[f"{entry.name}.{OWN if entry.kind == 'exact' else entry.kind}"] = entry.tensor
    if entry.patch is not None:
        tensors |= {f"{entry.name}.{suffix}": tensor for suffix, tensor in entry.patch.tensors.items()}
    if entry.grid is not None:
        tensors[f"{entry.name}.{entry.kind}"] = entry.grid.stored
        tensors[f"{entry.name}.scales"] = entry.grid.scales
    if entry.added_rows is not None:
        tensors[f"{entry.name}.added"] = entry.added_rows
    return tensors


def entry_row(entry: Entry, dtype: torch.dtype | None, base_digest: str | None, sizes: Layout) -> dict[str, Any]:
    """An entry's row of ``tensors``, but for its ``sha256``.

    dtype: the fine-tune's main one, rows name theirs only where it differs;  sizes: of the entry's tensors.
    """
    row: dict[str, Any] = {"shape": list(entry.shape), "kind": entry.kind}
    if entry.kind == "tied":
        return row | {"tied_to": entry.tied_to}
    if isinstance(entry.factors, list):
        row["experts"] = [None if factors is None else _expert_row(factors) for factors in entry.factors]
    elif entry.factors is not None:
        row |= fragments_of(entry.factors)
    row["bytes"] = sum(torch.Size(shape).numel() * dtype.itemsize for dtype, shape in sizes.values())
    if entry.factorised or entry.is_rounded:
        row["squared_error"] = measure(entry.squared_error)
    if entry.scale is not None:
        row["scale"] = entry.scale
    if entry.grid is not None:
        row["bits"] = entry.grid.bits
    if entry.kind == "exact":
        row |= {"result": entry.result, "changed": entry.patch.changed if entry.patch is not None else 0}
    if entry.task_only:
        row["task_only"] = True
    else:
        row |= {"norm": measure(entry.norm), "base": base_digest}
    if entry.dtype != dtype:
        row["dtype"] = dtype_name(entry.dtype)
    return row


def _expert_row(factors: Factors) -> list:
    """[fragment of the first kind of parts, squared error, norm, fragments of the others], None where there is none."""
    fragments = fragments_of(factors)
    first, *others = [fragments.get(kind.key) for kind in KINDS.values()]
    while others and others[-1] is None:
        others.pop()
    return [first, measure(factors.squared_error), measure(factors.norm), *others]


def entry_from(name: str, row: dict[str, Any], config: dict[str, Any], load: Load) -> Entry:
    """The inverse of `entry_tensors` and `entry_row`; ``load`` gives None for a tensor the file does not have.

    row: as `check.problems` lets it pass.  Raises AdapterError for tensors that are missing, do not fit the row or each
    other, or hold what is no number.
    """
    finetuned = config["finetuned"]
    task_only, kind = row.get("task_only", False), row["kind"]
    entry = Entry(
        name,
        None if task_only else base_name_of(name, finetuned),
        tuple(row["shape"]),
        kind,
        dtype=getattr(torch, row.get("dtype", finetuned["dtype"])),
        task_only=task_only,
        tied_to=row.get("tied_to"),
        norm=row.get("norm") or 0.0,
        squared_error=row.get("squared_error", 0.0),
        added_rows=load(f"{name}.added") if kind in ("factors", "exact") else None,
        scale=row.get("scale"),
        result=row.get("result"),
    )
    if entry.added_rows is not None:
        _check_added(entry, entry.added_rows)
    if "bits" in row:
        stored, scales = load(f"{name}.{kind}"), load(f"{name}.scales")
        entry.grid = grid_from(name, entry.shape, row["bits"], stored, scales)
        if not entry.dtype.is_floating_point:
            raise AdapterError(f"{name}: its {kind} of {dtype_name(entry.dtype)} cannot be rounded")
    elif kind in ("delta", "value"):
        entry.tensor = _raw_tensor(entry, load)
    try:
        if kind == "experts":
            entry.factors = _stack_from(entry, row["experts"], load)
        elif kind == "factors":
            entry.factors = _matrix_from(entry, row, load)
        elif kind == "exact":
            _take_exact(entry, row["changed"], load)
    except Undecodable as error:
        raise AdapterError(str(error)) from None
    return entry


def _check_added(entry: Entry, added: Tensor) -> None:
    shape = entry.shape
    if added.dtype != entry.dtype or added.shape[1:] != shape[1:] or not 0 < added.shape[0] < shape[0]:
        raise AdapterError(
            f"{entry.name}: added rows of {dtype_name(added.dtype)} {list(added.shape)} do not belong to "
            f"{dtype_name(entry.dtype)} {list(shape)}"
        )
    if entry.kind != "exact":
        check_numbers(f"{entry.name}.added", added)


def _raw_tensor(entry: Entry, load: Load) -> Tensor:
    """The tensor of a delta or a value."""
    name, kind = entry.name, entry.kind
    tensor = load(f"{name}.{kind}")
    if tensor is None or tuple(tensor.shape) != entry.shape:
        raise AdapterError(f"{name}: its {kind} is missing or not {list(entry.shape)}")
    stored = tensor.dtype
    if (entry.scale is not None) != (kind == "delta" and stored == torch.int8):
        raise AdapterError(f"{name}: a scale belongs to an int8 delta, and the other way round")
    belongs = (entry.dtype,) if kind == "value" else (entry.dtype, torch.float32)  # mixtures of deltas are float32
    if stored not in belongs and entry.scale is None:
        raise AdapterError(
            f"{name}: its {kind} is {dtype_name(stored)}, which does not belong to {dtype_name(entry.dtype)}"
        )
    check_numbers(f"{name}.{kind}", tensor)
    return tensor


def _take_exact(entry: Entry, changed: int, load: Load) -> None:
    """What is stored of an entry that is kept bit for bit, whose numbers may be any; frames by their headers alone,
    until the base says that they are no larger than its tensors."""
    if entry.task_only:
        entry.tensor = tensor = load(f"{entry.name}.{OWN}")
        if tensor is None or tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype or changed:
            raise AdapterError(f"{entry.name}: what only it has is missing or not {list(entry.shape)}")
        if tensor.dtype == torch.bool:
            check_numbers(f"{entry.name}.{OWN}", tensor)
        return
    changes, gaps = load(f"{entry.name}.changes"), load(f"{entry.name}.gaps")
    if changes is None and gaps is None:
        if changed:
            raise AdapterError(f"{entry.name}: {changed} elements changed, and none are stored")
        return
    if changes is None:
        raise AdapterError(f"{entry.name}: its changes are missing")
    entry.patch = Patch(changed, changes, gaps)
    check_patch(entry.name, entry.patch, torch.Size(entry.base_shape).numel(), entry.dtype.itemsize)


def _stack_from(entry: Entry, experts: list, load: Load) -> list[Factors | None]:
    if len(entry.shape) != 3 or len(experts) != entry.shape[0]:
        raise AdapterError(f"{entry.name}: {len(experts)} experts where {list(entry.shape)} belongs")
    _, m, n = entry.shape
    found: list[Factors | None] = []
    for i, expert in enumerate(experts):
        if expert is None:
            found.append(None)
            continue
        first, squared_error, norm, *others = expert
        fragments = dict(zip((kind.key for kind in KINDS.values()), (first, *others)))
        found.append(_factors_from(f"{entry.name}[{i}]", (m, n), fragments, norm, squared_error, load))
    return found


def _matrix_from(entry: Entry, row: dict[str, Any], load: Load) -> Factors | None:
    fragments = {kind.key: row[kind.key] for kind in KINDS.values() if kind.key in row}
    if not fragments:
        if entry.added_rows is None:
            raise AdapterError(f"{entry.name}: it has neither parts nor added rows")
        return None
    if len(entry.shape) < 2:
        raise AdapterError(f"{entry.name}: factors of a tensor of shape {list(entry.shape)}")
    matrix = entry.base_shape[0], torch.Size(entry.base_shape[1:]).numel()
    return _factors_from(entry.name, matrix, fragments, row["norm"], row["squared_error"], load)


def _factors_from(
    name: str, shape: tuple[int, int], fragments: dict[str, Any], norm: float, squared_error: float | None, load: Load
) -> Factors:
    return factors_from(name, shape, _Of(load, name), fragments, norm, squared_error)


def check_numbers(name: str, tensor: Tensor) -> None:
    """Raises AdapterError for NaN (infinite elements can be meant: masks) and for truth values that are neither."""
    if tensor.is_floating_point() or tensor.is_complex():
        wide = tensor if tensor.dtype.itemsize > 1 else tensor.float()
        if wide.isnan().any():
            raise AdapterError(f"{name}: {int(wide.isnan().sum())} elements are no numbers")
    elif tensor.dtype == torch.bool and tensor.numel() and tensor.view(torch.uint8).max() > 1:
        raise AdapterError(f"{name}: elements that are neither true nor false")


def base_name_of(name: str, finetuned: dict) -> str:
    """The base's name of a tensor; finetuned: the config's section."""
    known = finetuned["renamed"].get(name)
    return known or swap_prefix(name, finetuned["prefix"], finetuned["base_prefix"])
