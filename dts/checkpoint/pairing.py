"""Which tensor of the fine-tune comes from which tensor of the base.

Names are aligned by their prefixes (`dts.checkpoint.prefixes`), after the fine-tune got the names it will be written
with (`dts.checkpoint.names`).  What is left over then is explained or refused, all of it in one error.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from dts.checkpoint.checkpoint import Checkpoint
from dts.checkpoint.layers import pattern
from dts.checkpoint.mismatch import Mismatch
from dts.checkpoint.names import named_as_loaded
from dts.checkpoint.prefixes import align, swap_prefix
from dts.checkpoint.vocabulary import related, shared_rows
from dts.sites.diffusers import class_name


@dataclass(frozen=True)
class Pair:
    """One tensor of the fine-tune.

    base_name: None if only the fine-tune has it;  tied_to: the fine-tune's tensor it is the same as;
    added_rows: rows it has beyond the base's (an enlarged vocabulary).
    """

    name: str
    base_name: str | None = None
    tied_to: str | None = None
    added_rows: int = 0


@dataclass
class Pairing:
    """Every tensor of the fine-tune with its origin; ``base_only`` are the base's that the fine-tune lacks.

    finetuned: under the names it will be written with;  saved_as: its name -> the one in its file, where they differ.
    """

    base: Checkpoint
    finetuned: Checkpoint
    pairs: dict[str, Pair]
    base_prefix: str = ""
    finetuned_prefix: str = ""
    base_only: list[str] = field(default_factory=list)
    saved_as: dict[str, str] = field(default_factory=dict)

    def by_name(self, of_base: Mapping[str, str]) -> dict[str, str]:
        """What is known of the base's tensors, by the names of the fine-tune's that are paired with them."""
        return {p.name: of_base[p.base_name] for p in self.pairs.values() if p.base_name}

    @property
    def renamed(self) -> dict[str, str]:
        """Fine-tune's name -> base's, where the prefixes alone do not give the one from the other, both ways."""
        used = Counter(p.base_name for p in self.pairs.values())
        there, back = (self.base_prefix, self.finetuned_prefix), (self.finetuned_prefix, self.base_prefix)
        return {
            p.name: p.base_name
            for p in self.pairs.values()
            if p.base_name
            and (
                used[p.base_name] > 1
                or swap_prefix(p.base_name, *there) != p.name
                or swap_prefix(p.name, *back) != p.base_name
            )
        }


def pair(base: Checkpoint, finetuned: Checkpoint) -> Pairing:
    """Aligns two models; raises `Mismatch` listing everything that does not fit.

    Allowed: heads only the fine-tune has; a head outside the common body whose number of classes differs; more rows
    (an enlarged vocabulary); tensors of the base of which no layer of the fine-tune has any (a pooler, an LM head,
    old mask buffers), noted in ``base_only``; other floating-point dtypes.
    """
    try:
        finetuned, saved_as = named_as_loaded(base, finetuned)
    except ValueError as error:
        raise Mismatch(f"{finetuned.source} is not a fine-tune of {base.source}", [str(error)]) from error
    (base_prefix, finetuned_prefix), origin = align(base, finetuned)
    origin = {name: base.tied.get(base_name, base_name) for name, base_name in origin.items()}
    finetuned = _owned(finetuned, origin)
    result = Pairing(base, finetuned, {}, base_prefix, finetuned_prefix, saved_as=saved_as)
    wrong: list[str] = []
    known = {pattern(name) for name in origin}
    body = _body(finetuned, origin)
    for name in finetuned.names:
        if name in finetuned.tied:
            result.pairs[name] = Pair(name, origin.get(name), tied_to=finetuned.tied[name])
        elif name in origin:
            result.pairs[name] = _compare(base, finetuned, name, origin[name], name.startswith(body), wrong)
        elif pattern(name) in known:
            wrong.append(f"{name} {list(finetuned.shape(name))}: missing in the base, which has it in other layers")
        else:
            result.pairs[name] = _task_only(base, finetuned, name, origin)
    _with_vocabulary(result, origin, wrong)
    kept = {pattern(name) for name in finetuned.names}
    for base_name in base.names:
        if base_name in origin.values() or base_name in base.tied:
            continue
        if pattern(swap_prefix(base_name, base_prefix, finetuned_prefix)) in kept:
            wrong.append(f"{base_name} {list(base.shape(base_name))}: missing in the fine-tune")
        result.base_only.append(base_name)
    met = sum(_elements(finetuned, name) for name in origin)
    if 2 * met < sum(_elements(finetuned, name) for name in finetuned.names):
        only = [n for n in finetuned.names if n not in origin]
        wrong += [f"{name} {list(finetuned.shape(name))}: missing in the base" for name in only]
        wrong += [f"{name} {list(base.shape(name))}: missing in the fine-tune" for name in result.base_only]
    if wrong:
        raise Mismatch(
            f"{finetuned.source} is not a fine-tune of {base.source}",
            sorted(set(wrong)),
            _way(base, finetuned, result),
        )
    return result


def _owned(finetuned: Checkpoint, origin: dict[str, str]) -> Checkpoint:
    """A tensor of several names is that of one that the base has, whichever its file has first."""
    tied = dict(finetuned.tied)
    for owner in dict.fromkeys(finetuned.tied.values()):
        names = [name for name, other in finetuned.tied.items() if other == owner]
        known = next((name for name in names if name in origin), None)
        if owner not in origin and known is not None:
            del tied[known]
            tied |= {name: known for name in (owner, *names) if name != known}
    return replace(finetuned, tied=tied)


def _way(base: Checkpoint, finetuned: Checkpoint, pairing: Pairing) -> str:
    """How to go on with two models that do not fit as they are."""
    from dts.checkpoint.part import fits

    if part := fits(base, finetuned):
        return f"It fits the base's {part}, and nothing else of it: --only {part} (only={part!r})"
    if shared := shared_rows(base, finetuned, {n: p.base_name for n, p in pairing.pairs.items() if p.base_name}):
        return (
            f"The fine-tune's {next(iter(shared))} rows are the base's first ones: --vocabulary shared "
            '(vocabulary="shared") keeps the others as the base has them'
        )
    if any(".parametrizations." in name for name in {*base.names} ^ {*finetuned.names}):
        return (
            "One of them is parametrised (torch.nn.utils.parametrize: weight norm, spectral norm, ...), the other is "
            "not: save both alike, after remove_parametrizations(module, name)"
        )
    kinds = [_classes(model.config) or ["a model without a config"] for model in (base, finetuned)]
    return (
        f"The base is {kinds[0][0]}, the fine-tune {kinds[1][0]}: give the very base that it was trained from; its "
        "model card names it, or the _name_or_path in its config.json"
    )


def _classes(config: Mapping | None) -> list[str]:
    """The classes that a config names."""
    of_diffusers = class_name(config)
    return (config or {}).get("architectures") or ([of_diffusers] if of_diffusers else [])


def _compare(base, finetuned, name: str, base_name: str, in_body: bool, wrong: list[str]) -> Pair:
    ours, theirs = finetuned.shape(name), base.shape(base_name)
    dtype, base_dtype = finetuned.dtype(name), base.dtype(base_name)
    if dtype.is_floating_point != base_dtype.is_floating_point:
        wrong.append(f"{name}: dtype {_short(dtype)} in the fine-tune, {_short(base_dtype)} in the base")
    if ours == theirs:
        return Pair(name, base_name)
    same_rows = len(ours) == len(theirs) > 0 and ours[1:] == theirs[1:]
    if same_rows and not in_body and not related(base, finetuned, name, base_name):
        return Pair(name)  # another head of the same name
    if same_rows and len(ours) <= 2 and ours[0] > theirs[0] and related(base, finetuned, name, base_name):
        # a bias has no rows: it is stored whole
        return Pair(name, base_name, added_rows=ours[0] - theirs[0]) if len(ours) == 2 else Pair(name)
    wrong.append(f"{name}: shape {list(ours)} in the fine-tune, {list(theirs)} in the base")
    return Pair(name, base_name)


def _with_vocabulary(pairing: Pairing, origin: dict[str, str], wrong: list[str]) -> None:
    """A head that looks like another one, but grew as the vocabulary did, is the enlarged vocabulary's head.

    A vector that grew where no matrix did belongs to no layer.
    """
    base, finetuned = pairing.base, pairing.finetuned
    grown = {(base.shape(p.base_name)[0], p.added_rows) for p in pairing.pairs.values() if p.base_name and p.added_rows}
    for name, p in pairing.pairs.items():
        if p.base_name is None and name in origin and not p.tied_to:
            ours, theirs = finetuned.shape(name), base.shape(origin[name])
            as_words = bool(theirs) and (theirs[0], ours[0] - theirs[0]) in grown
            if len(ours) > 1 and as_words:
                pairing.pairs[name] = Pair(name, origin[name], added_rows=ours[0] - theirs[0])
            elif len(ours) == 1 and not as_words and related(base, finetuned, name, origin[name]):
                wrong.append(f"{name}: shape {list(ours)} in the fine-tune, {list(theirs)} in the base")


def _task_only(base, finetuned, name: str, origin: dict[str, str]) -> Pair:
    """A tensor that only the fine-tune has: new, or an output embedding that the base ties to its input embedding."""
    shape = finetuned.shape(name)
    if len(shape) == 2:
        for other, base_name in origin.items():
            if finetuned.shape(other) != shape or base_name in base.tied or ".weight" not in other:
                continue
            if re.search(r"\.\d+\.", other):
                continue  # a layer's matrix, not an embedding
            if torch.equal(finetuned.load(name), finetuned.load(other)):
                return Pair(name, tied_to=other)
            if base.config is not None and base.config.get("tie_word_embeddings", True):
                rows = shape[0] - base.shape(base_name)[0]
                if related(base, finetuned, name, base_name):
                    return Pair(name, base_name, added_rows=rows)
    return Pair(name)


def _body(checkpoint: Checkpoint, names) -> str:
    """The top-level module (with its dot) that holds most elements of these names, "" if there is no such one."""
    counts: dict[str, int] = {}
    for name in names:
        top = name.split(".")[0] + "."
        counts[top] = counts.get(top, 0) + _elements(checkpoint, name)
    top = max(counts, key=lambda top: counts[top], default="")
    return top if counts and 2 * counts[top] > sum(counts.values()) else ""


def _elements(checkpoint: Checkpoint, name: str) -> int:
    return torch.Size(checkpoint.shape(name)).numel()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
