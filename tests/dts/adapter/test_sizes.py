"""Bytes and errors of an adapter, counted before it is written."""

from dataclasses import replace

import pytest
import torch

import dts
from dts.adapter import Entry
from dts.adapter.sizes import measured, overall_error, whole_error
from dts.codec import compress_tensor


def test_bytes_are_those_of_the_folder_to_the_last(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = {"a.weight": torch.randn(40, 48, generator=generator), "a.bias": torch.randn(40, generator=generator)}
    tuned = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in base.items()}
    adapter = dts.compress(base, tuned, tmp_path / "a", nbytes=4_000)
    on_disk = sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    base_digests = {name: row.get("base") for name, row in adapter.config["tensors"].items()}
    for digests in (False, True):
        assert measured(adapter.config, adapter.entries, base_digests, digests) == on_disk
    adapter.entries.pop("a.bias")
    assert measured(adapter.config, adapter.entries, base_digests) < on_disk


def test_errors_are_weighted_by_energy_and_what_is_dropped_is_lost():
    entries = {
        "a": Entry("a", "a", (4,), "delta", norm=3.0, squared_error=0.0),
        "b": Entry("b", "b", (4, 4), "factors", norm=4.0, squared_error=0.5),
    }
    assert overall_error({"dropped": {}}, entries) == pytest.approx(8 / 25)
    assert overall_error({"dropped": {"c": 5.0}}, entries) == pytest.approx(33 / 50)
    assert overall_error({"dropped": {"b": 4.0}}, entries) == pytest.approx(16 / 25)  # only its added rows are stored
    assert overall_error({"dropped": {}}, {}) == 0
    entries["b"].squared_error = None
    assert overall_error({"dropped": {}}, entries) is None


def test_what_has_no_factors_is_lost_whole():
    factors = compress_tensor(torch.randn(20, 24, generator=torch.Generator().manual_seed(0)), rank=4)
    half = replace(factors, norm=1.0, squared_error=0.5)
    assert whole_error(2.0**0.5, [half, None]) == pytest.approx(0.75)
    assert whole_error(1.0, [half, replace(half, squared_error=None)]) is None
    assert whole_error(0.0, []) == 0
