"""Layers whose parameters are vectors: norms and the like."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from dts.nn.deltas import Piece
from dts.nn.layers.layer import Layer, base_class, by_name, standalone
from dts.nn.layers.registry import register
from dts.sites import raw, raw_or_none
from dts_kernels import Routing


@register(nn.LayerNorm)
class DTSLayerNorm(Layer, nn.LayerNorm):
    """An `nn.LayerNorm` with a weight and bias a row."""

    @classmethod
    def supports(cls, module: nn.Module, pieces: dict[str, list[Piece]]) -> bool:
        return all(p.kind == "raw" for parts in pieces.values() for p in parts)

    @classmethod
    def from_layer_norm(cls, norm: nn.LayerNorm) -> DTSLayerNorm:
        """A layer that shares the parameters of ``norm`` and leaves it as it is."""
        return standalone(norm, cls)

    def forward(self, input: Tensor) -> Tensor:
        if not self.dts.routed():
            return self.base_forward(input)
        x, routing = self.dts.enter(input)
        weight, bias = self._rows("weight", routing), self._rows("bias", routing)
        assert weight is not None  # tasks change this layer, so it has parameters
        if routing.slots.shape[0] == 1:
            y = nn.functional.layer_norm(
                x, self.normalized_shape, weight[0], None if bias is None else bias[0], self.eps
            )
        else:
            y, dtype = self._normal(x)
            parts = y.unflatten(0, (routing.slots.shape[0], -1))
            weight, bias = _over(weight, parts), None if bias is None else _over(bias, parts)
            y = (parts * weight if bias is None else torch.addcmul(bias, parts, weight)).view(y.shape).to(dtype)
        return self.dts.leave(y)

    def _normal(self, x: Tensor) -> tuple[Tensor, torch.dtype]:
        """x with mean 0 and variance 1, and the dtype that the layer's output has.

        16-bit numbers on a CPU stay in float32 until weight and bias are in, as inside `layer_norm`: a row then has the
        bits that it has in a batch of one task.  (Mean and deviation of `native_layer_norm` have no gradient.)
        """
        half = x.dtype in (torch.bfloat16, torch.float16) and x.is_cpu and not torch.is_autocast_enabled("cpu")
        if not half or torch.is_grad_enabled() and x.requires_grad:
            y = nn.functional.layer_norm(x, self.normalized_shape, eps=self.eps)
            return y, y.dtype
        ones = torch.ones(self.normalized_shape, dtype=torch.float32, device=x.device)
        _, mean, deviation = torch.native_layer_norm(x, self.normalized_shape, ones, torch.zeros_like(ones), self.eps)
        return torch.addcmul(-deviation * mean, x.float(), deviation), x.dtype

    def _rows(self, name: str, routing: Routing) -> Tensor | None:
        """The parameter for each row of the routing: [R, *normalized_shape]."""
        base, delta = raw_or_none(self, name), self.dts.get(name)
        if base is None:
            return None
        if delta is None or not delta.raw.tensors:
            return base[None]
        return delta.raw.added_to(base, routing)


def _over(values: Tensor, parts: Tensor) -> Tensor:
    """Values [R, ...] in a shape and dtype to multiply parts [R, rows, ..., *shape of a value] by."""
    shape = -1, *[1] * (parts.dim() - values.dim()), *values.shape[1:]
    return values.view(shape).to(torch.promote_types(values.dtype, parts.dtype))


def _one_input(module: nn.Module) -> bool:
    """Whether a module's forward takes one tensor and nothing else: a gate would have rows too."""
    try:
        parameters = inspect.signature(base_class(module).forward).parameters.values()
    except (TypeError, ValueError):
        return False
    given = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(given) == len(parameters) == 2


class DTSNorm(Layer):
    """Any module with only 1-D parameters of its own and no children: RMS norms, scales.

    The module's own forward is mapped over the rows, each with its row's parameters.
    """

    @classmethod
    def supports(cls, module: nn.Module, pieces: dict[str, list[Piece]]) -> bool:
        own = [*module.parameters(recurse=False)]
        return (
            _one_input(module)
            and not list(module.children())
            and not list(module.buffers(recurse=False))
            and all(p.dim() == 1 for p in own)
            and all(p.kind == "raw" for parts in pieces.values() for p in parts)
        )

    def forward(self, x: Tensor | None = None, **named: Tensor) -> Tensor:
        if named or x is None:
            x = by_name(self, x, named)
        if not self.dts.routed():
            return self.base_forward(x)
        x, routing = self.dts.enter(x)
        tables = {name: delta.raw for name, delta in self.dts.parameters.items() if delta.raw.tensors}
        values = []
        for name, table in tables.items():
            values.append(table.added_to(raw(self, name), routing))

        def one(x: Tensor, *parameters: Tensor) -> Tensor:
            return self.forward_with(dict(zip(tables, parameters)), x)

        if routing.slots.shape[0] == 1:
            y = one(x, *(v[0] for v in values))
        else:
            rows = routing.slots.shape[0]
            y = torch.func.vmap(one)(x.unflatten(0, (rows, -1)), *values).flatten(0, 1)
        return self.dts.leave(y)
