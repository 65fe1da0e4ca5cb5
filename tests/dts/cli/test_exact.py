"""Adapters that keep every bit, from the command line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dts.codec.exact import same_bits
from tests.dts.cli.said import said


@pytest.fixture
def light(models, tmp_path):
    """A fine-tune of ``base`` in which one element in a hundred moved, one to minus zero."""
    folder = tmp_path / "light"
    shutil.copytree(models / "base", folder)
    tuned = load_file(folder / "model.safetensors")
    for tensor in tuned.values():
        tensor.view(-1)[::100] *= 1.5
    tuned["layer.0.weight"].view(-1)[1] = -0.0
    save_file(tuned, folder / "model.safetensors")
    return folder


def test_it_is_made_told_checked_and_applied(dts, models, light):
    differs = json.loads(dts("diff", models / "base", light, "--json").stdout)
    row = next(row for row in differs["changed"] if row["name"] == "layer.0.weight")
    assert row["elements"] - row["bit_equal"] == 63 and differs["bit_equal"] == pytest.approx(0.99, abs=1e-3)
    assert "98.97 %" in dts("diff", models / "base", light).stdout.replace("\n", " ")
    told = dts("compress", models / "base", light, "-o", "a", "-m", "exact", "--dry-run")
    assert told.exit_code == 0 and "nothing is lost" in told.stdout
    made = json.loads(dts("compress", models / "base", light, "-o", "a", "-m", "exact", "--json").stdout)
    assert made["method"] == "exact" and made["squared_error"] == 0 and f"{made['bytes']:,}" in told.stdout
    assert "exact" in dts("list", ".").stdout and "exact" in dts("inspect", "a", "--tensors").stdout
    assert "All 3 tensors equal those of" in dts("verify", "a", models / "base", light).stdout
    assert "3 tensors come out bit for bit" in dts("verify", "a", models / "base").stdout
    wrong = dts("verify", "a", models / "base", models / "one")
    assert wrong.exit_code == 1 and "bit for bit" in wrong.stdout
    assert dts("apply", models / "base", "a", "-o", "again").exit_code == 0
    ours, theirs = load_file("again/model.safetensors"), load_file(light / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(same_bits(ours[key], theirs[key]) for key in theirs)


def test_what_does_not_go_with_it_is_refused_by_name(dts, models, light):
    assert dts("compress", models / "base", light, "-o", "a", "-m", "exact").exit_code == 0
    for words, why in (
        (("compress", models / "base", light, "-o", "b", "-m", "exact", "--budget", "1%"), "leave budget= out"),
        (("truncate", "a", "-o", "b", "--budget", "1KB"), "no prefix is a model"),
    ):
        result = dts(*words)
        assert result.exit_code == 2 and why in said(result), words


def test_a_file_of_many_may_have_one_of_them(dts, models, light, tmp_path):
    pytest.importorskip("yaml")
    text = f"base: {models / 'base'}\nout: adapters\nbudget: 30%\nfinetunes:\n  - {models / 'one'}\n  - path: {light}\n"
    (tmp_path / "many.yaml").write_text(text + "    method: exact\n")
    assert dts("compress", "--config", "many.yaml").exit_code == 0
    assert json.loads(dts("inspect", "adapters/light", "--json").stdout)["method"] == "exact"
    (tmp_path / "many.yaml").write_text(text + "    method: exact\n    budget: 2%\n")
    assert dts("compress", "--config", "many.yaml", "-o", "others").exit_code != 0


def test_a_sparse_patch_and_bitdeltas_signs_become_adapters(dts, models, tmp_path):
    base = load_file(models / "base" / "model.safetensors")
    patch = {"layer.0.weight.indices": torch.tensor([3, 70]).int(), "layer.0.weight.values": torch.tensor([1.5, -0.0])}
    save_file(patch, tmp_path / "step.safetensors")
    words = ("--base", models / "base", "-o")
    made = json.loads(dts("import", "sparse", "step.safetensors", *words, "a", "--json").stdout)
    assert made["method"] == "exact" and made["name"] == "step" and made["account"]["counts"]["base"]["changed"] == 1
    wrong = dts("import", "sparse", "step.safetensors", *words, "b", "--values", "other")
    assert wrong.exit_code == 2 and "new or differences" in wrong.stderr
    found = torch.full((2, 96), -1).int()  # every bit is set
    torch.save({"layer.1.mask": found, "layer.1.coeff": torch.tensor(0.25)}, tmp_path / "diff.pt")
    assert dts("import", "bitdelta", "diff.pt", *words, "c", "--name", "signs").exit_code == 0
    assert dts("apply", models / "base", "c", "-o", "again").exit_code == 0
    assert torch.equal(load_file("again/model.safetensors")["layer.1.weight"], base["layer.1.weight"] + 0.25)
    refused = dts("import", "bitdelta", "step.safetensors", *words, "d")
    assert refused.exit_code == 2 and "step.safetensors" in refused.stderr
