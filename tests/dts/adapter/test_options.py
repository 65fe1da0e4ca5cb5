"""Options of `dts.compress`: all that is wrong is told at once; what follows from them."""

import pytest

from dts.adapter.options import Options, code_digest


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(ValueError) as error:
        Options(method="other", kind="none", vectors="5bit", budget=0.1, nbytes=3)
    for part in (
        "auto, residual, paper, sketch, exact, not 'other'",
        "task, difference",
        "exact, 8bit, 4bit, 3bit",
        "give one size",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("size", [0, -1, float("inf"), float("nan"), "1%"])
@pytest.mark.parametrize("name", ["budget", "nbytes", "rank_fraction", "target_error"])
def test_sizes_are_numbers_above_zero(name, size):
    with pytest.raises(ValueError, match="a number above 0"):
        Options(**{name: size})


def test_errors_that_cannot_be_asked_for():
    with pytest.raises(ValueError, match="that of the base alone"):
        Options(target_error=1)
    with pytest.raises(ValueError, match="a sketch adds noise larger than the difference"):
        Options(method="sketch", target_error=0.1)


@pytest.mark.parametrize(
    ("given", "method", "exact"),
    [
        ({}, "auto", False),
        ({"nbytes": 9}, "auto", False),
        ({"rank_fraction": 0.1}, "residual", True),
        ({"method": "paper"}, "paper", True),
        ({"method": "sketch", "vectors": "exact"}, "sketch", True),
        ({"method": "paper", "vectors": "8bit"}, "paper", False),
        ({"target_error": 0.1, "vectors": "8bit"}, "residual", False),
    ],
)
def test_what_follows(given, method, exact):
    options = Options(**given)
    assert options.choice.name == method and options.exact_vectors == exact
    assert len(options.asked) == 1


def test_what_a_run_notes_is_all_that_its_entries_depend_on():
    noted = Options(nbytes=9, seed=3, name="a").recorded("base", "tuned")
    assert noted["nbytes"] == 9 and noted["seed"] == 3 and noted["method"] == "auto" and noted["vectors"] == "auto"
    assert noted["code"] == code_digest() and {"package", "torch", "device", "format_version"} <= noted.keys()
    assert noted == Options(nbytes=9, seed=3, name="b", overwrite=True).recorded("base", "tuned")
    assert noted != Options(nbytes=9, seed=3, name="a").recorded("base", "other")


def test_the_command_does_not_name_bytes():
    assert Options(nbytes=9).told == "compress" and Options(target_error=0.5).told == "compress target_error=0.5"
    assert Options(command="dts compress").told == "dts compress"


def test_where_to_compute(monkeypatch):
    assert str(Options().place) == str(Options(device="cpu").place) == "cpu"
    for device, why in (("cuda:7", "numbered from 0 to 0"), ("nowhere", "device 'nowhere': there is none")):
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
        with pytest.raises(ValueError, match=why):
            Options(device=device)
    assert str(Options(device="auto").place) == "cuda" and str(Options(device="cuda:0").place) == "cuda:0"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert str(Options(device="auto").place) == "cpu"
    with pytest.raises(ValueError, match="device 'cuda': PyTorch finds none here"):
        Options(device="cuda")


def test_a_run_on_a_gpu_is_continued_on_its_like_alone(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    found = []
    for model in ("one", "another"):
        monkeypatch.setattr("torch.cuda.get_device_name", lambda place, model=model: model)
        found.append(Options(device="cuda").recorded("base", "tuned")["device"])
    assert found == ["cuda (one)", "cuda (another)"]
