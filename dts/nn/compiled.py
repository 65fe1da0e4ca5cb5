"""`torch.compile(model)`: what is compiled is the base's forward; who asks for which tasks stays outside.

Names of tasks are values of Python, and a program that had read them would be one for each of them.  So the frame of a
`DTSModel`'s call is none that a program is made of: it runs as it is, with the compiler put aside, makes tensors of the
names, and gives the compiler back for the base's forward, one whole program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch._C._dynamo import eval_frame
from torch._C._dynamo.eval_frame import set_eval_frame

F = TypeVar("F", bound=Callable[..., Any])
Compiler = Callable[..., Any] | bool | None  # what torch.compile put around a call; None: nothing


def uncompiled(function: F) -> F:
    """Decorator: no program begins with a frame of this function; those of what it calls are as ever.

    What `torch._dynamo.skip` does, which imports for seconds, by names of torch's own.  Where a release has others, a
    call that is compiled breaks there, and everything else is as it was.
    """
    try:
        skipped = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT)
        eval_frame.set_code_exec_strategy(function.__code__, skipped)
    except (AttributeError, TypeError):
        pass
    return function


def put_aside() -> Compiler:
    """The compiler around this call, which then does nothing until `given_back`."""
    compiler: Compiler = set_eval_frame(None)
    return compiler


def given_back(compiler: Compiler) -> None:
    if compiler is not None:
        set_eval_frame(compiler)


def as_program(run: Callable[..., Any], compiler: Compiler) -> Callable[..., Any]:
    """``run`` as one program of the compiler that was `put_aside`; as it is where there is none."""
    return run if compiler is None else functools.partial(_run, compiler, run)


def _run(compiler: Compiler, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    set_eval_frame(compiler)
    try:
        return _whole(run, args, kwargs)
    finally:
        set_eval_frame(None)


def _whole(run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The frame that a program begins with: modules of torch, and hooks, begin none."""
    return run(*args, **kwargs)


def broken(what: str) -> None:
    """Breaks the program that is traced; where it must be one whole (``fullgraph``), an error with these words."""
    torch._dynamo.graph_break(msg=what)


def refused(compiler: Compiler, what: str) -> None:
    """`broken` for a compiler that was `put_aside`: after this the call may go on without it."""
    set_eval_frame(compiler)
    try:
        broken(what)
    finally:
        set_eval_frame(None)


def compiles_itself(model: Any, method: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether transformers' ``generate`` may compile its steps, as by itself on a GPU where a cache allows it."""
    if method != "generate":
        return False
    configs = kwargs.get("generation_config"), getattr(model, "generation_config", None)
    asked = [kwargs, *(vars(config) for config in configs if hasattr(config, "__dict__"))]
    if any(one.get("cache_implementation") or one.get("compile_config") for one in asked):
        return True
    return bool(getattr(kwargs.get("past_key_values"), "is_compileable", False))
