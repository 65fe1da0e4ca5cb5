"""BitDelta's ``diff.pt`` as an adapter: a sign an element and one scale a matrix (arXiv 2402.10193).

    <module>.mask     [in / bits, out]: signs of the difference, transposed; bit b of row j is of input bits j + b, and
                      set where it is positive.  int32 has 32 bits, int64 64, int16 16, uint8 8
    <module>.coeff    a number: the difference is coeff where the bit is set, else -coeff
    <parameter>       a whole tensor, of what was trained beside (embeddings, norms)

A matrix of plus and minus one scale is a sample of all elements, whose codes have two bits: nothing is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dts.adapter import Adapter, Entry
from dts.adapter.accounting import of_pairing
from dts.adapter.config import config_of
from dts.adapter.errors import NothingChanged
from dts.adapter.exact import patched
from dts.adapter.folder import check_out
from dts.adapter.options import Options
from dts.adapter.sizes import measured
from dts.adapter.whole import whole_entry
from dts.checkpoint import Checkpoint, CheckpointError, Lazy, Pair, Pairing, digests, open_checkpoint, pair
from dts.checkpoint.errors import in_lines
from dts.checkpoint.files import load_tensors
from dts.codec import Factors
from dts.exports.numbers import misfit
from dts.files import Watch, expanded, real
from dts_kernels import PackedFactors, Samples, pack

BITS = {torch.uint8: 8, torch.int16: 16, torch.int32: 32, torch.int64: 64}  # of a mask's dtype
PLUS, MINUS = 0, 2  # the codes of 1 and -1
ROWS = 1 << 12  # of a mask that are unpacked at a time


def import_bitdelta(
    file: str | Path,
    base,
    out: str | Path | None = None,
    name: str | None = None,
    class_names: list[str] | None = None,
    description: str | None = None,
    overwrite: bool = False,
) -> Adapter:
    """An adapter of what BitDelta's ``save_diff`` wrote, exact in every matrix: base + coeff sign, in float32.

    file: ``diff.pt``, read with ``weights_only=True``;  base: anything `open_checkpoint` takes;  out: the adapter's
    folder, None keeps it in memory;  name: of the task, by default that of the file's folder
    Raises CheckpointError with all that does not belong to the base or is none of BitDelta's tensors, FileExistsError.
    """
    file = expanded(file)
    if out is not None:
        check_out(expanded(out), overwrite)
    watch, opened = Watch(file, base), open_checkpoint(base)
    signs, values = sorted_tensors(file, _loaded(file), opened)
    pairing = pair(opened, _merged(file, opened, signs, values))
    found = digests(opened)
    task = name or real(file).parent.name
    options = Options(method="sketch", name=task, class_names=class_names, description=description)
    config = config_of(pairing, options, found, {})
    config["created"]["command"] = "import bitdelta"
    entries = {p.name: entry for p in pairing.pairs.values() if (entry := _entry(pairing, p, signs)) is not None}
    if not any(entry.kind != "tied" for entry in entries.values()):
        raise NothingChanged(f"{file} changes nothing of {opened.source}")
    measured(config, entries, pairing.by_name(found), digests=True)
    adapter = Adapter.of(config, entries)
    adapter.account = of_pairing(pairing, entries, equal=pairing.pairs.keys() - entries.keys())
    watch.check()
    if out is not None:
        adapter.save(out, overwrite)
    return adapter


def _loaded(file: Path) -> Mapping[str, Tensor]:
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}: give the diff.pt that BitDelta's save_diff wrote")
    return load_tensors(file)


def sorted_tensors(
    file: Path, found: Mapping[str, Tensor], base: Checkpoint
) -> tuple[dict[str, tuple[Tensor, float]], dict[str, Tensor]]:
    """(weight -> (mask, coeff), parameter -> whole value); raises CheckpointError with all that is wrong."""
    signs: dict[str, tuple[Tensor, float]] = {}
    values: dict[str, Tensor] = {}
    owners: dict[str, str] = {}  # a tensor of the base -> the name by which it is in the file
    wrong: list[str] = []
    masks = {key.removesuffix(".mask") for key in found if key.endswith(".mask")}
    scales = {key.removesuffix(".coeff") for key in found if key.endswith(".coeff")}
    wrong += [f"{module}.mask has no {module}.coeff" for module in sorted(masks - scales)]
    wrong += [f"{module}.coeff has no {module}.mask" for module in sorted(scales - masks)]
    for module in sorted(masks & scales):
        weight = f"{module}.weight"
        why = _misfit(found[f"{module}.mask"], found[f"{module}.coeff"], base, weight)
        if why:
            wrong.append(f"{module}: {why}")
        else:
            signs[weight] = found[f"{module}.mask"], float(found[f"{module}.coeff"].float())
    for key, value in found.items():
        if key.endswith((".mask", ".coeff")):
            continue
        own = base.tied.get(key, key)
        if key not in base.tensors:
            wrong.append(f"{key}: the base has no such tensor, and it is none of BitDelta's")
        elif masked := {key, own} & signs.keys():
            also = "" if key in masked else f" with {own}, which is one tensor in the base"
            wrong.append(f"{key}: it is there as a mask and whole{also}")
        elif own in owners and not torch.equal(values[owners[own]], value):
            wrong.append(f"{key}: it is one tensor with {owners[own]} in the base, and they differ")
        elif why := misfit(value, base.dtype(key)) or _no_numbers(value, base, key):
            wrong.append(f"{key}: {why}")
        else:
            values[key] = value
            owners[own] = key
    if not signs:
        wrong.append("there is no mask with its coeff in it")
    if wrong:
        raise CheckpointError(in_lines(f"{file} is no diff.pt of BitDelta for {base.source}", wrong))
    return signs, values


def _no_numbers(value: Tensor, base: Checkpoint, key: str) -> str:
    """That some are NaN or infinite, where the base's are not (masks of attention are)."""
    if not value.is_floating_point() or bool((plain := value.isfinite()).all()):
        return ""
    before = base.load(key).to(value.dtype)
    alike = value == before if before.shape == value.shape else plain  # NaN equals nothing
    strange = int((~plain & ~alike).sum())
    return f"{strange} elements are no numbers" if strange else ""


