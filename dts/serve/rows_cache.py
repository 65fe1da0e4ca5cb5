"""Keys and values of rows that join and leave one by one: each row at the beginning of a line of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

STEP = 64  # places that lines grow by, at least


class RowsChanged(RuntimeError):
    """The model ran with other rows than it was given: it takes a batch of several tasks apart."""


class RowsCache(Cache):
    """What a model of transformers writes its keys and values to and reads those of earlier tokens from.

    A line is [heads, places, size] of each layer, a token at the place of its position; what lies beyond a row's tokens
    is to be masked, and is finite.  `at` says which lines and places the next forward is for.  Lines that are in use
    come first, and are a view where all of them run.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._lines: list[int] = []
        self._index: slice | list[int] = []
        self._starts: list[int] = []
        self._count = self._width = 0
        self.used: tuple[int, int] | None = None  # lines and places that tensors keep where they grow, None: all
        self._where: dict[tuple[int, int, torch.device], Tensor] = {}
        self._seen: set[int] | None = set()  # layers of this forward; None: a copy, that may see the same again

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in [*self._keys, *self._values])

    def at(self, lines: Sequence[int], starts: Sequence[int], count: int, width: int) -> None:
        """The next forward has ``count`` tokens of each of these lines, the first of them at ``starts``, and sees the
        first ``width`` places of each."""
        self._lines, self._starts, self._count, self._width = list(lines), list(starts), count, width
        first, last = self._lines[0], self._lines[-1]
        self._index = slice(first, last + 1) if self._lines == list(range(first, last + 1)) else self._lines
        self._where, self._seen = {}, None if self._seen is None else set()
        for layer in range(len(self._keys)):
            self._fit(layer)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Takes keys and values [rows, heads, count, size]; returns those of all places, [rows, heads, width, size].

        Raises RowsChanged for other rows than `at` was told, and for the same rows a second time: the model runs them
        once a task, and the last task's would stay.
        """
        if self._seen is not None and layer_idx in self._seen:
            raise RowsChanged(f"layer {layer_idx} ran twice")
        if key_states.shape[0] != len(self._lines) or key_states.shape[2] != self._count:
            raise RowsChanged(f"{list(key_states.shape)} for {len(self._lines)} rows of {self._count} tokens")
        if self._seen is not None:
            self._seen.add(layer_idx)
        while len(self._keys) <= layer_idx:
            self._keys.append(key_states.new_zeros(0))
            self._values.append(value_states.new_zeros(0))
        if self._keys[layer_idx].dim() == 1:
            self._keys[layer_idx] = _empty(key_states)
            self._values[layer_idx] = _empty(value_states)
            self._fit(layer_idx)
        found = []
        for kept, new in ((self._keys[layer_idx], key_states), (self._values[layer_idx], value_states)):
            rows, own = kept.view(-1, kept.shape[3]), new.reshape(-1, new.shape[3]).to(kept.dtype)
            rows.index_copy_(0, self._written(kept), own)
            found.append(kept[self._index, :, : self._width])
        return found[0], found[1]

    def move(self, line: int, to: int) -> None:
        """What is in one line is in another from now on."""
        for kept in (*self._keys, *self._values):
            if kept.dim() > 1 and to < kept.shape[0]:
                kept[to] = kept[line] if line < kept.shape[0] else 0  # nothing was read of the row yet

    def clear(self, line: int) -> None:
        """Nothing of the row that was there stays: not even what is no number, which no mask would hide."""
        for kept in (*self._keys, *self._values):
            if kept.dim() > 1 and line < kept.shape[0]:
                kept[line] = 0

    def drop(self) -> None:
        """Free the memory of all lines."""
        self._keys, self._values = [], []

    def dts_rows(self, take: Sequence[int]) -> RowsCache:
        """A copy for some rows of the next forward, which may be run to see what a model does."""
        made = RowsCache()
        made._seen = None
        lines = [self._lines[row] for row in take]
        made._keys = [kept[lines] if kept.dim() > 1 else kept for kept in self._keys]
        made._values = [kept[lines] if kept.dim() > 1 else kept for kept in self._values]
        made.at(range(len(lines)), [self._starts[row] for row in take], self._count, self._width)
        return made

    # what transformers asks for when it makes masks: ours are given, except to who only looks
    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._width - self._count

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        return self._width, 0

    def __len__(self) -> int:
        return len(self._keys)

    def _fit(self, layer: int) -> None:
        """Room for the lines and places of the next forward."""
        lines, places = max(self._lines) + 1, max(self._starts) + self._count
        for kept in (self._keys, self._values):
            if kept[layer].dim() == 1:
                continue
            now_lines, heads, now_places, size = kept[layer].shape
            if lines <= now_lines and places <= now_places:
                continue
            used_lines, used_places = self.used or (now_lines, now_places)
            keep_lines, keep_places = min(used_lines, now_lines), min(used_places, now_places)
            more_lines, more_places = max(lines, used_lines), max(places, used_places)
            if lines > now_lines:  # those that join next find room
                more_lines = more_lines * 5 // 4
            if places > now_places:
                more_places = more_places * 5 // 4
            more_places = -(-more_places // STEP) * STEP
            grown = kept[layer].new_zeros(more_lines, heads, more_places, size)
            grown[:keep_lines, :, :keep_places] = kept[layer][:keep_lines, :, :keep_places]
            kept[layer] = grown

    def _written(self, kept: Tensor) -> Tensor:
        """Which rows of [lines * heads * places, size] the next forward writes to: its rows, heads and tokens, flat."""
        _, heads, places, _ = kept.shape
        where = self._where.get((heads, places, kept.device))
        if where is None:  # one for all layers that are alike
            lines, starts = (torch.tensor(own)[:, None, None] for own in (self._lines, self._starts))
            own = (lines * heads + torch.arange(heads)[:, None]) * places + starts + torch.arange(self._count)
            where = self._where[heads, places, kept.device] = own.flatten().to(kept.device)
        return where


def _empty(like: Tensor) -> Tensor:
    return like.new_zeros(0, like.shape[1], 0, like.shape[3])
