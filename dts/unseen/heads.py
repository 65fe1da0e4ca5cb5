"""The head of a mixture of classifiers: its members' heads are of other classes and are not mixed.

zero-shot    a row a class: the unit vector of what the class's name gives where the head reads, in the mixed model
             itself, times a scale; so the class whose name is nearest by cosine has the largest logit.  A model that
             takes no text has the rows of a text encoder whose vectors are as wide as what its head reads
nearest      the head of the member with the largest weight, or of a task by its name: its classes, not new ones
given        tensors of one's own
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dts.adapter import Adapter, Entry
from dts.adapter.folder import complete
from dts.checkpoint import open_checkpoint
from dts.checkpoint.files import split_state
from dts.checkpoint.prefixes import swap_prefix
from dts.files import expanded
from dts.nn.model import DTSModel
from dts.sites import raw

from .encoders import Source, open_encoder
from .names import readable

ZERO_SHOT, NEAREST = "zero-shot", "nearest"
SCALE = 20.0  # of cosines before the softmax, as sentence encoders are trained with
Members = list[tuple[float, Adapter]]  # (gamma, adapter)
Embed = Callable[[Adapter, str, list[str]], Tensor]  # (mixture, layer, class names) -> [classes, width]


class NoHead(UserWarning):
    """A mixture of classifiers that is left without a head."""


def own_heads(adapter: Adapter) -> dict[str, Entry]:
    """The tensors that only this task has, by name."""
    return {
        name: entry for name, entry in adapter.entries.items() if entry.task_only and entry.kind in ("value", "exact")
    }


def class_layer(adapter: Adapter) -> str | None:
    """The module with a row a class; None of an adapter without a head of its own, or with one that is of no classes.

    Where nothing names the classes it is a classifier by the class that it was saved from, and has a number of its own.
    """
    heads, config = own_heads(adapter), adapter.model_config or {}
    matrices = [name for name, entry in heads.items() if name.endswith(".weight") and len(entry.shape) == 2]
    classes = len(adapter.class_names or config.get("id2label") or ())
    unnamed = not classes and str((config.get("architectures") or [""])[0]).endswith("Classification")
    fits = [name for name in matrices if unnamed or heads[name].shape[0] == classes]
    return fits[-1].removesuffix(".weight") if fits else None


def is_zero_shot(head: Any) -> bool:
    """Of what `with_head` takes, tensors among it, which have another way to be equal."""
    return isinstance(head, str) and head == ZERO_SHOT


def with_head(
    mixture: Adapter,
    members: Members,
    others: Mapping[str, Adapter | str | Path],
    head: Any,
    names: list[str] | None,
    embed: Embed,
) -> Adapter:
    """The mixture under a head.

    members: what it is made of;  others: all adapters, or their folders, whose head may be asked for by name;
    head: "zero-shot", "nearest", a task's name, {name: tensor} with the names of the members' heads, a tensor
    [classes, width], or a place of a checkpoint with such tensors;  names: of the new classes;  embed: see `Embed`.
    Raises ValueError where there is no such head, or it does not fit.
    """
    donor, layer = _donor(members)
    width = own_heads(donor)[f"{layer}.weight"].shape[1]
    zero_shot = is_zero_shot(head)
    if isinstance(head, str) and not zero_shot and (head == NEAREST or head in others):
        asked = max(members, key=lambda member: member[0])[1] if head == NEAREST else others[head]
        owner = asked if isinstance(asked, Adapter) else Adapter.load(asked)
        if class_layer(owner) != layer:
            raise ValueError(
                f"the task {owner.name!r} has no head {layer!r}: head= takes one that has, or {ZERO_SHOT!r}"
            )
        return _headed(mixture, members, owner, layer, _tensors(owner, layer), owner.class_names)
    if not zero_shot:
        given = _given(head, layer, width, others)
        if names is not None and len(names) != len(given["weight"]):
            raise ValueError(f"the head given has {len(given['weight'])} rows, and there are {len(names)} class names")
        return _headed(mixture, members, donor, layer, given, names)
    if not names:
        raise ValueError("a zero-shot head is made of class names: give class_names= (--classes)")
    if len(set(names)) < max(2, len(names)):
        raise ValueError(f"a zero-shot head needs two or more class names, each once, not {names}")
    first = _headed(mixture, members, donor, layer, {"weight": torch.zeros(len(names), width)}, names)
    vectors = embed(first, layer, [readable(name) for name in names]).float().cpu()
    if vectors.shape != (len(names), width):
        raise ValueError(
            f"the encoder's vectors are {vectors.shape[-1]} wide, and the head {layer!r} reads {width}: give the text "
            f"tower that belongs to the base as encoder=, or another head: {NEAREST!r}, a task's name, or tensors"
        )
    weight = SCALE * torch.nn.functional.normalize(vectors, dim=1) / vectors.norm(dim=1).mean().clamp(min=1e-12)
    return _headed(mixture, members, donor, layer, {"weight": weight}, names)


def _donor(members: Members) -> tuple[Adapter, str]:
    """The member of the largest weight that has a head, whose names and config the mixture takes, and its layer."""
    layers = {class_layer(adapter): adapter for _, adapter in sorted(members, key=lambda m: m[0])}
    layers.pop(None, None)
    if not layers:
        raise ValueError("no member has a head of its own: the mixture has the base's, leave out head=")
    if len(layers) > 1:
        raise ValueError(f"the members' heads are of different layers: {sorted(map(str, layers))}")
    layer, donor = next(iter(layers.items()))
    return donor, str(layer)


def _tensors(adapter: Adapter, layer: str) -> dict[str, Tensor]:
    found = {name.rpartition(".")[2]: e for name, e in own_heads(adapter).items() if name.rpartition(".")[0] == layer}
    return {leaf: entry.apply(None).float() for leaf, entry in found.items()}


def _given(head: Any, layer: str, width: int, others: Iterable[str]) -> dict[str, Tensor]:
    """weight [classes, width] and, if there is one, bias [classes]."""
    if isinstance(head, Tensor):
        found = {"weight": head}
    else:
        if isinstance(head, str | Path) and not expanded(split_state(str(head))[0]).exists():
            raise ValueError(
                f"there is no head {str(head)!r}: {ZERO_SHOT!r}, {NEAREST!r}, one of the tasks {', '.join(others)}, or "
                "a file or folder with the head's tensors"
            )
        source = open_checkpoint(head)
        found = {
            leaf: source.load(name)
            for leaf in ("weight", "bias")
            for name in (f"{layer}.{leaf}", leaf)
            if name in source.tensors
        }
        if "weight" not in found:
            raise ValueError(f"{source.source} has no {layer}.weight; it has {', '.join(source.names[:8])}")
    if found["weight"].dim() != 2 or found["weight"].shape[1] != width:
        raise ValueError(f"the head given is {list(found['weight'].shape)}, and {layer!r} is [classes, {width}]")
    return {leaf: value.detach().float().clone() for leaf, value in found.items()}


def _headed(
    mixture: Adapter,
    members: Members,
    donor: Adapter,
    layer: str,
    tensors: Mapping[str, Tensor],
    names: list[str] | None,
) -> Adapter:
    """The mixture's entries under the donor's names, its tensors before the head as the members' mean, and the head."""
    section = donor.config["finetuned"]
    back = {base_name: name for name, base_name in section["renamed"].items()}
    own = lambda name: back.get(name, swap_prefix(name, section["base_prefix"], section["prefix"]))  # noqa: E731
    entries = {own(name): replace(entry, name=own(name)) for name, entry in mixture.entries.items()}
    for name, entry in own_heads(donor).items():
        stem, _, leaf = name.rpartition(".")
        if stem != layer:
            value = _mean(name, entry, members)
        elif leaf in tensors:
            value = tensors[leaf]
        else:
            value = torch.zeros(len(tensors["weight"]), *entry.shape[1:])
        value = value.to(entry.dtype)
        entries[name] = Entry(name, None, tuple(value.shape), "value", entry.dtype, tensor=value, task_only=True)
    config = dict(mixture.config)
    config["tensors"] = {own(name): row for name, row in mixture.config["tensors"].items()}
    config["finetuned"] = mixture.config["finetuned"] | {
        key: section[key] for key in ("base_prefix", "prefix", "renamed", "base_only")
    }
    config["task"] = config["task"] | {"class_names": names}
    if donor.model_config is not None:
        labels = names or [f"LABEL_{i}" for i in range(len(tensors["weight"]))]
        config["model_config"] = donor.model_config | {
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
        }
    made = Adapter.of(config, entries, files=dict(donor.files))
    made.account = mixture.account
    complete(made)
    return made


