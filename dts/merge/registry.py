"""The merging methods by name: what each needs, its options, their defaults and the paper it is from."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .tensor import TensorInfo  # noqa: F401  (the second argument of every method)


@dataclass(frozen=True)
class Option:
    """One keyword of a method."""

    default: object
    text: str


@dataclass(frozen=True)
class Method:
    """One way to merge a tensor.

    function(deltas, tensor, **options) -> merged delta: deltas is float [N, *shape], each fine-tune's difference to
    the base (to zero where ``needs_base`` is False and there is none); the result [*shape] is added to the base.
    prepare(stream, **options) -> dict, where a method needs a figure of the whole model first: ``stream()`` yields
    (TensorInfo, deltas) afresh at every call, and the dict becomes each ``TensorInfo.prepared``.  draws: at random, so
    that a seed says what comes out.
    """

    name: str
    function: Callable
    paper: str
    options: dict[str, Option]
    needs_base: bool
    prepare: Callable | None
    draws: bool = False

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").splitlines()[0]


METHODS: dict[str, Method] = {}


def register(
    name: str, paper: str, needs_base: bool = True, prepare: Callable | None = None, draws: bool = False, **texts: str
):
    """Add a function to `METHODS`; ``texts`` says what each of its keyword options means."""

    def add(function):
        keywords = [p for p in inspect.signature(function).parameters.values() if p.kind == p.KEYWORD_ONLY]
        if {p.name for p in keywords} != set(texts):
            raise TypeError(f"merging method {name}: describe exactly its options {[p.name for p in keywords]}")
        options = {p.name: Option(p.default, texts[p.name]) for p in keywords}
        METHODS[name] = Method(name, function, paper, options, needs_base, prepare, draws)
        return function

    return add


def method(name: str) -> Method:
    """The method of this name. Raises ValueError with the names there are."""
    if name not in METHODS:
        raise ValueError(f"no merging method {name!r}; there are: {', '.join(METHODS)}")
    return METHODS[name]


def complete(chosen: Method, given: dict) -> dict:
    """All options of a method, the given ones over the defaults. Raises ValueError naming all that cannot be."""
    unknown = sorted(set(given) - set(chosen.options))
    if unknown:
        has = ", ".join(f"{name}={option.default!r}" for name, option in chosen.options.items()) or "none"
        raise ValueError(f"merging method {chosen.name} has no option {', '.join(unknown)}; its options: {has}")
    wrong = []
    for name, value in given.items():
        default = chosen.options[name].default
        if isinstance(default, bool) or not isinstance(default, int | float):
            continue  # words and what may be several things: the method itself says
        if not is_number(value):
            wrong.append(f"{name} is a number, as {default!r}, not {value!r}")
    if wrong:
        raise ValueError(f"merging method {chosen.name}: {'; '.join(wrong)}")
    return {name: option.default for name, option in chosen.options.items()} | given


def is_number(value: Any) -> bool:
    """What a tensor is multiplied by: also a number of NumPy or a tensor of one element."""
    try:
        return not isinstance(value, bool | str) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def table() -> str:
    """Every method with its paper and options, as text."""
    lines = []
    for m in METHODS.values():
        lines.append(f"{m.name}  ({m.paper})\n    {m.summary}")
        lines += [f"    {name}={option.default!r}: {option.text}" for name, option in m.options.items()]
    return "\n".join(lines)
