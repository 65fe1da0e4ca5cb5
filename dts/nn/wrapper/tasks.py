"""Tasks of a `DTSModel`: loaded into its layers, and taken out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dts.adapter import Adapter, Entry
from dts.nn.adapters import Given, checked, opened
from dts.nn.fast_path import no_fast_path
from dts.nn.fit import fit, refuse_tied
from dts.nn.layers import Layer
from dts.nn.loaded import Loaded
from dts.nn.loading import by_module, put, refuse_other_models, take_out, without_effect
from dts.nn.replaced import Places, refuse_aliases
from dts.nn.selection import AUTO, names_in
from dts.nn.shelf import Source
from dts.nn.survey import Survey
from dts.nn.training import guard
from dts.nn.views import plain
from dts.nn.within import watch
from dts.nn.wrapper.core import Core
from dts.sites.configs import OtherConfig, otherwise


class Tasks(Core):
    """Loads and deletes."""

    @property
    def tasks(self) -> list[str]:
        """Names of the loaded tasks; of a model with a limit of memory also of those on disk."""
        return list(self._loaded if self._shelf is None else self._shelf.sources)

    def load_task(self, name: str, adapter: Given | Mapping[str, Entry], heads: bool = True) -> None:
        """Load an adapter (or its folder, or entries) under a name; a loaded name is replaced.

        heads: False leaves out the tensors that only the fine-tune has.
        Where the base has a head too, tasks without one of their own use the base's.
        Raises ValueError that lists every tensor that does not fit, and for an adapter that was made for another base
        than a model of `from_pretrained` is (no other model knows its base's fingerprint); the model is then as before.
        A model with a limit of memory takes folders only, since it may have to read them again.
        """
        if self._shelf is None:
            self._load(name, adapter, heads)
            return
        folder = adapter.folder if isinstance(adapter, Adapter) else adapter
        if not isinstance(folder, str | Path):
            raise ValueError(f"task {name!r}: a model with a limit of memory needs the adapter's folder: save it first")
        self._check_name(name)
        self._shelf.put(name, Source.of(Path(folder), heads))

    def delete_task(self, name: str) -> None:
        """Forget a task; rows that use it use the base from then on.  Waits for calls of other threads."""
        if self._shelf is None:
            self._delete(name)
        else:
            self._shelf.remove(name)

    def forget_adapter(self, name: str, again: Callable[[], Adapter] | None = None) -> None:
        """Keep of a task that was loaded from a folder only what calls need: what describes its tensors takes more
        memory than they do.

        Whatever asks for the adapter (`choose_tasks`, `save_pretrained` of adapters, `dts.unseen.add_task`) reads it
        again, and raises ValueError where the folder has another one by then, or none.  So does a name that is no task.
        again: reads it, where that is more than `Adapter.load` of its folder.
        """
        self._loaded.check([name])
        self._loaded[name].forget(again)

    @staticmethod
    def _check_name(name: str) -> None:
        if not isinstance(name, str) or not name:
            raise TypeError(f"a task's name is a string that is not empty, not {name!r}")
        if name == AUTO:
            raise ValueError(f"{AUTO!r} asks for a task to be chosen: give this one another name")

    @torch.inference_mode(False)  # gradients never pass tensors that are made in it
    def _load(self, name: str, adapter: Given | Mapping[str, Entry], heads: bool = True) -> None:
        """`load_task`, whatever memory there is."""
        self._check_name(name)
        self._refuse_altered()
        source, entries = (None, checked(adapter)) if isinstance(adapter, Mapping) else _opened(adapter)
        skipped = without_effect(entries, heads)
        entries = {key: entry for key, entry in entries.items() if heads or not entry.task_only}
        if not any(entry.kind != "tied" for entry in entries.values()):
            warnings.warn(f"task {name!r} changes nothing: it is the base", stacklevel=2)
        if self._base is not None and source is not None:
            self._base.check([source], self.model)
        config = (source.model_config if source is not None else None) or {}
        if config and (how := otherwise(_config(plain(self.model)), config)):
            warnings.warn(
                f"task {name!r} is of a model that does not compute as this base: {how}.  It runs as the base does, "
                "and its answers are not the fine-tune's: dts apply writes a model that is",
                OtherConfig,
                stacklevel=2,
            )
        if config.get("tie_word_embeddings") is True:
            refuse_tied(plain(self.model), entries)
        survey = self._survey = Survey.of(self.model, self._survey)
        changes = fit(survey, entries, config.get("tie_word_embeddings") is False)
        modules = by_module(survey, changes, None if self._base is None else self._base.missing)
        refuse_other_models(modules, self._state)
        refuse_aliases(survey.modules, changes)
        if not self._places.hold():
            self._refuse_replaced([{loaded.slot: 1.0} for other, loaded in list(self._loaded.items()) if other != name])
        with self._state.alone():
            slot = self._loaded.free_slot()  # never that of the task it replaces: if this fails, that one goes on
            made = Loaded(slot, source, len(entries.keys() - skipped.keys()), skipped, config)
            put(slot, modules, self._state, survey.layer_classes)
            layers = {key: module for key, module in survey.modules if isinstance(module, Layer)}
            old = self._loaded.get(name)
            self._loaded[name] = made
            if layers != self._layers or not self._places.hold():
                self._layers = layers
                for layer_name, layer in layers.items():
                    layer.dts.name = layer_name
                self._places = Places(self, [f"model.{key}" if key else "model" for key in layers])
            self._state.watch = set()
            self._watched.forget(made.slot)
            if old is not None:
                self._state.renumber(old.slot, made.slot)
                take_out(old.slot, self._layers.values())
            if graphs := self._state.graphs_here():
                reads = self.read_by_calls()
                for graph in graphs:
                    graph.loaded(made.slot, reads)
            if any(name in names_in(task) for task in self._current):  # the name was in use, and still is
                self._choose(self._current)
            self._changed()
            no_fast_path(survey.modules)
            guard(self)
            watch(plain(self.model))

    def _delete(self, name: str) -> None:
        with self._state.alone():
            self._loaded.check([name])
            if any(name in names_in(task) for task in self._current):
                self._choose([None if name in names_in(task) else task for task in self._current])
            self._state.renumber(self._loaded[name].slot)
            take_out(self._loaded[name].slot, self._layers.values())
            del self._loaded[name]
            self._changed()


def _config(model: nn.Module) -> dict[str, Any] | None:
    """As a ``config.json`` has it; None of models of no library that has one."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    return to_dict() if callable(to_dict) else None


def _opened(given: Given) -> tuple[Adapter, Mapping[str, Entry]]:
    adapter = opened(given)
    return adapter, adapter.entries
