"""Tables whose rows moved unevenly: which rows are kept, and that the whole way knows of it."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dts.adapter import Adapter
from dts.adapter.compress import compress
from dts.adapter.matrix import Matrix
from dts.adapter.uneven import FEWEST, uneven, uneven_among
from dts.codec import many
from dts.codec.methods import METHODS
from dts.codec.spectrum import singular_values

ROWS, COLUMNS, USED = 600, 48, 90


def table(seed=0, rest=1e-3):
    """A delta whose first rows moved and whose others moved by ``rest`` of that, in another order."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(ROWS, 6, generator=generator) @ torch.randn(6, COLUMNS, generator=generator)
    delta += 0.3 * torch.randn(ROWS, COLUMNS, generator=generator)
    delta[USED:] *= rest
    return delta[torch.randperm(ROWS, generator=generator)] * 1e-3


def test_rows_that_moved_alike_are_no_table():
    alike = torch.randn(ROWS, COLUMNS)
    assert uneven(alike, ROWS, singular_values) is None
    assert uneven(table()[: FEWEST - 1], FEWEST - 1, singular_values) is None


@pytest.mark.parametrize("rest", [1e-3, 0.0])
def test_zero_rows_count_as_rows_that_did_not_move(rest):
    delta = table(rest=rest)
    matrix = Matrix.of(delta, "a", spectrum=True)
    assert matrix.uneven is not None
    assert USED / 2 < matrix.uneven.moving < USED
    assert matrix.elements == round(matrix.uneven.moving) * COLUMNS


def test_choices_are_nested_and_know_their_energy_and_spectra():
    delta = table()
    found = Matrix.of(delta, "a", spectrum=True).uneven
    energies = delta.double().square().sum(1)
    counts = [choice.count for choice in found.choices]
    assert counts == sorted(set(counts)) and counts[-1] == ROWS
    for choice in found.choices:
        rows = torch.arange(ROWS) if choice.count == ROWS else found.rows(choice.count)
        assert energies[rows].min() >= energies[found.order[choice.count :]].max() if choice.count < ROWS else True
        assert choice.energy == pytest.approx(energies[rows].sum().item(), rel=1e-9)
        assert torch.allclose(choice.singular, torch.linalg.svdvals(delta[rows].double()), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["residual", "sketch"])
def test_a_curve_is_of_what_is_planned_at_every_rank(name):
    method, matrix = METHODS[name], Matrix.of(table(), "a", spectrum=True)
    curve = matrix.curve(method)
    counts = []
    for rank, nbytes, error in zip(curve.ranks.tolist(), curve.bytes, curve.errors):
        if not rank:
            assert error == pytest.approx(matrix.norm**2)
            continue
        planned, kept = matrix.planned(rank, method), matrix.kept(rank, method)
        counts.append(planned.compact_shape[0])
        assert planned.compact_shape == kept.shape and planned.norm == kept.norm <= matrix.norm
        assert planned.nbytes <= nbytes
        left = method.left(kept.singular, np.array([rank]), kept.shape).item()
        assert error == pytest.approx(matrix.norm**2 - kept.norm**2 * (1 - left), abs=1e-5 * matrix.norm**2)
    assert counts == sorted(counts) and counts[0] < ROWS
    assert (np.diff(curve.bytes) >= 0).all()


@pytest.fixture
def pair(tmp_path):
    generator = torch.Generator().manual_seed(1)
    base = {
        "embeddings.weight": torch.randn(ROWS, COLUMNS, generator=generator),
        "layer.weight": torch.randn(64, COLUMNS, generator=generator),
    }
    tuned = {
        "embeddings.weight": base["embeddings.weight"] + table(),
        "layer.weight": base["layer.weight"] + 1e-3 * torch.randn(64, COLUMNS, generator=generator),
    }
    for name, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    return tmp_path / "base", tmp_path / "tuned", base, tuned


def test_the_rows_that_moved_are_stored_and_all_errors_are_told(pair, tmp_path):
    base, tuned, before, after = pair
    adapter = compress(base, tuned, out=tmp_path / "out", nbytes=7500)
    (factors,) = adapter.entries["embeddings.weight"].matrices
    assert factors.rows is not None and len(factors.rows) <= USED
    delta = after["embeddings.weight"] - before["embeddings.weight"]
    moved = delta.norm(dim=1).argsort(descending=True)[: len(factors.rows)].sort().values
    assert torch.equal(factors.rows, moved)
    for name, entry in Adapter.load(tmp_path / "out").entries.items():
        delta = after[name].double() - before[name].double()
        error = (entry.delta().double() - delta).square().sum() / delta.square().sum()
        assert entry.squared_error == pytest.approx(error.item(), rel=1e-3)


def test_on_a_device_the_same_rows_are_kept(pair, tmp_path, monkeypatch):
    base, tuned, *_ = pair
    ours = compress(base, tuned, nbytes=7500).entries["embeddings.weight"]
    monkeypatch.setattr(many, "suits", lambda device: True)
    theirs = compress(base, tuned, out=tmp_path / "out", nbytes=7500).entries["embeddings.weight"]
    assert torch.equal(ours.matrices[0].rows, theirs.matrices[0].rows)
    assert theirs.squared_error == pytest.approx(ours.squared_error, rel=0.01)
    alike = torch.randn(2, ROWS, COLUMNS)
    assert uneven_among(torch.stack([table(), alike[0]])) == [True, False]
    assert uneven_among(alike[:, : FEWEST - 1]) == [False, False]


def test_a_dry_run_and_a_second_run_give_the_same_bytes(pair, tmp_path):
    base, tuned, *_ = pair
    planned = compress(base, tuned, nbytes=7500, dry_run=True)
    once = compress(base, tuned, out=tmp_path / "once", nbytes=7500)
    compress(base, tuned, out=tmp_path / "twice", nbytes=7500)
    assert planned.config["bytes"] == pytest.approx(once.config["bytes"], rel=0.02)
    for file in ("dts_model.safetensors", "dts_config.json"):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()


def test_spectra_that_were_kept_make_the_same_adapter(pair, tmp_path, monkeypatch):
    from dts.adapter.plans import Plans

    base, tuned, *_ = pair
    expected = compress(base, tuned, out=tmp_path / "whole", nbytes=7500)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Plans, "made", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress(base, tuned, out=tmp_path / "resumed", nbytes=7500)
    monkeypatch.setattr(Matrix, "of", interrupted)  # everything is known
    resumed = compress(base, tuned, out=tmp_path / "resumed", nbytes=7500, resume=True)
    assert resumed.config["sha256"] == expected.config["sha256"]
