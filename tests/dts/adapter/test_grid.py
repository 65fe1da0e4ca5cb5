"""Numbers in a few bits: what they become, how they lie on disk, and what is refused."""

import pytest
import torch

from dts.adapter import AdapterError
from dts.adapter.grid import GROUP, Grid, grid_from, rounded_to, stored_bytes
from dts_kernels.rounded import BITS


def draw(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 1e-4


def on_disk(grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """The naive way: bit j of number i is bit 3 i + j of the stream."""
    stream = [int(code) >> j & 1 for code in grid.codes.flatten().tolist() for j in range(grid.bits)]
    stream += [0] * (-len(stream) % 8)
    rows = torch.tensor(stream).view(-1, 8)
    return (rows << torch.arange(8)).sum(1).to(torch.uint8), grid.scales


@pytest.mark.parametrize("shape", [(16,), (64,), (65,), (1000,), (5, 77)])
@pytest.mark.parametrize("bits", BITS)
def test_it_comes_back_and_takes_the_bytes_it_says(bits, shape):
    values = draw(*shape)
    grid = rounded_to(values, bits)
    stored, scales = on_disk(grid)
    assert torch.equal(stored, grid.stored) and stored.nbytes + scales.nbytes == stored_bytes(values.numel(), bits)
    again = grid_from("x", shape, bits, grid.stored, grid.scales)
    assert torch.equal(again.codes, grid.codes) and torch.equal(again.values(), grid.values())
    assert grid.codes.dtype == torch.int8 and grid.codes.abs().max() <= 2 ** (bits - 1) - 1
    for i, value in enumerate(grid.values().flatten().tolist()):
        assert value == pytest.approx(grid.codes.flatten()[i].item() * grid.scales[i // GROUP].item(), rel=1e-6)


@pytest.mark.parametrize(("bits", "most"), [(3, 0.05), (4, 0.013), (8, 8e-5)])
def test_how_far_it_is_off(bits, most):
    values = draw(64 * 200)
    error = (rounded_to(values, bits).values() - values).square().sum() / values.square().sum()
    assert most / 3 < error < most


def test_groups_of_zeros_and_of_other_sizes():
    values = torch.cat([torch.zeros(64), draw(64), 1e20 * draw(64), 1e-30 * draw(10)])
    grid = rounded_to(values, 4)
    assert not grid.values()[:64].any() and not grid.scales[0].any()
    for group in (values.split(64), grid.values().split(64)):
        assert len(group) == 4
    for ours, theirs in zip(grid.values().double().split(64)[1:], values.double().split(64)[1:]):
        assert (ours - theirs).norm() < 0.15 * theirs.norm()


@pytest.mark.parametrize("largest", [1e35, float("inf"), float("nan")])
def test_what_no_scale_can_hold_is_not_rounded(largest):
    values = torch.ones(64)
    values[3] = largest
    assert rounded_to(values, 4) is None


def test_what_is_no_grid_is_refused_by_name():
    grid = rounded_to(draw(65), 3)
    stored, scales = grid.stored, grid.scales
    extra = stored.clone()
    extra[-1] |= 128
    for case in (
        (None, scales),
        (stored, None),
        (stored[1:], scales),
        (stored, scales[1:]),
        (stored.view(torch.int8), scales),
        (stored, scales.float()),
        (stored, -scales),
        (stored, scales * torch.inf),
        (stored, scales * torch.nan),
        (stored, scales * 1e36),
        (extra, scales),
    ):
        with pytest.raises(AdapterError, match="a.bias"):
            grid_from("a.bias", (65,), 3, *case)
