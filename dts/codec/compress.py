"""One delta to factors: checks, removal of zero rows and columns, size or error asked for, either method."""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dts import sums

from . import many
from .errors import Unencodable
from .factors import Factors
from .methods import METHODS, method_of
from .parts import components, kind_of, with_tensors

THREADED = 1 << 21  # elements of a matrix from which its products gain more from threads than joining them can cost


def compress_tensor(
    delta: Tensor,
    method: str = "residual",
    rank_fraction: float | None = None,
    rank: int | None = None,
    target_error: float | None = None,
    name: str | None = None,
    device=None,
    seed: int = 0,
    overwrite: bool = False,
) -> Factors:
    """Compress one delta [m, n] of any floating dtype; exactly one of the sizes is given.

    method: "residual" (the default), "paper" (exactly as published) or "sketch" (a quarter of the bytes for
        components, the rest for an unbiased sample of what they leave, `dts.codec.sketch`; any size counts the residual
        components that would take its bytes)
    rank_fraction: rank = int(rank_fraction * min(m, n)), at least 1
    rank: at most this many components, fewer where they would be of no use; "residual" takes up to
        4 min(m, n), the components beyond the delta's rank correct the rounding of the others, "paper" min(m, n)
    target_error: squared relative error ||delta - delta_hat||^2 / ||delta||^2 of the reconstruction,
        not to exceed with as few components as a short search finds; where even the largest rank misses it,
        that rank is returned and its ``squared_error`` says so.  Method "residual" only
    name: for messages; device: where to compute (default: delta's own); seed: of all random choices, so that
        equal input gives equal factors on one machine
    overwrite: delta is the caller's to lose: a float32 one is scaled in place, which saves a copy of it

    Returns factors on the CPU; rank 0 for an all-zero delta.  Raises Unencodable for a delta that is not a
    floating point matrix, or with elements that are NaN, infinite, or too large for float32.
    """
    asked = [size for size in (rank_fraction, rank, target_error) if size is not None]
    how = method_of(method)
    if len(asked) != 1 or not asked[0] > 0:
        raise ValueError(
            f"give one of rank_fraction=, rank=, target_error=, above 0; got {rank_fraction=}, {rank=}, {target_error=}"
        )
    if target_error is not None and not how.searches:
        able = " or ".join(f'"{name}"' for name, known in METHODS.items() if known.searches)
        others = " and ".join(f'"{name}"' for name, known in METHODS.items() if not known.searches)
        raise ValueError(f"target_error= needs method={able}; give {others} a rank_fraction= or rank=")

    wide = checked(delta, name, device)
    m, n = wide.shape
    rows, columns, compact = compacted(wide)
    del wide  # where rows or columns are left out, that of them is all that is needed
    if not compact.numel():
        return Factors((components.planned(0, (m, n)),), (m, n), None, None, 0.0, 0.0)
    scale = largest(compact)
    own = overwrite or compact.untyped_storage().data_ptr() != delta.untyped_storage().data_ptr()
    compact = compact.div_(scale) if own else compact / scale
    limit = how.rank_limit * min(compact.shape)
    with one_thread(compact.numel() < THREADED):
        if target_error is not None:
            parts, error = how.encode_to_error(compact, target_error, limit, seed)
        else:
            if rank_fraction is not None:
                rank = max(1, int(rank_fraction * min(m, n)))
            parts, error = how.encode(compact, min(limit, rank or limit), seed)
    scaled = (kind_of(data).times(data, scale) for data in parts)
    stored = tuple(with_tensors(data, lambda tensor: tensor.to("cpu")) for data in scaled)
    return Factors(stored, (m, n), rows, columns, sums.norm(compact) * scale, error)


