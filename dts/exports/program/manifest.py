"""What a program's user must know beside its tensors: which task has which slot, what goes in and comes out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from dts.nn.selection import Selection, Selections, names_in, one_a_row

KEY = "dts"  # of the manifest in a file's own metadata
INPUTS = ("slots", "weights")  # of every program, before those of its model


@dataclass(frozen=True)
class Manifest:
    """Goes with every program, as JSON in the file's own metadata.

    tasks: name -> slot;  labels: name -> names of the classes, where the adapter says them
    rows: the routing has a row for each row of the inputs; else one for all;  places: tasks in a row's mixture
    inputs: all of them in order, "slots" and "weights" first;  outputs: in order
    heads: layer -> {"base": the base has it too, "tasks": {name: shape of the task's own}}
    """

    tasks: dict[str, int]
    labels: dict[str, list[str]]
    rows: bool
    places: int
    inputs: list[str]
    outputs: list[str]
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str | None, where: object) -> Manifest:
        """Raises ValueError for a file that no export of ours wrote; where: the file."""
        try:
            return cls(**json.loads(text or ""))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where} has no manifest of tasks: it is no program that dts export wrote") from error

    def routing(self, tasks: Selections, rows: int = 1) -> dict[str, Tensor]:
        """The inputs "slots" int32 [R, places] and "weights" float32 [R, places] for a selection.

        tasks: one item for all rows, or a list with one a row;  rows: of the batch
        Raises ValueError for unknown tasks, too many in a mixture, rows that differ in a program with one routing for
        all, and for heads that a row's tasks do not have.
        """
        listed = one_a_row(tasks)
        each: list[Selection] = [tasks] if listed is None else listed  # type: ignore[list-item]  # one, as it is no list
        names = [names_in(one) for one in each]
        unknown = sorted({name for own in names for name in own if name not in self.tasks})
        if unknown:
            raise ValueError(f"no task {', '.join(map(repr, unknown))}; the program has {list(self.tasks)}")
        if listed is not None and self.rows and len(each) != rows:
            raise ValueError(f"tasks has {len(each)} items, one a row, but the inputs have {rows} rows")
        if not self.rows and any(one != each[0] for one in each):
            raise ValueError("the program has one routing for all rows: give one task, or export with routing='rows'")
        most = max(map(len, names), default=0)
        if most > self.places:
            raise ValueError(
                f"a mixture of {most} tasks needs a program with places={most}; this one has {self.places}"
            )
        for row, (own, one) in enumerate(zip(names, each)):
            self._check_heads(row, own)
            self._check_weights(row, one)
        given = names[:1] if not self.rows else names if listed is not None else names * rows
        asked = each[:1] if not self.rows else each if listed is not None else each * rows
        slots = torch.full((len(given), self.places), -1, dtype=torch.int32)
        weights = torch.zeros(len(given), self.places)
        for row, (own, one) in enumerate(zip(given, asked)):
            for place, name in enumerate(own):
                slots[row, place] = self.tasks[name]
                weights[row, place] = float(one[name]) if isinstance(one, Mapping) else 1.0
        return {"slots": slots, "weights": weights}

    def _check_heads(self, row: int, names: list[str]) -> None:
        for layer, head in self.heads.items():
            shapes = {tuple(head["tasks"][name]) for name in names if name in head["tasks"]}
            without = [name for name in names if name not in head["tasks"]] or ([] if names else ["the base"])
            if len(shapes) > 1 or shapes and without:
                raise ValueError(f"row {row} mixes tasks whose {layer!r} differs: {names}")
            if without and not head["base"]:
                raise ValueError(
                    f"row {row} uses {', '.join(without)}, without a {layer!r} of its own; tasks that have one: "
                    f"{sorted(head['tasks'])}"
                )

    def _check_weights(self, row: int, one: Selection) -> None:
        """A head that only tasks have is nothing where all of their weights are 0."""
        if not isinstance(one, Mapping) or not one or any(map(float, one.values())):
            return
        if lacking := [layer for layer, head in self.heads.items() if not head["base"]]:
            raise ValueError(
                f"row {row} gives {', '.join(map(repr, one))} the weight 0, which leaves nothing of "
                f"{', '.join(map(repr, lacking))}, and the base has none"
            )
