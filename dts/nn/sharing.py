"""Graphs in which layers that share an input take one launch of `shrink`, and the proof that they compute the same.

Three graphs of the call are recorded.  In the first nothing is shared, and it is looked at every operation: which
products follow one another with the same input, and what is written into it meanwhile (`dts_kernels.gpu.same_input`).
What no operation shows, a kernel that is given a pointer, shows in the numbers: the second graph makes what would be
shared in both ways and is replayed, for all rows with tasks that change these layers, with the given inputs and others.
The third shares what has the same bits in both ways, and showed some in all rows.  It is compared with the first as a
whole, which stays where anything differs.

Not seen: a kernel that is given a pointer and writes into such an input for some numbers only, none of those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from dts.nn.layers.layer import memory_of
from dts.nn.rows.seen import tensors_in
from dts.warn import warn
from dts_kernels.gpu import products, same_input
from dts_kernels.gpu.same_input import Group, Proof, Recording
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
            with same_input.apart():
                return function(*args, **kwargs)
        for i, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors_in(args[i] if i < len(args) else kwargs.get(argument.name)):
                    self.recording.written(tensor)
                    self._keep(self.written, tensor)
        with same_input.apart():  # neither are operations within seen, nor do all of them count what they write
            result = function(*args, **kwargs)
        given = {memory_of(tensor) for tensor in tensors_in((args, kwargs))}
        for tensor in tensors_in(result):
            self._keep(self.made, tensor, given)
        return result

    def _keep(
        self, memory: dict[int, StorageWeakRef], tensor: Tensor, known: AbstractSet[int | None] = frozenset()
    ) -> None:
        own = memory_of(tensor)
        if own is not None and own not in known and own not in self.made:
            memory.setdefault(own, StorageWeakRef(tensor.untyped_storage()))


class _Looked:
    """A call that is looked at where it is captured.

    last: the recording of its last run, of those that made gives;  memory: what was written and there before
    """

    def __init__(self, run: Run, captured: Callable[[], bool], made: Callable[[], Recording] = Recording):
        self._run, self._captured, self._made = run, captured, made
        self.last, self.memory = made(), dict[int, StorageWeakRef]()

    def __call__(self) -> Any:
        if not self._captured():
            return self._run()
        self.last = self._made()
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
    Where nothing is shared it is ``record(run)``, with a UserWarning unless no layers share an input.
    """
    first = _Looked(run, captured)
    alone = record(first)
    groups = first.last.found
    if first.last.uncounted:
        _warn(
            "under torch.inference_mode() nothing counts what is written into a tensor, so nothing is shared: capture "
            "under torch.no_grad() instead, with a model that was made outside"
        )
    if not groups:
        return alone
    products.prepare(groups.values())
    with _restored(first.written()) as restore:
        proved = _proved(groups, run, again, captured, inputs, restore)
        if len(proved) < len(groups):
            _warn(
                f"{len(groups) - len(proved)} of {len(groups)} groups of layers that share an input keep a launch "
                "each: with one for all there were other bits, as something writes into the input where no operation "
                "shows it; or zeros or no numbers in a row, which prove nothing: capture with other inputs"
            )
        if not proved:
            return alone
        second = _Looked(run, captured, partial(Recording, proved))
        shared = again(second)
        if second.last.taken and _equal(alone, shared, first.written(), restore):
            return shared
    _warn(
        "with one launch for layers that share an input the graph gave other bits than without, or nothing that can be "
        "compared, so the one that is kept shares nothing.  Does the model give other bits from call to call?"
    )
    return alone


def _warn(what: str) -> None:
    warn(f"capture(share_inputs=True): {what}")


def _proved(
    groups: dict[int, Group],
    run: Run,
    again: Callable[[Run], Recorded],
    captured: Callable[[], bool],
    inputs: Sequence[Tensor],
    restore: Callable[[], None],
) -> dict[int, Group]:
    """Those whose t's all have the same bits in one launch as each by itself, and show them in all rows."""
    looked = _Looked(run, captured, partial(Proof, groups))
    replay, _ = again(looked)
    slots, left = _slots(groups)
    proved = dict(groups)
    routings = {one.data_ptr(): one for group in groups.values() for one in group.routing}
    given = [one for one in inputs if one.is_floating_point()]
    with _restored([*routings.values(), *given]):
        for others in (False, True)[: 1 + bool(given)]:
            if others:
                _other_numbers(given)
            for slot in slots:
                restore()
                for group in groups.values():
                    group.routing[0].fill_(slot)
                    group.routing[1].fill_(1)
                replay()
                for number in [n for n, group in proved.items() if not _shows(looked.last, n, group, slot, left[n])]:
                    del proved[number]
    restore()
    return {number: group for number, group in proved.items() if not left[number]}


def _shows(proof: Recording, number: int, group: Group, slot: int, left: set[int]) -> bool:
    """Whether the replay speaks for a group, whose matrices that it has shown are left no more."""
    assert isinstance(proof, Proof)
    if not bool((group.routing[0] == slot).all()):  # another routing was written by the call
        return False
    shown = proof.proved(number, slot)
    left -= shown or set()
    return shown is not None


def _slots(groups: dict[int, Group]) -> tuple[list[int], dict[int, set[int]]]:
    """(few slots that together have a task for each matrix that has one, group -> its matrices that are to be shown)"""
    of = {(number, nth): matrix.slots for number, group in groups.items() for nth, matrix in enumerate(group.matrices)}
    left = {number: set(range(len(group.matrices))) for number, group in groups.items()}
    chosen, missing = list[int](), [own for own in of.values() if own]
    while missing:
        chosen.append(max(set().union(*missing), key=lambda slot: sum(slot in own for own in missing)))
        missing = [own for own in missing if chosen[-1] not in own]
    return chosen, left


def _other_numbers(tensors: Sequence[Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    for one in tensors:
        one.copy_(torch.randn(one.shape, generator=generator))


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
        bits.append([_bits(t).clone() for t in (*tensors_in(outputs), *written)])
    restore()
    (first, second) = bits
    return bool(first) and len(first) == len(second) and all(map(torch.equal, first, second))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
