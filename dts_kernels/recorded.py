"""Whether somebody takes note of what is computed: a compiler, a trace, a mode or a transform around the call."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_is_compiling = torch.compiler.is_compiling
_dispatch_modes, _tracing = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state
_functorch_level = torch._C._functorch.peek_interpreter_stack


class _Onlookers(threading.local):
    """count: dispatch modes around this thread that look at operations of others, and need see none of ours."""

    count = 0


_onlookers = _Onlookers()


def recorded() -> bool:
    """Whether somebody takes note of what tensors are made of, or has tensors without memory."""
    if _is_compiling() or (_dispatch_modes() and _dispatch_modes() != _onlookers.count) or _tracing():
        return True
    return _functorch_level() is not None


@contextmanager
def onlooker() -> Iterator[None]:
    """Around a dispatch mode that changes nothing: a product has the same bits, and takes the same way, as without."""
    _onlookers.count += 1
    try:
        yield
    finally:
        _onlookers.count -= 1
