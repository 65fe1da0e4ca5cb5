"""What a model looks like while a task is set: its config's labels, and the modules that read them.

A transformers model computes ``labels=``'s loss from its own config, of which there is one.  A call of another task
runs on a twin of the top module: the same children, parameters and hooks, another config.  Threads do not meet, and
what a loss writes into the config (its kind of problem) stays with its call.
"""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dts.nn.layers import Layer
from dts.nn.library import library
from dts.nn.loaded import LoadedTasks
from dts.nn.routing import Mixture

LABELS = ("id2label", "label2id", "problem_type")  # of a config: what a task says of its classes
_NONE = object()


class Views:
    """The configs of a model's tasks, made when first asked for."""

    def __init__(self) -> None:
        self._made: dict[frozenset[int], _View] = {}

    def clear(self) -> None:
        """Other tasks are loaded.  What was written into a config stays the model's."""
        for view in self._made.values():
            view.sync()
        self._made.clear()

    def of(self, model: nn.Module, layers: Mapping[str, Layer], tasks: LoadedTasks, mixture: Mixture) -> Any:
        """The config of one mixture: the model's own where the tasks say nothing else, None if it has none.

        Tasks of a mixture with other names for their classes than each other's have LABEL_0, LABEL_1, ...
        """
        key = frozenset(mixture)
        view = self._made.get(key)
        if view is None or view.base is not getattr(model, "config", None):  # or it was given another config
            made = _View.made(model, layers, [t for t in tasks.values() if t.slot in key])
            view = self._made[key] = made
        return view.sync()

    def of_rows(self, model: nn.Module, layers: Mapping[str, Layer], tasks: LoadedTasks, rows: list[Mixture]) -> Any:
        """The config that rows share; where their labels differ, these are `Several`."""
        views = [self.of(model, layers, tasks, mixture) for mixture in distinct(rows)]
        first = views[0]
        if all(view is first or _labels(view) == _labels(first) for view in views):
            return first
        shown = copy.copy(model.config)
        for name in LABELS:
            vars(shown)[name] = Several(name)
        return shown

    def for_loss(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        tasks: LoadedTasks,
        rows: list[Mixture],
        labels: Mapping[str, Any],
        listed: bool,
    ) -> Any:
        """The config for a call with ``labels=``: the model's own, or one for that call only.

        listed: logits have one width for all rows, with -inf beyond the classes of each.  Cross entropy over that is
        each row's own; for any other loss ValueError, and for a label that the row's task has not.
        """
        views = [self.of(model, layers, tasks, row) for row in rows]
        if not hasattr(model.config, "id2label"):  # of no library that is known
            return model.config
        config = views[0] if views[0] is model.config else copy.copy(views[0])
        if not listed:
            return config
        everyone = [self.of(model, layers, tasks, {loaded.slot: 1.0}) for loaded in tasks.values()] + [model.config]
        vocabulary = max([_size(view, "vocab_size") or 0 for view in everyone])
        if vocabulary > (_size(config, "vocab_size") or 0):
            config = library().sized_config(config, vocabulary=vocabulary)
        widths = [_size(view, "num_labels") or 0 for view in views]
        widest = max([_size(view, "num_labels") or 0 for view in everyone])
        if min(widths) == widest and all(_kind(view, labels) == _kind(config, labels) for view in views):
            return config
        kinds = {_kind(view, labels) for view in views}
        if kinds != {"single_label_classification"}:
            classes = " and ".join(map(str, sorted(set(widths))))
            raise ValueError(
                f"labels of rows whose tasks have {classes} classes ({', '.join(sorted(kinds))}; logits have {widest}) "
                f"have no loss in common: call once a task, or leave the labels out and take task_logits()"
            )
        for name, given in labels.items():
            _check_range(name, given, widths)
        config = library().sized_config(config, labels=widest)
        config.problem_type = "single_label_classification"
        return config


class _View:
    """The config of some tasks beside the model's own.  What is written into one, the other has."""

    def __init__(self, base: Any, config: Any, own: set[str]):
        self.base, self.config, self.own = base, config, own
        self.seen = {} if base is config else dict(vars(base))

    @classmethod
    def made(cls, model: nn.Module, layers: Mapping[str, Layer], tasks: Sequence[Any]) -> _View:
        base = getattr(model, "config", None)
        slots = [task.slot for task in tasks]
        resized = {name: change for name, layer in layers.items() if (change := layer.dts_rows(slots)) is not None}
        given = [task.model_config for task in tasks]
        agreed = given[0] if given and all(labels_of(one) == labels_of(given[0]) for one in given) else {}
        config, own = library().task_config(model, resized, agreed, bool(given) and not agreed and any(given))
        return cls(base, config, own)

    def sync(self) -> Any:
        """The config, after what was written into either since the last time is in both."""
        if self.base is self.config:
            return self.config
        base, view = vars(self.base), vars(self.config)
        for key in {*base, *view} - self.own:
            was, now, here = self.seen.get(key, _NONE), base.get(key, _NONE), view.get(key, _NONE)
            if now is here is was:
                continue
            value = here if here is not was else now
            for fields in (base, view, self.seen):
                if value is _NONE:
                    fields.pop(key, None)
                else:
                    fields[key] = value
        return self.config