def compress_many(deltas: Tensor, ranks: list[int], names: list[str], method: str, seed: int = 0) -> list[Factors]:
    """`compress_tensor` of several deltas of one shape at once, on the device they are on.

    deltas: float32 [B, m, n], the caller's to lose;  ranks: of each, above 0;  names: for messages.  Those without zero
    rows and columns are encoded together (`Method.encode_many`), the others one by one.
    """
    how, looks = method_of(method), look_at(deltas, names)
    together = [i for i, look in enumerate(looks) if look.full and look.norm]
    made = {
        i: compress_tensor(deltas[i], method, rank=rank, name=names[i], seed=seed)
        for i, rank in enumerate(ranks)
        if i not in together
    }
    if together:
        own = deltas if len(together) == len(looks) else deltas[torch.tensor(together, device=deltas.device)]
        scales = torch.tensor([looks[i].largest for i in together], device=deltas.device)
        own /= scales[:, None, None]
        limit = how.rank_limit * min(own.shape[1:])
        encoded = how.encode_many(own, [min(limit, ranks[i]) for i in together], seed)
        for i, (parts, error) in zip(together, encoded, strict=True):
            scaled = (kind_of(data).times(data, looks[i].largest) for data in parts)
            stored = tuple(with_tensors(data, lambda tensor: tensor.to("cpu")) for data in scaled)
            made[i] = Factors(stored, (own.shape[1], own.shape[2]), None, None, looks[i].norm, error)
    return [made[i] for i in range(len(looks))]


@dataclass(frozen=True)
class Look:
    """Of one delta: ||delta||_F, max |delta|, and whether it has no zero row and no zero column."""

    norm: float
    largest: float
    full: bool


def look_at(deltas: Tensor, names: list[str]) -> list[Look]:
    """Of each of deltas float32 [B, m, n], waiting for the device once; raises Unencodable as `checked`."""
    changed = deltas != 0
    found = (
        torch.linalg.vector_norm(deltas, dim=(1, 2), dtype=torch.float64),
        torch.maximum(deltas.amax((1, 2)), -deltas.amin((1, 2))).double(),
        (changed.any(2).all(1) & changed.any(1).all(1)).double(),
    )
    looks = []
    for i, (norm, size, full) in enumerate(many.to_host([torch.stack(found, 1)])[0].tolist()):
        if not math.isfinite(size):
            checked(deltas[i], names[i], None)
        looks.append(Look(norm, size, bool(full)))
    return looks


@contextmanager
def one_thread(wanted: bool):
    """One CPU thread for torch meanwhile, if ``wanted``.

    The sweeps are thousands of small products; where another program runs, a join of spinning threads at each of
    them waits for a worker to be scheduled, and takes many times as long as the product.
    """
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def checked(delta: Tensor, name: str | None, device) -> Tensor:
    """delta as float32 [m, n] on ``device``; raises Unencodable."""
    label = f"tensor {name!r}" if name else "the tensor"
    if not delta.is_floating_point() or delta.dim() != 2:
        raise Unencodable(
            f"{label} is {delta.dtype} {list(delta.shape)}: the codec takes floating point matrices; "
            "reshape it to [out_features, everything else] or store it whole"
        )
    delta = delta.detach().to(device or delta.device, torch.float32)
    if delta.numel() and not math.isfinite(largest(delta)):
        nan, infinite = delta.isnan().sum().item(), delta.isinf().sum().item()
        raise Unencodable(
            f"{label} has {nan} NaN and {infinite} infinite elements (as float32) of {delta.numel()}: "
            "check the models for divergence or overflow"
        )
    return delta


def largest(x: Tensor) -> float:
    """max |x|, without a copy of x; NaN if an element is."""
    return torch.stack(x.aminmax()).abs().max().item()


def compacted(delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """(rows, columns, delta without its all-zero rows and columns); indices int64 on the CPU, None where all stay."""
    kept: list[Tensor | None] = []
    for dim in (1, 0):
        used = (delta != 0).any(dim)
        if not used.all():
            delta = delta.index_select(1 - dim, used.nonzero()[:, 0])
        kept.append(None if used.all() else used.nonzero()[:, 0].cpu())
    rows, columns = kept
    return rows, columns, delta
