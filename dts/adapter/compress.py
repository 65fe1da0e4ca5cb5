"""A base and a full fine-tune in, an adapter out.

Tensors are read one at a time, twice if the size is a budget or an error over the whole model: first for their
spectra, from which the ranks follow (`dts.adapter.budget`), then to be compressed.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from numbers import Real
from pathlib import Path

import torch

from dts import __version__, sums
from dts.adapter import budget as budgets
from dts.adapter.accounting import NothingChanged, of_pairing
from dts.adapter.adapter import Adapter
from dts.adapter.entries import Entry
from dts.adapter.format import (
    FORMAT_VERSION,
    about_file,
    check_out,
    check_writable,
    digest,
    number,
    plain_config,
    short,
    write,
)
from dts.adapter.in_order import in_order
from dts.adapter.modules import differing_layout
from dts.adapter.plan import Compressible, compressible, matrices_of, plan_job, shared_delta
from dts.adapter.predict import prediction
from dts.adapter.suspicion import look, unchanged
from dts.adapter.tokenizer import differing_files
from dts.adapter.truncate import measured
from dts.adapter.work import Work, code_digest
from dts.checkpoint import (
    Checkpoint,
    OtherDtype,
    Pair,
    Pairing,
    digests,
    dtype_note,
    fingerprint,
    open_checkpoint,
    pair,
)
from dts.codec import Factors, Unencodable, compress_tensor
from dts.codec.compress import METHODS, TINY
from dts.files import Changed, Watch, building, check_free
from dts.warn import warn

Progress = Callable[[int, int, str], None]
KINDS = ("task", "difference")
VECTORS = ("auto", "exact", "8bit")
DEFAULT_BUDGET = 0.01
# A sketch's noise grows with the difference.  *Measured*: language models that moved by .004 of their weights and text
# encoders that moved by .02 gain from it, image encoders that moved by .05 lose (benchmarks/quality/FINDINGS.md).
NEAR = 0.03
SLACK = 32  # bytes of text more that a budget leaves each time it was exceeded
ROUNDS = 4  # plans made until what the codec really did is near what was asked; more, where it is above the bytes asked
LAST = 12  # the plan after which no component at all is tried


def compress(
    base,
    finetuned,
    out: str | Path | None = None,
    method: str = "auto",
    budget: float | None = None,
    nbytes: int | None = None,
    rank_fraction: float | None = None,
    target_error: float | None = None,
    vectors: str = "auto",
    kind: str = "task",
    name: str | None = None,
    class_names: list[str] | None = None,
    description: str | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    device=None,
    seed: int = 0,
    command: str | None = None,
    allow_empty: bool = False,
) -> Adapter:
    """Stores a fine-tune as its difference to the base.

    base, finetuned: anything `open_checkpoint` takes
    out: the adapter's folder, written whole or not at all; None keeps the adapter in memory
    method: "residual", "paper" (DESIGN 3.1, 3.2), "sketch" (`dts.codec.sketch`), or "auto": "sketch" where bytes are
        asked for and the fine-tune is near the base (NEAR), else "residual"
    At most one size, of the whole folder, heads and headers included; by default budget=0.01:
        budget: at most this fraction of the bytes of the base in fp32;  nbytes: at most these bytes
        rank_fraction: rank int(r * min(m, n)) in every matrix; of "sketch" the bytes of that rank
        target_error: squared relative error of the whole difference, with as few bytes as were found to do; not of
            "sketch", which is not about that error
    vectors: of biases and norms, "exact" differences or "8bit" ones (`dts.adapter.vectors`); "auto" takes 8bit
        where bytes are asked for and the method is not "paper": they are better spent on the matrices
    kind: "task" if the base is what the fine-tune started from, "difference" if it is a merged model
    name, class_names, description: of the task; names default to the fine-tune's folder and its config's labels
    progress: called with (done, total, tensor's name), in bytes of the fine-tune read
    resume: continue an interrupted run of the same options into ``out``
    overwrite: replace an adapter at ``out``, once the new one is whole
    dry_run: write nothing; the adapter returned has the planned ranks, bytes and predicted errors, no content, and
        its ``prediction`` the errors' bounds
    device: where to compute;  seed: of all random choices;  command: noted in the adapter
    allow_empty: make an adapter of a fine-tune that equals its base too

    The adapter's ``account`` says what became of every tensor of both models.
    Warns (`Suspicious`) of models that look unrelated or exchanged.
    Raises NothingChanged for a fine-tune whose tensors are all the base's, Mismatch (all that does not fit between
    the models), BudgetError (with the smallest possible size),
    Unencodable (NaN and infinite elements, with the tensor's name), FileExistsError, OSError (no space left).
    """
    if method not in ("auto", *METHODS):
        raise ValueError(f"method must be one of auto, {', '.join(METHODS)}, not {method!r}")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if vectors not in VECTORS:
        raise ValueError(f"vectors must be one of {', '.join(VECTORS)}, not {vectors!r}")
    sizes = {"budget": budget, "nbytes": nbytes, "rank_fraction": rank_fraction, "target_error": target_error}
    asked = {key: value for key, value in sizes.items() if value is not None} or {"budget": DEFAULT_BUDGET}
    if len(asked) > 1 or not all(isinstance(size, Real) and 0 < size < math.inf for size in asked.values()):
        raise ValueError(
            f"give one size, a number above 0: budget=, nbytes=, rank_fraction= or target_error=; got {asked}"
        )
    if target_error is not None and target_error >= 1:
        raise ValueError(f"target_error={target_error}: an error of 1 is that of the base alone; give less")
    if method == "sketch" and target_error is not None:
        raise ValueError(
            'a sketch adds noise larger than the difference: give method="sketch" a budget=, nbytes= or '
            "rank_fraction=, not a target_error="
        )
    bytes_asked = asked.keys() <= {"budget", "nbytes"}
    if method == "auto" and not bytes_asked:
        method = "residual"
    if vectors == "auto":
        vectors = "8bit" if method != "paper" and bytes_asked else "exact"
    out = None if out is None else Path(out)
    if out is not None and not dry_run:
        check_out(out, overwrite)
        check_free(out)
    watch = Watch(base, finetuned)
    pairing = pair(open_checkpoint(base), open_checkpoint(finetuned))
    if note := dtype_note(pairing.base, pairing.finetuned):
        warn(note, OtherDtype)
    base_digests = digests(pairing.base)
    files = differing_files(pairing.base.folder, pairing.finetuned.folder)
    # without the bytes asked for: the text's length would change what they have to hold
    shown = " ".join(f"{key}={value}" for key, value in asked.items() if key in ("rank_fraction", "target_error"))
    config = {
        "format_version": FORMAT_VERSION,
        "method": method,
        "kind": kind,
        "base": _about_base(pairing.base, base_digests),
        "finetuned": _about_finetuned(pairing),
        "task": {
            "name": name or _source_name(pairing.finetuned),
            "class_names": class_names or _class_names(pairing.finetuned.config),
            "description": description,
        },
        "squared_error": 0.0,
        "bytes": 0,
        "amr": 0.0,
        "created": {"package": "dts-merge", "version": __version__, "command": command or f"compress {shown}".strip()},
        "dropped": {},
        "files": {name: about_file(path) for name, path in files.items()},
        "model_config": plain_config(pairing.finetuned.config),
        "tensors": {},
    }
    if (layout := differing_layout(pairing.base, pairing.finetuned)) is not None:
        config["modules"] = layout
    # before hours of work; which method "auto" takes is not known yet
    check_writable(config | {"method": "residual" if method == "auto" else method})
    options = asked | {
        "method": method,
        "vectors": vectors,
        "seed": seed,
        "base": config["base"]["fingerprint"],
        "finetuned": fingerprint(pairing.finetuned),
        "format_version": FORMAT_VERSION,
        "device": str(torch.device("cpu" if device is None else device)),
        "package": __version__,
        "torch": torch.__version__,
        "code": code_digest(),
    }
    writes = out is not None and not dry_run
    with building(out, lambda: check_out(out, overwrite), True, resume) if writes else nullcontext() as place:
        work = Work(place, options, config)
        try:
            exact = vectors == "exact"
            run = _Run(
                pairing, config, base_digests, method, asked, exact, work, progress, dry_run, device, seed, allow_empty
            )
            adapter = Adapter.of(config, run.entries(), files=files)
            adapter.prediction = run.prediction
            adapter.account = of_pairing(pairing, adapter.entries, config["dropped"], run.equal)
            watch.check()
            if place is not None:
                write(adapter, out, overwrite, place)
        except (budgets.BudgetError, Unencodable, NothingChanged, Changed):  # the same run would fail again
            work.clear()
            raise
    return adapter


class _Run:
    """One compression: plan, compress, compare with what was asked, plan again."""

    def __init__(
        self,
        pairing,
        config,
        base_digests,
        method,
        asked,
        exact_vectors,
        work,
        progress,
        dry_run,
        device,
        seed,
        allow_empty=False,
    ):
        self.pairing, self.config, self.method, self.exact_vectors = pairing, config, method, exact_vectors
        self.base_digests = {p.name: base_digests[p.base_name] for p in pairing.pairs.values() if p.base_name}
        self.work, self.dry_run, self.device, self.seed = work, dry_run, device, seed
        self.how, self.asked = next(iter(asked.items()))
        if self.how == "budget":
            self.how, self.asked = "nbytes", int(self.asked * 4 * config["base"]["parameters"])
        self.spectrum = self.how != "rank_fraction" or dry_run
        self.prediction, self.allow_empty = None, allow_empty
        self.known: set[str] = set()  # tensors whose spectra an interrupted run had made
        self.equal: set[str] = set()  # fine-tune's tensors that were compared and are the base's
        sizes = {name: _nbytes(pairing.finetuned, name) for name in pairing.pairs}
        self.sizes, self.done, self.progress = sizes, 0, progress or (lambda done, total, name: None)
        self.total = sum(sizes.values()) * (1 if dry_run else 2)

    def entries(self) -> dict[str, Entry]:
        """The adapter's entries; ``config`` describes them afterwards, and ``prediction`` those of a dry run."""
        self.plans = {}
        plans = in_order(self._plan(origin) for origin in self.pairing.pairs.values())
        for name, plan in zip(self.pairing.pairs, plans, strict=True):
            self._step(name)
            if isinstance(plan, Compressible) and name not in self.known:
                self.work.keep_spectra(plan)
            if plan is not None:
                self.plans[name] = plan
            else:
                self.equal.add(name)
        if not self.allow_empty and all(isinstance(p, Entry) and p.kind == "tied" for p in self.plans.values()):
            raise NothingChanged(unchanged(self.pairing))
        look(self.pairing, self._moved())
        self.where = [
            (name, i)
            for name, plan in self.plans.items()
            if isinstance(plan, Compressible)
            for i in range(len(plan.matrices))
        ]
        if self.method == "auto":
            self.method = self.config["method"] = "sketch" if self._moved() < NEAR else "residual"
        asked, ranks = self.asked, None
        for attempt in count():
            last, ranks = ranks, self._ranks_of_round(asked, attempt)
            while ranks == last and self.how == "target_error":  # a step too small to change any rank
                asked *= 0.97
                ranks = self._ranks(asked)
            entries = self._assemble(ranks, self._planned) if self.dry_run else self._compress(ranks)
            size = measured(self.config, entries, self.base_digests, None if self.dry_run else digest)
            exceeds = self.how == "nbytes" and size > self.asked
            if exceeds and not any(ranks):
                raise budgets.too_little(self.asked, size)
            if self.dry_run or self.how == "rank_fraction" or attempt >= ROUNDS - 1 and not exceeds:
                break
            if self.how == "target_error":
                error = self.config["squared_error"]
                if error is None or error <= self.asked or not self._room(ranks):
                    break
                asked *= 0.99 * self.asked / error
            else:
                if 0.99 * self.asked <= size <= self.asked or size < self.asked and not self._room(ranks):
                    break
                if exceeds:  # by a few bytes: a smaller step might change no rank
                    asked -= size - self.asked + SLACK * 2**attempt
            self.total += sum(self.sizes.values())
        if self.dry_run:
            self.prediction = prediction(self.plans, ranks, self.method)
        self.progress(self.total, self.total, "")
        return entries

    def _moved(self) -> float:
        """|| finetuned - base || / || base || of all matrices together."""
        plans = [plan for plan in self.plans.values() if isinstance(plan, Compressible)]
        base, before = self.pairing.base, 0.0
        for plan in plans:
            before += sums.energy(base.load(plan.pair.base_name))
            base.release(plan.pair.base_name)
        return (sum(plan.norm**2 for plan in plans) / max(before, TINY)) ** 0.5

    def _plan(self, origin: Pair) -> tuple[int, Callable[[], Entry | Compressible | None]]:
        """`plan_job`, from the spectra of an interrupted run where it has them."""
        cached = self.work.spectra(origin.name)
        if cached is None:
            return plan_job(self.pairing, origin, self.method, self.spectrum, self.device, self.exact_vectors)
        self.known.add(origin.name)
        return 0, lambda: compressible(self.pairing, origin, cached)

    def _ranks_of_round(self, asked: float, attempt: int) -> list[int]:
        """`_ranks`; none at all where rounds before exceeded the bytes asked for by more than there is to give."""
        try:
            return self._ranks(asked) if attempt < LAST else [0] * len(self.where)
        except budgets.BudgetError:
            if asked == self.asked:
                raise
            return [0] * len(self.where)

    def _ranks(self, asked: float) -> list[int]:
        """Ranks of all matrices, in the order of ``where``."""
        plans = {name: plan for name, plan in self.plans.items() if isinstance(plan, Compressible)}
        if self.how == "rank_fraction":
            return [k for plan in plans.values() for k in plan.fraction_ranks(asked, self.method)]
        curves = [
            m.curve(self.method, limit) for plan in plans.values() for m, limit in zip(plan.matrices, plan.limits)
        ]
        if self.how == "nbytes":
            matrices = [m for plan in plans.values() for m in plan.matrices]
            curves = budgets.levelled(curves, [m.elements for m in matrices])
            total = lambda ranks: measured(self.config, self._assemble(ranks, self._planned), self.base_digests)  # noqa: E731
            return budgets.allocate_exactly(curves, asked, total)
        norms = [plan.norm for plan in self.plans.values()]
        target = asked * sum(norm**2 for norm in norms)  # at the codec's scale; the curves' is at the best
        return budgets.allocate(curves, target=target * (1 - asked / 16) if self.method == "residual" else target)

    def _assemble(self, ranks: list[int], make) -> dict[str, Entry]:
        chosen: dict[str, list[int]] = {}
        for (name, _), rank in zip(self.where, ranks, strict=True):
            chosen.setdefault(name, []).append(rank)
        entries, dropped = {}, {}
        for name, plan in self.plans.items():
            entry = make(plan, chosen[name]) if isinstance(plan, Compressible) else plan
            if isinstance(plan, Compressible) and plan.norm and not any(chosen[name]):
                dropped[name] = number(plan.norm)
            if entry is not None:
                entries[name] = entry
        self.config["dropped"] = dropped
        return entries

    def _planned(self, plan: Compressible, ranks: list[int]) -> Entry | None:
        return plan.entry([m.planned(rank, self.method) for m, rank in zip(plan.matrices, ranks)])

    def _compress(self, ranks: list[int]) -> dict[str, Entry]:
        left = iter(ranks)
        chosen = [
            (plan, [next(left) for _ in plan.matrices])
            for plan in self.plans.values()
            if isinstance(plan, Compressible)
        ]
        made = in_order(self._factors(plan, own) for plan, own in chosen)
        return self._assemble(ranks, lambda plan, own: self._kept(plan, own, next(made)))

    def _factors(self, plan: Compressible, ranks: list[int]) -> tuple[int, Callable[[], list | None]]:
        """Elements to work on and the work, as `in_order` takes them; None of what is finished."""
        name = plan.pair.name
        if self.work.entry(name, ranks) is not None:
            return 0, lambda: None
        if not any(ranks):
            return 0, lambda: [None] * len(ranks)
        deltas = matrices_of(name, shared_delta(self.pairing, plan.pair))
        how = {"name": name, "device": self.device, "seed": self.seed, "overwrite": True}
        return sum(delta.numel() for delta in deltas), lambda: [
            compress_tensor(delta, self.method, rank=rank, **how) if rank else None
            for delta, rank in zip(deltas, ranks)
        ]

    def _kept(self, plan: Compressible, ranks: list[int], factors: list[Factors | None] | None) -> Entry | None:
        """The tensor's entry, kept; factors: None where it is kept already."""
        name = plan.pair.name
        self._step(name)
        if factors is None:
            found = self.work.entry(name, ranks)
        else:
            entry = plan.entry(factors)
            found = None if entry is None else self.work.keep(entry, ranks)
        kept = [None] * len(ranks) if found is None else found.factors if plan.kind == "experts" else [found.factors]
        for i, (factors, rank) in enumerate(zip(kept, ranks)):
            if factors is not None and factors.rank < plan.matrices[i].components(rank, self.method):
                plan.limits[i] = rank if self.method == "sketch" else factors.rank
        return found

    def _room(self, ranks: list[int]) -> bool:
        """Could any matrix still get more components than these?"""
        plans = [(self.plans[name], i) for name, i in self.where]
        return any(
            rank < plan.matrices[i].curve(self.method, plan.limits[i]).ranks[-1]
            for (plan, i), rank in zip(plans, ranks)
        )

    def _step(self, name: str) -> None:
        self.progress(min(self.done, self.total), self.total, name)
        self.done += self.sizes[name]


def _nbytes(checkpoint: Checkpoint, name: str) -> int:
    return torch.Size(checkpoint.shape(name)).numel() * checkpoint.dtype(name).itemsize


def _about_base(base: Checkpoint, base_digests: dict[str, str]) -> dict:
    return {
        "name": _source_name(base),
        "revision": base.revision,
        "dtype": short(base.main_dtype),
        "bytes_per_element": base.main_dtype.itemsize,
        "parameters": base.parameters,
        "fingerprint": fingerprint(base, base_digests),
    }


def _about_finetuned(pairing: Pairing) -> dict:
    """How the fine-tune's names and dtypes follow from the base's; exceptions one by one."""
    base, finetuned = pairing.base, pairing.finetuned
    main, base_main = finetuned.main_dtype, base.main_dtype
    dtypes = {
        p.name: short(finetuned.dtype(p.name))
        for p in pairing.pairs.values()
        if p.base_name
        and not p.tied_to
        and finetuned.dtype(p.name) != (main if base.dtype(p.base_name) == base_main else base.dtype(p.base_name))
    }
    return {
        "name": _source_name(finetuned),
        "dtype": short(main),
        "base_prefix": pairing.base_prefix,
        "prefix": pairing.finetuned_prefix,
        "renamed": pairing.renamed,
        "base_only": pairing.base_only,
        "dtypes": dtypes,
    }


def _source_name(checkpoint: Checkpoint) -> str:
    """A hub id, or the last part of a path."""
    path = Path(checkpoint.source)
    return checkpoint.source if checkpoint.revision or not path.exists() else path.resolve().name


def _class_names(config: dict | None) -> list[str] | None:
    """The labels a config names, unless they are only LABEL_0, LABEL_1, ..."""
    labels = {int(i): label for i, label in ((config or {}).get("id2label") or {}).items()}
    names = [labels[i] for i in sorted(labels)]
    return names if names and not all(name == f"LABEL_{i}" for i, name in enumerate(names)) else None
