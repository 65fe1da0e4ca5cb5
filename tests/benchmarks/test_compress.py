"""The benchmark of compression at small size, on the CPU."""

import json
from argparse import ArgumentTypeError
from types import SimpleNamespace

import pytest
import torch

from benchmarks import compress
from dts.codec import many

SMALL = ["--device", "cpu", "--shapes", "96x80:.2", "--batches", "1", "3"]


def rows(folder) -> list[dict]:
    (file,) = folder.glob("*/compress.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("batched", [False, True])
def test_every_case_has_its_row(tmp_path, monkeypatch, batched):
    if batched:
        monkeypatch.setattr(many, "suits", lambda device: True)
    assert compress.main([*SMALL, "--parameters", "4e6", "--out", str(tmp_path)]) == 0
    one, three, model = rows(tmp_path)
    assert (one["count"], three["count"]) == (1, 3) and one["rank"] == 16 and one["same_bytes"]
    assert set(one["phases"]) == {"start", "sweeps", "sigma"} and 0 < one["squared_error"] < 1
    assert one["modelled_h100"]["seconds"] > 0 and one["peak_device_mb"] is None
    assert model["bytes"] <= 0.01 * 4 * model["parameters"] and model["from"] == "disk" and model["seconds"] > 0
    assert {"read and measured", "ranks", "encoded", "written"} <= set(model["phases"])


def test_an_encoder_has_the_same_bytes_from_any_number_of_threads(tmp_path, monkeypatch):
    small = {"embeddings.word_embeddings.weight": torch.randn(60, 40), "layer.weight": torch.randn(50, 40)}
    tuned = {name: value + 1e-3 * torch.randn(value.shape) for name, value in small.items()}
    monkeypatch.setattr(compress, "encoder_pair", lambda: (small, tuned))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    arguments = ["--device", "cpu", "--shapes", "--parameters", "--encoder", "--budget", ".1"]
    assert compress.main([*arguments, "--out", str(tmp_path)]) == 0
    (row,) = rows(tmp_path)
    assert row["threads"] == [1, 2] and len(row["seconds"]) == len(row["cpu_seconds"]) == 2
    assert row["same_bytes"] and row["bytes"] > 0


def test_what_takes_too_long_is_broken_off(tmp_path, monkeypatch):
    row = compress.model_row(4_000_000, 0.01, torch.device("cpu"), None, 0)
    assert row["seconds"] is None and row["failed"] == "broken off while the models were made"
    make = compress.make_pair
    with monkeypatch.context() as patch:
        patch.setattr(compress, "make_pair", lambda *args: make(*args[:3], float("inf")))
        row = compress.model_row(4_000_000, 0.01, torch.device("cpu"), None, 0)
    assert row["seconds"] is None and row["failed"].startswith("broken off at ") and "bytes" not in row
    assert compress.main([*SMALL, "--parameters", "--out", str(tmp_path), "--seconds", "0"]) == 1
    assert all("left out" in row["failed"] for row in rows(tmp_path)) and len(rows(tmp_path)) == 2


def test_without_room_on_disk_models_are_in_memory(monkeypatch):
    monkeypatch.setattr(compress.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    row = compress.model_row(4_000_000, 0.01, torch.device("cpu"), None, float("inf"))
    assert row["from"] == "memory" and row["seconds"] > 0


def test_functions_are_as_before():
    before = compress.components.fit
    with pytest.raises(KeyError), compress.phases({"a": (compress.components, "fit")}, None):
        assert compress.components.fit is not before
        raise KeyError
    assert compress.components.fit is before


@pytest.mark.parametrize("text", ["4096", "4096x4096", "4096x4096:2", "axb:.1", "0x4:.1"])
def test_shapes_that_are_none(text):
    with pytest.raises(ArgumentTypeError, match="is not ROWSxCOLUMNS:SHARE"):
        compress.shape_of(text)
    assert compress.shape_of("4096x1024:.3") == (4096, 1024, 0.3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_measured(capsys):
    assert compress.main([]) == 1
    assert "not measured" in capsys.readouterr().err
