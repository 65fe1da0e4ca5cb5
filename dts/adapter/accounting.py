"""What became of every tensor of every file: nothing is left out without a word.

A row a tensor: changed, equal, new, absent, tied, dropped or skipped, with the reason where it is not plain, and the
name it goes by where that is another one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from dts.adapter.rows import base_name_of
from dts.adapter.whole import is_rounded_copy
from dts.checkpoint.prefixes import swap_prefix
from dts.warn import warn

if TYPE_CHECKING:
    from dts.adapter.adapter import Adapter
    from dts.adapter.entries import Entry
    from dts.checkpoint import Checkpoint, Pairing

WHAT = ("changed", "equal", "new", "absent", "tied", "dropped", "skipped")
REPLACED = "the fine-tune has its own, of another size"  # a head


class NothingChanged(ValueError):
    """A fine-tune whose tensors are all the base's: there is nothing to store."""

    cli_code = 1  # a check that failed, rather than input that cannot be read


class NoEffect(ValueError):
    """What was written is the base, or a part of it is, although it should not be."""


class Unaccounted(ValueError):
    """A tensor of which nobody knows what became."""


class Suspicious(UserWarning):
    """Two models that may not be what was meant: unrelated, or exchanged."""


@dataclass(frozen=True)
class Fate:
    """One tensor of one model.

    name: in its file;  model: which one, "base", "finetuned" or a source;  what: one of ``WHAT``;
    stored: how an adapter has it;  written_as: its other name where it has one;  why: in words, if there is a reason.
    """

    name: str
    model: str
    what: str
    stored: str | None = None
    written_as: str | None = None
    why: str | None = None

    def __post_init__(self):
        if self.what not in WHAT:
            raise ValueError(f"what must be one of {', '.join(WHAT)}, not {self.what!r}")


@dataclass
class Account:
    """Every tensor of every model."""

    fates: list[Fate] = field(default_factory=list)

    def add(self, *fields, **more) -> None:
        self.fates.append(Fate(*fields, **more))

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """model -> what -> how many; ``renamed`` counts those that go by another name."""
        found: dict[str, Counter] = {}
        for fate in self.fates:
            count = found.setdefault(fate.model, Counter())
            count[fate.what] += 1
            count["renamed"] += fate.written_as is not None
        order = (*WHAT, "renamed")
        return {model: {what: count[what] for what in order if count[what]} for model, count in found.items()}

    def of(self, model: str, what: str | None = None) -> list[Fate]:
        return [f for f in self.fates if f.model == model and what in (None, f.what)]

    def as_dict(self) -> dict:
        """Plain data for JSON: the counts, and a row a tensor without what is not said of it."""
        rows = [{key: value for key, value in asdict(fate).items() if value is not None} for fate in self.fates]
        return {"counts": self.counts, "tensors": rows}

    def text(self) -> str:
        """The counts in a line a model: "base: 12 changed, 3 equal"."""
        return "; ".join(
            f"{model}: {', '.join(f'{n} {what}' for what, n in counts.items())}"
            for model, counts in self.counts.items()
        )

    def complete(self, model: str, names) -> None:
        """Raises Unaccounted for tensors of a model without exactly one row."""
        rows = Counter(fate.name for fate in self.of(model))
        wrong = [name for name in names if rows[name] != 1] + [name for name in rows if name not in set(names)]
        if wrong:
            raise Unaccounted(
                f"nothing is known of what became of {len(wrong)} tensors of the {model}: {', '.join(wrong[:20])}"
            )


def of_pairing(pairing: Pairing, entries: dict | None = None, dropped=(), equal=()) -> Account:
    """Of a base and its fine-tune.

    entries, dropped: of the adapter, None before there is one;  equal: names of the fine-tune's tensors that were
    compared and are the base's.  Raises Unaccounted for what none of them has.
    """
    account, unknown = Account(), []
    for name, pair in pairing.pairs.items():
        entry, file_name = (entries or {}).get(name), pairing.saved_as.get(name, name)
        base_name = pair.base_name if pair.base_name != name else None
        other = name if file_name != name else None
        if pair.tied_to:
            what, stored, why = "tied", None, f"the same tensor as {pair.tied_to}"
        elif name in dropped and (entry is None or entry.added_rows is None):
            what, stored, why = "dropped", None, "the budget leaves it at the base"
        elif pair.base_name is None and (entry is None or entry.task_only):
            what, stored, why = "new", "value", "the base has none"
        elif name in equal:
            what, stored, why = "equal", None, None
        elif entry is not None or entries is None:
            what, stored, why = "changed", entry and entry.kind, None
        else:
            unknown.append(name)
            continue
        if pair.added_rows and what in ("changed", "equal"):
            what, why = "changed", f"{pair.added_rows} rows are new" + ("; " + why if why else "")
        if base_name:
            why = f"{why}; in the base {base_name}" if why else f"in the base {base_name}"
        account.add(file_name, "finetuned", what, stored, other, why)
    if unknown:
        raise Unaccounted(f"nothing is known of what became of {len(unknown)} tensors: {', '.join(unknown[:20])}")
    _of_base(account, pairing)
    account.complete("finetuned", [pairing.saved_as.get(name, name) for name in pairing.finetuned.names])
    return account


