"""One part of a model alone: a fine-tune of the language model of a vision-language base, and the other way round."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from dts.checkpoint.checkpoint import Checkpoint
from dts.checkpoint.errors import CheckpointError, NotRead, some
from dts.checkpoint.layers import pattern
from dts.checkpoint.layouts import Places, in_layout_of
from dts.checkpoint.vocabulary import resized
from dts.checkpoint.wrappers import unwrapped
from dts.warn import warn

HEAD = "lm_head."  # the output embedding, which vision-language models have beside their language model


def only_part(base: Checkpoint, finetuned: Checkpoint, part: str) -> Checkpoint:
    """The fine-tune as one of the whole base that changes this part of it and nothing else.

    part: a module's name, such as "language_model", of the base; all else is the base's then, tokenizer and processor
    included.  Where only the fine-tune has such a part, it is that part of it, as a fine-tune of the base, which is a
    language model alone.  An output embedding belongs to the part that has the input embedding.  Raises
    CheckpointError where neither has the part or one has several of its name, where what it holds does not fit the
    other, and where the fine-tune lacks some of its layers.
    """
    finetuned, _ = unwrapped(finetuned, base)
    there, here = Places.of(base, finetuned.config), Places.of(finetuned, base.config)
    ours = _the_prefix(base, there, part)
    if ours is None:
        theirs = _the_prefix(finetuned, here, part)
        if theirs is None:
            raise CheckpointError(
                f"neither {base.source} nor {finetuned.source} has a part {part!r}; the base has "
                f"{some(parts_of(there.names))}, the fine-tune {some(parts_of(here.names))}"
            )
        return _taken_out(base, there, finetuned, here, theirs)
    if prefixes_of(here.names, part):
        return _of_both(base, there, finetuned, ours, part)
    names, missing = _fitted(base, there, here.body, finetuned.names, ours)
    if missing:
        raise CheckpointError(
            f"{finetuned.source} is no fine-tune of the part {part!r} of {base.source}, which has no "
            f"{some(missing, 3)}; its parts are {some(parts_of(there.names))}"
        )
    return _put_in(base, there, _named(finetuned, names, base), ours)


def fits(base: Checkpoint, finetuned: Checkpoint) -> str | None:
    """The part of the base that has a place for every tensor of the fine-tune, if one has: what `only_part` takes."""
    there, here = Places.of(base, finetuned.config), Places.of(finetuned, base.config)
    for part in parts_of(there.names):
        prefixes = prefixes_of(there.names, part)
        if len(prefixes) == 1 and not _fitted(base, there, here.body, finetuned.names, prefixes[0])[1]:
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


def prefixes_of(names: Iterable[str], part: str) -> list[str]:
    """What the names of the tensors of the modules of a name start with, its own name (and dot) included.

    One that is the whole name of a module is that module, whatever else ends in it.
    """
    found = dict[str, None]()
    for name in names:
        before, there, _ = f".{name}".partition(f".{part}.")
        if there:
            found[f"{before}{there}"[1:]] = None
    return [f"{part}."] if f"{part}." in found else list(found)


def _the_prefix(checkpoint: Checkpoint, places: Places, part: str) -> str | None:
    found = prefixes_of(places.names, part)
    if len(found) > 1:
        raise CheckpointError(
            f"{checkpoint.source} has {len(found)} parts {part!r}: give the whole name of one, "
            f"{some([prefix[:-1] for prefix in found], 3)}"
        )
    return found[0] if found else None


def _holds(checkpoint: Checkpoint, places: Places, prefix: str) -> Callable[[str], bool]:
    """Is a tensor of such a place one of the part?  Its own are, and the head, where it has the tokens' embedding: of a
    class that is not known, a matrix of the head's shape."""
    own = places.embedding.startswith(prefix)
    if not places.embedding:
        shapes = {places.name(name): checkpoint.shape(name) for name in checkpoint.names}
        heads = {shape for place, shape in shapes.items() if place.startswith(HEAD) and len(shape) == 2}
        own = any(shape in heads for place, shape in shapes.items() if place.startswith(prefix))
    return lambda place: place.startswith((prefix, HEAD) if own else prefix)


def _fitted(
    base: Checkpoint, there: Places, body: str, names: Iterable[str], prefix: str
) -> tuple[dict[str, str], list[str]]:
    """({name: name below the prefix}, by whichever way puts most tensors where the part has a place for them, the
    names for which it has none)."""
    ways = dict.fromkeys((body, "", "model."))
    made = [{n: prefix + n[len(way) :] if n.startswith(way) else n for n in names} for way in ways]
    holds = _holds(base, there, prefix)
    lost = [[n for n, now in named.items() if not (there.has(now) and holds(there.name(now)))] for named in made]
    best = min(range(len(made)), key=lambda i: len(lost[i]))
    return made[best], lost[best]


