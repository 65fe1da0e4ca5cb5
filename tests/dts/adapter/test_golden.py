"""Folders of every format there was are read for ever, and what is written needs no newer reader than it says."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import dts
from dts.adapter import AdapterError
from dts.adapter.digests import FORMAT_VERSION, version_of
from dts.adapter.text import measure
from dts.codec.exact import same_bits
from tests.dts.adapter import tiny
from tests.fuzz.form import opened, tensors_in

FOLDERS = sorted(path for path in (Path(__file__).parent / "golden").iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_golden_folder_gives_the_weights_it_gave(folder):
    adapter = dts.Adapter.load(folder)
    version = int(folder.name.split("-")[0])
    assert adapter.config["format_version"] == version
    tuned = tiny.lightly(version) if adapter.method == "exact" else tiny.finetuned(version)
    assert adapter.verify(tiny.base(), tuned).problems == []
    expected = json.loads(folder.with_suffix(".json").read_text())
    given = dict(adapter.apply(tiny.base()))
    assert given.keys() == expected.keys()
    for name, (shape, dtype, probe) in expected.items():
        value = given[name].double().flatten().nan_to_num(2, 3, -3)
        assert [list(given[name].shape), str(given[name].dtype)[6:]] == [shape, dtype]
        assert (value * torch.cos(torch.arange(len(value), dtype=torch.float64))).sum().item() == pytest.approx(
            probe, rel=1e-4, abs=1e-4
        )


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_golden_folder_is_written_again_bit_for_bit(folder, tmp_path):
    dts.Adapter.load(folder).save(tmp_path / "again")
    old, new = (tensors_in(path) for path in (folder, tmp_path / "again"))
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        assert same_bits(tensor, new[name])
    old, new = (opened(path).config for path in (folder, tmp_path / "again"))
    assert list(old["tensors"]) == list(new["tensors"])
    for name, row in old["tensors"].items():  # digests are those of this version, norms and errors float32s
        assert plain(row) == plain(new["tensors"][name])
    same = ("method", "kind", "base", "finetuned", "task", "created", "model_config", "dropped")
    assert all(old[key] == new[key] for key in same)
    if old["format_version"] == FORMAT_VERSION:
        for file in ("dts_config.json", "dts_model.safetensors"):
            assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def plain(row):
    """A row without its digest, its numbers as float32 but for those that are multiplied with."""
    if isinstance(row, dict):
        exact = {key: row[key] for key in ("scale", "samples") if key in row}
        return {key: plain(value) for key, value in row.items() if key != "sha256"} | exact
    if isinstance(row, list):
        return [plain(value) for value in row]
    return measure(row) if isinstance(row, float) else row


def test_every_format_has_a_golden_folder():
    assert {int(folder.name.split("-")[0]) for folder in FOLDERS} == set(range(1, FORMAT_VERSION + 1))


@pytest.mark.parametrize(("folder", "needed"), [("1-residual", 1), ("1-paper", 1), ("2-vectors", 2), ("3-sketch", 3)])
def test_the_version_is_that_of_what_is_stored(folder, needed):
    entries = dts.Adapter.load(Path(__file__).parent / "golden" / folder).entries.values()
    assert version_of(entries, digests=False) == needed and version_of(entries) == FORMAT_VERSION


def test_what_is_cut_mixed_or_saved_from_an_old_folder_is_written_as_new(tmp_path):
    old = dts.Adapter.load(Path(__file__).parent / "golden/1-residual")
    cut = old.truncate(nbytes=5_500)
    assert any(entry.is_rounded for entry in cut.entries.values())  # which version 1 had not
    old.save(tmp_path / "saved")
    cut.save(tmp_path / "cut")
    dts.unseen.mix({"a": old}, {"a": 0.5}, tmp_path / "mixed", base=tiny.base())
    for name in ("saved", "cut", "mixed"):
        assert dts.Adapter.load(tmp_path / name).config["format_version"] == FORMAT_VERSION


def test_an_altered_old_folder_is_refused(tmp_path):
    folder = shutil.copytree(Path(__file__).parent / "golden/2-vectors", tmp_path / "a")
    path = folder / "dts_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(AdapterError, match="altered"):
        dts.Adapter.load(folder)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    folder = shutil.copytree(Path(__file__).parent / "golden/3-sketch", tmp_path / "a")
    (folder / "tokenizer_config.json").rename(tmp_path / "secret")
    (folder / "tokenizer_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(AdapterError, match="not followed"):
        dts.Adapter.load(folder)


def test_a_hubs_cache_of_links_is_read(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots/main").mkdir(parents=True)
    for file in (Path(__file__).parent / "golden/3-sketch").iterdir():
        shutil.copyfile(file, tmp_path / "blobs" / file.name)
        (tmp_path / "snapshots/main" / file.name).symlink_to(tmp_path / "blobs" / file.name)
    assert dts.Adapter.load(tmp_path / "snapshots/main").name == "tiny"
