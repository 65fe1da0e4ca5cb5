"""`nn.MultiheadAttention`: three input projections in one parameter, and an output layer that is read, not called."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dts.nn.deltas import Piece
from dts.nn.deltas.per_task import per_task_product
from dts.nn.layers.layer import Layer, base_class, standalone
from dts.nn.layers.registry import register
from dts.nn.routing import beside
from dts.sites import raw, raw_or_none
from dts_kernels import Routing


@register(when=lambda module: issubclass(base_class(module), nn.MultiheadAttention))
class DTSMultiheadAttention(Layer, nn.MultiheadAttention):
    """An `nn.MultiheadAttention` with packed deltas on its projections; same arguments, same results.

    The output projection is a child layer with deltas of its own and is called as one.
    """

    dts_one_input = False
    dts_reads = ("out_proj",)

    @classmethod
    def supports(cls, module: nn.Module, pieces: dict[str, list[Piece]]) -> bool:
        plain = module.bias_k is None and not module.add_zero_attn
        return plain and all(p.kind in ("factors", "raw") for parts in pieces.values() for p in parts)

    @classmethod
    def from_multihead_attention(cls, attention: nn.MultiheadAttention) -> DTSMultiheadAttention:
        """A layer that shares the parameters of ``attention`` and leaves it as it is."""
        return standalone(attention, cls)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if not self.dts.routed() or self.dts_swapped():
            return self.unrouted(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        single = query.dim() == 2
        if self.batch_first or single:
            first = lambda t: t[None] if single else t  # noqa: E731
        else:
            first = lambda t: t.transpose(0, 1)  # noqa: E731
        q, k, v = self._project(query, key, value, first)
        mask = self._mask(q, k, attn_mask, key_padding_mask, is_causal)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.mT / math.sqrt(self.head_dim)
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            y = nn.functional.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = nn.functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if single:
            return y[0], None if weights is None else weights[0]
        return y if self.batch_first else y.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor, first: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """q, k, v as [batch, heads, length, head_dim]."""
        routing = self.dts.state.on(query.device)
        done: dict[int, Tensor] = {}  # self-attention takes all three projections of one input in one product
        parts = []
        for i, (name, x) in enumerate((("q", query), ("k", key), ("v", value))):
            if self._qkv_same_embed_dim:
                if id(x) not in done:
                    done[id(x)] = self._product(first(x), "in_proj_weight", raw_or_none(self, "in_proj_bias"), routing)
                part = done[id(x)].narrow(-1, i * self.embed_dim, self.embed_dim)
            else:
                biases = raw_or_none(self, "in_proj_bias")
                bias = None if biases is None else biases.chunk(3)[i]
                part = self._product(first(x), f"{name}_proj_weight", bias, routing)
            delta = self.dts.get("in_proj_bias")
            if delta is not None and delta.raw.filled:
                part = part + beside(part, delta.raw.rows(routing, part.dtype).chunk(3, -1)[i])
            parts.append(part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2))
        return parts

    def _product(self, x: Tensor, name: str, bias: Tensor | None, routing: Routing) -> Tensor:
        delta, weight = self.dts.get(name), raw(self, name)
        if delta is None:
            return nn.functional.linear(x, weight, bias)
        if delta.plain is None:
            y = nn.functional.linear(x, weight, bias)
        elif weight.dtype != x.dtype or torch.is_autocast_enabled(x.device.type):
            y = nn.functional.linear(x, weight, bias)  # in another dtype than x, then
            y = delta.plain.add_product(x.to(y.dtype), y, routing)
        else:
            y = delta.plain.linear(x, weight, bias, routing)
        if delta.raw.filled:
            y = y + per_task_product(x, delta.raw, routing).to(y.dtype)
        return y

    @staticmethod
    def _mask(q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None, is_causal: bool) -> Tensor | None:
        """All masks as one to add to the scores, or None."""
        if attn_mask is None and is_causal:
            raise RuntimeError("is_causal is a hint about attn_mask: give attn_mask too")
        mask = None
        for given, shape in ((attn_mask, None), (padding, (-1, 1, 1, k.shape[2]))):
            if given is None:
                continue
            if given.dtype == torch.bool:
                given = torch.zeros_like(given, dtype=q.dtype).masked_fill_(given, -torch.inf)
            if shape is not None:
                given = given.view(shape)
            elif given.dim() == 3:
                given = given.view(q.shape[0], q.shape[1], *given.shape[1:])
            mask = given if mask is None else mask + given
        return mask
