"""Mixture weights from class names: the published formula, its options, and what a user is told."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dts.unseen import OpaqueNames, task_weights

VECTORS = {
    "cat": [1, 0, 0],
    "dog": [3, 4, 0],
    "car": [0, 1, 0],
    "truck": [0, 2, 0],
    "sad": [-1, 0, 0],
    "animal": [3, 1, 0],
    "0": [0, 0, 1],
    "class_1": [0, 0, 2],
}
TASKS = {"pets": ["cat", "dog"], "traffic": ["car", "truck"], "mood": ["sad"]}


def toy(texts):
    return np.array([VECTORS[text] for text in texts], dtype=np.float32)


def naive_cosine(a, b):
    centre = lambda names: sum(np.array(VECTORS[n]) / math.dist(VECTORS[n], [0, 0, 0]) for n in names)  # noqa: E731
    a, b = centre(a), centre(b)
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))


def test_published_formula():
    weights = task_weights(["animal"], {t: TASKS[t] for t in ("pets", "traffic")}, toy)
    expected = {t: naive_cosine(["animal"], TASKS[t]) for t in ("pets", "traffic")}
    assert weights.similarities == pytest.approx(expected, rel=1e-6)
    assert dict(weights) == pytest.approx({t: c / sum(expected.values()) for t, c in expected.items()}, rel=1e-6)
    assert list(weights.similarities) == ["pets", "traffic"]


def test_the_same_task_has_similarity_one():
    assert task_weights(["dog", "cat"], TASKS, toy).similarities["pets"] == pytest.approx(1, abs=1e-6)


def test_negative_similarities():
    without = task_weights(["cat"], TASKS, toy)
    assert without.similarities["mood"] == pytest.approx(-1) and "mood" not in without
    signed = task_weights(["cat"], TASKS, toy, negative=True)
    assert signed["mood"] < 0 and sum(map(abs, signed.values())) == pytest.approx(1)


def test_temperature_top_k_and_floor():
    pets, traffic = (naive_cosine(["animal"], TASKS[t]) for t in ("pets", "traffic"))
    soft = task_weights(["animal"], TASKS, toy, temperature=0.1)
    assert soft["pets"] == pytest.approx(1 / (1 + math.exp((traffic - pets) / 0.1)), rel=1e-5)
    assert sum(task_weights(["animal"], TASKS, toy, temperature=0.1, negative=True).values()) == pytest.approx(1)
    assert dict(task_weights(["animal"], TASKS, toy, top_k=1)) == {"pets": 1.0}
    assert dict(task_weights(["animal"], TASKS, toy, floor=(pets + traffic) / 2)) == {"pets": 1.0}
    assert dict(task_weights(["animal"], TASKS, toy, floor=0.9999)) == {}  # the base alone
    assert dict(task_weights(["animal"], TASKS, toy, temperature=1e-320))["pets"] == 1.0
    for wrong in ({"temperature": 0}, {"temperature": math.nan}, {"floor": math.nan}, {"top_k": 0}, {"top_k": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            task_weights(["animal"], TASKS, toy, **wrong)


def test_opaque_names_are_warned_about():
    with pytest.warns(OpaqueNames, match=r"the new task: 2 of 2 class names say nothing \('0', 'class_1'\)"):
        task_weights(["0", "class_1"], {"pets": ["cat"]}, toy, negative=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task_weights(["animal"], {"pets": ["cat"]}, toy)


def test_an_adapters_description_stands_in_for_opaque_names():
    adapter = SimpleNamespace(class_names=["0", "1"], description="cat")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert task_weights("cat", {"pets": adapter}, toy).similarities["pets"] == pytest.approx(1)
    nameless = SimpleNamespace(class_names=None, description=None)
    with pytest.warns(OpaqueNames, match="neither class names nor a description"):
        task_weights("cat", {"dog": nameless}, toy)


def test_table_shows_every_task_and_why():
    weights = task_weights(["Animal"], TASKS, toy)
    text = weights.table()
    assert all(task in text for task in TASKS) and "animal ~ cat" in text
    assert [row["weight"] for row in weights.rows()][-1] == 0.0


@pytest.mark.parametrize(
    "bad, message",
    [
        (lambda texts: torch.zeros(len(texts)), "it must give finite vectors"),
        (lambda texts: torch.full((len(texts), 2), float("nan")), "finite"),
    ],
)
def test_bad_encoders(bad, message):
    with pytest.raises(ValueError, match=message):
        task_weights(["cat"], TASKS, bad)


def test_nothing_given():
    with pytest.raises(ValueError, match="no class names"):
        task_weights([], TASKS, toy)
    with pytest.raises(ValueError, match="no adapters"):
        task_weights(["cat"], {}, toy)
    with pytest.raises(ValueError, match="description is empty"):
        task_weights(" ", TASKS, toy)
