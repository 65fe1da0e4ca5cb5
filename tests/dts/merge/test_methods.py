"""Each merging method against a naive twin written from its paper, and against properties it must have."""

import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dts.merge import methods  # noqa: F401  (fills the registry)
from dts.merge.registry import METHODS, complete, method, table
from dts.merge.tensor import TensorInfo

MATRIX = TensorInfo("encoder.layer.0.dense.weight")
SPECTRAL = ("regmean", "tsv_merge", "iso_c", "knots", "remainder")
RANDOM = ("dare", "dare_ties")


def deltas(models=3, shape=(7, 5), seed=0, dtype=torch.float64):
    return torch.randn(models, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(name, tensors, info=MATRIX, **options):
    return method(name).function(tensors, info, **complete(method(name), options))


# ---- naive twins: numpy, one entry or one column at a time ------------------------------------------------------


def per_entry(function):
    """Apply function(list of the models' values of one entry) -> number to every entry."""

    def whole(x):
        out = np.zeros(x.shape[1:])
        for at in np.ndindex(*x.shape[1:]):
            out[at] = function([x[(i, *at)] for i in range(len(x))])
        return out

    return whole


def elect_and_average(values):
    total = sum(values)
    agreeing = [v for v in values if v * total > 0]
    return sum(agreeing) / len(agreeing) if agreeing else 0.0


def trimmed(x, density):
    out = np.zeros_like(x)
    for i, delta in enumerate(x):
        flat = delta.ravel()
        largest = sorted(range(flat.size), key=lambda j: -abs(flat[j]))[: round(density * flat.size)]
        for j in largest:
            out[i].ravel()[j] = flat[j]
    return out


def breadcrumbs_twin(x, small, large, scale):
    out = np.zeros(x.shape[1:])
    for delta in x:
        flat = delta.ravel()
        ascending = sorted(range(flat.size), key=lambda j: abs(flat[j]))
        for place, j in enumerate(ascending):
            if round(small * flat.size) <= place < flat.size - round(large * flat.size):
                out.ravel()[j] += scale * flat[j]
    return out


def consensus_twin(values, threshold, agree, scale):
    total = sum(values)
    votes = sum(abs(v) >= threshold * abs(total - v) for v in values)
    return scale * total if votes >= agree else 0.0


def regmean_twin(x, off_diagonal):
    """Row by row: minimise sum_i (w - w_i) G_i (w - w_i)^T."""
    n = x.shape[2]
    grams = []
    for delta in x:
        gram = delta.T @ delta / np.sum(delta**2)
        grams.append([[gram[i, j] * (1 if i == j else off_diagonal) for j in range(n)] for i in range(n)])
    grams = np.array(grams)
    rows = []
    for r in range(x.shape[1]):
        right = sum(grams[i] @ x[i, r] for i in range(len(x)))
        rows.append(np.linalg.solve(grams.sum(0), right))
    return np.array(rows)


def inverse_root(gram):
    values, vectors = np.linalg.eigh(gram)
    return vectors @ np.diag(values**-0.5) @ vectors.T


def tsv_twin(x, keep):
    us, ss, vs = [], [], []
    for delta in x:
        u, s, vh = np.linalg.svd(delta)
        for c in range(max(1, int(keep * len(s) + 1e-9))):
            us.append(u[:, c]), ss.append(s[c]), vs.append(vh[c])
    u, v = np.array(us).T, np.array(vs).T
    # the closest orthonormal columns, A (A^T A)^(-1/2)
    u, v = u @ inverse_root(u.T @ u), v @ inverse_root(v.T @ v)
    return sum(s * np.outer(u[:, c], v[:, c]) for c, s in enumerate(ss))


def iso_twin(x):
    """The polar factor of the sum by its definition, A (A^T A)^(-1/2), times the mean singular value."""
    total = sum(x)
    polar = total @ inverse_root(total.T @ total)
    return polar * np.trace(polar.T @ total) / total.shape[1]


def remainder_twin(x, kept):
    """Leading right singular vectors from the Gram matrix, taken out one at a time."""
    total = 0
    for delta in x:
        _, v = np.linalg.eigh(delta.T @ delta)
        for c in range(kept):
            leading = v[:, [-1 - c]]
            delta = delta - delta @ leading @ leading.T
        total = total + delta
    return total / len(x)


def knots_twin(x, density):
    """U from the Gram matrix sum_i tau_i tau_i^T; U^T tau_i is the aligned S V_i^T (signs of U cancel)."""
    _, u = np.linalg.eigh(sum(delta @ delta.T for delta in x))
    aligned = np.array([u.T @ delta for delta in x])
    return u @ per_entry(elect_and_average)(trimmed(aligned, density))


TWINS = [
    ("average", {}, lambda x: sum(x) / len(x)),
    ("average", {"weights": [1, 2, 5]}, per_entry(lambda v: (v[0] + 2 * v[1] + 5 * v[2]) / 8)),
    ("task_arithmetic", {"scale": 0.4}, per_entry(lambda v: 0.4 * (v[0] + v[1] + v[2]))),
    (
        "ties",
        {"density": 0.4, "scale": 0.7, "scope": "tensor"},
        lambda x: 0.7 * per_entry(elect_and_average)(trimmed(x, 0.4)),
    ),
    ("breadcrumbs", {"small": 0.5, "large": 0.1, "scale": 0.3}, lambda x: breadcrumbs_twin(x, 0.5, 0.1, 0.3)),
    ("consensus_ta", {"threshold": 0.6, "agree": 2, "scale": 0.3}, per_entry(lambda v: consensus_twin(v, 0.6, 2, 0.3))),
    ("fisher", {"power": 2.0}, per_entry(lambda v: sum(d**3 for d in v) / sum(d**2 for d in v))),
    ("regmean", {"off_diagonal": 0.8}, lambda x: regmean_twin(x, 0.8)),
    ("tsv_merge", {"keep": 0.25}, lambda x: tsv_twin(x, 0.25)),
    ("iso_c", {"scale": 1.3}, lambda x: 1.3 * iso_twin(x)),
    ("knots", {"density": 0.6}, lambda x: knots_twin(x, 0.6)),
    ("remainder", {"keep": 0.5}, lambda x: remainder_twin(x, 2)),
]


@pytest.mark.parametrize("name, options, twin", TWINS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(TWINS)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_its_published_formula(name, options, twin, seed):
    shape = (4, 9) if name == "knots" else (9, 4)  # the twin of iso_c needs m >= n, that of knots m <= n
    x = deltas(3, shape, seed)
    torch.testing.assert_close(run(name, x, **options), torch.from_numpy(twin(x.numpy())), rtol=1e-6, atol=1e-7)


def test_every_deterministic_method_has_a_twin():
    assert {name for name, _, _ in TWINS} | set(RANDOM) == set(METHODS)


@pytest.mark.parametrize("name, elect", [("dare", False), ("dare_ties", True)])
def test_dare_drops_and_rescales(name, elect):
    """Entries are either gone or 1 / (1 - p) times as large; what remains is summed, or elected and averaged."""
    ones = torch.ones(1, 100, 100)
    kept = run(name, ones, drop=0.75, scale=1.0)
    assert set(kept.unique().tolist()) == {0.0, 4.0}
    assert (kept != 0).float().mean().item() == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 10_000))
    x = torch.stack([torch.ones(100, 100), torch.ones(100, 100)])
    assert set(run(name, x, drop=0.75, scale=1.0).unique().tolist()) == ({0.0, 4.0} if elect else {0.0, 4.0, 8.0})


