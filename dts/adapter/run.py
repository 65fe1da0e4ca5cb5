"""One compression: plan, compress, compare with what was asked, plan again.

Tensors are read one at a time (on a device in batches, `dts.adapter.on_device`), twice if the size is a budget or an
error over the whole model: first for their spectra, from which the ranks follow (`dts.adapter.budget`), then to be
compressed.
"""

from collections.abc import Callable
from functools import partial
from itertools import count

import torch

import dts.adapter.on_device as on_device
from dts import sums
from dts.adapter.budget import BudgetError, allocate, allocate_exactly, levelled, share_of, too_little
from dts.adapter.entries import Entry
from dts.adapter.errors import NothingChanged
from dts.adapter.in_order import in_order
from dts.adapter.options import Options
from dts.adapter.plan import Compressible, compressible, is_difference, plan_job
from dts.adapter.plans import Plans
from dts.adapter.predict import Prediction, prediction
from dts.adapter.suspicion import look, unchanged
from dts.adapter.threads import Behind
from dts.adapter.vectors import elements
from dts.adapter.work import Work
from dts.checkpoint import Checkpoint, Pair, Pairing
from dts.codec import many
from dts.codec.method import Method

Progress = Callable[[int, int, str], None]
SLACK = 32  # bytes of text more that a budget leaves each time it was exceeded
ROUNDS = 4  # plans made until what the codec really did is near what was asked; more, where it is above the bytes asked
LAST = 12  # the plan after which no component at all is tried
NEARLY = 0.99  # of the bytes asked for is enough
SMALLER = 0.97  # of an error asked for, where it changed no rank
RESERVE, LEAST = 4, 64  # singular values measured of a matrix: so many times the mean rank, and so many more
NO_NORM = 1e-300  # stands for the energy of a base without any


