import json

import pytest
import torch
from safetensors.torch import save_file


def test_changes_are_listed_largest_first(dts, models):
    result = json.loads(dts("diff", models / "base", models / "one", "--json").stdout)
    norms = [row["norm"] for row in result["changed"]]
    assert [row["name"] for row in result["changed"]][2] == "layer.0.bias" and norms == sorted(norms, reverse=True)
    assert result["only_finetuned"] == [{"name": "classifier.weight", "shape": [3, 64]}]
    assert result["relative"] == pytest.approx(0.05, rel=0.1)
    assert result["changed"][0]["changed_rows"] == 96


def test_a_mask_that_both_have_did_not_change(dts, tmp_path):
    mask = torch.full((8, 8), -float("inf")).triu(1)
    save_file({"mask": mask, "a.weight": torch.ones(8, 8)}, tmp_path / "base.safetensors")
    save_file({"mask": mask, "a.weight": torch.full((8, 8), 1.5)}, tmp_path / "tuned.safetensors")
    result = json.loads(dts("diff", "base.safetensors", "tuned.safetensors", "--json").stdout)
    assert result["unchanged"] == ["mask"] and result["relative"] == 0.5


def test_a_model_and_itself(dts, models):
    shown = dts("diff", models / "base", models / "base")
    assert shown.exit_code == 0 and "0 tensors changed, 3 did not" in shown.stdout


def test_top_shortens_the_table(dts, models):
    shown = dts("diff", models / "base", models / "one", "--top", 1)
    assert "and 2 more" in shown.stdout and "Only in the fine-tune: classifier.weight" in shown.stdout


def test_models_that_do_not_belong_together_list_every_mismatch(dts, models, other):
    wrong = dts("diff", models / "base", other)
    assert wrong.exit_code == 2
    assert "layer.0.weight" in wrong.stderr and "layer.1.weight" in wrong.stderr
