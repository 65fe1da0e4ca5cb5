"""Transformers models: which class to build, and what else than weights of one a task changes (`dts.nn.library`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dts.adapter import Adapter
from dts.checkpoint.hub import OPTIONS, split_revision
from dts.nn.base import Base

HUB = ("revision", "subfolder", *OPTIONS)  # options that say which checkpoint is loaded, and from where


def load_base(path: str | Path, adapters: Sequence[Adapter], **options: Any) -> tuple[nn.Module, Base]:
    """The base model of a folder or hub id, in eval mode, ready for the adapters, and what it was made from.

    It is built with the fine-tunes' architecture where they bring tensors that the base lacks (heads).
    options: for transformers' ``from_pretrained``.  Raises ValueError if an adapter was made for another base.
    """
    import transformers

    name, stated = split_revision(str(path))
    if stated:
        if options.get("revision", stated) != stated:
            raise ValueError(f"{path} and revision={options['revision']!r} say the revision twice: keep one")
        path, options["revision"] = name, stated
    given = {key: value for key, value in options.items() if value is not None}
    base = Base(path, options={key: given[key] for key in (*HUB, "variant") if key in given})
    base.check(adapters)
    architecture = _architecture(adapters)
    config = options.pop("config", None) or transformers.AutoConfig.from_pretrained(
        path, **{key: given[key] for key in (*HUB, "trust_remote_code", "code_revision") if key in given}
    )
    architecture = architecture or (config.architectures or [None])[0]
    cls = getattr(transformers, architecture) if architecture else transformers.AutoModel
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # a head that is missing in the base comes with each task
    try:
        model, found = cls.from_pretrained(path, config=config, output_loading_info=True, **options)
    finally:
        transformers.logging.set_verbosity(level)
    others = {key if isinstance(key, str) else key[0] for key in found.get("mismatched_keys", ())}
    base.missing = frozenset(found["missing_keys"]) | others
    return model.eval(), base


def _architecture(adapters: Sequence[Adapter]) -> str | None:
    """The one class that all fine-tunes with heads of their own were saved from, None if there are none."""
    found: dict[str | None, list[str]] = {}
    for adapter in adapters:
        if any(entry.task_only for entry in adapter.entries.values()):
            names = (adapter.model_config or {}).get("architectures") or [None]
            found.setdefault(names[0], []).append(adapter.name)
    found.pop(None, None)
    if len(found) > 1:
        raise ValueError(f"the adapters are for different architectures, load them into one model each: {found}")
    return next(iter(found), None)


def update_config(model: nn.Module, resized: Mapping[str, tuple[int, int]], given: Mapping[str, Any]) -> None:
    """Labels, vocabulary and ties of a model's config, and of its modules, after a task was written into its weights.

    resized: layer -> (rows before, now);  given: the fine-tune's own config, for what sizes do not tell.
    """
    config: Any = getattr(model, "config", None)
    if not (hasattr(config, "get_text_config") and hasattr(model, "get_input_embeddings")):
        return
    text = config.get_text_config()
    inputs, outputs = (_found(getattr(model, f"get_{end}_embeddings")) for end in ("input", "output"))
    labels, vocabulary = config.num_labels, getattr(text, "vocab_size", None)
    for name, (before, now) in resized.items():
        module = model.get_submodule(name)
        if before == vocabulary and (module is inputs or module is outputs):
            text.vocab_size = now
            _replace(model, "vocab_size", before, now)
        elif before == labels and isinstance(module, nn.Linear):
            config.num_labels = now
            _replace(model, "num_labels", before, now)
    names = given.get("id2label") or {}
    if names and len(names) == config.num_labels:
        config.id2label = {int(index): label for index, label in names.items()}
        config.label2id = given.get("label2id") or {label: index for index, label in config.id2label.items()}
    if given.get("problem_type"):
        config.problem_type = given["problem_type"]
    weights = [getattr(module, "weight", None) for module in (inputs, outputs)]
    untied = weights[0] is not weights[1] and not any(weight is None for weight in weights)
    if untied and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False


def _found(getter: Callable[[], nn.Module | None]) -> nn.Module | None:
    """Embeddings of a model; those that have none may raise."""
    try:
        return getter()
    except (NotImplementedError, AttributeError):
        return None


def _replace(model: nn.Module, attribute: str, before: int, now: int) -> None:
    """Models keep copies of what is in their config."""
    for module in model.modules():
        if vars(module).get(attribute) == before:
            setattr(module, attribute, now)
