"""Interrupted runs, full disks, damaged files."""

import errno
import json
import math
import os
import random

import pytest
import torch

import dts
from dts.adapter import AdapterError, compress, folder, options, plans, work
from dts.adapter.packed import unpacked_file
from dts.checkpoint import safetensors_file
from dts.checkpoint.safetensors_file import NAMES, SafetensorsFile
from tests.fuzz.form import opened

SIZE = dict(nbytes=32_000)


class Killed(BaseException):
    pass


@pytest.fixture
def compressed(monkeypatch):
    """Names of the tensors compressed so far; set ``limit`` to be killed there."""
    real, calls = plans.compress_tensor, []

    def counted(delta, *args, name, **options):
        if len(calls) == counted.limit:
            raise Killed
        calls.append(name)
        return real(delta, *args, name=name, **options)

    counted.limit, counted.calls = None, calls
    monkeypatch.setattr(plans, "compress_tensor", counted)
    return counted


def same_files(ours, theirs) -> bool:
    names = sorted(p.name for p in ours.iterdir())
    return names == sorted(p.name for p in theirs.iterdir()) and all(
        (ours / n).read_bytes() == (theirs / n).read_bytes() for n in names
    )


def test_a_killed_run_is_continued_to_the_same_bytes(bert_folders, tmp_path, compressed):
    compress(*bert_folders, out=tmp_path / "whole", **SIZE)
    whole, compressed.limit = len(compressed.calls), 5
    compressed.calls.clear()
    with pytest.raises(Killed):
        compress(*bert_folders, out=tmp_path / "cut", **SIZE)
    assert not (tmp_path / "cut").exists()
    compressed.limit = None
    compress(*bert_folders, out=tmp_path / "cut", resume=True, **SIZE)
    assert len(compressed.calls) == whole  # five before, the others after, none twice
    assert same_files(tmp_path / "whole", tmp_path / "cut")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut", "whole"]


def test_only_the_same_run_is_continued(bert_folders, tmp_path, compressed, monkeypatch):
    compressed.limit = 3
    with pytest.raises(Killed):
        compress(*bert_folders, out=tmp_path / "a", **SIZE)
    compressed.limit = None
    with pytest.raises(ValueError, match="nbytes: 32000 then, 30000 now"):
        compress(*bert_folders, out=tmp_path / "a", nbytes=30_000, resume=True)
    with pytest.raises(ValueError, match="seed: 0 then, 1 now"):
        compress(*bert_folders, out=tmp_path / "a", resume=True, seed=1, **SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(options, "__version__", "9.9")
        patch.setattr(torch, "__version__", "9.8")
        with pytest.raises(ValueError, match="package: .* then, '9.9' now; torch: .* then, '9.8' now.*without resume"):
            compress(*bert_folders, out=tmp_path / "a", resume=True, **SIZE)
    compress(*bert_folders, out=tmp_path / "a", nbytes=30_000)  # without resume it starts afresh
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("failing", ["entry", "dts_model"])
def test_a_full_disk_leaves_nothing_half_written(bert_folders, tmp_path, monkeypatch, failing):
    real = safetensors_file.write_safetensors

    def full(path, *args, **options):
        if path.name.startswith(failing):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *args, **options)

    with monkeypatch.context() as patch:
        for module in (folder, work):
            patch.setattr(module, "write_safetensors", full)
        with pytest.raises(OSError, match="no space left while writing .*resume"):
            compress(*bert_folders, out=tmp_path / "a", **SIZE)
    assert not (tmp_path / "a").exists()
    compress(*bert_folders, out=tmp_path / "a", resume=True, **SIZE)
    assert dts.Adapter.load(tmp_path / "a").verify(*bert_folders).problems == []


@pytest.fixture
def adapter_folder(bert_folders, tmp_path):
    compress(*bert_folders, out=tmp_path / "a", **SIZE)
    return tmp_path / "a"


def slices(folder):
    """Name -> where it lies, of every tensor."""
    file = SafetensorsFile(folder / "dts_model.safetensors")
    return unpacked_file(json.loads((folder / "dts_config.json").read_text()), file, 1 << 22)[1].tensors


def test_every_flipped_bit_is_found_by_the_tensors_name(bert_folders, adapter_folder):
    file = SafetensorsFile(adapter_folder / "dts_model.safetensors")
    content = (adapter_folder / "dts_model.safetensors").read_bytes()
    for name, own in list(slices(adapter_folder).items())[::5]:
        altered = bytearray(content)
        middle = own.first + math.prod(own.shape) // 2
        altered[file.tensors[NAMES[own.dtype]].start + middle * own.dtype.itemsize] ^= 8
        (adapter_folder / "dts_model.safetensors").write_bytes(altered)
        with pytest.raises(AdapterError) as error:
            dts.Adapter.load(adapter_folder)
        assert name.rpartition(".")[0] + ":" in str(error.value)
        problems = dts.Adapter.load(adapter_folder, verify=False).verify(bert_folders[0]).problems
        assert len(problems) == 1 and problems[0].split(":")[0] == name.rpartition(".")[0]


