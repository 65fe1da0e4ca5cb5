import pytest

from dts.nn import BASE
from dts.serve.choice import Choice, choice_of
from dts.serve.refused import Refused


def test_base_task_and_mixture():
    assert choice_of("base", "base").selection is BASE
    assert choice_of("a", "base").selection == "a" and choice_of("a", "base").tasks == ["a"]
    assert choice_of("a:0.7, b:0.3", "base").selection == {"a": 0.7, "b": 0.3}
    assert choice_of("a:1", "base").selection == "a"
    assert choice_of("a:0.5", "base").selection == {"a": 0.5}


@pytest.mark.parametrize(
    "model, words",
    [
        ("a:nan,b:1", "finite"),
        ("a:inf", "finite"),
        ("a:1e9,b:1", "up to 1000"),
        ("a:", "finite"),
        (":1", "task:weight"),
        ("a,b", "finite"),
        ("a:1,a:1", "twice"),
        ("a:1,base:1", "is the base"),
        (",".join(f"t{i}:1" for i in range(17)), "at most 16"),
    ],
)
def test_what_is_no_mixture_is_refused(model, words):
    with pytest.raises(Refused, match=words):
        choice_of(model, "base")


def test_a_choice_that_the_input_makes_is_no_selection_yet():
    assert choice_of("auto", "base").auto and choice_of("auto", "auto") == Choice("auto")
    with pytest.raises(RuntimeError, match="no task was chosen"):
        assert choice_of("auto", "base").selection
