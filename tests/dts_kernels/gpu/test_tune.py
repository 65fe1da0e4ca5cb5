"""The tuner's parts that need no GPU."""

import pytest
import torch

from dts_kernels.gpu import tune
from dts_kernels.gpu.config import Config
from dts_kernels.layout import unpack


@pytest.mark.parametrize("kernel", ["shrink", "expand", "base_expand"])
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_candidates_are_different_and_launchable(kernel, rows):
    found = tune.candidates(kernel, 256, rows)
    assert len(found) == len(set(found)) > 3
    assert all(c.split in (1, 2) and (c.split == 1 or kernel == "shrink" and rows < 16) for c in found)


def test_the_lowest_median_wins_over_one_lucky_run():
    steady, lucky = Config(block_n=32), Config(block_n=128)
    assert tune.best([(lucky, [0.1, 3, 3]), (steady, [2, 2, 2])]) == steady


def test_random_factors_are_valid_ragged_factors():
    f = tune.random_factors(5, 7, 9, 0, "cpu")
    assert f.shape == (5, 7) and f.rank == 9
    assert torch.equal(f.u[:, 2] >> 2, torch.zeros(5, dtype=torch.uint8)) and unpack(f.u, 9).max() == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so():
    with pytest.raises(RuntimeError, match="CUDA device"):
        tune.tune([(64, 64, 8)])
