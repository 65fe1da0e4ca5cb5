"""Linear layers: y = x W^T + b + sum over the row's tasks of gamma (x Delta^T + delta_b)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dts.codec.factors import Factors
from dts.nn.deltas import ParameterDelta, Piece, Table
from dts.nn.layer import Layer, beside, standalone
from dts.nn.layer import raw as raw_of
from dts.nn.routing import backward_here, call_here, gammas, tracing
from dts_kernels import Routing

_autocast = torch.is_autocast_enabled


class LinearLayer(Layer):
    """The forward of `DTSLinear` and `DTSConv1D`."""

    @classmethod
    def supports(cls, module: nn.Module, pieces: dict[str, list[Piece]]) -> bool:
        names = {"weight", "bias"}
        return set(pieces) <= names and all(p.expert is None for parts in pieces.values() for p in parts)

    def forward(self, x: Tensor) -> Tensor:
        dts = self.dts
        if not dts.routed():
            return self.base_forward(x)
        missing = dts.state.missing
        if missing and dts.name in missing:
            raise ValueError(missing[dts.name])
        x, routing = dts.enter(x)
        weight, bias = dts.get("weight"), dts.get("bias")
        y = self._product(x, weight, bias, routing)
        if weight is not None and weight.tabled:
            if weight.raw.tensors:
                y = y + per_task_product(x, weight.raw, routing).to(y.dtype)
            if weight.added.tensors:
                y = torch.cat([y, head(x, weight.added, bias and bias.added, routing, y.dtype, padding=True)], -1)
        if any(p is not None and p.values.tensors for p in (weight, bias)):
            y = self._whole_values(x, y, weight, bias, routing)
        return dts.leave(y)

    def _product(self, x: Tensor, weight: ParameterDelta | None, bias: ParameterDelta | None, routing) -> Tensor:
        """Base, factors and the deltas of the bias."""
        plain = None if weight is None else weight.plain
        raw = bias.raw if bias is not None and bias.raw.tensors else None
        if plain is not None and self._in_dtype(x):
            matrix = self._parameters["weight"]
            matrix = matrix.T if self.transposed else matrix
            # 16-bit numbers have their sum rounded once; wider ones than float32 stay as wide as they are
            adds = None if raw is None or x.dtype == torch.float64 else raw.wide
            y = plain.linear(x, matrix, raw_of(self, "bias"), routing, adds)
            raw = raw if adds is None else None
        else:
            y = self.base_forward(x)
            if plain is not None:
                y = plain.add_product(x.to(y.dtype), y, routing)
        return y if raw is None else y + beside(y, raw.rows(routing, y.dtype))

    def _in_dtype(self, x: Tensor) -> bool:
        """Whether the base product is that of the weight as it is, with x as it is."""
        weight = self._parameters.get("weight")
        return type(weight) is nn.Parameter and weight.dtype == x.dtype and not _autocast(x.device.type)

    def _whole_values(self, x, y, weight: ParameterDelta | None, bias: ParameterDelta | None, routing) -> Tensor:
        """Rows whose task has this layer whole (its own head) get that; shorter outputs end in -inf."""
        if weight is None or not weight.values.tensors:
            delta = bias.values.rows(routing, y.dtype) - raw_of(self, "bias")
            return y + beside(y, torch.where(bias.values.lengths(routing)[:, None] > 0, delta, 0))
        whole = head(x, weight.values, bias and bias.values, routing, y.dtype, padding=True, transposed=self.transposed)
        width = max(whole.shape[-1], y.shape[-1])
        whole, y = (nn.functional.pad(t, (0, width - t.shape[-1]), value=-torch.inf) for t in (whole, y))
        return torch.where(beside(y, weight.values.lengths(routing)[:, None] > 0), whole, y)

    def load_task(self, name: str, factors: Factors, bias: Tensor | None = None) -> None:
        """Give a task's delta to a layer that stands alone.

        factors: of shape [out_features, in_features];  bias: its delta, [out_features].
        """
        expected = tuple(raw_of(self, "weight").shape)
        if tuple(factors.shape) != expected:
            raise ValueError(f"factors {list(factors.shape)} of task {name!r} do not fit the weight {list(expected)}")
        if bias is not None and (raw_of(self, "bias") is None or bias.shape != raw_of(self, "bias").shape):
            raise ValueError(f"task {name!r} has a bias {list(bias.shape)} that the layer has not")
        tasks = self.__dict__.setdefault("_tasks", {})
        slot = tasks.get(name, next(i for i in range(len(tasks) + 1) if i not in tasks.values()))
        self.remove(slot)
        pieces = {"weight": [Piece("factors", factors)]}
        self.load(slot, pieces if bias is None else pieces | {"bias": [Piece("raw", bias)]})
        tasks[name] = slot

    def set_task(self, task: str | dict[str, float] | None) -> None:
        """Use one task, a mixture {name: weight}, or the base (None) for every row."""
        tasks = self.__dict__.get("_tasks", {})
        mixture = {} if task is None else task if isinstance(task, dict) else {task: 1.0}
        unknown = [name for name in mixture if name not in tasks]
        if unknown:
            raise ValueError(f"no task {', '.join(map(repr, unknown))}; this layer has {sorted(tasks)}")
        self.dts.state.set([{tasks[name]: weight for name, weight in mixture.items()}])


class DTSLinear(LinearLayer, nn.Linear):
    """An `nn.Linear` that adds each row's deltas straight from the packed bits."""

    def forward(self, x: Tensor) -> Tensor:
        """Straight to the kernel for the common case on a CPU, where every step beside it costs as much as a row of a
        small layer; `LinearLayer.forward` for all else."""
        dts = self.dts
        state, weight = dts.state, self._parameters.get("weight")
        if tracing():
            now, watched = state.now(), False
        else:
            now = call_here() or state.chosen
            if now.state is not state or now.graph != backward_here():
                now = state.now()
            watched = now.seen is not None
        routing, delta = now.routing, dts.parameters.get("weight")
        slots = routing.slots
        rows = slots.shape[0]
        if (
            watched
            or delta is None
            or not x.is_cpu
            or now.missing
            or weight is None
            or delta.tabled
            or type(weight) is not nn.Parameter
            or weight.dtype != x.dtype
            or _autocast("cpu")
            or rows != 1
            and (dts.axis(now) != 0 or x.shape[0] % rows)
            or not slots.is_cpu
            or x.dtype == torch.float64
        ):
            return super().forward(x)
        plain, bias = delta.matrices.get(None), dts.parameters.get("bias")
        if plain is None or plain.blocks or plain.main.first is None or bias is not None and bias.values.tensors:
            return super().forward(x)
        adds = bias.raw.wide if bias is not None and bias.raw.tensors else None
        return plain.main.linear(x, weight, self._parameters["bias"], routing, adds)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> DTSLinear:
        """A layer that shares the parameters of ``linear`` and leaves it as it is."""
        return standalone(linear, cls)


