"""Components rounded one after the other, in C and in PyTorch."""

import pytest
import torch

from dts.codec import alternations
from dts_kernels.cpu import native, rounding

VARIANTS = native.variants() or [pytest.param("", marks=pytest.mark.skip(reason="needs a C compiler"))]


def problem(count, columns):
    """Numbers whose sums and products float32 holds, so that no order of summing changes a bit."""
    seeded = torch.Generator().manual_seed(count)
    whole = lambda *shape: torch.randint(-40, 41, shape, generator=seeded) / 8  # noqa: E731
    return whole(count, columns), whole(count, columns), whole(count, count) / 8, torch.full((count,), 0.25)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("count, columns", [(1, 1), (7, 100), (9, 65), (64, 130), (20, 64)])
def test_as_in_pytorch(variant, count, columns):
    wide, room = torch.full((count, columns + 3), torch.nan), torch.full((count, count + 2), torch.nan)
    factor, misfit, weights, step = problem(count, columns)
    wide[:, :columns], room[:, :count] = factor, weights
    alternations.round_components(factor, misfit.clone(), weights, step)
    rounding.round_components(wide[:, :columns], misfit, room[:, :count], step, variant)
    assert torch.equal(wide[:, :columns], factor) and set(factor.abs().flatten().tolist()) <= {1.0, 4.0}
    assert wide[:, columns:].isnan().all()


@pytest.mark.skipif(not native.variants(), reason="needs a C compiler")
def test_every_instruction_set_has_the_same_bits():
    torch.manual_seed(0)
    factor, misfit, weights, step = torch.randn(61, 150) * 3, torch.randn(61, 150), torch.randn(61, 61), torch.rand(61)
    made, left = [], []
    for variant in native.variants():
        made.append(factor.clone())
        left.append(misfit.clone())
        rounding.round_components(made[-1], left[-1], weights / 10, step, variant)
    assert all(torch.equal(one, made[0]) for one in made) and all(torch.equal(one, left[0]) for one in left)


@pytest.mark.skipif(not native.variants(), reason="needs a C compiler")
def test_what_does_not_fit_is_refused():
    factor, misfit, weights, step = problem(4, 10)
    for wrong in (
        (factor, misfit[:3], weights, step),
        (factor, misfit, weights[:, :3], step),
        (factor, misfit, weights, step[:3]),
        (factor.double(), misfit, weights, step),
        (factor.T.contiguous().T, misfit, weights, step),
    ):
        with pytest.raises(ValueError, match="components"):
            rounding.round_components(*wrong)
    assert not rounding.usable(factor.double())