def test_dare_is_unbiased():
    x = deltas(2, (6, 6))
    draws = torch.stack([run("dare", x, TensorInfo("w", seed=s), drop=0.5, scale=1.0) for s in range(4000)])
    deviation = x.square().sum(0).sqrt() / math.sqrt(4000)  # of the mean: p / (1 - p) = 1
    assert ((draws.mean(0) - x.sum(0)).abs() < 5 * deviation).all()


@pytest.mark.parametrize("name", RANDOM)
def test_random_methods_depend_on_seed_and_name_only(name):
    x = deltas()
    first = run(name, x, TensorInfo("a", seed=1), drop=0.5)
    torch.rand(3)
    assert torch.equal(first, run(name, x, TensorInfo("a", seed=1), drop=0.5))
    assert not torch.equal(first, run(name, x, TensorInfo("a", seed=2), drop=0.5))
    assert not torch.equal(first, run(name, x, TensorInfo("b", seed=1), drop=0.5))


IDENTITY_ON_COPIES = [
    ("average", {}),
    ("task_arithmetic", {"scale": 1 / 3}),
    ("ties", {"density": 1.0}),
    ("fisher", {}),
    ("consensus_ta", {"scale": 1 / 3}),
    ("dare", {"drop": 0.0, "scale": 1 / 3}),
    ("dare_ties", {"drop": 0.0}),
    ("breadcrumbs", {"small": 0, "large": 0, "scale": 1 / 3}),
    ("regmean", {}),
    ("knots", {"density": 1.0}),
]


