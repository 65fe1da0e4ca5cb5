"""What each parameter of a model gets of an adapter, with every reason why an adapter does not fit a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dts.adapter.entries import Entry
from dts.adapter.errors import AdapterError
from dts.adapter.text import dtype_name
from dts.checkpoint.errors import first
from dts.codec import parts
from dts.codec.factors import Factors
from dts.codec.shards import shard
from dts.nn.deltas import Exact, Piece
from dts.nn.layers import base_class, kind_of
from dts.nn.survey import Survey
from dts.sites import Site, Target, is_quantised, resolve


@dataclass
class Change:
    """What one task changes of one parameter; task_only: a tensor that only the fine-tune has."""

    site: Site
    pieces: list[Piece]
    task_only: bool


def fit(survey: Survey, entries: Mapping[str, Entry], untied: bool = False) -> list[Change]:
    """What each parameter of a model gets of an adapter.

    untied: the fine-tune does not share the tensors that the model shares.
    Raises ValueError that lists every tensor that does not fit.
    """
    known, rename = survey.sites, survey.rename
    wrong: list[str] = []
    own = {name: entry for name, entry in entries.items() if entry.kind != "tied"}
    targets, places = _placed(survey, own, wrong)
    changes: dict[tuple[int, str], Change] = {}
    taken: dict[tuple[int, str, int | None, int], tuple[str, str]] = {}
    for name, target in places:
        if target.name not in known:
            wrong.append(f"{name}: the model has no {target.name}, which is a part of it")
            continue
        site, entry = known[target.name], own[name]
        before = taken.setdefault((id(site.module), site.parameter, target.expert, target.part), (name, target.name))
        if before[1] != target.name:  # one module in two places
            if not _same(own[before[0]], entry):
                wrong.append(f"{name}: it and {before[0]} are one parameter of the model, and change in two ways")
            continue
        place = id(site.module), site.parameter
        if place not in changes:
            changes[place] = Change(site, [], entry.task_only)
        changes[place].pieces += _pieces(entry, target, site, wrong)
    apart = {} if untied else _apart(survey.model, known)
    if not untied:
        _share(known if apart else survey.shared, changes, apart)
    _check_tied(entries, targets, known, wrong, rename, apart)
    if wrong:
        raise ValueError("the adapter does not fit the model:\n  " + "\n  ".join([*wrong, *_way(survey)]))
    return list(changes.values())


def _placed(
    survey: Survey, entries: Mapping[str, Entry], wrong: list[str]
) -> tuple[dict[str, Target], list[tuple[str, Target]]]:
    """(the target of each entry, every place that one changes): those of the last task where that had entries of the
    same names, as nearly all tasks of a base have."""
    names = [(name, entry.base_name) for name, entry in entries.items()]
    if survey.placed is not None and survey.placed[0] == names:
        return survey.placed[1:]
    targets = resolve(entries, survey.sites, survey.rename, wrong)
    places = [(name, target) for name, first in targets.items() for target in first.all]
    meant = Counter((t.name, t.expert, t.part) for _, t in places)
    wrong += [f"{name}: another entry is for {t.name} too" for name, t in places if meant[t.name, t.expert, t.part] > 1]
    if not wrong:
        survey.placed = names, targets, places
    return targets, places


def _same(one: Entry, other: Entry) -> bool:
    """Whether two entries, of one parameter that has two names, are the same change."""
    if (one.kind, one.shape, one.task_only) != (other.kind, other.shape, other.task_only):
        return False
    if one.added_rows is not None or other.added_rows is not None:
        return False
    if one.kind == "exact":
        return one.result == other.result
    return torch.equal(_value(one), _value(other)) if one.kind == "value" else torch.equal(one.delta(), other.delta())


def _way(survey: Survey) -> list[str]:
    """How to go on with a model whose parameters were taken apart, packed or wrapped."""
    known = survey.sites
    packed = [name for name, module in survey.modules if _is_packed(module)]
    if packed:
        return [
            f"{first(packed, 3)} are packed by torch.ao.quantization (quantize_dynamic, convert), as what no task can "
            "run beside: load tasks over the model as it was before, or over one that bitsandbytes or torchao's "
            "quantize_ has quantised"
        ]
    if any(name.endswith(".adaption_prompt") for name in known):
        return [
            "The model has adaption prompts of PEFT in it, whose wrappers give its parameters other names: load tasks "
            "before, get_peft_model(DTSModel) goes over them; or unload() PEFT's first"
        ]
    if any(".base_layer." in name for name in known):
        return [
            "The model has adapters of PEFT in it: load tasks before, get_peft_model(DTSModel) goes over them; or "
            "merge_and_unload() PEFT's first"
        ]
    if any(".parametrizations." in name or name.endswith((".weight_g", ".weight_v")) for name in known):
        return [
            "The model is parametrised (weight norm, spectral norm, ...): take that off first, by "
            "torch.nn.utils.parametrize.remove_parametrizations(module, name) or remove_weight_norm(module)"
        ]
    return []


def _is_packed(module: nn.Module) -> bool:
    """Is it a layer of torch's own quantisation, with weights in no tensor of the module?"""
    return base_class(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"))


def refuse_tied(model: nn.Module, entries: Mapping[str, Entry]) -> None:
    """Raises ValueError where a task's output embedding is its input embedding and the base has two of their own: no
    entry says what the one becomes, since the fine-tune has no such tensor."""
    if getattr(getattr(model, "config", None), "tie_word_embeddings", None) is not False:
        return
    head = getattr(model, "get_output_embeddings", lambda: None)()
    name = next((name for name, module in model.named_modules() if module is head), None) if head is not None else None
    if name is not None and not any(f".{key}".endswith(f".{name.rpartition('.')[2]}.weight") for key in entries):
        raise ValueError(
            f"the fine-tune ties its output embedding to its input embedding (tie_word_embeddings), and the base has a "
            f"{name}.weight of its own, of which the adapter says nothing: dts apply makes that model, or compress "
            "the fine-tune saved with tie_word_embeddings=False"
        )


def _apart(model: nn.Module, known: dict[str, Site]) -> dict[str, str]:
    """Name -> the name it is tied to, of parameters that a model of transformers ties and quantisation took apart."""
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    found = {}
    for name, other in tied.items():
        ours, theirs = known.get(name), known.get(other)
        if ours and theirs and ours.tensor is not theirs.tensor and ours.shape == theirs.shape:
            if any(is_quantised(site.module, site.parameter) for site in (ours, theirs)):
                found[name] = other
    return found


def _share(known: Mapping[str, Site], changes: dict[tuple[int, str], Change], apart: dict[str, str]) -> None:
    """A parameter that the model uses in several places changes in all of them.  known: sites, those at least."""
    if not known:
        return
    by_tensor = {id(change.site.tensor): change for change in changes.values()}
    by_name = {change.site.name: change for change in changes.values()}
    for name, site in known.items():
        other = by_name.get(apart.get(name, ""))
        change, place = by_tensor.get(id(site.tensor), other), (id(site.module), site.parameter)
        if change is not None and place not in changes:
            changes[place] = Change(site, change.pieces, change.task_only)


def _check_tied(
    entries: Mapping[str, Entry],
    targets: dict[str, Target],
    known: dict[str, Site],
    wrong: list[str],
    rename: Callable[[str], Target],
    apart: dict[str, str],
) -> None:
    """A tensor that the fine-tune ties must be the same tensor, or an equal one, in the base."""
    for name, entry in entries.items():
        if entry.kind != "tied":
            continue
        tied, canonical = rename(name).name, targets.get(entry.tied_to or "")
        if tied not in known or canonical is None:
            continue
        a, b = known[tied].tensor, known[canonical.name].tensor
        if apart.get(tied) == canonical.name or apart.get(canonical.name) == tied:
            continue
        if a is not b and not (a.shape == b.shape and torch.equal(a, b)):
            wrong.append(f"{name} is tied to {entry.tied_to} in the fine-tune, but they differ in the base")


def _pieces(entry: Entry, target: Target, site: Site, wrong: list[str]) -> list[Piece]:
    """What one entry changes of its parameter; what does not fit is added to ``wrong``."""
    if entry.task_only:
        return _own(entry, site, wrong)
    expected = site.shape if target.expert is None else site.shape[1:]
    row = None
    if target.parts > 1:
        expected = (expected[0] // target.parts, *expected[1:])
        row = target.part * expected[0]
    if target.pieces > 1:
        expected = (target.pieces * expected[0], *expected[1:])
    if tuple(entry.base_shape) != tuple(expected):
        wrong.append(f"{entry.name}: the adapter is for {list(entry.base_shape)}, the model has {list(expected)}")
        return []
    several = entry.factors if isinstance(entry.factors, list) else [entry.factors]
    misfit = next((found for factors in several if factors and (found := _misfit(factors))), "")
    if misfit:
        wrong.append(f"{entry.name}: {misfit}")
        return []
    if target.pieces > 1:
        return _run_of_rows(entry, target, expected, wrong)
    pieces = []
    if isinstance(entry.factors, list):
        pieces += [Piece("factors", f, e, row) for e, f in enumerate(entry.factors) if f is not None]
    elif entry.factors is not None:
        pieces.append(Piece("factors", entry.factors, target.expert, row))
    elif entry.kind == "exact":
        pieces += _exact(entry, target, site, row, wrong)
    elif entry.kind == "delta":
        alone = entry.grid is not None and len(entry.shape) == 1 and target.expert is row is None
        few = entry.grid.vector() if alone and entry.grid is not None else None
        pieces.append(Piece("raw", few or (entry.delta() if entry.is_rounded else entry.whole), target.expert, row))
    elif entry.kind == "value":
        if target.expert is not None or row is not None:
            wrong.append(f"{entry.name}: a whole value cannot be a part of the fused {target.name}")
        pieces.append(_whole(entry, _value(entry), site.numbers))
    if entry.added_rows is not None:
        pieces.append(Piece("added", entry.added_rows))
    return pieces


def _run_of_rows(entry: Entry, target: Target, whole: tuple[int, ...], wrong: list[str]) -> list[Piece]:
    """What an entry changes of a parameter that is a run of its rows; whole: the shape of all of them."""
    size = whole[0] // target.pieces
    rows = range(target.piece * size, (target.piece + 1) * size)
    if isinstance(entry.factors, Factors):
        own = shard(entry.factors, rows, range(entry.factors.shape[1]))
        return [] if own is None else [Piece("shard", own)]
    if entry.kind == "delta":
        delta = entry.delta() if entry.is_rounded else entry.whole
        return [Piece("raw", delta[rows.start : rows.stop])]
    wrong.append(
        f"{entry.name}: the model has its rows in {target.pieces} parameters, and an entry of kind {entry.kind} is not "
        "taken apart: dts apply makes the full model"
    )
    return []


def _own(entry: Entry, site: Site, wrong: list[str]) -> list[Piece]:
    """A tensor that only the fine-tune has: it may have other outputs than the model's, and only those."""
    outputs = slice(-1, None) if kind_of(site.module).transposed else slice(0, 1)  # their axis
    own, expected = list(entry.shape), list(site.shape)
    del own[outputs], expected[outputs]
    if own != expected or entry.kind not in ("value", "exact"):
        wrong.append(
            f"{entry.name}: the fine-tune's own {list(entry.shape)} does not fit the model's "
            f"{list(site.shape)}: only the number of outputs may differ"
        )
        return []
    return [Piece("value", _value(entry))]


def _value(entry: Entry) -> Tensor:
    return entry.apply(None) if entry.is_rounded else entry.whole


def _exact(entry: Entry, target: Target, site: Site, row: int | None, wrong: list[str]) -> list[Piece]:
    """The fine-tune's values, made of the base's here and now, while a wrong one can be refused."""
    if entry.patch is None:
        return []
    if is_quantised(site.module, site.parameter) or site.tensor.is_meta:
        how = "offloaded" if site.tensor.is_meta else "quantised"
        wrong.append(f"{entry.name}: the adapter keeps every bit (method exact) of a base that is {how} here")
        return []
    base = target.part_of(site.tensor.detach())
    try:
        value = entry.patched(base)
    except AdapterError as error:
        wrong.append(f"{error}; here it is {dtype_name(base.dtype)}")
        return []
    value = value[: base.shape[0]] if entry.added_rows is not None else value
    return [Piece("exact", Exact.of(value, base.to(value.dtype), target.expert, row))]


def _misfit(factors: Factors) -> str:
    """What lies outside of the matrix that the factors say they are of, or nothing."""
    for axis, index, size in zip(("row", "column"), (factors.rows, factors.columns), factors.shape):
        if index is not None and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
            return f"a {axis} {int(index.max())} or {int(index.min())} is none of its {size}"
    for data in factors.stored:
        kind = parts.kind_of(data)
        if tuple(kind.shape(data)) != factors.compact_shape:
            return f"{kind.name} of {list(kind.shape(data))} where {list(factors.compact_shape)} belongs"
    return ""


def _whole(entry: Entry, value: Tensor, base: Tensor) -> Piece:
    """A whole value of a tensor that the base has too: as a difference where mixing must make sense (floats)."""
    if base.is_floating_point() and value.is_floating_point():
        wide = torch.float64 if base.dtype == torch.float64 else torch.float32
        return Piece("raw", entry.delta(base.detach(), wide))
    return Piece("value", value)
