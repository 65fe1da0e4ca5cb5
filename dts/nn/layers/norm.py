"""Layers whose parameters are vectors: norms and the like."""

from __future__ import annotations

import inspect
import math
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from dts.nn.deltas import Piece
from dts.nn.layers.layer import Layer, base_class, by_name, standalone
from dts.nn.layers.registry import register
from dts.nn.parallel.local import run_local
from dts.nn.routing import tracing
from dts.sites import is_distributed, raw, raw_or_none
from dts_kernels import Routing
from dts_kernels.ops import vectors_here
from dts_kernels.ops.library import direct


@register(nn.LayerNorm)
class DTSLayerNorm(Layer, nn.LayerNorm):
    """An `nn.LayerNorm` with a weight and bias a row."""

    dts_splits = True

    @classmethod
    def supports(cls, module: nn.Module, pieces: dict[str, list[Piece]]) -> bool:
        return all(p.kind == "raw" for parts in pieces.values() for p in parts)

    @classmethod
    def from_layer_norm(cls, norm: nn.LayerNorm) -> DTSLayerNorm:
        """A layer that shares the parameters of ``norm`` and leaves it as it is."""
        return standalone(norm, cls)

    def forward(self, input: Tensor) -> Tensor:
        y = None if tracing() else self._of_one_mixture(input)
        return self._of_any(input) if y is None else y

    def _of_one_mixture(self, x: Tensor) -> Tensor | None:
        """Weight and bias in one call of C, for the common case on a CPU, where each step beside it costs as much as a
        norm of a few rows; None for all else, of which nothing is done."""
        now = self.dts.state.now()
        if now.seen is not None:
            now.seen.add(self.dts.name)
        if type(x) is not Tensor or now.routing.slots.shape[0] != 1:
            return None
        made = self._in_one_call(now.routing)
        if made is None:
            return None
        bias = made[1].view(-1) if len(made) > 1 else None
        return nn.functional.layer_norm(x, self.normalized_shape, made[0].view(-1), bias, self.eps)

    def _in_one_call(self, routing: Routing) -> list[Tensor] | None:
        """Weight and, where there is one, bias for each row of the routing, both in one call of C; None where those
        are to be asked for one by one."""
        pairs, own = [], self._parameters
        for name in ("weight", "bias"):
            base, delta = own.get(name), self.dts.parameters.get(name)
            if base is None:
                continue
            if delta is None or not delta.raw.filled or type(base) is not nn.Parameter and self.dts.split is None:
                return None
            pairs.append((base, delta.raw.source))
        return vectors_here(pairs, routing) if own.get("weight") is not None else None

    def _of_any(self, input: Tensor) -> Tensor:
        if is_distributed(input):
            return run_local(self, DTSLayerNorm._of_any, input)
        if not self.dts.routed() or self.dts_swapped():
            return self.unrouted(input)
        x, routing = self.dts.enter(input)
        made = None if tracing() else self._in_one_call(routing)
        if made is None:
            weight, bias = self._rows("weight", routing), self._rows("bias", routing)
        else:
            weight, bias = made[0], made[1] if len(made) > 1 else None
        assert weight is not None  # tasks change this layer, so it has parameters
        if routing.slots.shape[0] == 1:
            y = nn.functional.layer_norm(
                x, self.normalized_shape, weight[0], None if bias is None else bias[0], self.eps
            )
        else:
            y, dtype = self._normal(x)
            parts = y.unflatten(0, (routing.slots.shape[0], -1))
            weight, bias = _over(weight, parts), None if bias is None else _over(bias, parts)
            if bias is not None and parts.dtype is weight.dtype is bias.dtype and direct(y, weight, bias):
                torch.addcmul(bias, parts, weight, out=parts)  # y is nobody else's, and new memory costs page faults
                y = y.to(dtype)
            else:
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
        if delta is None or not delta.raw.filled:
            return base[None]
        return delta.raw.added_to(base, routing)


def _over(values: Tensor, parts: Tensor) -> Tensor:
    """Values [R, ...] in a shape and dtype to multiply parts [R, rows, ..., *shape of a value] by."""
    shape = -1, *[1] * (parts.dim() - values.dim()), *values.shape[1:]
    return values.view(shape).to(torch.promote_types(values.dtype, parts.dtype))


@lru_cache(256)
def _one_input(kind: type[nn.Module]) -> bool:
    """Whether a module's forward takes one tensor and nothing else: a gate would have rows too."""
    try:
        parameters = inspect.signature(kind.forward).parameters.values()
    except (TypeError, ValueError):
        return False
    given = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(given) == len(parameters) == 2


