"""What a model's early layers are given, by running it no further than that."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dts.sites import local


class _Enough(Exception):
    """All inputs that were asked for have been seen."""


@torch.inference_mode()
def layer_inputs(model: nn.Module, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first input of each of these modules when ``model(**batch)`` runs on the base weights.

    The pass ends at the last of them. model: the base, or a ``DTSModel``, whose tasks are off meanwhile.
    Raises RuntimeError naming the modules that never ran.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = args[0] if args else next(iter(kwargs.values()))
            seen.setdefault(name, local(value))  # of a model on several processes, what it is given here
            if len(seen) == len(modules):
                raise _Enough

        return hook

    handles = [module.register_forward_pre_hook(keep(name), with_kwargs=True) for name, module in modules.items()]
    _until_enough(model, batch, handles)
    if missing := sorted(set(modules) - set(seen)):
        raise RuntimeError(f"these layers did not run: {', '.join(missing)}; the pass cannot tell tasks apart by them")
    return seen


@torch.inference_mode()
def first_to_run(model: nn.Module, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> str:
    """The name of that of these modules that runs first when ``model(**batch)`` runs; the pass ends there.

    Raises RuntimeError where none of them runs.
    """
    first: list[str] = []

    def stop(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            first.append(name)
            raise _Enough

        return hook

    _until_enough(model, batch, [module.register_forward_pre_hook(stop(name)) for name, module in modules.items()])
    if not first:
        raise RuntimeError(f"none of these layers ran: {', '.join(modules)}")
    return first[0]


def _until_enough(model: nn.Module, batch: Mapping[str, Tensor], handles: list[RemovableHandle]) -> None:
    """Runs the base weights until a hook raises `_Enough`, and takes the hooks out."""
    base = getattr(model, "disable_tasks", nullcontext)
    try:
        with base():
            model(**batch)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()


def fed_first(model: nn.Module, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> list[str]:
    """Those of these modules that are given the very tensor that the first of them to run is given.

    Their inputs cost nothing beyond the pass to that first one: in a transformer the queries, keys and values of the
    first block, behind the embeddings alone.
    """
    inputs = layer_inputs(model, modules, batch)  # in the order they ran
    first = next(iter(inputs.values()))
    return [name for name, value in inputs.items() if value is first]
