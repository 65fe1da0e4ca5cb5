"""From an op's arguments to the path that computes them: the last checks, the choice, and the count of what ran."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import check, contents, dispatch
from ..operands import FactorOperands, SampleOperands, sample_layout
from ..paths import PATHS, TAKES_ADDS
from ..routing import Routing, add_rows


def fit(x: Tensor, operands: FactorOperands, m: int, n: int) -> None:
    """Raise ValueError unless the operands are a bank's of [m, n] matrices, on the device of x."""
    if forward_ad._current_level >= 0:
        check.no_forward_mode()
    packed, table, _, _, _, max_rank, layout = operands
    held = contents.of(packed, table)
    if held.shape != (m, n) or not held.on_cpu or not x.is_cpu or layout != "disk":
        held.fit(layout, (m, n), max_rank, table, x.device)


def readable(x: Tensor, operands: FactorOperands, adds: Tensor | None) -> tuple[Tensor, FactorOperands, Tensor | None]:
    """These as kernels read them."""
    device = x.device
    slots, weights = check.flat(operands.slots, device), check.flat(operands.weights, device)
    adds = None if adds is None else check.flat(adds, device)
    return check.real(x), operands._replace(slots=slots, weights=weights), adds


def path_for(
    op: str,
    like: Tensor,
    dtype: torch.dtype,
    rows: int,
    routing: tuple[int, int] | torch.Size,
    layout: str,
    transposed: bool = False,
    empty: bool = False,
) -> str:
    """The path of a product with operands on the device of ``like``, counted.  routing: its [entries, places]."""
    entries, places = routing
    if layout == "disk":
        device = "cpu" if like.is_cpu else like.device.type
    else:
        device = dispatch.device_kind(like.device.type)
    path = dispatch.path_of(op, device, dtype, rows, entries, places, layout, transposed, empty, dispatch.exact())
    dispatch.ran[op, path] += 1
    return path


def run(op: str, x: Tensor, operands: FactorOperands, transposed: bool, adds: Tensor | None, *arguments) -> Tensor:
    """The product by the path that is chosen for it, which takes ``arguments``; and ``adds``, if there are any."""
    _, _, slots, weights, _, max_rank, layout = operands
    n = x.shape[-1]
    rows = x.numel() // n if n else x.shape[:-1].numel()
    path = path_for(op, x, x.dtype, rows, slots.shape, layout, transposed, max_rank == 0)
    function = PATHS[op][path]
    if adds is None:
        return function(*arguments)
    if (op, path) in TAKES_ADDS:
        return function(*arguments, adds=adds)
    return add_rows(function(*arguments), adds, Routing(slots, weights))


def readable_samples(like: Tensor, plain: bool, operands: SampleOperands) -> SampleOperands:
    """Samples and a routing (plain: that lies as C reads it) as kernels read them, on the device of ``like``, checked;
    on the CPU without an arena `native_samples` keeps what it has seen of a table."""
    codes, table, starts, scales, slots, weights = operands
    array = getattr(table, "_dts_samples", None)
    if plain and array is not None and like.is_cpu and array.of_now(codes, table, starts, scales):
        return operands
    arena = sample_layout(codes) == "arena"
    check.samples(operands.stored, arena)
    device = like.device
    if arena:
        codes = [check.flat(c, device) for c in codes]
    if any(c.device != device for c in codes):
        raise ValueError(f"all tensors of a product must be on one device: codes are not on {device}")
    return SampleOperands(codes, *(check.flat(t, device) for t in (table, starts, scales, slots, weights)))
