"""Some hundred altered adapters, and all that once went wrong."""

import json
from pathlib import Path

import pytest

from tests.fuzz import adapters
from tests.fuzz.adapters import KINDS, Fuzzer, run

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))


@pytest.fixture(scope="module")
def fuzzer():
    made = Fuzzer()
    yield made
    made.close()


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_altered_is_identical(fuzzer, kind):
    assert fuzzer.try_one(fuzzer.folders[kind].copy(), kind, attacked=False) == "identical"


def test_what_was_altered_is_refused_or_identical(fuzzer):
    counts, failures = run(fuzzer, 0, range(300))
    assert failures == [] and counts["refused"] > 200 and counts["identical"] > 0 and counts["other"] > 0


def test_a_second_alteration_of_what_is_nested_too_deeply_ends_no_run(fuzzer, monkeypatch):
    def deep_and_again(folder, draw):
        folder.text = b"[" * 100_000
        adapters.on_disk(folder, draw)

    monkeypatch.setattr(adapters, "OWN", {})
    monkeypatch.setattr(adapters, "MUTATIONS", (deep_and_again,))
    assert fuzzer.one(0, 1) == "refused"


def test_a_second_alteration_of_what_is_no_frame_any_more_ends_no_run(fuzzer, monkeypatch):
    def zeroed_and_again(folder, draw):
        for row in folder.rows:
            row[3] = bytes(len(row[3]))
        adapters.frame(folder, draw)

    monkeypatch.setattr(adapters, "OWN", dict.fromkeys(fuzzer.folders, zeroed_and_again))
    monkeypatch.setattr(adapters, "MUTATIONS", (zeroed_and_again,))
    assert "refused" in {fuzzer.one(0, number).partition(":")[0] for number in range(40)} <= {"refused", "other"}


def test_a_configuration_without_rows_ends_no_run(fuzzer, monkeypatch):
    monkeypatch.setattr(adapters, "OWN", {})
    monkeypatch.setattr(adapters, "MUTATIONS", (lambda folder, draw: folder.config.pop("tensors"),))
    assert {fuzzer.one(0, number) for number in range(40)} == {"refused"}  # of every kind and format


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_once_went_wrong_is_refused(fuzzer, path):
    """path: {kind, set: [[keys to a place in dts_config.json, value], ...], signed: digests computed anew}."""
    from tests.fuzz.form import signed

    case = json.loads(path.read_text())
    folder = fuzzer.folders[case["kind"]].copy()
    for (*keys, last), value in case["set"]:
        where = folder.config
        for key in keys:
            where = where[key]
        where[last] = value
    for name, dtype in case.get("dtypes", {}).items():
        next(row for row in folder.rows if row[0] == name)[1] = dtype
    for ours, theirs in case.get("exchange", []):
        first, second = (next(row for row in folder.rows if row[0] == name) for name in (ours, theirs))
        first[0], second[0] = second[0], first[0]
    if case["signed"]:
        signed(folder)
    assert fuzzer.try_one(folder, case["kind"], case["signed"]) == "refused"