class Run:
    """Of one pair of models.

    config: the adapter's, described anew whenever entries are made;  base_digests: by the base's names.
    After `made`, ``prediction`` has the errors of a dry run, and ``equal`` the names of the fine-tune's tensors that
    were compared and are the base's.
    """

    method: Method  # known once the matrices are

    def __init__(
        self,
        pairing: Pairing,
        config: dict,
        base_digests: dict[str, str],
        options: Options,
        work: Work,
        progress: Progress | None = None,
    ):
        self.pairing, self.config, self.options, self.work = pairing, config, options, work
        self.base_digests = pairing.by_name(base_digests)
        ((self.goal, self.wanted),) = options.asked.items()
        if self.goal == "budget":
            self.goal, self.wanted = "nbytes", int(self.wanted * 4 * config["base"]["parameters"])
        self.rounding = options.rounding(self.wanted, *elements(_whole_tensors(pairing)))
        self.spectrum = self.goal != "rank_fraction" or options.dry_run
        self.prediction: Prediction | None = None
        self.plans = Plans(config, self.base_digests, options.beside)
        self.known: set[str] = set()  # tensors whose spectra an interrupted run had made
        self.equal: set[str] = set()
        self.base_energies: dict[str, float] = {}  # of those that a device measured: the sum of squares, by base's name
        self.read = {name: _nbytes(pairing.finetuned, name) for name in pairing.pairs}
        self.done, self.total = 0, sum(self.read.values()) * (1 if options.dry_run else 2)
        self.progress = progress or (lambda done, total, name: None)

    def made(self) -> dict[str, Entry]:
        """The adapter's entries by name, which ``config`` describes."""
        self._plan()
        if not self.options.allow_empty and not any(_changes(plan) for plan in self.plans.by_name.values()):
            raise NothingChanged(unchanged(self.pairing))
        moved = self._moved()
        look(self.pairing, moved)
        self.method = self.options.choice.for_distance(moved)
        self.config["method"] = self.method.name
        entries = self._rounds()
        self.progress(self.total, self.total, "")
        return entries

    # -- what each tensor becomes

    def _plan(self) -> None:
        if many.suits(self.options.place):
            self._plan_on_device()
            return
        plans = in_order(self._plan_job(pair) for pair in self.pairing.pairs.values())
        for name, plan in zip(self.pairing.pairs, plans, strict=True):
            self._step(name)
            if isinstance(plan, Compressible) and name not in self.known:
                self.work.keep_spectra(plan)
            if plan is None:
                self.equal.add(name)
            else:
                self.plans.by_name[name] = plan

    def _plan_on_device(self) -> None:
        """The same, where matrices of one shape are measured together."""
        pairing, options, found = self.pairing, self.options, dict[str, Entry | Compressible | None]()
        for_device: list[Pair] = []
        for pair in pairing.pairs.values():
            differs = is_difference(pairing, pair, options.choice)
            if differs:
                for_device.append(pair)
            if not differs or self.work.spectra(pair.name) is not None:
                _, job = self._plan_job(pair)
                found[pair.name] = job()
                self._step(pair.name)
        how = self.spectrum, self._count(), options.place
        with Behind[None]() as writer:
            for one in on_device.measured(pairing, for_device, self.known, *how):
                pair = one.pair
                found[pair.name] = None
                if pair.added_rows or any(matrix.norm for matrix in one.matrices):
                    found[pair.name] = made = compressible(pairing, pair, one.matrices)
                    self.base_energies[made.base_name] = one.base_energy
                    writer.do(partial(self.work.keep_spectra, made))
                self._step(pair.name)
        for name in pairing.pairs:
            plan = found[name]
            if plan is None:
                self.equal.add(name)
            else:
                self.plans.by_name[name] = plan

    def _count(self) -> int | None:
        """Singular values that a device measures of each matrix: of a rank several times what each gets if all get one
        rank; None where all are needed."""
        if self.goal != "nbytes" or self.options.dry_run:
            return None
        base = self.pairing.base
        shapes = [base.shape(p.base_name) for p in self.pairing.pairs.values() if p.base_name and not p.tied_to]
        rows = sum(shape[0] + torch.Size(shape[1:]).numel() for shape in shapes if len(shape) == 2)
        return int(RESERVE * 4 * self.wanted / max(1, rows)) + LEAST

    def _plan_job(self, pair: Pair) -> tuple[int, Callable[[], Entry | Compressible | None]]:
        """`plan_job`, from the spectra of an interrupted run where it has them."""
        cached, options = self.work.spectra(pair.name), self.options
        if cached is None:
            return plan_job(self.pairing, pair, options.choice, self.spectrum, options.place, self.rounding)
        self.known.add(pair.name)
        return 0, lambda: compressible(self.pairing, pair, cached)

    def _moved(self) -> float:
        """|| finetuned - base || / || base || of all matrices together."""
        base, before = self.pairing.base, 0.0
        for plan in self.plans.compressed:
            if plan.base_name in self.base_energies:  # seen on the device
                before += self.base_energies[plan.base_name]
                continue
            before += sums.energy(base.load(plan.base_name))
            base.release(plan.base_name)
        return (sum(plan.norm**2 for plan in self.plans.compressed) / max(before, NO_NORM)) ** 0.5

    # -- rounds, until what is made is what was asked

    def _rounds(self) -> dict[str, Entry]:
        asked = self.wanted
        ranks: list[int] = []
        for attempt in count():
            asked, ranks = self._ranks_of_round(asked, attempt, ranks)
            if self.options.dry_run:
                entries = self.plans.planned(ranks, self.method)
            else:
                entries = self.plans.made(ranks, self.method, self.pairing, self.options, self.work, self._step)
            nbytes = self.plans.measured(entries, digests=not self.options.dry_run)
            if self.goal == "nbytes" and nbytes > self.wanted and not any(ranks):
                raise too_little(self.wanted, nbytes)
            following = self._asked_next(asked, attempt, nbytes, ranks)
            if following is None:
                break
            asked = following
            self.total += sum(self.read.values())
        if self.options.dry_run:
            self.prediction = prediction(self.plans.by_name, ranks, self.method)
        return entries

    def _ranks_of_round(self, asked: float, attempt: int, before: list[int]) -> tuple[float, list[int]]:
        """(what was really asked, ranks).  No rank at all where rounds before exceeded the bytes asked for by more
        than there is to give; others than ``before`` where an error is asked for again."""
        try:
            ranks = self._ranks(asked) if attempt < LAST else self.plans.no_ranks()
        except BudgetError:
            if asked == self.wanted:
                raise
            ranks = self.plans.no_ranks()
        while self.goal == "target_error" and attempt and ranks == before:  # a step too small to change any rank
            asked *= SMALLER
            ranks = self._ranks(asked)
        return asked, ranks

    def _asked_next(self, asked: float, attempt: int, nbytes: int, ranks: list[int]) -> float | None:
        """What to ask for in another round; None where these ranks are right, or as near as can be."""
        exceeds = self.goal == "nbytes" and nbytes > self.wanted
        if self.options.dry_run or self.goal == "rank_fraction" or attempt >= ROUNDS - 1 and not exceeds:
            return None
        if self.goal == "target_error":
            error = self.config["squared_error"]
            enough = error is None or error <= self.wanted or not self._room(ranks)
            return None if enough else asked * (NEARLY * self.wanted / error)
        if exceeds:  # by a few bytes: a smaller step might change no rank
            return asked - (nbytes - self.wanted + SLACK * 2**attempt)
        enough = NEARLY * self.wanted <= nbytes or nbytes < self.wanted and not self._room(ranks)
        return None if enough else asked

    # -- ranks, one a matrix, in the order of the plans

    def _ranks(self, asked: float) -> list[int]:
        """Where only some singular values were measured and a rank takes all of them, all are measured."""
        while True:
            ranks = iter(found := self._ranks_of_known(asked))
            short = {
                plan.name
                for plan in self.plans.compressed
                for matrix, rank in [(matrix, next(ranks)) for matrix in plan.matrices]
                if matrix.measured is not None and rank >= matrix.measured
            }
            if not short:
                return found
            pairs = [self.pairing.pairs[name] for name in self.pairing.pairs if name in short]
            # not kept: a run that goes on finds what this one found first
            for one in on_device.measured(self.pairing, pairs, (), True, None, self.options.place):
                for plan in self.plans.compressed:
                    if plan.name == one.pair.name:
                        plan.matrices = one.matrices

    def _ranks_of_known(self, asked: float) -> list[int]:
        plans, method = self.plans.compressed, self.method
        if self.goal == "rank_fraction":
            return [rank for plan in plans for rank in plan.fraction_ranks(asked, method)]
        curves = [m.curve(method, limit) for plan in plans for m, limit in zip(plan.matrices, plan.limits)]
        if self.goal == "nbytes":
            matrices = [matrix for plan in plans for matrix in plan.matrices]
            share = share_of(self.wanted, [m.shape for m in matrices])
            curves = levelled(curves, [m.elements for m in matrices], [m.counts(share) for m in matrices])
            return allocate_exactly(curves, asked, lambda ranks: self.plans.planned_bytes(ranks, method))
        target = asked * sum(plan.norm**2 for plan in self.plans.by_name.values())
        return allocate(curves, target=target * method.error_left(asked))

    def _room(self, ranks: list[int]) -> bool:
        """Could any matrix still get more than these ranks?"""
        left = iter(ranks)
        return any(
            next(left) < matrix.curve(self.method, limit).ranks[-1]
            for plan in self.plans.compressed
            for matrix, limit in zip(plan.matrices, plan.limits)
        )

    def _step(self, name: str) -> None:
        self.progress(min(self.done, self.total), self.total, name)
        self.done += self.read[name]


def _changes(plan: Entry | Compressible) -> bool:
    return isinstance(plan, Compressible) or plan.kind != "tied"


def _whole_tensors(pairing: Pairing) -> list[tuple[tuple[int, ...], torch.dtype, bool]]:
    """(shape, dtype, is it the fine-tune's own) of what is not tied."""
    tuned = pairing.finetuned
    return [
        (tuned.shape(pair.name), tuned.dtype(pair.name), pair.base_name is None)
        for pair in pairing.pairs.values()
        if not pair.tied_to
    ]


def _nbytes(checkpoint: Checkpoint, name: str) -> int:
    return torch.Size(checkpoint.shape(name)).numel() * checkpoint.dtype(name).itemsize