def _of_base(account: Account, pairing: Pairing) -> None:
    what = {fate.written_as or fate.name: fate.what for fate in account.fates}
    used: dict[str, str] = {}
    for name, pair in pairing.pairs.items():
        if pair.base_name and used.get(pair.base_name) in (None, "tied"):
            used[pair.base_name] = what[name]
    absent = set(pairing.base_only)
    own = [name for name, pair in pairing.pairs.items() if pair.base_name is None and not pair.tied_to]
    replaced = {swap_prefix(name, pairing.finetuned_prefix, pairing.base_prefix) for name in own}
    for name in pairing.base.names:
        if name in pairing.base.tied:
            account.add(name, "base", "tied", why=f"the same tensor as {pairing.base.tied[name]}")
        elif name in used:
            account.add(name, "base", used[name])
        elif name in absent:
            account.add(name, "base", "absent", why="no layer of the fine-tune has it")
        elif name in replaced:
            account.add(name, "base", "absent", why=REPLACED)
    account.complete("base", pairing.base.names)


def of_model(adapter: Adapter, base: Checkpoint, model: Checkpoint) -> Account:
    """Of a base, an adapter and the model they give."""
    section, account, used = adapter.config["finetuned"], Account(), {}
    for name in model.names:
        entry = adapter.entries.get(name)
        base_name = base_name_of(name, section) if entry is None else entry.base_name
        if name in model.tied:
            what, stored, why = "tied", None, f"the same tensor as {model.tied[name]}"
        elif entry is None:
            stored, why = None, None
            what = "dropped" if name in adapter.config["dropped"] else "equal"
        else:
            what, stored, why = "new" if entry.task_only else "changed", entry.kind, None
        if base_name in base.tensors and name not in model.tied:
            used[base_name] = what
        account.add(name, "model", what, stored, None if base_name in (None, name) else base_name, why)
    absent = set(section["base_only"])
    replaced = {base_name_of(name, section) for name, entry in adapter.entries.items() if entry.task_only}
    for name in base.names:
        if name in base.tied:
            account.add(name, "base", "tied", why=f"the same tensor as {base.tied[name]}")
        elif name in used:
            account.add(name, "base", used[name])
        elif name in absent:
            account.add(name, "base", "absent", why="the fine-tune has none")
        elif name in replaced:
            account.add(name, "base", "absent", why=REPLACED)
        elif any(e.base_name == name for e in adapter.entries.values()):
            account.add(name, "base", "tied", why="the fine-tune ties it")
    account.complete("base", base.names)
    account.complete("model", model.names)
    unused = sorted(set(adapter.entries) - set(model.names))
    if unused:
        raise Unaccounted(f"the adapter's tensors {', '.join(unused[:20])} are not in the model it gives")
    return account


class Effects:
    """Does what is written differ from the base where the adapter says so?  Fed tensor by tensor while it is."""

    def __init__(self, adapter: Adapter, base: Checkpoint):
        self.adapter, self.base = adapter, base
        self.changed = self.expected = 0
        self.rounded: list[str] = []
        self.wrong: list[str] = []

    def see(self, name: str, value: Tensor) -> Tensor:
        """Looks at the reconstructed tensor, which it returns."""
        entry = self.adapter.entries.get(name)
        if entry is None or entry.kind == "tied" or entry.base_name is None:
            return value
        return self.compare(entry, self.base.load(entry.base_name), value)

    def compare(self, entry: Entry, base: Tensor, value: Tensor) -> Tensor:
        """The same, given the base's tensor, or the part of a larger one that it is in a model in memory."""
        if entry.kind == "exact" or entry.added_rows is not None or not is_rounded_copy(value, base):
            self.expected, self.changed = self.expected + 1, self.changed + 1
        elif entry.kind != "value" and entry.delta().any():
            self.expected += 1
            wide = base.double() + entry.delta().double()
            (self.rounded if _same(wide.to(value.dtype), value) else self.wrong).append(entry.name)
        return value

    def check(self) -> None:
        """Raises NoEffect if a tensor that the adapter changes is the base's, or all of them are."""
        entries = self.adapter.entries.values()
        if self.wrong or self.expected and not self.changed and not any(e.task_only for e in entries):
            names = self.wrong or self.rounded
            raise NoEffect(
                f"{len(names)} of the {self.expected} tensors that the adapter {self.adapter.name!r} "
                f"changes came out equal to the base: {', '.join(names[:20])}.  Nothing was written"
            )
        if self.rounded:
            warn(
                f"the change of {len(self.rounded)} tensors is too small for their dtype and is rounded "
                f"away: {', '.join(self.rounded[:20])}"
            )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a == b).all())
