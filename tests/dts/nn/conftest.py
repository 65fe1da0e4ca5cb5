"""Random adapters in memory, and the dense models that they stand for.

Makes ``each_row`` importable under pytest's importlib mode, too.
"""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dts.adapter.entries import Entry
from dts.codec.factors import Factors
from dts_kernels import PackedFactors, Samples, pack
from dts_kernels.samples import groups_of

sys.path.insert(0, str(Path(__file__).parent))


class Maker:
    """Makes factors, entries and dense twins; everything from one seed, in the default dtype of the test."""

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)

    def randn(self, *shape, dtype=torch.float64, scale=0.1):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype) * scale

    def factors(self, m, n, rank=3, rows=None, columns=None, levels=False, scale=0.03) -> Factors:
        """Random factors [m, n]; rows, columns: how many are kept, None = all."""
        index = [
            None if kept is None else torch.randperm(size, generator=self.generator)[:kept].sort().values
            for size, kept in ((m, rows), (n, columns))
        ]
        sizes = m if rows is None else rows, n if columns is None else columns
        codes = [torch.randint(0, 4, (size, rank), generator=self.generator, dtype=torch.uint8) for size in sizes]
        table = torch.tensor([[0.5, 2.0, -0.6, -2.2], [0.4, 1.9, -0.5, -2.0]]) if levels else None
        sigma = (torch.rand(rank, generator=self.generator) + 0.5) * scale
        packed = PackedFactors(pack(codes[0]), pack(codes[1]), sigma, table)
        samples = ()
        if not levels and self.chance(0.5):
            stride = min(3, *sizes)
            codes = torch.randint(0, 4, (sizes[0], groups_of(sizes[1], stride)), generator=self.generator)
            samples = (Samples(pack(codes.byte()), 2 * scale, stride, m + n, sizes),)
        return Factors((packed, *samples), (m, n), index[0], index[1], 1.0, 0.1)

    def chance(self, share: float) -> bool:
        return torch.rand((), generator=self.generator).item() < share

    def entry(self, name, tensor, skip=0.15) -> Entry | None:
        """A random entry for one tensor of a base, or None (unchanged)."""
        if self.chance(skip) or not tensor.is_floating_point():
            return None
        shape, common = tuple(tensor.shape), dict(name=name, base_name=name, shape=tuple(tensor.shape))
        if tensor.dim() == 3 and shape[0] > 1:
            experts = [None if self.chance(0.2) else self.factors(*shape[1:]) for _ in range(shape[0])]
            return Entry(kind="experts", factors=experts, **common)
        if tensor.dim() in (2, 4):
            m, n = shape[0], torch.Size(shape[1:]).numel()
            sparse = self.chance(0.3) and m > 2 and n > 2 and tensor.dim() == 2
            kept = (m // 2, n // 2) if sparse else (None, None)
            return Entry(kind="factors", factors=self.factors(m, n, 3, *kept, levels=self.chance(0.3)), **common)
        return Entry(kind="delta", tensor=self.randn(*shape), **common)

    def entries(self, model: nn.Module, skip=0.15, only="") -> dict[str, Entry]:
        """Random entries for a whole model: most tensors change, some do not; only: names must contain it."""
        tensors = {n: p for n, p in model.named_parameters() if only in n}
        found = {name: self.entry(name, p, skip) for name, p in tensors.items()}
        return {name: entry for name, entry in found.items() if entry is not None}

    def head(self, name, *shape) -> Entry:
        return Entry(name, None, shape, "value", tensor=self.randn(*shape, scale=0.5), task_only=True)


def dense(model: nn.Module, mixture: list[tuple[dict[str, Entry], float]]) -> nn.Module:
    """The twin: a copy of the base with gamma * delta added to its dense weights."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        tensors = dict(twin.named_parameters())
        for entries, gamma in mixture:
            for name, entry in entries.items():
                if not entry.task_only:
                    tensors[name] += gamma * entry.delta(dtype=tensors[name].dtype)
    return twin


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def dense_twin():
    return dense
