"""Products that were made before, again: the same bank, as many rows, a routing of the same shape, with other numbers.

What the first call looked up, chose and compiled is kept beside the bank's table (`contents.Contents.launches`), so it
goes when the bank changes.  A call that differs in anything that a launch depends on gets None, and takes the long way,
which checks everything and says what is wrong.
"""

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import contents, dispatch
from ..operands import FactorOperands
from ..routing import Routing
from . import launch, vectors
from .launch import ALIGNMENT, Bound, bind

FORMS = 16  # of one bank's products that are kept: prompts have all lengths
ROOM, MOST_ROOM = 1 << 18, 1 << 22  # bytes of t that a thread keeps a stream from the start, and at most


class Form(NamedTuple):
    """Of calls that are alike, and their launches.

    device: as `Tensor.get_device` has it;  card: as `launch.Launcher.index` has it
    room: bytes of t;  ran: what `dispatch.ran` counts
    words, scalars, table: pointers;  second: expand, or base_expand if fused;  with_bias: of base_expand
    folds: whether what tasks add is added by the second, too
    """

    in_features: int
    out_features: int
    device: int
    card: int
    room: int
    ran: tuple[str, str]
    words: int
    scalars: int
    table: int
    shrink: Bound
    second: Bound
    fused: bool
    with_bias: bool
    folds: bool


def keep(op: str, launched: Any, operands: FactorOperands) -> None:
    """Keep what a call (`products.Launch`) launched just now, if it can be repeated."""
    table = operands.table
    held = getattr(table, contents.HELD, None)
    if held is None or not held.of_now(operands.packed, table) or launch.launcher.stream(launched.index) is None:
        return
    fused = "base_expand" in launched.launched
    (call, compiled), second = launched.launched["shrink"], launched.launched["base_expand" if fused else "expand"]
    x, words, scalars, at, slots, _, t = call.pointers
    shrink, then, room = bind(call, compiled), bind(*second), t.numel() * t.element_size()
    if shrink is None or then is None or room > MOST_ROOM:
        return
    if len(held.launches) >= FORMS:
        held.launches.clear()
    count = None if launched.adds is None else launched.adds.shape[0]
    held.launches[op, x.dtype, x.numel(), slots.shape, count] = Form(
        launched.in_features,
        launched.out_features,
        x.get_device(),
        launched.index,
        room,
        (op.removesuffix("+"), "triton_levels" if launched.levels else "triton"),
        words.data_ptr(),
        scalars.data_ptr(),
        at.data_ptr(),
        shrink,
        then,
        fused,
        second[0].constants.get("BIAS", False),
        second[0].constants.get("ADDS", False),
    )


def form_of(op: str, x: Tensor, table: Tensor, slots: Tensor, weights: Tensor, adds: Tensor | None) -> Form | None:
    """What was kept for such a call, if x, the routing and what is added lie as the kernels read them."""
    held, shape, count = getattr(table, contents.HELD, None), slots.shape, None
    if adds is not None:
        if adds.dim() != 2:
            return None
        count = adds.shape[0]
    form = None if held is None else held.launches.get((op, x.dtype, x.numel(), shape, count))
    if held is None or form is None or adds is not None and not _fits(adds, form):
        return None
    if held.version == contents.version_of(table) and lies_as_read(x, slots, weights, form.in_features, form.device):
        return form
    return None  # of another version: the table points elsewhere, which nobody looked at yet


def lies_as_read(x: Tensor, slots: Tensor, weights: Tensor, in_features: int, device: int) -> bool:
    """Whether kernels may be given pointers to these; weights are of the shape of slots."""
    return (
        x.dim() > 0
        and x.shape[-1] == in_features
        and x.layout is _strided
        and x.is_contiguous()
        and not x.is_neg()
        and x.get_device() == device
        and slots.dtype is _int32
        and weights.dtype is _float32
        and weights.shape == slots.shape
        and slots.is_contiguous()
        and weights.is_contiguous()
        and slots.get_device() == device
        and weights.get_device() == device
        and not weights.is_neg()
        and type(slots) is Tensor
        and type(weights) is Tensor
    )


def may_be_added_to(y: Tensor, x: Tensor, out_features: int, device: int) -> bool:
    """Whether y [..., out_features] is one that a kernel adds to for these x."""
    return (
        y.shape == (*x.shape[:-1], out_features)
        and y.dtype is x.dtype
        and y.layout is _strided
        and y.is_contiguous()
        and not y.is_neg()
        and y.get_device() == device
    )


