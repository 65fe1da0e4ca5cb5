"""Each row of a batch of tasks against the base layer with base + reconstruction in its weights."""

import copy

import torch

from dts.nn import DTSModel

TASKS = ["a", None, "b", {"a": 0.5, "b": 0.25}]


def weights(task, tasks):
    mixture = {} if task is None else task if isinstance(task, dict) else {task: 1.0}
    return [(tasks[name], gamma) for name, gamma in mixture.items()]


def loaded(base, maker):
    """(a model with tasks a and b over a copy of the base, {task: its entries})."""
    tasks, model = {t: maker.entries(base, skip=0) for t in "ab"}, DTSModel(copy.deepcopy(base))
    for t, entries in tasks.items():
        model.load_task(t, entries)
    return model, tasks


def check(base, layer_class, maker, dense_twin, *inputs, **kwargs):
    """Every row of a batch of tasks equals the dense twin's, for a module alone in a model."""
    base = base.double().eval()
    model, tasks = loaded(base, maker)
    kinds = {type(m).__name__ for m in model.model.modules() if hasattr(m, "dts")}
    assert layer_class.__name__ in kinds
    found = model(*inputs, **kwargs, tasks=TASKS)
    found = found[0] if isinstance(found, tuple) else found
    for i, task in enumerate(TASKS):
        one = [x[i : i + 1] for x in inputs]
        expected = dense_twin(base, weights(task, tasks))(*one, **kwargs)
        expected = expected[0] if isinstance(expected, tuple) else expected
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-9, atol=1e-9)
    merged = model.merge_and_unload("b")
    assert {type(m) for m in merged.modules()} == {type(m) for m in base.modules()}
    expected = dense_twin(base, weights("b", tasks))(*inputs, **kwargs)
    torch.testing.assert_close(merged(*inputs, **kwargs), expected, rtol=1e-12, atol=1e-12)
    return model
