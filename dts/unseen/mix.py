"""A mixture of adapters as one adapter: theta_u = theta + sum_n gamma_n Delta_n (DESIGN 3.4)."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dts import __version__, sums
from dts.adapter import Adapter, Entry, compress
from dts.adapter.accounting import Account, NoEffect
from dts.adapter.apply import check_base
from dts.adapter.format import complete, matrices
from dts.checkpoint import open_checkpoint
from dts.warn import warn

from .concatenate import mixed_factors

CANCELLED = 1e-6  # of a component's size: a norm that float64 takes for zero after components cancel


class NotExact(UserWarning):
    """Tensors whose mixture could not be written without encoding it anew."""


def mix(
    adapters: Mapping,
    weights: Mapping[str, float],
    out: str | Path | None = None,
    *,
    name: str = "mixture",
    class_names: list[str] | None = None,
    description: str | None = None,
    base=None,
    budget: float | None = None,
    nbytes: int | None = None,
    overwrite: bool = False,
    progress=None,
) -> Adapter:
    """One adapter of a weighted sum of adapters of one base.

    adapters: {task: Adapter or its folder}; weights: {task: gamma}, of some of them (see `task_weights`);
    out: its folder, None keeps it in memory; name, class_names, description: of the new task.
    budget (a fraction of the base in fp32) or nbytes: encode the mixture anew into that size; with ``base`` (anything
    ``open_checkpoint`` takes) from its dense sum, without from a prefix of the exact mixture, which is worse.

    Without a size the mixture is exact and as large as its parts together: factors stand side by side, raw deltas are
    summed. Exceptions, each encoded anew at the sum of its ranks and named in a `NotExact` warning: matrices of which
    the adapters have other zero rows or columns, and method "paper", whose levels differ from adapter to adapter.
    What only a fine-tune has (heads, added vocabulary) and whole integer values are left out.
    The adapter's ``account`` says what became of every tensor of every member.
    Raises NoEffect where nothing is left of the members' changes; ValueError for unknown tasks, weights that are no
    finite numbers, and adapters of different bases or kinds; Mismatch if ``base`` is not theirs.
    """
    members = _members(adapters, weights)
    if budget is not None and nbytes is not None:
        raise ValueError("give at most one of budget= and nbytes=")
    if base is not None:
        base = open_checkpoint(base)
        check_base(members[0][1], base)
    entries, digests, inexact = {}, {}, []
    for base_name in sorted({e.base_name for _, a in members for e in a.entries.values() if _mixable(e)}):
        found = [
            (gamma, a, e)
            for gamma, a in members
            for e in a.entries.values()
            if e.base_name == base_name and _mixable(e)
        ]
        entries[base_name] = _entry(base_name, [(gamma, e) for gamma, _, e in found], base, inexact)
        digests[base_name] = {"base": found[0][1].config["tensors"][found[0][2].name].get("base")}
    if inexact and budget is None and nbytes is None:
        warn(f"encoded anew, not exact: {', '.join(inexact)}", NotExact)
    mixture = Adapter.of(_config(members, weights, name, class_names, description, digests), entries)
    complete(mixture)
    mixture.account = _account(members, mixture)
    size = {"budget": budget} if budget is not None else {"nbytes": nbytes} if nbytes is not None else {}
    if size and base is not None:
        mixture.entries = {name: _without_samples(entry) for name, entry in mixture.entries.items()}
        encoded = compress(
            base,
            mixture.on(base),
            out,
            **size,
            kind=mixture.kind,
            name=name,
            class_names=class_names,
            description=description,
            overwrite=overwrite,
            progress=progress,
        )
        encoded.account = mixture.account
        return encoded
    account = mixture.account
    mixture = mixture.truncate(**size) if size else mixture
    mixture.account = account
    if out is not None:
        mixture.save(out, overwrite)
    return mixture


def _members(adapters: Mapping, weights: Mapping[str, float]) -> list[tuple[float, Adapter]]:
    unknown = sorted(set(weights) - set(adapters))
    if unknown:
        raise ValueError(f"no adapter {', '.join(unknown)}; there are {', '.join(adapters)}")
    endless = {task: gamma for task, gamma in weights.items() if not math.isfinite(gamma)}
    if endless:
        raise ValueError(f"weights must be finite numbers: {endless}")
    chosen = {task: float(gamma) for task, gamma in weights.items() if gamma}
    if not chosen:
        raise ValueError("nothing to mix: no task has a weight; the mixture is the base itself")
    opened = {t: a if isinstance(a, Adapter) else Adapter.load(a) for t, a in adapters.items() if t in chosen}
    wrong = []
    for what, of in (("base", lambda a: a.config["base"]["fingerprint"]), ("kind", lambda a: a.kind)):
        values = {task: of(adapter) for task, adapter in opened.items()}
        if len(set(values.values())) > 1:
            wrong.append(f"they differ in their {what}: {values}")
    if wrong:
        raise ValueError("these adapters cannot be mixed: " + "; ".join(wrong))
    return [(gamma, opened[task]) for task, gamma in chosen.items()]


def _account(members, mixture: Adapter) -> Account:
    """What became of every tensor of every member; raises NoEffect if the members' changes cancel to nothing."""
    account, changed = Account(), {name for name, entry in mixture.entries.items() if _changes(entry)}
    if not changed:
        held = sum(_mixable(e) and _changes(e) for _, a in members for e in a.entries.values())
        raise NoEffect(
            f"the mixture is the base itself: its members change {held} tensors, and "
            + ("these weights cancel them all" if held else "what they hold besides (heads, added rows) is not mixed")
        )
    names = [adapter.name for _, adapter in members]
    for i, (_, adapter) in enumerate(members):
        label = adapter.name if names.count(adapter.name) == 1 else f"{adapter.name} {i + 1}"
        for name, entry in adapter.entries.items():
            other = entry.base_name if entry.base_name not in (None, name) else None
            if entry.kind == "tied":
                what, why = "tied", f"the same tensor as {entry.tied_to}"
            elif entry.task_only:
                what, why = "skipped", "only this task has it: heads are not mixed"
            elif not _mixable(entry):
                what, why = "skipped", f"{str(entry.dtype).removeprefix('torch.')} values are not mixed"
            elif entry.added_rows is not None:
                what, why = "changed", f"without its {len(entry.added_rows)} added rows, which are not mixed"
            elif entry.base_name in changed:
                what, why = "changed", None
            else:
                what, why = "equal", "the weights cancel it"
            account.add(name, label, what, entry.kind, other, why)
        account.complete(label, adapter.entries)
    for name, entry in mixture.entries.items():
        account.add(name, "mixture", "changed" if name in changed else "equal", entry.kind)
    return account


