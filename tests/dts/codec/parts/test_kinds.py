"""Every kind of part: what it stores is what it reads, and its bytes, matrix, bound and multiples belong together."""

import numpy as np
import pytest
import torch
from held import Held

from dts.codec import Undecodable, compress_tensor
from dts.codec.parts import KINDS, PartKind, kind_of, register, with_tensors
from dts.codec.parts.components import bytes_at
from dts_kernels.layout import pack
from dts_kernels.samples import Samples


def delta(m=40, n=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(m, 6, generator=generator) @ torch.randn(6, n, generator=generator) / 3
    return 0.01 * (low + torch.randn(m, n, generator=generator))


def part(name: str, seed: int = 0):
    """A part by its label."""
    method, at = {"residual": ("residual", 0), "paper": ("paper", 0), "sample": ("sketch", 1)}[name]
    return compress_tensor(delta(seed=seed), method, rank=18 if name != "sample" else 24).stored[at]


LABELS = ["residual", "paper", "sample"]


def decoded(kind, data, tensors=None, fragment=None, shape=(40, 96)):
    tensors = kind.tensors(0, data) if tensors is None else tensors
    return kind.decode("a.weight", kind.fragment([data]) if fragment is None else fragment, shape, Held(tensors))


@pytest.mark.parametrize("label", LABELS)
def test_what_is_stored_is_what_is_read(label):
    data = part(label)
    kind = kind_of(data)
    assert kind.label(data) == label and kind.shape(data) == (40, 96)
    fragment = kind.fragment([data])
    assert kind.fits(fragment) and not kind.fits(None) and not kind.fits({}) and not kind.fits([fragment])
    (again,) = decoded(kind, data)
    assert torch.equal(kind.dense(again), kind.dense(data)) and kind.rank(again) == kind.rank(data)
    assert kind.nbytes(data) == sum(tensor.nbytes for tensor in kind.tensors(0, data).values())


@pytest.mark.parametrize("label", LABELS)
def test_as_a_matrix(label):
    data, kind = part(label), kind_of(part(label))
    dense = kind.dense(data, torch.float64)
    assert dense.dtype == torch.float64 and dense.abs().max() <= kind.largest(data)
    assert kind.energy(data) == pytest.approx(dense.square().sum().item(), rel=1e-5)
    torch.testing.assert_close(kind.dense(kind.times(data, -0.3), torch.float64), -0.3 * dense, rtol=1e-5, atol=1e-9)
    halved = with_tensors(data, torch.clone)
    assert torch.equal(kind.dense(halved, torch.float64), dense)
    assert kind.tensors(0, halved).keys() == kind.tensors(0, data).keys()


@pytest.mark.parametrize("label", LABELS)
def test_weighted_sums_are_exact_or_none(label):
    first, second = part(label), part(label, seed=1)
    kind = kind_of(first)
    made = kind.weighted([(0.6, first), (-0.3, second)])
    if label == "paper":
        assert made is None
        return
    expected = 0.6 * kind.dense(first, torch.float64) - 0.3 * kind.dense(second, torch.float64)
    torch.testing.assert_close(sum(kind.dense(one, torch.float64) for one in made), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("label", LABELS)
def test_missing_and_unfit_tensors_are_refused_by_name(label):
    data, kind = part(label), kind_of(part(label))
    tensors = kind.tensors(0, data)
    for key in tensors:
        with pytest.raises(Undecodable, match="a.weight: "):
            decoded(kind, data, {other: tensor for other, tensor in tensors.items() if other != key})
        for wrong in (tensors[key].double(), tensors[key][1:]):
            with pytest.raises(Undecodable, match="a.weight: "):
                decoded(kind, data, tensors | {key: wrong})
    with pytest.raises(Undecodable, match="a.weight: "):
        decoded(kind, data, shape=(41, 95))


@pytest.mark.parametrize(("label", "key"), [("residual", "u"), ("residual", "v"), ("sample", "samples")])
def test_set_padding_is_refused(label, key):
    data, count = part("residual"), 18
    if label == "sample":
        codes = torch.randint(0, 4, (40, 19), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        data, count = Samples(pack(codes), 0.5, 5, 7, (40, 94)), 19
    kind = kind_of(data)
    assert len(decoded(kind, data, shape=kind.shape(data))) == 1
    stored = kind.tensors(0, data) | {key: kind.tensors(0, data)[key].clone()}
    stored[key][0, -1] |= 128
    with pytest.raises(Undecodable, match=rf"a.weight.{key}: bits beyond its {count} codes"):
        decoded(kind, data, stored, shape=kind.shape(data))


def test_components_have_one_way_of_being_made():
    kind = KINDS["components"]
    run = {"kind": "residual", "rank": 3}
    assert kind.fits([run, run]) and not kind.fits([run, run | {"kind": "paper"}])
    assert not kind.fits([run | {"kind": "other"}]) and not kind.fits([run | {"rank": -1}])
    for label, other in (("residual", "paper"), ("paper", "residual")):
        data = part(label)
        with pytest.raises(Undecodable, match="levels belong"):
            decoded(kind, data, fragment=[{"kind": other, "rank": data.rank}])


def test_runs_of_components_are_read_as_one():
    data, kind = part("residual"), KINDS["components"]
    (again,) = decoded(kind, data, fragment=[{"kind": "residual", "rank": 5}, {"kind": "residual", "rank": 13}])
    assert again.rank == 18 and kind.fragment([again]) == [{"kind": "residual", "rank": 18}]


@pytest.mark.parametrize("label", ["residual", "paper"])
def test_bytes_of_prefixes_are_those_of_what_is_stored(label):
    data, kind = part(label), KINDS["components"]
    ranks = np.arange(1, 18)
    wanted = [kind.nbytes(kind.prefix(data, rank, delta().norm().item())[0]) for rank in ranks]
    assert kind.prefix_bytes(data, ranks).tolist() == wanted
    assert bytes_at((40, 96), np.array([0])).tolist() == [0]
    left = kind.prefix_left(data, delta().norm().item())
    assert len(left) == 19 and left[0] == 1 and (left.diff() < 0).all()


def test_a_kind_is_registered_once():
    for kind in KINDS.values():
        with pytest.raises(ValueError, match=kind.name):
            register(kind)
    with pytest.raises(TypeError, match="components, sample"):
        kind_of(torch.zeros(2))
    assert all(isinstance(kind, PartKind) for kind in KINDS.values())
