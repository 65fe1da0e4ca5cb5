"""Products through unpacked factors and the library's: long prefills, and machines without a compiler."""

import functools

import torch
from torch import Tensor

from ..layout import VALUES, PackedFactors

TILE_BYTES = 8 << 20  # unpacked V and U of one block of ranks: stays in a last-level cache


@functools.cache
def _fixed_values(dtype: torch.dtype) -> Tensor:
    return _table(torch.tensor(VALUES), dtype)


def _table(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The four numbers of every byte: dtype [256, 4]."""
    codes = torch.arange(256)[:, None] >> torch.tensor([0, 2, 4, 6]) & 3
    return values[codes].to(dtype)


def table_unpack(packed: Tensor, levels: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Values of disk bytes [rows, width] by one gather: dtype [rows, 4 * width]."""
    table = _fixed_values(dtype) if levels is None else _table(levels, dtype)
    return table.index_select(0, packed.reshape(-1).int()).view(packed.shape[0], -1)


def _product_dtype(dtype: torch.dtype, factors: PackedFactors) -> torch.dtype:
    """bf16 holds the fixed values exactly, not any four levels; half products are slow on CPUs."""
    if dtype == torch.float16 or dtype == torch.bfloat16 and factors.levels is not None:
        return torch.float32
    return dtype


def product(parts: list[tuple[Tensor, float, Tensor]], factors: PackedFactors, decode) -> None:
    """out += gamma ((x V^T) o sigma) U^T for one task and every (x, gamma, out), a block of ranks at a time.

    x [rows, n]; out float32 (float64 for float64 x) [rows, m]; decode: `table_unpack` or `native.unpack`.
    """
    x, _, out = parts[0]
    dtype = _product_dtype(x.dtype, factors)
    parts = [(x.to(dtype), gamma, out) for x, gamma, out in parts]
    u_levels, v_levels = (None, None) if factors.levels is None else factors.levels
    sigma = torch.nn.functional.pad(factors.sigma, (0, -factors.rank % 4)).to(out.dtype)
    width, block = factors.u.shape[1], max(64, TILE_BYTES // (4 * x.element_size() * sum(factors.shape)))
    for at in range(0, width, block):
        ranks, last = slice(4 * at, 4 * (at + block)), at + block
        v, u = decode(factors.v[:, at:last], v_levels, dtype), decode(factors.u[:, at:last], u_levels, dtype)
        for x, gamma, out in parts:
            t = (x @ v).to(out.dtype) * (sigma * gamma)[ranks]
            if dtype == out.dtype:
                out.addmm_(t, u.T)
            else:
                out += t.to(dtype) @ u.T


def delta_linear(
    x: Tensor,
    y: Tensor | None,
    factors: dict[int, PackedFactors],
    slots: Tensor,
    weights: Tensor,
    out_features: int,
    decode,
) -> Tensor:
    """y + the delta of every row, with the arguments of `reference.delta_linear`.

    A product is of one entry's rows, never of all that share a task: its bits would follow the others' tasks.
    """
    rows = x.reshape(-1, x.shape[-1])
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = x.new_zeros(x.shape[:-1] + (out_features,), dtype=wide)
    out = total.view(-1, out_features)
    each = rows.shape[0] // max(1, slots.shape[0])
    for place in range(slots.shape[1] if each else 0):
        users: dict[int, list[tuple[Tensor, float, Tensor]]] = {}
        for entry, (slot, gamma) in enumerate(zip(slots[:, place].tolist(), weights[:, place].tolist())):
            if slot in factors:
                own = slice(entry * each, (entry + 1) * each)
                users.setdefault(slot, []).append((rows[own], gamma, out[own]))
        for slot, parts in users.items():
            product(parts, factors[slot], decode)
    return (total if y is None else total.add_(y)).to(x.dtype)


def reconstruct(
    factors: dict[int, PackedFactors],
    gamma: Tensor,
    base: Tensor | None,
    shape: tuple[int, int],
    dtype: torch.dtype,
    decode=table_unpack,
) -> Tensor:
    """base + sum of gamma U diag(sigma) V^T, dense ``dtype`` [m, n]."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    out = torch.zeros(shape, dtype=wide) if base is None else base.to(wide, copy=True)
    for slot, f in factors.items():
        if gamma[slot] and f.rank:
            u_levels, v_levels = (None, None) if f.levels is None else f.levels
            sigma = torch.nn.functional.pad(f.sigma, (0, -f.rank % 4)).to(wide) * gamma[slot].item()
            out.addmm_(decode(f.u, u_levels, wide) * sigma, decode(f.v, v_levels, wide).T)
    return out.to(dtype)
