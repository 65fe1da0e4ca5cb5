"""What became of every tensor, as each verb says it; runs that change nothing end with exit code 1."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.dts.cli.said import said


@pytest.fixture
def adapter(dts, models, tmp_path):
    result = dts(
        "compress", models / "base", models / "one", "-o", tmp_path / "one", "--rank-fraction", "0.2", "--json"
    )
    assert result.exit_code == 0
    return tmp_path / "one", json.loads(result.stdout)["account"]


def strict(text: str):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_compress_apply_verify_and_diff_have_every_tensor(dts, models, adapter, tmp_path):
    folder, account = adapter
    base, tuned = (set(load_file(models / name / "model.safetensors")) for name in ("base", "one"))
    assert {row["name"] for row in account["tensors"] if row["model"] == "finetuned"} == tuned
    assert account["counts"] == {"finetuned": {"changed": 3, "new": 1}, "base": {"changed": 3}}
    for words in (
        ("apply", models / "base", folder, "-o", tmp_path / "m"),
        ("verify", folder, models / "base"),
        ("diff", models / "base", models / "one"),
    ):
        found = strict(dts(*words, "--json").stdout)["account"]
        assert {row["name"] for row in found["tensors"] if row["model"] == "base"} == base
        assert {row["name"] for row in found["tensors"] if row["model"] != "base"} == tuned
    for words in (
        ("apply", models / "base", folder, "-o", tmp_path / "n"),
        ("verify", folder, models / "base"),
        ("diff", models / "base", models / "one"),
    ):
        assert "3 changed, 1 new" in dts(*words).stdout


def test_a_fine_tune_equal_to_its_base_ends_with_exit_code_1(dts, models, tmp_path):
    result = dts("compress", models / "base", models / "base", "-o", tmp_path / "a", "--json")
    assert result.exit_code == 1 and "changes nothing" in result.stderr
    assert json.loads(result.stdout)["exit_code"] == 1 and not (tmp_path / "a").exists()
    words = ("compress", models / "base", models / "base", "-o", tmp_path / "a", "--rank-fraction", "0.1")
    assert dts(*words, "--allow-empty").exit_code == 0 and (tmp_path / "a").exists()


def test_merge_and_mix(dts, models, adapter, tmp_path):
    result = dts("merge", models / "one", models / "two", "-b", models / "base", "-o", tmp_path / "m", "--json")
    found = strict(result.stdout)["account"]
    assert found["counts"]["merged"] == {"changed": 3}
    assert "classifier.weight" in result.stderr and "not in the merged model" in result.stderr
    result = dts("merge", models / "one", models / "base", "-b", models / "base", "-o", tmp_path / "n")
    assert result.exit_code == 2 and "does not differ from the base" in said(result) and not (tmp_path / "n").exists()
    words = ("mix", adapter[0], "--weight", "one=0.5", "-o", tmp_path / "x", "--json")
    counts = strict(dts(*words).stdout)["adapter"]["account"]["counts"]
    assert counts == {"one": {"changed": 3, "skipped": 1}, "mixture": {"changed": 3}}


def test_numbers_that_are_none_are_null(dts, models, tmp_path):
    shutil.copytree(models / "one", tmp_path / "one")
    tensors = load_file(tmp_path / "one" / "model.safetensors")
    tensors["layer.0.bias"][0] = torch.nan
    save_file(tensors, tmp_path / "one" / "model.safetensors")
    found = strict(dts("diff", models / "base", tmp_path / "one", "--json").stdout)
    assert found["changed"][0]["name"] == "layer.0.bias" and found["changed"][0]["norm"] is None
