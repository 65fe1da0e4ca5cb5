"""`dts list`."""

import json
import os
import shutil

import pytest

from dts.adapter.digests import FORMAT_VERSION


@pytest.fixture
def shelf(dts, models, tmp_path):
    """./all with the adapters ``one`` and ``two``."""
    made = dts("compress", models / "base", models / "one", models / "two", "-o", "all", "-s", "40%")
    assert made.exit_code == 0, made.stderr
    return tmp_path / "all"


def listed(dts, *words) -> dict:
    return json.loads(dts("list", *words, "--json").stdout)


def test_every_adapter_has_a_row(dts, shelf, models):
    shown = dts("list", shelf)
    assert shown.exit_code == 0 and "Passed over" not in shown.stdout
    rows = listed(dts, shelf)["adapters"]
    assert [row["name"] for row in rows] == ["one", "two"] and {row["state"] for row in rows} == {"whole"}
    for row in rows:
        inspected = json.loads(dts("inspect", row["folder"], "--json").stdout)
        assert (row["bytes"], row["amr"]) == (inspected["bytes"], inspected["amr"]) and row[
            "format_version"
        ] == FORMAT_VERSION
        assert row["base"]["fingerprint"] == inspected["base"]["fingerprint"]
        line = next(line for line in shown.stdout.splitlines() if line.startswith(row["name"]))
        assert (
            "residual" in line and row["base"]["fingerprint"][:8] in shown.stdout and "whole" in line and " 3 " in line
        )


def test_an_empty_folder_is_said_to_be_empty(dts, tmp_path):
    (tmp_path / "none").mkdir()
    shown = dts("list", "none")
    assert shown.exit_code == 0 and "no adapters" in shown.stdout
    assert listed(dts, "none")["adapters"] == []


def test_other_things_are_passed_over_in_one_line(dts, shelf, models):
    (shelf / "notes.txt").write_text("x")
    (shelf / "deeper").mkdir()
    shutil.move(shelf / "two", shelf / "deeper" / "two")
    shutil.copytree(models / "base", shelf / "model")
    result = listed(dts, shelf)
    assert [row["name"] for row in result["adapters"]] == ["one"]
    assert result["passed_over"] == ["deeper", "model", "notes.txt"]
    assert sum("Passed over" in line for line in dts("list", shelf).stdout.splitlines()) == 1
    assert [row["name"] for row in listed(dts, shelf, "-r")["adapters"]] == ["deeper/two", "one"]


def test_a_damaged_one_says_why_and_the_exit_code_too(dts, shelf):
    file = shelf / "one" / "dts_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    shown = dts("list", shelf)
    assert shown.exit_code == 1 and "one is damaged: " in shown.stdout and "whole" in shown.stdout
    assert dts("list", shelf, "--quick").exit_code == 0  # reads no tensors, and says so
    assert {row["state"] for row in listed(dts, shelf, "--quick")["adapters"]} == {"not checked"}


def _instead(file):
    file.unlink()
    return file


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda one: (one / "dts_config.json").write_text("{"), "dts_config.json is damaged"),
        (lambda one: (one / "dts_config.json").unlink(), "dts_config.json"),
        (lambda one: (one / "dts_model.safetensors").unlink(), "dts_model.safetensors"),
        (lambda one: (one / "dts_config.json").write_text('{"format_version": 99}'), "format 99"),
        (lambda one: _instead(one / "dts_config.json").symlink_to("nothing"), "it has no dts_config.json"),
        (lambda one: _instead(one / "dts_model.safetensors").symlink_to("nothing"), "it has no dts_model.safetensors"),
        (
            lambda one: os.mkfifo(_instead(one / "dts_config.json")),
            "it has no dts_config.json",
        ),  # which nobody writes to
    ],
)
def test_every_damage_is_a_reason_not_an_end(dts, shelf, harm, reason):
    harm(shelf / "one")
    result = dts("list", shelf, "--json")
    rows = {row["name"]: row for row in json.loads(result.stdout)["adapters"]}
    assert result.exit_code == 1 and rows["one"]["state"] == "damaged" and reason in rows["one"]["reason"]
    assert rows["two"]["state"] == "whole" and "\n" not in rows["one"]["reason"]
    assert reason in " ".join(dts("list", shelf, "--quick").stdout.split())


def test_one_adapter_alone_newest_first_and_leftovers(dts, shelf):
    assert [row["name"] for row in listed(dts, shelf / "two")["adapters"]] == ["two"]
    (shelf / "two" / "README.md").touch()
    assert [row["name"] for row in listed(dts, shelf, "--newest")["adapters"]] == ["two", "one"]
    (shelf / ".three.partial").mkdir()
    shown = dts("list", shelf).stdout
    assert "Unfinished: .three.partial" in shown and "--resume" in shown


@pytest.mark.parametrize("place", ["nothing", "file"])
def test_what_is_no_folder_is_refused(dts, tmp_path, place):
    (tmp_path / "file").touch()
    wrong = dts("list", place)
    assert wrong.exit_code == 2 and place in wrong.stderr and "folder of adapters" in wrong.stderr