_strided, _int32, _float32 = torch.strided, torch.int32, torch.float32
_linear = torch.nn.functional.linear


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor, routing: Routing, adds: Tensor | None = None
) -> Tensor | None:
    """x W^T + b + the delta (and ``adds``) of each row's tasks, or None; all plain tensors without gradients."""
    slots, weights = routing.slots, routing.weights
    form = form_of("linear", x, table, slots, weights, adds)
    if form is None:
        return None
    m, stream = form.out_features, launch.launcher.stream(form.card)
    if stream is None or not takes(form, x, weight, bias):
        return None
    if form.fused:
        y = x.new_empty(*x.shape[:-1], m)
        w = weight.data_ptr()
        given: tuple[int, ...] = w, w if bias is None else bias.data_ptr()
    else:
        y, given = _linear(x, weight, bias), ()
        if not y.is_contiguous():
            return None
    made = _run(form, stream, x, y, y, slots, weights, given, adds)
    if made is None or adds is None or form.folds:
        return made
    return vectors.task_rows(adds, routing, made, made, made.numel() // m, m)


def delta_linear(
    x: Tensor, y: Tensor | None, table: Tensor, routing: Routing, adds: Tensor | None = None
) -> Tensor | None:
    """y (None: zeros) + the delta (and ``adds``) of each row's tasks in new memory, or None."""
    slots, weights = routing.slots, routing.weights
    form = form_of("delta_linear" if y is None else "delta_linear+", x, table, slots, weights, adds)
    if form is None:
        return None
    stream = launch.launcher.stream(form.card)
    if stream is None or y is not None and not may_be_added_to(y, x, form.out_features, form.device):
        return None
    out = x.new_empty(*x.shape[:-1], form.out_features)
    return _run(form, stream, x, out if y is None else y, out, slots, weights, (), adds)


def takes(form: Form, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the base's product of these is one that the launches of the form may be beside, or make."""
    m = form.out_features
    if (
        weight.shape != (m, form.in_features)
        or weight.dtype is not x.dtype
        or weight.layout is not _strided
        or bias is not None
        and (bias.shape != (m,) or bias.dtype is not x.dtype)
    ):
        return False
    if not form.fused:
        return True
    return (
        form.with_bias is (bias is not None)
        and _fuses(weight, form.device)
        and (bias is None or _fuses(bias, form.device))
    )


def _fuses(t: Tensor, device: int) -> bool:
    """Whether the fused kernel may be given a pointer to a weight or bias."""
    return t.is_contiguous() and not t.is_neg() and t.get_device() == device


def _fits(adds: Tensor, form: Form) -> bool:
    return (
        adds.dtype is _float32
        and adds.dim() == 2
        and adds.shape[1] == form.out_features
        and adds.get_device() == form.device
        and adds.is_contiguous()
        and not adds.is_neg()
    )


def _run(
    form: Form,
    stream: int,
    x: Tensor,
    y: Tensor,
    out: Tensor,
    slots: Tensor,
    weights: Tensor,
    given: tuple[int, ...],
    adds: Tensor | None,
) -> Tensor | None:
    """Launch; given: pointers of weight and bias for the fused kernel.  None where a pointer is not aligned."""
    _, _, _, _, _, ran, words, scalars, table, shrink, second, fused, *_ = form
    at, to, rows, gammas = x.data_ptr(), out.data_ptr(), slots.data_ptr(), weights.data_ptr()
    before, added = to if y is out else y.data_ptr(), scalars if adds is None else adds.data_ptr()
    unaligned = at | to | before | rows | gammas | added
    for pointer in given:
        unaligned |= pointer
    if unaligned % ALIGNMENT or not at or not before:
        return None
    held = rooms.held.get((form.device, stream))
    t = room(form.device, form.room, stream, x) if held is None or held[1] < form.room else held[2]
    run, grid, function, metadata, rest, _ = shrink
    run(*grid, stream, function, metadata, None, None, None, at, words, scalars, table, rows, gammas, t, *rest)
    run, grid, function, metadata, rest, _ = second
    if fused:
        pointers = at, *given, t, words, scalars, table, rows, to
    else:
        pointers = t, words, scalars, table, rows, before, to, added, gammas
    run(*grid, stream, function, metadata, None, None, None, *pointers, *rest)
    dispatch.ran[ran] += 1
    return out


# ---- t ---------------------------------------------------------------------------------------------------------


class _Rooms(threading.local):
    """Scratch memory of each thread and stream: launches of one stream run one after another, so the next product may
    write where the last one has read; but two threads could launch theirs in turns on the same stream.  No graph that
    is captured reads it (`launch.Launcher.stream`)."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, int], tuple[Tensor, int, int]] = {}  # (device, stream) -> memory, bytes, pointer


rooms = _Rooms()


def room(device: int, size: int, stream: int, like: Tensor) -> int:
    """Pointer to so many bytes, made on the stream that is current."""
    held = rooms.held.get((device, stream))
    if held is None or held[1] < size:
        size = max(ROOM, size)
        memory = torch.empty(size, dtype=torch.uint8, device=like.device)
        held = rooms.held[device, stream] = memory, size, memory.data_ptr()
    return held[2]
