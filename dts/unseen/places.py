"""Where in a model the layers are that a router looks at."""

from __future__ import annotations

from torch import nn

from dts.sites.transformers import renamer


def block_of(name: str) -> int | None:
    """The first number among a name's parts: the block it is in."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def base_of(model: nn.Module) -> nn.Module:
    """The model that a ``DTSModel`` runs; any other as it is."""
    return getattr(model, "model", model) if hasattr(model, "disable_tasks") else model


def modules_named(model: nn.Module, names: list[str]) -> dict[str, nn.Module]:
    """The modules whose weight a checkpoint calls so, under the names the model's loader gives them, with any prefix
    more or less; heads and others are left out."""
    rename, found = renamer(model), {}
    weights = {f"{name}.weight": module for name, module in model.named_modules() if _has_weight(module)}
    for name in names:
        own = rename(name).name
        module = weights.get(own) or next(
            (m for known, m in weights.items() if known.endswith(f".{own}") or own.endswith(f".{known}")), None
        )
        if module is not None:
            found[name] = module
    return found


def _has_weight(module: nn.Module) -> bool:
    """Without reading it where it is a parameter: that of a head that the base lacks is refused."""
    return "weight" in module._parameters or hasattr(module, "weight")
