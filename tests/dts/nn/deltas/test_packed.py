"""In which order the banks of a matrix are asked."""

import pytest
import torch

from dts.nn.deltas import packed as module
from dts.nn.deltas.packed import Packed
from dts_kernels import Routing
from dts_kernels.parts import PlainBank

OUT, IN = 5, 4
ROUTING = Routing.of([0])


class Bank(PlainBank):
    """Adds a number; starts where it is told to."""

    def __init__(self, name, order, adds, starts=False, started=True):
        super().__init__(IN, OUT, matrix=None)
        self.name, self.order, self.adds, self._starts, self.started = name, order, adds, starts, started
        self._data = {0: []}

    @property
    def starts(self):
        return self._starts

    def start(self, x, routing):
        assert self._starts and x.shape == (2, IN) and routing is ROUTING
        self.order.append(f"start {self.name}")
        return self.finish if self.started else None

    def finish(self, y):
        self.order.append(f"finish {self.name}")
        return y + self.adds

    def product(self, x, y, routing):
        self.order.append(f"product {self.name}")
        return y + self.adds


class Silent(Bank):
    """Of a matrix that others start for."""

    def start(self, x, routing):
        return None


@pytest.mark.parametrize(
    "starts,order",
    [
        ([], ["base", "product a", "product b", "product c"]),
        (["b"], ["start b", "base", "product a", "finish b", "product c"]),
        (["b", "c"], ["start b", "start c", "base", "product a", "finish b", "finish c"]),
        (["a"], ["start a", "base", "finish a", "product b", "product c"]),
    ],
    ids=str,
)
def test_what_starts_before_the_base_is_added_in_the_same_order(monkeypatch, starts, order):
    found = []
    monkeypatch.setattr("dts_kernels.parts.kind.KINDS", dict.fromkeys("abc"))
    monkeypatch.setattr(module, "KINDS", dict.fromkeys("abc"))
    base = lambda *given: found.append("base") or torch.zeros(2, OUT)  # noqa: E731
    monkeypatch.setattr(module, "base_product", base)
    monkeypatch.setattr("dts_kernels.parts.kind.base_product", base)
    made = Packed((OUT, IN))
    made.banks = {n: (Bank if n in starts else Silent)(n, found, i, n in starts) for i, n in enumerate("abc", 1)}
    made._refresh()
    assert made.start is bool(starts)
    y = made.linear(torch.ones(2, IN), torch.ones(OUT, IN), None, ROUTING, None)
    assert found == order and torch.equal(y, torch.full((2, OUT), 6.0))


def test_a_bank_that_does_not_start_this_time_is_asked_behind_the_base(monkeypatch):
    found = []
    monkeypatch.setattr(module, "KINDS", dict.fromkeys("ab"))
    made = Packed((OUT, IN))
    made.banks = {"a": Silent("a", found, 1), "b": Bank("b", found, 2, starts=True, started=False)}
    made._refresh()
    x, weight = torch.randn(2, IN), torch.randn(OUT, IN)
    y = made.linear(x, weight, None, ROUTING, None)
    torch.testing.assert_close(y, x @ weight.T + 3)
    assert found == ["start b", "product a", "product b"]
