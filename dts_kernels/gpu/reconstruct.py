"""reconstruct: W + sum over tasks of gamma U diag(sigma) V, tile by tile, straight into the wanted dtype."""

import triton
import triton.language as tl

from .decode import HEADER, combine, decode, find_task, load_rank_words, load_words, rank_order


@triton.jit
def _values(word, coefficients, LEVELS: tl.constexpr, D: tl.constexpr):
    f = decode(word, "f", D)
    if LEVELS:
        one = tl.full((128, 1), 1.0, tl.float32)
        return combine(f, decode(word, "g", D), decode(word, "b", D), one, coefficients, LEVELS)
    return f


@triton.jit
def reconstruct(
    words,
    scalars,
    table,
    slots,
    gamma,
    base,
    out,
    tasks,
    places,
    in_features,
    out_features,
    out_columns,
    BLOCK_M: tl.constexpr,
    LEVELS: tl.constexpr,
    ADD: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out [out_features, in_features] = base (if ADD) + sum over p of gamma[p] times the delta of slots[p].

    D: what is multiplied; float32 with levels, which 16 bits would round.  PRECISION: of float32 products, "tf32"
    where out has 16 bits, else "ieee".
    Grid: (ceil(in_features / 128), ceil(out_features / BLOCK_M)).
    """
    n = tl.program_id(0) * 128 + tl.arange(0, 128)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros((128, BLOCK_M), tl.float32)  # transposed: V's words contract over n, U's over the rank
    for place in range(places):
        v, u, scalar, rank = find_task(table, tasks, tl.load(slots + place))
        product = tl.zeros((128, BLOCK_M), tl.float32)
        for block in range(0, tl.cdiv(rank, 128)):
            k = rank_order(block * 128 + tl.arange(0, 128))
            sigma = tl.load(scalars + scalar + HEADER + k, mask=k < rank, other=0.0)
            left = _values(load_words(words + v, tl.program_id(0), rank, k, k < rank), scalars + scalar + 1, LEVELS, D)
            right = _values(
                load_rank_words(words + u, block, out_columns, rank, m, m < out_columns),
                scalars + scalar + 5,
                LEVELS,
                D,
            )
            left = (left.to(tl.float32) * sigma[None, :]).to(D)
            product = tl.dot(left, right.to(D), product, input_precision=PRECISION)
        scale = tl.load(scalars + scalar, mask=rank > 0, other=0.0) * tl.load(gamma + place)
        total += product * (scale if LEVELS else scale * 16.0)
    at = m.to(tl.int64)[None, :] * in_features + n[:, None]
    mask = (m < out_features)[None, :] & (n < in_features)[:, None]
    if ADD:
        total += tl.load(base + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)
