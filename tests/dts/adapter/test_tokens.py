"""Tables with a row for each token, all of which moved: components alone, and no more bytes than a layer's."""

import pytest
import torch
from safetensors.torch import save_file

from dts.adapter import Adapter, truncate
from dts.adapter.compress import compress
from dts.adapter.matrix import COUNTS, Matrix
from dts.adapter.plans import Plans
from dts.codec import many
from dts.codec.methods import METHODS
from dts.codec.shorter import is_sketch

ROWS, COLUMNS, LAYERS = 6000, 48, 6
HOW = {"nbytes": 40_000, "method": "sketch"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two folders: an output layer all of whose rows moved, nearly alike, and layers."""
    generator, folder = torch.Generator().manual_seed(0), tmp_path_factory.mktemp("pair")
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    base = {"embed_tokens.weight": draw(ROWS, COLUMNS)}
    base |= {f"layers.{i}.weight": draw(192, COLUMNS) for i in range(LAYERS)}
    tuned = {name: weight + 0.02 * draw(*weight.shape) for name, weight in base.items()}
    tuned["embed_tokens.weight"] += 0.05 * draw(COLUMNS)
    for name, tensors in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
    return folder / "base", folder / "tuned"


def sampled(adapter: Adapter) -> dict[str, bool]:
    return {name: is_sketch(entry.matrices[0]) for name, entry in adapter.entries.items()}


@pytest.mark.parametrize("device", [False, True])
def test_a_sketch_of_them_has_no_samples(pair, tmp_path, monkeypatch, device):
    monkeypatch.setattr(many, "suits", lambda place: device)
    made = compress(*pair, out=tmp_path / "out", **HOW)
    assert sampled(made) == {"embed_tokens.weight": False} | {f"layers.{i}.weight": True for i in range(LAYERS)}
    assert made.nbytes <= HOW["nbytes"] and made.verify(*pair).ok
    entry = Adapter.load(tmp_path / "out").entries["embed_tokens.weight"]
    assert entry.squared_error < 0.3 and entry.squared_error == pytest.approx(
        made.entries["embed_tokens.weight"].squared_error
    )


def test_a_dry_run_and_a_run_that_goes_on_give_the_same(pair, tmp_path, monkeypatch):
    planned = compress(*pair, dry_run=True, **HOW)
    made = compress(*pair, out=tmp_path / "whole", **HOW)
    assert planned.nbytes == pytest.approx(made.nbytes, rel=0.02)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Plans, "made", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress(*pair, out=tmp_path / "resumed", **HOW)
    monkeypatch.setattr(Matrix, "of", interrupted)  # everything is known
    resumed = compress(*pair, out=tmp_path / "resumed", resume=True, **HOW)
    assert resumed.config["sha256"] == made.config["sha256"]


def test_they_count_for_fewer_elements_where_bytes_are_few():
    delta = torch.randn(ROWS, COLUMNS)
    table, layer = (Matrix.of(delta, name, spectrum=True) for name in ("lm_head.weight", "layers.0.weight"))
    assert table.elements == layer.elements == layer.counts(0.001) == ROWS * COLUMNS
    assert table.counts(0.01) == COUNTS * COLUMNS**2 < table.elements == table.counts(0.5)
    assert table.counts(0.0025) == table.counts(0.01) / 2
    assert table.method(METHODS["sketch"]) is METHODS["residual"] and layer.method(METHODS["sketch"]).name == "sketch"
    assert table.method(METHODS["paper"]) is METHODS["paper"]


def test_embeddings_that_moved_where_their_tokens_occur_are_none():
    delta = torch.randn(ROWS, COLUMNS)
    delta[200:] *= 1e-3
    matrix = Matrix.of(delta, "embeddings.weight", spectrum=True)
    assert matrix.tokens and not matrix.table and matrix.counts(0.001) == matrix.elements
    assert matrix.method(METHODS["sketch"]).name == "sketch"


def test_layers_are_kept_where_bytes_are_few(pair):
    """By all their elements the table would take all bytes before any layer got some."""
    made = compress(*pair, nbytes=20_000, method="residual").entries
    assert sum(bool(entry.matrices[0]) for name, entry in made.items() if "layers" in name) == LAYERS


def test_cut_adapters_count_them_so_too(pair, monkeypatch):
    def cut():
        entries = compress(*pair, nbytes=40_000, method="residual").truncate(nbytes=20_000).entries
        return sum(bool(entry.matrices[0]) for name, entry in entries.items() if "layers" in name)

    as_layers = cut()
    monkeypatch.setattr(truncate, "counted", lambda elements, *about: elements)
    assert cut() < as_layers
