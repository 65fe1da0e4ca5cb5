"""`DTSModel`: one base model in memory, many tasks, a task or a mixture for each row of a batch."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from dts.adapter import Adapter
from dts.nn.adapters import Given, all_opened, refuse
from dts.nn.face import class_of
from dts.nn.layers.layer import NOT_META
from dts.nn.library import library
from dts.nn.status import Status, status
from dts.nn.training import guard
from dts.nn.views import plain
from dts.nn.wrapper.leaving import Leaving
from dts.services import service


class DTSModel(Leaving):
    """Any `nn.Module` as a base that runs every loaded task straight from packed factors.

    The layers that a task changes become DTS layers in place (same parameters, same ``state_dict`` keys); call
    `merge_and_unload` to get the plain model back.  Everything else of the base model (``config``, ``device``, methods)
    is reached through this one.

    A call with ``tasks=`` routes its own rows and leaves the task set by `set_task` as it was.  The routing belongs to
    the call: threads may call one model at once, each with its own tasks, and a call without tasks keeps the one that
    was set when it began.  `load_task` and `delete_task` wait for the calls of other threads.  Once a part of the model
    was compiled, calls take turns; a program called directly, past this class, reads the task as it is set.
    """

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        adapters: Mapping[str, Given] | None = None,
        memory: int | str | None = None,
        **options: Any,
    ) -> DTSModel:
        """A transformers model with adapters: the base's folder or hub id, and a task name -> adapter for each.

        The architecture is the fine-tunes' where they bring heads that the base lacks.  ``options`` go to
        transformers' ``from_pretrained``.  Refuses adapters of another base.

        memory: bytes, or "1GiB", that all may take: the plan is printed on stderr before anything is loaded, and kept
            in ``plan``; tasks beyond the limit lie on disk until they are asked for, and the least recently used go.
            Then there are the options ``batch`` (1), ``length`` (128), ``device`` ("cpu"), ``pin`` (tasks that stay)
            and ``prefix`` (of every adapter), see `dts.plan.plan`, which raises TooSmall with the least that would do.

        The base may be quantised, in its folder or while it is loaded (``quantization_config=``, ``gguf_file=``).
        Adapters of the base as it was before run over it with a warning (`QuantisedBase`), if what is not quantised in
        it tells that it is the same; quantised_from= says of which checkpoint it is the quantised form, which is then
        compared and not warned of.
        """
        if memory is not None:
            made: DTSModel = service("within")(cls, path, adapters or {}, memory, **options)
            return made
        if isinstance(path, nn.Module):
            raise TypeError(
                f"from_pretrained takes a folder or hub id, not a {type(path).__name__}: DTSModel(model) is of one "
                "in memory, and load_task(name, adapter) gives it tasks"
            )
        found = all_opened(adapters or {})
        model = cls._of_base(path, list(found.values()), **options)
        wrong: dict[str, Exception] = {}
        for name, adapter in found.items():
            try:
                model.load_task(name, adapter)
            except ValueError as error:
                wrong[name] = error
        if wrong:
            refuse(wrong)
        return model

    @classmethod
    def _of_base(cls, path: str | Path, adapters: Sequence[Adapter], **options: Any) -> DTSModel:
        """A base without tasks, of the class that these adapters need; they may be without entries."""
        base, source = library().load_base(path, adapters, **options)
        model = cls(base)
        model._base = source
        return model

    def status(self) -> Status:
        """What is loaded and how it runs: tasks and their bytes in memory, the current task, layers by class, and the
        layers that force batches of several tasks to run once a task (``grouped``), with the reason.

        unused: layers that tasks change and that the first call after the last load did not reach.
        """
        known = self._known_calls.found.values()
        on_disk = [] if self._shelf is None else self._shelf.on_disk
        return status(self._loaded, self._layers, known, self._state.mixtures, self._unused, on_disk)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's: adapters are kept in their own files."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self.model.load_state_dict(state_dict, *args, **kwargs)

    # what transformers and others ask instead of type(), see `dts.nn.face`
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return class_of(self)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As of every module; raises ValueError, before anything moves, for the meta device while tasks are loaded."""
        if self._loaded and any(map(_is_meta, (*args, *kwargs.values()))):
            raise ValueError(NOT_META)
        return super().to(*args, **kwargs)

    def to_empty(self, *, device: Any, recurse: bool = True) -> Self:
        """As `to`."""
        if self._loaded and _is_meta(device):
            raise ValueError(NOT_META)
        return super().to_empty(device=device, recurse=recurse)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return object.__new__, (type(self),), self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._state.owner = weakref.ref(self)
        if self._loaded:
            guard(self)

    def __repr__(self) -> str:
        return "DTSModel" + super().__repr__().removeprefix(self._get_name())

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
        model: Any = super().__getattr__("model")
        value = getattr(model, name)
        if name == "config":  # the task's labels and sizes, where one is set
            return self._views.of_rows(plain(model), self._layers, self._loaded, self._state.mixtures)
        if name == "num_labels" and isinstance(value, int):
            return getattr(self.config, name, value)
        return value


def _is_meta(place: Any) -> bool:
    """Is it the meta device, its name, or a tensor there?"""
    if isinstance(place, Tensor):
        return place.is_meta
    return isinstance(place, str | torch.device) and str(place).partition(":")[0] == "meta"
