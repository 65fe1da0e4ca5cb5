"""Transformers models: which class to build, and what else than weights of one a task changes (`dts.nn.library`)."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dts.adapter import Adapter
from dts.checkpoint.dequantised import gguf_architecture
from dts.checkpoint.hub import OPTIONS, no_revision, split_revision
from dts.files import expanded
from dts.integrations import diffusers
from dts.nn.base import Base
from dts.nn.dequantise import quantised_weights
from dts.sites.transformers import without_weights

HUB = ("revision", "subfolder", *OPTIONS)  # options that say which checkpoint is loaded, and from where


def load_base(path: str | Path, adapters: Sequence[Adapter], **options: Any) -> tuple[nn.Module, Base]:
    """The base model of a folder or hub id, in eval mode, ready for the adapters, and what it was made from.

    It is built with the fine-tunes' architecture where they bring tensors that the base lacks (heads).
    options: for transformers' ``from_pretrained``.  A sub-model of diffusers in a folder is built by that.
    Raises ValueError if an adapter was made for another base.
    """
    import transformers

    path, base, options = _which(path, options)
    base.check(adapters)
    if of_diffusers := diffusers.config_of(path, options):
        return diffusers.loaded(of_diffusers, path, options), base
    cls, config = class_and_config(path, adapters, options)
    options.pop("config", None)
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # a head that is missing in the base comes with each task
    try:
        model, found = cls.from_pretrained(path, config=config, output_loading_info=True, **options)
    finally:
        transformers.logging.set_verbosity(level)
    others = {key if isinstance(key, str) else key[0] for key in found.get("mismatched_keys", ())}
    base.missing = frozenset(found["missing_keys"]) | others
    return model.eval(), base


def empty_base(path: str | Path, adapters: Sequence[Adapter], **options: Any) -> tuple[nn.Module, Base]:
    """What `load_base` gives, without its memory: every tensor is on the meta device, none is read.

    adapters: also such without entries, `Adapter.of` their configs.
    """
    path, base, options = _which(path, options)
    base.check(adapters)
    if of_diffusers := diffusers.config_of(path, options):
        return diffusers.empty(of_diffusers, options), base
    cls, config = class_and_config(path, adapters, options)
    auto = getattr(cls, "from_config", None)  # which asks about code; a class itself would be given that as its own
    make = auto or cls._from_config
    kept = ("dtype", "attn_implementation", *(("trust_remote_code",) if auto else ()))
    given = {key: options[key] for key in kept if options.get(key) not in (None, "auto")}
    return without_weights(lambda: make(config, **given)).eval(), base


def _which(path: str | Path, options: dict[str, Any]) -> tuple[str | Path, Base, dict[str, Any]]:
    """The path without its revision, the base it is, and the options with it."""
    if (here := expanded(path)).exists():
        no_revision(path, options.get("revision"))
        path = here
    name, stated = split_revision(str(path))
    if stated:
        if options.get("revision", stated) != stated:
            raise ValueError(f"{path} and revision={options['revision']!r} say the revision twice: keep one")
        path, options = name, options | {"revision": stated}
    given = {key: value for key, value in options.items() if value is not None}
    which = {key: given[key] for key in (*HUB, "variant") if key in given}
    base = Base(path, options=which, gguf=given.get("gguf_file"), original=given.get("quantised_from"))
    return path, base, {key: value for key, value in options.items() if key != "quantised_from"}


def class_and_config(path: str | Path, adapters: Sequence[Adapter], options: Mapping[str, Any]) -> tuple[Any, Any]:
    """The class to build, that of the fine-tunes where they bring heads, and the base's config."""
    import transformers

    architecture = _architecture(adapters)
    where = {key: options[key] for key in (*HUB, "code_revision", "gguf_file") if options.get(key) is not None}
    trusted = bool(options.get("trust_remote_code"))
    config = options.get("config") or config_of(path, trusted, where)
    if options.get("gguf_file") and not config.architectures:
        config.architectures = gguf_architecture(config)
    architecture = architecture or (config.architectures or [None])[0]
    cls = _class_of(architecture, config, path, where) if trusted else None
    cls = cls or (getattr(transformers, architecture, None) if architecture else transformers.AutoModel)
    if cls is None:
        raise ValueError(_unknown(path, architecture, trusted))
    return cls, config


def config_of(path: str | Path, trusted: bool, where: dict[str, Any]) -> Any:
    """Without asking on the terminal whether code may run: it may where that was said."""
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(path, trust_remote_code=trusted, **where)
    except ValueError as error:
        if trusted or "trust_remote_code" not in str(error):
            raise
        raise ValueError(_unknown(path, None, trusted)) from error


def _unknown(path: str | Path, architecture: str | None, trusted: bool) -> str:
    what = f"the class {architecture}" if architecture else "a class"
    if not trusted:
        return (
            f"{path} is of {what} that is none of transformers', but of code beside its weights or on a hub: look at "
            "it and, if it may run, give trust_remote_code=True, or --trust-remote-code of a verb that has it"
        )
    return f"{path}: {what} is neither one of transformers' nor in the code that its config.json names (auto_map)"


