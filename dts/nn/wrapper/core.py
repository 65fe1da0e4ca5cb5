"""What a `DTSModel` knows, and what its tasks, choices and calls all use."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from dts.checkpoint.errors import first
from dts.files import Mapped
from dts.nn.altered import mapped_of, refuse_altered
from dts.nn.base import Base
from dts.nn.graphs import Followed, read_by_calls
from dts.nn.heads import missing_heads
from dts.nn.known_calls import KnownCalls
from dts.nn.layers import Layer, device_of
from dts.nn.loaded import LoadedTasks
from dts.nn.past import Watched
from dts.nn.replaced import Places, refuse_replaced
from dts.nn.router import Choice, Router
from dts.nn.routing import Mixture, RoutingState
from dts.nn.selection import Selection, names_in
from dts.nn.shelf import Shelf
from dts.nn.survey import Survey
from dts.nn.views import Views, labels_of, plain
from dts.sites import walked


class Core(nn.Module):
    """The base model and the state of a `DTSModel`, of which each file of this folder adds one subject's methods."""

    model: nn.Module

    def __init__(self, model: nn.Module):
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"a DTSModel is made of a model in memory, not of a {type(model).__name__}: "
                "DTSModel.from_pretrained(folder, adapters={name: folder}) loads one"
            )
        if isinstance(model, torch.jit.ScriptModule):
            raise TypeError("a TorchScript program runs no tasks: give the model that torch.jit made it of")
        if programs := [name for name, module in walked(model) if isinstance(module, torch.jit.ScriptModule)]:
            raise TypeError(
                f"{first(programs, 4)}: TorchScript programs, which run no tasks: give the model with the modules that "
                "torch.jit made them of"
            )
        if issubclass(type(model), Core):
            raise TypeError("this is a DTSModel already: load_task() gives it further tasks")
        super().__init__()
        self.model = model
        devices = (device_of(module, p) for module in model.modules() for p in module.parameters(recurse=False))
        self._state = RoutingState(next(devices, torch.device("cpu")))
        self._state.owner = weakref.ref(self)
        self._mapped = mapped_of(model)
        self._base: Base | None = None  # the checkpoint it was made from, if that is known
        self._loaded = LoadedTasks()
        self._shelf: Shelf | None = None  # tasks within a limit, of `keep_within`
        self.plan: Any = None  # of `from_pretrained(memory=)`: the `dts.plan.Plan` that it keeps to
        self._layers: dict[str, Layer] = {}  # by their names in the model
        self._places = Places(self)
        self._survey: Survey | None = None  # of the last load
        self._unused: list[str] = []  # layers that the first call after a load did not reach
        self._known_calls = KnownCalls()
        self._watched = Watched()
        self._views = Views()
        self._other_labels = False
        self._current: list[Selection] = [None]  # of calls that name no tasks: one for all rows, or one a row
        self._last: tuple[int, list[Selection]] | None = None  # (thread, tasks) of the last call; None: the current one
        self._warned = False
        self._router: Router | None = None  # of tasks="auto", made when first asked for
        self.choice: Choice | None = None  # its last answer

    def _choose(self, tasks: list[Selection]) -> None:
        mixtures = [self._loaded.mixture(task) for task in tasks]
        self._state.set(mixtures, self._missing(mixtures))
        self._current, self._last = tasks, None
        beyond = self._state.beyond(len(mixtures)) & {slot for mixture in mixtures for slot in mixture}
        if beyond:
            warnings.warn(
                f"{', '.join(repr(self._loaded.names[slot]) for slot in sorted(beyond))}: loaded after a CUDA graph "
                "was captured, and beyond the room that it knows: where it is replayed their rows are the base's.  "
                "Call reserve(tasks) before a capture, or capture again",
                stacklevel=4,
            )

    def read_by_calls(self) -> list[object]:
        """Of what tasks change, all that a CUDA graph of a call would read as long as it is these."""
        return read_by_calls(self._layers.values())

    def followed(self) -> Followed:
        """What is known of a graph that is captured now."""
        return Followed(self.read_by_calls())

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
        """Whether some task's classes are not those of the base's config.

        Of tasks that say the same of them one is asked: with every load each of hundreds would be, in 0.2 ms."""
        model = plain(self.model)
        own = model.__dict__.get("config")
        if own is None:
            return False
        resizing = {name: layer for name, layer in self._layers.items() if layer.dts_resizing}  # the others say nothing
        asked: list[Any] = []
        for loaded in self._loaded.values():
            rows = [layer.dts_rows([loaded.slot]) for layer in resizing.values()]
            said = bool(loaded.model_config), labels_of(loaded.model_config), rows
            if said in asked:
                continue
            asked.append(said)
            if self._views.of(model, resizing, self._loaded, {loaded.slot: 1.0}) is not own:
                return True
        return False

    def _at_hand(self, asked: Sequence[Selection]) -> AbstractContextManager[None]:
        """What is asked for is in memory, and stays meanwhile."""
        if self._shelf is None:
            return nullcontext()
        return self._shelf.using([name for task in asked for name in names_in(task)])

    def _refuse_on_disk(self, what: str) -> None:
        """Raises ValueError where something needs all tasks in memory and they are not."""
        if self._shelf is not None and (absent := self._shelf.on_disk):
            raise ValueError(f"{what} needs every task in memory, and {absent} are on disk: memory= leaves no room")

    def watched_alone(self) -> Mapped:
        """The files that the base's weights are pages of, for one who looks at them in the place of every call."""
        found, self._mapped = self._mapped, Mapped()
        return found

    def _refuse_altered(self) -> None:
        """Raises BaseAltered; some microseconds a file."""
        self._mapped = refuse_altered(self._mapped, self.model)

    def _missing(self, mixtures: list[Mixture]) -> dict[str, str]:
        return missing_heads(self._layers, mixtures, self._loaded.names)

    def _refuse_replaced(self, mixtures: list[Mixture]) -> None:
        """Raises RuntimeError where layers that these mixtures change are no longer in the model."""
        if not refuse_replaced(self.model, self._layers, self._loaded, mixtures):  # wrapped, by torch.compile perhaps
            self._places = Places(self, [name for name, module in self.named_modules() if isinstance(module, Layer)])
