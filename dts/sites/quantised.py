"""Weights that are stored as codes: which modules have one, and the numbers that such a module computes with.

Told by what a tensor is, not by whose: codes are no floating-point numbers, or 8-bit ones, or lie in another shape than
the matrix they stand for, or in a tensor class that has a ``dequantize`` of its own, or under another name than
``weight`` in a module that has sizes and integers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

AT_ONCE = 256  # rows of an identity matrix, or ids, that go through a layer together


def has_codes(tensor: Tensor) -> bool:
    """Whether the elements of a parameter are codes, not numbers."""
    number = tensor.is_floating_point() or tensor.is_complex()
    return not number or tensor.dtype.itemsize == 1 or _dequantises(tensor)


def is_quantised(module: nn.Module, name: str = "weight") -> bool:
    """Whether a module's ``weight`` stands for a matrix [out, in], or a table, and is stored as codes."""
    plain = module._parameters.get("weight")
    if name != "weight" or type(plain) is nn.Parameter and not has_codes(plain):  # as nearly all are: the rest is slow
        return False
    sizes, weight = _sizes(module), stored(module)
    if sizes is None or weight is None:
        return False
    elsewhere = tuple(weight.shape) not in (sizes, sizes[::-1]) and type(weight) is not nn.Parameter
    return has_codes(weight) or elsewhere


def quantised_shape(module: nn.Module) -> tuple[int, ...]:
    """Shape of the matrix that the codes of a module stand for, as a checkpoint has it that is not quantised."""
    sizes = _sizes(module)
    assert sizes is not None  # `is_quantised` said so
    return sizes[::-1] if was_transposed(module) else sizes


def was_transposed(module: nn.Module) -> bool:
    """Whether a quantised linear layer took the place of one that stores its weight [in, out] (GPT-2's ``Conv1D``)."""
    return getattr(module.__dict__.get("source_cls"), "__name__", "") == "Conv1D"


def stored(module: nn.Module) -> Tensor | None:
    """The tensor that stands for the weight: ``weight``, else the codes under another name; None if there is none."""
    for store in (module._parameters, module._buffers):
        if "weight" in store:
            return store["weight"]
    if _sizes(module) is None:
        return None
    own = (t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)
    codes = [t for t in own if not t.is_floating_point() and t.dtype is not torch.bool]
    return max(codes, key=lambda t: t.numel(), default=None)


def numbers(tensor: Tensor) -> Tensor:
    """What a parameter stands for, in floating point; raises TypeError for codes that only their module can read."""
    if not has_codes(tensor):
        return tensor
    if _dequantises(tensor):
        return tensor.dequantize()
    raise TypeError(f"the codes of a quantised weight ({str(tensor.dtype).removeprefix('torch.')}) are no numbers")


@torch.no_grad()
def dequantised(module: nn.Module) -> Tensor:
    """The matrix of `quantised_shape` that a quantised module computes with, in floating point.

    A tensor that can tell is asked.  Else the module is: what a linear layer without its bias makes of the identity
    matrix is its weight, what an embedding makes of all ids is its table.
    """
    weight, sizes = stored(module), _sizes(module)
    assert weight is not None and sizes is not None  # `is_quantised` said so
    if _dequantises(weight):
        found = weight.dequantize()
    else:
        twin = _without_bias(module)
        table = isinstance(module, nn.Embedding)
        given = torch.arange(sizes[0]) if table else torch.eye(sizes[1], dtype=dequantised_dtype(module))
        try:
            rows = torch.cat([twin.forward(part.to(weight.device)) for part in given.split(AT_ONCE)])
        except AttributeError as error:
            # packed tensors in a plain layer, which something else unpacks when it first runs
            raise ValueError(
                f"a {type(module).__module__}.{type(module).__name__} holds packed codes that it cannot compute with "
                f"as it is ({error}): load the base as numbers, of compressed-tensors with "
                "quantization_config=CompressedTensorsConfig(dequantize=True)"
            ) from error
        found = rows if table else rows.T
    found = found.to(dequantised_dtype(module))
    return (found.T if was_transposed(module) else found).detach().contiguous()


def dequantised_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of `dequantised`: what the weight looks like, else what the module says it computes in, else that of
    its scales or bias, else float32."""
    weight, stated = stored(module), module.__dict__.get("compute_dtype")
    if weight is not None and _dequantises(weight):
        return weight.dtype
    if isinstance(stated, torch.dtype):
        return stated
    own = (t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)
    return next((t.dtype for t in own if t.is_floating_point() and t.dtype.itemsize > 1), torch.float32)


def _without_bias(module: nn.Module) -> nn.Module:
    """A twin, of the class that the module had before tasks changed it (``dts_base``), that shares all but the bias,
    which it has not."""
    twin: nn.Module = object.__new__(getattr(module, "dts_base", type(module)))
    twin.__dict__ = {name: value for name, value in module.__dict__.items() if name != "forward"}
    for store in ("_parameters", "_buffers"):
        own = module.__dict__[store]
        twin.__dict__[store] = {name: None if name == "bias" else tensor for name, tensor in own.items()}
    twin.training = True  # some turn their codes into coarser ones for speed when they first run, but not in training
    return twin


def _dequantises(tensor: Tensor) -> bool:
    """Whether the tensor's class has a ``dequantize`` of its own, as torchao's and quanto's have."""
    return type(tensor).dequantize is not Tensor.dequantize


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """(outputs, inputs) of a linear layer, (rows, columns) of an embedding; None of any other module."""
    for names in (("out_features", "in_features"), ("num_embeddings", "embedding_dim")):
        first, second = (getattr(module, name, None) for name in names)
        if isinstance(first, int) and isinstance(second, int):
            return first, second
    return None
