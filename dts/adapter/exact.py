"""Method "exact": every tensor that differs from the base's in any bit, as patches that give it back bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dts import sums
from dts.adapter.entries import Entry, rounded
from dts.adapter.errors import AdapterError, NothingChanged
from dts.adapter.in_order import in_order
from dts.adapter.options import Options
from dts.adapter.run import Progress
from dts.adapter.sizes import measured
from dts.adapter.suspicion import look, unchanged
from dts.adapter.whole import whole_entry
from dts.checkpoint import Pair, Pairing
from dts.codec import exact
from dts.values import LARGEST

MOST = LARGEST / 2  # of a norm, which is recorded as the nearest float32


class ExactRun:
    """Of one pair of models, as `dts.adapter.run.Run` is of the other methods; tensors are read once, one at a time."""

    prediction = None

    def __init__(
        self,
        pairing: Pairing,
        config: dict,
        base_digests: dict[str, str],
        options: Options,
        progress: Progress | None = None,
    ):
        self.pairing, self.config, self.options = pairing, config, options
        self.base_digests = pairing.by_name(base_digests)
        self.equal: set[str] = set()
        self.progress = progress or (lambda done, total, name: None)

    def made(self) -> dict[str, Entry]:
        """The adapter's entries by name, which ``config`` describes."""
        finetuned, entries = self.pairing.finetuned, dict[str, Entry]()
        sizes = {name: torch.Size(finetuned.shape(name)).numel() for name in self.pairing.pairs}
        done, total = 0, sum(size * finetuned.dtype(name).itemsize for name, size in sizes.items())
        moved = before = 0.0
        jobs = ((sizes[name], self._job(pair)) for name, pair in self.pairing.pairs.items())
        for name, (entry, energy) in zip(sizes, in_order(jobs), strict=True):
            self.progress(done, total, name)
            done += sizes[name] * finetuned.dtype(name).itemsize
            if entry is None:
                self.equal.add(name)
                continue
            entries[name] = entry
            moved, before = moved + entry.norm**2, before + energy
        if not self.options.allow_empty and not any(entry.kind != "tied" for entry in entries.values()):
            raise NothingChanged(unchanged(self.pairing))
        look(self.pairing, (moved / before) ** 0.5 if before else 0.0)
        measured(self.config, entries, self.base_digests, digests=True, beside=self.options.beside)
        self.progress(total, total, "")
        return entries

    def _job(self, pair: Pair) -> Callable[[], tuple[Entry | None, float]]:
        """What makes (the entry, the base's sum of squares); what is read is read here."""
        pairing = self.pairing
        value = None if pair.tied_to else pairing.finetuned.load(pair.name)
        base = None if pair.base_name is None or pair.tied_to else pairing.base.load(pair.base_name)

        def work() -> tuple[Entry | None, float]:
            if value is None:
                return whole_entry(pairing, pair), 0.0
            entry = own(pair.name, value) if base is None else patched(pair, value, base)
            energy = 0.0 if entry is None or base is None else _energy(base, torch.zeros(()).expand(base.shape))
            pairing.finetuned.release(pair.name)
            if pair.base_name is not None:
                pairing.base.release(pair.base_name)
            return entry, energy

        return work


def own(name: str, value: Tensor) -> Entry:
    """The entry of a tensor that the base lacks; kind "exact" where "value" would refuse its NaN."""
    nan = value.is_floating_point() and bool(value.float().isnan().any())
    shape, kind = tuple(value.shape), "exact" if nan else "value"
    result = exact.digest(value) if nan else None
    return Entry(name, None, shape, kind, value.dtype, tensor=value, task_only=True, result=result)


def patched(pair: Pair, value: Tensor, base: Tensor) -> Entry | None:
    """The entry of a tensor that the base has too; None if it is the base's bit for bit, in the fine-tune's dtype."""
    shared = value[: base.shape[0]] if pair.added_rows else value
    narrow = base.to(value.dtype)
    patch = exact.encode(shared, narrow)
    if patch is None and not pair.added_rows and not _overflows(base, value.dtype):
        return None
    if patch is not None and not exact.same_bits(exact.decode(pair.name, patch, narrow), shared):
        raise AssertionError(f"{pair.name} does not come back: a defect of this package, please report it")
    return Entry(
        pair.name,
        pair.base_name,
        tuple(value.shape),
        "exact",
        value.dtype,
        added_rows=value[base.shape[0] :].contiguous() if pair.added_rows else None,
        norm=min(_energy(shared, base) ** 0.5, MOST),
        patch=patch,
        result=exact.digest(value),
    )


def _overflows(base: Tensor, dtype: torch.dtype) -> bool:
    """Is the base's tensor refused in another dtype, so that it needs an entry though no bit of it changes?"""
    try:
        rounded(base, dtype, "")
    except AdapterError:
        return True
    return False


def _energy(value: Tensor, base: Tensor) -> float:
    """||value - base||^2 of numbers; of elements that are none, and of those that differ endlessly, nothing."""
    if not (value.is_floating_point() and base.is_floating_point()):
        return 0.0
    found = sums.squared_difference(value, base)
    if math.isfinite(found):
        return found
    return sum(_finite(a, b) for a, b in _blocks(value, base))


def _blocks(value: Tensor, base: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(value.reshape(-1).split(sums.BLOCK), base.reshape(-1).split(sums.BLOCK), strict=True)


def _finite(value: Tensor, base: Tensor) -> float:
    difference = value.double() - base.double()
    return sums.energy(torch.where(difference.isfinite() & (difference.abs() < LARGEST), difference, 0.0))
