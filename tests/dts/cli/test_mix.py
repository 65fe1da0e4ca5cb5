import json
import math

import pytest
import torch

import dts as package
from tests.dts.cli.said import said


class Letters:
    """An encoder without a model: counts of letters."""

    def __call__(self, texts):
        return torch.tensor([[float(text.count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])


@pytest.fixture
def adapters(dts, models, monkeypatch):
    monkeypatch.setattr("dts.unseen.weights.open_encoder", lambda encoder: Letters())
    for name, classes in (("one", "sad, glad"), ("two", "quartz, onyx")):
        words = (models / "base", models / name, "-o", name, "--rank-fraction", "30%", "--class-names", classes)
        assert dts("compress", *words).exit_code == 0
    return ("one", "two")


def test_weights_follow_the_names(dts, adapters, tmp_path):
    result = json.loads(dts("mix", *adapters, "--classes", "glad, sad", "--json").stdout)
    assert result["weights"]["one"] > result["weights"].get("two", 0) and not result["written"]
    assert result["similarities"][0]["task"] == "one" and math.isclose(
        result["similarities"][0]["similarity"], 1, rel_tol=1e-5
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    assert "glad" in dts("mix", *adapters, "--classes", "glad, sad").stdout


def test_given_weights_make_an_exact_adapter(dts, models, adapters, tmp_path):
    words = ("mix", *adapters, "--weight", "one=0.25", "--weight", "two=0.75", "-o", "mixed", "--json")
    predicted = json.loads(dts(*words, "--dry-run").stdout)
    assert not (tmp_path / "mixed").exists()
    made = json.loads(dts(*words).stdout)
    assert made["adapter"]["bytes"] == predicted["adapter"]["bytes"]
    assert made["adapter"]["predicted_agreement"] is None  # there is no fine-tune to answer as
    state = lambda folder: dict(package.Adapter.load(folder).apply(models / "base"))  # noqa: E731
    mixed, one, two = state("mixed"), state("one"), state("two")
    expected = 0.25 * one["layer.0.weight"] + 0.75 * two["layer.0.weight"]
    torch.testing.assert_close(mixed["layer.0.weight"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--classes"),
        (["--weight", "one"], "sst2=0.7"),
        (["--weight", "oen=1", "-o", "m"], "two"),
        (["--classes", "a, b", "--weight", "one=1"], "--weight"),
        (["--weight", "one=1", "--temperature", "nan", "--top-k", "2"], "--temperature, --top-k: they make weights"),
        (["--classes", ",", "-o", "m"], "names nothing"),
        (["--classes", "a, b", "--base", "nowhere", "-s", "1%"], "--budget, --base: of the adapter that --out writes"),
    ],
)
def test_wrong_words_are_refused(dts, adapters, tmp_path, words, reason):
    wrong = dts("mix", *adapters, *words)
    assert wrong.exit_code == 2 and reason in wrong.stderr and not (tmp_path / "m").exists()


def test_what_was_mixed_is_noted_where_it_is_encoded_again_too(dts, adapters, models):
    words = ("mix", *adapters, "--weight", "one=0.25", "--weight", "two=0.75", "--base", models / "base")
    made = dts(*words, "-o", "small", "--budget", "60%")
    assert made.exit_code == 0 and "answers" not in made.stdout, made.output
    about = json.loads(dts("inspect", "small", "--json").stdout)
    assert about["config"]["created"]["command"] == "mix 0.25 one + 0.75 two"
    assert about["squared_error"] > 0 and about["predicted_agreement"] is None


def test_weights_are_looked_at_where_they_are_only_shown(dts, models):
    assert dts("compress", models / "base", models / "one", "-o", "a", "--rank-fraction", "30%").exit_code == 0
    wrong = dts("mix", "a", "--weight", "one=nan", "--weight", "ones=1")
    assert wrong.exit_code == 2 and "one=nan is no number to mix by; no adapter ones; there are one" in said(wrong)
