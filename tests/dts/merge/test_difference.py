"""DTS-D: a merged base and an adapter of every fine-tune's difference to it."""

import shutil

import pytest
import torch

import dts
from dts.checkpoint import open_checkpoint
from dts.files.folder import PARTIAL, hidden


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def models(tasks=3):
    base = {"body.a.weight": randn(30, 20), "body.a.bias": randn(30, seed=1)}
    tuned = {}
    for t in range(tasks):
        tuned[f"t{t}"] = {n: v + 0.1 * randn(*v.shape, seed=10 * t + i + 2) for i, (n, v) in enumerate(base.items())}
        tuned[f"t{t}"]["classifier.weight"] = randn(2, 30, seed=t)
    return base, tuned


def test_one_fine_tune_is_no_merge(tmp_path):
    base, tuned = models(1)
    with pytest.raises(ValueError, match="two fine-tunes or more, not 1"):
        dts.merge.compress_difference(base, tuned, "average", tmp_path / "out", budget=0.5)
    assert not (tmp_path / "out").exists()


def test_what_fails_half_way_leaves_nothing(tmp_path):
    """A merged base without all its adapters was in the way of the next run."""
    base, tuned = models()
    with pytest.raises(ValueError, match="above 0"):
        dts.merge.compress_difference(base, tuned, "average", tmp_path / "out", rank_fraction=-1)
    assert not (tmp_path / "out").exists()
    kept = hidden(tmp_path / "out/adapters/t0", PARTIAL)
    kept.mkdir(parents=True)
    with pytest.raises(ValueError, match="above 0"):
        dts.merge.compress_difference(base, tuned, "average", tmp_path / "out", rank_fraction=-1)
    assert kept.is_dir(), "an interrupted compression of somebody else"
    shutil.rmtree(tmp_path / "out")

    def stop(done, total, name):
        if (tmp_path / "out/adapters/t0/dts_config.json").is_file():  # in the second adapter
            raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis").write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        dts.merge.compress_difference(base, tuned, "average", tmp_path / "out", rank_fraction=0.3, progress=stop)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis"]
    dts.merge.compress_difference(base, tuned, "average", tmp_path / "out", rank_fraction=0.3)
    with pytest.raises(FileExistsError):
        dts.merge.compress_difference(base, tuned, "average", tmp_path / "out", rank_fraction=0.3)
    assert sorted(path.name for path in (tmp_path / "out/adapters").iterdir()) == ["t0", "t1", "t2"]


@pytest.mark.parametrize(
    "base, method, options",
    [
        (True, "ties", {"density": 0.5}),
        (True, "average", {}),
        (False, "average", {}),
    ],
)
def test_one_call_writes_the_base_and_every_adapter(base, method, options, tmp_path):
    pretrained, tuned = models()
    source = pretrained if base else None
    theta, adapters = dts.merge.compress_difference(
        source,
        tuned,
        method,
        tmp_path,
        options=options,
        target_error=0.01,
        class_names={"t0": ["no", "yes"]},
        descriptions={"t1": "words"},
    )
    expected = dts.merge(source, list(tuned.values()), method, **options)
    merged = open_checkpoint(theta)
    assert set(merged.names) == set(pretrained)
    for name in merged.names:
        assert torch.equal(merged.load(name), expected[name])
    assert adapters["t0"].class_names == ["no", "yes"] and adapters["t1"].description == "words"
    for name, model in tuned.items():
        adapter = dts.Adapter.load(tmp_path / "adapters" / name)
        assert adapter.kind == "difference" and adapter.name == name
        restored = dict(adapter.apply(theta))
        assert torch.equal(restored["classifier.weight"], model["classifier.weight"])
        delta = model["body.a.weight"] - expected["body.a.weight"]
        error = ((restored["body.a.weight"] - model["body.a.weight"]).norm() / delta.norm()).square()
        assert error <= 0.0101


def test_names_are_needed():
    base, tuned = models()
    with pytest.raises(TypeError, match="task name"):
        dts.merge.compress_difference(base, list(tuned.values()))
    with pytest.raises(ValueError, match="out is needed"):
        dts.merge.compress_difference(base, tuned)
