"""A small dense product a task: those that are used, and the twin that takes all."""

import pytest
import torch
from torch import nn

from dts.nn.deltas import Table, per_task
from dts_kernels import Routing


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "mixtures, used", [([{1: 1.0}], 1), ([{1: 1.0}, {4: 0.5}, {}], 2), ([{2: 0.5, 3: -1.0}], 2), ([{9: 1.0}], 0)]
)
def test_only_tasks_that_are_used_are_multiplied(mixtures, used, transposed, monkeypatch):
    torch.manual_seed(0)
    weights, x = Table(), torch.randn(3, 2, 7)
    for slot in range(5):
        weights.add(slot, torch.randn(7, 6) if transposed else torch.randn(6, 7))
    routing, made = Routing.of(mixtures), []
    linear = nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *args: made.append(args[1].shape[0]) or linear(*args))
    found = per_task.per_task_product(x, weights, routing, transposed)
    assert made == [6] * used
    monkeypatch.setattr(per_task, "_used", lambda *args: None)
    torch.testing.assert_close(found, per_task.per_task_product(x, weights, routing, transposed))
    assert made[-1] == 5 * 6
