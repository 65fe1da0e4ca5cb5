"""Every refusal names the place, what was found and what was expected, and the next thing to try."""

import pytest

from tests.dts.cli.said import said


@pytest.fixture
def places(models, tmp_path, dts):
    """What people give by mistake, in the working folder."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    whole = (models / "base/model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:40])
    (tmp_path / "half").mkdir()
    (tmp_path / "half/model.safetensors").write_bytes(whole)
    (tmp_path / "half/config.json").write_text('{"model_type": 3')
    assert dts("compress", models / "base", models / "one", "-o", "made", "--rank-fraction", "30%").exit_code == 0
    return models


CASES = {
    ("compress", "BASE", "empty", "-o", "a"): (
        "empty has no model.safetensors",
        "there is: nothing",
        "save_pretrained()",
    ),
    ("compress", "BASE", "text.txt", "-o", "a"): ("text.txt is neither", "give a model's folder"),
    ("compress", "BASE", "cut.safetensors", "-o", "a"): ("cut.safetensors is cut off", "download it again"),
    ("compress", "BASE", "half", "-o", "a"): ("half/config.json is damaged", "line 1 column 17", "download it again"),
    ("compress", "BASE", "ONE", "-o", "made"): ("made exists", "--overwrite"),
    ("compress", "BASE", "ONE", "-o", "a", "-s", "9B"): ("9 bytes are not enough", "--budget"),
    ("compress", "OTHER", "ONE", "-o", "a"): ("mismatches", "give the very base"),
    ("inspect", "nowhere"): ("nowhere is not an adapter", "nothing of this name", "dts list"),
    ("inspect", "BASE"): ("is not an adapter", "It is a model", "dts compress"),
    ("inspect", "empty"): ("empty is not an adapter", "no dts_config.json", "dts list"),
    ("apply", "OTHER", "made", "-o", "full"): ("is not the base of the adapter", "It was made for base", "fingerprint"),
    ("mix", "made", "made", "--classes", "x, y"): ("the same name", "dts compress --name"),
    ("import", "lora", "empty", "--base", "BASE", "-o", "l"): (
        "empty is no PEFT folder",
        "adapter_config.json",
        "Give",
    ),
}


def test_it_is_in_every_refusal(dts, places, other):
    known = {"BASE": places / "base", "ONE": places / "one", "OTHER": other}
    for words, says in CASES.items():
        done = dts(*(known.get(word, word) for word in words))
        text = said(done)
        assert done.exit_code == 2, (words, text)
        assert all(piece in text for piece in says), (words, text)
        assert "Traceback" not in text
        assert "Traceback" in dts(*(known.get(word, word) for word in words), "--debug").stderr


def test_problems_of_a_base_are_a_line_a_cause(dts, places, other):
    shown = dts("verify", "made", other)
    lines = [line for line in shown.stdout.splitlines() if "base:" in line]
    assert shown.exit_code == 1 and len(lines) <= 3 and "layer.0.weight, layer.1.weight" in shown.stdout, shown.stdout