class Several(dict[Any, Any]):
    """In the place of labels that differ from row to row: whoever looks into it is told so."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            f"the rows are set to tasks with different classes, so there is no one config.{self.name}: set_task() one "
            f"task, or take model.predict(batch, tasks=[...]), which names each row's own"
        )

    __len__ = __iter__ = __getitem__ = __contains__ = __eq__ = get = keys = values = items = _refuse
    __hash__ = None

    def __repr__(self) -> str:
        return f"<{self.name} of several tasks>"

    def __reduce__(self) -> Any:
        return Several, (self.name,)

    def __deepcopy__(self, memo: Any) -> Several:
        return Several(self.name)


def distinct(rows: list[Mixture]) -> list[Mixture]:
    """Each mixture once, in order."""
    found: list[Mixture] = []
    for row in rows:
        if row not in found:
            found.append(row)
    return found or [{}]


def labels_of(config: Mapping[str, Any]) -> list[Any]:
    """What a fine-tune's configuration says of its classes."""
    return [config.get(name) for name in LABELS]


def _labels(config: Any) -> list[Any]:
    return [getattr(config, name, None) for name in LABELS]


def _kind(config: Any, labels: Mapping[str, Any]) -> str:
    """The kind of problem that transformers takes a config and labels for."""
    stated: str | None = getattr(config, "problem_type", None)
    whole = all(not given.is_floating_point() for given in labels.values() if isinstance(given, Tensor))
    return stated or (
        "regression"
        if config.num_labels == 1
        else "single_label_classification"
        if whole
        else "multi_label_classification"
    )


def _check_range(name: str, labels: Any, widths: list[int]) -> None:
    if not isinstance(labels, Tensor) or not labels.dim() or labels.shape[0] != len(widths):
        return
    largest = labels.flatten(1).amax(1) if labels.dim() > 1 else labels
    wrong = [row for row, (label, width) in enumerate(zip(largest.tolist(), widths)) if label >= width]
    if wrong:
        row = wrong[0]
        raise ValueError(
            f"{name}: row {row} has {int(largest[row])}, its task has {widths[row]} classes, 0 to {widths[row] - 1}"
        )


@functools.lru_cache(256)
def _places(forward: Callable[..., Any]) -> dict[str, int]:
    """Parameters of a forward that are labels, and where they are; as transformers finds them."""
    try:
        names = list(inspect.signature(forward).parameters)[1:]
    except (TypeError, ValueError):
        return {}
    return {name: i for i, name in enumerate(names) if "label" in name}


def labels_by_name(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those among a call's keywords; a program's trace can go through this."""
    return {name: value for name, value in kwargs.items() if "label" in name and value is not None}


def labels_in(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The labels among a call's arguments."""
    found = labels_by_name(kwargs)
    if args:
        places = _places(type(model).forward)
        found |= {name: args[i] for name, i in places.items() if i < len(args) and args[i] is not None}
    return found


@contextmanager
def unwritten(model: nn.Module, shown: nn.Module) -> Iterator[nn.Module]:
    """``shown``, while what a loss notes in the model's config, the kind of problem, is not for calls after it."""
    config: Any = model.config
    known = hasattr(config, "problem_type") and config.problem_type is None
    try:
        yield shown
    finally:
        if known and config.problem_type is not None:
            config.problem_type = None


def plain(model: nn.Module) -> nn.Module:
    """The module within one that `torch.compile` made, else itself."""
    inner = model.__dict__.get("_modules", {}).get("_orig_mod")
    return plain(inner) if isinstance(inner, nn.Module) else model


def compiled(model: nn.Module) -> bool:
    """Whether calls of it run a program that was made with its config."""
    return plain(model) is not model or model.__dict__.get("_compiled_call_impl") is not None


@contextmanager
def showing(model: nn.Module, config: Any) -> Iterator[nn.Module]:
    """A twin of a module with another config, and with its copies of what is in it.

    What the call changes of the twin's attributes is carried over.  It never runs a compiled program, whose config is
    the module's own.
    """
    twin: nn.Module = object.__new__(type(model))
    own = model.__dict__
    fields = twin.__dict__
    fields.update(own)
    for name, value in own.items():  # accelerate's hooks: methods, and parts of functions, of the module itself
        fields[name] = rebound(value, model, twin)
    fields["config"] = config
    for name in ("num_labels", "vocab_size"):
        before, now = _size(own.get("config"), name), _size(config, name)
        if name in own and own[name] == before and now is not None:
            fields[name] = now
    fields.pop("_compiled_call_impl", None)
    # of ``generate``, which keeps the program: another twin would be another one
    if hasattr(model, "get_compiled_call"):
        fields["get_compiled_call"] = model.get_compiled_call
    start = dict(fields)
    try:
        yield twin
    finally:
        for name, value in fields.items():
            if value is not start.get(name, _NONE):
                own[name] = value


def rebound(value: Any, model: nn.Module, twin: nn.Module) -> Any:
    """What an attribute of a model is on its twin."""
    if isinstance(value, types.MethodType) and value.__self__ is model:
        return types.MethodType(value.__func__, twin)
    if isinstance(value, functools.partial) and any(one is model for one in value.args):
        made = functools.partial(value.func, *[twin if one is model else one for one in value.args], **value.keywords)
        made.__dict__.update(value.__dict__)
        return made
    return value


def _size(config: Any, name: str) -> int | None:
    found: int | None = getattr(config, name, None)
    if found is None and hasattr(config, "get_text_config"):
        found = getattr(config.get_text_config(), name, None)
    return found