def test_a_truncated_file_is_refused_by_the_tensors_it_lost(adapter_folder):
    path = adapter_folder / "dts_model.safetensors"
    file, content = SafetensorsFile(path), path.read_bytes()
    last = max(file.tensors, key=lambda name: file.tensors[name].stop)
    path.write_bytes(content[:-1])
    with pytest.raises(AdapterError, match=last.replace("[", r"\[")):
        dts.Adapter.load(adapter_folder)
    for size in (0, 4, 100):
        path.write_bytes(content[:size])
        with pytest.raises(AdapterError, match="cut off"):
            dts.Adapter.load(adapter_folder)
    path.write_bytes(content + b"more")
    with pytest.raises(AdapterError, match="more than its header"):
        dts.Adapter.load(adapter_folder)


def test_configuration_and_tensors_that_disagree_are_refused_by_name(adapter_folder):
    path = adapter_folder / "dts_config.json"
    text = path.read_text()
    inner = opened(adapter_folder)
    rows = inner.config["tensors"]
    name = next(n for n, row in rows.items() if row["kind"] == "factors")
    rows[name]["parts"][0]["rank"] += 1
    other = next(n for n, row in rows.items() if row["kind"] == "delta")
    rows[other]["shape"] = [1, 2, 3]
    inner.write(adapter_folder)
    with pytest.raises(AdapterError) as error:
        dts.Adapter.load(adapter_folder)
    assert name in str(error.value) and other in str(error.value)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(AdapterError, match="damaged"):
        dts.Adapter.load(adapter_folder)
    path.write_text(text.replace('"format_version":5', '"format_version":99'))
    with pytest.raises(AdapterError, match="format 99.*newer one .*reads it: pip install"):
        dts.Adapter.load(adapter_folder)


def test_saving_elsewhere_and_cutting(bert_folders, adapter_folder, tmp_path):
    adapter = dts.Adapter.load(adapter_folder)
    adapter.save(tmp_path / "copy")
    assert same_files(adapter_folder, tmp_path / "copy")
    small = adapter.truncate(nbytes=25_000)
    small.save(tmp_path / "small")
    assert 0.99 * 25_000 <= small.nbytes <= 25_000
    assert small.nbytes == sum(p.stat().st_size for p in (tmp_path / "small").iterdir())
    assert adapter.nbytes > 31_000 and small.config["squared_error"] > adapter.config["squared_error"]
    for loaded in (small, dts.Adapter.load(tmp_path / "small")):
        assert loaded.verify(*bert_folders).problems == []
    budget = 25_000 / (4 * adapter.config["base"]["parameters"])
    loaded = dts.Adapter.load(adapter_folder, budget=budget)
    ours, theirs = dict(loaded.apply(bert_folders[0])), dict(small.apply(bert_folders[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_cut_adapter_is_about_as_good_as_one_made_so(bert_folders):
    cut = compress(*bert_folders, nbytes=9_000).truncate(nbytes=6_000)
    made = compress(*bert_folders, nbytes=6_000)
    assert cut.config["squared_error"] < 1.25 * made.config["squared_error"]


def test_what_becomes_of_the_file_cannot_touch_a_loaded_adapter(adapter_folder):
    adapter = dts.Adapter.load(adapter_folder)
    os.truncate(adapter_folder / "dts_model.safetensors", 0)  # mapped pages that are gone would kill the process
    assert all(torch.isfinite(e.factors.packed.sigma).all() for e in adapter.entries.values() if e.kind == "factors")


def test_any_altered_bit_is_refused_or_found_or_only_describes(bert_folders, adapter_folder):
    """No flipped bit of a header or of the configuration ends in another error, or in other weights unnoticed."""
    chosen, weights = random.Random(0), dict(dts.Adapter.load(adapter_folder).apply(bert_folders[0]))
    for name in ("dts_config.json", "dts_model.safetensors"):
        path = adapter_folder / name
        content, outcomes = path.read_bytes(), set()
        start = 0 if name.endswith("json") else 8 + int.from_bytes(content[:8], "little")
        table = len(content) - len(SafetensorsFile(path).load("table")) if start else 0
        for first, end in ((0, start or len(content)), (start, len(content)), (table, len(content))):
            for _ in range(40):
                altered = bytearray(content)
                altered[chosen.randrange(first, end)] ^= 1 << chosen.randrange(8)
                path.write_bytes(altered)
                try:
                    adapter = dts.Adapter.load(adapter_folder)
                    found = not adapter.verify(bert_folders[0]).ok
                except AdapterError:
                    found = True
                outcomes.add(found)
                if not found:
                    ours = dict(adapter.apply(bert_folders[0]))
                    assert set(ours) == set(weights) and all(torch.equal(ours[key], weights[key]) for key in weights)
        assert True in outcomes
        path.write_bytes(content)
