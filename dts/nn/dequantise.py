"""Quantised layers of a model turned into plain ones, in place: what a task can be written into."""

from __future__ import annotations

from torch import nn

from dts.nn.deltas import Piece
from dts.nn.layers import adopt, layer_class, release
from dts.sites import dequantised, has_codes, is_quantised, raw, raw_or_none, sites, was_transposed


def quantised_weights(model: nn.Module) -> list[str]:
    """Names of the parameters of a model that are stored as codes."""
    return [
        name
        for name, site in sites(model).items()
        if in_codes(site.module, site.parameter)
        and (site.parameter == "weight" or not is_quantised(site.module))  # what else such a layer has: zeros, groups
    ]


def in_codes(module: nn.Module, parameter: str) -> bool:
    """Whether a parameter is stored as codes.  Buffers of integers are none, but for those that stand for a weight."""
    own = raw(module, parameter)
    return is_quantised(module, parameter) or isinstance(own, nn.Parameter) and has_codes(own)


def dequantise(model: nn.Module) -> list[str]:
    """Turn each quantised layer into the plain one it took the place of, with the matrix it computes with, in place.

    Tasks, hooks and names stay.  Returns the names of the weights; raises ValueError, and changes nothing, where one is
    none of a linear layer or an embedding.
    """
    names, found = quantised_weights(model), sites(model)
    others = [name for name in names if not is_quantised(found[name].module)]
    if others:
        raise ValueError(
            f"{', '.join(others)}: only linear layers and embeddings can be dequantised; merge into the base as it was "
            f"before it was quantised"
        )
    for module in {id(found[name].module): found[name].module for name in names}.values():
        _to_plain(module)
    return names


def _to_plain(module: nn.Module) -> None:
    """The module itself becomes the plain one: whoever holds it goes on."""
    weight, deltas = dequantised(module), module.__dict__.get("dts")
    bias = raw_or_none(module, "bias") if "bias" in {*module._parameters, *module._buffers} else None
    rows, columns = weight.shape
    plain: nn.Module
    if isinstance(module, nn.Embedding):
        options = module.padding_idx, module.max_norm, module.norm_type, module.scale_grad_by_freq, module.sparse
        plain = nn.Embedding(rows, columns, *options, device="meta")
    elif was_transposed(module):
        plain = module.__dict__["source_cls"](columns, rows)
    else:
        plain = nn.Linear(columns, rows, bias is not None, device="meta")
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach(), requires_grad=False)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.training = module.training
    kept = {name: value for name, value in module.__dict__.items() if "_hooks" in name}
    release(module)
    module.__class__ = type(plain)
    module.__dict__.clear()
    module.__dict__.update(plain.__dict__ | kept)
    if deltas is not None:
        pieces: dict[str, list[Piece]] = {name: [] for name in deltas.parameters}
        adopt(module, layer_class(module, pieces), deltas)