def _named(finetuned: Checkpoint, names: dict[str, str], base: Checkpoint) -> Checkpoint:
    """These tensors of the fine-tune under the base's names."""
    tensors = {now: finetuned.tensors[name] for name, now in names.items()}
    tied = {names[n]: names[other] for n, other in finetuned.tied.items() if n in names and other in names}
    same = in_layout_of(base, replace(finetuned, tensors=tensors, tied=tied, config=base.config))[0]
    return replace(same, config=base.config and _config(base, base.config, same))


def _config(base: Checkpoint, config: dict, part: Checkpoint) -> dict:
    """The base's config with the sizes of the part's vocabulary, and untied where it has a head of its own."""
    rows, untied = {}, False
    for name, tensor in part.tensors.items():
        if len(tensor.shape) != 2:
            continue
        if name in base.tensors and tensor.shape[0] != base.shape(name)[0]:
            rows[base.shape(name)[0]] = tensor.shape[0]
        if (
            f".{name}".endswith(f".{HEAD}weight")
            and name not in part.tied
            and (name in base.tied or name not in base.tensors)
        ):
            untied = not any(
                other.shape == tensor.shape and key != name and torch.equal(other.load(), tensor.load())
                for key, other in part.tensors.items()
            )
    return resized(config, rows) | (_untied(config) if untied else {})


def _untied(config: dict) -> dict:
    """What says so, in the config and those of its parts that say otherwise."""
    parts = {key: value | _untied(value) for key, value in config.items() if isinstance(value, dict)}
    parts = {key: value for key, value in parts.items() if "vocab_size" in value}
    return parts | {"tie_word_embeddings": False}


def _put_in(base: Checkpoint, there: Places, part: Checkpoint, prefix: str) -> Checkpoint:
    """The base with the part's tensors in the place of its own."""
    own = [name for name in base.names if there.name(name).startswith(prefix) and name not in base.tied]
    lacking, known = [name for name in own if name not in part.tensors], {pattern(name) for name in part.tensors}
    if layers := [name for name in lacking if pattern(name) in known]:
        raise CheckpointError(
            f"{part.source} has fewer layers than the part {prefix[:-1]!r} of {base.source}: no {some(layers, 3)}"
        )
    if lacking:
        warn(f"{part.source} has no {some(lacking, 3)}: of {prefix[:-1]!r} these stay the base's", NotRead)
    tied = {name: other for name, other in base.tied.items() if name not in part.tensors} | part.tied
    return replace(
        part, tensors=base.tensors | part.tensors, tied=tied, folder=base.folder, parts=base.parts, files=base.files
    )


def _of_both(base: Checkpoint, there: Places, finetuned: Checkpoint, prefix: str, part: str) -> Checkpoint:
    same = in_layout_of(base, finetuned)[0]
    holds = _holds(base, there, prefix)
    inside = {name: name for name in same.names if holds(there.name(name))}
    if not any(there.name(name).startswith(prefix) for name in inside):  # the part of a body that one has in a wrapper
        here = Places.of(same, base.config)
        theirs = _the_prefix(same, here, part) or prefix
        places = {name: here.name(name) for name in same.names}
        inside |= {n: prefix + place[len(theirs) :] for n, place in places.items() if place.startswith(theirs)}
    if left := [name for name in same.names if name not in inside]:
        warn(f"{finetuned.source}: {len(left)} tensors outside of {prefix} are not compared: {some(left, 3)}", NotRead)
    return _put_in(base, there, _named(same, inside, base), prefix)


def _taken_out(base: Checkpoint, there: Places, finetuned: Checkpoint, here: Places, prefix: str) -> Checkpoint:
    holds = _holds(finetuned, here, prefix)
    inside = {name: here.name(name) for name in finetuned.names if holds(here.name(name))}
    short = {n: place[len(prefix) :] if place.startswith(prefix) else place for n, place in inside.items()}
    ways = [{n: way + s if inside[n].startswith(prefix) else s for n, s in short.items()} for way in (there.body, "")]
    names = max(ways, key=lambda named: sum(map(there.has, named.values())))
    if missing := [name for name, now in names.items() if not there.has(now)]:
        raise CheckpointError(f"{base.source} has no {some(missing, 3)}, which {finetuned.source} has in {prefix}")
    if left := [name for name in finetuned.names if name not in inside]:
        warn(f"{finetuned.source}: {len(left)} tensors outside of {prefix} are left out: {some(left, 3)}", NotRead)
    return _named(replace(finetuned, folder=base.folder), names, base)
