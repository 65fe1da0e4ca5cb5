"""compress, inspect, verify, apply, truncate on tiny checkpoints."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.dts.cli.said import said


@pytest.fixture
def adapter(dts, models, tmp_path):
    """An adapter of ``one`` in ./a, at rank fraction .5."""
    made = dts("compress", models / "base", models / "one", "--out", "a", "--rank-fraction", "50%")
    assert made.exit_code == 0, made.stderr
    return tmp_path / "a"


def test_compress_says_what_it_wrote(dts, models, tmp_path):
    result = json.loads(
        dts(
            "compress",
            models / "base",
            models / "one",
            "-o",
            "a",
            "-s",
            "40%",
            "--description",
            "tells moods",
            "--json",
        ).stdout
    )
    assert result["bytes"] == sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    assert result["amr"] == pytest.approx(result["bytes"] / (4 * (2 * 96 * 64 + 96))) and result["amr"] <= 0.4
    assert result["name"] == "one" and result["class_names"] == ["negative", "positive", "neutral"]
    assert result["description"] == "tells moods" and result["written"]


def test_dry_run_predicts_the_bytes_and_writes_nothing(dts, models, tmp_path):
    words = ("compress", models / "base", models / "one", "-o", "a", "-s", "30%", "--json")
    predicted = json.loads(dts(*words, "--dry-run").stdout)
    assert not list(tmp_path.iterdir()) and predicted["written"] is False
    assert predicted["bytes"] == pytest.approx(json.loads(dts(*words).stdout)["bytes"], rel=0.01)


def test_dry_run_predicts_the_error_with_its_bounds(dts, models):
    words = ("compress", models / "base", models / "one", "-o", "a", "--rank-fraction", "40%")
    predicted = json.loads(dts(*words, "--json", "--dry-run").stdout)["predicted"]
    measured = json.loads(dts(*words, "--json").stdout)["squared_error"]
    assert predicted["squared_error"] == pytest.approx(measured, rel=0.15)
    assert predicted["lower"] <= measured <= predicted["upper"]
    assert [row["name"] for row in predicted["tensors"]] == ["layer.0.weight", "layer.1.weight"]
    assert "bounds" in dts(*words, "--dry-run").stdout and "layer.1.weight" not in dts(*words, "--dry-run").stdout
    assert "layer.1.weight" in dts(*words, "--dry-run", "--tensors").stdout
    wrong = dts(*words, "--tensors", "--overwrite")
    assert wrong.exit_code == 2 and "dts inspect" in wrong.stderr


def test_several_fine_tunes_go_into_one_folder(dts, models, tmp_path):
    shown = dts("compress", models / "base", models / "one", models / "two", "-o", "all", "-s", "40%")
    assert shown.exit_code == 0, shown.stderr
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["one", "two"]
    assert "one" in shown.stdout and "two" in shown.stdout


def test_difference_vectors_to_a_merged_base_in_one_command(dts, models, tmp_path):
    words = ("compress", models / "base", models / "one", models / "two", "-o", "d", "--merge", "average", "-s", "40%")
    assert dts(*words).exit_code == 2  # --kind difference must be said
    made = dts(*words, "--kind", "difference", "--json")
    assert made.exit_code == 0, made.stderr
    assert [row["name"] for row in json.loads(made.stdout)] == ["one", "two"]
    assert dts("verify", tmp_path / "d" / "adapters" / "two", tmp_path / "d" / "base", models / "two").exit_code == 0


def test_a_base_that_is_not_quantised_is_not_called_so(dts, models):
    words = ("compress", models / "base", models / "one", "-o", "a", "--base-is", "quantised")
    made = dts(*words)
    assert made.exit_code == 2 and "is not quantised: leave base_is (--base-is) out" in said(made)
    made = dts(*words, "--kind", "difference", "--merge", "average")
    assert made.exit_code == 2 and "--base-is is of a base that there is" in said(made)


def test_fine_tunes_of_one_name_are_refused(dts, models, tmp_path):
    (tmp_path / "one").symlink_to(models / "two")
    wrong = dts("compress", models / "base", "one", "./one", "-o", "all")
    assert wrong.exit_code == 2 and "names of their own" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-s", "5"], "5MB"),
        (["-s", "1%", "--rank-fraction", "0.1"], "twice"),
        (["-s", "100B"], "smallest"),
        (["--method", "papr"], "paper"),
        (["--method", "sketch", "--target-error", "0.1"], "noise"),
        (["--rank-fraction", "3"], "between"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_what_can(dts, models, tmp_path, words, reason):
    wrong = dts("compress", models / "base", models / "one", "-o", "a", *words)
    assert wrong.exit_code == 2 and reason in wrong.stderr and not (tmp_path / "a").exists()


def test_nothing_is_overwritten_unasked(dts, models, adapter):
    before = {file.name: file.read_bytes() for file in adapter.iterdir()}
    words = ("compress", models / "base", models / "two", "-o", "a", "-s", "40%")
    assert dts(*words).exit_code == 2 and before == {file.name: file.read_bytes() for file in adapter.iterdir()}
    assert dts(*words, "--overwrite").exit_code == 0
    assert json.loads(dts("inspect", "a", "--json").stdout)["name"] == "two"


def test_inspect_shows_tensors_and_bytes(dts, adapter):
    result = json.loads(dts("inspect", adapter, "--json").stdout)
    rows = {row["name"]: row for row in result["tensors"]}
    assert rows["layer.0.weight"]["rank"] == 32 and rows["classifier.weight"]["kind"] == "task only"
    assert 0 < rows["layer.0.weight"]["squared_error"] < 0.6
    assert sum(row["bytes"] for row in result["tensors"]) < result["bytes"]
    assert "layer.1.weight" in dts("inspect", adapter, "--tensors").stdout
    assert "layer.1.weight" not in dts("inspect", adapter).stdout
    found = result["bytes_for"]
    assert sum(found.values()) == result["bytes"] == sum(path.stat().st_size for path in adapter.iterdir())
    assert f"{found['names and rows']:,}" in dts("inspect", adapter).stdout and found["weights"] > 0
    row = result["config"]["tensors"]["layer.1.weight"]  # all that a configuration with a row a tensor said
    assert row["kind"] == "factors" and row["shape"] and row["parts"] and len(row["sha256"]) == 8
    assert result["format_version"] == result["config"]["format_version"] == 5


def test_verify_passes_and_fails(dts, models, adapter):
    whole = dts("verify", adapter, models / "base", models / "one", "--json")
    assert whole.exit_code == 0 and json.loads(whole.stdout)["ok"]
    assert json.loads(whole.stdout)["squared_errors"]["layer.0.weight"]["measured"] > 0
    assert dts("verify", adapter, models / "base", models / "two").exit_code == 1
    wrong = dts("verify", adapter, models / "two")
    assert wrong.exit_code == 1 and "layer.0.weight" in wrong.stdout and "layer.1.weight" in wrong.stdout
    content = bytearray((adapter / "dts_model.safetensors").read_bytes())
    content[8 + int.from_bytes(content[:8], "little") + 2] ^= 1  # of the first tensor
    (adapter / "dts_model.safetensors").write_bytes(content)
    altered = dts("verify", adapter, models / "base", "--json")
    assert altered.exit_code == 1 and "altered" in " ".join(json.loads(altered.stdout)["problems"])


def test_a_cut_off_file_is_refused(dts, models, adapter):
    file = adapter / "dts_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert dts("inspect", adapter).exit_code == 2


def test_apply_writes_the_full_model(dts, models, adapter, tmp_path):
    import dts as package

    words = ("apply", models / "base", adapter, "-o", "full", "--json")
    predicted = json.loads(dts(*words, "--dry-run").stdout)
    assert not (tmp_path / "full").exists()
    assert json.loads(dts(*words).stdout) == predicted | {"written": True}
    written = load_file(tmp_path / "full" / "model.safetensors")
    expected = dict(package.Adapter.load(adapter).apply(models / "base"))
    assert written.keys() == expected.keys() and all(torch.equal(written[k], expected[k]) for k in written)
    assert dts("apply", models / "base", adapter, "-o", "full").exit_code == 2


@pytest.mark.parametrize("verb", ["apply", "merge"])
def test_a_folder_called_as_a_tokenizer_is_left_and_a_link_to_nothing_named(dts, models, adapter, tmp_path, verb):
    shutil.copytree(models / "base", "base")
    (tmp_path / "base/tokenizer").mkdir()
    (tmp_path / "base/vocab.txt").write_text("word\n")
    words = (verb, "base", adapter) if verb == "apply" else (verb, models / "one", "-b", "base")
    assert dts(*words, "-o", "made").exit_code == 0 and (tmp_path / "made/vocab.txt").is_file()
    (tmp_path / "base/tokenizer.model").symlink_to("nothing")
    wrong = dts(*words, "-o", "other")
    assert wrong.exit_code == 2 and "base has tokenizer.model, a link to nothing" in said(wrong)
    (tmp_path / "base/config.json").unlink()
    (tmp_path / "base/config.json").symlink_to("nothing")
    wrong = dts(*words, "-o", "other")
    assert wrong.exit_code == 2 and "base/config.json is a link to nothing" in said(wrong)
    assert not (tmp_path / "other").exists()


def test_apply_refuses_another_base_with_every_mismatch(dts, adapter, other, tmp_path):
    wrong = dts("apply", other, adapter, "-o", "full")
    assert wrong.exit_code == 2 and not (tmp_path / "full").exists()
    assert all(name in wrong.stderr for name in ("layer.0.weight", "layer.1.weight", "layer.0.bias"))


def test_truncate_makes_a_smaller_adapter(dts, models, adapter, tmp_path):
    whole = json.loads(dts("inspect", adapter, "--json").stdout)
    asked = whole["bytes"] - 1000
    words = ("truncate", adapter, "-o", "small", "-s", f"{asked}B", "--json")
    predicted = json.loads(dts(*words, "--dry-run").stdout)
    assert not (tmp_path / "small").exists()
    made = json.loads(dts(*words).stdout)
    assert made["bytes"] == predicted["bytes"] <= asked and made["from_bytes"] == whole["bytes"]
    assert made["bytes"] == sum(file.stat().st_size for file in (tmp_path / "small").iterdir())
    assert dts("verify", "small", models / "base", models / "one").exit_code == 0


def test_truncate_to_more_than_there_is_says_so(dts, adapter):
    made = dts("truncate", adapter, "-o", "as-large", "-s", "9MB")
    assert made.exit_code == 0 and "already: nothing is left out for 9MB" in made.stderr


def test_apply_replaces_nothing_but_a_model(dts, models, adapter, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/text").write_text("mine")
    for out, reason in (("file", "is a file"), ("folder", "not a model"), (".", "itself")):
        wrong = dts("apply", models / "base", adapter, "-o", out, "--overwrite")
        assert wrong.exit_code == 2 and reason in wrong.stderr
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/text").read_text() == "mine"


def test_a_fine_tune_may_be_the_working_folder(dts, models, tmp_path, monkeypatch):
    monkeypatch.chdir(models / "one")
    made = dts("compress", models / "base", ".", "../two", "-o", tmp_path / "all", "-s", "40%")
    assert made.exit_code == 0, made.stderr
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["one", "two"]


def test_the_working_folder_may_be_written_to(dts, models, tmp_path):
    made = dts("compress", models / "base", models / "one", "-o", ".", "-s", "40%")
    assert made.exit_code == 0, made.stderr
    assert (tmp_path / "dts_config.json").is_file()
    wrong = dts("compress", models / "base", models / "one", "-o", "README.md", "-s", "40%")
    assert wrong.exit_code == 2 and "is a file" in wrong.stderr


def test_compress_says_what_its_error_means_and_that_it_is_predicted(dts, models):
    words = ("compress", models / "base", models / "one", "-o", "a", "--target-error", "20%")
    shown = " ".join(dts(*words).stdout.split())
    result = json.loads(dts("inspect", "a", "--json").stdout)
    assert result["method"] == "residual" and set(result["predicted_agreement"]) == {"text", "images", "language"}
    kept = f"so {100 * (1 - result['squared_error']):.0f} % of the change, in squares, is kept"
    assert kept in shown and "predicted from 24 tasks" in shown and "dts eval measures it" in shown
    several = dts(*words[:3], models / "two", "-o", "b", "--target-error", "20%").stdout
    assert "answers" in several and "about" in several and "predicted" in several


def test_where_it_is_computed(dts, models):
    words = ("compress", models / "base", models / "one", "-o", "a", "-s", "40%", "--device")
    assert dts(*words, "cpu", "--dry-run").exit_code == 0
    wrong = dts(*words, "nowhere")
    assert wrong.exit_code == 2 and "device 'nowhere': there is none" in wrong.stderr
