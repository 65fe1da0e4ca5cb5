"""A mixture of adapters as one adapter: theta_u = theta + sum_n gamma_n Delta_n."""

from collections.abc import Mapping
from pathlib import Path

import torch

from dts import __version__, sums
from dts.adapter import Adapter, Entry, compress
from dts.adapter.account import Account
from dts.adapter.apply import check_base
from dts.adapter.errors import NoEffect
from dts.adapter.folder import complete
from dts.adapter.text import dtype_name
from dts.checkpoint import open_checkpoint
from dts.checkpoint.errors import some
from dts.codec import Factors, residual
from dts.codec.parts import kind_of
from dts.nn.model import DTSModel
from dts.nn.selection import is_weight
from dts.values import shown
from dts.warn import warn

from .concatenate import mixed_factors
from .encoders import Source, tokenizer_in
from .heads import embedder, is_zero_shot, own_heads, with_head

LEFT = " (samples alone, of other rows or columns: left at the base)"
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
    head=None,
    tokenizer=None,
    encoder: Source = "default",
) -> Adapter:
    """One adapter of a weighted sum of adapters of one base.

    adapters: {task: Adapter or its folder}; weights: {task: gamma}, of some of them (see `task_weights`);
    out: its folder, None keeps it in memory; name, class_names, description: of the new task.
    budget (a fraction of the base in fp32) or nbytes: encode the mixture anew into that size; with ``base`` (anything
    ``open_checkpoint`` takes) from its dense sum, without from a prefix of the exact mixture, which is worse.

    Without a size the mixture is exact and as large as its parts together: factors stand side by side, raw deltas are
    summed. Exceptions, each encoded anew at the sum of its ranks and named in a `NotExact` warning: matrices of which
    the adapters have other zero rows or columns (samples alone are left at the base there), and method "paper", whose
    levels differ from adapter to adapter.
    What only a fine-tune has (heads, added vocabulary) and whole integer values are left out, but for a head where one
    is asked for, of classifiers (`dts.unseen.heads`):
        head: "zero-shot", made of class_names by the mixture itself, which takes the base in a folder or on the hub
            (or, for models that take no text, by ``encoder``, whose vectors must be as wide as what the head reads);
            "nearest", the head of the member with the largest weight, or a task's by its name; tensors of one's own,
            [classes, width] or {name: tensor}, or a file of such
        tokenizer: of the base, transformers'; by default that of the base's folder
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
    entries: dict[str, Entry] = {}
    digests: dict[str, dict] = {}
    inexact: dict[str, bool] = {}
    mixable = [e for _, a in members for e in a.entries.values() if _mixable(e)]
    for base_name in sorted({e.base_name for e in mixable if e.base_name is not None}):
        found = [
            (gamma, a, e)
            for gamma, a in members
            for e in a.entries.values()
            if e.base_name == base_name and _mixable(e)
        ]
        mixed = _entry(base_name, [(gamma, e) for gamma, _, e in found], base, inexact)
        if mixed is None:
            continue
        entries[base_name] = mixed
        digests[base_name] = {"base": found[0][1].config["tensors"][found[0][2].name].get("base")}
    sized = budget is not None or nbytes is not None
    lost = [name + LEFT * left for name, left in inexact.items() if left or not sized]
    if lost:
        warn(f"encoded anew, not exact: {', '.join(lost)}", NotExact)
    mixture = Adapter.of(_config(members, weights, name, class_names, description, digests), entries)
    complete(mixture)
    account = mixture.account = _account(members, mixture)
    if head is not None:
        if is_zero_shot(head):
            if base is None or base.folder is None:
                raise ValueError(
                    "a zero-shot head is made by the model itself: give base= (--base), its folder or hub id"
                )
            tokenizer = tokenizer or tokenizer_in(base.folder)  # image models have none
        embed = embedder(lambda made: _served(base, made), tokenizer, encoder)
        mixture = with_head(mixture, members, adapters, head, class_names, embed)
        class_names = mixture.class_names
        for tensor, entry in own_heads(mixture).items():
            account.add(tensor, "mixture", "new", entry.kind, why="the mixture's head")
    if sized and base is not None:
        alone = [name for name, entry in mixture.entries.items() if _samples_alone(entry)]
        if alone:
            raise ValueError(
                f"the mixture has samples alone, without components, in {some(alone, 3)}, whose noise is all that "
                "would be encoded anew: leave out the base (--base), so that what is stored is cut, or the size"
            )
        mixture.entries = {name: _low_rank(entry) for name, entry in mixture.entries.items()}
        encoded = compress(
            base,
            mixture.on(base),
            out,
            budget=budget,
            nbytes=nbytes,
            kind=mixture.kind,
            name=name,
            class_names=class_names,
            description=description,
            overwrite=overwrite,
            progress=progress,
            command=mixture.config["created"]["command"],
        )
        encoded.account = mixture.account
        return encoded
    mixture = mixture.truncate(budget, nbytes) if sized else mixture
    mixture.account = account
    if out is not None:
        mixture.save(out, overwrite)
    return mixture


def _served(base, mixture: Adapter) -> tuple[DTSModel, str]:
    """The base with the mixture, as transformers builds it."""
    try:
        return DTSModel.from_pretrained(base.folder, adapters={mixture.name: mixture}), mixture.name
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{error}.  No head is made by it here: take head='nearest' (--head nearest), or load the model with "
            "it and call dts.unseen.add_task()"
        ) from error


def _members(adapters: Mapping, weights: Mapping[str, float]) -> list[tuple[float, Adapter]]:
    unknown = sorted(set(weights) - set(adapters))
    if unknown:
        raise ValueError(f"no adapter {', '.join(unknown)}; there are {', '.join(adapters)}")
    endless = {task: gamma for task, gamma in weights.items() if not is_weight(gamma)}
    if endless:
        raise ValueError(f"weights must be finite numbers: {shown(endless)}")
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
                what, why = "skipped", f"{dtype_name(entry.dtype)} values are not mixed"
            elif entry.matrices == [None]:
                what, why = "skipped", "it has added rows alone, which are not mixed"
            elif entry.added_rows is not None:
                what, why = "changed", f"without its {len(entry.added_rows)} added rows, which are not mixed"
            elif entry.base_name in changed:
                what, why = "changed", None
            else:
                other_rows = "it has samples alone, of other rows or columns, which are not mixed"
                what, why = "equal", other_rows if _samples_alone(entry) else "the weights cancel it"
            account.add(name, label, what, entry.kind, other, why)
        account.complete(label, adapter.entries)
    for name, entry in mixture.entries.items():
        account.add(name, "mixture", "changed" if name in changed else "equal", entry.kind)
    return account


def _changes(entry: Entry) -> bool:
    """Is its difference more than what rounding leaves where weights cancel?"""
    if entry.kind == "exact":
        return entry.patch is not None
    if not entry.factorised and entry.kind != "tied":
        return bool((entry.whole if entry.grid is None else entry.grid.codes).any())
    return any(_differs(factors) for factors in entry.matrices if factors is not None)


def _differs(factors: Factors) -> bool:
    """Do its components add up to more than rounding leaves, or does it have other parts?"""
    known = [(kind_of(data), data) for data in factors.stored]
    size = max((kind.largest_component(data) for kind, data in known), default=0.0)
    return factors.norm > CANCELLED * size or not all(kind.ranked for kind, _ in known)


def _mixable(entry: Entry) -> bool:
    """Whether an entry changes a tensor of the base by a difference that can be weighted."""
    return entry.base_name is not None and entry.kind != "tied" and entry.dtype.is_floating_point


def _samples_alone(entry: Entry) -> bool:
    """Has one of its matrices samples, and no components?"""
    return any(factors is not None and factors.samples and not factors.rank for factors in entry.matrices)


def _low_rank(entry: Entry) -> Entry:
    """Without samples: their noise, a few times the difference, would be what an encoder spends its bytes on."""
    if not entry.factorised:
        return entry
    return entry.with_matrices([None if factors is None else factors.low_rank() for factors in entry.matrices])


def _entry(name: str, members: list[tuple[float, Entry]], base, inexact: dict[str, bool]) -> Entry | None:
    """The weighted sum of one tensor's differences; None where they are added rows alone, which are not mixed, and
    where nothing of them can be (`mixed_factors`).

    inexact: gets tensors whose mixture is not exact -> whether some of it is left at the base
    """
    shape, dtype = members[0][1].base_shape, members[0][1].dtype
    kinds = {entry.kind for _, entry in members}
    if kinds == {"factors"}:
        known = [(gamma, factors) for gamma, e in members for factors in e.matrices if factors is not None]
        if not known:
            return None
        factors, exact = mixed_factors(known, name)
        if not exact:
            inexact[name] = factors is None
        if factors is None:
            return None
        return Entry(
            name, name, shape, "factors", dtype, factors, norm=factors.norm, squared_error=factors.squared_error
        )
    if kinds == {"experts"}:
        return _experts(name, shape, dtype, members, inexact)
    needs_base = kinds & {"value", "exact"}
    if needs_base and base is None:
        how = "a whole value" if "value" in kinds else "a patch that keeps every bit (method exact)"
        raise ValueError(f"{name} is stored as {how}: give base=, its difference is needed to weight it")

    value = base.load(name) if needs_base else None
    delta = sum((gamma * entry.delta(value) for gamma, entry in members), torch.zeros(()))
    return Entry(name, name, shape, "delta", dtype, tensor=delta, norm=sums.norm(delta))


def _experts(name: str, shape, dtype, members: list[tuple[float, Entry]], inexact: dict[str, bool]) -> Entry:
    stack: list[Factors | None] = []
    lost, energy, exact, left = 0.0, 0.0, True, False
    for experts in zip(*(e.matrices for _, e in members), strict=True):
        known = [(gamma, f) for (gamma, _), f in zip(members, experts) if f is not None]
        mixed, kept = mixed_factors(known, name) if known else (None, True)
        stack.append(mixed)
        exact &= kept
        left |= bool(known) and mixed is None
        if mixed is not None:
            energy += mixed.norm**2
            lost += (mixed.squared_error or 0.0) * mixed.norm**2
    if not exact:
        inexact[name] = left
    error = lost / energy if energy else 0.0
    return Entry(name, name, shape, "experts", dtype, stack, norm=energy**0.5, squared_error=error)


def _config(members, weights, name, class_names, description, digests) -> dict:
    """A config whose tensors are named as the base's; `complete` adds what follows from the entries."""
    first = members[0][1].config
    shown = " + ".join(f"{weights[t]:.4g} {t}" for t in weights)
    return {
        "format_version": first["format_version"],
        "method": residual.METHOD.name,
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
