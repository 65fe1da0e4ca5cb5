"""One part of a model alone: a fine-tune of the language model of a vision-language base, and the other way round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dts.checkpoint.checkpoint import Checkpoint
from dts.checkpoint.errors import CheckpointError, NotRead, some
from dts.checkpoint.layouts import Places, in_layout_of
from dts.checkpoint.vocabulary import resized
from dts.checkpoint.wrappers import unwrapped
from dts.warn import warn

HEAD = "lm_head."  # the output embedding, which vision-language models have beside their language model


def only_part(base: Checkpoint, finetuned: Checkpoint, part: str) -> Checkpoint:
    """The fine-tune as one of the whole base that changes this part of it and nothing else.

    part: a module's name, such as "language_model", of the base; all else is the base's then, tokenizer and processor
    included.  Where only the fine-tune has such a part, it is that part of it, as a fine-tune of the base, which is a
    language model alone.  Raises CheckpointError where neither has it, or where what it holds does not fit the other.
    """
    finetuned, _ = unwrapped(finetuned, base)
    there, here = Places.of(base, finetuned.config), Places.of(finetuned, base.config)
    ours = prefix_of(there.names, part)
    if ours is None:
        theirs = prefix_of(here.names, part)
        if theirs is None:
            raise CheckpointError(
                f"neither {base.source} nor {finetuned.source} has a part {part!r}; the base has "
                f"{some(parts_of(there.names))}, the fine-tune {some(parts_of(here.names))}"
            )
        return _taken_out(base, there, finetuned, here, theirs)
    if prefix_of(here.names, part) is not None:
        return _of_both(base, there, finetuned, here, ours)
    names = _fitted(there, here.body, finetuned.names, ours)
    if missing := [name for name, now in names.items() if not there.has(now)]:
        raise CheckpointError(
            f"{finetuned.source} is no fine-tune of the part {part!r} of {base.source}, which has no "
            f"{some(missing, 3)}; its parts are {some(parts_of(there.names))}"
        )
    return _put_in(base, _named(finetuned, names, base))


def fits(base: Checkpoint, finetuned: Checkpoint) -> str | None:
    """The part of the base that has a place for every tensor of the fine-tune, if one has: what `only_part` takes."""
    there, here = Places.of(base, finetuned.config), Places.of(finetuned, base.config)
    for part in parts_of(there.names):
        names = _fitted(there, here.body, finetuned.names, prefix_of(there.names, part) or "")
        if all(map(there.has, names.values())):
            return part
    return None


def lost_note(base: Checkpoint, finetuned: Checkpoint, base_only: Iterable[str]) -> str | None:
    """What to know of a fine-tune that lacks parts of a base of several; None where it lacks none."""
    lost = [part for part in parts_of(base_only) if part not in parts_of(finetuned.names)]
    several = "text_config" in (base.config or ()) and "text_config" not in (finetuned.config or base.config or ())
    part = fits(base, finetuned) if several and lost else None
    return part and (
        f"{finetuned.source} has no {', '.join(lost)}, nor have models that are made of it and the base: to keep what "
        f"the base has, --only {part} (only={part!r})"
    )


def parts_of(names: Iterable[str]) -> list[str]:
    """The modules that could be meant: those outermost, and one further in where a model wraps all its parts."""
    tops = [name.split(".") for name in names]
    found = {parts[0]: None for parts in tops if len(parts) > 2}
    found |= {parts[1]: None for parts in tops if len(parts) > 3 and parts[0] in ("model", "transformer")}
    return [part for part in found if part != "model" and not part.isdigit()]


def prefix_of(names: Iterable[str], part: str) -> str | None:
    """What the names of the tensors of a module start with, its own name (and dot) included."""
    for name in names:
        before, found, _ = f".{name}".partition(f".{part}.")
        if found:
            return f"{before}{found}"[1:]
    return None


def _fitted(there: Places, body: str, names: Iterable[str], prefix: str) -> dict[str, str]:
    """{name: name below the prefix}, by whichever way puts most tensors where the model has a place for them."""
    ways = dict.fromkeys((body, "", "model."))
    made = [{n: prefix + n[len(way) :] if n.startswith(way) else n for n in names} for way in ways]
    return max(made, key=lambda named: sum(map(there.has, named.values())))


def _named(finetuned: Checkpoint, names: dict[str, str], base: Checkpoint) -> Checkpoint:
    """These tensors of the fine-tune under the base's names."""
    tensors = {now: finetuned.tensors[name] for name, now in names.items()}
    tied = {names[n]: names[other] for n, other in finetuned.tied.items() if n in names and other in names}
    return in_layout_of(base, replace(finetuned, tensors=tensors, tied=tied, config=base.config))[0]


def _put_in(base: Checkpoint, part: Checkpoint) -> Checkpoint:
    """The base with the part's tensors in the place of its own."""
    tied = {name: other for name, other in base.tied.items() if name not in part.tensors} | part.tied
    rows = {
        base.shape(name)[0]: tensor.shape[0]
        for name, tensor in part.tensors.items()
        if name in base.tensors and len(tensor.shape) == 2 and tensor.shape[0] != base.shape(name)[0]
    }
    return replace(
        part,
        tensors=base.tensors | part.tensors,
        tied=tied,
        config=base.config and resized(base.config, rows),
        folder=base.folder,
        parts=base.parts,
        files=base.files,
    )


def _of_both(base: Checkpoint, there: Places, finetuned: Checkpoint, here: Places, prefix: str) -> Checkpoint:
    same = in_layout_of(base, finetuned)[0]
    inside = [n for n in same.names if there.name(n).startswith((prefix, HEAD))]
    if left := [name for name in same.names if name not in inside]:
        warn(f"{finetuned.source}: {len(left)} tensors outside of {prefix} are not compared: {some(left, 3)}", NotRead)
    return _put_in(base, _named(same, {name: name for name in inside}, base))


def _taken_out(base: Checkpoint, there: Places, finetuned: Checkpoint, here: Places, prefix: str) -> Checkpoint:
    inside = {name: here.name(name) for name in finetuned.names if here.name(name).startswith((prefix, HEAD))}
    short = {n: place[len(prefix) :] if place.startswith(prefix) else place for n, place in inside.items()}
    ways = [{n: way + s if inside[n].startswith(prefix) else s for n, s in short.items()} for way in (there.body, "")]
    names = max(ways, key=lambda named: sum(map(there.has, named.values())))
    if missing := [name for name, now in names.items() if not there.has(now)]:
        raise CheckpointError(f"{base.source} has no {some(missing, 3)}, which {finetuned.source} has in {prefix}")
    if left := [name for name in finetuned.names if name not in inside]:
        warn(f"{finetuned.source}: {len(left)} tensors outside of {prefix} are left out: {some(left, 3)}", NotRead)
    return _named(replace(finetuned, folder=base.folder), names, base)