def _changes(entry: Entry) -> bool:
    """Is its difference more than what rounding leaves where weights cancel?"""
    if entry.tensor is not None:
        return bool(entry.tensor.any())
    kept = [f for f in matrices(entry) if f is not None]
    return any(f.samples or f.norm > CANCELLED * f.packed.sigma.abs().max().item() for f in kept)


def _mixable(entry: Entry) -> bool:
    """Whether an entry changes a tensor of the base by a difference that can be weighted."""
    return entry.base_name is not None and entry.kind != "tied" and entry.dtype.is_floating_point


def _without_samples(entry: Entry) -> Entry:
    """Their noise, a few times the difference, would be what an encoder spends its bytes on."""
    kept = [None if f is None else f.residual() for f in matrices(entry)]
    return replace(entry, factors=kept if entry.kind == "experts" else kept[0]) if kept else entry


def _entry(name: str, members: list[tuple[float, Entry]], base, inexact: list[str]) -> Entry:
    shape, dtype = members[0][1].base_shape, members[0][1].dtype
    kinds = {entry.kind for _, entry in members}
    if kinds == {"factors"}:
        parts = [(gamma, e.factors) for gamma, e in members if e.factors is not None]
        if not parts:
            return Entry(name, name, shape, "factors", dtype)
        factors, exact = mixed_factors(parts, name)
        inexact += [] if exact else [name]
        return Entry(
            name, name, shape, "factors", dtype, factors, norm=factors.norm, squared_error=factors.squared_error
        )
    if kinds == {"experts"}:
        return _experts(name, shape, dtype, members, inexact)
    if "value" in kinds and base is None:
        raise ValueError(f"{name} is stored as a whole value: give base=, its difference is needed to weight it")

    value = base.load(name) if "value" in kinds else None
    delta = sum(gamma * entry.delta(value) for gamma, entry in members)
    return Entry(name, name, shape, "delta", dtype, tensor=delta, norm=sums.norm(delta))


def _experts(name: str, shape, dtype, members: list[tuple[float, Entry]], inexact: list[str]) -> Entry:
    factors, norms, exact = [], 0.0, True
    for experts in zip(*(e.factors for _, e in members), strict=True):
        parts = [(gamma, f) for (gamma, _), f in zip(members, experts) if f is not None]
        mixed, kept = mixed_factors(parts, name) if parts else (None, True)
        factors.append(mixed)
        exact &= kept
        norms += mixed.norm**2 if mixed else 0.0
    inexact += [] if exact else [name]
    lost = sum(f.squared_error * f.norm**2 for f in factors if f)
    return Entry(
        name, name, shape, "experts", dtype, factors, norm=norms**0.5, squared_error=lost / norms if norms else 0.0
    )


def _config(members, weights, name, class_names, description, digests) -> dict:
    """A config whose tensors are named as the base's; `complete` adds what follows from the entries."""
    first = members[0][1].config
    shown = " + ".join(f"{weights[t]:.4g} {t}" for t in weights)
    return {
        "format_version": first["format_version"],
        "method": "residual",
        "kind": first["kind"],
        "base": first["base"],
        "finetuned": {
            "name": name,
            "dtype": first["base"]["dtype"],
            "base_prefix": "",
            "prefix": "",
            "renamed": {},
            "base_only": [],
            "dtypes": {},
        },
        "task": {"name": name, "class_names": class_names, "description": description},
        "squared_error": 0.0,
        "bytes": 0,
        "amr": 0.0,
        "created": {"package": "dts-merge", "version": __version__, "command": f"mix {shown}"},
        "dropped": {},
        "files": {},
        "model_config": None,
        "tensors": digests,
    }
