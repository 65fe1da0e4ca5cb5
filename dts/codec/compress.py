"""One delta to factors: checks, removal of zero rows and columns, size or error asked for, either method."""

import math
from contextlib import contextmanager

import torch
from torch import Tensor

from dts import sums
from dts_kernels.layout import PackedFactors
from dts_kernels.samples import Samples

from . import four_group, residual, sketch
from .errors import Unencodable
from .factors import Factors, Part
from .spectrum import predicted_error, singular_values

ENCODERS = {"residual": residual, "paper": four_group, "sketch": sketch}
METHODS = tuple(ENCODERS)
RANK_LIMIT = {"residual": 4, "paper": 1, "sketch": 4}  # times min(m, n) of the matrix without its zero rows and columns
TRIALS = 6  # ranks tried for a target error
THREADED = 1 << 21  # elements of a matrix from which its products gain more from threads than joining them can cost
TINY = 1e-300  # stands for an error of 0 where logarithms are taken


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
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if len(asked) != 1 or not asked[0] > 0:
        raise ValueError(
            f"give one of rank_fraction=, rank=, target_error=, above 0; got {rank_fraction=}, {rank=}, {target_error=}"
        )
    if target_error is not None and method != "residual":
        raise ValueError('target_error= needs method="residual"; give "paper" and "sketch" a rank_fraction= or rank=')

    shape, (rows, columns, compact) = tuple(delta.shape), compacted(checked(delta, name, device))
    if not compact.numel():
        empty = PackedFactors(*(torch.zeros(size, 0, dtype=torch.uint8) for size in shape), torch.zeros(0))
        return Factors(empty, shape, None, None, (), 0.0, 0.0)
    scale = largest(compact)
    own = overwrite or compact.untyped_storage().data_ptr() != delta.untyped_storage().data_ptr()
    compact = compact.div_(scale) if own else compact / scale
    limit = RANK_LIMIT[method] * min(compact.shape)
    samples: tuple[Samples, ...] = ()
    with one_thread(compact.numel() < THREADED):
        if target_error is not None:
            packed, error = encode_to_error(compact, target_error, limit, seed)
        else:
            rank = min(limit, rank or max(1, int(rank_fraction * min(shape))))
            packed, error, *more = ENCODERS[method].encode(compact, rank, seed)
            samples = more[0] if more else ()
    sigma = packed.sigma.double() * scale
    packed = PackedFactors(packed.u, packed.v, sigma.float(), packed.levels).to("cpu")
    norm = sums.norm(compact) * scale
    samples = tuple(one.times(scale).to("cpu") for one in samples)
    parts = (Part("paper" if method == "paper" else "residual", packed.rank),)
    return Factors(packed, shape, rows, columns, parts, norm, error, samples)


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
            "check the fine-tune for divergence or overflow"
        )
    return delta


def largest(x: Tensor) -> float:
    """max |x|, without a copy of x; NaN if an element is."""
    return torch.stack(x.aminmax()).abs().max().item()


def compacted(delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """(rows, columns, delta without its all-zero rows and columns); indices int64 on the CPU, None where all stay."""
    kept = []
    for dim in (1, 0):
        used = (delta != 0).any(dim)
        if not used.all():
            delta = delta.index_select(1 - dim, used.nonzero()[:, 0])
        kept.append(None if used.all() else used.nonzero()[:, 0].cpu())
    return *kept, delta


def encode_to_error(delta: Tensor, target: float, limit: int, seed: int) -> tuple[PackedFactors, float]:
    """Residual factors with the smallest rank found whose error is at most ``target``, and that error.

    The first rank tried is the predicted one; until one rank misses the target and another meets it, the prediction
    is scaled by measured over predicted; then the logarithm of the error is interpolated between the two.
    """
    predicted = predicted_error(singular_values(delta), range(limit + 1), shape=delta.shape)
    best, low, high, ratio, errors = None, 0, limit + 1, 1.0, {}
    for _ in range(TRIALS):
        if low in errors and high in errors:
            fall = math.log(errors[low] / target) / math.log(errors[low] / errors[high])
            guess = math.ceil(low + fall * (high - low))
        else:
            guess = int((predicted * ratio > target).sum())
        rank = min(max(guess, low + 1), high - 1)
        if rank <= low:
            break
        packed, error = residual.encode(delta, rank, seed)
        errors[rank], ratio = max(error, TINY), error / predicted[rank].item()
        if error <= target:
            best, high = (packed, error), rank
        else:
            low = rank
    return best or residual.encode(delta, limit, seed)
