"""`DTSModel`: one base model in memory, many tasks, a task or a mixture for each row of a batch."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dts.adapter import Adapter, Entry
from dts.checkpoint.errors import first
from dts.nn.adapters import Given, all_opened, opened, refuse
from dts.nn.base import Base
from dts.nn.compiled import Compiler, as_program, broken, given_back, put_aside, refused, uncompiled
from dts.nn.face import Forward, class_of
from dts.nn.fast_path import fast_path_again, no_fast_path
from dts.nn.fit import fit, refuse_tied
from dts.nn.heads import missing_heads, width
from dts.nn.known_calls import KnownCalls, check_rows, shapes_of
from dts.nn.layers import Layer, Owner, device_of, release
from dts.nn.layers.patched import Patched
from dts.nn.library import library
from dts.nn.loaded import Loaded, LoadedTasks
from dts.nn.loading import by_module, put, refuse_other_models, take_out, without_effect
from dts.nn.merge import merge
from dts.nn.once_a_task import run_once_a_task
from dts.nn.parallel.agreed import agreed
from dts.nn.parallel.sharded import refuse_parallel
from dts.nn.predictions import Prediction, predicted
from dts.nn.prompts import generate_batch
from dts.nn.replaced import Places, refuse_aliases, refuse_replaced
from dts.nn.router import Choice, Router, make_router
from dts.nn.routing import Current, Mixture, RoutingState, tracing
from dts.nn.saving import What, save_pretrained
from dts.nn.selection import AUTO, BASE, Selection, Selections, names_in, one_a_row, refuse_task
from dts.nn.shelf import Shelf, Source
from dts.nn.status import Status, not_reached, status
from dts.nn.training import guard
from dts.nn.views import Views, compiled, labels_by_name, labels_in, plain, showing, unwritten
from dts.services import service
from dts.sites import sites, walked
from dts.sites.transformers import renamer

_LOSS = (
    "a compiled or exported program would take the base's loss for every task: leave the labels out and compute the "
    "loss from the logits, or call the model itself"
)


class DTSModel(nn.Module):
    """Any `nn.Module` as a base that runs every loaded task straight from packed factors.

    The layers that a task changes become DTS layers in place (same parameters, same ``state_dict`` keys); call
    `merge_and_unload` to get the plain model back.  Everything else of the base model (``config``, ``device``, methods)
    is reached through this one.

    A call with ``tasks=`` routes its own rows and leaves the task set by `set_task` as it was.  The routing belongs to
    the call: threads may call one model at once, each with its own tasks, and a call without tasks keeps the one that
    was set when it began.  `load_task` and `delete_task` wait for the calls of other threads.  Once a part of the model
    was compiled, calls take turns; a program called directly, past this class, reads the task as it is set.
    """

    model: nn.Module

    def __init__(self, model: nn.Module):
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"a DTSModel is made of a model in memory, not of a {type(model).__name__}: "
                "DTSModel.from_pretrained(folder, adapters={name: folder}) loads one"
            )
        if isinstance(model, torch.jit.ScriptModule):
            raise TypeError("a TorchScript program runs no tasks: give the model that torch.jit made it of")
        if issubclass(type(model), DTSModel):
            raise TypeError("this is a DTSModel already: load_task() gives it further tasks")
        super().__init__()
        self.model = model
        devices = (device_of(module, p) for module in model.modules() for p in module.parameters(recurse=False))
        self._state = RoutingState(next(devices, torch.device("cpu")))
        self._base: Base | None = None  # the checkpoint it was made from, if that is known
        self._loaded = LoadedTasks()
        self._shelf: Shelf | None = None  # tasks within a limit, of `keep_within`
        self.plan: Any = None  # of `from_pretrained(memory=)`: the `dts.plan.Plan` that it keeps to
        self._layers: dict[str, Layer] = {}  # by their names in the model
        self._places = Places(self)
        self._unused: list[str] = []  # layers that the first call after a load did not reach
        self._known_calls = KnownCalls()
        self._views = Views()
        self._other_labels = False
        self._current: list[Selection] = [None]  # of calls that name no tasks: one for all rows, or one a row
        self._last: tuple[int, list[Selection]] | None = None  # (thread, tasks) of the last call; None: the current one
        self._warned = False
        self._router: Router | None = None  # of tasks="auto", made when first asked for
        self.choice: Choice | None = None  # its last answer

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

    # ---- tasks -------------------------------------------------------------------------------------------------

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

    @staticmethod
    def _check_name(name: str) -> None:
        if not isinstance(name, str) or not name:
            raise TypeError(f"a task's name is a string that is not empty, not {name!r}")
        if name == AUTO:
            raise ValueError(f"{AUTO!r} asks for a task to be chosen: give this one another name")

    def _load(self, name: str, adapter: Given | Mapping[str, Entry], heads: bool = True) -> None:
        """`load_task`, whatever memory there is."""
        self._check_name(name)
        source, entries = (None, adapter) if isinstance(adapter, Mapping) else _opened(adapter)
        skipped = without_effect(entries, heads)
        entries = {key: entry for key, entry in entries.items() if heads or not entry.task_only}
        if not any(entry.kind != "tied" for entry in entries.values()):
            warnings.warn(f"task {name!r} changes nothing: it is the base", stacklevel=2)
        if self._base is not None and source is not None:
            self._base.check([source], self.model)
        config = (source.model_config if source is not None else None) or {}
        if config.get("tie_word_embeddings") is True:
            refuse_tied(plain(self.model), entries)
        known, untied = sites(self.model), config.get("tie_word_embeddings") is False
        changes = fit(self.model, entries, renamer(self.model, known), untied, known)
        modules = by_module(self.model, changes, None if self._base is None else self._base.missing, known)
        refuse_other_models(modules, self._state)
        refuse_aliases(self.model, changes)
        self._refuse_replaced([{loaded.slot: 1.0} for other, loaded in list(self._loaded.items()) if other != name])
        with self._state.alone():
            slot = self._loaded.free_slot()  # never that of the task it replaces: if this fails, that one goes on
            made = Loaded(slot, source, len(entries.keys() - skipped.keys()), skipped, config)
            put(slot, modules, self._state)
            self._layers = {key: module for key, module in walked(self.model) if isinstance(module, Layer)}
            for layer_name, layer in self._layers.items():
                layer.dts.name = layer_name
            old = self._loaded.get(name)
            self._loaded[name] = made
            self._places = Places(self, [f"model.{key}" if key else "model" for key in self._layers])
            self._state.watch = set()
            if old is not None:
                self._state.renumber(old.slot, made.slot)
                take_out(old.slot, self._layers.values())
            if any(name in names_in(task) for task in self._current):  # the name was in use, and still is
                self._choose(self._current)
            self._changed()
            no_fast_path(self.model)
            guard(self)

    def _changed(self) -> None:
        """The loaded tasks are others: what was derived from them is made again."""
        self._router = None
        self._known_calls.found.clear()
        self._views.clear()
        self._other_labels = self._have_other_labels()
        self._state.forbid(self._missing(self._state.chosen.mixtures))
        now = self._state.now()
        now.missing = self._missing(now.mixtures)

    def _have_other_labels(self) -> bool:
        """Whether some task's classes are not those of the base's config."""
        model = plain(self.model)
        own = model.__dict__.get("config")
        each = [{loaded.slot: 1.0} for loaded in self._loaded.values()]
        resizing = {name: layer for name, layer in self._layers.items() if layer.dts_resizing}  # the others say nothing
        return own is not None and any(self._views.of(model, resizing, self._loaded, one) is not own for one in each)

    def forget_adapter(self, name: str, again: Callable[[], Adapter] | None = None) -> None:
        """Keep of a task that was loaded from a folder only what calls need: what describes its tensors takes more
        memory than they do.

        Whatever asks for the adapter (`choose_tasks`, `save_pretrained` of adapters, `dts.unseen.add_task`) reads it
        again, and raises ValueError where the folder has another one by then, or none.  So does a name that is no task.
        again: reads it, where that is more than `Adapter.load` of its folder.
        """
        self._loaded.check([name])
        self._loaded[name].forget(again)

    def delete_task(self, name: str) -> None:
        """Forget a task; rows that use it use the base from then on.  Waits for calls of other threads."""
        if self._shelf is None:
            self._delete(name)
        else:
            self._shelf.remove(name)

    def _delete(self, name: str) -> None:
        with self._state.alone():
            self._loaded.check([name])
            if any(name in names_in(task) for task in self._current):
                self._choose([None if name in names_in(task) else task for task in self._current])
            self._state.renumber(self._loaded[name].slot)
            take_out(self._loaded[name].slot, self._layers.values())
            del self._loaded[name]
            self._changed()

    def set_task(self, task: Selection) -> None:
        """Use one task, a mixture, or the base (BASE or None) for all rows of calls that begin from now on, in every
        thread.  Only tensors change."""
        self._choose_kept([task])

    def set_tasks(self, tasks: Sequence[Selection]) -> None:
        """Use one item a row of the batch, each as for `set_task`, in all calls that begin from now on.

        Their tensors stay in memory, one for each number of rows, so a CUDA graph that was captured follows what is set
        for as many rows as it has:

            model.set_tasks(names)
            model(**inputs)  # once before: finds where the rows are, compiles kernels
            with torch.cuda.graph(graph):
                out = model(**inputs)
            model.set_tasks(others)
            graph.replay()
        """
        rows = one_a_row(tasks)
        if not rows:
            raise ValueError(
                f"set_tasks takes a list with one item a row, not {tasks!r}; set_task(...) is for all rows"
            )
        self._choose_kept(rows)

    def _choose_kept(self, tasks: list[Selection]) -> None:
        """Choose tasks, which stay in memory until others are chosen."""
        with self._at_hand(tasks), nullcontext() if self._shelf is None else self._shelf.choosing:
            with self._state.held():
                self._choose(tasks)
            if self._shelf is not None:
                self._shelf.residents.keep({name for task in tasks for name in names_in(task)})

    def _choose(self, tasks: list[Selection]) -> None:
        mixtures = [self._loaded.mixture(task) for task in tasks]
        self._state.set(mixtures, self._missing(mixtures))
        self._current, self._last = tasks, None

    @contextmanager
    def using_task(self, task: Selection) -> Iterator[DTSModel]:
        """One task, mixture or the base for a while, in this thread: for code that calls the model and reads its
        config, and takes no ``tasks``.  What is chosen or deleted meanwhile counts afterwards."""
        with self._at_hand([task]):
            mixture = self._loaded.mixture(task)
            with self._state.using([mixture], self._missing([mixture])):
                yield self

    @contextmanager
    def using_tasks(self, tasks: Sequence[Selection]) -> Iterator[DTSModel]:
        """As `using_task`, with one item a row of the batches that are given meanwhile."""
        with self._at_hand(tasks):
            mixtures = [self._loaded.mixture(task) for task in tasks]
            with self._state.using(mixtures, self._missing(mixtures)):
                yield self

    def disable_tasks(self) -> AbstractContextManager[DTSModel]:
        """`using_task` of the base."""
        return self.using_task(BASE)

    # ---- within a limit of memory ------------------------------------------------------------------------------

    def keep_within(
        self, limit: int | None, sources: Mapping[str, Source], loaded: Sequence[str] = (), pin: Sequence[str] = ()
    ) -> None:
        """Take tasks from their folders when they are asked for, at most ``limit`` bytes of them in memory.

        loaded: those that are loaded now, where there is room;  pin: those that stay.  The model must have no tasks.
        Raises ValueError that names every one of ``loaded`` that cannot be.
        """
        if self._loaded:
            raise ValueError(f"the model has tasks already: {list(self._loaded)}")
        shelf = self._shelf = Shelf(self, sources, limit, pin)
        wrong: dict[str, Exception] = {}
        for name in loaded:
            try:
                shelf.residents.ensure([name], shelf)
            except ValueError as error:
                wrong[name] = error
        if wrong:
            refuse(wrong)

    def prefetch(self, *tasks: str) -> Future[None]:
        """Load tasks in a thread, for calls that will ask for them; what came of it is the future's.

        Of a model with a limit of memory.  The thread waits for calls under way, and calls for it only as long as a
        task that was read and checked is put into the layers.
        """
        return self._limited("prefetch").prefetch(tasks)

    def pin_task(self, name: str) -> None:
        """Load a task that then stays in memory; of a model with a limit of it."""
        self._limited("pin_task").pin(name)

    def unpin_task(self, name: str) -> None:
        """Let a task go when its memory is needed."""
        shelf = self._limited("unpin_task")
        shelf.check([name])
        shelf.residents.unpin(name)

    def _limited(self, what: str) -> Shelf:
        if self._shelf is None:
            raise ValueError(f"{what} is of a model with a limit: DTSModel.from_pretrained(..., memory='1GiB')")
        return self._shelf

    def _at_hand(self, asked: Sequence[Selection]) -> AbstractContextManager[None]:
        """What is asked for is in memory, and stays meanwhile."""
        if self._shelf is None:
            return nullcontext()
        return self._shelf.using([name for task in asked for name in names_in(task)])

    def _refuse_on_disk(self, what: str) -> None:
        """Raises ValueError where something needs all tasks in memory and they are not."""
        if self._shelf is not None and (absent := self._shelf.on_disk):
            raise ValueError(f"{what} needs every task in memory, and {absent} are on disk: memory= leaves no room")

    def _may_load(self) -> None:
        if self._state._inside():
            raise RuntimeError(
                "tasks cannot be loaded or deleted within a call of the model: prefetch what it needs before"
            )

    # ---- running -----------------------------------------------------------------------------------------------

    @uncompiled
    def _forward(self, *args: Any, tasks: Selections = None, **kwargs: Any) -> Any:
        """The base model's forward; see `call` for ``tasks``."""
        if tracing():  # a function that calls the model: its program reads the chosen task's tensors each time
            if tasks is not None:
                broken(
                    "tasks= within a compiled function, which would be another program for each of them: compile the "
                    "model itself, torch.compile(model)(..., tasks=...), or set_tasks() before, and call without tasks="
                )
            self._last = None
            if self._other_labels and labels_by_name(kwargs):
                broken(_LOSS)
            return self.model(*args, **kwargs)
        if "task" in kwargs:
            refuse_task(kwargs["task"], self._loaded)
        compiler = put_aside()
        try:
            used = compiler
            if compiler is not None and self._other_labels and labels_by_name(kwargs):
                refused(compiler, _LOSS)
                used = None
            if tasks is None:
                self._last = None
                return self._run_chosen("__call__", args, kwargs, used)
            return self._call("__call__", args, kwargs, tasks, used)
        finally:
            given_back(compiler)

    forward = Forward(_forward)

    def generate(self, *args: Any, tasks: Selections = None, **kwargs: Any) -> Any:
        """The base model's ``generate``; every row keeps its task, also with beams or several sequences a row."""
        return self.call("generate", *args, tasks=tasks, **kwargs)

    def generate_batch(self, inputs: Sequence[Any], *args: Any, tasks: Selections = None, **kwargs: Any) -> Any:
        """transformers' ``generate_batch`` (continuous batching).

        tasks: one for all prompts, or a list with one a prompt; prompts of one task are answered together, one task
        after the other.  None: the task of `set_task`.  (``dts serve`` mixes tasks in one batch.)
        """
        model: Any = plain(self.model)
        if tasks is None:
            return model.generate_batch(inputs, *args, **kwargs)
        if isinstance(tasks, str) and tasks == AUTO:
            raise ValueError('generate_batch is told each prompt\'s task: tasks="auto" is for model(...)')
        if kwargs.get("persistent_manager"):
            raise ValueError(
                "persistent_manager= keeps a manager, which is of one task: set_task() it, or leave the manager out"
            )
        rows = one_a_row(tasks)
        asked = [cast(Selection, tasks)] * len(inputs) if rows is None else rows
        if len(asked) != len(inputs):
            raise ValueError(f"tasks has {len(asked)} items, one a prompt, but there are {len(inputs)} prompts")
        self._loaded.check([name for task in asked for name in names_in(task)])
        with self._at_hand(asked):
            # in a list None is the base, in a call what is set
            asked = [BASE if task is None else task for task in asked]
            return generate_batch(model, self, inputs, asked, args, kwargs)

    def call(self, method: str, *args: Any, tasks: Selections = None, **kwargs: Any) -> Any:
        """Any method of the base model.

        tasks: a list with one item a row of the batch, or one item for all rows; an item is a task's name, a mixture
        {name: weight}, or BASE (in a list also None) for the base.  Without ``tasks``, what `set_task` chose.  A
        key-value cache belongs to the tasks it was made with: give the same again.  "auto" chooses a task for every row
        (see `choose_tasks`).

        Rows of several tasks go through the model together.  Where a layer that they change cannot tell the rows of its
        input apart, or outputs mix the rows of the batch, the model runs once a task instead; `status` says why.
        """
        getattr(self.model, method)  # no such method: its own error
        if "task" in kwargs:
            refuse_task(kwargs["task"], self._loaded)
        if tasks is None:
            self._last = None
            return self._run_chosen(method, args, kwargs)
        return self._call(method, args, kwargs, tasks)

    def _call(
        self,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        tasks: Selections,
        compiler: Compiler = None,
    ) -> Any:
        """`call` with tasks, in a program of this compiler."""
        if isinstance(tasks, str) and tasks == AUTO:
            if args:
                raise ValueError('tasks="auto" takes the model\'s inputs by name: model(input_ids=..., tasks="auto")')
            tasks = [BASE if task is None else task for task in self.choose_tasks(kwargs).tasks]
        rows = one_a_row(tasks)
        asked = [cast(Selection, tasks)] if rows is None else rows
        if any(task is None for task in asked) and any(map(names_in, self._current)) and not self._warned:
            self._warned = True
            chosen = self._current[0] if len(self._current) == 1 else self._current
            warnings.warn(
                f"None in a list of tasks is the base, not the task {chosen!r} of set_task(): say dts.BASE",
                stacklevel=3,
            )
        if rows is not None:
            check_rows(len(rows), args, kwargs)
        with self._at_hand(asked), self._state.held():
            result = self._run_routed(method, args, kwargs, asked, rows is not None, compiler)
            if self._state.watch is not None:
                self._tell_unused()
            return result

    def _run_chosen(
        self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], compiler: Compiler = None
    ) -> Any:
        """A call without tasks of its own."""
        with self._state.held():
            now = self._state.counting()
            if not self._places.hold():
                self._refuse_replaced(now.mixtures)
            with self._showing(now.mixtures, now.rows > 1 or compiler is not None, args, kwargs) as model:
                run = getattr(model, method)
                if now.rows > 1:
                    check_rows(now.rows, args, kwargs)
                    result = self._run_rows(run, method, args, kwargs, now.mixtures, now, compiler)
                else:
                    with self._state.call(now=now):
                        result = as_program(run, compiler)(*args, **kwargs)
            if self._state.watch is not None:
                self._tell_unused()
            return result

    def _run_routed(
        self,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        asked: list[Selection],
        listed: bool,
        compiler: Compiler,
    ) -> Any:
        """A call with tasks of its own, one for all rows or (listed) one a row."""
        self._loaded.check([name for task in asked for name in names_in(task)])  # all that are wrong, in one error
        mixtures = [self._loaded.mixture(task) for task in asked]
        if not self._places.hold():
            self._refuse_replaced(mixtures)
        self._last = threading.get_ident(), asked
        with self._showing(mixtures, listed or compiler is not None, args, kwargs) as model:
            run = getattr(model, method)
            if not mixtures:  # a batch without rows
                with self._state.call([{}], padded=True):
                    return run(*args, **kwargs)
            if all(mixture == mixtures[0] for mixture in mixtures):
                with self._state.call(mixtures[:1], self._missing(mixtures[:1]), padded=listed):
                    return as_program(run, compiler)(*args, **kwargs)
            return self._run_rows(run, method, args, kwargs, mixtures, compiler=compiler)

    def _showing(
        self, mixtures: list[Mixture], listed: bool, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AbstractContextManager[nn.Module]:
        """The base model, with the config of the tasks where a call needs that, see `dts.nn.views`.

        listed: one item a row was given, so that logits have one width for all.
        """
        model = plain(self.model)
        own = model.__dict__.get("config")
        if own is None:
            return nullcontext(self.model)
        if labels := labels_in(model, args, kwargs):
            shown = self._views.for_loss(model, self._layers, self._loaded, mixtures or [{}], labels, listed)
            return unwritten(model, self.model) if shown is own else showing(model, shown)
        if listed or compiled(self.model):
            return nullcontext(self.model)
        shown = self._views.of(model, self._layers, self._loaded, mixtures[0])
        return nullcontext(self.model) if shown is own else showing(model, shown)

    def _run_rows(
        self,
        run: Callable[..., Any],
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        mixtures: list[Mixture],
        now: Current | None = None,
        compiler: Compiler = None,
    ) -> Any:
        """A call in which rows have mixtures of their own; now: in these tensors, not new ones."""
        where = self._known_calls.where(self.model, self._layers, self._state, run, method, args, kwargs, len(mixtures))
        used = {slot for mixture in mixtures for slot in mixture}
        if where.out_axes and not where.coupled and max(where.out_axes) < 0 and method != "generate":
            raise ValueError(
                f"tasks has {len(mixtures)} items, one a row, but no output has a row "
                f"for each of the inputs' rows: {shapes_of(args, kwargs)}"
            )
        alone = set(where.unroutable)
        if compiler is not None or compiled(self.model):  # no program follows which rows have which parameters
            alone |= {name for name, layer in self._layers.items() if isinstance(layer, Owner | Patched)}
        if where.coupled or any(self._layers[name].dts.slots & used for name in alone):
            return run_once_a_task(as_program(run, compiler), method, args, kwargs, mixtures, where, self._uniform)
        with self._state.call(None if now else mixtures, self._missing(mixtures), now, **where.fields):
            return as_program(run, compiler)(*args, **kwargs)

    @contextmanager
    def _uniform(self, mixture: Mixture) -> Iterator[None]:
        with self._state.call([mixture], self._missing([mixture]), padded=True):
            yield

    def choose_tasks(self, batch: Mapping[str, Any], floor: float = 0.0) -> Choice:
        """The task of every row of the model's keyword inputs, by their energy in each adapter's subspace and by what
        the adapters know of their inputs (`dts route`); either is enough where all tasks have it.

        Costs a pass to the first block's inputs, and before the first answer one more on inputs of no meaning that are
        made from ``batch``.  floor: rows whose confidence is below it get None, the base.
        The answer stays in ``choice``.  Tasks loaded from bare entries cannot be chosen from.  Of a model that is split
        over processes the first one's choice holds in all of them.
        """
        self._refuse_on_disk('tasks="auto"')
        inputs = _tensors(batch)
        if self._router is None:
            self._router = make_router(self, self._adapters(), inputs)
        self.choice = agreed(self._router.route(self, inputs, floor), self.model)
        return self.choice

    def calibrate_tasks(self, batch: Mapping[str, Any]) -> None:
        """Lets `choose_tasks` take unlabelled inputs of all loaded tasks, in about equal parts, as its zero.

        *Measured* on texts, 50 of each task (benchmarks/quality/MERGING.md): 95.5 % of rows right among six tasks, 91.5
        without; 87.6 and 80.0 among eight with near-duplicates.  To be done again after a task is loaded or deleted.
        batch: the model's keyword inputs.
        """
        self._refuse_on_disk("calibrate_tasks")
        self._router = make_router(self, self._adapters(), _tensors(batch), unlabelled=True)

    def task_logits(self, logits: Any, tasks: Selections = None) -> list[Tensor]:
        """Each row's logits over its own task's classes: in a mixed batch shorter rows end in -inf.

        logits: a tensor [batch, ..., widest] or an output that has ``.logits``;  tasks: those of the call (default: of
        the last one).
        """
        logits = getattr(logits, "logits", logits)
        thread, asked = self._last or (None, self._here())
        if tasks is not None:
            rows = one_a_row(tasks)
            asked = [cast(Selection, tasks)] if rows is None else rows
        elif thread not in (None, threading.get_ident()):
            raise ValueError("another thread has called the model since: say whose logits these are (tasks=)")
        if len(asked) == 1:
            asked = asked * logits.shape[0]
        with self._at_hand(asked):
            slots = [[self._loaded[name].slot for name in names_in(task)] for task in asked]
            widest = logits.shape[-1]
            if len(slots) != len(logits):
                raise ValueError(f"tasks has {len(slots)} items, one a row, but the logits have {len(logits)} rows")
            return [row[..., : width(self._layers, own, widest)] for own, row in zip(slots, logits, strict=True)]

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any], tasks: Selections = None) -> list[Prediction]:
        """The classes of each row by name, with their probabilities: of its own task's.

        batch: the model's keyword inputs;  tasks: as for `call`.  Raises ValueError for models that do not classify.
        """
        if isinstance(tasks, str) and tasks == AUTO:
            tasks = [BASE if task is None else task for task in self.choose_tasks(batch).tasks]
        rows = one_a_row(tasks)
        asked = self._here() if tasks is None else [cast(Selection, tasks)] if rows is None else rows
        with self._at_hand(asked):
            output = self(**batch, tasks=tasks)
            logits = self.task_logits(output, tasks=asked)
            asked = asked * len(logits) if len(asked) == 1 else asked
            return [predicted(task, row, self._config(self._loaded.mixture(task))) for task, row in zip(asked, logits)]

    def _here(self) -> list[Selection]:
        """What calls without tasks use in this thread."""
        names = self._loaded.names
        found = [{names[slot]: weight for slot, weight in mixture.items()} for mixture in self._state.mixtures]
        return [next(iter(one)) if list(one.values()) == [1.0] else one or BASE for one in found]

    def _config(self, mixture: Mixture) -> Any:
        model = plain(self.model)
        return self._views.of(model, self._layers, self._loaded, mixture) if hasattr(model, "config") else None

    # ---- leaving -----------------------------------------------------------------------------------------------

    def merge_and_unload(self, task: Selection = None, dequantise: bool = False) -> nn.Module:
        """The plain base module with one task (or mixture; None: the base) written into its weights.

        dequantise: of a base with quantised layers make a floating-point model, into which a task can be written;
        without it, a task that changes quantised weights is refused with ValueError.
        Of a transformers model the ``config`` has the task's labels and sizes then.  This model is empty afterwards.
        """
        with self._at_hand([task]), nullcontext() if self._shelf is None else self._shelf.residents.still():
            merged = self._merge_and_unload(task, dequantise)
            if self._shelf is not None:
                self._shelf.clear()
        self._shelf = self.plan = None
        return merged

    def _merge_and_unload(self, task: Selection, dequantise: bool) -> nn.Module:
        refuse_parallel(self.model, "merge_and_unload()")
        mixture = self._loaded.mixture(task)
        configs = [self._loaded[name].model_config for name in names_in(task)]
        config = configs[0] if len(configs) == 1 else None
        self._refuse_replaced([mixture])
        routing = RoutingState(self._state.device)
        routing.set([mixture])
        resized = merge(self.model, self._layers, routing, dequantise)
        for module in self.model.modules():
            release(module)
        library().update_config(self.model, resized, config or {})
        fast_path_again(self.model)
        for found in (self._loaded, self._layers, self._known_calls.found, self._views):
            found.clear()
        self._places, self._unused, self._state.watch = Places(self), [], None
        self._base = None  # these weights are no checkpoint's
        self._state.set([{}])
        self._current, self._last = [None], None
        return self.model

    def save_pretrained(self, folder: str | Path, what: What = "model", **options: Any) -> Any:
        """Write the task that is set as a full model, with its labels and sizes; the base where none is set.

        what: "model", this;  "base", the base whatever is set;  "adapters", every loaded task's adapter, in a folder of
        its name.  options: of the library's ``save_pretrained``; of adapters ``overwrite``.
        A task is written into a copy, so the model is twice in memory meanwhile (``dts apply`` needs one tensor).
        Raises ValueError where several tasks are set.
        """
        if what == "adapters":
            self._refuse_on_disk('what="adapters"')
        return save_pretrained(self.model, self._loaded, self._state.mixtures, self._merged_copy, folder, what, options)

    def _merged_copy(self, mixture: dict[str, float]) -> nn.Module:
        refuse_parallel(self.model, "writing a task as a full model")  # which no copy can be made of
        return plain(copy.deepcopy(self).merge_and_unload(mixture))

    def push_to_hub(self, *args: Any, **options: Any) -> Any:
        """What `save_pretrained` writes, by the library's own ``push_to_hub``."""
        library_class: Any = type(plain(self.model))
        return library_class.push_to_hub(self, *args, **options)

    # ---- what there is -----------------------------------------------------------------------------------------

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

    def __reduce_ex__(self, protocol: Any) -> Any:
        return object.__new__, (type(self),), self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
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

    # ---- inside ------------------------------------------------------------------------------------------------

    def _adapters(self) -> dict[str, Adapter | None]:
        return {name: loaded.adapter for name, loaded in self._loaded.items()}

    def _missing(self, mixtures: list[Mixture]) -> dict[str, str]:
        return missing_heads(self._layers, mixtures, self._loaded.names)

    def _refuse_replaced(self, mixtures: list[Mixture]) -> None:
        """Raises RuntimeError where layers that these mixtures change are no longer in the model."""
        if not refuse_replaced(self.model, self._layers, self._loaded, mixtures):  # wrapped, by torch.compile perhaps
            self._places = Places(self, [name for name, module in self.named_modules() if isinstance(module, Layer)])

    def _tell_unused(self) -> None:
        """Once after a load: what tasks change and the call did not reach."""
        seen, self._state.watch = self._state.watch, None
        if seen is None or self._state.compiled:  # another thread was first; a program does not say what it ran
            return
        self._unused = not_reached(self._layers, seen)
        if self._unused:
            warnings.warn(
                f"tasks change {first(self._unused, 8)}, which the first call did not use: its answer is not "
                f"theirs if it should have (status() has them all)",
                stacklevel=4,
            )


def _opened(given: Given) -> tuple[Adapter, Mapping[str, Entry]]:
    adapter = opened(given)
    return adapter, adapter.entries


def _tensors(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if isinstance(value, Tensor)}
