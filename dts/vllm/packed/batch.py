"""Which task each token of the running batch is of."""

from __future__ import annotations

import torch
from torch import Tensor

from dts_kernels import Routing


class Rows:
    """Tasks of the rows of one input.  slots: int32 [rows], -1 is the base;  active: the slots among them."""

    def __init__(self, slots: Tensor):
        self.slots = slots
        self.active = frozenset(slots.unique().tolist()) - {-1}
        one = len(self.active) == 1 and bool((slots == slots[0]).all())
        chosen = slots[:1] if one else slots
        self.routing = Routing(chosen[:, None].contiguous(), torch.ones(chosen.shape[0], 1))

    def of(self, slot: int) -> Tensor:
        """int64: the rows of a task."""
        return (self.slots == slot).nonzero()[:, 0]


NONE = Rows(torch.full((1,), -1, dtype=torch.int32))


class Batch:
    """tokens: of the layers' inputs;  sampled: of the rows whose logits the sampler wants."""

    def __init__(self) -> None:
        self.tokens = self.sampled = NONE
        self._cut: dict[tuple[int, int], Rows] = {}

    def set(self, tokens: list[int], sampled: list[int]) -> None:
        """Slots of every token, and of every row that is sampled from."""
        self.tokens = Rows(torch.tensor(tokens, dtype=torch.int32)) if any(s >= 0 for s in tokens) else NONE
        self.sampled = Rows(torch.tensor(sampled, dtype=torch.int32)) if any(s >= 0 for s in sampled) else NONE
        self._cut = {}

    def rows_of(self, x: Tensor) -> Rows:
        """Of a layer's input: a row a token, or several to a token (heads).

        Raises RuntimeError for any other number: a row of which the task is not known has no answer.
        """
        tokens, count = self.tokens, x.shape[0]
        if tokens is NONE or count == len(tokens.slots):
            return tokens
        if not count % len(tokens.slots):
            return self._known(-1, count, lambda: tokens.slots.repeat_interleave(count // len(tokens.slots)))
        raise RuntimeError(f"a layer has {count} rows in a batch of {len(tokens.slots)} tokens")

    def logits(self, hidden: Tensor) -> Rows:
        """Of the rows that logits are made of: the sampler's own, gathered, or a view on the rows of all tokens."""
        if self.tokens is NONE:
            return NONE
        count = hidden.shape[0]
        view = hidden.untyped_storage().nbytes() != hidden.numel() * hidden.element_size()
        if not view and count == len(self.sampled.slots) or self.sampled is NONE and not view:
            return self.sampled
        first = hidden.storage_offset() // hidden.shape[-1]
        if first + count > len(self.tokens.slots):
            raise RuntimeError(f"logits of {count} rows from {first} on, in a batch of {len(self.tokens.slots)} tokens")
        return self._known(first, count, lambda: self.tokens.slots[first : first + count])

    def _known(self, first: int, count: int, make) -> Rows:
        if (first, count) not in self._cut:
            self._cut[first, count] = Rows(make())
        return self._cut[first, count]
