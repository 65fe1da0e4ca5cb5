"""What one step of generation takes, a token of each row, by itself: the base alone, with a task a row, and PEFT's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import dts
from benchmarks.serving.made import Peft
from dts.serve.continuous import Call, RowsCache

STEPS, PROMPT, TURNS = 24, 32, 5
Step = Callable[[Tensor], Tensor]  # tokens [rows, 1] -> logits [rows, vocabulary], a place further each time


def served(model: Any, base: Any, ids: Tensor, tasks: Sequence[str] | None) -> Step:
    """As the server takes them, after a prompt.  ids: [rows, tokens];  model: base, or a `DTSModel` over it."""
    call, cache, at = Call.of(base), RowsCache(), ids.shape[1]
    rows, lines = len(ids), range(len(ids))
    full = lambda value: torch.full((rows,), value)  # noqa: E731
    call.logits(model, cache, lines, ids, full(0), full(at), [at - 1], tasks)

    def step(new: Tensor) -> Tensor:
        nonlocal at
        logits = call.logits(model, cache, lines, new, full(at), full(1), [0], tasks)
        at += 1
        return logits[:, 0]

    return step


def of_peft(peft: Peft, ids: Tensor, tasks: Sequence[str]) -> Step:
    cache = transformers.DynamicCache()
    more: dict[str, Any] = {"past_key_values": cache, "use_cache": True, "adapter_names": list(tasks)}
    peft.model(input_ids=ids, **more)
    return lambda new: peft.model(input_ids=new, **more).logits[:, -1]


@torch.no_grad()
def timed(make: Callable[[], Step], rows: int) -> float:
    """Milliseconds of a step, the median of one run of them."""
    step, found = make(), list[float]()
    new = torch.full((rows, 1), 2)
    for _ in range(STEPS):
        begun = time.perf_counter()
        new = step(new).argmax(-1, keepdim=True)
        found.append(1000 * (time.perf_counter() - begun))
    return statistics.median(found)


@torch.no_grad()
def steps(folder: Path, names: Sequence[str], peft: Peft | None, rows: int) -> Mapping[str, float]:
    """Milliseconds by who takes the step, medians of turns; every row has 32 tokens before and another task."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    model = dts.DTSModel.from_pretrained(folder / "base", {name: folder / "adapters" / name for name in names})
    model._state.keeping = True  # as an engine does
    ids = torch.randint(2, 200, (rows, PROMPT), generator=torch.Generator().manual_seed(3))
    tasks = [names[row % len(names)] for row in range(rows)]
    who: dict[str, Callable[[], Step]] = {
        "base": lambda: served(base, base, ids, None),
        "tasks": lambda: served(model, model.model, ids, tasks),
    }
    if peft is not None:
        who["peft"] = lambda: of_peft(peft, ids, tasks)
    found: dict[str, list[float]] = {name: [] for name in who}
    for _ in range(TURNS):
        for name, make in who.items():
            found[name].append(timed(make, rows))
    return {name: statistics.median(each) for name, each in found.items()}
