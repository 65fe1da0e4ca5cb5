"""Graphs in which layers that share an input take one launch of `shrink`, and the proof that they compute the same.

Two graphs of the call are recorded.  In the first nothing is shared, and it is looked at every operation: which
products follow one another with the same input, and what is written into it meanwhile (`dts_kernels.gpu.same_input`).
The second shares what the first has shown, with the same look.  What no operation shows, a kernel that is given a
pointer, shows in the numbers: both graphs are replayed from the same state, and unless all bits are the same the first
one stays.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dts_kernels.gpu import products, same_input
from dts_kernels.gpu.same_input import Group, Recording
from dts_kernels.recorded import onlooker

Run = Callable[[], Any]
Recorded = tuple[Callable[[], None], Any]  # what repeats a call, the outputs it writes into


class _Writes(TorchDispatchMode):
    """Tells a recording what is written.

    written: of all memory that was there before, but not the memory itself;  made: the same of what came since
    """

    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Parts of the model that are compiled are so under this mode, too."""
        return True

    def __init__(self, recording: Recording):
        super().__init__()
        self.recording = recording
        self.written, self.made = dict[int, StorageWeakRef](), dict[int, StorageWeakRef]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, schema = kwargs or {}, getattr(function, "_schema", None)
        if schema is None:  # an operation of operations, which may write anything
            self.recording.forget()
            return function(*args, **kwargs)
        for i, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in _tensors(args[i] if i < len(args) else kwargs.get(argument.name)):
                    self.recording.written(tensor)
                    self._keep(self.written, tensor)
        result = function(*args, **kwargs)
        given = {storage._cdata for storage in map(_storage, _tensors((args, kwargs))) if storage is not None}
        for tensor in _tensors(result):
            self._keep(self.made, tensor, given)
        return result

    def _keep(self, memory: dict[int, StorageWeakRef], tensor: Tensor, known: AbstractSet[int] = frozenset()) -> None:
        storage = _storage(tensor)
        if storage is not None and storage._cdata not in known and storage._cdata not in self.made:
            memory.setdefault(storage._cdata, StorageWeakRef(storage))


class _Looked:
    """A call that is looked at where it is captured, sharing what an earlier one has shown."""

    def __init__(self, run: Run, captured: Callable[[], bool], groups: dict[int, Group] | None = None):
        self._run, self._captured, self._groups = run, captured, groups
        self.last, self.memory = Recording(), dict[int, StorageWeakRef]()

    def __call__(self) -> Any:
        if not self._captured():
            return self._run()
        self.last = Recording(self._groups)
        with same_input.recording(self.last), onlooker(), _Writes(self.last) as writes:
            out = self._run()
        self.memory |= writes.written
        return out

    def written(self) -> list[Tensor]:
        """The bytes of all memory that the call writes into and that was there before: caches, inputs."""
        alive = (torch.UntypedStorage._new_with_weak_ptr(ref.cdata) for ref in self.memory.values())
        return [_bytes_of(storage) for storage in alive if storage is not None and storage.nbytes()]


def record_sharing(
    run: Run,
    record: Callable[[Run], Recorded],
    again: Callable[[Run], Recorded],
    captured: Callable[[], bool],
    inputs: Sequence[Tensor],
) -> Recorded:
    """``record(run)`` with one launch of `shrink` for layers that follow one another with the same input.

    again: records it once more, all of it compiled and loaded;  captured: whether a run is recorded now
    inputs: what run reads;  those of floating point are other numbers in a second comparison
    Where nothing is shared it is ``record(run)``.  Where bits differ, it is that too, with a UserWarning.
    """
    first = _Looked(run, captured)
    alone = record(first)
    groups = first.last.found
    if not groups:
        return alone
    products.prepare(groups.values())
    written = first.written()
    with _restored(written) as restore:
        second = _Looked(run, captured, groups)
        shared = again(second)
        if not second.last.taken:
            return alone
        equal = _equal(alone, shared, written, restore)
        given = [t for t in inputs if t.is_floating_point()]
        if equal and given:
            with _restored(given):
                for one in given:
                    one.copy_(-one.flip(tuple(range(one.dim()))))
                equal = _equal(alone, shared, written, restore)
    if equal:
        return shared
    warnings.warn(
        "capture(share_inputs=True): with one launch for layers that share an input the graph gave other bits than "
        "without, or nothing that can be compared, so the one that is kept shares nothing.  Something writes into such "
        "an input where no operation shows it, or the model's bits differ from call to call",
        stacklevel=4,
    )
    return alone


@contextmanager
def _restored(tensors: Sequence[Tensor]) -> Iterator[Callable[[], None]]:
    """Afterwards, and whenever what is given is called, they are as they are now."""
    kept = [one.clone() for one in tensors]

    def restore() -> None:
        for one, before in zip(tensors, kept):
            one.copy_(before)

    try:
        yield restore
    finally:
        restore()


def _equal(one: Recorded, other: Recorded, written: Sequence[Tensor], restore: Callable[[], None]) -> bool:
    """Whether both write the same bits into their outputs and into memory that was there, from the same state on."""
    bits = []
    for replay, outputs in (one, other):
        restore()
        replay()
        bits.append([_bits(t).clone() for t in (*_tensors(outputs), *written)])
    restore()
    (first, second) = bits
    return bool(first) and len(first) == len(second) and all(map(torch.equal, first, second))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    try:
        return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # of a class whose memory is elsewhere
        return None


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
