"""Scores of one pass are those of all logits at once."""

import pytest
import torch

from dts import metrics
from dts.evaluate import scores
from dts.evaluate.inputs import Batch, Batches
from dts.evaluate.scores import Reference, score, stride_of

ROWS, CLASSES = 23, 5


def whole(model, batches, stride=1):
    """Scores of a model given by its logits [ROWS, CLASSES], against a reference of `torch.manual_seed(0)`."""
    labels = torch.arange(ROWS) % CLASSES
    reference = Reference(stride)
    answers = lambda logits, batch: (logits, labels[batch.rows])  # noqa: E731
    of = lambda logits: lambda input_ids: logits[input_ids[:, 0]]  # noqa: E731
    first = score(
        of(torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0))),
        batches,
        answers,
        reference,
        fill=True,
    )
    return first, score(of(model), batches, answers, reference)


def rows(sizes=(1,)):
    return Batches([{"input_ids": [i] * sizes[i % len(sizes)]} for i in range(ROWS)], 4, 0)


@pytest.mark.parametrize("sizes", [(1,), (3, 1, 2)])
def test_against_the_plain_formulas(sizes):
    reference = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0))
    model, labels = torch.randn(ROWS, CLASSES), torch.arange(ROWS) % CLASSES
    first, found = whole(model, rows(sizes))
    assert first.agreement is None and first.accuracy == pytest.approx(
        (reference.argmax(-1) == labels).float().mean().item()
    )
    assert found.accuracy == pytest.approx((model.argmax(-1) == labels).float().mean().item())
    assert found.loss == pytest.approx(torch.nn.functional.cross_entropy(model, labels).item(), rel=1e-5)
    assert found.agreement == pytest.approx(metrics.agreement(model, reference))
    assert found.kl == pytest.approx(metrics.kl(model, reference)) and found.kl_places == found.places == ROWS


@pytest.mark.parametrize("stride", [2, 3, 7, 22, 100])
def test_kl_over_every_so_many_answers_is_that_of_those(stride):
    model = torch.randn(ROWS, CLASSES)
    reference = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0))
    _, found = whole(model, rows(), stride)
    assert found.kl_places == len(range(0, ROWS, stride))
    assert found.kl == pytest.approx(metrics.kl(model[::stride], reference[::stride]))
    assert found.agreement == pytest.approx(metrics.agreement(model, reference))  # over all of them still


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(scores, "KEPT", 1000)
    assert stride_of(100, 10) * 1000 >= 100 * 10 * 4 and stride_of(10, 10) == 1


def test_batches_pad_and_keep_the_places():
    given = [{"input_ids": [7] * n, "attention_mask": [1] * n} for n in (3, 1, 2, 5)]
    batches = list(Batches(given, 2, 9))
    assert [batch.rows for batch in batches] == [[1, 2], [0, 3]]
    assert batches[0].inputs["input_ids"].tolist() == [[7, 9], [7, 7]]
    assert batches[0].inputs["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert [len(batch.rows) for batch in Batches(given, 2, None)] == [1] * 4  # no padding: one at a time
    assert isinstance(batches[0], Batch)
