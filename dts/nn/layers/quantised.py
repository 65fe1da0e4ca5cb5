"""Layers whose weight is stored as codes: the base layer's own forward, and each row's deltas added to what it gives.

Nothing here knows a library: `dts.sites.quantised` tells such layers by what their tensors are.
"""

from __future__ import annotations

from torch import Tensor, nn

from dts.nn.layers.embedding import DTSEmbedding
from dts.nn.layers.layer import base_class
from dts.nn.layers.linear import LinearForward
from dts.nn.layers.registry import register
from dts.sites import is_quantised, was_transposed


def _linear(module: nn.Module) -> bool:
    return is_quantised(module) and hasattr(module, "in_features")


class _Quantised(LinearForward):
    """y = base(x) + the deltas, in the dtype of what the base layer gives."""

    dts_splits = False

    def _in_dtype(self, x: Tensor) -> bool:
        return False  # only the base layer can read its codes


@register(when=lambda module: _linear(module) and not was_transposed(module))
class DTSQuantisedLinear(_Quantised):
    """Any module with ``in_features``, ``out_features`` and a quantised weight."""


@register(when=lambda module: _linear(module) and was_transposed(module))
class DTSQuantisedConv1D(_Quantised):
    """A quantised linear layer in the place of GPT-2's ``Conv1D``: adapters are of the weight [in, out]."""

    transposed = True


@register(when=lambda module: issubclass(base_class(module), nn.Embedding) and is_quantised(module))
class DTSQuantisedEmbedding(DTSEmbedding):
    """An embedding whose table is quantised."""

    dts_splits = False

    def _base_rows(self, ids: Tensor) -> Tensor:
        return self.base_forward(ids)
