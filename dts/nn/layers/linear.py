"""Linear layers: y = x W^T + b + sum over the row's tasks of gamma (x Delta^T + delta_b)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dts.codec.factors import Factors
from dts.nn.deltas import ParameterDelta, Piece
from dts.nn.deltas.head import head
from dts.nn.deltas.per_task import per_task_product
from dts.nn.layers.layer import Layer, base_class, by_name, standalone
from dts.nn.layers.registry import register
from dts.nn.parallel.local import run_local
from dts.nn.routing import backward_here, beside, call_here, tracing
from dts.sites import is_distributed, parameter_shape, raw, raw_or_none
from dts_kernels import Routing

_autocast = torch.is_autocast_enabled
_NUMBERS = (nn.Parameter, Tensor)  # a weight as it is; a tensor is one process's part of one


class LinearForward(Layer):
    """The forward of all linear layers; a subclass says of which modules, and how they store their weight."""

    dts_splits = True

    @classmethod
    def supports(cls, module: nn.Module, pieces: dict[str, list[Piece]]) -> bool:
        names = {"weight", "bias"}
        return set(pieces) <= names and all(p.expert is None for parts in pieces.values() for p in parts)

    def forward(self, x: Tensor | None = None, **named: Tensor) -> Tensor:
        if named or x is None:
            x = by_name(self, x, named)
        if is_distributed(x):
            return run_local(self, type(self).forward, x)
        dts = self.dts
        if not dts.routed() or self.dts_swapped():
            return self.unrouted(x)
        missing = dts.state.missing
        if missing and dts.name in missing:
            raise ValueError(missing[dts.name])
        x, routing = dts.enter(x)
        if x.dim() == 1 and routing.slots.shape[0] == 1:  # what is added to rows would make it one
            return LinearForward.forward(self, x[None])[0]
        weight, bias = dts.get("weight"), dts.get("bias")
        y = self._product(x, weight, bias, routing)
        if weight is not None and weight.tabled:
            if weight.raw.filled:
                y = y + per_task_product(x, weight.raw, routing, self.transposed).to(y.dtype)
            if weight.added.filled:
                biases = None if bias is None else bias.added
                y = torch.cat([y, head(x, weight.added, biases, routing, y.dtype, padding=True)], -1)
        if any(p is not None and p.values.filled for p in (weight, bias)):
            y = self._whole_values(x, y, weight, bias, routing)
        return dts.leave(self._cut(y, weight))

    def _cut(self, y: Tensor, weight: ParameterDelta | None) -> Tensor:
        """Where one task was asked for, its outputs without those of others; one shape for all else."""
        if weight is None or not (weight.values.filled or weight.added.filled) or self.dts.state.padded:
            return y
        own = self.dts_width(list(self.dts.state.mixtures[0]), y.shape[-1])
        return y if own is None or own == y.shape[-1] else y[..., :own].contiguous()

    def _product(
        self, x: Tensor, weight: ParameterDelta | None, bias: ParameterDelta | None, routing: Routing
    ) -> Tensor:
        """Base, factors and the deltas of the bias."""
        plain = None if weight is None else weight.plain
        left = bias.raw if bias is not None and bias.raw.filled else None
        matrix = self._parameters.get("weight")
        if plain is not None and matrix is not None and self._in_dtype(x):
            full = matrix.T if self.transposed else matrix
            # 16-bit numbers have their sum rounded once; wider ones than float32 stay as wide as they are
            adds = None if x.dtype == torch.float64 else left
            y = plain.linear(x, full, raw_or_none(self, "bias"), routing, adds)
            left = left if adds is None else None
        else:
            y = self.base_forward(x)
            if plain is not None:
                y = plain.add_product(x.to(y.dtype), y, routing)
        return y if left is None else y + beside(y, left.rows(routing, y.dtype))

    def _in_dtype(self, x: Tensor) -> bool:
        """Whether the base product is that of the weight as it is, with x as it is."""
        weight = self._parameters.get("weight")
        return (
            weight is not None and type(weight) in _NUMBERS and weight.dtype == x.dtype and not _autocast(x.device.type)
        )

    def _whole_values(
        self, x: Tensor, y: Tensor, weight: ParameterDelta | None, bias: ParameterDelta | None, routing: Routing
    ) -> Tensor:
        """Rows whose task has this layer whole (its own head) get that; shorter outputs end in -inf."""
        values = None if bias is None else bias.values
        if weight is None or not weight.values.filled:
            if values is None:
                return y
            # a bias of more rows than the base's is whole, its weight's rows are beside the base's
            own, base = values.rows(routing, y.dtype), raw(self, "bias")
            own, base = (nn.functional.pad(t, (0, max(y.shape[-1] - t.shape[-1], 0))) for t in (own, base))
            delta = own - base
            return y + beside(y, torch.where(values.lengths(routing)[:, None] > 0, delta, 0))
        whole = head(x, weight.values, values, routing, y.dtype, padding=True, transposed=self.transposed)
        width = max(whole.shape[-1], y.shape[-1])
        whole, y = (nn.functional.pad(t, (0, width - t.shape[-1]), value=-torch.inf) for t in (whole, y))
        return torch.where(beside(y, weight.values.lengths(routing)[:, None] > 0), whole, y)

    def dts_width(self, slots: list[int], widest: int) -> int | None:
        weight = self.dts.get("weight")
        if weight is None:
            return None
        whole, added = weight.values, weight.added
        base = weight.shape[1 if self.transposed else 0]
        if not (whole.filled or added.filled) or max(whole.longest, base + added.longest) != widest:
            return None
        if slots and slots[0] in whole.tensors:
            return whole.tensors[slots[0]].shape[0]
        if whole.filled and not self.dts.in_base:
            return None
        return base + max((added.tensors[slot].shape[0] for slot in slots if slot in added.tensors), default=0)

    def load_task(self, name: str, factors: Factors, bias: Tensor | None = None) -> None:
        """Give a task's delta to a layer that stands alone.

        factors: of shape [out_features, in_features];  bias: its delta, [out_features].
        """
        expected, own_bias = parameter_shape(self, "weight"), raw_or_none(self, "bias")
        if tuple(factors.shape) != expected:
            raise ValueError(f"factors {list(factors.shape)} of task {name!r} do not fit the weight {list(expected)}")
        if bias is not None and (own_bias is None or bias.shape != own_bias.shape):
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


def _plain(module: nn.Module) -> bool:
    """Whether a module is an `nn.Linear` that computes what one does, whatever its class."""
    base = base_class(module)
    return issubclass(base, nn.Linear) and base.forward is nn.Linear.forward


@register(when=_plain)
class DTSLinear(LinearForward, nn.Linear):
    """An `nn.Linear` that adds each row's deltas straight from the packed bits."""

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]  # the name that it has in `nn.Linear`
        """Straight to the kernel for the common case, where every step beside it costs as much as a row of a small
        layer on a CPU, and a GPU waits for it; `LinearForward.forward` for all else."""
        x, dts = input, self.dts
        state, weight = dts.state, self._parameters.get("weight")
        if tracing():  # the host's time is the program's
            return super().forward(x)
        now = call_here() or state.chosen
        if now.state is not state or now.graph != backward_here():
            now = state.now()
        routing, delta = now.routing, dts.parameters.get("weight")
        if now.seen is not None:
            now.seen.add(dts.name)
        plain, adds = None if delta is None else delta.matrices.get(None), None
        bias = dts.parameters.get("bias")
        if (
            delta is None
            or plain is None
            or now.missing
            or weight is None
            or type(weight) is not nn.Parameter
            and dts.split is None
            or "bias" not in self._parameters
            or delta.raw.filled
            or delta.values.filled
            or delta.added.filled
            or plain.blocks
            or plain.fronts
            or bias is not None
            and (bias.values.filled or type(self._parameters["bias"]) is not nn.Parameter and dts.split is None)
        ):
            return super().forward(x)
        main, own = plain.main, self._parameters["bias"]
        if bias is not None and bias.raw.filled:
            adds = bias.raw.wide
        if main.replay is not None and (now.axis is None or dts.axis(now) == 0):  # all else is seen there
            made = main.replay.linear(x, weight, own, routing, adds)
            if made is not None:
                return made
        slots = routing.slots
        rows = slots.shape[0]
        if (
            main.first is None
            or type(weight) not in _NUMBERS
            or weight.dtype != x.dtype
            or not (x.is_cpu and slots.is_cpu or x.is_cuda and slots.device == x.device)
            or _autocast("cpu" if x.is_cpu else "cuda")
            or rows != 1
            and (dts.axis(now) != 0 or x.shape[0] % rows)
            or x.dtype == torch.float64
        ):
            return super().forward(x)
        if main.together is not None and x.numel() < main.whole and not torch.is_grad_enabled():
            made = main.together.linear(x, weight, own, routing, adds)
            if made is not None:
                return made
        return main.linear(x, weight, own, routing, adds)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> DTSLinear:
        """A layer that shares the parameters of ``linear`` and leaves it as it is."""
        return standalone(linear, cls)


@register(when=lambda module: base_class(module).__name__ == "Conv1D" and hasattr(module, "nf"))
class DTSConv1D(LinearForward):
    """The linear layer of GPT-2 (transformers' ``Conv1D``), whose weight is stored [in, out]."""

    transposed = True
    dts_splits = False

    @classmethod
    def from_conv1d(cls, conv1d: nn.Module) -> DTSConv1D:
        """A layer that shares the parameters of ``conv1d`` and leaves it as it is."""
        return standalone(conv1d, cls)
