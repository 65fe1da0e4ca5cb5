"""What the interpreted tests share: banks of few numbers, what is right in float64, and how far off is right enough."""

import torch

import dts_kernels as kernels
from dts_kernels import reference
from dts_kernels.gpu import sample_products
from dts_kernels.samples import elements_of

IN, OUT = 150, 60  # neither a multiple of 16
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3}
MIXED = [2, None, 0, 2, 5, 0]  # 5 is an empty slot


def factors(rank, levels=False, out_features=OUT, in_features=IN, seed=0, size=1e-3):
    torch.manual_seed(seed)
    u, v = (kernels.pack(torch.randint(0, 4, (rows, rank), dtype=torch.uint8)) for rows in (out_features, in_features))
    return kernels.PackedFactors(u, v, torch.rand(rank) * size, torch.randn(2, 4) * 0.1 if levels else None)


def bank(levels=False, **options):
    made = kernels.Bank(IN, OUT, layout="planar")
    for slot, rank in ((0, 7), (2, 130), (3, 1)):
        made.add(slot, factors(rank, levels and slot == 2, seed=slot, **options))
    return made


def truth(x, made, routing, y=None):
    """float64, from the factors that the words give back."""
    known = {slot: made.factors(slot) for slot in made.slots}
    out = reference.delta_linear(x.double(), known, routing.slots, routing.weights, OUT)
    return out if y is None else out + y.double()


def error(got, wanted):
    assert torch.isfinite(got).all()
    return ((got.double() - wanted).norm() / wanted.norm()).item()


# shapes of launch of sampled products
DIRECT, SPLIT_DIRECT, LAID = (sample_products.Shape(1, *rest) for rest in ((2, 1, False), (1, 3, False), (2, 2, True)))
TWO, FOUR, EIGHT = (sample_products.Shape(*rest, True) for rest in ((2, 1, 1), (4, 1, 2), (8, 2, 1)))

SAMPLED_TOLERANCE = TOLERANCE | {torch.bfloat16: 1e-2}  # the interpreter cuts a bf16 off where a GPU rounds it


def sample_bank(shape=(37, 50), transposed=False, size=0.01):
    made = kernels.SampleBank(*(shape if transposed else shape[::-1]), transposed=transposed, arena=True)
    for slot, strides in ((0, (7,)), (2, (13, 64, 1)), (3, (5,))):  # blocks that runs of eight rows cross, and do not
        made.add(slot, tuple(sampled(shape, stride, size=size) for stride in strides))
    return made


def sampled(shape, stride, share=(1, 1), size=0.01, seed=None):
    codes = torch.randint(4, (shape[0], elements_of(shape[1], stride, share)), dtype=torch.uint8)
    seed = 2**32 - 5 - stride if seed is None else seed
    return kernels.Samples(kernels.pack(codes), size * stride, stride, seed, shape, share)
