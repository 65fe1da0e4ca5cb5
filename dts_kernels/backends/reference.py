"""Plain PyTorch for every op: `dts_kernels.reference` and `samples.dense`, in the form that `paths` says."""

import torch
from torch import Tensor

from .. import reference
from ..contents import factors_of
from ..embedding_parts import EmbeddingParts, row_in
from ..operands import DenseOperands, FactorOperands, SampleOperands, StoredSamples
from ..paths import register
from ..routing import Routing
from ..sample_bank import samples_of
from ..samples import dense


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _nothing(operands: FactorOperands) -> bool:
    """Whether no task of a bank of kernel words has a rank, known without a look at the device's memory."""
    return operands.layout != "disk" and operands.max_rank == 0


@register("delta_linear", "reference")
def delta_linear(x: Tensor, y: Tensor | None, operands: FactorOperands, transposed: bool) -> Tensor:
    packed, table, slots, weights, out_features, _, _ = operands
    if _nothing(operands):
        return x.new_zeros(*x.shape[:-1], out_features) if y is None else y.clone()
    sizes = (out_features, x.shape[-1]) if transposed else (x.shape[-1], out_features)
    factors, exponents = factors_of(packed, table, *sizes, transposed)
    rows = x.flatten(0, -2) if x.dim() > 1 else x[None]
    out = reference.delta_linear(rows, factors, slots, weights, out_features, exponents)
    out = out.reshape(x.shape[:-1] + (out_features,))
    return (out if y is None else out + y).to(x.dtype)


@register("linear", "reference")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None, operands: FactorOperands) -> Tensor:
    return delta_linear(x, torch.nn.functional.linear(x, weight, bias), operands, False)


@register("reconstruct", "reference")
def reconstruct(operands: DenseOperands, dtype: torch.dtype) -> Tensor:
    packed, table, gamma, base, out_features, in_features, _, _ = operands
    wide = _wide(dtype)
    device = base.device if base is not None else packed[0].device if packed else None
    shape = (out_features, in_features)
    out = torch.zeros(shape, dtype=wide, device=device) if base is None else base.to(wide, copy=True)
    for slot, factors in factors_of(packed, table, in_features, out_features)[0].items():
        if gamma[slot]:
            out += gamma[slot] * reference.reconstruct(factors, wide)
    return out.to(dtype)


@register("delta_embedding", "reference")
def delta_embedding(ids: Tensor, operands: FactorOperands, in_features: int, dtype: torch.dtype) -> Tensor:
    packed, table, slots, weights, out_features, _, _ = operands
    if _nothing(operands):
        return torch.zeros(*ids.shape, in_features, dtype=dtype, device=ids.device)
    factors = factors_of(packed, table, in_features, out_features)[0]
    out = reference.delta_embedding(ids.flatten(), factors, slots, weights, in_features, _wide(dtype))
    return out.reshape(*ids.shape, in_features).to(dtype)


@register("add_embedding", "reference")
def add_embedding(ids: Tensor, y: Tensor, parts: EmbeddingParts, routing: Routing) -> Tensor:
    for bank, lookup in parts.banks:
        own = torch.ops.dts.delta_embedding(row_in(lookup, ids), *bank.new_operands(routing), bank.in_features, y.dtype)
        y = y + own
    return y


@register("add_samples", "reference")
def add_samples(x: Tensor, y: Tensor, operands: SampleOperands, transposed: bool) -> Tensor:
    slots, weights = operands.slots, operands.weights
    sizes = (y.shape[-1], x.shape[-1])
    found = samples_of(operands.stored, sizes[::-1] if transposed else sizes)
    wide = _wide(x.dtype)
    rows, full = x.reshape(-1, sizes[1]).to(wide), y.to(wide, copy=True, memory_format=torch.contiguous_format)
    out = full.view(-1, sizes[0])
    each = rows.shape[0] // max(1, slots.shape[0])
    for entry, (own, gammas) in enumerate(zip(slots.tolist(), weights)):
        block = slice(entry * each, (entry + 1) * each)
        for slot, gamma in zip(own, gammas):
            for one in found.get(slot, ()):
                matrix = dense(one, wide)
                out[block] += gamma.to(wide) * (rows[block] @ (matrix if transposed else matrix.T))
    return full.to(y.dtype)


@register("add_sampled_rows", "reference")
def add_sampled_rows(ids: Tensor, y: Tensor, operands: SampleOperands, rows: int) -> Tensor:
    slots, weights = operands.slots, operands.weights
    if ids.numel() and int(ids.max()) >= rows:
        raise IndexError(f"an id of {int(ids.max())} is beyond the matrix's {rows} rows")
    found = samples_of(operands.stored, (rows, y.shape[-1]))
    wide, flat = _wide(y.dtype), ids.flatten()
    full = y.to(wide, copy=True, memory_format=torch.contiguous_format)
    out = full.view(-1, y.shape[-1])
    each = flat.shape[0] // max(1, slots.shape[0])
    for entry, (own, gammas) in enumerate(zip(slots.tolist(), weights)):
        chosen = (flat[entry * each : (entry + 1) * each] >= 0).nonzero()[:, 0] + entry * each
        for slot, gamma in zip(own, gammas):
            for one in found.get(slot, ()):
                out[chosen] += gamma.to(wide) * dense(one, wide, flat[chosen])
    return full.to(y.dtype)


@register("add_dense_samples", "reference")
def add_dense_samples(base: Tensor, stored: StoredSamples, gamma: Tensor) -> Tensor:
    wide = _wide(base.dtype)
    out = base.to(wide, copy=True, memory_format=torch.contiguous_format)
    for slot, own in samples_of(stored, (base.shape[0], base.shape[1])).items():
        for one in own if slot < gamma.shape[0] and gamma[slot] else ():
            out += gamma[slot].to(wide) * dense(one, wide)
    return out.to(base.dtype)
