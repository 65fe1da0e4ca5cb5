"""Convolutions: the delta is a linear layer on the patches that the convolution sees."""

from __future__ import annotations

from torch import Tensor, nn

from dts.nn.deltas import Piece
from dts.nn.layers.layer import Layer, standalone
from dts.nn.layers.registry import register
from dts.nn.routing import beside


@register(nn.Conv2d)
class DTSConv2d(Layer, nn.Conv2d):
    """An `nn.Conv2d` (one group) that adds each row's deltas; the matrix is [out, in * kh * kw]."""

    @classmethod
    def supports(cls, module: nn.Module, pieces: dict[str, list[Piece]]) -> bool:
        kinds = {p.kind for p in pieces.get("weight", [])}
        bias = {p.kind for p in pieces.get("bias", [])}
        return (
            getattr(module, "groups", 0) == 1
            and set(pieces) <= {"weight", "bias"}
            and kinds <= {"factors"}
            and bias <= {"raw"}
        )

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d) -> DTSConv2d:
        """A layer that shares the parameters of ``conv`` and leaves it as it is."""
        return standalone(conv, cls)

    def forward(self, input: Tensor) -> Tensor:
        x, dts = input, self.dts
        if not dts.routed() or self.dts_swapped():
            return self.unrouted(x)
        if x.dim() == 3:
            if dts.state.rows != 1:
                raise RuntimeError(
                    f"{dts.name or 'a convolution'} got one image {list(x.shape)} for {dts.state.rows} "
                    f"rows; give [rows, channels, height, width]"
                )
            return self.forward(x[None])[0]
        x, routing = dts.enter(x)
        kernel = self._parameters["weight"]
        assert kernel is not None  # a convolution always has one
        y = self._conv_forward(x, kernel, self._parameters["bias"])
        weight, bias = dts.get("weight"), dts.get("bias")
        if weight is not None and weight.plain is not None:
            delta = weight.plain.add_product(self._patches(x).to(y.dtype), y.flatten(2).mT, routing)
            y = delta.mT.reshape(y.shape)
        if bias is not None and bias.raw.filled:
            rows = bias.raw.rows(routing, y.dtype)
            y = y + beside(y, rows[:, :, None, None])
        return dts.leave(y)

    def _patches(self, x: Tensor) -> Tensor:
        """What each output position sees: [batch, positions, in * kh * kw]."""
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        x = nn.functional.pad(x, self._reversed_padding_repeated_twice, mode=mode)
        return nn.functional.unfold(x, self.kernel_size, self.dilation, stride=self.stride).mT