def _class_of(architecture: str | None, config: Any, path: str | Path, where: dict[str, Any]) -> Any:
    """A class out of the code that the base's own config names; None where that has none of this name."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    auto_map = getattr(config, "auto_map", None) or {}
    named = {value.rpartition(".")[2]: (key, value) for key, value in auto_map.items() if isinstance(value, str)}
    if architecture not in named:
        return None
    key, reference = named[architecture]
    cls: Any = get_class_from_dynamic_module(reference, path, **where)
    cls.register_for_auto_class(key)  # so that save_pretrained() writes the code too
    return cls


def _architecture(adapters: Sequence[Adapter]) -> str | None:
    """The one class that all fine-tunes with heads of their own were saved from, None if there are none."""
    found: dict[str | None, list[str]] = {}
    for adapter in adapters:
        if adapter.brings_own:
            names = (adapter.model_config or {}).get("architectures") or [None]
            found.setdefault(names[0], []).append(adapter.name)
    found.pop(None, None)
    if len(found) > 1:
        raise ValueError(f"the adapters are for different architectures, load them into one model each: {found}")
    return next(iter(found), None)


def knows(model: nn.Module) -> bool:
    """Whether it is a model of transformers; that is not imported to know it."""
    loaded = sys.modules.get("transformers.modeling_utils")
    return loaded is not None and isinstance(model, loaded.PreTrainedModel)


def update_config(model: nn.Module, resized: Mapping[str, tuple[int, int]], given: Mapping[str, Any]) -> None:
    """Labels, vocabulary and ties of a model's config, and of its modules, after a task was written into its weights.

    resized: layer -> (rows before, now);  given: the fine-tune's own config, for what sizes do not tell.
    """
    config: Any = getattr(model, "config", None)
    if not _has_config(model):
        return
    _no_longer_quantised(model)
    labels, vocabulary = _sizes(model, config, resized, given)
    for name, before, now in (("num_labels", *labels), ("vocab_size", *vocabulary)):
        if before != now:
            _replace(model, name, before, now)
    _set_sizes(config, labels[1], vocabulary[1])
    _set_labels(config, given, other=bool(given) or labels[0] != labels[1])
    inputs, outputs = _embeddings(model)
    weights = [getattr(module, "weight", None) for module in (inputs, outputs)]
    untied = weights[0] is not weights[1] and not any(weight is None for weight in weights)
    if untied and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False


def _no_longer_quantised(model: nn.Module) -> None:
    """A model without quantised weights (dequantised, or read from GGUF) is saved, moved and cast as any other."""
    quantiser: Any = getattr(model, "hf_quantizer", None)
    if quantiser is None or quantised_weights(model):
        return
    quantiser.remove_quantization_config(model)
    for name in ("is_loaded_in_8bit", "is_loaded_in_4bit"):
        model.__dict__.pop(name, None)


def task_config(
    model: nn.Module, resized: Mapping[str, tuple[int, int]], given: Mapping[str, Any], unnamed: bool = False
) -> tuple[Any, set[str]]:
    """The config of a model while a task is set, and the fields that are the task's own.

    The model's own config, and no fields, where the task says nothing else, and of other libraries' models.
    resized, given: as for `update_config`;  unnamed: tasks that are mixed name their classes differently.
    """
    base: Any = getattr(model, "config", None)
    if not _has_config(model):
        return base, set()
    labels, vocabulary = _sizes(model, base, resized, given)
    view = sized_config(base, labels[1], vocabulary[1])
    _set_labels(view, given, other=bool(given) or unnamed or labels[0] != labels[1])
    if unnamed:
        view.id2label = {i: f"LABEL_{i}" for i in range(labels[1])}
        view.label2id = {label: i for i, label in view.id2label.items()}
    own = {key for key, value in vars(view).items() if value != vars(base).get(key, view)}
    if not own:
        return base, own
    return view, own | {"id2label", "label2id", "problem_type"}


def sized_config(config: Any, labels: int | None = None, vocabulary: int | None = None) -> Any:
    """A copy of a config with so many classes, and ids in its vocabulary."""
    made, text = copy.copy(config), config.get_text_config()
    if vocabulary is not None and text is not config and vocabulary != getattr(text, "vocab_size", vocabulary):
        for key, value in vars(config).items():
            if value is text:
                setattr(made, key, copy.copy(text))
    _set_sizes(made, labels, vocabulary)
    return made


def _has_config(model: nn.Module) -> bool:
    return hasattr(getattr(model, "config", None), "get_text_config") and hasattr(model, "get_input_embeddings")


def _embeddings(model: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """Those of the inputs and of the outputs."""
    inputs, outputs = (_found(getattr(model, f"get_{end}_embeddings")) for end in ("input", "output"))
    return inputs, outputs


def _sizes(
    model: nn.Module, config: Any, resized: Mapping[str, tuple[int, int]], given: Mapping[str, Any]
) -> tuple[tuple[int, int], tuple[Any, Any]]:
    """Classes before and now, and ids of the vocabulary before and now.

    A detector's head has one output more than there are classes, for no object: what counts is by how many it grew.
    """
    inputs, outputs = _embeddings(model)
    labels, vocabulary = config.num_labels, getattr(config.get_text_config(), "vocab_size", None)
    classes, ids, names = labels, vocabulary, len(given.get("id2label") or ())
    for name, (before, now) in resized.items():
        module = model.get_submodule(name)
        if before == vocabulary and (module is inputs or module is outputs):
            ids = now
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            if before == labels:
                classes = now
            elif names and now - before == names - labels:
                classes = names
    return (labels, classes), (vocabulary, ids)


def _set_sizes(config: Any, labels: int | None, vocabulary: int | None) -> None:
    text = config.get_text_config()
    if vocabulary is not None and vocabulary != getattr(text, "vocab_size", None):
        text.vocab_size = vocabulary
    if labels is not None and labels != config.num_labels:
        config.num_labels = labels


def _set_labels(config: Any, given: Mapping[str, Any], other: bool) -> None:
    """Names of the classes and the kind of problem; other: the task has a say in them."""
    names = given.get("id2label") or {}
    if names and len(names) == config.num_labels:
        config.id2label = {int(index): label for index, label in names.items()}
        config.label2id = given.get("label2id") or {label: index for index, label in config.id2label.items()}
    if other:
        config.problem_type = given.get("problem_type")


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
