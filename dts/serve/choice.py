"""What ``model`` asks for: the base, a task, a mixture "a:0.7,b:0.3", or "auto", a task that the input chooses."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from dts.nn.selection import AUTO, BASE, Selection
from dts.serve.refused import Refused

MEMBERS = 16  # of a mixture: each takes memory and time
HEAVIEST = 1000.0  # a weight: beyond it numbers overflow
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)  # float() takes 1_0 and other alphabets' too


@dataclass(frozen=True)
class Choice:
    """name: as it was asked for;  weights: (task, weight) of each member, none: the base;  auto: each row's own input
    chooses its task, see `Row.routed`."""

    name: str
    weights: tuple[tuple[str, float], ...] = ()
    auto: bool = False

    @property
    def tasks(self) -> list[str]:
        return [task for task, _ in self.weights]

    @property
    def selection(self) -> Selection:
        """As `DTSModel` takes it."""
        if self.auto:
            raise RuntimeError("no task was chosen for this row yet")
        if not self.weights:
            return BASE
        if self.weights[0][1] == 1 and len(self.weights) == 1:
            return self.weights[0][0]
        return dict(self.weights)


def choice_of(model: str, base_name: str) -> Choice:
    """Raises Refused for what is no mixture; whether the tasks are there is not looked at."""
    if model == base_name:
        return Choice(model)
    if model == AUTO:
        return Choice(model, auto=True)
    if ":" not in model and "," not in model:
        return Choice(model, ((model, 1.0),))
    members = model.split(",")
    if len(members) > MEMBERS:
        raise Refused(f"a mixture has at most {MEMBERS} tasks, this one {len(members)}", param="model")
    weights: dict[str, float] = {}
    for member in members:
        name, _, text = (part.strip() for part in member.partition(":"))
        weight = float(text) if NUMBER.fullmatch(text) else math.nan
        if not name or not abs(weight) <= HEAVIEST:
            raise Refused(
                f"a mixture is task:weight,task:weight, its weights finite numbers up to {HEAVIEST:g}; not "
                f"{member[:100]!r}",
                param="model",
            )
        if name == base_name:
            words = f"{name!r} is the base, of which every task is a difference: a mixture has only tasks"
            raise Refused(words, param="model")
        if name in weights:
            raise Refused(f"{name!r} is in the mixture twice", param="model")
        weights[name] = weight
    return Choice(model, tuple(weights.items()))
