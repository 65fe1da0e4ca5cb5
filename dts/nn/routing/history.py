"""Past calls whose backward pass may still come, so that one which runs a part of a forward again finds its routing.

Gradient checkpointing runs parts of a forward within the backward pass.  Nodes of a graph are numbered as they are
made, in each thread for itself; a call that records gradients keeps the numbers of its own.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

import torch

from dts.nn.routing.current import Current, backward_here

KEPT = 1024  # calls


@dataclass(eq=False)
class Recorded:
    """A call whose graph nodes have the numbers start to end, which count in each thread."""

    call: Current
    thread: int
    start: int
    end: float = math.inf

    def close(self) -> None:
        self.end = _next_node()


class History:
    """A copy or a pickle has none.

    switched: where tasks were last switched for all calls: (thread, next node, backward pass).
    """

    def __init__(self) -> None:
        self._recorded: deque[Recorded] = deque(maxlen=KEPT)
        self._lock = threading.Lock()
        self.switched = threading.get_ident(), 0, -1

    def __reduce__(self) -> tuple[type[History], tuple[()]]:
        return History, ()

    def record(self, call: Current) -> Recorded:
        recorded = Recorded(call, threading.get_ident(), _next_node())
        with self._lock:
            self._recorded.append(recorded)
        return recorded

    def switch(self) -> None:
        """Tasks are switched here and now."""
        self.switched = threading.get_ident(), _next_node(), backward_here()

    def again(self, chosen: Current, frozen: Current) -> Current:
        """The routing of the forward of which the present backward pass runs a part again.

        chosen, frozen: what is set for all calls, for a module that was called past the model.
        Raises RuntimeError where it is not known.
        """
        node = torch._C._current_autograd_node()
        number = -1 if node is None else node._sequence_nr()
        with self._lock:
            found = {r.thread: r.call for r in self._recorded if r.start <= number < r.end}  # the innermost of each
            mixtures = [r.call.mixtures for r in self._recorded]
        calls = list(found.values())
        if calls and all(call.mixtures == calls[0].mixtures and call.axis == calls[0].axis for call in calls):
            return calls[0]
        thread, switched, _ = self.switched
        same = thread == threading.get_ident() or switched == 0
        if not calls and same and number >= switched and all(m == chosen.mixtures for m in mixtures):
            return frozen  # a module was called past the model, and only ever with this task
        raise RuntimeError(
            "a backward pass runs a part of a forward again (gradient checkpointing), and which task "
            "that forward used is not known here: call the DTSModel itself, from one thread, and "
            "set_task() only after the backward pass"
        )


def _next_node() -> int:
    return torch.autograd._get_sequence_nr()
