"""The direct way of a linear layer on a CPU: every Python frame of it costs as much as some rows of a small product."""

import sys
from pathlib import Path

import pytest
import torch

import dts
import dts_kernels
from dts.codec import Factors
from dts.nn import DTSLinear
from dts_kernels import PackedFactors, Samples, pack
from dts_kernels.cpu import native
from dts_kernels.samples import groups_of

OWN = tuple(str(Path(package.__file__).parent) for package in (dts, dts_kernels))
SIZE = 24


def codes(rows: int, width: int) -> torch.Tensor:
    return pack(torch.randint(0, 4, (rows, width), dtype=torch.uint8))


def layer(sampled: bool) -> DTSLinear:
    made = DTSLinear.from_linear(torch.nn.Linear(SIZE, SIZE))
    packed = PackedFactors(codes(SIZE, 8), codes(SIZE, 8), torch.rand(8))
    samples = (Samples(codes(SIZE, groups_of(SIZE, 4)), 0.1, 4, 0, (SIZE, SIZE)),) if sampled else ()
    factors = Factors((packed, *samples), (SIZE, SIZE), None, None, 1.0, None)
    made.load_task("a", factors, torch.randn(SIZE))
    made.set_task("a")
    return made


def frames(call) -> list[str]:
    """Names of our own functions that one call goes through; torch's differ from version to version."""
    names = []

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(OWN):
            names.append(frame.f_code.co_qualname)

    call()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return names


@pytest.mark.skipif(not native.variants(), reason="needs a C compiler")
@pytest.mark.parametrize("sampled,most", [(False, 18), (True, 32)], ids=["components", "and a sample"])
def test_a_call_goes_through_few_frames(sampled, most):
    made, x = layer(sampled), torch.randn(1, SIZE)
    with torch.no_grad():
        names = frames(lambda: made(x))
    assert len(names) <= most, names
