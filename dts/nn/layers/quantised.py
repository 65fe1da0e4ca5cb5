"""Layers whose weight is stored as codes: the base layer's own forward, and each row's deltas added to what it gives.

Nothing here knows a library: `dts.sites.quantised` tells such layers by what their tensors are.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from dts.nn.layers.embedding import DTSEmbedding
from dts.nn.layers.layer import Layer, base_class
from dts.nn.layers.linear import LinearForward
from dts.nn.layers.registry import register
from dts.nn.routing import tracing
from dts.sites import is_quantised, was_transposed


def _linear(module: nn.Module) -> bool:
    return is_quantised(module) and hasattr(module, "in_features")


_preparing = threading.RLock()


class _Prepared(Layer):
    """Runs its base's forward in one thread until it was run: libraries pack codes anew in a layer's first call, and
    two threads that do so at once leave codes that are packed twice."""

    dts_splits = False

    def base_forward(self, *args: Any, **kwargs: Any) -> Any:
        if tracing():
            return super().base_forward(*args, **kwargs)
        given = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
        # what is not done in training, or where gradients are wanted, is done later
        kind = self.training, torch.is_grad_enabled(), *((x.dtype, x.device, x.requires_grad) for x in given)
        if kind in self.dts.prepared:
            return super().base_forward(*args, **kwargs)
        with _preparing:
            result = super().base_forward(*args, **kwargs)
            self.dts.prepared.add(kind)
        return result

    def _save_to_state_dict(self, *args: Any) -> None:
        super()._save_to_state_dict(*args)
        self.dts.prepared.clear()  # they lie as a checkpoint has them, perhaps


class _Quantised(_Prepared, LinearForward):
    """y = base(x) + the deltas, in the dtype of what the base layer gives."""

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
class DTSQuantisedEmbedding(_Prepared, DTSEmbedding):
    """An embedding whose table is quantised."""

    def _base_rows(self, ids: Tensor) -> Tensor:
        return self.base_forward(ids)
