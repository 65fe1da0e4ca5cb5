"""Launches that were made before, as one function that makes all of them again with other pointers."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from .launch import Bound

GIVEN = "x", "y", "slots", "weights", "scratch", "parts", "weight", "bias"  # pointers of a call, besides constant ones
Step = tuple[Bound, Sequence[str | int]]  # a launch and its pointers: names of GIVEN, or what they are


def flat(steps: Sequence[Step]) -> Callable[..., None]:
    """``launches(stream, *pointers of GIVEN)``: the launches, one call behind the other.

    Written out: to put the arguments of a launch together takes the host longer than the call.
    """
    lines, constants = [], list[Any]()

    def constant(value: Any) -> str:
        constants.append(value)
        return f"c{len(constants)}"

    for bound, pointers in steps:
        run, grid, function, metadata, rest, compiled = bound
        before = ", ".join(constant(value) for value in grid)
        kernel = ", ".join(constant(value) for value in (function, metadata))
        behind = ", ".join([p if isinstance(p, str) else constant(p) for p in pointers] + [constant(v) for v in rest])
        lines.append(f"    {constant(run)}({before}, stream, {kernel}, None, None, None, {behind})")
        constant(compiled)  # kept, as Triton unloads a kernel that nobody has
    head = ", ".join(["stream", *GIVEN, *[f"c{i + 1}" for i in range(len(constants))]])
    code = _compiled("\n".join([f"def launches({head}):", *lines]))
    return FunctionType(code, {}, "launches", tuple(constants))


@lru_cache(maxsize=256)
def _compiled(source: str) -> CodeType:
    """Of the one function in a source, which is the same for launches of the same form."""
    made = compile(source, "<launches>", "exec")
    return next(code for code in made.co_consts if isinstance(code, CodeType))
