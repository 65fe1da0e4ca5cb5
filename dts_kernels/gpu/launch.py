"""How a kernel is launched: through Triton the first time, and straight to what Triton picked from then on.

Triton looks at every argument of every launch, to find the compiled kernel for it: pointers that are multiples of 16
bytes, numbers that are 1 or a multiple of 16, and dtypes have kernels of their own.  That takes the host longer than
a small product takes the card.  A `Bound` launch skips it, so whoever repeats one guarantees that Triton would pick
the same kernel again: its numbers are kept here, and its pointers are multiples of `ALIGNMENT`, as those of the first
launch were (`bind` refuses others), of tensors of the same dtypes, on the same device.  `run` looks at all of this
itself; `repeat` has less to look at.
"""

from collections.abc import Callable, Hashable, Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .config import Device
from .device import Beside, device_properties, on_device

ALIGNMENT = 16  # bytes; what Triton tells pointers apart by
MOST_PROGRAMS = 65_535  # along the second and third axis of a grid


class Call(NamedTuple):
    """A launch with all its arguments, in the order of the kernel's: pointers, sizes, then constants by name.

    options: num_warps and the like, which are no arguments of the kernel
    """

    kernel: Any
    grid: tuple[int, ...]
    pointers: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    constants: dict[str, Any]
    options: dict[str, Any]


class Bound(NamedTuple):
    """A launch to be repeated: ``run(*grid, stream, function, metadata, None, None, None, *pointers, *rest)``.

    run, function, metadata: of the compiled kernel;  rest: all arguments but the pointers, which are given as integers
    (a tensor would be asked for its own, and the driver whether it is on the device)
    compiled: kept, as Triton unloads a kernel that nobody has
    """

    run: Callable[..., None]
    grid: tuple[int, int, int]
    function: Any
    metadata: Any
    rest: tuple[Any, ...]
    compiled: Any


def bind(call: Call, compiled: Any) -> Bound | None:
    """The launch that was made, to be repeated with other pointers; None where that cannot be.

    compiled: what `Launcher.launch` returned.
    """
    if compiled is None or any(t.data_ptr() % ALIGNMENT for t in call.pointers):
        return None
    names = call.kernel.arg_names[len(call.pointers) + len(call.sizes) :]
    x, y, z = (*call.grid, 1, 1)[:3]
    rest = (*call.sizes, *[call.constants[name] for name in names])
    return Bound(compiled.run, (x, y, z), compiled.function, compiled.packed_metadata, rest, compiled)


_bound: dict[tuple[Any, ...], Bound] = {}  # by all that Triton picks a kernel by, but for its pointers' alignment
MOST_BOUND = 4096


def _key(call: Call, index: int) -> tuple[Any, ...]:
    kernel, grid, pointers, sizes, constants, options = call
    return kernel, index, grid, sizes, *[t.dtype for t in pointers], *constants.items(), *options.items()


def bound_before(call: Call) -> Bound | None:
    """What repeats such a launch, if `run` has made one with whatever pointers."""
    return _bound.get(_key(call, launcher.index(call.pointers[0])))


def run(call: Call) -> Bound | None:
    """A launch, without Triton's look where the same one was made before with other pointers.

    Returns what repeats it, None where that cannot be.
    """
    pointers = call.pointers
    index = launcher.index(pointers[0])
    stream = launcher.stream(index)
    if stream is None:
        with on_device(pointers[0]):
            launcher.launch(call)
        return None
    at, key = [t.data_ptr() for t in pointers], _key(call, index)
    bound = _bound.get(key)
    unaligned = 0
    for pointer in at:
        unaligned |= pointer
    if bound is not None and not unaligned % ALIGNMENT:
        bound.run(*bound.grid, stream, bound.function, bound.metadata, None, None, None, *at, *bound.rest)
        return bound
    bound = bind(call, launcher.launch(call))
    if bound is not None:
        if len(_bound) >= MOST_BOUND:
            _bound.clear()
        _bound[key] = bound
    return bound


_prepared: set[Hashable] = set()


def prepare(key: Hashable, calls: Callable[[], Iterable[Call]]) -> None:
    """Compile and load, without a launch, what a CUDA graph will launch and an eager call does not: the driver loads
    nothing while a graph is captured.  Once for a key, which has all that the calls depend on."""
    if key not in _prepared:
        for call in calls():
            launcher.prepare(call)
        _prepared.add(key)


class Launcher:
    """Triton's, on a card or in its interpreter.  A benchmark has one that launches nothing (`use`)."""

    def index(self, tensor: Tensor) -> int:
        """Of the card that a tensor is on, -1 for the interpreter."""
        return tensor.get_device()

    def properties(self, index: int) -> Device:
        return device_properties(None if index < 0 else index)

    def launch(self, call: Call) -> Any:
        """Triton's compiled kernel, None from the interpreter.  Raises ValueError for more programs than CUDA has."""
        if any(size > MOST_PROGRAMS for size in call.grid[1:]):
            name = getattr(call.kernel, "__name__", call.kernel)
            raise ValueError(
                f"{name} of so many rows has a grid of {call.grid}, and CUDA has one of at most "
                f"{MOST_PROGRAMS} from its second number on: give fewer rows at once"
            )
        return call.kernel[call.grid](*call.pointers, *call.sizes, **call.constants, **call.options)

    def prepare(self, call: Call) -> Any:
        """Compiled and loaded, not launched."""
        if self.index(call.pointers[0]) < 0:
            return None
        with on_device(call.pointers[0]):
            compiled = call.kernel.warmup(*call.pointers, *call.sizes, grid=call.grid, **call.constants, **call.options)
            if compiled is not None:  # a hook of Triton's may say that it has been compiled
                compiled.run  # noqa: B018  Triton loads a kernel when it is first asked for this
        return compiled

    def stream(self, index: int) -> int | None:
        """The current stream of a card as Triton takes it; None where bound launches may not be repeated now.

        Not on another card than the current one, as a compiled kernel belongs to one; nor while somebody listens to
        Triton's launches; nor while a CUDA graph is captured, which would go on to use scratch that is not its own.
        """
        if index < 0 or _C._cuda_getDevice() != index or _C._cuda_isCurrentStreamCapturing() or _listening():
            return None
        return _C._cuda_getCurrentRawStream(index)

    def captures(self, index: int) -> bool:
        """Whether a CUDA graph is captured on a card, which has to be the current one."""
        return index >= 0 and _C._cuda_getDevice() == index and _C._cuda_isCurrentStreamCapturing()

    def beside(self, index: int, name: str) -> Beside:
        """Where launches of that name run beside the current stream's, while a graph is captured: eagerly the host
        would wait for itself."""
        return Beside(index, name)


_C: Any = torch._C  # what it has of CUDA is only there where PyTorch was built with it


def _listening() -> bool:
    """Whether a profiler has hooked itself into Triton's launches."""
    runtime = _runtime()
    for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        if hook is not None and getattr(hook, "calls", True):  # a chain of hooks, perhaps of none
            return True
    return False


@cache
def _runtime() -> Any:
    from triton import knobs

    return knobs.runtime


launcher = Launcher()


def use(other: Launcher) -> Launcher:
    """Every launch from now on is that launcher's; returns the one before."""
    global launcher
    _bound.clear()
    _prepared.clear()
    launcher, before = other, launcher
    return before
