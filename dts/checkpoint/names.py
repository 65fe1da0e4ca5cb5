"""The names a fine-tune is written with: those its own class loads, or the base's; never those of a wrapper.

A file's names may have a prefix that belongs to the architecture ("bert." of a classifier whose base is the bare
BERT) or one that whoever trained it added ("model." of a training module).  Where transformers knows the class that
the config names, that class decides; else a prefix that every tensor has is taken for a wrapper, one beside which there
are heads for the architecture's.
"""

from dts.checkpoint.checkpoint import Checkpoint
from dts.checkpoint.layouts import in_layout_of
from dts.checkpoint.prefixes import OLD_NAMES, align, swap_prefix
from dts.checkpoint.wrappers import renamed, unwrapped
from dts.sites.transformers import loadable

WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
FORMS = [*OLD_NAMES.items(), *WEIGHT_NORM.items(), *((new, old) for old, new in WEIGHT_NORM.items())]


def named_as_loaded(base: Checkpoint, finetuned: Checkpoint) -> tuple[Checkpoint, dict[str, str]]:
    """(the fine-tune under the names it is to be written with, {name: its name in the file} of those that changed).

    Raises ValueError where two tensors would have one name.
    """
    inner, in_file = unwrapped(finetuned, base)
    names = _forms(base, inner.names)
    inner, before = renamed(inner, names)
    in_file = {name: in_file.get(before.get(name, name), before.get(name, name)) for name in inner.names}
    inner, before = in_layout_of(base, inner)
    in_file = {name: in_file.get(saved := before.get(name, name), saved) for name in inner.names}
    exchange, origin = align(base, inner)
    if exchange[0] == exchange[1] and all(name == base_name for name, base_name in origin.items()):
        return inner, _changed(in_file)
    names = _as_its_class(base, inner, exchange) or _as_the_base(inner, exchange, origin)
    inner, before = renamed(inner, names)
    return inner, _changed({name: in_file[before.get(name, name)] for name in inner.names})


def _changed(in_file: dict[str, str]) -> dict[str, str]:
    return {name: saved for name, saved in in_file.items() if name != saved}


def _forms(base: Checkpoint, names: list[str]) -> dict[str, str]:
    """Names in the form the base has: norms' "gamma" as "weight", one form of weight norm for the other."""
    tails = {".".join(name.split(".")[-depth:]) for name in base.names for depth in range(1, 5)}
    result = {}
    for name in names:
        result[name] = name
        for old, new in FORMS:
            stem = name[: -len(old)].rstrip(".").split(".")[-1]
            if name.endswith("." + old) and f"{stem}.{old}" not in tails and f"{stem}.{new}" in tails:
                result[name] = name[: -len(old)] + new
    return result


def _as_its_class(base: Checkpoint, finetuned: Checkpoint, exchange: tuple[str, str]) -> dict[str, str] | None:
    """{name: name that the class of its own config loads}; None if that class is not known or knows none of them."""
    found = loadable(finetuned.config)
    if found is None:
        return None
    expected, body = found
    names = {name: name for name in finetuned.names}
    for _ in range(3):  # two prefixes may be in one file
        best = max(_candidates(names, exchange, body), key=lambda c: _loaded(c.values(), expected, body))
        if _loaded(best.values(), expected, body) <= _loaded(names.values(), expected, body):
            break
        names = best
    return names if _loaded(names.values(), expected, body) else None


def _candidates(names: dict[str, str], exchange: tuple[str, str], body: str) -> list[dict[str, str]]:
    """The names with one prefix that they share exchanged for none, the base's or that of the class's body."""
    olds = ["", *_prefixes_of(list(names.values()))]
    news = list(dict.fromkeys(("", exchange[0], f"{body}." if body else "")))
    made = []
    for old in olds:
        for new in news:
            candidate = {name: swap_prefix(now, old, new) for name, now in names.items()}
            if old != new and len(set(candidate.values())) == len(candidate):
                made.append(candidate)
    return made


def _prefixes_of(names: list[str]) -> list[str]:
    """Prefixes (with their dot) of several of these names."""
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        for depth in range(1, min(len(parts), 5)):
            prefix = ".".join(parts[:depth]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    return [prefix for prefix, count in counts.items() if 10 * count >= len(names) or prefix.count(".") == 1]


def _loaded(names, expected: frozenset[str], body: str) -> int:
    """Twice how many of the names a class loads, one less where they are those of its body alone or around it.

    A whole file is either with or without the body's prefix: names of both kinds do not load together.
    """
    names = list(names)
    exact = sum(name in expected for name in names)
    if not body:
        return 2 * exact
    added = sum(f"{body}.{name}" in expected for name in names)
    stripped = sum(name.startswith(f"{body}.") and name[len(body) + 1 :] in expected for name in names)
    return max(2 * exact, 2 * added - 1, 2 * stripped - 1, 0)


def _as_the_base(finetuned: Checkpoint, exchange: tuple[str, str], origin: dict[str, str]) -> dict[str, str]:
    """{name: the base's name, or its own without the wrapper}, by the names alone."""
    old, new = exchange
    keep = {name: name for name in finetuned.names}
    if new:
        tops = {base_name.split(".")[0] for base_name in origin.values()}
        own_body = not old and len(tops) == 1  # the base's names have a body's prefix already
        heads = [name for name in finetuned.names if name not in origin]
        if own_body or all(name.startswith(new) for name in heads):
            return {name: origin.get(name, swap_prefix(name, new, "")) for name in finetuned.names}
    # heads beside the body: the prefix is the architecture's
    return keep | {name: base_name for name, base_name in origin.items() if _follows_no(exchange, name, base_name)}


def _follows_no(exchange: tuple[str, str], name: str, base_name: str) -> bool:
    """Was it met by a further pair of prefixes, and has its own in the file?"""
    return swap_prefix(base_name, *exchange) != name and len(name) > len(base_name) and name.endswith("." + base_name)
