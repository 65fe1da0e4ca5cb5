"""Numbers of the base that a forward takes past the layers, where a task changes them.

A layer's own forward adds its tasks' deltas, and an attribute that is read, ``layer.weight``, is the task's
(`dts.nn.layers.read`), as is ``state_dict()`` of a forward.  What comes by ``parameters()`` or ``_parameters`` is the
base's itself, for optimizers: a forward that computes with it would answer as neither model, without a word.  So in the
first call of each kind it is looked at every operation, whether one of these tensors goes into it from elsewhere than
its layer.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

import dts_kernels
from dts.nn.layers import Layer
from dts.nn.layers.layer import memory_of
from dts.nn.layers.layer_deltas import LayerDeltas
from dts.nn.layers.read import dense_parameter
from dts.nn.routing import Mixture
from dts.sites import is_distributed, is_quantised, raw_or_none
from dts_kernels.recorded import onlooker

_OURS = str(Path(__file__).parents[1]), str(Path(dts_kernels.__file__).parent)
_THEIRS = str(Path(torch.__file__).parent), contextlib.__file__
_PROGRAMS = (
    "<eval_with_key>",
    *(str(Path(torch.__file__).parent / one) for one in ("_functorch/_aot_autograd", "_inductor")),
)
_COPIES = {"__deepcopy__", "_apply"}  # of a module, which then is another, or elsewhere
_UNUSED = ("empty_", "zeros_", "ones_", "full_", "rand_", "randn_", "randint_", "new_")  # of a tensor's kind, no number
STEPS = 12  # uses of one tensor in `generate`: a prompt and some tokens, or a prompt where one layer runs many times
Place = tuple[str, str]  # a layer's name, a parameter's


class Watched:
    """The kinds of calls that were looked at, and the parameters that tasks changed in them.

    A kind is a method with the names of its arguments, in training or not, with gradients or without.  Which task
    changed a parameter does not matter to who reads it, so the first calls of later tasks are not looked at.
    """

    def __init__(self) -> None:
        self._slots: dict[tuple[Any, ...], set[int]] = {}  # of tasks that change no others than those
        self._places: dict[tuple[Any, ...], frozenset[Place]] = {}

    def forget(self, slot: int) -> None:
        """Another task is in it, or none."""
        for slots in self._slots.values():
            slots.discard(slot)

    def watching(
        self,
        layers: Mapping[str, Layer],
        kind: tuple[Any, ...],
        mixtures: Iterable[Mixture],
    ) -> AbstractContextManager[Any]:
        """Within, a call of this kind and of these tasks; looks at nothing where that was done.

        Raises RuntimeError, within, where something is read past its layer.
        """
        kind = *kind, torch.is_grad_enabled()
        used = {slot for mixture in mixtures for slot in mixture}
        seen = self._slots.setdefault(kind, set())
        if used <= seen or torch.jit.is_tracing() or _get_current_dispatch_mode() is not None:
            return nullcontext()
        if torch._C._functorch.peek_interpreter_stack() is not None:  # of a transform, which may see other tensors
            return nullcontext()
        places = _changed(layers, used - seen)
        if places <= self._places.get(kind, frozenset()):
            seen |= used
            return nullcontext()
        return self._looking(layers, kind, places)

    @contextmanager
    def _looking(self, layers: Mapping[str, Layer], kind: tuple[Any, ...], places: frozenset[Place]) -> Iterator[None]:
        with onlooker(), _Watch(layers, STEPS if kind[0] == "generate" else math.inf):
            yield  # what ends in an error will be looked at again
        self._places[kind] = places | self._places.get(kind, frozenset())


def _changed(layers: Mapping[str, Layer], slots: set[int]) -> frozenset[Place]:
    """What these tasks change."""
    parameters = ((place, name, delta) for place, one in layers.items() for name, delta in one.dts.parameters.items())
    return frozenset((place, name) for place, name, delta in parameters if not slots.isdisjoint(delta.slots))


class _Watch(TorchDispatchMode):
    """Looks at every operation of one thread.

    owners: the memory of each tensor that tasks change -> the layers it is of, and what it is called there;
    uses: how often each was computed with;  most: of these, after which nothing is looked at.
    """

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Parts of the model that are compiled are so under this mode, too."""
        return True

    def __init__(self, layers: Mapping[str, Layer], most: float):
        super().__init__()
        self.uses, self.most, self.done = Counter[int](), most, False
        self.owners: dict[int, list[tuple[LayerDeltas, str]]] = {}
        for layer in layers.values():
            for name in layer.dts.parameters:
                tensor = raw_or_none(layer, name)
                memory = None if tensor is None or is_quantised(layer, name) else _memory(tensor)
                if memory is not None and not layer.dts.gathered:
                    self.owners.setdefault(memory, []).append((layer.dts, name))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.done and not function.is_view and not function._schema.name.partition("::")[2].startswith(_UNUSED):
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            if not _moves(function, tensors, kwargs):
                for tensor in tensors:
                    self._look(tensor)
        return function(*args, **kwargs)

    def _look(self, tensor: Tensor) -> None:
        memory = _memory(tensor)
        if memory is None or memory not in self.owners:
            return
        self.uses[memory] += 1
        self.done |= self.uses[memory] >= self.most
        owners = self.owners[memory]
        wrong = [(own, name) for own, name in owners if own.acts(name)]
        if not wrong:
            return
        place = _reader([own for own, _ in owners])
        if place is not None:
            own, name = wrong[0]
            raise RuntimeError(
                f"{own.name}.{name} is read past its layer, {place}: parameters() and _parameters give "
                "the base's tensor, whatever the task.  Read the attribute there, module.weight, or call the module; "
                "or take a model of one task, merge_and_unload(task)"
            )


def _memory(tensor: Tensor) -> int | None:
    """`memory_of` a tensor that has some of its own here."""
    return None if tensor.is_meta or is_distributed(tensor) else memory_of(tensor)


def _moves(function: Any, tensors: list[Tensor], kwargs: Mapping[str, Any]) -> bool:
    """Whether numbers are only brought to another device, as hooks of offloaded models do."""
    if function is torch.ops.aten.copy_.default:
        return tensors[0].device != tensors[-1].device
    return function is torch.ops.aten._to_copy.default and kwargs.get("device") not in (None, tensors[0].device)


def _reader(owners: list[LayerDeltas]) -> str | None:
    """ "in forward (file.py:12)", where something that is none of these layers computes with what is theirs; None where
    one of them does, what copies a module or moves one about, or a program, of which its layers are a part."""
    first: FrameType | None = None
    ours = False
    for frame in _frames():
        path, module = frame.f_code.co_filename, frame.f_locals.get("self")
        if frame.f_code is dense_parameter.__code__ or path.startswith(_PROGRAMS):  # what reads it there has the task's
            return None
        if path.startswith(_OURS):
            if isinstance(module, Layer):
                if any(module.dts is own for own in owners) or first is None and module.dts_reads:
                    return None
                ours = False
            else:
                ours |= first is None
        elif frame.f_code.co_name in _COPIES:
            return None
        elif first is None and not path.startswith(_THEIRS):
            if ours:
                return None
            first = frame
    return None if first is None else f"in {first.f_code.co_name} ({first.f_code.co_filename}:{first.f_lineno})"


def _frames() -> Iterator[FrameType]:
    """From the operation outwards."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            yield frame
        frame = frame.f_back
