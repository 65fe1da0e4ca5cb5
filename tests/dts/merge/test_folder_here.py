"""A merge into the folder one stands in."""

import torch
from safetensors.torch import load_file, save_file

import dts


def test_into_the_empty_folder_one_stands_in(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_file({"a": torch.randn(3, 4)}, tmp_path / name / "model.safetensors")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    dts.merge(None, [tmp_path / "one", tmp_path / "two"], "average", out=".")
    one, two, merged = (load_file(tmp_path / name / "model.safetensors")["a"] for name in ("one", "two", "here"))
    torch.testing.assert_close(merged, (one + two) / 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "one", "two"]
