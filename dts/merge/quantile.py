"""The magnitude above which a share of a whole model's entries lies, exactly, in two passes and 256 KiB a model.

The bits of a non-negative float32, read as an integer, grow with its value: a histogram of the upper 16 bits finds the
bucket of the wanted entry, a second one of the lower 16 bits within that bucket finds the entry itself.
"""

import torch
from torch import Tensor

_BUCKETS = 1 << 16


def _bits(delta: Tensor) -> Tensor:
    return delta.float().abs().flatten().view(torch.int32)


def _bucket(counts: Tensor, rank: int) -> tuple[int, int]:
    """(bucket of the rank-th largest entry, its rank within the bucket); ranks count from 1."""
    above = counts.flip(0).cumsum(0).flip(0)  # entries in this bucket and all higher ones
    bucket = int((above >= rank).nonzero().max())
    return bucket, rank - int(above[bucket] - counts[bucket])


def stream_thresholds(stream, density: float) -> list[float]:
    """Per model, the magnitude of the last of the round(density * entries) largest entries.

    stream() yields (name, deltas float [N, ...]) and is called twice. Ties of magnitude at the threshold are all kept.
    """
    upper = None
    for _, deltas in stream():
        if upper is None:
            upper = torch.zeros(len(deltas), _BUCKETS, dtype=torch.int64)
        for counts, delta in zip(upper, deltas, strict=True):
            if delta.any():
                counts += torch.bincount(_bits(delta) >> 16, minlength=_BUCKETS)
            else:  # counting zeros one by one is slow
                counts[0] += delta.numel()
    if upper is None:
        return []
    wanted = [max(1, min(int(c.sum()), round(density * int(c.sum())))) for c in upper]
    found = [_bucket(counts, rank) for counts, rank in zip(upper, wanted, strict=True)]
    lower = torch.zeros_like(upper)
    for _, deltas in stream():
        for counts, delta, (bucket, _) in zip(lower, deltas, found, strict=True):
            if not delta.any():
                counts[0] += delta.numel() if bucket == 0 else 0
                continue
            bits = _bits(delta)
            counts += torch.bincount(bits[bits >> 16 == bucket] & _BUCKETS - 1, minlength=_BUCKETS)
    exact = [bucket << 16 | _bucket(counts, rank)[0] for counts, (bucket, rank) in zip(lower, found, strict=True)]
    return torch.tensor(exact, dtype=torch.int32).view(torch.float32).tolist()
