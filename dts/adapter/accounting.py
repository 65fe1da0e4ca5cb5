"""The account of a pair of models, and of what an adapter makes of its base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dts.adapter.account import Account
from dts.adapter.errors import Unaccounted
from dts.adapter.rows import base_name_of
from dts.checkpoint.prefixes import swap_prefix

if TYPE_CHECKING:
    from dts.adapter.data import AdapterData
    from dts.checkpoint import Checkpoint, Pairing

REPLACED = "the fine-tune has its own, of another size"  # a head


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


def of_model(adapter: AdapterData, base: Checkpoint, model: Checkpoint) -> Account:
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
