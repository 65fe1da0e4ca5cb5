"""What tasks add to vectors, in C: against PyTorch, and sizes that C refuses."""

import pytest
import torch

from dts_kernels import Routing
from dts_kernels.cpu import native, native_vectors
from dts_kernels.ops import task_rows, vectors_here

pytestmark = pytest.mark.skipif(not native.variants(), reason="needs a C compiler")


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 7, 384])
@pytest.mark.parametrize("entries", [[1], [None], [9], [{0: 0.5, 1: -0.7}], [0, 1, None, {1: 2.5}]], ids=str)
def test_sums_are_those_of_pytorch(n, entries):
    base, other, stack, more = torch.randn(n), torch.randn(n), torch.randn(2, n), torch.randn(1, n)
    routing = Routing.of(entries)
    for pairs in ([(base, stack)], [(base, stack), (other, more)]):
        for (own, added), got in zip(pairs, vectors_here(pairs, routing), strict=True):
            want = task_rows(added.double(), routing, torch.float64, own.double())
            assert got.shape == want.shape and torch.allclose(got.double(), want, rtol=1e-6, atol=1e-6)
    base[0] = torch.nan
    assert vectors_here([(base, stack)], routing)[0][:, 0].isnan().all()


@torch.no_grad()
def test_a_row_that_nobody_uses_is_not_read():
    stack = torch.tensor([[torch.nan], [2.0]])
    assert vectors_here([(torch.ones(1), stack)], Routing.of([1, None]))[0].flatten().tolist() == [3.0, 1.0]


def test_what_is_out_of_the_ordinary_is_left_to_others():
    base, stack, routing = torch.randn(5), torch.randn(2, 5), Routing.of([0])
    pairs = [
        (base.double(), stack),
        (base, stack.half()),
        (base, stack[:, 1:]),
        (base, stack.t().contiguous().t()),
        (torch._neg_view(base), stack),
        (base.clone().requires_grad_(), stack),
        (base.to("meta"), stack.to("meta")),
    ]
    for pair in pairs:
        assert vectors_here([pair], routing) is None
    assert vectors_here([(base, stack), (base[1:], stack[:, 1:].contiguous())], routing) is None


def test_memory_that_is_too_small_is_refused():
    base, stack = torch.randn(5), torch.randn(2, 5)
    slots, weights = Routing.of([0]).slots, torch.ones(1, 1)
    for given, own, gammas in (
        ([(base, stack[:, :4].contiguous())], slots, weights),
        ([(base, stack), (base[:3], stack)], slots, weights),
        ([(base, stack)], slots, weights[:0]),
    ):
        with pytest.raises(ValueError, match="smaller than the product reads"):
            native_vectors.add_vectors(given, own, gammas)
