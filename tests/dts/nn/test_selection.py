"""What a caller selects for rows."""

import copy
import pickle

import pytest

import dts
from dts.nn.loaded import Loaded, LoadedTasks
from dts.nn.selection import BASE, names_in, one_a_row


def test_names():
    assert names_in("a") == ["a"] and names_in({"a": 1, "b": 0.5}) == ["a", "b"]
    assert names_in(None) == names_in(BASE) == []
    for wrong in (["a"], 3, {1: 0.5}):
        with pytest.raises(TypeError):
            names_in(wrong)


def test_a_list_is_one_a_row():
    assert one_a_row(["a", None]) == ["a", None] and one_a_row(()) == []
    assert one_a_row("ab") is one_a_row(None) is one_a_row({"a": 1}) is None


def test_there_is_one_base():
    assert dts.BASE is BASE is copy.deepcopy(BASE) is pickle.loads(pickle.dumps(BASE)) and repr(BASE) == "dts.BASE"


def test_mixtures_of_slots():
    tasks = LoadedTasks(a=Loaded(0, None), b=Loaded(2, None))
    assert tasks.free_slot() == 1 and tasks.names == {0: "a", 2: "b"}
    assert tasks.mixture({"b": 1, "a": 0.5}) == {2: 1.0, 0: 0.5} and tasks.mixture(None) == {}
    with pytest.raises(ValueError, match=r"no task 'c', 'd'; the loaded tasks are 'a', 'b'"):
        tasks.check(["d", "a", "c"])
    with pytest.raises(ValueError, match="finite"):
        tasks.mixture({"a": float("nan")})
