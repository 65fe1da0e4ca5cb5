"""Many matrices at once, as on a device, here on the CPU: the same factors as one by one, few waits and launches."""

from collections import Counter
from math import ceil

import pytest
import torch
from matrices import power_law
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from dts.codec import alternations, many, sketch
from dts.codec.compress import compress_many, compress_tensor
from dts.codec.many import basis, components, host, sweeps
from dts.codec.svd import leading_svd, subspace_svd


def stacked(m, n, exponent, count):
    deltas = torch.stack([power_law(m, n, exponent, seed=i) for i in range(count)])
    return deltas / deltas.abs().amax((1, 2), keepdim=True)


def same(one, other) -> bool:
    return all(torch.equal(getattr(one, key), getattr(other, key)) for key in ("u", "v"))


@pytest.mark.parametrize(
    "m, n, exponent, ranks",
    [(256, 192, 0.8, [20, 20]), (150, 200, 0.5, [70, 50, 31]), (60, 50, 0.7, [100, 30]), (17, 40, 0.5, [1])],
    ids=["equal ranks", "ranks of their own", "more than the matrix has", "one"],
)
def test_the_codes_are_those_of_one_by_one(m, n, exponent, ranks):
    deltas = stacked(m, n, exponent, len(ranks))
    before = deltas.clone()
    for delta, rank, (packed, error) in zip(deltas, ranks, many.encode(deltas, ranks, 3), strict=True):
        wanted, wanted_error = alternations.encode(delta, rank, 3)
        assert same(packed, wanted) and torch.allclose(packed.sigma, wanted.sigma, rtol=1e-6)
        assert error == pytest.approx(wanted_error, rel=1e-6)
    assert torch.equal(deltas, before)


@pytest.mark.parametrize("rank", [12, 200])
def test_an_approximate_start_is_as_good(rank):
    """Its rounding differs from that of a Householder factorisation: codes may, their error hardly does."""
    deltas = stacked(700, 900, 0.6, 1)
    ((packed, error),) = many.encode(deltas, [rank], 0)
    assert packed.rank == rank and error == pytest.approx(alternations.encode(deltas[0], rank, 0)[1], rel=5e-3)


def test_a_matrix_of_low_rank_is_corrected():
    generator = torch.Generator().manual_seed(0)
    deltas = torch.stack(
        [torch.randn(700, k, generator=generator) @ torch.randn(k, 660, generator=generator) for k in (4, 30)]
    )
    for delta, (packed, error) in zip(deltas, many.encode(deltas, [24, 24])):
        assert packed.rank == 24 and error == pytest.approx(alternations.encode(delta, 24)[1], rel=0.03)


def test_the_same_bytes_every_time():
    deltas = stacked(90, 120, 0.5, 3)
    first, second = (many.encode(deltas, [30, 20, 9], 5) for _ in range(2))
    assert all(same(a, b) and torch.equal(a.sigma, b.sigma) and e == f for (a, e), (b, f) in zip(first, second))


def test_a_sketch_is_that_of_one_by_one(monkeypatch):
    deltas = stacked(200, 150, 0.5, 3)
    ranks = [60, 50, 2]  # the last has no room for a sample
    made = sketch.encode_many(deltas, ranks, 1)
    for delta, rank, (parts, error) in zip(deltas, ranks, made, strict=True):
        wanted, wanted_error = sketch.encode(delta, rank, 1)
        assert (
            len(parts) == len(wanted) and same(parts[0], wanted[0]) and error == pytest.approx(wanted_error, rel=1e-6)
        )
        for ours, theirs in zip(parts[1:], wanted[1:]):
            assert torch.equal(ours.codes, theirs.codes) and ours.scale == pytest.approx(theirs.scale, rel=1e-6)
            assert (ours.seed, ours.stride, ours.shape) == (theirs.seed, theirs.stride, theirs.shape)
    monkeypatch.setattr(many, "suits", lambda device: True)
    parts, error = sketch.encode(deltas[0], 60, 1)
    assert same(parts[0], made[0][0][0]) and error == pytest.approx(made[0][1])


@pytest.mark.parametrize("method", ["residual", "sketch", "paper"])
def test_several_tensors_are_as_one_by_one(monkeypatch, method):
    deltas = 1e-3 * stacked(80, 60, 0.6, 4)
    deltas[1, 7] = 0
    deltas[2] = 0
    wanted = [compress_tensor(delta, method, rank=20) for delta in deltas]
    monkeypatch.setattr(many, "suits", lambda device: True)
    made = compress_many(deltas.clone(), [20] * 4, list("abcd"), method)
    for ours, theirs in zip(made, wanted, strict=True):
        assert ours.shape == theirs.shape and ours.norm == pytest.approx(theirs.norm, rel=1e-6)
        assert ours.squared_error == pytest.approx(theirs.squared_error, rel=1e-6) and ours.parts == theirs.parts
        assert (ours.rows is None) == (theirs.rows is None) and same(ours.packed, theirs.packed)
        assert torch.allclose(ours.packed.sigma, theirs.packed.sigma, rtol=1e-5)


def test_what_has_no_factors_is_named():
    deltas = torch.ones(2, 20, 30)
    deltas[1, 3, 4] = float("nan")
    with pytest.raises(ValueError, match="'second' has 1 NaN"):
        compress_many(deltas, [3, 3], ["first", "second"], "residual")