def _misfit(mask: Tensor, coeff: Tensor, base: Checkpoint, weight: str) -> str:
    bits = BITS.get(mask.dtype)
    if weight not in base.tensors:
        return "the base has no such weight"
    if bits is None or mask.dim() != 2:
        return f"its mask is {str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}, not packed bits of a matrix"
    shape = (mask.shape[1], mask.shape[0] * bits)
    if base.shape(weight) != shape:
        return f"its mask is of {list(shape)}, the base has {list(base.shape(weight))}"
    if coeff.numel() != 1 or not coeff.is_floating_point() or not math.isfinite(float(coeff.float())):
        return "its coeff is no finite number"
    return ""


def signs_of(mask: Tensor) -> Tensor:
    """bool [out, in], set where the difference is positive."""
    bits = BITS[mask.dtype]
    numbers = np.ascontiguousarray(mask.numpy()).view(f"<u{bits // 8}").T  # [out, in / bits]
    found = np.unpackbits(np.ascontiguousarray(numbers).view(np.uint8), axis=1, bitorder="little")
    return torch.from_numpy(found.astype(bool))


def _merged(file: Path, base: Checkpoint, signs: Mapping[str, tuple[Tensor, float]], values) -> Checkpoint:
    """The fine-tune that the file stands for; its matrices in float32, so that no small difference is rounded away."""
    tensors: dict[str, Lazy] = {name: base.tensors[name] for name in base.names if name not in base.tied}
    for name, value in values.items():
        dtype = base.dtype(name)
        tensors[base.tied.get(name, name)] = Lazy(tuple(value.shape), dtype, partial(value.to, dtype))
    for name, (mask, coeff) in signs.items():
        load = partial(_applied, base, name, mask, coeff)
        tensors[name] = Lazy(base.shape(name), base.dtype(name), load, partial(base.release, name))
    return Checkpoint(str(file), tensors, {}, base.config, base.folder, None, base.parts)


def _applied(base: Checkpoint, name: str, mask: Tensor, coeff: float) -> Tensor:
    return base.load(name).float() + torch.where(signs_of(mask), coeff, -coeff)


def _entry(pairing: Pairing, p: Pair, signs: Mapping[str, tuple[Tensor, float]]) -> Entry | None:
    if p.base_name is None or p.base_name not in signs or p.tied_to:
        if p.added_rows and p.base_name is not None:
            return patched(p, pairing.finetuned.load(p.name), pairing.base.load(p.base_name))
        return whole_entry(pairing, p)
    mask, coeff = signs[p.base_name]
    if not coeff:
        return None
    m, n = pairing.base.shape(p.base_name)
    codes = torch.cat([pack(torch.where(signs_of(part), PLUS, MINUS).byte()) for part in mask.split(ROWS, 1)])
    nothing = PackedFactors(torch.zeros(m, 0, dtype=torch.uint8), torch.zeros(n, 0, dtype=torch.uint8), torch.zeros(0))
    factors = Factors(
        (nothing, Samples(codes, coeff, 1, 0, (m, n))), (m, n), None, None, abs(coeff) * (m * n) ** 0.5, 0.0
    )
    dtype = pairing.finetuned.dtype(p.name)
    return Entry(p.name, p.base_name, (m, n), "factors", dtype, factors, norm=factors.norm)