@pytest.mark.parametrize("name, options", IDENTITY_ON_COPIES)
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6,), (3, 2, 2, 2)])
def test_merging_copies_of_a_model_gives_the_model(name, options, shape):
    one = deltas(1, shape)
    torch.testing.assert_close(run(name, one.expand(3, *shape), **options), one[0], rtol=1e-6, atol=1e-8)


def test_tsv_of_one_model_is_the_model():
    one = deltas(1)
    torch.testing.assert_close(run("tsv_merge", one), one[0])


def test_tsv_keeps_tasks_apart_that_are_orthogonal():
    """Rank-1 tasks in orthogonal subspaces do not interfere: the merged delta is their sum."""
    x = torch.zeros(3, 6, 6, dtype=torch.float64)
    for i in range(3):
        x[i, i, 2 * i] = i + 1.0
    torch.testing.assert_close(run("tsv_merge", x, keep=1 / 6), x.sum(0))


def test_differences_to_the_remainder_are_nearer_to_low_rank():
    """Its promise: at any rank it was made for, no worse than the bound, and the bound no worse than the base."""
    x = deltas(4, (20, 10), seed=5) + deltas(1, (20, 10), seed=6)
    merged, tail = run("remainder", x, keep=0.3), lambda m: torch.linalg.svdvals(m)[..., 3:].square().sum()
    bound = tail(x) - 4 * merged.square().sum()
    assert tail(x - merged) <= bound <= tail(x)


def test_iso_c_is_isotropic_in_the_subspace_of_the_sum():
    x = deltas(3, (8, 5))
    singular = torch.linalg.svdvals(run("iso_c", x))
    torch.testing.assert_close(singular, torch.linalg.svdvals(x.sum(0)).mean().expand(5))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(7, 5), (6,)])
def test_scales_with_the_deltas(name, shape):
    x = deltas(3, shape)
    torch.testing.assert_close(run(name, 8 * x), 8 * run(name, x))


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(RANDOM)))
def test_does_not_depend_on_the_order_of_models(name):
    x = deltas()
    torch.testing.assert_close(run(name, x.flip(0)), run(name, x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(7, 5), (6,), (), (4, 3, 2, 2), (1, 9)])
def test_models_equal_to_the_base_stay_there(name, shape):
    zero = torch.zeros(3, *shape)
    assert torch.equal(run(name, zero), zero[0])


@pytest.mark.parametrize("name", METHODS)
def test_float32_is_close_to_float64(name):
    x = deltas(3, (20, 12))
    torch.testing.assert_close(run(name, x.float()).double(), run(name, x), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", SPECTRAL)
def test_spectral_methods_average_lookups_and_vectors(name):
    x = deltas(3, (7, 5))
    for info in (TensorInfo("embeddings.word_embeddings.weight"), TensorInfo("transformer.wte.weight")):
        torch.testing.assert_close(run(name, x, info), x.mean(0))
    vectors = deltas(3, (5,))
    torch.testing.assert_close(run(name, vectors), vectors.mean(0))


@pytest.mark.parametrize("name", SPECTRAL)
def test_each_expert_is_a_matrix(name):
    x = deltas(3, (2, 7, 5))
    merged = run(name, x, TensorInfo("mlp.experts.gate_up_proj"))
    torch.testing.assert_close(merged, torch.stack([run(name, x[:, e]) for e in range(2)]))


def test_ties_breaks_no_sign_conflict_that_cancels():
    x = torch.tensor([[1.0, -2.0], [-1.0, -4.0]])
    assert run("ties", x, density=1.0).tolist() == [0.0, -3.0]


def test_ties_with_thresholds_of_the_whole_model():
    x = torch.tensor([[1.0, -3.0, 2.0]])
    info = TensorInfo("w", prepared={"thresholds": [2.0]})
    assert run("ties", x, info).tolist() == [0.0, -3.0, 2.0]


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("average", {"weights": [1, 2]}, "3 numbers"),
        ("dare", {"drop": 1.0}, "below 1"),
        ("breadcrumbs", {"small": 0.9, "large": 0.1}, "below 1"),
        ("consensus_ta", {"agree": 4}, "number of models, 3"),
        ("ties", {"densty": 0.1}, "its options: density=0.2"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        run(name, deltas(), **options)


def test_unknown_method_lists_all():
    with pytest.raises(ValueError, match="average, task_arithmetic, ties"):
        method("slerp")


def test_table_documents_every_option():
    text = table()
    for m in METHODS.values():
        assert m.paper in text and m.summary in text
        for option, described in m.options.items():
            assert described.text and f"{option}={described.default!r}" in text
        assert "arXiv" in m.paper and inspect.getdoc(m.function)
    assert not METHODS["average"].needs_base
    assert isinstance(SimpleNamespace(**complete(METHODS["ties"], {})).density, float)
