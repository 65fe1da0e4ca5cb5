"""x W^T + b and all that tasks add to it, of components and of samples, without the frames of an op for each.

On a CPU a layer of a small model takes no longer than Python's way to it.  Here that is one function: what it is given
is looked at in every call, as the ops look at it, and what follows from the banks alone is kept until they change.

In float32 the deltas come first, on top of the bias, and the library adds the base's product to them: it would copy the
bias there, and many rows of y are out of the caches when it is done.

What is out of the ordinary (gradients, tracing, autocast, other layouts, wrong sizes) is left to the ops, which say
what is wrong with it.
"""

from __future__ import annotations

import functools
import threading
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .. import check, dispatch
from ..bank import Bank
from ..cpu import native, native_samples
from ..cpu.native_samples import SampleArray
from ..cpu.tasks import Tasks
from ..rounded import Addends, RoundedVectors
from ..routing import Routing
from ..sample_bank import SampleBank
from .library import PLAIN, direct, unwatched
from .run import choice

_strided = torch.strided
NATIVE = ("native", "native_exact")
MOST_KINDS = 256  # of calls whose paths are remembered
MOST_KEPT = 1 << 22  # numbers of a copy of a weight whose memory a thread keeps for the next
_kept = threading.local()


class _Banks(NamedTuple):
    """What C reads of two banks."""

    tasks: Tasks | None
    array: SampleArray | None


