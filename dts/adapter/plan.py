"""What each tensor of a fine-tune becomes, and what it would cost, before anything is compressed."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dts import sums
from dts.adapter.budget import BLOCK, Curve
from dts.adapter.entries import Entry
from dts.adapter.format import factors_tensors, whole_error
from dts.adapter.truncate import HEADER_BYTES
from dts.adapter.vectors import eight_bit
from dts.checkpoint import Pair, Pairing
from dts.codec import Factors, Part, Unencodable, predicted_error, singular_values
from dts.codec.compress import RANK_LIMIT, checked, compacted
from dts.codec.sketch import split
from dts.codec.spectrum import predicted_share
from dts.shapes import SMALL, is_stack
from dts_kernels.layout import PackedFactors, packed_width
from dts_kernels.samples import Samples, groups_of

LONGEST = -1.234567e-12, 2**32 - 1  # scale and seed of a planned sample: a row's text takes no fewer bytes than it will


def shared_delta(pairing: Pairing, pair: Pair) -> Tensor:
    """finetuned - base, float32, on the rows both have."""
    finetuned, base = pairing.finetuned.load(pair.name), pairing.base.load(pair.base_name)
    delta = sums.difference(finetuned[: base.shape[0]], base)
    pairing.finetuned.release(pair.name)
    pairing.base.release(pair.base_name)
    return delta


def is_matrix(name: str, shape: tuple[int, ...], method: str) -> bool:
    """Is a tensor of this shape compressed as matrices?  "paper" takes every matrix, as published, the others
    those that are not `SMALL` (heads, routers: they matter much)."""
    if len(shape) < 2:
        return False
    smaller = min(shape[-2:]) if is_stack(name, shape) else min(shape[0], torch.Size(shape[1:]).numel())
    return smaller > (1 if method == "paper" else SMALL)


def matrices_of(name: str, delta: Tensor) -> list[Tensor]:
    """The matrices a delta is compressed as."""
    return list(delta) if is_stack(name, tuple(delta.shape)) else [delta.flatten(1)]


@dataclass
class Matrix:
    """What a budget needs to know of one delta [m, n]: which rows and columns are not zero, its norm, and (if asked
    for) its singular values, float64."""

    shape: tuple[int, int]
    rows: Tensor | None
    columns: Tensor | None
    norm: float
    singular: Tensor | None = None
    known: dict = field(default_factory=dict, repr=False, compare=False)  # curves and predicted errors made before

    @classmethod
    def of(cls, delta: Tensor, name: str, spectrum: bool, device=None) -> "Matrix":
        """Raises Unencodable for NaN or infinite elements."""
        rows, columns, compact = compacted(checked(delta, name, device))
        norm = sums.norm(compact)
        values = singular_values(compact).cpu() if spectrum and norm else None
        return cls(tuple(delta.shape), rows, columns, norm, values)

    @property
    def compact_shape(self) -> tuple[int, int]:
        return tuple(size if kept is None else len(kept) for kept, size in zip((self.rows, self.columns), self.shape))

    @property
    def elements(self) -> int:
        """Elements without zero rows and columns."""
        return math.prod(self.compact_shape)

    def components(self, rank: int, method: str) -> int:
        """Residual components among what takes the bytes of ``rank`` of them."""
        return split(rank, self.compact_shape)[0] if method == "sketch" else rank

    def planned(self, rank: int, method: str) -> Factors | None:
        """Factors of this rank without content: right in every shape, with the predicted error.

        rank: of method "sketch" the residual components that would take its bytes.
        """
        if not rank or not self.norm:
            return None
        m, n = self.compact_shape
        stored, samples, byte = rank, (), torch.zeros((), dtype=torch.uint8)
        if method == "sketch":
            stored, stride = split(rank, (m, n))
            if stride is not None:
                codes = byte.expand(m, packed_width(groups_of(n, stride)))
                samples = (Samples(codes, LONGEST[0], stride, LONGEST[1], (m, n)),)
        packed = PackedFactors(
            byte.expand(m, packed_width(stored)),
            byte.expand(n, packed_width(stored)),
            torch.zeros(()).expand(stored),
            torch.zeros(2, 4) if method == "paper" else None,
        )
        error = 0.5 if self.singular is None else self.predicted(rank, method)
        parts = (Part("paper" if method == "paper" else "residual", stored),)
        return Factors(packed, self.shape, self.rows, self.columns, parts, self.norm, error, samples)

    def predicted(self, rank: int, method: str) -> float:
        """Predicted squared relative error."""
        if (rank, method) not in self.known:
            error = predicted_error(self.singular, [rank], method, self.compact_shape).item()
            self.known[rank, method] = error
        return self.known[rank, method]

    def curve(self, method: str, limit: int | None = None) -> Curve:
        """Bytes and error left at every rank worth having, at most ``limit``."""
        if ("curve", method, limit) not in self.known:
            self.known["curve", method, limit] = self._curve(method, limit)
        return self.known["curve", method, limit]

    def _curve(self, method: str, limit: int | None) -> Curve:
        if not self.norm:
            return Curve(np.zeros(1, int), np.zeros(1, int), np.zeros(1))
        m, n = self.compact_shape
        most = RANK_LIMIT[method] * min(m, n)
        most = most if limit is None else min(most, limit)
        ranks = np.unique(np.append(np.arange(0, most, BLOCK), most))
        if method != "paper":  # a sketch gains from bytes where components do
            errors = 1 - predicted_share(self.singular, ranks, (m, n)).numpy()
        else:
            errors = predicted_error(self.singular, ranks, method).numpy()
        errors[0] = 1.0
        tensors = factors_tensors(self.planned(BLOCK, method))
        fixed = sum(t.nbytes for key, t in tensors.items() if key not in ("u", "v", "sigma")) + HEADER_BYTES
        nbytes = (m + n) * ((ranks + 3) // 4) + 4 * ranks + np.where(ranks > 0, fixed, 0)
        return Curve(ranks, nbytes, errors * self.norm**2)


@dataclass
class Compressible:
    """A tensor that is compressed as one or more matrices."""

    pair: Pair
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str  # factors | experts
    matrices: list[Matrix]
    added_rows: Tensor | None = None
    limits: list[int | None] = field(default_factory=list)  # ranks the codec was seen not to exceed

    @property
    def norm(self) -> float:
        return sum(m.norm**2 for m in self.matrices) ** 0.5

    def entry(self, factors: list[Factors | None]) -> Entry | None:
        """None if nothing is stored of it."""
        if all(f is None for f in factors) and self.added_rows is None:
            return None
        return Entry(
            self.pair.name,
            self.pair.base_name,
            self.shape,
            self.kind,
            self.dtype,
            factors=factors if self.kind == "experts" else factors[0],
            added_rows=self.added_rows,
            norm=self.norm,
            squared_error=whole_error(self.norm, factors),
        )

    def fraction_ranks(self, rank_fraction: float, method: str) -> list[int]:
        """int(rank_fraction * min(m, n)), at least 1, of every matrix that changed."""
        ranks = [max(1, int(rank_fraction * min(m.shape))) for m in self.matrices]
        return [
            min(k, RANK_LIMIT[method] * min(m.compact_shape)) if m.norm else 0 for k, m in zip(ranks, self.matrices)
        ]


def plan_tensor(
    pairing: Pairing, pair: Pair, method: str, spectrum: bool, device=None, exact_vectors: bool = True
) -> Entry | Compressible | None:
    """An entry if the tensor is stored as it is, a `Compressible` if as factors, None if it is the base's.

    exact_vectors: else vectors (biases, norms) take 8 bits an element, see `dts.adapter.vectors`.
    """
    return plan_job(pairing, pair, method, spectrum, device, exact_vectors)[1]()


def plan_job(
    pairing: Pairing, pair: Pair, method: str, spectrum: bool, device=None, exact_vectors: bool = True
) -> tuple[int, Callable[[], Entry | Compressible | None]]:
    """`plan_tensor` for `dts.adapter.in_order`: elements to work on, and the work, of what is read here."""
    read = _read(pairing, pair, method, exact_vectors)
    if not isinstance(read, Tensor):
        return 0, lambda: read

    def measure() -> Compressible | None:
        parts = [Matrix.of(part, pair.name, spectrum, device) for part in matrices_of(pair.name, read)]
        changed = pair.added_rows or any(m.norm for m in parts)
        return compressible(pairing, pair, parts) if changed else None

    return read.numel(), measure


def _read(pairing: Pairing, pair: Pair, method: str, exact_vectors: bool) -> Entry | Tensor | None:
    """As `plan_tensor`, but of what is compressed the difference."""
    finetuned = pairing.finetuned
    shape, dtype = finetuned.shape(pair.name), finetuned.dtype(pair.name)
    if pair.tied_to:
        return Entry(pair.name, pair.base_name, shape, "tied", dtype, tied_to=pair.tied_to)
    if pair.base_name is None:
        value = finetuned.load(pair.name)
        refuse_nan(value, pair.name)
        return Entry(pair.name, None, shape, "value", dtype, tensor=value, task_only=True)
    base_shape = pairing.base.shape(pair.base_name)
    if not dtype.is_floating_point or not is_matrix(pair.name, base_shape, method) and not pair.added_rows:
        return _raw(pairing, pair, dtype, exact_vectors)
    base_dtype = pairing.base.dtype(pair.base_name)
    if base_dtype != dtype and not pair.added_rows:  # a copy in another dtype differs by its rounding alone
        if torch.equal(pairing.finetuned.load(pair.name), pairing.base.load(pair.base_name).to(dtype)):
            return None
    return shared_delta(pairing, pair)


def refuse_nan(value: Tensor, name: str) -> None:
    """Raises Unencodable for a tensor that is stored as it is and has elements that are no numbers (infinite ones can
    be meant: masks)."""
    nan = int(value.float().isnan().sum()) if value.is_floating_point() else 0
    if nan:
        raise Unencodable(
            f"tensor {name!r} has {nan} NaN elements of {value.numel()}: check the fine-tune for divergence"
        )


def compressible(pairing: Pairing, pair: Pair, matrices: list[Matrix]) -> Compressible:
    """A tensor of these matrices, with its added rows."""
    shape, base_rows = pairing.finetuned.shape(pair.name), pairing.base.shape(pair.base_name)[0]
    added = pairing.finetuned.load(pair.name)[base_rows:].contiguous() if pair.added_rows else None
    if added is not None:
        refuse_nan(added, pair.name)
    kind = "experts" if is_stack(pair.name, shape) else "factors"
    dtype = pairing.finetuned.dtype(pair.name)
    return Compressible(pair, shape, dtype, kind, matrices, added, [None] * len(matrices))


def _raw(pairing: Pairing, pair: Pair, dtype: torch.dtype, exact: bool) -> Entry | None:
    """The difference in the fine-tune's dtype if it gives the value back exactly, else the value; None if equal.

    exact: else `eight_bit` where it can.
    """
    value, base = pairing.finetuned.load(pair.name), pairing.base.load(pair.base_name)
    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    if torch.equal(value, base.to(dtype)):
        return None
    refuse_nan(value, pair.name)
    shape = tuple(value.shape)
    if not dtype.is_floating_point:
        return Entry(pair.name, pair.base_name, shape, "value", dtype, tensor=value)
    delta = value.to(wide) - base.to(wide)
    norm = sums.norm(delta)
    entry = Entry(pair.name, pair.base_name, shape, "delta", dtype, tensor=delta.to(dtype), norm=norm)
    rounded = entry if exact else eight_bit(entry, delta)
    if rounded is not entry or torch.equal(entry.apply(base), value):
        return rounded
    return Entry(pair.name, pair.base_name, shape, "value", dtype, tensor=value, norm=norm)
