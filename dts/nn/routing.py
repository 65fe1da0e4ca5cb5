"""Which task each row uses: a state that every DTS layer of a model shares, and the routing of each call."""

from __future__ import annotations

import math
import threading
import warnings
from collections import deque
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dts_kernels import Routing

Mixture = dict[int, float]  # slot -> gamma; empty is the base


class _Base:
    """The base as a task, said in so many words: ``tasks=dts.BASE``.  There is one, also after a copy or a pickle."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "dts.BASE"

    def __reduce__(self) -> str:
        return "BASE"


BASE = _Base()


@dataclass(eq=False)
class Current:
    """What one call is routed by.

    routing: `Routing` with one entry (all rows alike) or one a row of the batch;  mixtures: the same as Python values.
    missing: layer name -> why it cannot run now (a head the row's task does not have).
    axis, axes: layer name -> where the rows are in its input, see `LayerDeltas`; None: not looked for.
    probing: the base runs on any input, only to see where the rows are; ids of a task's own vocabulary are no error.
    bypassed: names of parameters that were read past their layer's forward, where somebody asks for them.
    called: a call of the model; else a part of one, or a stretch without tasks.
    seen: names of layers that ran or were read, where somebody asks for them.
    graph: the backward pass within which it began, -1 = none.
    """

    state: RoutingState
    routing: Routing
    mixtures: list[Mixture]
    missing: dict[str, str] = field(default_factory=dict)
    axis: dict[str, int] | None = None
    axes: dict[str, tuple] | None = None
    probing: bool = False
    bypassed: set[str] | None = None
    called: bool = False
    outer: Current | None = None
    seen: set[str] | None = None
    graph: int = -1

    @property
    def rows(self) -> int:
        """Entries of the routing: 1, or the batch size."""
        return self.routing.slots.shape[0]

    def on(self, device: torch.device) -> Routing:
        """The routing on a layer's device."""
        return self.routing if self.routing.slots.device == device else self.routing.to(device)

    def uses(self, slots: set[int]) -> bool:
        """Whether some row uses one of these slots."""
        return any(slot in slots for mixture in self.mixtures for slot in mixture)


@dataclass(eq=False)
class Recorded:
    """A call whose graph nodes have the numbers start to end, which count in each thread."""

    call: Current
    thread: int
    start: int
    end: float = math.inf


_calls: ContextVar[Current | None] = ContextVar("dts_call", default=None)
call_here = _calls.get  # the innermost call of this thread, of whatever model
tracing = torch.compiler.is_dynamo_compiling
backward_here = torch._C._current_graph_task_id  # -1 outside of a backward pass
RECORDED = 1024  # calls whose backward pass may still come


class RoutingState:
    """The routing that `set` chose, held in tensors so that a switch is other contents, never another program; and that
    of each call under way, which belongs to the thread (the context) that calls.

    A call without tasks of its own uses what was chosen when it began: `frozen`, tensors that nobody writes into.
    Compiled programs and CUDA graphs read those that are written in place (``chosen``), and within a call with tasks
    those of the call (``traced``).  Programs do not know threads: once one was compiled, calls take turns.

    A backward pass that runs parts of a forward again (gradient checkpointing) uses the routing of that forward: nodes
    of a graph are numbered as they are made, and calls that record gradients keep their numbers.

    compiled: some layer was traced;  watch: names of layers that acted, while somebody asks for them.
    """

    def __init__(self, device="cpu"):
        self.chosen = Current(self, _routing([{}], 1, device), [{}])
        self.traced = self.chosen
        self.compiled = self.warned = False
        self.watch: set[str] | None = None
        self._open: list[Current] = []
        self._locks()
        self._freeze()

    def _locks(self) -> None:
        self._gate, self._turn = threading.Condition(), threading.RLock()
        self._calls = self._waiting = 0
        self._changing: int | None = None  # the thread that loads or deletes
        self._recorded: deque[Recorded] = deque(maxlen=RECORDED)
        self._switched = threading.get_ident(), 0, -1  # where `set` was called last: thread, next node, backward pass

    def __getstate__(self) -> dict:
        """Copies and pickles have locks of their own and no calls under way."""
        own = ("_gate", "_turn", "_calls", "_waiting", "_changing", "_recorded", "_switched")
        state = {k: v for k, v in vars(self).items() if k not in own}
        return state | {"_open": [], "traced": self.chosen}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._locks()

    # ---- reading -----------------------------------------------------------------------------------------------

    def now(self) -> Current:
        """The routing of the call that this is part of, else the chosen one."""
        if tracing():
            self.compiled = True
            return self.traced
        call, graph = call_here(), backward_here()
        while call is not None:
            if call.state is self and call.graph == graph:
                return call
            call = call.outer
        return self.chosen if graph in (-1, self._switched[2]) else self._again()

    def _near(self) -> Current:
        """The innermost call under way in this thread, whatever backward pass it is for."""
        call = call_here()
        while call is not None and call.state is not self:
            call = call.outer
        return self.chosen if call is None else call

    def _again(self) -> Current:
        """The routing of the forward of which a backward pass runs a part again."""
        node = torch._C._current_autograd_node()
        number = -1 if node is None else node._sequence_nr()
        with self._gate:
            found = {r.thread: r.call for r in self._recorded if r.start <= number < r.end}  # the innermost of each
            mixtures = [r.call.mixtures for r in self._recorded]
        calls = list(found.values())
        if calls and all(call.mixtures == calls[0].mixtures and call.axis == calls[0].axis for call in calls):
            return calls[0]
        thread, switched, _ = self._switched
        same = thread == threading.get_ident() or switched == 0
        if not calls and same and number >= switched and all(m == self.chosen.mixtures for m in mixtures):
            return self.frozen  # a module was called past the model, and only ever with this task
        raise RuntimeError(
            "a backward pass runs a part of a forward again (gradient checkpointing), and which task "
            "that forward used is not known here: call the DTSModel itself, from one thread, and "
            "set_task() only after the backward pass"
        )

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
    def device(self) -> torch.device:
        return self.chosen.routing.slots.device

    def on(self, device: torch.device) -> Routing:
        return self.now().on(device)

    # ---- changing ----------------------------------------------------------------------------------------------

    def to(self, device) -> None:
        self.chosen.routing = self.chosen.routing.to(device)
        self._freeze()

    def set(self, mixtures: list[Mixture], missing: dict[str, str] | None = None) -> None:
        """Switch.  Shapes that fit are written in place, so compiled programs and CUDA graphs stay valid."""
        routing = self.chosen.routing
        new = _routing(mixtures, routing.slots.shape[1], routing.slots.device)
        with self._gate:
            self.chosen.mixtures, self.chosen.missing = mixtures, missing or {}
            if new.slots.shape == routing.slots.shape:
                routing.slots.copy_(new.slots)
                routing.weights.copy_(new.weights)
            else:
                self.chosen.routing = new
            self._freeze()
            self._switched = threading.get_ident(), _next_node(), backward_here()

    def _freeze(self) -> None:
        """The chosen routing as it is now, for calls: a switch does not reach those under way, nor their gradients."""
        routing = self.chosen.routing
        with torch.inference_mode(False):
            routing = Routing(routing.slots.clone(), routing.weights.clone())
        self.frozen = Current(self, routing, self.chosen.mixtures, self.chosen.missing)

    @contextmanager
    def using(self, mixtures: list[Mixture], missing: dict[str, str] | None = None, **options):
        """Other tasks for a while, in this thread.  options: further fields of `Current`."""
        near = self._near()
        places = near.routing.slots.shape[1]
        options.setdefault("probing", near.probing)
        options.setdefault("seen", near.seen)
        with self._within(Current(self, _routing(mixtures, places, self.device), mixtures, missing or {}, **options)):
            yield

    @contextmanager
    def call(self, mixtures: list[Mixture] | None = None, missing: dict[str, str] | None = None, **options):
        """A call of the model, with these tasks or (None) those that count now; nothing is loaded meanwhile."""
        with self.held():
            if mixtures is not None:
                with self.using(mixtures, missing, called=True, seen=self.watch, **options):
                    yield
                return
            now = self.now()
            if now is self.chosen and not _capturing(self.device):
                now = self.frozen
            now = Current(
                self,
                now.routing,
                now.mixtures,
                now.missing,
                now.axis,
                now.axes,
                now.probing,
                now.bypassed,
                called=True,
                seen=self.watch,
            )
            with self._within(now, traced=False):
                yield

    @contextmanager
    def _within(self, call: Current, traced: bool = True):
        turn = self.compiled
        if turn:
            self._turn.acquire()
        call.outer, call.graph = call_here(), backward_here()
        recorded = self._record(call) if torch.is_grad_enabled() else None
        token = _calls.set(call)
        if traced:
            self._trace(call, True)
        try:
            yield
        finally:
            if traced:
                self._trace(call, False)
            _calls.reset(token)
            if recorded is not None:
                recorded.end = _next_node()
            if turn:
                self._turn.release()

    def _record(self, call: Current) -> Recorded:
        recorded = Recorded(call, threading.get_ident(), _next_node())
        with self._gate:
            self._recorded.append(recorded)
        return recorded

    def rebased(self, name: str) -> None:
        """Other weights were loaded into a layer that tasks change."""
        if not self.warned:
            self.warned = True
            warnings.warn(
                f"other weights were loaded into {name!r}, and perhaps more, under the loaded tasks: these "
                f"are differences to the base that they were made for",
                stacklevel=2,
            )

    def _trace(self, call: Current, opened: bool) -> None:
        with self._gate:
            (self._open.append if opened else self._open.remove)(call)
            self.traced = self._open[-1] if self._open else self.chosen

    @contextmanager
    def held(self):
        """No task is loaded or deleted meanwhile."""
        if self._inside():
            yield
            return
        with self._gate:
            while self._waiting or self._changing is not None:
                self._gate.wait()
            self._calls += 1
        try:
            yield
        finally:
            with self._gate:
                self._calls -= 1
                self._gate.notify_all()

    @contextmanager
    def alone(self):
        """For loading and deleting: waits for the calls of other threads.  Raises RuntimeError within a call."""
        if self._inside():
            if self._changing == threading.get_ident():
                yield
                return
            raise RuntimeError("a task cannot be loaded or deleted within a call of the model that may use it")
        with self._gate:
            self._waiting += 1
            try:
                while self._calls or self._changing is not None:
                    self._gate.wait()
                self._changing = threading.get_ident()
            finally:
                self._waiting -= 1
                self._gate.notify_all()
        try:
            yield
        finally:
            with self._gate:
                self._changing = None
                self._gate.notify_all()

    def _inside(self) -> bool:
        """Whether this thread is within a call of this state's model, or is the one that loads."""
        if self._changing == threading.get_ident():
            return True
        call = call_here()
        while call is not None and not (call.state is self and call.called):
            call = call.outer
        return call is not None


def _next_node() -> int:
    return torch.autograd._get_sequence_nr()


def _capturing(device: torch.device) -> bool:
    """A CUDA graph must read the tensors that are written in place, whenever it is replayed."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _routing(mixtures: list[Mixture], places: int, device) -> Routing:
    """Never fewer places than before: going back from a mixture to one task keeps the shape."""
    with torch.inference_mode(False):
        routing = Routing.of(mixtures, device)
        missing = places - routing.slots.shape[1]
        if missing > 0:
            pad = torch.nn.functional.pad
            routing = Routing(pad(routing.slots, (0, missing), value=-1), pad(routing.weights, (0, missing)))
        return routing


def groups(mixtures: list[Mixture]) -> list[tuple[Mixture, list[int]]]:
    """The distinct mixtures, each with the rows that use it, in order of first use."""
    found: list[tuple[Mixture, list[int]]] = []
    for row, mixture in enumerate(mixtures):
        for other, rows in found:
            if other == mixture:
                rows.append(row)
                break
        else:
            found.append((mixture, [row]))
    return found


def gammas(routing: Routing, slots: int) -> Tensor:
    """The routing as a matrix: float32 [entries, slots], the weight of each slot."""
    index = torch.where((routing.slots < 0) | (routing.slots >= slots), slots, routing.slots).long()
    dense = torch.zeros(index.shape[0], slots + 1, device=index.device)
    return dense.scatter_add(1, index, routing.weights)[:, :slots]