def _mean(name: str, entry: Entry, members: Members) -> Tensor:
    """A tensor between the body and the classes: the members' weighted mean, of those that have it in this shape."""
    held = [(gamma, a.entries[name]) for gamma, a in members if name in a.entries]
    held = [(gamma, e) for gamma, e in held if e.shape == entry.shape and e.task_only]
    total = sum(gamma for gamma, _ in held)
    if abs(total) < 1e-6 or not entry.dtype.is_floating_point:
        return entry.apply(None)
    return sum((gamma / total * e.apply(None).float() for gamma, e in held), torch.zeros(()))


def embedder(
    model: Callable[[Adapter], tuple[DTSModel, str]], tokenizer: Any | None, encoder: Source = "default"
) -> Embed:
    """What a head reads of class names: in the model where that takes text, else an encoder's vectors.

    model: from the mixture to a model that has it loaded, and the task's name in it.
    """

    def embed(mixture: Adapter, layer: str, names: list[str]) -> Tensor:
        loaded, task = model(mixture)
        if getattr(loaded.model, "main_input_name", "input_ids") != "input_ids":
            return open_encoder(encoder)(names)
        if tokenizer is None:
            raise ValueError(
                "a zero-shot head is made of class names, and there is no tokenizer in the base's folder to read them: "
                f"give tokenizer=, or another head: {NEAREST!r}, a task's name, or tensors"
            )
        return read_by_head(loaded, task, layer, names, tokenizer)

    return embed


def read_by_head(model: DTSModel, task: str, layer: str, texts: list[str], tokenizer: Any) -> Tensor:
    """float32 [texts, width]: what the head's layer reads of each text; of the last token where it reads all, as
    classifiers made of language models answer by that.  Raises ValueError for models that classify each token."""
    kind = model.model.__class__.__name__
    if not kind.endswith("SequenceClassification"):
        raise ValueError(
            f"a zero-shot head is of models that classify texts, and {kind} is none: give {NEAREST!r}, a task's name, "
            "or tensors as the head"
        )
    module = model.model.get_submodule(layer)
    device, rows = raw(module, "weight").device, list[Tensor]()

    def keep(_, inputs: tuple[Tensor, ...]) -> None:
        rows.append(inputs[0][0].detach().float())

    handle = module.register_forward_pre_hook(keep)
    try:
        with torch.inference_mode():
            for text in texts:  # one by one: no padding to leave out
                inputs = tokenizer(text, return_tensors="pt", truncation=True)
                model(**{key: value.to(device) for key, value in inputs.items()}, tasks=task)
    finally:
        handle.remove()
    if len(rows) != len(texts):
        raise ValueError(f"the layer {layer!r} ran {len(rows)} times for {len(texts)} class names")
    return torch.stack([row if row.dim() == 1 else row.reshape(-1, row.shape[-1])[-1] for row in rows]).clone()