class Together:
    """The products of one matrix's components and samples (at least one of them) on the CPU."""

    def __init__(self, components: Bank | None, samples: SampleBank | None):
        self.components, self.samples = components, samples
        of = components if components is not None else samples
        assert of is not None
        self.m, self.n = of.out_features, of.in_features
        self._kinds: dict[tuple, tuple[tuple[str, str], ...]] = {}  # of calls, see `_paths`

    @staticmethod
    def suits(components: Bank | None, samples: SampleBank | None) -> bool:
        """Whether C reads these banks."""
        return (components is None or components.layout == "disk" and components.device.type == "cpu") and (
            samples is None or samples.arena is None and samples.device.type == "cpu"
        )

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, adds: Addends | None
    ) -> Tensor | None:
        """`ops.linear`, then `ops.add_samples`; None, with nothing done, where those are to be asked.

        Bit for bit, but that in float32 samples are added before the base's product, as components are in `ops.linear`.
        """
        components, slots, weights = self.components, routing.slots, routing.weights
        m, n, dtype, shape, entries = self.m, self.n, x.dtype, x.shape, check.plain(slots, weights)
        if (
            not entries
            or dtype not in native.SIZES
            or weight.dtype is not dtype
            or weight.shape != (m, n)
            or weight.layout is not _strided
            or not shape
            or shape[-1] != n
            or not x.is_cpu
            or x.layout is not _strided
            or not x.is_contiguous()
            or x.is_neg()
            or weights.is_neg()
            or type(x) not in PLAIN
            or type(weight) not in PLAIN
            or not weight.is_cpu
            or torch.is_grad_enabled()
            or bias is not None
            and (
                bias.shape != (m,)
                or bias.dtype is not dtype
                or not (bias.is_cpu and bias.is_contiguous())
                or bias.is_neg()
                or type(bias) not in PLAIN
            )
            or not unwatched()
        ):
            return None
        count, places = x.numel(), slots.shape[1]
        rows = count // n if n else 0
        if not rows or rows % entries:
            return None
        add = adds_have = few = add_count = 0
        if isinstance(adds, RoundedVectors):
            if components is None or adds.n != m:
                return None
            few, add_count = adds.pointer, adds.count
        elif adds is not None:
            if (
                components is None
                or adds.dtype is not torch.float32
                or adds.dim() != 2
                or adds.shape[1] != m
                or not (adds.is_cpu and adds.is_contiguous())
                or adds.is_neg()
                or type(adds) not in PLAIN
            ):
                return None
            add, adds_have, add_count = adds.data_ptr(), adds.numel(), adds.shape[0]
        banks, exact = self._held(), dispatch.exact()
        if banks is None:
            return None
        of = dtype, rows, entries, places, exact, components is not None and components.max_rank == 0
        keys = self._kinds.get(of)
        if keys is None:
            keys = self._paths(*of)
        if not keys:
            return None
        for key in keys:
            dispatch.ran[key] += 1
        size, first = native.SIZES[dtype], dtype is torch.float32
        if not first:
            y = functional.linear(x, weight, bias)
            if y.dtype is not dtype or not y.is_contiguous():
                y = y.to(dtype).contiguous()
        elif banks.tasks is not None:
            y = x.new_empty(rows, m)
        else:
            y = x.new_zeros(rows, m) if bias is None else bias.repeat(rows, 1)
        threads, variant, to, have = torch.get_num_threads(), native.name_of(None), y.data_ptr(), rows * m
        given, slot, weigh, kind = x.data_ptr(), slots.data_ptr(), weights.data_ptr(), native.DTYPES[dtype]
        pairs = entries * places
        onto, onto_have, onto_stride = to, have, m * size
        if first:  # the bias, for all rows
            onto, onto_have, onto_stride = (0, 0, 0) if bias is None else (bias.data_ptr(), m, 0)
        turned, array = self.transposed, banks.array
        sampled = native.NO_SAMPLES if array is None else array.addresses
        if banks.tasks is not None:
            record = native.delta_linear_record(
                variant, threads, exact, 0,
                given, count, kind, n * size, rows, n,
                onto, onto_have, onto_stride, to, have, m * size, m,
                banks.tasks.pointer, banks.tasks.count,
                slot, pairs, weigh, pairs, entries, places,
                add, adds_have, few, add_count, *sampled, turned,
            )  # fmt: skip
            if code := native.loaded().dts_delta_linear(record):
                native.check(code, "delta_linear")
        elif array is not None:
            record = native_samples.add_samples_record(
                variant, threads, exact, turned,
                given, count, kind, rows, *((n, m) if turned else (m, n)),
                to, have, to, have, *sampled,
                slot, pairs, weigh, pairs, entries, places,
            )  # fmt: skip
            if code := native.loaded().dts_add_samples(record):
                native.check(code, "add_samples")
        if not first:
            return y
        y.addmm_(x if len(shape) == 2 else x.view(rows, n), weight.t())
        return y if len(shape) == 2 else y.view(*shape[:-1], m)

    def whole(self, weight: Tensor, routing: Routing, gamma: Tensor) -> Tensor | None:
        """weight [m, n] + the delta of the one mixture of ``routing``, float32; None where the ops are to be asked.

        gamma: float32 [slots], the same mixture.  In memory that this thread's next call takes: new pages for every
        layer cost as much as the deltas.
        """
        m, n = self.m, self.n
        if weight.dtype is not torch.float32 or weight.shape != (m, n) or not weight.is_contiguous() or weight.is_neg():
            return None
        if dispatch.exact() or not native.variant() or self.transposed or routing.weights.is_neg():
            return None
        if not (check.plain(routing.slots, routing.weights) and direct(weight)) or m * n > MOST_KEPT:
            return None
        banks = self._held()
        if banks is None:
            return None
        memory = getattr(_kept, "memory", None)
        if memory is None or memory.numel() < m * n:
            with torch.inference_mode(False):
                memory = _kept.memory = torch.empty(m * n, dtype=torch.float32, device="cpu")
        out, full = memory[: m * n].view(m, n), weight
        if banks.tasks is not None:
            full = native.reconstruct(banks.tasks, gamma, full, (m, n), torch.float32, False, out=out)
            dispatch.ran["reconstruct", "native"] += 1
        if banks.array is not None:
            slots, weights = routing.slots, routing.weights
            full = native_samples.add_sampled_rows(_rows(m), full, banks.array, slots, weights, m, out=out)
            dispatch.ran["add_dense_samples", "native"] += 1
        return full

    @property
    def transposed(self) -> bool:
        """Whether samples are of [n, m] matrices, whose rows are columns here."""
        return self.samples is not None and self.samples.transposed

    def _paths(
        self, dtype: torch.dtype, rows: int, entries: int, places: int, exact: bool, empty: bool
    ) -> tuple[tuple[str, str], ...]:
        """(op, path) of each product of a kind of call, remembered by it; none where one of them is not C's."""
        keys = []
        if self.components is not None:
            keys.append(choice("linear", "cpu", dtype, rows, entries, places, "disk", False, empty, exact)[0])
        if self.samples is not None:
            of = "disk", self.transposed, False, exact
            keys.append(choice("add_samples", "cpu", dtype, rows, entries, places, *of)[0])
        found = tuple(keys) if all(path in NATIVE for _, path in keys) else ()
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        self._kinds[dtype, rows, entries, places, exact, empty] = found
        return found

    def _held(self) -> _Banks | None:
        """What C reads of the banks as they are now, which keep it: what is no task any more is nowhere.  None where it
        is for the ops to look at their tensors."""
        components, samples = self.components, self.samples
        tasks = None if components is None else components.tasks
        if tasks is None and components is not None:
            return None
        return _Banks(tasks, None if samples is None else samples.array)


@functools.lru_cache(maxsize=64)
def _rows(count: int) -> Tensor:
    """The number of every row, int64."""
    with torch.inference_mode(False):
        return torch.arange(count)
