"""Models in which the rows of a batch cannot be routed together."""

import pytest
import torch
from each_row import TASKS, loaded, weights
from torch import nn


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_rows_that_are_interleaved_run_once_a_task(maker, dense_twin):
    class Interleaved(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(9, 6)

        def forward(self, x):
            b, s, _ = x.shape
            return self.linear(x.transpose(0, 1).reshape(s * b, -1)).view(s, b, -1).transpose(0, 1)

    base = Interleaved().double()
    model, tasks = loaded(base, maker)
    x = maker.randn(4, 4, 9, scale=1.0)
    found = model(x, tasks=TASKS)
    for i, task in enumerate(TASKS):
        torch.testing.assert_close(
            found[i : i + 1], dense_twin(base, weights(task, tasks))(x[i : i + 1]), rtol=1e-9, atol=1e-9
        )
    assert "linear" in model.status()["grouped"]


def test_outputs_in_which_rows_meet_run_once_a_task(maker, dense_twin):
    """As CLIP's image-text similarities: row i of the result is the fine-tune's of row i, against all texts."""

    class Similarity(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.text = nn.Linear(9, 6), nn.Linear(5, 6)

        def forward(self, image, text):
            return self.image(image) @ self.text(text).T

    base = Similarity().double()
    model, tasks = loaded(base, maker)
    for texts in (4, 7):
        image, text = maker.randn(4, 9, scale=1.0), maker.randn(texts, 5, scale=1.0)
        found = model(image, text, tasks=TASKS)
        for i, task in enumerate(TASKS):
            expected = dense_twin(base, weights(task, tasks))(image, text)[i]
            torch.testing.assert_close(found[i], expected, rtol=1e-9, atol=1e-9)
    assert model.status()["grouped"]


class Turned(nn.Module):
    """Reads its rows from the last to the first."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(9, 6)

    def forward(self, x):
        return self.linear(x.flip(0)).flip(0)


class Sorted(Turned):
    """Sorts its rows by something of theirs, as packed sequences are by their lengths."""

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.linear(x[order])[order.argsort()]


class EachRow(Turned):
    """Gives its layer a row at a time, without an axis for it."""

    def forward(self, x):
        return torch.stack([self.linear(row) for row in x])


@pytest.mark.parametrize("first", [[0.0, 1.0, 3.0, 2.0], [1.0, 0.0, 2.0, 3.0]])
@pytest.mark.parametrize("kind", [Turned, Sorted, EachRow])
def test_rows_in_another_order_run_once_a_task(kind, first, maker, dense_twin):
    base = kind().double()
    model, tasks = loaded(base, maker)
    x = maker.randn(4, 9, scale=1.0)
    x[:, 0] = torch.tensor(first)
    found = model(x, tasks=TASKS)
    for i, task in enumerate(TASKS):
        expected = dense_twin(base, weights(task, tasks))(x[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-9, atol=1e-9)
    assert "linear" in model.status()["grouped"]


def test_rows_that_are_near_in_one_number_are_not_taken_for_one(maker, dense_twin):
    """Blocks of rows, one after the other, whose digests agree in a number: the second row is twice the first there."""

    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(9, 6)

        def forward(self, x):
            return self.linear(torch.cat([x, 2 * x])).view(2, len(x), 6).sum(0)

    base = Blocks().double()
    model, tasks = loaded(base, maker)
    x = maker.randn(4, 9, scale=1.0)
    mixer = torch.cos(torch.arange(9, dtype=torch.float64))
    x[1] += (2 * x[0] - x[1]) @ mixer * mixer / (mixer @ mixer)
    found = model(x, tasks=TASKS)
    for i, task in enumerate(TASKS):
        expected = dense_twin(base, weights(task, tasks))(x[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-9, atol=1e-9)


def test_two_blocks_before_two_rows_are_not_taken_for_rows(maker, dense_twin):
    """As DETR's answers of each of its layers: the same blocks whichever order the rows have."""

    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(9, 6)

        def forward(self, x):
            return self.linear(torch.stack([x, 100 * x]))[1]

    base = Stacked().double()
    model, tasks = loaded(base, maker)
    x = maker.randn(4, 9, scale=1.0)
    x[1] = 1.001 * x[0]
    found = model(x, tasks=TASKS)
    for i, task in enumerate(TASKS):
        expected = dense_twin(base, weights(task, tasks))(x[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-9, atol=1e-9)
    assert model.status()["grouped"] == {}


@pytest.mark.parametrize("rows", [2, 6])
@pytest.mark.parametrize("turned", [False, True])
def test_a_vector_as_long_as_the_batch_is_not_cut_into_rows(rows, turned, maker, dense_twin):
    """Of two rows each was multiplied by one feature's scale alone; of six the call ended in an error."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(9, rows)

        def forward(self, x, scale):
            return (self.linear(x.flip(0)).flip(0) if turned else self.linear(x)) * scale

    base = Scaled().double()
    model, tasks = loaded(base, maker)
    x, scale = maker.randn(rows, 9, scale=1.0), torch.arange(1.0, rows + 1, dtype=torch.float64)
    asked = [["a", "b"][i % 2] for i in range(rows)]
    found = model(x, scale, tasks=asked)
    for i, task in enumerate(asked):
        expected = dense_twin(base, weights(task, tasks))(x[i : i + 1], scale)
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-9, atol=1e-9)
    assert bool(model.status()["grouped"]) == turned
