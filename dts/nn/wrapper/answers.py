"""What a `DTSModel` that classifies answers: each row over its own task's classes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from dts.nn.heads import width
from dts.nn.predictions import Prediction, predicted
from dts.nn.routing import Mixture
from dts.nn.selection import AUTO, BASE, Selection, Selections, names_in, one_a_row
from dts.nn.views import plain
from dts.nn.wrapper.graphs import Graphs


class Answers(Graphs):
    """Logits and classes by name."""

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

    def _config(self, mixture: Mixture) -> Any:
        model = plain(self.model)
        return self._views.of(model, self._layers, self._loaded, mixture) if hasattr(model, "config") else None

    def _here(self) -> list[Selection]:
        """What calls without tasks use in this thread."""
        names = self._loaded.names
        found = [{names[slot]: weight for slot, weight in mixture.items()} for mixture in self._state.mixtures]
        return [next(iter(one)) if list(one.values()) == [1.0] else one or BASE for one in found]
