"""What all tensors of a fine-tune become, and the adapter's entries at given ranks.

*Ranks* are one a matrix, in the order of the plans.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

import dts.adapter.on_device as on_device
from dts.adapter.entries import Entry
from dts.adapter.in_order import in_order
from dts.adapter.matrix import Matrix
from dts.adapter.options import Options
from dts.adapter.plan import Compressible, matrices_of, shared_delta
from dts.adapter.sizes import measured
from dts.adapter.text import measure
from dts.adapter.threads import Behind
from dts.adapter.work import Work
from dts.checkpoint import Pairing
from dts.codec import Factors, compress_tensor, many
from dts.codec.method import Method

Job = tuple[int, Callable[[], list[Factors | None] | None]]  # as `in_order` takes it


class Plans:
    """Of all tensors that are not the base's.

    by_name: an entry for a tensor that is stored whole, a `Compressible` for one that is compressed
    config: the adapter's, whose ``dropped`` names the tensors that have no components at the ranks given last
    beside: bytes of the folder that are what a router knows
    """

    def __init__(self, config: dict, base_digests: dict[str, str], beside: int = 0):
        self.by_name: dict[str, Entry | Compressible] = {}
        self.ranks_before: dict[str, list[int]] = {}  # of a device's last round, by tensor
        self.config, self.base_digests, self.beside = config, base_digests, beside

    @property
    def compressed(self) -> list[Compressible]:
        return [plan for plan in self.by_name.values() if isinstance(plan, Compressible)]

    def no_ranks(self) -> list[int]:
        return [0] * sum(len(plan.matrices) for plan in self.compressed)

    def planned(self, ranks: list[int], method: Method) -> dict[str, Entry]:
        """Entries without content: right in every byte."""
        return self._assembled([(plan, own, plan.planned(own, method)) for plan, own in self._by_plan(ranks)])

    def planned_bytes(self, ranks: list[int], method: Method) -> int:
        """Bytes of the folder with these."""
        return self.measured(self.planned(ranks, method))

    def measured(self, entries: dict[str, Entry], digests: bool = False) -> int:
        """Bytes of the folder with these; brings ``config`` up to date (`dts.adapter.sizes.measured`)."""
        return measured(self.config, entries, self.base_digests, digests, self.beside)

    def made(
        self,
        ranks: list[int],
        method: Method,
        pairing: Pairing,
        options: Options,
        work: Work,
        step: Callable[[str], None],
    ) -> dict[str, Entry]:
        """Entries with what the codec makes.  work: keeps them, and has those that are made;  step: told each name."""
        chosen = self._by_plan(ranks)
        if many.suits(options.place):
            return self._assembled(self._made_on_device(chosen, method, pairing, options, work, step))
        jobs = in_order(_job(plan, own, method, pairing, options, work) for plan, own in chosen)
        made = []
        for factors, (plan, own) in zip(jobs, chosen, strict=True):
            step(plan.name)
            entry = _kept(plan, own, factors, work)
            if entry is not None:
                plan.saw(own, entry.matrices, method)
            made.append((plan, own, entry))
        return self._assembled(made)

    def _made_on_device(
        self,
        chosen: list[tuple[Compressible, list[int]]],
        method: Method,
        pairing: Pairing,
        options: Options,
        work: Work,
        step: Callable[[str], None],
    ) -> list[tuple[Compressible, list[int], Entry | None]]:
        """(plan, its ranks, its entry) of all, from batches of one shape.

        What is encoded together is what has other ranks than in the round before, whatever of it is kept already: so a
        run that goes on after an interruption gives the bytes of one that was not interrupted.
        """
        changed = [(plan, own) for plan, own in chosen if self.ranks_before.get(plan.name) != own]
        self.ranks_before = {plan.name: own for plan, own in chosen}
        kept = {plan.name for plan, own in chosen if work.entry(plan.name, own) is not None}
        tables = [plan.name for plan in self.compressed if any(m.uneven or m.table for m in plan.matrices)]
        wanted = [(pairing.pairs[plan.name], own) for plan, own in changed if any(own) and plan.name not in tables]
        by_name = {plan.name: (plan, own) for plan, own in chosen}
        with Behind[None]() as writer:
            for plan, own in chosen:
                if not any(own) and plan.name not in kept:
                    writer.do(partial(_kept, plan, own, [None] * len(own), work))
            for pair, factors in on_device.encoded(pairing, wanted, kept, method.name, options.seed, options.place):
                plan, own = by_name[pair.name]
                writer.do(partial(_kept, plan, own, factors, work))
                step(pair.name)
            for plan, own in changed:
                if plan.name in tables and any(own) and plan.name not in kept:
                    _, make = _job(plan, own, method, pairing, options, work)
                    writer.do(partial(_kept, plan, own, make(), work))
                    step(plan.name)
        made = [(plan, own, work.entry(plan.name, own)) for plan, own in chosen]
        for plan, own, entry in made:
            if entry is not None:
                plan.saw(own, entry.matrices, method)
        return made

    def _by_plan(self, ranks: list[int]) -> list[tuple[Compressible, list[int]]]:
        """Each compressed tensor with the ranks of its own matrices."""
        left = iter(ranks)
        return [(plan, [next(left) for _ in plan.matrices]) for plan in self.compressed]

    def _assembled(self, made: list[tuple[Compressible, list[int], Entry | None]]) -> dict[str, Entry]:
        """All entries, in the order of the plans, from those of the compressed tensors."""
        entry_of = {plan.name: entry for plan, _, entry in made}
        self.config["dropped"] = {plan.name: measure(plan.norm) for plan, own, _ in made if plan.norm and not any(own)}
        entries = {}
        for name, plan in self.by_name.items():
            entry = entry_of[name] if isinstance(plan, Compressible) else plan
            if entry is not None:
                entries[name] = entry
        return entries


def _job(plan: Compressible, ranks: list[int], method: Method, pairing: Pairing, options: Options, work: Work) -> Job:
    """Elements to work on and the work; it gives None for what is kept already."""
    if work.entry(plan.name, ranks) is not None:
        return 0, lambda: None
    if not any(ranks):
        return 0, lambda: [None] * len(ranks)
    deltas = matrices_of(plan.name, shared_delta(pairing, pairing.pairs[plan.name]))

    def encode(delta: Tensor, matrix: Matrix, rank: int) -> Factors | None:
        how: dict[str, Any] = {"name": plan.name, "device": options.place, "seed": options.seed, "overwrite": True}
        if not rank:
            return None
        own, rows = matrix.method(method).name, matrix.kept(rank, method).rows
        if rows is None or matrix.uneven is None:
            return compress_tensor(delta, own, rank=rank, **how)
        return compress_tensor(delta[rows], own, rank=rank, **how).of_rows(rows, len(delta))

    elements = sum(delta.numel() for delta in deltas)
    return elements, lambda: [encode(*one) for one in zip(deltas, plan.matrices, ranks)]


def _kept(plan: Compressible, ranks: list[int], factors: list[Factors | None] | None, work: Work) -> Entry | None:
    """The tensor's entry, kept; factors: None where it is kept already."""
    if factors is None:
        return work.entry(plan.name, ranks)
    entry = plan.entry(factors)
    return None if entry is None else work.keep(entry, ranks)
