"""Prompts of several tasks for transformers' continuous batching, which answers them in threads of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from dts.nn.selection import Selection
from dts.nn.views import rebound

_NUMBERED = re.compile(r"req_(\d+)(.*)", re.DOTALL)  # what the library calls the answer to a prompt by its place


def generate_batch(
    model: nn.Module,
    call: Callable[..., Any],
    inputs: Sequence[Any],
    asked: Sequence[Selection],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """The library's ``generate_batch``, once for each task that is asked for, on its prompts: as one call gives it.

    call: of the `DTSModel`, with ``tasks=``;  inputs: prompts;  asked: a task or mixture for each.
    """
    found: dict[int, dict[str, Any]] = {}
    done: set[int] = set()
    for i, task in enumerate(asked):
        if i in done:
            continue
        own = [j for j in range(i, len(asked)) if asked[j] == task]
        done.update(own)
        answers = _of_task(model, call, task).generate_batch([inputs[j] for j in own], *args, **kwargs)
        for name, answer in answers.items():
            numbered = _NUMBERED.fullmatch(name)
            if numbered is None:
                raise NotImplementedError(
                    f"this version of transformers calls the answer to a prompt {name!r}, from which its place is not "
                    "known: set_task() each task and call generate_batch() with its prompts"
                )
            place = own[int(numbered[1])]
            answer.request_id = f"req_{place}{numbered[2]}"
            found.setdefault(place, {})[answer.request_id] = answer
    return {name: answer for place in sorted(found) for name, answer in found[place].items()}


def _of_task(model: nn.Module, call: Callable[..., Any], task: Selection) -> Any:
    """A twin of a model whose forward, called in whatever thread, is that of a task."""
    twin: nn.Module = object.__new__(type(model))
    fields = twin.__dict__
    fields.update({name: rebound(value, model, twin) for name, value in model.__dict__.items()})
    fields.pop("_compiled_call_impl", None)
    fields["forward"] = lambda *args, **kwargs: call(*args, tasks=task, **kwargs)
    return twin
