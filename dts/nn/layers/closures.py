"""What functions close over, and how to put something else there: wrappers and hooks keep what they need in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType
from typing import Any

MOST = 256  # functions and objects that are looked into, from one wrapper or from all hooks
Place = tuple[Any, Callable[[Any], None]]  # what is there, and what puts something there


def closed_over(function: FunctionType) -> Iterator[Place]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents, partial(setattr, cell, "cell_contents")
        except ValueError:  # it is empty
            continue
