from types import SimpleNamespace

import pytest
import torch

from dts.demo import evaluate


class Tokens(dict):
    """What a tokenizer returns."""


def tokenizer(first, second=None, **_):
    return Tokens(values=torch.tensor([float(text.split()[0]) for text in first]))


def forward(values):
    return SimpleNamespace(logits=torch.stack([values, -values], 1).half())


def test_logits_come_back_in_the_order_of_the_texts():
    texts = [f"{i} " + "x" * (i * 37 % 11) for i in range(23)]
    found = evaluate.logits(forward, tokenizer, texts, batch_size=5)
    assert found.dtype == torch.float32
    assert found[:, 0].tolist() == list(range(23))


def test_score():
    reference = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 1.0]])
    same = evaluate.score(reference, reference, [0, 1, 1, 1])
    assert (same.accuracy, same.agreement, same.kl) == (0.75, 1.0, 0.0)
    other = evaluate.score(reference.flip(1), reference, [0, 1, 1, 1])
    assert (other.accuracy, other.agreement) == (0.25, 0.0) and other.kl > 0.5


def test_with_tensors_replaces_in_place_and_refuses_unknown_names():
    model = torch.nn.Linear(3, 2)
    evaluate.with_tensors(model, {"weight": torch.ones(2, 3)})
    assert torch.equal(model.weight, torch.ones(2, 3))
    with pytest.raises(KeyError, match="bias2, other"):
        evaluate.with_tensors(model, {"other": torch.ones(1), "bias2": torch.ones(1)})
