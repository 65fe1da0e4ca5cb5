"""model="auto": the task of each row, chosen by its input among all that can be loaded together."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import torch

from dts.checkpoint.errors import first_line
from dts.nn import DTSModel
from dts.serve.choice import Choice
from dts.serve.encode import padded
from dts.serve.job import Row
from dts.serve.refused import NoRoom, Refused
from dts.serve.residents import Residents

log = logging.getLogger("dts.serve")


def candidates(residents: Residents, allowed: Collection[str], keep: Collection[str]) -> list[str]:
    """Loads those of the allowed tasks that can be, as long as there is room beside ``keep``; those that are loaded."""
    found: list[str] = []
    beyond = 0
    for name in sorted(allowed, key=lambda one: one not in residents.loaded):
        try:
            residents.have([name], {*keep, *found})
        except NoRoom:  # as thousands may have none
            beyond += 1
        except Refused as error:  # damaged, of another base: it is not among those to choose from
            log.info("auto does not choose %s: %s", name, error)
        else:
            found.append(name)
    if beyond:
        log.info("auto does not choose among %d more, for which there is no room in memory", beyond)
    return found


@torch.no_grad()
def choose(model: DTSModel, rows: Sequence[Row], names: Sequence[str], pad: int) -> None:
    """Gives each row its task, by its input (`DTSModel.choose_tasks`).

    Raises Refused (400) where that cannot be told from these adapters.
    """
    if not names:
        raise Refused("no task is there to choose from", 400, "no_router", "model")
    batch = padded([row.ids for row in rows], pad, model.device)
    try:
        found = model.choose_tasks(batch)
    except Exception as error:
        why = first_line(error)
        raise Refused(f"this model cannot choose a task for an input: {why}", 400, "no_router", "model") from None
    columns = [found.names.index(name) for name in names]
    for row, best in zip(rows, found.scores[:, columns].argmax(1).tolist()):
        row.routed = Choice(names[best], ((names[best], 1.0),))
