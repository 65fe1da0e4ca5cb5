"""A launcher that launches nothing, and looks at each launch that is repeated as Triton would have."""

import torch

from benchmarks.kernels import host


class Pointer:
    """What a kernel is given, as Triton looks at a tensor."""

    def __init__(self, pointer: int, dtype: torch.dtype):
        self.pointer, self.dtype = pointer, dtype

    def data_ptr(self) -> int:
        return self.pointer


class Watching(host.Nothing):
    """Looks at each repeated launch as Triton would have.  first, again: kernels in their order."""

    def __init__(self):
        self.first, self.again, self.now, self.pointers = [], [], 0, []

    def launch(self, call):
        compiled = super().launch(call)
        compiled.run = lambda *arguments: self.repeated(call, compiled, *arguments)
        self.first.append(call.kernel)
        return compiled

    def repeated(self, call, compiled, x, y, z, stream, function, metadata, _, enter, leave, *arguments):
        count = len(call.pointers) + len(call.sizes)
        constants = dict(zip(call.kernel.arg_names[count:], arguments[count:], strict=True))
        pointers = [Pointer(p, t.dtype) for p, t in zip(arguments, call.pointers)]
        sizes = arguments[len(pointers) : count]
        seen = host.look(call.kernel, *pointers, *sizes, grid=None, warmup=False, **constants, **call.options).seen
        assert seen == compiled.seen and (x, y, z) == (*call.grid, 1, 1)[:3] and sizes == call.sizes
        self.again.append(call.kernel)
        self.pointers.append(arguments[: len(pointers)])

    def stream(self, index):
        return self.now


def repeats(launcher, call) -> bool:
    """Whether a call launches all that it launches without a look; else it has looked at all of it."""
    first, again = len(launcher.first), len(launcher.again)
    call()
    new, repeated = len(launcher.first) - first, len(launcher.again) - again
    assert bool(new) != bool(repeated), (new, repeated)
    return bool(repeated)
