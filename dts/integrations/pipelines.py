"""transformers' pipelines with a task for each input: ``pipe(texts, tasks=[...])``.

Any pipeline takes a `DTSModel` where it takes a model, and answers for the task that is set.  Those of this module also
take ``tasks=``: each input goes with its own, in mixed batches too, and is answered in that task's words.  An input and
its task stay together from the pipeline's ``preprocess`` to its ``postprocess``, so nothing is assumed of its kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

import torch

from dts.nn import DTSModel
from dts.nn.selection import AUTO, Selection, Selections, one_a_row

TASK = "dts_task"  # the key of an input's task beside what the pipeline makes of it


def pipeline(*args: Any, tasks: Selections = None, **kwargs: Any) -> Any:
    """``transformers.pipeline`` for a `DTSModel`: the pipeline takes ``tasks=`` in its calls.

    tasks: for calls that say none; the default is what `DTSModel.set_task` chose.
    """
    import transformers

    pipe = with_tasks(transformers.pipeline(*args, **kwargs))
    if tasks is not None:
        pipe._preprocess_params["tasks"] = tasks
    return pipe


def with_tasks(pipe: Any) -> Any:
    """The same pipeline, with all that it holds, which takes ``tasks=`` too."""
    if not isinstance(pipe.model, DTSModel):
        raise TypeError(f"tasks= is for a DTSModel; this pipeline's model is a {type(pipe.model).__name__}")
    if isinstance(pipe, TaskPipeline):
        return pipe
    kind = type(pipe)
    made: Any = object.__new__(type(kind.__name__, (TaskPipeline, kind), {"__module__": kind.__module__}))
    made.__dict__ = vars(pipe)
    return made


@dataclass(frozen=True)
class Asked:
    """An input and the task it is for."""

    given: Any
    task: Selection


class TaskPipeline:
    """In front of a pipeline's class.

    ``tasks`` in a call is one item for all inputs or a list with one an input, each a task's name, a mixture or
    `dts.BASE`; None is what is set.
    """

    model: DTSModel

    def _sanitize_parameters(self, tasks: Selections = None, **kwargs: Any) -> Any:
        preprocess, *others = super()._sanitize_parameters(**kwargs)  # type: ignore[misc]
        return (preprocess if tasks is None else {**preprocess, "tasks": tasks}, *others)

    def get_iterator(self, inputs: Any, workers: int, size: int, preprocess: dict[str, Any], *params: Any) -> Any:
        inputs, preprocess = _asked(inputs, preprocess)
        return super().get_iterator(inputs, workers, size, preprocess, *params)  # type: ignore[misc]

    def run_single(self, inputs: Any, preprocess: dict[str, Any], *params: Any) -> Any:
        [inputs], preprocess = _asked([inputs], preprocess)
        return super().run_single(inputs, preprocess, *params)  # type: ignore[misc]

    def preprocess(self, given: Any, *args: Any, **kwargs: Any) -> Any:
        whole: Any = super()
        if not isinstance(given, Asked):
            return whole.preprocess(given, *args, **kwargs)
        made = whole.preprocess(given.given, *args, **kwargs)
        if isinstance(made, GeneratorType):
            return (_tagged(part, given.task) for part in made)
        return _tagged(made, given.task)

    def forward(self, model_inputs: Any, **kwargs: Any) -> Any:
        whole: Any = super()
        if not _is_tagged(model_inputs):
            return whole.forward(model_inputs, **kwargs)
        tasks = model_inputs[TASK]
        model_inputs = type(model_inputs)({key: value for key, value in model_inputs.items() if key != TASK})
        with _using(self.model, tasks):
            return _tagged(whole.forward(model_inputs, **kwargs), tasks)

    def postprocess(self, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        whole: Any = super()
        first = outputs[0] if isinstance(outputs, list) and outputs else outputs
        if not _is_tagged(first):
            return whole.postprocess(outputs, *args, **kwargs)
        task = first[TASK]
        for part in outputs if isinstance(outputs, list) else [outputs]:
            if "logits" in part:
                part["logits"] = torch.stack(self.model.task_logits(part["logits"], tasks=[task]))
            if type(part) is dict:
                del part[TASK]
        with self.model.using_task(task):
            return whole.postprocess(outputs, *args, **kwargs)


def _asked(inputs: Any, params: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Inputs with their tasks, and the parameters without them."""
    tasks = params.get("tasks")
    if tasks is None:
        return inputs, params
    if isinstance(tasks, str) and tasks == AUTO:
        raise ValueError('pipelines are told each input\'s task: tasks="auto" is for model(...) and model.predict(...)')
    rows = one_a_row(tasks)
    if rows is not None and isinstance(inputs, Sized) and len(rows) != len(inputs):
        raise ValueError(f"tasks has {len(rows)} items, one an input, but there are {len(inputs)} inputs")
    params = {key: value for key, value in params.items() if key != "tasks"}
    if hasattr(inputs, "__getitem__"):
        return AskedInputs(inputs, tasks if rows is None else rows, rows is not None), params
    return _lazily(inputs, tasks, rows), params


class AskedInputs:
    """A list, or a data set, of inputs with their tasks."""

    def __init__(self, inputs: Any, tasks: Any, each: bool):
        self.inputs, self.tasks, self.each = inputs, tasks, each

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> Asked:
        return Asked(self.inputs[i], self.tasks[i] if self.each else self.tasks)

    def __iter__(self) -> Iterator[Asked]:
        return (self[i] for i in range(len(self)))


def _lazily(inputs: Iterable[Any], tasks: Any, rows: list[Selection] | None) -> Iterator[Asked]:
    for i, given in enumerate(inputs):
        if rows is not None and i >= len(rows):
            raise ValueError(f"tasks has {len(rows)} items, one an input, but there are more inputs")
        yield Asked(given, tasks if rows is None else rows[i])


def _tagged(made: Any, task: Any) -> Any:
    if not hasattr(made, "keys"):
        raise TypeError(f"this pipeline makes a {type(made).__name__}, beside which no task can stand: set_task() it")
    made[TASK] = task
    return made


def _is_tagged(made: Any) -> bool:
    return hasattr(made, "keys") and TASK in made


def _using(model: DTSModel, tasks: Any) -> AbstractContextManager[DTSModel]:
    rows = one_a_row(tasks)
    if rows is None or all(row == rows[0] for row in rows):
        return model.using_task(tasks if rows is None else rows[0])
    return model.using_tasks(rows)
