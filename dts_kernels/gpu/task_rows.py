"""task_rows: what each row's tasks add to a vector (a bias, a norm's weight), by one launch."""

import triton
import triton.language as tl


@triton.jit
def task_rows(
    stack,
    slots,
    weights,
    y,
    out,
    tasks,
    per_entry,
    places,
    width,
    stride,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
):
    """out [rows, width] = y (if ADD) + sum over p of weights[entry, p] stack[slots[entry, p]], rounded once.

    stack [tasks, width]; a slot beyond it adds nothing.  y: rows of it are ``stride`` apart, 0 where all are the same.
    Row i is of the routing's entry i // per_entry.  Grid: (rows, ceil(width / BLOCK)): CUDA has no more than 65,535
    programs along any axis but the first.
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    if ADD:
        total += tl.load(y + row * stride + n, mask=n < width, other=0.0).to(tl.float32)
    entry = row // per_entry * places
    for place in range(places):
        slot = tl.load(slots + entry + place).to(tl.int64)
        known = (slot >= 0) & (slot < tasks)
        own = tl.load(stack + slot * width + n, mask=n < tl.where(known, width, 0), other=0.0).to(tl.float32)
        total += own * tl.load(weights + entry + place)
    tl.store(out + row * width + n, total.to(out.dtype.element_ty), mask=n < width)
