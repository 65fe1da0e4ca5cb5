"""Which task each row uses: a state that every DTS layer of a model shares, and the routing of each call."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch.nn.utils import parametrize

from dts.nn.routing.current import Current, backward_here, call_here, calls, left, tracing
from dts.nn.routing.gate import Gate
from dts.nn.routing.history import History
from dts.nn.routing.kept import KeptRoutings
from dts.nn.routing.mixtures import ConstantRouting, Mixture, routing_of
from dts_kernels import Routing


class RoutingState:
    """The routing that `set` chose, held in tensors so that a switch is other contents, never another program; and that
    of each call under way, which belongs to the thread (the context) that calls.

    A call without tasks of its own uses what was chosen when it began: `frozen`, tensors that nobody writes into.
    Compiled programs and CUDA graphs read those that are written in place (``chosen``, `KeptRoutings`), and programs
    within a call with tasks those of the call (``traced``).  Programs do not know threads: once one was compiled, calls
    take turns.

    A backward pass that runs parts of a forward again (gradient checkpointing) uses the routing of that forward, see
    `History`.

    A copy of a layer alone, as PEFT makes one of a head that it trains, follows the calls of the model that it is in.

    graphs: the `dts.nn.graphs.Captured` that there are.
    owner: the `DTSModel`;  origin: the state of which this one was copied without its owner.
    given: tensors were in the places of parameters before the last call began, as another base's.
    compiled: some layer was traced;  watch: names of layers that acted, while somebody asks for them;  keeping: the
    routing of the last call with tasks of its own, and what layers made of it, stay for the next: for one thread that
    calls again and again with the same.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self._kept = KeptRoutings()
        self.chosen = Current(self, self._kept.set([{}], 1, torch.device(device)), [{}])
        self.traced = self.chosen
        self.compiled = self.warned = False
        self.watch: set[str] | None = None
        self._open: list[Current] = []
        self.keeping = False
        self._last: tuple[Any, ConstantRouting] | None = None  # and what it is of
        self._gate, self._history = Gate(), History()
        self.given = False
        self.owner: weakref.ref[Any] | None = None
        self.graphs: weakref.WeakSet[Any] = weakref.WeakSet()
        self.origin: RoutingState | None = None
        self._freeze()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have no calls under way."""
        own = vars(self) | {"_open": [], "traced": self.chosen, "_last": None, "owner": None}
        del own["graphs"]  # weak, which is not pickled
        return own

    def __setstate__(self, own: dict[str, Any]) -> None:
        vars(self).update(own, graphs=weakref.WeakSet())

    def __deepcopy__(self, memo: dict[int, Any]) -> RoutingState:
        made = memo[id(self)] = object.__new__(type(self))
        made.__setstate__(copy.deepcopy(self.__getstate__() | {"origin": None}, memo))
        first = self.origin or self
        owner = None if first.owner is None else first.owner()
        if owner is not None and id(owner) not in memo:
            made.origin = first
        elif self.origin is not None:
            made.origin = copy.deepcopy(self.origin, memo)
        return made

    # ---- reading -----------------------------------------------------------------------------------------------

    def now(self) -> Current:
        """The routing of the call that this is part of, else the chosen one."""
        if tracing():
            self.compiled = True
            return self.traced
        call, graph = call_here(), backward_here()
        while call is not None:
            if call.graph == graph and (call.state is self or call.state is self.origin is not None):
                return call
            call = call.outer
        if graph in (-1, self._history.switched[2]):
            return self.chosen
        return self._history.again(self.chosen, self.frozen)

    def _near(self) -> Current:
        """The innermost call under way in this thread, whatever backward pass it is for."""
        call = call_here()
        while call is not None and call.state is not self:
            call = call.outer
        return self.chosen if call is None else call

    @property
    def routing(self) -> Routing:
        return self.now().routing

    @property
    def mixtures(self) -> list[Mixture]:
        return self.now().mixtures

    @property
    def missing(self) -> dict[str, str]:
        return self.now().missing

    @property
    def rows(self) -> int:
        return self.now().rows

    @property
    def padded(self) -> bool:
        """Whether logits have one width whatever the tasks: rows of several, programs, graphs."""
        if tracing():
            return True
        now = self.now()
        return now.padded or now.probing or now.rows > 1 or _capturing(self.device)

    @property
    def device(self) -> torch.device:
        return self.chosen.routing.slots.device

    def on(self, device: torch.device) -> Routing:
        return self.now().on(device)

    # ---- changing ----------------------------------------------------------------------------------------------

    def to(self, device: torch.device | str) -> None:
        self._kept.to(device)
        routing = self.chosen.routing
        self.chosen.routing = self._kept.set(self.chosen.mixtures, routing.slots.shape[1], torch.device(device))
        self._freeze()

    def set(self, mixtures: list[Mixture], missing: dict[str, str] | None = None) -> None:
        """Switch.  Shapes that fit are written in place, so compiled programs and CUDA graphs stay valid."""
        with self._gate.lock:
            places = self.chosen.routing.slots.shape[1]
            self.chosen.routing = self._kept.set(mixtures, places, self.device)
            self.chosen.mixtures, self.chosen.missing = mixtures, missing or {}
            self._freeze()
            self._history.switch()

    @property
    def capturing(self) -> bool:
        return _capturing(self.device)

    def graphs_here(self) -> list[Any]:
        """What is known of each graph that follows what is set."""
        return [*self.graphs, *[known for known in self._kept.captured.values() if known is not None]]

    def beyond(self, rows: int) -> AbstractSet[int]:
        """Slots of tasks that the last graph of so many rows does not know."""
        known = self._kept.captured.get(rows)
        return frozenset() if known is None else known.beyond

    def renumber(self, slot: int, other: int = -1) -> None:
        """The task in a slot is in another one now, or gone (-1): also in what graphs follow that is not chosen."""
        with self._gate.lock:
            self._kept.renumber(slot, other)

    def forbid(self, missing: dict[str, str]) -> None:
        """Other layers cannot run with the chosen tasks than before: other tasks are loaded."""
        self.chosen.missing = missing
        self._freeze()

    def _freeze(self) -> None:
        """The chosen routing as it is now, for calls: a switch does not reach those under way, nor their gradients."""
        routing = self.chosen.routing
        with torch.inference_mode(False):
            routing = Routing(routing.slots.clone(), routing.weights.clone())
        self.frozen = Current(self, routing, self.chosen.mixtures, self.chosen.missing)

    def rebased(self, name: str) -> None:
        """Other weights were loaded into a layer that tasks change."""
        if not self.warned:
            self.warned = True
            warnings.warn(
                f"other weights were loaded into {name!r}, and perhaps more, under the loaded tasks: these "
                f"are differences to the base that they were made for",
                stacklevel=2,
            )

    # ---- calls -------------------------------------------------------------------------------------------------

    @contextmanager
    def using(self, mixtures: list[Mixture], missing: dict[str, str] | None = None, **options: Any) -> Iterator[None]:
        """Other tasks for a while, in this thread.  options: further fields of `Current`."""
        near = self._near()
        places = near.routing.slots.shape[1]
        options.setdefault("probing", near.probing)
        options.setdefault("seen", near.seen)
        options.setdefault("padded", near.padded)
        with self._within(Current(self, self._routing(mixtures, places), mixtures, missing or {}, **options)):
            yield

    def _routing(self, mixtures: list[Mixture], places: int) -> Routing:
        """`routing_of`; where they stay the same one again for the same mixtures."""
        if not self.keeping:
            return routing_of(mixtures, places, self.device)
        kind = places, self.device, [tuple(mixture.items()) for mixture in mixtures]
        if self._last is None or self._last[0] != kind:
            made = routing_of(mixtures, places, self.device)
            self._last = kind, ConstantRouting(made.slots, made.weights)
        return self._last[1]

    def counting(self) -> Current:
        """What a call without tasks of its own uses, if it begins now."""
        now = self.now()
        if now is not self.chosen:
            return now
        if _capturing(self.device):
            owner = None if self.owner is None else self.owner()
            self._kept.captured[now.rows] = None if owner is None else owner.followed()
            return now
        return self.frozen

    @contextmanager
    def call(
        self,
        mixtures: list[Mixture] | None = None,
        missing: dict[str, str] | None = None,
        now: Current | None = None,
        **options: Any,
    ) -> Iterator[None]:
        """A call of the model, with these tasks or (None) those of ``now``; nothing is loaded meanwhile.

        now: `counting`, by default this moment's;  options: further fields of `Current`.
        Raises RuntimeError for tasks of its own while a CUDA graph is captured.
        """
        with self.held():
            if mixtures is not None:
                if _capturing(self.device):
                    raise RuntimeError(
                        "a CUDA graph cannot follow the tasks= of a call, whose tensors are gone afterwards: "
                        "set_task() or set_tasks() before the capture, and call without tasks="
                    )
                with self.using(mixtures, missing, called=True, seen=self.watch, **options):
                    yield
                return
            now = self.counting() if now is None else now
            mine = replace(now, called=True, outer=None, seen=self.watch, graph=-1, **options)
            with self._within(mine, traced=now.rows > 1):  # a program must know where the rows are
                yield

    @contextmanager
    def _within(self, call: Current, traced: bool = True) -> Iterator[None]:
        turn = self.compiled
        if turn:
            self._gate.turn.acquire()
        call.outer, call.graph = call_here(), backward_here()
        recorded = self._history.record(call) if torch.is_grad_enabled() else None
        calls.set(call)
        if traced:
            self._trace(call, True)
        made = _put_by() if parametrize._cache_enabled else None
        try:
            yield
        finally:
            if made is not None:
                parametrize._cache = made if parametrize._cache_enabled else {}
            if traced:
                self._trace(call, False)
            left(call)
            if recorded is not None:
                recorded.close()
            if turn:
                self._gate.turn.release()

    def _trace(self, call: Current, opened: bool) -> None:
        with self._gate.lock:
            (self._open.append if opened else self._open.remove)(call)
            self.traced = self._open[-1] if self._open else self.chosen

    def held(self) -> AbstractContextManager[None]:
        """No task is loaded or deleted meanwhile."""
        return nullcontext() if self._inside() else self._gate.held()

    def alone(self) -> AbstractContextManager[None]:
        """For loading and deleting: waits for the calls of other threads.  Raises RuntimeError within a call."""
        if self._gate.changing_here:
            return nullcontext()
        if self._inside():
            raise RuntimeError("a task cannot be loaded or deleted within a call of the model that may use it")
        return self._gate.alone()

    def _inside(self) -> bool:
        """Whether this thread is within a call of this state's model, or is the one that loads."""
        if self._gate.changing_here or self._gate.held_here:
            return True
        call = call_here()
        while call is not None and not (call.state is self and call.called):
            call = call.outer
        return call is not None


def _put_by() -> dict[Any, Any]:
    """What `parametrize.cached` has, which is of other tasks than those of a call that begins: that starts anew."""
    made, parametrize._cache = parametrize._cache, {}
    return made


def _capturing(device: torch.device) -> bool:
    """A CUDA graph must read the tensors that are written in place, whenever it is replayed."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
