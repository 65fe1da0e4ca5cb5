"""The flat operands of the ops, each list of them written down once: here, and nowhere else in order.

An op of torch.library takes tensors, numbers and strings, no objects.  What it takes of a bank and a routing is a named
tuple: ``torch.ops.dts.linear(x, weight, bias, *operands)`` spreads it, an implementation gathers it again, and `schema`
writes its part of the op's schema.  A bank keeps the one that it made last (`Bank.operands`), so a layer that is called
again with the same routing makes nothing.
"""

from typing import NamedTuple

from torch import Tensor


class FactorOperands(NamedTuple):
    """Of products with packed factors (`Bank`) for the rows of a routing.

    packed: a flat list of tensors, and table: int64 [slots, ...] that points into it, as `contents` reads them
    slots, weights: those of the `Routing`;  max_rank: no task has more ranks
    layout: "disk" | "planar" | "planar_levels", what packed and table are (`bank.Bank`)
    """

    packed: list[Tensor]
    table: Tensor
    slots: Tensor
    weights: Tensor
    out_features: int
    max_rank: int
    layout: str


class DenseOperands(NamedTuple):
    """Of `reconstruct`: all but the dtype of the result.

    gamma: float32 [slots], the weight of each;  base: [out_features, in_features] or None for zeros
    """

    packed: list[Tensor]
    table: Tensor
    gamma: Tensor
    base: Tensor | None
    out_features: int
    in_features: int
    max_rank: int
    layout: str


class StoredSamples(NamedTuple):
    """What a `SampleBank` holds, all of it on the bank's device.

    codes: uint8, a tensor [m, bytes] a sample, as given (a memory-mapped file stays one); or one flat arena of them
    all, int32 [words] as `sample_words` says
    table: int64 [samples, 4 or 5], a row of `sample_table` of each, in the order of slots (an arena's has room for
    more);  starts: int64 [slots + 1], a slot's rows of the table are starts[slot] to starts[slot + 1]
    scales: float32 [samples]
    """

    codes: list[Tensor]
    table: Tensor
    starts: Tensor
    scales: Tensor


class SampleOperands(NamedTuple):
    """Of products with sampled elements for the rows of a routing: `StoredSamples`, and slots and weights."""

    codes: list[Tensor]
    table: Tensor
    starts: Tensor
    scales: Tensor
    slots: Tensor
    weights: Tensor

    @property
    def stored(self) -> StoredSamples:
        return StoredSamples(*self[:4])


def sample_layout(codes: list[Tensor]) -> str:
    """Of a bank's samples: "arena" if all codes are in one tensor, as the GPU kernels read them, else "disk"."""
    return "arena" if codes and codes[0].dim() == 1 else "disk"


_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", list[Tensor]: "Tensor[]", int: "int", str: "str"}


def schema(operands: type) -> str:
    """The part of an op's schema for a named tuple's fields: "Tensor[] packed, Tensor table, ..."."""
    return ", ".join(f"{_TYPES[kind]} {name}" for name, kind in operands.__annotations__.items())