class DTSConv1D(LinearLayer):
    """The linear layer of GPT-2 (transformers' ``Conv1D``), whose weight is stored [in, out]."""

    transposed = True

    @classmethod
    def from_conv1d(cls, conv1d: nn.Module) -> DTSConv1D:
        """A layer that shares the parameters of ``conv1d`` and leaves it as it is."""
        return standalone(conv1d, cls)


def per_task_product(x: Tensor, weights: Table, routing: Routing, transposed=False) -> Tensor:
    """x W_t^T weighted by each row's gammas, for a small dense W_t a task (heads, raw deltas).

    weights: [tasks, out, in] ([tasks, in, out] if transposed).  All tasks' products are taken at once and the row's
    chosen: another task is another choice, never another shape.  Returns [..., out].
    """
    stack = weights.stack.transpose(1, 2) if transposed else weights.stack
    tasks, width = stack.shape[:2]
    products = nn.functional.linear(x, stack.flatten(0, 1).to(x.dtype)).unflatten(-1, (tasks, width))
    gamma = gammas(routing, tasks).to(x.dtype) * (weights.length > 0)
    return (products * beside(products, gamma[:, :, None])).sum(-2)


def head(
    x: Tensor,
    weights: Table,
    biases: Table | None,
    routing: Routing,
    dtype: torch.dtype,
    padding=False,
    transposed=False,
) -> Tensor:
    """x W_t^T + b_t of each row's task; outputs beyond the task's own number are -inf."""
    y = per_task_product(x, weights, routing, transposed).to(dtype)
    if biases is not None and biases.tensors:
        y = y + beside(y, biases.rows(routing, dtype))
    own = torch.arange(y.shape[-1], device=y.device) < weights.lengths(routing)[:, None]
    return y.masked_fill(~beside(y, own), -torch.inf) if padding else y
