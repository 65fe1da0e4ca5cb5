"""Some calls of verbs, and what the look at them would notice."""

import pytest

from tests.fuzz.verbs import Call, Fuzzer, run

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def fuzzer():
    made = Fuzzer()
    yield made
    made.close()


def test_calls_end_as_the_command_line_promises(fuzzer):
    counts, failures = run(fuzzer, 1, range(60))
    assert failures == [] and counts["0"] > 5 and counts["2"] > 20


def test_what_a_verb_should_not_do_is_noticed(fuzzer, monkeypatch):
    def broken(*given, **how):
        raise RuntimeError("broken")

    words = ["truncate", "mood-a", "--out", "out", "--budget", "60%"]
    assert fuzzer.one(Call(words, "truncate")) == ("0", [])
    monkeypatch.setattr("dts.Adapter.truncate", broken)
    assert fuzzer.one(Call(words, "truncate")) == ("3", ["exit code 3", "unexpected error"])

    def untidy(*given):
        (fuzzer.place / "out").mkdir()
        (fuzzer.place / "out" / "half").touch()
        (fuzzer.place / "base" / "config.json").write_text("{}")
        raise ValueError("words")

    monkeypatch.setattr("dts.cli.shelf.look", untidy)
    how, wrong = fuzzer.one(Call(["list", "."], "list"))
    assert how == "2" and "altered: ['base/config.json']" in wrong and "left after an error: ['out/half']" in wrong


def test_another_word_beside_the_json_is_noticed(fuzzer, monkeypatch):
    monkeypatch.setattr("dts.cli.doctor.examine", lambda: print("a word") or {})
    assert "no JSON" in fuzzer.one(Call(["doctor", "--json"], "doctor"))[1][0]
