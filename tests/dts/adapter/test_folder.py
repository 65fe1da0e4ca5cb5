"""Where folders are written: what may be replaced, and that nothing is lost when that fails."""

import os
import shutil
from pathlib import Path

import pytest

import dts
from dts.adapter import compress, write_checkpoint
from dts.files import building


@pytest.fixture
def models(bert_folders, tmp_path):
    """A folder ``m`` with ``base``, ``trec`` and an adapter ``a`` of their own."""
    for source in bert_folders:
        shutil.copytree(source, tmp_path / "m" / source.name)
    compress(tmp_path / "m/base", tmp_path / "m/trec", out=tmp_path / "m/a", nbytes=32_000)
    return tmp_path / "m"


def content(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("out", ["base", "a", ".", "..", "base/full", "a/full"])
def test_neither_base_nor_adapter_is_overwritten(models, out):
    before = content(models.parent)
    with pytest.raises(FileExistsError, match="itself"):
        write_checkpoint(models / "base", dts.Adapter.load(models / "a"), models / out, overwrite=True)
    assert content(models.parent) == before


def test_a_base_that_is_a_file_is_not_overwritten(models):
    adapter, file = dts.Adapter.load(models / "a"), models / "base/model.safetensors"
    with pytest.raises(FileExistsError, match="base itself"):
        write_checkpoint(file, adapter, models / "base", overwrite=True)
    assert file.exists()
    write_checkpoint(file, adapter, models / "base/full")  # beside it is no harm


def test_only_a_model_is_overwritten(models, tmp_path):
    adapter = dts.Adapter.load(models / "a")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/text.txt").write_text("do not lose me")
    (tmp_path / "file").write_text("nor me")
    shutil.copytree(models / "a", tmp_path / "other")
    before = content(tmp_path)
    for out, reason in (("thesis", "not a model"), ("other", "not a model"), ("file", "is a file")):
        with pytest.raises(FileExistsError, match=reason):
            write_checkpoint(models / "base", adapter, tmp_path / out, overwrite=True)
    with pytest.raises(FileExistsError, match="is a file"):
        adapter.save(tmp_path / "file", overwrite=True)
    with pytest.raises(FileExistsError, match="overwritten"):
        write_checkpoint(models / "base", adapter, models / "trec")
    assert content(tmp_path) == before
    write_checkpoint(models / "base", adapter, models / "trec", overwrite=True)
    assert content(models / "trec") != before and sorted(p.name for p in models.iterdir()) == ["a", "base", "trec"]


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_model_that_cannot_be_replaced_stays(models, monkeypatch, exchanged):
    before, rename = content(models), os.rename

    def failing(path, target):
        if Path(path).name == "whole":
            raise OSError("in use")
        return rename(path, target)

    monkeypatch.setattr(os, "rename", failing)
    monkeypatch.setattr("dts.files.folder.exchange", failing if exchanged else lambda one, other: False)
    with pytest.raises(OSError, match="in use"):
        write_checkpoint(models / "base", dts.Adapter.load(models / "a"), models / "trec", overwrite=True)
    assert content(models) == before


def test_an_empty_folder_is_filled_and_emptied_again_on_failure(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    rename, order = os.rename, []

    def failing(path, target):
        if Path(path).parent.name == "whole":
            order.append(Path(path).name)
        if Path(path).name == "dts_config.json":
            raise OSError("full")
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        with building(".", lambda: None) as place:
            for name in ("README.md", "dts_config.json", "z"):
                (place.fresh() if name == "README.md" else place.whole).joinpath(name).write_text(name)
            patch.setattr(os, "rename", failing)
            place.finish()
    assert order == ["README.md", "z", "dts_config.json"] and not list((tmp_path / "out").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_working_folder_is_written_to_if_it_is_empty(models, tmp_path, monkeypatch):
    for name in ("adapter", "full"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "adapter")
    compress(models / "base", models / "trec", out=".", nbytes=32_000)
    assert "dts_config.json" in {path.name for path in Path(".").iterdir()}
    assert dts.Adapter.load(".").verify(models / "base").ok
    monkeypatch.chdir(tmp_path / "full")
    write_checkpoint(models / "base", dts.Adapter.load(models / "a"), ".")
    assert Path("model.safetensors").is_file()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
