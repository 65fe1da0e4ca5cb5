"""A task never seen, in a model that has the seen ones loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dts.adapter import Adapter
from dts.checkpoint import open_checkpoint
from dts.nn.model import DTSModel

from .encoders import Source, tokenizer_in
from .heads import ZERO_SHOT, class_layer, embedder, with_head
from .mix import mix
from .weights import task_weights


def add_task(
    model: DTSModel,
    name: str,
    class_names: list[str],
    *,
    weights: Mapping[str, float] | None = None,
    head: Any = ZERO_SHOT,
    tokenizer: Any = None,
    encoder: Source = "default",
    base: Any = None,
) -> Mapping[str, float]:
    """Loads a mixture of a model's tasks as a task of its own, with a head for its classes; returns the weights.

    class_names: of the new task;  weights: {task: gamma}, by default `task_weights` of the class names;  head, encoder,
    tokenizer: as for `mix`, by default the tokenizer in the base's folder;  base: anything ``open_checkpoint`` takes,
    by default that of `DTSModel.from_pretrained`.
    The mixture takes the memory of its parts.  Raises ValueError where no task is loaded, or one without an adapter,
    and what `mix` raises; the model is then as before.
    """
    adapters = {task: loaded.adapter for task, loaded in model._loaded.items() if task != name}
    bare = [task for task, adapter in adapters.items() if adapter is None]
    if bare or not adapters:
        raise ValueError(f"tasks that were loaded from entries are not mixed: {bare}" if bare else "no task is loaded")
    members = {task: adapter for task, adapter in adapters.items() if adapter is not None}
    if weights is None:
        weights = task_weights(class_names, members, encoder=encoder)
    if base is None and model._base is not None:
        base = open_checkpoint(model._base.path, **model._base.options)
    elif base is not None:
        base = open_checkpoint(base)
    mixture = mix(members, weights, name=name, class_names=class_names, base=base)
    used = [(float(gamma), members[task]) for task, gamma in weights.items() if gamma]
    if head is not None and any(class_layer(adapter) for _, adapter in used):
        if tokenizer is None and base is not None and base.folder is not None:
            tokenizer = tokenizer_in(base.folder)
        mixture = with_head(mixture, used, members, head, class_names, _embedder(model, name, tokenizer, encoder))
    model.load_task(name, mixture)
    return weights


def _embedder(model: DTSModel, name: str, tokenizer: Any, encoder: Source):
    """Class names through the model itself, under the mixture with a head of zeros, which is taken out again."""
    passing = f"{name} (its head is being made)"

    def loaded(mixture: Adapter) -> tuple[DTSModel, str]:
        model.load_task(passing, mixture)
        return model, passing

    embed = embedder(loaded, tokenizer, encoder)

    def embedded(mixture: Adapter, layer: str, names: list[str]):
        try:
            return embed(mixture, layer, names)
        finally:
            if passing in model.tasks:
                model.delete_task(passing)

    return embedded
