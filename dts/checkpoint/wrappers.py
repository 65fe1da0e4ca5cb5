"""The names a fine-tune's tensors have without what wrapped the model while it was trained.

``torch.compile``, DDP, FSDP, activation checkpointing, DeepSpeed and PEFT put a module around the model, or around its
parts, and their names into its state dict.  They are no part of the model: what is written has the names that the
fine-tune's own class loads, or the base's.
"""

from collections.abc import Iterable
from dataclasses import replace

from dts.checkpoint.checkpoint import Checkpoint

ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module")
LEADING: tuple[tuple[str, ...], ...] = (("module",), ("base_model", "model"))  # these may also be a model's own names


def unwrapped(finetuned: Checkpoint, base: Checkpoint) -> tuple[Checkpoint, dict[str, str]]:
    """The same model under names without wrappers, and {name now: name in the file} of those that changed.

    A leading ``module.`` or ``base_model.model.`` stays where the base's names have it too.
    Raises ValueError where two tensors would have one name.
    """
    leading = [parts for parts in LEADING if not _starts(base.names, parts)]
    known = set(base.names)
    names = {}
    for name in finetuned.names:
        inner = finetuned.part_of(name)[1]  # of a model in several modules, each of which may be wrapped
        names[name] = name[: len(name) - len(inner)] + _stripped(inner, leading, known)
    return renamed(finetuned, names)


def renamed(checkpoint: Checkpoint, names: dict[str, str]) -> tuple[Checkpoint, dict[str, str]]:
    """The checkpoint under other names {old: new}, and {new: old} of those that differ."""
    taken: dict[str, str] = {}
    twice = []
    for old in checkpoint.names:
        if taken.setdefault(names[old], old) != old:
            twice.append(f"{taken[names[old]]} and {old}")
    if twice:
        raise ValueError(
            f"{checkpoint.source} has tensors twice, once inside a wrapper: {', '.join(twice)}; "
            "save the unwrapped model alone"
        )
    changed = {new: old for new, old in taken.items() if new != old}
    if not changed:
        return checkpoint, {}
    tied = {names[name]: names[other] for name, other in checkpoint.tied.items()}
    tensors = {names[name]: tensor for name, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors, tied=tied), changed


def _starts(names: Iterable[str], parts: tuple[str, ...]) -> bool:
    prefix = ".".join(parts) + "."
    return any(name.startswith(prefix) for name in names)


def _stripped(name: str, leading: list[tuple[str, ...]], known: set[str]) -> str:
    parts = [part for part in name.split(".") if part not in ANYWHERE]
    while found := next((w for w in leading if tuple(parts[: len(w)]) == w and len(parts) > len(w)), None):
        del parts[: len(found)]
    if "module" in parts and ".".join(parts) not in known:  # around a part of the model
        without = ".".join(part for part in parts if part != "module")
        if without in known:
            return without
    return ".".join(parts)