class DTSNorm(Layer):
    """Any module with only 1-D parameters of its own and no children: RMS norms, scales.

    The module's own forward takes all rows at once with parameters that broadcast over each row's part, where a trial
    on made-up numbers gives the bits that it gives row by row; else it is mapped over the rows, which takes the host
    twice as long.
    """

    dts_splits = True

    @classmethod
    def supports(cls, module: nn.Module, pieces: dict[str, list[Piece]]) -> bool:
        own, kind = [*module.parameters(recurse=False)], cast(Any, base_class(module))
        return (
            _one_input(kind)
            and not list(module.children())
            and not list(module.buffers(recurse=False))
            and all(p.dim() == 1 for p in own)
            and all(p.kind == "raw" for parts in pieces.values() for p in parts)
        )

    def forward(self, x: Tensor | None = None, **named: Tensor) -> Tensor:
        if named or x is None:
            x = by_name(self, x, named)
        if is_distributed(x):
            return run_local(self, DTSNorm.forward, x)
        if not self.dts.routed() or self.dts_swapped():
            return self.unrouted(x)
        x, routing = self.dts.enter(x)
        rows = routing.slots.shape[0]
        values = self._values(routing)
        if rows == 1:
            y = self.forward_with({name: value[0] for name, value in values.items()}, x)
        else:
            parts = x.unflatten(0, (rows, -1))
            y = (self._at_once if self._broadcasts(parts, values) else self._mapped)(parts, values).flatten(0, 1)
        return self.dts.leave(y)

    def broadcast(self, x: Tensor) -> Tensor:
        """The forward with all rows at once, whether or not it has the bits of one row: what a program is made of."""
        x, routing = self.dts.enter(x)
        parts = x.unflatten(0, (routing.slots.shape[0], -1))
        return self.dts.leave(self._at_once(parts, self._values(routing)).flatten(0, 1))

    def _values(self, routing: Routing) -> dict[str, Tensor]:
        """Of each parameter that tasks change: [R, n]."""
        return {
            name: delta.raw.added_to(raw(self, name), routing)
            for name, delta in self.dts.parameters.items()
            if delta.raw.filled
        }

    def _mapped(self, parts: Tensor, values: dict[str, Tensor]) -> Tensor:
        """parts: [R, rows, ...]."""
        one = lambda part, *own: self.forward_with(dict(zip(values, own)), part)  # noqa: E731
        return torch.func.vmap(one)(parts, *values.values())

    def _at_once(self, parts: Tensor, values: dict[str, Tensor]) -> Tensor:
        over = {n: v.view(v.shape[0], *[1] * (parts.dim() - v.dim()), *v.shape[1:]) for n, v in values.items()}
        if base_class(self) is not nn.RMSNorm:
            return self.forward_with(over, parts)
        norm: Any = self  # whose weight has to be of its own shape; it multiplies before it rounds
        wide = parts.to(torch.promote_types(parts.dtype, torch.float32))
        y = nn.functional.rms_norm(wide, norm.normalized_shape, None, norm.eps)
        return (y * over["weight"]).to(torch.promote_types(parts.dtype, over["weight"].dtype))

    def _broadcasts(self, parts: Tensor, values: dict[str, Tensor]) -> bool:
        """Whether `_at_once` gives what `_mapped` gives, found by a trial once for each kind of input."""
        device = parts.device.type
        cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        dtypes = [v.dtype for v in values.values()]
        kind = parts.dim(), parts.shape[-1], parts.dtype, parts.device, self.training, cast, *values, *dtypes
        if kind not in self.dts.at_once:
            if tracing() or parts.is_cuda and torch.cuda.is_current_stream_capturing():
                return False
            self.dts.at_once[kind] = self._trial(parts, values)
        return self.dts.at_once[kind]

    @torch.no_grad()
    def _trial(self, parts: Tensor, values: dict[str, Tensor]) -> bool:
        shape = [2, 3, *[2] * (parts.dim() - 3), parts.shape[-1]] if parts.dim() > 2 else [2, parts.shape[-1]]
        x = torch.linspace(-3, 5, math.prod(shape), dtype=torch.float64, device=parts.device)
        x = x.sin().view(shape).to(parts.dtype)
        made = {
            n: 1 + torch.linspace(-1, 1, 2 * v.shape[1], device=v.device).cos().view(2, -1).to(v.dtype)
            for n, v in values.items()
        }
        try:
            return torch.equal(self._at_once(x, made), self._mapped(x, made))
        except (RuntimeError, ValueError, IndexError):  # shapes that do not broadcast
            return False
