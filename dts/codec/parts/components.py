"""Components: sum_k sigma_k u_k v_k^T with 2 bits an element of u_k and v_k, side by side in `PackedFactors`.

    .u, .v     uint8 [rows, ceil(k / 4)], [columns, ceil(k / 4)]: codes, see `dts_kernels.layout`
    .sigma     float32 [k]
    .levels    float32 [2, 4]: what the codes mean, where that is not +1, +4, -1, -4

Fragment: [{"kind", "rank"}, ...], the first components first; written as one run.  Its "kind" says how they were made,
"paper" (with levels) or "residual" (without, at the scale of `dts.codec.scale`).
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dts import values
from dts_kernels.layout import PackedFactors, pack, packed_width, unpack
from dts_kernels.reference import factor_values, reconstruct

from .. import codes, scale
from ..errors import Undecodable
from ..spectrum import PAPER_KEPT
from .kind import Load, PartKind, packed_bits_end

RESIDUAL, PAPER = "residual", "paper"
LEVELS_BYTES, CODES_A_BYTE = 2 * 4 * 4, 4

_runs = values.list_of(values.exactly(kind=values.one_of(RESIDUAL, PAPER), rank=values.count))


class Components(PartKind[PackedFactors]):
    name, data, key, version, alone, ranked = "components", PackedFactors, "parts", 1, True, True

    def tensors(self, place: int, data: PackedFactors) -> dict[str, Tensor]:
        if place:
            raise ValueError("a matrix has one run of components: those of several stand side by side in it")
        tensors = {"u": data.u, "v": data.v, "sigma": data.sigma}
        return tensors if data.levels is None or not data.rank else tensors | {"levels": data.levels}

    def fragment(self, parts: list[PackedFactors]) -> list:
        return [{"kind": self.label(data), "rank": data.rank} for data in parts if data.rank]

    def fits(self, fragment) -> bool:
        return _runs(fragment) and len({run["kind"] for run in fragment}) <= 1

    def decode(self, name: str, fragment, shape: tuple[int, int], load: Load) -> list[PackedFactors]:
        data, rank = load.packed() or self._of_tensors(name, load), sum([run["rank"] for run in fragment])
        if data.shape != shape or data.rank != rank:
            raise Undecodable(
                f"{name}: factors of {list(data.shape)}, rank {data.rank}, where {list(shape)}, rank {rank} belongs"
            )
        if (data.levels is not None) != (bool(fragment) and fragment[0]["kind"] == PAPER):
            raise Undecodable(f'{name}: levels belong to method "paper", and the other way round')
        for key in "uv" if rank % CODES_A_BYTE else "":
            if not packed_bits_end(getattr(data, key), rank):
                raise Undecodable(f"{name}.{key}: bits beyond its {rank} codes are set")
        return [data]

    def _of_tensors(self, name: str, load: Load) -> PackedFactors:
        u, v, sigma, levels = map(load, ("u", "v", "sigma", "levels"))
        if u is None or v is None or sigma is None:
            absent = [key for key, tensor in (("u", u), ("v", v), ("sigma", sigma)) if tensor is None]
            raise Undecodable(f"{name}: its {', '.join(absent)} is missing")
        try:
            return PackedFactors(u, v, sigma, levels)
        except ValueError as error:
            raise Undecodable(f"{name}: {error}") from None

    def shape(self, data: PackedFactors) -> tuple[int, int]:
        return data.shape

    def dense(self, data: PackedFactors, dtype: torch.dtype = torch.float32) -> Tensor:
        return reconstruct(data, dtype)

    def largest(self, data: PackedFactors) -> float:
        level = codes.LARGEST if data.levels is None else data.levels.double().abs().max().item()
        return sum(map(abs, data.scales)) * level**2  # of some tens: a fifth of what three calls of torch take

    def energy(self, data: PackedFactors) -> float:
        wide = data.sigma.double()
        return (wide @ scale.code_gram(*factor_values(data)) @ wide).clamp(min=0).item()

    def times(self, data: PackedFactors, factor: float) -> PackedFactors:
        return replace(data, sigma=(data.sigma.double() * factor).float())

    def weighted(self, members: list[tuple[float, PackedFactors]]) -> list[PackedFactors] | None:
        """One run of all components, gamma in their sigma, in order of their size; None if some have levels."""
        if any(data.levels is not None for _, data in members):
            return None
        u, v = (torch.cat([unpack(getattr(data, side), data.rank) for _, data in members], dim=1) for side in "uv")
        sigma = torch.cat([gamma * data.sigma for gamma, data in members])
        u_values, v_values = factor_values(PackedFactors(pack(u), pack(v), sigma))
        order = (sigma.abs() * u_values.norm(dim=0) * v_values.norm(dim=0)).argsort(descending=True, stable=True)
        return [PackedFactors(pack(u[:, order]), pack(v[:, order]), sigma[order].contiguous())]

    def label(self, data: PackedFactors) -> str:
        return RESIDUAL if data.levels is None else PAPER

    def rank(self, data: PackedFactors) -> int:
        return data.rank

    def largest_component(self, data: PackedFactors) -> float:
        return data.sigma.abs().max().item() if data.rank else 0.0

    def prefix(self, data: PackedFactors, rank: int, norm: float) -> tuple[PackedFactors, float | None]:
        """Without levels sigma is the best of those components, scaled as `dts.codec.scale` says, and the error exact;
        with levels sigma is as it was, and the error not known."""
        if data.levels is not None:
            return data.prefix(rank), None
        return scale.refitted(data, rank, norm)

    def prefix_bytes(self, data: PackedFactors, ranks: np.ndarray) -> np.ndarray:
        return bytes_at(data.shape, ranks, data.levels is not None)

    def prefix_left(self, data: PackedFactors, norm: float) -> Tensor:
        """With levels: what `dts.codec.spectrum` expects of them, where the sigma are the singular values."""
        if data.levels is None:
            return 1 - scale.prefix_shares(data, norm)
        energies = data.sigma.double().square().cumsum(0)
        return 1 - PAPER_KEPT * torch.cat([energies.new_zeros(1), energies]) / norm**2

    def prefix_errors(self, data: PackedFactors, norm: float) -> Tensor | None:
        return None if data.levels is not None else scale.error_of(scale.prefix_shares(data, norm))


def bytes_at(shape: tuple[int, int], ranks: np.ndarray, levels: bool = False) -> np.ndarray:
    """Bytes of components of a matrix [m, n] at each of the ranks (int64): four codes of a row a byte, and float32s."""
    m, n = shape
    return (m + n) * ((ranks + 3) // 4) + 4 * ranks + np.where(ranks > 0, LEVELS_BYTES * levels, 0)


def planned(rank: int, shape: tuple[int, int], levels: bool = False) -> PackedFactors:
    """Components without content: right in every shape, and next to no memory."""
    byte = torch.zeros((), dtype=torch.uint8)
    u, v = (byte.expand(size, packed_width(rank)) for size in shape)
    return PackedFactors(u, v, torch.zeros(()).expand(rank), torch.zeros(2, 4) if levels else None)


def none(shape: tuple[int, int], device: torch.device | None = None) -> PackedFactors:
    """Components of rank 0: nothing."""
    u, v = (torch.zeros(size, 0, dtype=torch.uint8, device=device) for size in shape)
    return PackedFactors(u, v, torch.zeros(0, device=device))


KIND = Components()
