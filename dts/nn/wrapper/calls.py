"""Calls of a `DTSModel`: each row of a batch with its own task."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

from torch import nn
from torch.utils._pytree import tree_leaves

from dts.checkpoint.errors import first
from dts.nn.caches import follow
from dts.nn.compiled import Compiler, as_program, broken, compiles_itself, given_back, put_aside, refused, uncompiled
from dts.nn.face import Forward
from dts.nn.known_calls import check_rows, shapes_of, shortest, with_first_labels
from dts.nn.layers import Owner
from dts.nn.layers.kept import PLAIN
from dts.nn.layers.layer_deltas import RowsApart
from dts.nn.layers.patched import Patched
from dts.nn.made_once import Before
from dts.nn.once_a_task import run_once_a_task
from dts.nn.prompts import generate_batch
from dts.nn.routing import Current, Mixture, tracing
from dts.nn.selection import AUTO, BASE, Selection, Selections, names_in, one_a_row, refuse_task
from dts.nn.status import not_reached
from dts.nn.views import compiled, labels_by_name, labels_in, plain, showing, unwritten
from dts.nn.wrapper.choosing import Choosing

_LOSS = (
    "a compiled or exported program would take the base's loss for every task: leave the labels out and compute the "
    "loss from the logits, or call the model itself"
)


class Calls(Choosing):
    """Runs any method of the base."""

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
            before = None if self._state.watch is None else self._before(method, compiler)
            result = self._run_routed(method, args, kwargs, asked, rows is not None, compiler)
            if method != "generate":
                follow(args, kwargs, result, [self._loaded.mixture(task) for task in asked], self._loaded.names)
            if self._state.watch is not None:
                self._look_back(before, method, args, kwargs)
            self._refuse_altered()
            return result

    def _run_chosen(
        self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], compiler: Compiler = None
    ) -> Any:
        """A call without tasks of its own."""
        with self._state.held():
            now = self._state.counting()
            before = None if self._state.watch is None else self._before(method, compiler)
            if not self._places.hold():
                self._refuse_replaced(now.mixtures)
            self._state.given = self._places.given()
            watching = self._watching(method, args, kwargs, now.mixtures, compiler)
            with watching, self._showing(now.mixtures, now.rows > 1 or compiler is not None, args, kwargs) as model:
                run = getattr(model, method)
                if now.rows > 1:
                    check_rows(now.rows, args, kwargs)
                    result = self._run_rows(run, method, args, kwargs, now.mixtures, now, compiler)
                else:
                    with self._state.call(now=now):
                        result = as_program(run, compiler)(*args, **kwargs)
            if method != "generate":
                follow(args, kwargs, result, now.mixtures, self._loaded.names)
            if self._state.watch is not None:
                self._look_back(before, method, args, kwargs)
            self._refuse_altered()
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
        self._state.given = self._places.given()
        self._last = threading.get_ident(), asked
        watching = self._watching(method, args, kwargs, mixtures, compiler)
        with watching, self._showing(mixtures, listed or compiler is not None, args, kwargs) as model:
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
        apart = sorted(name for name in alone if self._layers[name].dts.slots & used)
        if where.coupled or apart:
            if self._state.capturing:
                raise RuntimeError(
                    f"a CUDA graph cannot follow the tasks of a model that runs once a task, as this one does for "
                    f"{first(apart, 4) or 'outputs that mix rows'}: capture it with one task for all rows (status() "
                    "says why)"
                )
            return run_once_a_task(as_program(run, compiler), method, args, kwargs, mixtures, where, self._uniform)
        try:
            with self._state.call(None if now else mixtures, self._missing(mixtures), now, **where.fields):
                return as_program(run, compiler)(*args, **kwargs)
        except RowsApart as error:
            where.unroutable[error.layer] = error.why  # so calls begin, from now on
            given = [value for name, value in kwargs.items() if name != "generation_config"]
            if not all(isinstance(leaf, PLAIN) for leaf in tree_leaves((args, given))):
                raise  # a cache that has some of this call in it
        return run_once_a_task(as_program(run, compiler), method, args, kwargs, mixtures, where, self._uniform)

    @contextmanager
    def _uniform(self, mixture: Mixture) -> Iterator[None]:
        with self._state.call([mixture], self._missing([mixture]), padded=True):
            yield

    def _watching(
        self,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        mixtures: list[Mixture],
        compiler: Compiler,
    ) -> AbstractContextManager[None]:
        """Looks for what the call reads past the layers, see `dts.nn.past`; not in a program, which is as it is."""
        program = compiler is not None or compiled(self.model) or compiles_itself(self.model, method, kwargs)
        if program or self._state.capturing:
            return nullcontext()
        return self._watched.watching(self._layers, (method, len(args), *kwargs, self.model.training), mixtures)

    def _before(self, method: str, compiler: Compiler) -> Before | None:
        """What modules have before the first call after a load, of a call that can be made again."""
        program = compiler is not None or compiled(self.model) or self._state.compiled
        return None if program else Before(self.model)

    def _look_back(self, before: Before | None, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Once after a load: raises RuntimeError for what a module made of tasks and kept, see `dts.nn.made_once`."""
        watch = self._state.watch
        seen = bool(watch)  # what is no forward cannot be made again, perhaps
        self._tell_unused()
        mixtures: list[Mixture] = [{}, *({loaded.slot: 1.0} for loaded in self._loaded.values())]
        mixtures = [mixture for mixture in mixtures if not self._missing([mixture])][:3]
        if before is None or len(mixtures) < 2 or not seen:
            return
        kwargs = shortest(method, kwargs) if method == "generate" else with_first_labels(kwargs)
        try:
            before.refuse(getattr(self.model, method), args, kwargs, mixtures, self._uniform)
        except RuntimeError:
            self._state.watch = watch  # and so will the next call be looked at
            raise

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
