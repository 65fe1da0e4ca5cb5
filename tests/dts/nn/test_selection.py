"""What a caller selects for rows."""

import copy
import pickle

import numpy as np
import pytest
import torch

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
    for wrong in (float("nan"), 1e39, 10**400, -float("inf")):  # beyond float32 outputs would be NaN
        with pytest.raises(ValueError, match="finite numbers, 1e\\+30 at most"):
            tasks.mixture({"a": wrong})
    for wrong in ("0.5", True, None, b"1"):
        with pytest.raises(TypeError, match="weights of a mixture are numbers"):
            tasks.mixture({"a": wrong})
    assert tasks.mixture({"a": torch.tensor(0.5), "b": np.float32(-1)}) == {0: 0.5, 2: -1.0}


def test_a_keyword_task_that_a_model_would_swallow():
    base = torch.nn.Sequential(torch.nn.Linear(4, 4))
    base.forward = lambda x, **ignored: base[0](x)
    tuned = {name: value + 1 for name, value in base.state_dict().items()}
    model = dts.DTSModel(base)
    model.load_task("a", dts.compress(base.state_dict(), tuned, rank_fraction=1.0))
    x = torch.ones(2, 4)
    for task in ("a", ["a", "a"], {"a": 0.5}):
        with pytest.raises(TypeError, match="the keyword is tasks="):
            model(x, task=task)
    assert torch.equal(model(x, task="translate"), model(x))  # Whisper's, for one
