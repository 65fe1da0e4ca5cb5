"""`DTSModel`: one base model in memory, many tasks, a task or a mixture for each row of a batch."""

from __future__ import annotations

import math
import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dts.adapter import Adapter, Entry
from dts.nn.deltas import Piece
from dts.nn.fit import Change, fit
from dts.nn.grouped import run_grouped
from dts.nn.layers import Layer, LayerDeltas, Owner, adopt, kind_of, layer_class, release
from dts.nn.merged import merge
from dts.nn.places import Places, aliases, replaced_layers
from dts.nn.probe import Layout, find_rows
from dts.nn.routing import BASE, Mixture, RoutingState, tracing
from dts.sites import raw, sites
from dts.sites.transformers import renamer

if TYPE_CHECKING:
    from dts.integrations.transformers import Base

Task = str | Mapping[str, float] | type(BASE) | None  # a name, a mixture {name: weight}, BASE or None for the base
LAYOUTS = 32  # kinds of calls whose rows are remembered
AUTO = "auto"  # tasks="auto": chosen for each row from the inputs


@dataclass
class Loaded:
    """One task of a model: its slot in every layer's bank, and the adapter it came from (None if from entries)."""

    slot: int
    adapter: Adapter | None
    applied: int = 0  # entries that change something here
    skipped: dict[str, str] = field(default_factory=dict)  # other entries, and why


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

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._state = RoutingState(next((p.device for p in model.parameters()), torch.device("cpu")))
        self._base: Base | None = None  # the checkpoint it was made from, if that is known
        self._loaded: dict[str, Loaded] = {}
        self._layers: dict[str, Layer] = {}  # by their names in the model
        self._places = Places(self)
        self._unused: list[str] = []  # layers that the first call after a load did not reach
        self._layouts: OrderedDict[tuple, Layout] = OrderedDict()
        self._current: list[Task] = [None]  # of calls that name no tasks
        self._last: tuple[int, list[Task]] | None = None  # (thread, tasks) of the last call; None: the current one
        self._warned = False
        self._router = None  # of tasks="auto", made when first asked for
        self.choice = None  # its last answer

    @classmethod
    def from_pretrained(
        cls, path: str | Path, adapters: Mapping[str, str | Path | Adapter] | None = None, **options
    ) -> DTSModel:
        """A transformers model with adapters: the base's folder or hub id, and a task name -> adapter for each.

        The architecture is the fine-tunes' where they bring heads that the base lacks.  ``options`` go to
        transformers' ``from_pretrained``.  Refuses adapters of another base.
        """
        from dts.integrations.transformers import load_base

        adapters = _opened(adapters or {})
        base, source = load_base(path, list(adapters.values()), **options)
        model = cls(base)
        model._base = source
        wrong = {}
        for name, adapter in adapters.items():
            try:
                model.load_task(name, adapter)
            except ValueError as error:
                wrong[name] = error
        if wrong:
            raise ValueError("; ".join(f"task {name!r}: {error}" for name, error in wrong.items())) from next(
                iter(wrong.values())
            )
        return model

    # ---- tasks -------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[str]:
        """Names of the loaded tasks."""
        return list(self._loaded)

    def load_task(self, name: str, adapter: Adapter | Mapping[str, Entry] | str | Path, heads: bool = True) -> None:
        """Load an adapter (or its folder, or entries) under a name; a loaded name is replaced.

        heads: False leaves out the tensors that only the fine-tune has.
        Where the base has a head too, tasks without one of their own use the base's.
        Raises ValueError that lists every tensor that does not fit, and for an adapter that was made for another base
        than a model of `from_pretrained` is (no other model knows its base's fingerprint); the model is then as before.
        """
        if not isinstance(name, str) or not name:
            raise TypeError(f"a task's name is a string that is not empty, not {name!r}")
        if name == AUTO:
            raise ValueError(f"{AUTO!r} asks for a task to be chosen: give this one another name")
        adapter = adapter if isinstance(adapter, Mapping) else _adapter(adapter)
        entries = dict(adapter if isinstance(adapter, Mapping) else adapter.entries)
        skipped = (
            {}
            if heads
            else {key: "only the fine-tune has it (heads=False)" for key, entry in entries.items() if entry.task_only}
        )
        skipped |= {key: f"tied to {entry.tied_to}" for key, entry in entries.items() if entry.kind == "tied"}
        entries = {key: entry for key, entry in entries.items() if heads or not entry.task_only}
        if not any(entry.kind != "tied" for entry in entries.values()):
            warnings.warn(f"task {name!r} changes nothing: it is the base", stacklevel=2)
        if self._base is not None and isinstance(adapter, Adapter):
            self._base.check([adapter])
        config = getattr(adapter, "model_config", None) or {}
        changes = fit(self.model, entries, renamer(self.model), untied=config.get("tie_word_embeddings") is False)
        by_module: dict[int, tuple[nn.Module, dict[str, list[Piece]], bool]] = {}
        in_base = self._in_base(changes)
        for change in changes:
            site = change.site
            module, parts, head = by_module.get(id(site.module), (site.module, {}, False))
            by_module[id(site.module)] = module, parts | {site.parameter: change.pieces}, head or change.task_only
        self._with_parents(by_module)
        classes = {key: layer_class(module, parts) for key, (module, parts, _) in by_module.items()}
        self._refuse_aliases(changes)
        self._refuse_replaced([self._mixture(other) for other in self._loaded if other != name])
        used = {loaded.slot for loaded in self._loaded.values()}
        slot = next(i for i in range(len(used) + 1) if i not in used)  # never that of the task it replaces
        made = Loaded(
            slot,
            adapter if isinstance(adapter, Adapter) else None,
            len(entries) - len([key for key in skipped if key in entries]),
            skipped,
        )
        with self._state.alone():
            layers = self._switch(made, by_module, classes, in_base)
            for layer_name, layer in layers.items():
                layer.dts.name = layer_name
            old = self._loaded.get(name)
            self._layers, self._loaded[name] = layers, made
            self._places = Places(self, [f"model.{layer_name}" if layer_name else "model" for layer_name in layers])
            self._state.watch = set()
            if old is not None:
                self._clear(old.slot)
            if name in _names(self._current[0]):  # the name was in use, and still is
                self._choose(self._current[0])
            self._changed()
            _no_fast_path(self.model)

    def _switch(self, made: Loaded, by_module: dict, classes: dict, in_base: set[int]) -> dict[str, Layer]:
        """Put what a task changes into a slot that no task has; returns all layers.  Undone whole where it fails."""
        before = []
        try:
            for key, (module, parts, head) in by_module.items():
                known = module.dts if isinstance(module, Layer) else None
                deltas = known or LayerDeltas(self._state)
                before.append((module, type(module), known, set(deltas.parameters), deltas.in_base))
                layer = adopt(module, Owner if isinstance(module, Owner) else classes[key], deltas)
                layer.load(made.slot, parts)
                if head:
                    deltas.heads.add(made.slot)
                deltas.in_base |= key in in_base
            return {key: module for key, module in self.model.named_modules() if isinstance(module, Layer)}
        except BaseException:
            for module, base, known, parameters, has in reversed(before):
                deltas = module.__dict__.get("dts")
                module.__class__ = base
                if known is None:
                    module.__dict__.pop("dts", None)
                elif deltas is not None:
                    deltas.in_base = has
                    deltas.heads.discard(made.slot)
                    for name in set(deltas.parameters) - parameters:
                        del deltas.parameters[name]
                    for parameter in deltas.parameters.values():
                        if made.slot in parameter.slots:
                            parameter.remove(made.slot)
            raise

    def _clear(self, slot: int) -> None:
        for layer in self._layers.values():
            layer.remove(slot)
            layer.dts.heads.discard(slot)

    def _changed(self) -> None:
        """The loaded tasks are others: what was derived from them is made again."""
        self._router = None
        self._layouts.clear()
        chosen = self._state.chosen
        chosen.missing = self._missing(chosen.mixtures)
        self._state._freeze()
        now = self._state.now()
        now.missing = self._missing(now.mixtures)

    def delete_task(self, name: str) -> None:
        """Forget a task; if it is the one in use, the base is used from then on.  Waits for calls of other threads."""
        with self._state.alone():
            slot = self._loaded[self._known([name])[0]].slot
            if name in _names(self._current[0]):
                self._choose(None)
            self._clear(slot)
            del self._loaded[name]
            self._changed()

    def set_task(self, task: Task) -> None:
        """Use one task, a mixture, or the base (BASE or None) for all rows of calls that begin from now on, in every
        thread.  Only tensors change."""
        with self._state.held():
            self._choose(task)

    def _choose(self, task: Task) -> None:
        mixture = self._mixture(task)
        self._state.set([mixture], self._missing([mixture]))
        self._current, self._last = [task], None

    @contextmanager
    def disable_tasks(self):
        """The base alone, for a while, in this thread.  What is chosen or deleted meanwhile counts afterwards."""
        with self._state.using([{}], self._missing([{}])):
            yield self

    # ---- running -----------------------------------------------------------------------------------------------

    def forward(self, *args, tasks: Task | Sequence[Task] = None, **kwargs):
        """The base model's forward; see `call` for ``tasks``."""
        if tasks is None:
            self._last = None
            if tracing():  # a program reads the chosen task's tensors each time
                return self.model(*args, **kwargs)
            return self._chosen(self.model, args, kwargs)
        return self.call("__call__", *args, tasks=tasks, **kwargs)

    def generate(self, *args, tasks: Task | Sequence[Task] = None, **kwargs):
        """The base model's ``generate``; every row keeps its task, also with beams or several sequences a row."""
        return self.call("generate", *args, tasks=tasks, **kwargs)

    def call(self, method: str, *args, tasks: Task | Sequence[Task] = None, **kwargs):
        """Any method of the base model.

        tasks: a list with one item a row of the batch, or one item for all rows; an item is a task's name, a mixture
        {name: weight}, or BASE (in a list also None) for the base.  Without ``tasks``, what `set_task` chose.  A
        key-value cache belongs to the tasks it was made with: give the same again.  "auto" chooses a task for every row
        (see `choose_tasks`).

        Rows of several tasks go through the model together.  Where a layer that they change cannot tell the rows of its
        input apart, or outputs mix the rows of the batch, the model runs once a task instead; `status` says why.
        """
        run = getattr(self.model, method)
        if tasks is None:
            self._last = None
            return self._chosen(run, args, kwargs)
        if isinstance(tasks, str) and tasks == AUTO:
            if args:
                raise ValueError('tasks="auto" takes the model\'s inputs by name: model(input_ids=..., tasks="auto")')
            tasks = [BASE if task is None else task for task in self.choose_tasks(kwargs).tasks]
        rows = list(tasks) if isinstance(tasks, Sequence) and not isinstance(tasks, str) else None
        asked = rows if rows is not None else [tasks]
        if any(task is None for task in asked) and self._current[0] not in (None, BASE) and not self._warned:
            self._warned = True
            warnings.warn(
                f"None in a list of tasks is the base, not the task {self._current[0]!r} of set_task(): say dts.BASE",
                stacklevel=3,
            )
        if rows is not None:
            _check_rows(len(rows), args, kwargs)
        with self._state.held():
            result = self._routed(run, method, args, kwargs, asked)
            if self._state.watch is not None:
                self._tell_unused()
            return result

    def _chosen(self, run, args, kwargs):
        with self._state.call():
            if not self._places.hold():
                self._refuse_replaced(self._state.mixtures)
            result = run(*args, **kwargs)
            if self._state.watch is not None:
                self._tell_unused()
            return result

    def _routed(self, run, method: str, args, kwargs, asked: list[Task]):
        self._known([name for task in asked for name in _names(task)])
        mixtures = [self._mixture(task) for task in asked]
        if not self._places.hold():
            self._refuse_replaced(mixtures)
        self._last = threading.get_ident(), asked
        if not mixtures:  # a batch without rows
            with self._state.call([{}]):
                return run(*args, **kwargs)
        if all(mixture == mixtures[0] for mixture in mixtures):
            with self._state.call(mixtures[:1], self._missing(mixtures[:1])):
                return run(*args, **kwargs)
        layout = self._layout(method, args, kwargs, len(mixtures))
        used = {slot for mixture in mixtures for slot in mixture}
        if layout.out_axes and not layout.coupled and max(layout.out_axes) < 0 and method != "generate":
            raise ValueError(
                f"tasks has {len(mixtures)} items, one a row, but no output has a row "
                f"for each of the inputs' rows: {_shapes(args, kwargs)}"
            )
        if layout.coupled or any(self._layers[name].dts.slots & used for name in layout.unroutable):
            return run_grouped(run, method, args, kwargs, mixtures, layout, self._uniform)
        with self._state.call(mixtures, self._missing(mixtures), **layout.places):
            return run(*args, **kwargs)

    def choose_tasks(self, batch: Mapping, floor: float = 0.0):
        """The task of every row of the model's keyword inputs, by their energy in each adapter's subspace.

        Costs a pass to the first block's inputs, and before the first answer one more on inputs of no meaning that are
        made from ``batch``.  floor: rows whose confidence is below it get None, the base.
        Returns a `dts.unseen.Choice`; it stays in ``choice``.  Tasks loaded from bare entries cannot be chosen from.
        """
        inputs = _tensors(batch)
        if self._router is None:
            self._router = self._calibrated_router(inputs)
        self.choice = self._router.route(self, inputs, floor)
        return self.choice

    def calibrate_tasks(self, batch: Mapping) -> None:
        """Lets `choose_tasks` take unlabelled inputs of all loaded tasks, in about equal parts, as its zero.

        *Measured* on texts, 50 of each task (benchmarks/quality/MERGING.md): 95.5 % of rows right among six tasks, 91.5
        without; 87.6 and 80.0 among eight with near-duplicates.  To be done again after a task is loaded or deleted.
        batch: the model's keyword inputs.
        """
        self._router = self._calibrated_router(_tensors(batch), unlabelled=True)

    def _calibrated_router(self, inputs: dict[str, Tensor], **options):
        from dts.unseen import calibrated_router

        adapters = {name: loaded.adapter for name, loaded in self._loaded.items()}
        bare = [name for name, adapter in adapters.items() if adapter is None]
        if bare or not adapters:
            raise ValueError(f"to choose, tasks must be loaded from adapters; not so: {bare or 'none is loaded'}")
        return calibrated_router(self, adapters, inputs, **options)

    def task_logits(self, logits, tasks: Task | Sequence[Task] = None) -> list[Tensor]:
        """Each row's logits over its own task's classes: in a mixed batch shorter rows end in -inf.

        logits: a tensor [batch, ..., widest] or an output that has ``.logits``;  tasks: those of the call (default: of
        the last one).
        """
        logits = getattr(logits, "logits", logits)
        if tasks is not None:
            rows = list(tasks) if isinstance(tasks, Sequence) and not isinstance(tasks, str) else [tasks]
        else:
            thread, rows = self._last or (None, self._current)
            if thread not in (None, threading.get_ident()):
                raise ValueError("another thread has called the model since: say whose logits these are (tasks=)")
        if len(rows) == 1:
            rows = rows * logits.shape[0]
        return [row[..., : self._width(task, logits.shape[-1])] for task, row in zip(rows, logits, strict=True)]

    def _width(self, task: Task, widest: int) -> int:
        """Outputs a task has of ``widest``: those of its own head or enlarged vocabulary."""
        slots = [self._loaded[name].slot for name in _names(task)]
        widths = (layer.dts_width(slots, widest) for layer in self._layers.values())
        return next((width for width in widths if width is not None), widest)

    @contextmanager
    def _uniform(self, mixture: Mixture):
        with self._state.call([mixture], self._missing([mixture])):
            yield

    def _layout(self, method: str, args, kwargs, rows: int) -> Layout:
        plain = {k: v for k, v in kwargs.items() if isinstance(v, (bool, int, float, str))}
        kinds = {k: v for k, v in plain.items() if isinstance(v, (bool, str))}
        numbers = {k: v for k, v in plain.items() if k not in kinds}
        # of generate, numbers are lengths and temperatures
        kinds |= {k: type(v).__name__ for k, v in numbers.items()} if method == "generate" else numbers
        given = {**dict(enumerate(args)), **kwargs}.items()
        tensors = [(str(k), v.dim(), v.dim() and v.shape[0] == rows) for k, v in given if isinstance(v, Tensor)]
        key = (method, len(args), *sorted(tensors), *sorted(kinds.items()))
        if key not in self._layouts:
            kept = plain | {k: v for k, v in kwargs.items() if isinstance(v, Tensor)}
            if method == "generate":
                kept |= {"max_new_tokens": 2, "do_sample": False, "num_beams": 1, "num_return_sequences": 1}
                kept.pop("max_length", None)
            probes = []
            for take in ([0], [0, 1]):
                some = lambda v, take=take: _rows_of(v, take, rows)  # noqa: E731
                probes.append(([some(v) for v in args], {k: some(v) for k, v in kept.items()}))
            found = find_rows(self.model, self._layers, self._state, getattr(self.model, method), *probes)
            self._layouts[key] = found
            while len(self._layouts) > LAYOUTS:
                self._layouts.popitem(last=False)
            return found
        return self._layouts[key]

    # ---- leaving -----------------------------------------------------------------------------------------------

    def merge_and_unload(self, task: Task = None) -> nn.Module:
        """The plain base module with one task (or mixture; None: the base) written into its weights.

        Of a transformers model the ``config`` has the task's labels and sizes then.  This model is empty afterwards.
        """
        from dts.integrations.transformers import update_config

        mixture = self._mixture(task)
        adapters = [self._loaded[name].adapter for name in _names(task)]
        config = adapters[0].model_config if len(adapters) == 1 and adapters[0] is not None else None
        self._refuse_replaced([mixture])
        routing = RoutingState(self._state.device)
        routing.set([mixture])
        resized = merge(self.model, self._layers, routing)
        for module in self.model.modules():
            release(module)
        update_config(self.model, resized, config or {})
        _fast_path_again(self.model)
        for found in (self._loaded, self._layers, self._layouts):
            found.clear()
        self._places, self._unused, self._state.watch = Places(self), [], None
        self._base = None  # these weights are no checkpoint's
        self._state.set([{}])
        self._current, self._last = [None], None
        return self.model

    # ---- what there is -----------------------------------------------------------------------------------------

    def status(self) -> dict:
        """What is loaded and how it runs: tasks and their bytes in memory, the current task, layers by class, and the
        layers that force batches of several tasks to run once a task (``grouped``), with the reason.

        unused: layers that tasks change and that the first call after the last load did not reach.
        """
        layers = self._layers
        kinds: dict[str, int] = {}
        for layer in layers.values():
            kinds[type(layer).__name__] = kinds.get(type(layer).__name__, 0) + 1
        grouped = {}
        for layout in self._layouts.values():
            grouped |= layout.unroutable
            if layout.coupled:
                grouped["outputs"] = "rows of the batch meet in them"
        held = [t for layer in layers.values() for p in layer.dts.parameters.values() for t in p.held()]
        names = {loaded.slot: name for name, loaded in self._loaded.items()}
        current = [{names[s]: w for s, w in mixture.items()} for mixture in self._state.mixtures]
        return {
            "tasks": self.tasks,
            "current": current,
            "nbytes": sum({(t.data_ptr(), t.nbytes): t.nbytes for t in held}.values()),  # tied factors once
            "layers": kinds,
            "once_a_task": [name for name, layer in layers.items() if isinstance(layer, Owner)],
            "grouped": grouped,
            "unused": list(self._unused),
            "entries": {name: {"applied": t.applied, "skipped": t.skipped} for name, t in self._loaded.items()},
        }

    def state_dict(self, *args, **kwargs):
        """The base model's: adapters are kept in their own files."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict, *args, **kwargs):
        return self.model.load_state_dict(state_dict, *args, **kwargs)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(super().__getattr__("model"), name)

    # ---- inside ------------------------------------------------------------------------------------------------

    def _refuse_replaced(self, mixtures: list[Mixture]) -> None:
        """A module that took the place of a layer knows nothing of tasks.  Mixtures without changes there may go on."""
        used = {slot for mixture in mixtures for slot in mixture}
        gone = replaced_layers(self.model, self._layers)
        if not gone:  # wrapped, by torch.compile perhaps
            self._places = Places(self, [name for name, module in self.named_modules() if isinstance(module, Layer)])
        names = [name for name in gone if self._layers[name].dts.slots & used]
        if names:
            tasks = [
                name
                for name, loaded in self._loaded.items()
                if loaded.slot in used & set().union(*(self._layers[n].dts.slots for n in names))
            ]
            raise RuntimeError(
                f"{_few(names)} was replaced after tasks were loaded that change it, {tasks}: what they "
                f"change there is lost; delete_task() and load_task() them again"
            )

    def _refuse_aliases(self, changes: list[Change]) -> None:
        found = aliases(self.model, {id(change.site.tensor): change.site.name for change in changes})
        if found:
            raise ValueError(
                f"the model keeps parameters where no task can change them, {_few(found)}: let it keep "
                f"the module, or read the parameter in its forward"
            )

    def _tell_unused(self) -> None:
        """Once after a load: what tasks change and the call did not reach, neither by a forward nor by a read."""
        seen, self._state.watch = self._state.watch, None
        if seen is None or self._state.compiled:  # another thread was first; a program does not say what it ran
            return
        acted = {id(tensor) for name in set(seen) if name in self._layers for tensor in _own(self._layers[name])}
        self._unused = [
            name
            for name, layer in self._layers.items()
            if name not in seen and not {id(tensor) for tensor in _own(layer)} <= acted
        ]
        if self._unused:
            warnings.warn(
                f"tasks change {_few(self._unused)}, which the first call did not use: its answer is not "
                f"theirs if it should have (status() has them all)",
                stacklevel=4,
            )

    def _in_base(self, changes: list[Change]) -> set[int]:
        """Ids of the modules of which the base has the parameters that an adapter changes.

        The checkpoint's loader knows that; else it has those that an adapter changes by a difference, and shared ones.
        """
        lacking, found = set(), set()
        shared = Counter(
            id(site.tensor) for site in {(id(s.module), s.parameter): s for s in sites(self.model).values()}.values()
        )
        for change in changes:
            site, task_only = change.site, change.task_only
            has = site.name not in self._base.missing if self._base else not task_only or shared[id(site.tensor)] > 1
            (found if has else lacking).add(id(site.module))
        return found - lacking

    def _known(self, names: list[str]) -> list[str]:
        unknown = sorted({name for name in names if name not in self._loaded})
        if unknown:
            raise ValueError(f"no task {', '.join(map(repr, unknown))}; the loaded tasks are {self.tasks}")
        return names

    def _mixture(self, task: Task) -> Mixture:
        names = self._known(_names(task))
        mixture = {self._loaded[n].slot: float(task[n]) if isinstance(task, Mapping) else 1.0 for n in names}
        if not all(map(math.isfinite, mixture.values())):
            raise ValueError(f"weights of a mixture must be finite numbers: {task}")
        return mixture

    def _missing(self, mixtures: list[Mixture]) -> dict[str, str]:
        """Heads that some row's task does not have, with what to say if they run."""
        missing, names = {}, {loaded.slot: name for name, loaded in self._loaded.items()}
        for name, layer in self._layers.items():
            heads = layer.dts.heads
            if not heads:
                continue
            for row, mixture in enumerate(mixtures):
                lengths = {
                    tuple(p.values.tensors[s].shape)
                    for p in layer.dts.parameters.values()
                    for s in mixture
                    if s in p.values.tensors and p is layer.dts.get("weight")
                }
                own = heads & set(mixture)
                if layer.dts.in_base and own and own != set(mixture):
                    missing[name] = (
                        f"row {row} mixes tasks that have a {name!r} of their own, "
                        f"{[names[s] for s in sorted(own)]}, with tasks that use the base's"
                    )
                elif not layer.dts.in_base and (not mixture or own != set(mixture)):
                    who = " and ".join(repr(names[s]) for s in mixture if s not in heads) or "the base"
                    missing[name] = (
                        f"row {row} uses {who}, which has no {name!r} of its own; tasks that have one: "
                        f"{[names[s] for s in sorted(heads)]}"
                    )
                elif len(lengths) > 1:
                    missing[name] = f"row {row} mixes tasks whose {name!r} has different shapes: {sorted(lengths)}"
        return missing

    def _with_parents(self, by_module: dict) -> None:
        """An attention module that reads the weight of its output layer must know that layer's deltas."""
        for module in list(self.model.modules()):
            if any(id(getattr(module, child, None)) in by_module for child in kind_of(module).dts_reads):
                by_module.setdefault(id(module), (module, {}, False))


