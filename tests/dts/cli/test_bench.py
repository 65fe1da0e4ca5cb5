import importlib.util

import pytest

from dts.cli.bench import QUALITY, SUITES, shape_of


@pytest.fixture
def seen(monkeypatch):
    """The (module, words) that would have run."""
    calls = []
    monkeypatch.setattr("dts.cli.bench.run", lambda module, words: calls.append((module, words)))
    return calls


def test_every_suite_listed_is_there():
    assert all(importlib.util.find_spec(module) for module, _ in SUITES.values())
    assert all(importlib.util.find_spec(module) for module in QUALITY.values())


def test_words_go_on_to_the_suite(dts, seen):
    assert dts("bench", "quality", "--quick", "--tasks", "a,b", "--report", "out").exit_code == 0
    assert seen == [("benchmarks.quality.text", ["--quick", "--tasks", "a,b", "--out", "out"])]


def test_suites_of_quality_one_after_another(dts, seen):
    assert dts("bench", "quality", "--suite", "images,language", "--quick").exit_code == 0
    assert seen == [("benchmarks.quality.images", ["--quick"]), ("benchmarks.quality.language", ["--quick"])]
    wrong = dts("bench", "quality", "--suite", "sounds")
    assert wrong.exit_code == 2 and "text, images, language" in wrong.stderr


def test_a_page_from_rows_measured_before(dts, seen):
    assert dts("bench", "quality", "--results", "a.jsonl,b", "--report", "out").exit_code == 0
    assert seen == [("benchmarks.quality.report", ["--results", "a.jsonl", "b", "--out", "out"])]
    assert "--report" in dts("bench", "quality", "--results", "a").stderr


def test_quality_explains_its_own_options_and_the_suites(dts):
    shown = dts("bench", "quality", "--help")
    assert shown.exit_code == 0 and "--suite" in shown.stdout and "--seeds" in shown.stdout


def test_the_suites_own_help(dts, capfd):
    shown = dts("bench", "machine-code", "--help")
    assert shown.exit_code == 0 and "--arch" in shown.stdout


def test_a_suite_that_fails_gives_its_exit_code(dts):
    assert dts("bench", "quality", "--no-such-option").exit_code == 2


def test_shapes():
    assert shape_of("4096x11008x1228") == (4096, 11008, 1228)
    for wrong in ("4096x4096", "axbxc", "4096x0x3", ""):
        with pytest.raises(ValueError, match="OUTxINxRANK"):
            shape_of(wrong)


def test_tuning_without_a_gpu_says_so(dts):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    wrong = dts("bench", "tune", "--shape", "64x64x16")
    assert wrong.exit_code == 2 and "CUDA" in wrong.stderr
