"""Tensors that are stored whole, not as matrices: heads, ties, biases and norms, what is no floating point number."""

import torch
from torch import Tensor

from dts import sums
from dts.adapter.entries import Entry
from dts.adapter.vectors import EXACT, Rounding, in_few_bits
from dts.checkpoint import Pair, Pairing
from dts.codec import Unencodable


def whole_entry(pairing: Pairing, pair: Pair, rounding: Rounding = EXACT) -> Entry | None:
    """The entry of such a tensor; None if it is the base's.

    rounding: of vectors (biases, norms) and heads.  Raises Unencodable for NaN.
    """
    finetuned = pairing.finetuned
    shape, dtype = finetuned.shape(pair.name), finetuned.dtype(pair.name)
    if pair.tied_to:
        return Entry(pair.name, pair.base_name, shape, "tied", dtype, tied_to=pair.tied_to)
    if pair.base_name is None:
        value = finetuned.load(pair.name)
        refuse_nan(value, pair.name)
        entry = Entry(pair.name, None, shape, "value", dtype, tensor=value, task_only=True)
        return in_few_bits(entry, value, rounding)
    return _changed(pair, finetuned.load(pair.name), pairing.base.load(pair.base_name), rounding)


def _changed(pair: Pair, value: Tensor, base: Tensor, rounding: Rounding) -> Entry | None:
    """The difference in the fine-tune's dtype if it gives the value back exactly, else the value; None if equal."""
    shape, dtype = tuple(value.shape), value.dtype
    if is_rounded_copy(value, base):
        return None
    refuse_nan(value, pair.name)
    as_value = Entry(pair.name, pair.base_name, shape, "value", dtype, tensor=value)
    if not dtype.is_floating_point:
        return as_value
    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    delta = value.to(wide) - base.to(wide)
    as_value.norm = sums.norm(delta.nan_to_num(0, 0, 0))  # of what is a number: a value takes the place of others
    entry = Entry(pair.name, pair.base_name, shape, "delta", dtype, tensor=delta.to(dtype), norm=as_value.norm)
    rounded = in_few_bits(entry, delta, rounding)
    return rounded if rounded is not entry or torch.equal(entry.apply(base), value) else as_value


def is_rounded_copy(value: Tensor, base: Tensor) -> bool:
    """Is it the base's tensor, perhaps in a narrower dtype?  Where that dtype has no number for an element of the base
    (float16 ends at 65,504), it is another one: an infinite."""
    made = base.to(value.dtype)
    if not torch.equal(value, made):
        return False
    if not value.is_floating_point() or value.dtype.itemsize >= base.dtype.itemsize:
        return True
    return bool(made.isfinite().eq(base.isfinite()).all())


def refuse_nan(value: Tensor, name: str) -> None:
    """Raises Unencodable for a tensor that is stored as it is and has elements that are no numbers (infinite ones can
    be meant: masks)."""
    nan = int(value.float().isnan().sum()) if value.is_floating_point() else 0
    if nan:
        raise Unencodable(
            f"tensor {name!r} has {nan} NaN elements of {value.numel()}: check the fine-tune for divergence"
        )
