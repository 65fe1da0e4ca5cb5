"""The streamed threshold is exactly the order statistic of the whole model."""

import pytest
import torch

from dts.merge.quantile import stream_thresholds


def streamed(tensors):
    return lambda: ((f"t{i}", t) for i, t in enumerate(tensors))


@pytest.mark.parametrize("density", [1e-9, 0.01, 0.2, 0.5, 0.999, 1.0])
def test_equals_sorting_the_whole_model(density):
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(2, *shape, generator=generator) * size
        for shape, size in (((30, 20), 1e-3), ((7,), 5.0), ((11, 3), 1e-6))
    ]
    tensors[0][1, :10] = 0
    flat = torch.cat([t.flatten(1) for t in tensors], dim=1).abs()
    keep = max(1, round(density * flat.shape[1]))
    expected = flat.sort(dim=1, descending=True).values[:, keep - 1]
    assert stream_thresholds(streamed(tensors), density) == expected.tolist()


def test_equal_magnitudes_and_zeros():
    tensors = [torch.tensor([[1.0, -1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])]
    assert stream_thresholds(streamed(tensors), 0.5) == [1.0, 0.0]


def test_nothing_to_stream():
    assert stream_thresholds(streamed([]), 0.5) == []
