"""Plain PyTorch makes of samples what the reference does, of thinned ones too."""

import pytest
import torch

from dts.exports.program.samples import PlainSamples
from dts.exports.program.shared import Shared
from dts_kernels import Samples, pack
from dts_kernels.samples import dense, elements_of


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stride, share", [(7, (1, 1)), (1, (3, 4)), (3, (1, 8)), (5, (3, 16))])
def test_the_dense_matrix_is_the_reference(stride, share, transposed):
    shape = (23, 50)
    codes = torch.randint(4, (23, elements_of(50, stride, share)), generator=torch.Generator().manual_seed(1))
    one = Samples(pack(codes.to(torch.uint8)), 0.25, stride, 77, shape, share)
    made = PlainSamples({0: (one,)}, transposed, Shared(1))
    wanted = dense(one)
    torch.testing.assert_close(made.dense(torch.ones(1), None), wanted.T if transposed else wanted)
    rows = torch.tensor([22, 0, 9])
    torch.testing.assert_close(made._matrix(made.pieces[0], torch.float32, rows), wanted[rows])
