"""Products with samples that were made before, again: as `repeat` does it for components.

What a product launched is kept with what was seen of the samples' table (`sample_contents.Seen`), so it goes when the
bank changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from .. import dispatch, sample_contents
from ..layout import round_up
from ..operands import SampleOperands
from . import launch, repeat
from .launch import ALIGNMENT, Bound

if TYPE_CHECKING:
    from .sample_products import Launch

BETWEEN = 256  # bytes that memory of its own would be aligned to
RAN = "add_samples", "triton"


class Form(NamedTuple):
    """Of calls that are alike, and their launches.

    device: as `Tensor.get_device` has it;  card: as `launch.Launcher.index` has it
    room, parts: bytes of scratch, and where the parts begin in it
    held: pointers of the bank;  steps: launches, and which pointers of `add_samples` each is given
    """

    in_features: int
    out_features: int
    device: int
    card: int
    room: int
    parts: int
    held: tuple[int, ...]
    steps: tuple[tuple[Bound, tuple[int, ...]], ...]


def _seen(table: Tensor) -> sample_contents.Seen | None:
    return getattr(table, sample_contents.HELD, None)


def keep(launched: Launch, y: Tensor, out: Tensor, parts: Tensor | None) -> None:
    """Keep what a product launched just now, if it can be repeated."""
    seen, bound = _seen(launched.table), [(call, bound) for call, bound in launched.launched if bound is not None]
    all_bound = len(bound) == len(launched.launched)
    if seen is None or seen.own is None or not all_bound or launch.launcher.stream(launched.index) is None:
        return
    if not (launched.words is seen.words and launched.starts is seen.starts and launched.scales is seen.scales):
        return  # a bank's table beside somebody's own tensors, which the bank's calls are not given
    own = [launched.x, y, out, launched.slots, launched.weights]
    laid = 0 if launched.laid is launched.x else round_up(launched.laid.nbytes, BETWEEN)
    room = laid + (0 if parts is None else parts.nbytes)
    if room > repeat.MOST_ROOM:
        return
    own += [launched.laid if laid else y, y if parts is None else parts]
    known = {id(tensor): place for place, tensor in reversed(list(enumerate(own)))}
    held: list[Tensor] = []
    steps = []
    for call, repeated in bound:
        places = []
        for tensor in call.pointers:
            if id(tensor) not in known:
                known[id(tensor)] = len(own) + len(held)
                held.append(tensor)
            places.append(known[id(tensor)])
        steps.append((repeated, tuple(places)))
    if len(seen.launches) >= repeat.FORMS:
        seen.launches.clear()
    seen.launches[launched.x.dtype, launched.x.numel(), launched.slots.shape] = Form(
        launched.in_features,
        launched.out_features,
        launched.x.get_device(),
        launched.index,
        room,
        laid,
        tuple(tensor.data_ptr() for tensor in held),
        tuple(steps),
    )


def form_of(x: Tensor, table: Tensor, slots: Tensor, weights: Tensor) -> Form | None:
    """What was kept for such a call, if x and the routing lie as the kernels read them."""
    seen = _seen(table)
    form = None if seen is None else seen.launches.get((x.dtype, x.numel(), slots.shape))
    if form is None or not repeat.lies_as_read(x, slots, weights, form.in_features, form.device):
        return None
    return form


def add_samples(x: Tensor, y: Tensor, operands: SampleOperands) -> Tensor | None:
    """y + the samples' product of each row's tasks in new memory, or None; all plain tensors without gradients."""
    slots, weights = operands.slots, operands.weights
    form = form_of(x, operands.table, slots, weights)
    if form is None:
        return None
    device, stream = form.device, launch.launcher.stream(form.card)
    if stream is None or not repeat.may_be_added_to(y, x, form.out_features, device):
        return None
    out = x.new_empty(y.shape)
    given = x.data_ptr(), y.data_ptr(), out.data_ptr(), slots.data_ptr(), weights.data_ptr()
    unaligned = 0
    for pointer in given:
        unaligned |= pointer
    if unaligned % ALIGNMENT or not given[0]:
        return None
    scratch = repeat.room(device, form.room, stream, x) if form.room else 0
    pointers = *given, scratch, scratch + form.parts, *form.held
    for (run, grid, function, metadata, rest, _), places in form.steps:
        run(*grid, stream, function, metadata, None, None, None, *[pointers[place] for place in places], *rest)
    dispatch.ran[RAN] += 1
    return out
