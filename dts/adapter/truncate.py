"""A smaller adapter from a larger one, without the fine-tune: a prefix of every matrix's components, 8-bit vectors."""

import math
from dataclasses import replace

import numpy as np

from dts.adapter import format
from dts.adapter.budget import BLOCK, Curve, allocate_exactly, levelled
from dts.adapter.entries import AdapterError, Entry
from dts.adapter.vectors import eight_bit
from dts.codec import Factors
from dts.codec.spectrum import PAPER_KEPT

HEADER_BYTES = 400  # of one matrix's header entries and row, nearly


def prefix_curve(factors: Factors) -> Curve:
    """Bytes and remaining error of every prefix of whole blocks (and of all components).

    Samples stay or go: with them counts as one rank more, and as if they took as large a share of what they found as
    the components did.
    """
    if factors.samples:
        curve = prefix_curve(factors.residual())
        return Curve(
            np.append(curve.ranks, factors.rank + 1),
            np.append(curve.bytes, factors.nbytes + HEADER_BYTES),
            np.append(curve.errors, curve.errors[-1] ** 2 / factors.norm**2),
        )
    rank = factors.rank
    ranks = np.unique(np.append(np.arange(0, rank, BLOCK), rank))
    if factors.method == "residual":
        errors = 1 - factors.prefix_shares().numpy()[ranks]
    else:
        energy = np.concatenate([[0.0], factors.packed.sigma.double().square().cumsum(0).numpy()])[ranks]
        errors = 1 - PAPER_KEPT * energy / factors.norm**2
    m, n = factors.packed.shape
    fixed = sum(t.nbytes for key, t in format.factors_tensors(factors).items() if key not in ("u", "v", "sigma"))
    nbytes = (m + n) * ((ranks + 3) // 4) + 4 * ranks + np.where(ranks > 0, fixed + HEADER_BYTES, 0)
    return Curve(ranks, nbytes, errors * factors.norm**2)


def cut(entry: Entry, ranks: list[int]) -> Entry | None:
    """The entry with its matrices' first components (samples: one rank more); None if nothing is left of it."""
    factors = [
        None if f is None or not k else f if k > f.rank else f.residual().prefix(k)
        for f, k in zip(format.matrices(entry), ranks, strict=True)
    ]
    if all(f is None for f in factors) and entry.added_rows is None:
        return None
    error = format.whole_error(entry.norm, factors)
    return replace(entry, factors=factors if entry.kind == "experts" else factors[0], squared_error=error)


def shortened(entry: Entry, method: str) -> Entry:
    """An exact vector in 8 bits, as `dts.compress` has it where bytes are asked for; everything else as it is."""
    if method == "paper" or entry.kind != "delta" or entry.scale is not None:
        return entry
    return eight_bit(entry, entry.tensor)


def truncated(adapter, nbytes: int):
    """The adapter cut to at most ``nbytes``; changes the adapter given, not its entries."""
    config = adapter.config
    whole = {name: shortened(entry, adapter.method) for name, entry in adapter.entries.items()}
    where = [(name, i) for name, entry in whole.items() for i, f in enumerate(format.matrices(entry)) if f is not None]
    factors = [format.matrices(whole[name])[i] for name, i in where]
    curves = levelled([prefix_curve(f) for f in factors], [math.prod(f.packed.shape) for f in factors])
    base_digests = {name: row.get("base") for name, row in config["tensors"].items()}
    dropped = dict(config["dropped"])

    def entries(ranks: list[int]) -> dict[str, Entry]:
        chosen = {name: [0] * len(format.matrices(entry)) for name, entry in whole.items()}
        for (name, i), rank in zip(where, ranks):
            chosen[name][i] = rank
        kept = {name: cut(entry, chosen[name]) if chosen[name] else entry for name, entry in whole.items()}
        config["dropped"] = dropped | {
            name: format.number(whole[name].norm)
            for name, entry in kept.items()
            if whole[name].norm and (entry is None or format.matrices(entry) == [None])
        }
        return {name: entry for name, entry in kept.items() if entry is not None}

    def total(ranks: list[int]) -> int:
        return measured(config, entries(ranks), base_digests)

    adapter.entries = entries(allocate_exactly(curves, nbytes, total))
    wrong = [
        name
        for name, entry in adapter.entries.items()
        for f in format.matrices(entry)
        if f is not None and not format.largest_value(f) <= format.LARGEST_VALUE
    ]
    if wrong:
        raise AdapterError(
            f"{', '.join(dict.fromkeys(wrong))}: the recorded norm does not belong to the components, "
            "so that no shorter ones can be made of them"
        )
    measured(config, adapter.entries, base_digests, format.digest)
    return adapter


def measured(config: dict, entries: dict[str, Entry], base_digests: dict, sha256=None) -> int:
    """Bytes of an adapter folder with these entries; brings ``config`` up to date.

    sha256: `format.digest`; without it zeros of the same length.
    """
    sizes = format.describe(config, entries.values(), base_digests, bool(sha256))
    config["squared_error"] = overall_error(config, entries)
    return format.total_bytes(config, sizes)[2]


def overall_error(config: dict, entries: dict[str, Entry]) -> float | None:
    """Squared relative error of the whole difference; None if a tensor does not know its own."""
    stored = [e for e in entries.values() if e.name not in config["dropped"]]
    if any(e.squared_error is None for e in stored):
        return None
    lost = sum(norm**2 for norm in config["dropped"].values())
    lost += sum(e.squared_error * e.norm**2 for e in stored)
    whole = sum(e.norm**2 for e in entries.values() if e.name not in config["dropped"])
    whole += sum(norm**2 for norm in config["dropped"].values())
    return format.number(lost / whole) if whole else 0.0