@pytest.mark.parametrize("k", [7, 64, 150])
def test_a_sweep_is_that_of_one_matrix(k):
    generator = torch.Generator().manual_seed(0)
    deltas, u, v = (torch.randn(shape, generator=generator).double() for shape in ((2, 30, 40), (2, k, 30), (2, k, 40)))
    sigma = torch.rand(2, k, generator=generator).double() + 0.1
    ranks = torch.tensor([k, k - 3], dtype=torch.int32)
    mask = torch.arange(k) < ranks[:, None]
    u, v = (alternations.rounded(3 * x) * mask[:, :, None] for x in (u, v))
    sigma, moved, gram = sigma * mask, u.clone(), v @ v.mT
    sweeps.sweep(moved, v @ deltas.mT, gram, sigma, 1.2, mask, ranks)
    for i, rank in enumerate(ranks.tolist()):
        wanted = u[i, :rank].clone()
        alternations.sweep(wanted, v[i, :rank] @ deltas[i].T, gram[i, :rank, :rank], sigma[i, :rank], 1.2)
        assert torch.equal(moved[i, :rank], wanted) and not moved[i, rank:].any()


def test_a_basis_of_nearly_dependent_columns_is_orthonormal_and_spans_them():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 300, 40, generator=generator) * 10.0 ** -torch.arange(40).mul(0.1).float()
    x[1, :, 20:] = x[1, :, :20] @ torch.randn(20, 20, generator=generator)  # but for rounding
    q = basis.orthonormal(x)
    assert (q.mT @ q - torch.eye(40)).abs().max() < 1e-5
    assert ((x - q @ (q.mT @ x)).norm(dim=1) < 1e-5 * x.norm(dim=1)).all()


def test_leading_triplets_are_those_of_one_matrix():
    x = stacked(700, 800, 0.7, 2)
    for u, s, vh, one in zip(*basis.leading(x, 30, 4), x):
        _, wanted, _ = leading_svd(one, 30, 4)
        assert torch.allclose(s, wanted, rtol=1e-4) and torch.allclose(s, subspace_svd(one, 30, 4)[1], rtol=1e-4)
        assert (u.T @ one @ vh.T - s.diag()).abs().max() < 1e-4 * s[0]


def test_values_are_singular_values():
    x = stacked(700, 900, 0.5, 2)
    wanted = torch.linalg.svdvals(x.double())
    assert torch.allclose(basis.leading_values(x, None), wanted, rtol=1e-3)
    assert basis.leading_values(x, 500).shape == (2, 700)
    some = basis.leading_values(x.mT, 100)
    assert some.shape == (2, 100) and torch.allclose(some[:, :25], wanted[:, :25], rtol=1e-3)
    assert torch.allclose(some, wanted[:, :100], rtol=0.1)


def test_products_are_exact_meanwhile():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with host.exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


# -- what it costs a device, by the operations that reach PyTorch's dispatcher

WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "_linalg_eigh"}
VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "slice", "select", "unsqueeze", "expand", "diagonal"}
VIEWS |= {
    "split",
    "as_strided",
    "detach",
    "unbind",
    "squeeze",
    "_reshape_alias",
    "alias",
    "lift_fresh",
    "empty",
    "empty_like",
}


class Counts(TorchDispatchMode):
    """Operations that launch something, and those at which a host waits for a device (as eigenvalues do)."""

    def __init__(self):
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = args[1] if name in ("index", "index_put", "index_put_") else ()
        self.seen["index by a mask" if any(m is not None and m.dtype == torch.bool for m in masks) else name] += 1
        return function(*args, **(kwargs or {}))

    @property
    def waits(self) -> int:
        return sum(self.seen[name] for name in {*WAITS, "index by a mask"})

    @property
    def launches(self) -> int:
        return sum(count for name, count in self.seen.items() if name not in VIEWS)


@pytest.fixture
def counts(monkeypatch):
    """Of what runs on a GPU: a chunk's moves are one launch; crossings to the host are waits."""
    made, moves, cross = Counts(), sweeps.chunk_moves, host.to_host

    def launched(*args):
        made.seen["kernel"] += 1
        with _disable_current_modes():
            moves(*args)

    def crossed(tensors):
        made.seen["is_nonzero"] += 1
        return cross(tensors)

    monkeypatch.setattr(sweeps, "chunk_moves", launched)
    for module in (many, host, components, many.samples):
        monkeypatch.setattr(module, "to_host", crossed)
    return made


@pytest.mark.parametrize("count", [1, 4])
def test_few_waits_and_launches(counts, count):
    deltas, rank = stacked(700, 650, 0.6, count), 130
    with counts:
        many.encode(deltas, [rank] * count)
    assert counts.waits <= 3  # what singular values there are, their decomposition, the result
    alternated = alternations.affordable(700, 650, rank)
    assert counts.seen["kernel"] == 2 * alternated * ceil(rank / sweeps.CHUNK)
    # a side of an alternation: a product and a kernel a chunk, and what prepares a sweep and fits sigma
    assert counts.launches <= 2 * alternated * (2 * ceil(rank / sweeps.CHUNK) + 40) + 160


def test_launches_do_not_grow_with_the_matrices(counts):
    found = []
    for count in (1, 4):
        counts.seen.clear()
        with counts:
            many.encode(stacked(90, 80, 0.6, count), [20] * count)
        found.append((counts.launches, counts.waits))
    assert found[1][1] == found[0][1] and found[1][0] <= found[0][0] + 60  # the result of each is taken apart


def test_a_sketch_waits_twice_more(counts):
    with counts:
        sketch.encode_many(stacked(90, 160, 0.6, 2), [40, 40])
    assert counts.waits <= 4


def test_the_counter_sees_what_it_must(counts, monkeypatch):
    """One by one the same work waits at every fit."""
    monkeypatch.setattr(alternations.rounding, "usable", lambda factor: False)  # what is in C launches nothing
    with counts:
        alternations.encode(stacked(90, 80, 0.6, 1)[0], 20)
    assert counts.waits > 40 and counts.launches > 5000
