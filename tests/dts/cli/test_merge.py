import json

import pytest
import torch
from safetensors.torch import load_file

from tests.dts.cli.said import said


def test_merge_writes_a_model(dts, models, tmp_path):
    words = (models / "one", models / "two", "--base", models / "base", "-m", "task_arithmetic", "-o", "merged")
    predicted = json.loads(dts("merge", *words, "--option", "scale=0.5", "--dry-run", "--json").stdout)
    assert not (tmp_path / "merged").exists() and predicted["written"] is False
    done = json.loads(dts("merge", *words, "--option", "scale=0.5", "--json").stdout)
    assert done["options"] == {"scale": 0.5} and done["bytes"] == pytest.approx(predicted["bytes"], abs=4096)
    base, one, two = (load_file(models / m / "model.safetensors")["layer.0.weight"] for m in ("base", "one", "two"))
    merged = load_file(tmp_path / "merged" / "model.safetensors")["layer.0.weight"]
    assert merged.allclose(base + 0.5 * (one - base) + 0.5 * (two - base), atol=1e-6)


def test_the_methods_are_listed(dts):
    from dts.merge import METHODS

    assert [m["name"] for m in json.loads(dts("merge", "--methods", "--json").stdout)] == list(METHODS)
    assert "ties" in dts("merge", "--methods").stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-m", "tis", "-o", "m"], "ties"),
        (["-m", "ties", "-o", "m", "--option", "densty=1"], "density"),
        (["-o", "m", "--option", "scale"], "name=value"),
        (["-o", "m", "--option", "seed=1", "--option", "dtype=float16"], "--option dtype, seed: of no method"),
        (["-o", "m", "--option", "weights=3"], "weights must be 1 numbers"),
        (["-o", "m", "--option", "weights=[NaN]"], "weights must be 1 numbers"),
        (["-o", "m", "--option", 'weights=["a"]'], "weights must be 1 numbers"),
        (["-o", "m", "--option", "exclude=leyer"], "'leyer' is in no tensor's name"),
        (["-o", "m", "--option", "exclude=*"], "'*' is no pattern"),
        (["-o", "m", "--seed", "0"], "--seed: average draws nothing at random; dare, dare_ties do"),
        ([], "--out"),
    ],
)
def test_wrong_words_name_the_right_ones(dts, models, tmp_path, words, reason):
    wrong = dts("merge", models / "one", "--base", models / "base", *words)
    assert wrong.exit_code == 2 and reason in wrong.stderr and not (tmp_path / "m").exists()


def test_a_seed_says_what_comes_out_where_a_method_draws_and_nowhere_else():
    from dts.merge import METHODS, merge

    torch.manual_seed(0)
    base = {"layer.weight": torch.randn(16, 16)}
    tuned = [{"layer.weight": base["layer.weight"] + torch.randn(16, 16)} for _ in range(2)]
    for name, method in METHODS.items():
        one, other = (merge(base, tuned, method=name, seed=seed)["layer.weight"] for seed in (0, 1))
        assert torch.equal(one, other) != method.draws, name
    assert [name for name, method in METHODS.items() if method.draws] == ["dare", "dare_ties"]


def test_options_that_are_no_numbers(dts, models):
    words = ("merge", models / "one", models / "two", "--base", models / "base", "-m", "ties", "-o", "merged")
    wrong = dts(*words, "--option", "density=x", "--option", "scale=true")
    why = "density is a number, as 0.2, not 'x'; scale is a number, as 1.0, not True"
    assert wrong.exit_code == 2 and why in said(wrong)
