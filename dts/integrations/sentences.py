"""sentence-transformers with a task for each text: ``encoder.encode(texts, tasks=[...])``.

A `SentenceTransformer` or `CrossEncoder` whose transformer is a `DTSModel` answers for the task that is set, and saves
that.  Those of this module also take ``tasks=``.  They sort their inputs by length, so inputs of one task are given to
them together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dts.nn import DTSModel
from dts.nn.selection import AUTO, Selections, one_a_row

METHODS = ("encode", "encode_query", "encode_document", "predict")


def with_tasks(encoder: Any) -> Any:
    """The same encoder, with all that it holds, whose ``encode`` or ``predict`` takes ``tasks=`` too.

    ``tasks``: one item for all inputs, or a list with one an input; None is what is set.
    """
    model, kind = model_of(encoder), type(encoder)
    methods = {name: _routed(getattr(kind, name), model) for name in METHODS if hasattr(kind, name)}
    made: Any = object.__new__(type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods}))
    made.__dict__ = vars(encoder)
    return made


def model_of(encoder: Any) -> DTSModel:
    """The transformer of an encoder.  Raises TypeError for one of another kind."""
    found = next((module for module in encoder.modules() if type(module) is DTSModel), None)
    if found is None:
        raise TypeError("tasks= is for an encoder whose transformer is a DTSModel: encoder[0].model = DTSModel(...)")
    return found


def _routed(method: Callable[..., Any], model: DTSModel) -> Callable[..., Any]:
    def routed(self: Any, inputs: Any, *args: Any, tasks: Selections = None, **kwargs: Any) -> Any:
        run = lambda given: method(self, given, *args, **kwargs)  # noqa: E731
        if tasks is None:
            return run(inputs)
        if isinstance(tasks, str) and tasks == AUTO:
            raise ValueError('encoders are told each input\'s task: tasks="auto" is for model(...)')
        rows = one_a_row(tasks)
        if rows is None:
            with model.using_task(tasks):  # type: ignore[arg-type]  # not a list
                return run(inputs)
        if isinstance(inputs, str) or len(rows) != len(inputs):
            count = 1 if isinstance(inputs, str) else len(inputs)
            raise ValueError(f"tasks has {len(rows)} items, one an input, but there are {count} inputs")
        places: list[int] = []
        results: list[Any] = []
        for i, row in enumerate(rows):
            if i in places:
                continue
            group = [j for j in range(i, len(rows)) if rows[j] == row]
            with model.using_task(row):
                results.append(run([inputs[j] for j in group]))
            places += group
        return _joined(results, places) if results else run(inputs)

    return routed


def _joined(results: list[Any], places: list[int]) -> Any:
    """Outputs of groups in the order of the inputs, as they came: an array, a tensor or a list.

    A list where tasks give outputs of different sizes.
    """
    by_input = dict(zip(places, (one for result in results for one in result)))
    ordered = [by_input[i] for i in range(len(places))]
    if isinstance(results[0], list) or len({tuple(one.shape) for one in ordered}) > 1:
        return ordered
    if isinstance(results[0], torch.Tensor):
        return torch.stack(ordered)
    import numpy as np

    return np.stack(ordered)
