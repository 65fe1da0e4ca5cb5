"""What ``model`` asks for: the base, a task, or a mixture "a:0.7,b:0.3"."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dts.nn.selection import BASE, Selection
from dts.serve.refused import Refused

MEMBERS = 16  # of a mixture: each takes memory and time


@dataclass(frozen=True)
class Choice:
    """name: as it was asked for;  weights: (task, weight) of each member, none: the base."""

    name: str
    weights: tuple[tuple[str, float], ...] = ()

    @property
    def tasks(self) -> list[str]:
        return [task for task, _ in self.weights]

    @property
    def selection(self) -> Selection:
        """As `DTSModel` takes it."""
        if not self.weights:
            return BASE
        if self.weights[0][1] == 1 and len(self.weights) == 1:
            return self.weights[0][0]
        return dict(self.weights)


def choice_of(model: str, base_name: str) -> Choice:
    """Raises Refused for what is no mixture; whether the tasks are there is not looked at."""
    if model == base_name:
        return Choice(model)
    if ":" not in model and "," not in model:
        return Choice(model, ((model, 1.0),))
    members = model.split(",")
    if len(members) > MEMBERS:
        raise Refused(f"a mixture has at most {MEMBERS} tasks, this one {len(members)}", param="model")
    weights: dict[str, float] = {}
    for member in members:
        name, _, text = (part.strip() for part in member.partition(":"))
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not name or not math.isfinite(weight):
            raise Refused(f"a mixture is task:weight,task:weight, its weights finite numbers; not {member[:100]!r}")
        if name == base_name:
            raise Refused(f"{name!r} is the base, of which every task is a difference: a mixture has only tasks")
        if name in weights:
            raise Refused(f"{name!r} is in the mixture twice", param="model")
        weights[name] = weight
    return Choice(model, tuple(weights.items()))
