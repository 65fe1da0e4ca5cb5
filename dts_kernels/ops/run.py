"""From an op's arguments to the path that computes them: the last checks, the choice, and the count of what ran."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import check, contents, dispatch, sample_contents
from ..cpu import native_samples
from ..dispatch import Problem
from ..operands import FactorOperands, SampleOperands, sample_layout
from ..paths import PATHS


def fit(x: Tensor, operands: FactorOperands, m: int, n: int) -> None:
    """Raise ValueError unless the operands are a bank's of [m, n] matrices, on the device of x."""
    if forward_ad._current_level >= 0:
        check.no_forward_mode()
    packed, table, _, _, _, max_rank, layout = operands
    held = getattr(table, contents.HELD, None)
    if held is None or held.given is not packed or held.shape is None:  # else a bank's own, which makes another table
        held = contents.of(packed, table)
    if held.shape != (m, n) or not held.on_cpu or not x.is_cpu or layout != "disk":
        held.fit(layout, (m, n), max_rank, table, x.device)


def readable(x: Tensor, operands: FactorOperands, adds: Tensor | None) -> tuple[Tensor, FactorOperands, Tensor | None]:
    """These as kernels read them."""
    device = x.device
    slots, weights = check.flat(operands.slots, device), check.flat(operands.weights, device)
    adds = None if adds is None else check.flat(adds, device)
    return check.real(x), operands._replace(slots=slots, weights=weights), adds


@lru_cache(maxsize=4096)
def choice(
    op: str,
    device: str,
    dtype: torch.dtype,
    rows: int,
    entries: int,
    places: int,
    layout: str,
    transposed: bool,
    empty: bool,
    exact: bool,
    sizes: tuple[int, int, int] = (0, 0, 0),
) -> tuple[tuple[str, str], Callable[..., Tensor]]:
    """((op, path), implementation) on this machine; hashing plain arguments costs less than making a `Problem`."""
    name = str(dtype).removeprefix("torch.")
    problem = Problem(op, device, name, rows, entries, places, *sizes, layout, transposed, empty, exact)
    path = dispatch.choose(problem)
    return (op, path), PATHS[op][path]


def chosen(
    op: str,
    like: Tensor,
    dtype: torch.dtype,
    rows: int,
    routing: tuple[int, ...],
    layout: str,
    transposed: bool = False,
    empty: bool = False,
    sizes: tuple[int, int, int] = (0, 0, 0),
) -> Callable[..., Tensor]:
    """The path of a product with operands on the device of ``like``, counted.  routing: its [entries, places];
    sizes: out_features, in_features and rank of a bank of kernel words."""
    entries, places = routing
    if layout == "disk":
        device = "cpu" if like.is_cpu else like.device.type
    else:
        device = dispatch.device_kind(like.device.type)
    key, path = choice(op, device, dtype, rows, entries, places, layout, transposed, empty, dispatch.exact(), sizes)
    dispatch.ran[key] += 1
    return path


def readable_samples(
    like: Tensor, plain: bool, operands: SampleOperands, shape: tuple[int, int]
) -> tuple[SampleOperands, str]:
    """Samples of [m, n] matrices and a routing (plain: that lies as C reads it) as kernels read them, on the device of
    ``like``, checked; and the samples' layout.  On the CPU without an arena `native_samples` keeps what it has seen of
    a table."""
    codes, table, starts, scales, slots, weights = operands
    array = getattr(table, native_samples.HELD, None)
    if plain and array is not None and like.is_cpu and array.of_now(codes, table, starts, scales):
        return operands, "disk"
    layout, device = sample_layout(codes), like.device
    check.samples(operands.stored, layout == "arena")
    if layout == "arena":
        sample_contents.fit(operands.stored, shape)
        codes = [check.flat(c, device) for c in codes]
    if any(c.device != device for c in codes):
        raise ValueError(f"all tensors of a product must be on one device: codes are not on {device}")
    tensors = (check.flat(t, device) for t in (table, starts, scales, slots, weights))
    return SampleOperands(codes, *tensors), layout
