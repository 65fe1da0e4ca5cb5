"""What a router knows of a task's inputs: the numbers, their file, and what of it is refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import dts
from dts.adapter.purposes import purposes
from dts.adapter.route import ROUTE, InputStatistics, read_route
from dts.checkpoint import SafetensorsFile

LAYER = "blocks.0.query.weight"


def rows(count=40, width=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    wide = torch.randn(count, 1, generator=draw) * torch.linspace(0, 3, width)  # one direction in which they vary most
    return 5 + wide + 0.1 * torch.randn(count, width, generator=draw)


def adapter(**how):
    torch.manual_seed(0)
    base = {"a.weight": torch.randn(64, 48), "b.weight": torch.randn(64, 48)}
    tuned = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in base.items()}
    return dts.compress(base, tuned, name="task", **({"rank_fraction": 0.3} | how))


def test_they_are_the_mean_and_nearly_the_covariance():
    pooled = rows()
    found = InputStatistics.of(LAYER, pooled)
    assert found.examples == 40 and found.width == 12 and found.mean.dtype == torch.float16
    torch.testing.assert_close(found.mean.float(), pooled.mean(0), rtol=1e-3, atol=1e-3)
    covariance = torch.cov(pooled.T.double())
    made = found.directions.T @ found.directions + torch.diag(found.left)
    torch.testing.assert_close(made.diagonal(), covariance.diagonal(), rtol=0.07, atol=1e-4)  # a float8 to 1/16
    assert (made - covariance).norm() < 0.1 * covariance.norm()


@pytest.mark.parametrize(("count", "kept"), [(40, 4), (64, 4), (160, 10), (400, 16)])
def test_more_examples_tell_of_more_directions(count, kept):
    assert InputStatistics.of(LAYER, rows(count, width=20)).loadings.shape == (kept, 20)


def test_means_that_are_large_beside_their_spread_are_kept_in_full():
    found = InputStatistics.of(LAYER, 1e5 + rows())
    assert found.mean.dtype == torch.float32
    assert InputStatistics.of(LAYER, 1000 + 0.01 * rows()).mean.dtype == torch.float32


@pytest.mark.parametrize(
    ("pooled", "says"),
    [
        (torch.ones(3, 4), "3 inputs tell too little"),
        (torch.ones(9, 4), "look the same"),
        (rows() / 0, "not all finite"),
        (torch.ones(4, 1 + (1 << 20)), "1,048,577 numbers an input: 1,048,576 are the most"),
    ],
)
def test_inputs_that_tell_nothing_are_refused(pooled, says):
    with pytest.raises(ValueError, match=says):
        InputStatistics.of(LAYER, pooled)


def test_the_file_is_counted_to_the_byte_and_read_again(tmp_path):
    one = adapter()
    without = one.nbytes
    one.tell(InputStatistics.of(LAYER, rows()))
    assert one.beside > 0 and without + one.beside <= one.nbytes < without + one.beside + 8
    one.save(tmp_path / "a")
    assert one.nbytes == sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    assert (tmp_path / "a" / ROUTE).stat().st_size == one.beside == purposes(one)["router"]
    assert sum(purposes(one).values()) == one.nbytes
    again = dts.Adapter.load(tmp_path / "a")
    assert again.inputs.digest == one.inputs.digest and again.inputs.layer == LAYER and again.nbytes == one.nbytes
    again.tell(None)
    again.save(tmp_path / "a", overwrite=True)
    assert not (tmp_path / "a" / ROUTE).exists() and dts.Adapter.load(tmp_path / "a").nbytes == without


def test_a_size_asked_for_holds_it(tmp_path):
    known = InputStatistics.of(LAYER, rows())
    one = adapter(rank_fraction=None, nbytes=6000, inputs=known)
    one.save(tmp_path / "a")
    total = sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    assert one.inputs is known and total == one.nbytes <= 6000 and one.nbytes > 5000
    planned = adapter(rank_fraction=None, nbytes=6000, inputs=known, dry_run=True)
    assert planned.nbytes <= 6000
    smaller = dts.Adapter.load(tmp_path / "a").truncate(nbytes=5000)
    smaller.save(tmp_path / "b")
    total = sum(file.stat().st_size for file in (tmp_path / "b").iterdir())
    assert total == smaller.nbytes <= 5000
    assert dts.Adapter.load(tmp_path / "b").inputs.digest == known.digest


def test_a_folder_written_by_compress_has_it(tmp_path):
    base = {"a.weight": torch.randn(64, 48)}
    tuned = {"a.weight": base["a.weight"] + 0.02 * torch.randn(64, 48)}
    known = InputStatistics.of(LAYER, rows())
    made = dts.compress(base, tuned, out=tmp_path / "a", nbytes=6000, inputs=known)
    assert dts.Adapter.load(tmp_path / "a").inputs.digest == known.digest
    assert sum(file.stat().st_size for file in (tmp_path / "a").iterdir()) == made.nbytes <= 6000


def test_every_bit_and_it_are_counted_before_anything_is_written(tmp_path):
    known = InputStatistics.of(LAYER, rows())
    exact = {"rank_fraction": None, "method": "exact", "inputs": known}
    one = adapter(**exact)
    assert adapter(**exact, dry_run=True).nbytes == one.nbytes
    one.save(tmp_path / "a")
    assert one.nbytes == adapter(**exact).nbytes == sum(file.stat().st_size for file in (tmp_path / "a").iterdir())


@pytest.fixture
def folder(tmp_path):
    one = adapter()
    one.tell(InputStatistics.of(LAYER, rows()))
    return one.save(tmp_path / "a")


def rewritten(folder, tensors=lambda t: t, about=lambda m: m):
    """The file with other tensors or metadata."""
    path = folder / ROUTE
    metadata = SafetensorsFile(path, mapped=False).metadata
    content = tensors({name: tensor.clone() for name, tensor in load_file(path).items()})
    save_file(content, path, about(dict(metadata)))


def test_an_altered_file_is_refused_with_what_to_do(folder):
    raw = bytearray((folder / ROUTE).read_bytes())
    raw[-3] ^= 1
    (folder / ROUTE).write_bytes(raw)
    with pytest.raises(dts.AdapterError, match="was altered; dts route writes it anew"):
        dts.Adapter.load(folder)
    (folder / ROUTE).write_bytes(raw[:-5])
    with pytest.raises(dts.AdapterError, match="damaged.*cut off"):
        dts.Adapter.load(folder)
    (folder / ROUTE).unlink()
    assert dts.Adapter.load(folder).inputs is None


@pytest.mark.parametrize(
    ("tensors", "about", "says"),
    [
        (lambda t: t, lambda m: m | {"examples": "-4"}, "made from '-4' inputs"),
        (lambda t: t, lambda m: m | {"layer": "a\nb"}, "its layer is no name"),
        (lambda t: t, lambda m: m | {"more": "x"}, "its metadata has"),
        (lambda t: t, lambda m: m | {"layer": "other"}, "was altered"),
        (lambda t: t, lambda m: m | {"adapter": "0" * 16}, "of another adapter"),
        (lambda t: {"mean": t["mean"]}, lambda m: m, "it holds mean instead of"),
        (lambda t: t | {"mean": t["mean"].double()}, lambda m: m, "its mean is F64"),
        (lambda t: t | {"mean": t["mean"][:5].clone()}, lambda m: m, "not of one width"),
        (lambda t: t | {"mean": t["mean"] * torch.inf}, lambda m: m, "not finite"),
        (lambda t: t | {"deviation": -t["deviation"]}, lambda m: m, "below zero"),
    ],
)
def test_what_cannot_be_is_refused(folder, tensors, about, says):
    rewritten(folder, tensors, about)
    with pytest.raises(dts.AdapterError, match=says):
        dts.Adapter.load(folder)


def test_a_link_out_of_the_folder_is_not_followed(folder, tmp_path):
    (folder / ROUTE).rename(tmp_path / "elsewhere")
    (folder / ROUTE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(dts.AdapterError, match="a link to a place outside"):
        dts.Adapter.load(folder)


def test_what_a_newer_version_wrote_is_left_alone_with_a_warning(folder):
    rewritten(folder, about=lambda m: m | {"format": "2"})
    with pytest.warns(UserWarning, match="newer version of dts"):
        assert dts.Adapter.load(folder).inputs is None


def test_readers_of_the_format_before_find_a_whole_adapter(folder):
    """Nothing in the other files speaks of it but their count of bytes."""
    config = json.loads((folder / "dts_config.json").read_text())
    plain = adapter().save(folder.parent / "plain")
    assert config.keys() == json.loads((plain / "dts_config.json").read_text()).keys()
    assert (folder / "dts_model.safetensors").read_bytes() == (plain / "dts_model.safetensors").read_bytes()


def test_the_digest_is_of_all_that_it_says(folder):
    known = read_route(folder, None, verify=False)
    assert len({known.digest, replace(known, examples=41).digest, replace(known, layer="x").digest}) == 3
