"""All that a layer launched before, launched again: products of components and samples, what tasks add to the bias.

Each can be repeated by itself (`repeat`, `repeat_samples`, `launch.run`), and then looks at what it is given and makes
memory for what it returns.  Here that is looked at once for all of them, and what was found right has a fingerprint
(`alike`): operands of the same one are right again, but for their addresses, which are looked at in every call.  All is
added in place to the base's product.  What follows from the banks stays as long as they derive the same, what follows
from the tasks' addends as long as they are the same tensor, whose owner writes it in place.

What is not known, or not as it was, is left to the products themselves, which say what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import contents, dispatch
from ..bank import Bank
from ..gpu import repeat, repeat_samples, vectors
from ..gpu.alike import Check, alike
from ..gpu.flat import Step, flat
from ..gpu.launch import ALIGNMENT
from ..rounded import Addends, RoundedVectors
from ..routing import Routing
from ..sample_bank import SampleBank
from .kinds import remembered, stream_of
from .library import direct

OF_SAMPLES = "x", "y", "y", "slots", "weights", "scratch", "parts"  # of `flat.GIVEN`, in the order of a sample's places

_linear = torch.nn.functional.linear


class Recorded(NamedTuple):
    """Of calls that are alike.

    check: `alike` of so many operands: x, weight, slots, weights and, where there is one, the bias
    adds: what was added;  derived, arguments: what the banks derived;  table, version: of the components' contents
    device: as `Tensor.get_device` has it;  card: as `launch.Launcher.index` has it
    width: outputs where the base's product is one of the launches, 0: it is the library's, and y
    room, parts: bytes of scratch, and where the samples' parts begin in it
    launches: see `gpu.flat`;  ran: what `dispatch.ran` counts
    """

    check: Check
    operands: int
    adds: Tensor | None
    derived: Any
    arguments: Any
    table: Tensor | None
    version: int | None
    device: int
    card: int
    width: int
    room: int
    parts: int
    launches: Callable[..., None]
    ran: tuple[tuple[str, str], ...]


class Replay:
    """The products of one matrix's components and samples (at least one of them) on a GPU."""

    def __init__(self, components: Bank | None, samples: SampleBank | None):
        self.components, self.samples = components, samples
        self._recorded: list[Recorded] = []

    @staticmethod
    def suits(components: Bank | None, samples: SampleBank | None) -> bool:
        """Whether kernels read these banks."""
        return (components is None or components.layout != "disk") and (
            samples is None or samples.arena is not None and not samples.transposed
        )

    def __getstate__(self) -> dict[str, Any]:
        """A copy's banks are elsewhere."""
        return vars(self) | {"_recorded": []}

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, adds: Addends | None
    ) -> Tensor | None:
        """`ops.linear`, then `ops.add_samples`, bit for bit; None, with nothing added, where those are to be asked."""
        slots, weights, components, samples = routing.slots, routing.weights, self.components, self.samples
        given = (x, weight, slots, weights) if bias is None else (x, weight, slots, weights, bias)
        count = len(given)
        now = None if components is None else components.ready
        of_samples = None if samples is None else samples.ready
        for recorded in self._recorded:
            check, many, added, derived, arguments, *_ = recorded
            if derived is now and arguments is of_samples and added is adds and many == count and check(*given):
                break
        else:
            found = self._record(x, weight, bias, routing, adds)
            if found is None:
                return None
            recorded = found
        _, _, _, _, _, table, version, device, card, width, size, parts, launches, ran = recorded
        stream = stream_of(card, table, version)
        if stream is None:
            return None
        own_weight = own_bias = 0
        if width:
            y = x.new_empty(*x.shape[:-1], width)
            own_weight = weight.data_ptr()
            own_bias = own_weight if bias is None else bias.data_ptr()
        else:
            y = _linear(x, weight, bias)
            if not y.is_contiguous():
                return None
        at, to, rows, gammas = x.data_ptr(), y.data_ptr(), slots.data_ptr(), weights.data_ptr()
        if (at | to | rows | gammas | own_weight | own_bias) % ALIGNMENT or not at or not to:
            return None
        held = repeat.rooms.held.get((device, stream))
        scratch = repeat.room(device, size, stream, x) if held is None or held[1] < size else held[2]
        launches(stream, at, to, rows, gammas, scratch, scratch + parts, own_weight, own_bias)
        for key in ran:
            dispatch.ran[key] += 1
        return y

    def _record(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, adds: Addends | None
    ) -> Recorded | None:
        """What repeats such calls, kept; None unless each of their products could be repeated now."""
        if isinstance(adds, RoundedVectors):  # on a CPU
            return None
        slots, weights, steps, ran = routing.slots, routing.weights, list[Step](), list[tuple[str, str]]()
        size = parts = width = 0
        table = version = components = samples = None
        if not (direct(x, weight, bias, adds) and weight.dtype is x.dtype and (bias is None or bias.dtype is x.dtype)):
            return None
        if self.components is not None:
            table = self.components.table
            components = repeat.form_of("linear", x, table, slots, weights, adds)
            if components is None or not repeat.takes(components, x, weight, bias):
                return None
            version, size = contents.version_of(table), components.room
            width = components.out_features if components.fused else 0
            own = components.words, components.scalars, components.table
            steps.append((components.shrink, ("x", *own, "slots", "weights", "scratch")))
            if components.fused:
                steps.append((components.second, ("x", "weight", "bias", "scratch", *own, "slots", "y")))
            else:
                added = components.scalars if adds is None else adds.data_ptr()
                if added % ALIGNMENT:
                    return None
                steps.append((components.second, ("scratch", *own, "slots", "y", "y", added, "weights")))
            ran.append(components.ran)
        form: repeat.Form | repeat_samples.Form | None = components
        if self.samples is not None:
            samples = repeat_samples.form_of(x, self.samples.arguments.table, slots, weights)
            if samples is None:
                return None
            form = form or samples
        assert form is not None
        m, n = form.out_features, form.in_features
        if weight.shape != (m, n) or bias is not None and bias.shape != (m,) or weight.get_device() != form.device:
            return None
        if adds is not None and not (components is not None and components.folds):
            bound = None
            if adds.dim() == 2 and adds.shape[1] == m and adds.get_device() == form.device:
                bound = vectors.repeated(adds, routing, x.dtype, x.numel() // n)
            if bound is None:
                return None
            steps.append((bound, (adds.data_ptr(), "slots", "weights", "y", "y")))
        if samples is not None:
            known: list[str | int] = [*OF_SAMPLES, *samples.held]
            steps += [(bound, [known[place] for place in places]) for bound, places in samples.steps]
            size, parts = max(size, samples.room), samples.parts
            ran.append(repeat_samples.RAN)
        given = (x, weight, slots, weights, *(() if bias is None else (bias,)))
        check = alike(*given)
        if check is None:
            return None
        derived = None if self.components is None else self.components.ready
        arguments = None if self.samples is None else self.samples.ready
        of_banks = check, len(given), adds, derived, arguments, table, version
        made = Recorded(*of_banks, form.device, form.card, width, size, parts, flat(steps), tuple(ran))
        lasts = lambda r: r.derived is derived and r.arguments is arguments and r.adds is adds  # noqa: E731
        self._recorded = remembered(self._recorded, made, lasts)
        return made