def _tensors(batch: Mapping) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if isinstance(value, Tensor)}


def _adapter(given: Adapter | str | Path) -> Adapter:
    return given if isinstance(given, Adapter) else Adapter.load(given)


def _names(task: Task) -> list[str]:
    if task is not None and task is not BASE and not isinstance(task, (str, Mapping)):
        raise TypeError(f"a task is a name, a mixture {{name: weight}}, dts.BASE or None, not {task!r}")
    if isinstance(task, Mapping) and not all(isinstance(name, str) for name in task):
        raise TypeError(f"a mixture is {{name: weight}}, its names are strings: {task!r}")
    return [] if task is None or task is BASE else [task] if isinstance(task, str) else list(task)


def _check_rows(rows: int, args, kwargs) -> None:
    shapes = _shapes(args, kwargs)
    if not any(shape and shape[0] == rows for shape in shapes.values()):
        raise ValueError(f"tasks has {rows} items, one a row, but no input has {rows} rows: {shapes}")


def _shapes(args, kwargs) -> dict[str, list[int]]:
    tensors = {**{f"argument {i}": v for i, v in enumerate(args)}, **kwargs}
    return {name: list(v.shape) for name, v in tensors.items() if isinstance(v, Tensor)}


def _opened(adapters: Mapping) -> dict[str, Adapter]:
    """Adapters by their tasks.  Raises ValueError that names every one that cannot be read."""
    found, wrong = {}, {}
    for name, given in adapters.items():
        try:
            found[name] = _adapter(given)
        except (ValueError, OSError) as error:
            wrong[name] = error
    if len(wrong) == 1 and len(adapters) == 1:
        raise next(iter(wrong.values()))
    if wrong:
        raise ValueError("; ".join(f"task {name!r}: {error}" for name, error in wrong.items())) from next(
            iter(wrong.values())
        )
    return found


def _own(layer: Layer) -> list[Tensor]:
    """The parameters that tasks change."""
    return [raw(layer, name) for name in layer.dts.parameters]


def _few(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _rows_of(value, take: list[int], rows: int):
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == rows:
        return value[take]
    return value


def _no_fast_path(model: nn.Module) -> None:
    """torch's encoder reads its children's weights, past their forward, unless this is off."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def _fast_path_again(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            activation = module.activation
            relu = activation is nn.functional.relu or isinstance(activation, nn.ReLU)
            gelu = activation is nn.functional.gelu or isinstance(activation, nn.GELU)
            module.activation_relu_or_gelu = 1 if relu else 2 if gelu else 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = module.enable_nested_tensor
