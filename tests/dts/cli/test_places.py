"""Places as people write them: in their home, of users there are not, links to themselves, names that are no UTF-8."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

import dts as package
from dts.cli.common import emit
from dts.cli.recipe import read_recipe
from tests.dts.cli.said import said


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # of the C library
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_home_that_no_shell_filled_in(dts, models, home, tmp_path):
    """As in --out=~/made, a file of --config, and Python: no folder is called ~."""
    done = dts("compress", models / "base", models / "one", "--out=~/made/one", "--rank-fraction", "30%")
    assert done.exit_code == 0, done.stderr
    os.symlink(models, home / "models")
    recipe = "base: ~/models/base\nout: ~/made\nrank_fraction: 0.3\nfinetunes: [~/models/two]\n"
    (home / "many.yaml").write_text(recipe)
    (job,) = read_recipe(Path("~/many.yaml")).jobs
    assert job.folder == home / "made/two" and job.source == str(home / "models/two")
    assert [row["task"] for row in json.loads(dts("list", "~/made", "--json").stdout)["adapters"]] == ["one"]
    assert package.Adapter.load("~/made/one").name == "one"
    assert dts("apply", "~/models/base", "~/made/one", "-o", "~/full").exit_code == 0
    merged = dts("merge", "~/models/one", "~/models/two", "-o", "~/merged", "--json")
    assert json.loads(merged.stdout)["bytes"] > 0
    assert (home / "full/config.json").is_file() and (home / "merged/config.json").is_file()
    assert not (tmp_path / "~").exists()


NOBODY = "~nobody-of-this-name/x"


@pytest.mark.parametrize(
    "words",
    [
        ("diff", NOBODY, "BASE"),
        ("compress", "BASE", NOBODY, "-o", "a"),
        ("merge", NOBODY, "BASE", "-o", "a"),
        ("list", NOBODY),
        ("inspect", NOBODY),
        ("eval", "BASE", "BASE", "loop"),
        ("eval", "BASE", "BASE", "loop/x"),
        ("import", "sparse", "loop", "--base", "BASE", "-o", "a"),
        ("apply", "BASE", "loop", "-o", "a"),
        ("list", "loop"),
    ],
)
def test_users_there_are_not_and_links_to_themselves_are_bad_input(dts, models, words):
    os.symlink("loop", "loop")
    done = dts(*(models / "base" if word == "BASE" else word for word in words))
    assert done.exit_code == 2, done.stderr
    assert "Unexpected" not in done.stderr


def test_a_folder_of_a_strange_name_is_taken(dts, models):
    """One that begins as a user's home, and one that is no UTF-8: what is printed of it is."""
    for name in ("~nobody-of-this-name", "caf\udce9"):
        os.symlink(models / "one", name)
        done = dts("compress", models / "base", name, "-o", "made-" + name, "--name", "one", "--rank-fraction", "30%")
        assert done.exit_code == 0, done.stderr
    assert "caf\N{REPLACEMENT CHARACTER}" in dts("list", ".").stdout
    listed = json.loads(dts("list", ".", "--json").stdout)
    assert "made-caf\udce9" in [row["name"] for row in listed["adapters"]]


def test_a_catalogue_holds_links_to_themselves(tmp_path):
    from dts.serve.catalogue import Catalogue
    from dts.serve.refused import Refused

    os.symlink("loop", tmp_path / "loop")
    there = Catalogue(tmp_path, "base", None)
    assert there.names() == []
    with pytest.raises(Refused, match="there is no adapter at 'loop'"):
        there.give("loop")


def test_json_holds_on_a_terminal_of_few_letters(monkeypatch):
    for encoding, written in (("ascii", b"caf\\u00e9 \\u2013 \\udce9"), ("utf-8", "café – \\udce9".encode())):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        emit({"name": "café – \udce9"}, True, lambda: None)
        sys.stdout.flush()
        assert written in raw.getvalue()
        assert json.loads(raw.getvalue().decode(encoding)) == {"name": "café – \udce9"}


@pytest.mark.parametrize("words", [("list", "--nonsense"), ("list",), ("nonsense",), ("export", "lora", "a")])
def test_wrong_usage_is_json_too(dts, words):
    done = dts(*words, "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == told["exit_code"] == 2 and told["error"]
    assert told["error"].split()[0] in said(done)


def test_fine_tunes_of_one_folder_name_are_told_apart(dts, models):
    """As the sub-models of pipelines, the last checkpoints of runs, and files are."""
    for run, model in (("sad", "one"), ("glad", "two")):
        os.makedirs(run)
        os.symlink(models / model, f"{run}/unet")
    done = dts("compress", models / "base", "sad/unet", "glad/unet", "-o", "all", "--rank-fraction", "30%", "--json")
    assert done.exit_code == 0, done.stderr
    assert [row["name"] for row in json.loads(done.stdout)] == ["sad-unet", "glad-unet"]
    twice = dts("compress", models / "base", "sad/unet", "sad/../sad/unet", "-o", "more")
    assert twice.exit_code == 2 and "names of their own" in said(twice)
