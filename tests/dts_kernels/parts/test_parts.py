"""Every kind of part against its naive twin, and a kind that is made up here."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from dts_kernels import PackedFactors, Routing, Samples, pack, reference
from dts_kernels.parts import KINDS, Joined, Kind, PlainBank, kind_of, register
from dts_kernels.samples import dense, groups_of

OUT, IN = 9, 13
ROUTINGS = [[2], [None], [0, 2, None, {0: 0.5, 2: -1.5}]]


def codes(rows: int, width: int) -> Tensor:
    return pack(torch.randint(0, 4, (rows, width), dtype=torch.uint8))


def components(m, n):
    return [PackedFactors(codes(m, 5), codes(n, 5), torch.rand(5), torch.randn(2, 4))]


def samples(m, n):
    return [Samples(codes(m, groups_of(n, g)), 0.3, g, g, (m, n)) for g in (4, 3)]


MAKE = {
    "components": (components, lambda one, dtype: reference.reconstruct(one, dtype)),
    "sample": (samples, dense),
}


@pytest.fixture(params=MAKE)
def kind(request):
    return KINDS[request.param]


@pytest.fixture(params=[False, True], ids=["as stored", "transposed"])
def banks(request, kind):
    """(the kind's bank, its naive twin), with tasks in slots 0 and 2."""
    torch.manual_seed(0)
    make, matrix = MAKE[kind.name]
    own = kind.bank(IN, OUT, "cpu", request.param)
    twin = PlainBank(IN, OUT, "cpu", request.param, matrix=matrix)
    for slot in (0, 2):
        data = make(*((IN, OUT) if request.param else (OUT, IN)))
        assert all(kind_of(one) is kind for one in data)
        own.add(slot, data)
        twin.add(slot, data)
    return own, twin


@pytest.mark.parametrize("entries", ROUTINGS)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "y"])
def test_products_are_those_of_the_naive_twin(banks, entries, given):
    own, twin = banks
    x, y = (torch.randn(4, 3, n, dtype=torch.float64) for n in (IN, OUT))
    routing, y = Routing.of(entries), y if given else None
    torch.testing.assert_close(own.product(x, y, routing), twin.product(x, y, routing), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("entries", ROUTINGS)
def test_linear_is_base_and_product_and_addend(banks, entries):
    own, twin = banks
    x, weight, bias = (torch.randn(*s, dtype=torch.float64) for s in ((4, IN), (OUT, IN), (OUT,)))
    routing, adds = Routing.of(entries), torch.randn(3, OUT)
    got = own.linear(x, weight, bias, routing, adds)
    torch.testing.assert_close(got, twin.linear(x, weight, bias, routing, adds), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("entries", ROUTINGS)
def test_rows_of_one_bank_and_of_joined_ones(kind, banks, entries):
    own, twin = banks
    if twin.transposed and kind.name == "sample":
        pytest.skip("rows of transposed samples would be columns")
    ids, routing = torch.tensor([[0, 8], [3, -1], [7, 7], [1, 2]]), Routing.of(entries)
    y = torch.randn(*ids.shape, IN, dtype=torch.float64)
    wanted = twin.rows(ids, y, routing)
    torch.testing.assert_close(own.rows(ids, y, routing), wanted, atol=1e-6, rtol=1e-6)
    lookup = torch.full((30,), -1, dtype=torch.int32)
    lookup[20:29] = torch.arange(9, dtype=torch.int32)
    joined = kind.join([(own, lookup)], 30)
    assert isinstance(joined, Joined)
    torch.testing.assert_close(
        joined.add(torch.where(ids < 0, ids, ids + 20), y.clone(), routing), wanted, atol=1e-6, rtol=1e-6
    )
    assert torch.equal(joined.add(torch.zeros_like(ids), y.clone(), routing), y)


def test_only_banks_of_tasks_that_a_row_uses_are_asked():
    class Bank(PlainBank):
        def __init__(self, slot):
            super().__init__(IN, 9, matrix=None)
            self._data[slot], self.asked = [], 0

        def rows(self, ids, y, routing):
            self.asked += 1
            return y

    banks, ids, y = [Bank(slot) for slot in range(3)], torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1, IN)
    joined = Joined([(bank, None) for bank in banks], 9)
    joined.add(ids, y, Routing.of([2, None]))
    joined.add(ids, y, Routing.of([{0: 0.5, 2: 0.5}]))
    assert [bank.asked for bank in banks] == [1, 0, 2]


@pytest.mark.parametrize("gamma", [[1.0, 0.0, 0.5], [2.0]], ids=["all slots", "missing ones are 0"])
def test_dense(banks, gamma):
    own, twin = banks
    gamma, base = torch.tensor(gamma), torch.randn(OUT, IN, dtype=torch.float64)
    torch.testing.assert_close(own.dense(gamma, base), twin.dense(gamma, base), atol=1e-6, rtol=1e-6)
    alone = own.dense(gamma, None, torch.float32)
    assert alone.dtype == torch.float32
    torch.testing.assert_close(alone, twin.dense(gamma, None, torch.float32), atol=1e-5, rtol=1e-5)


def test_tasks_come_and_go_and_move(banks):
    own, _ = banks
    assert own.slots == [0, 2] and own.room == 3 and own.nbytes > 0 and own.held()
    x, routing = torch.randn(2, IN), Routing.of([0])
    before = own.product(x, None, routing)
    moved = own.to("cpu")
    own.remove(0)
    own.remove(7)
    assert own.slots == [2] and not own.product(x, None, routing).any()
    assert moved.slots == [0, 2] and torch.equal(moved.product(x, None, routing), before)


def test_what_does_not_fit_is_refused(kind):
    make, _ = MAKE[kind.name]
    bank = kind.bank(IN, OUT, "cpu", False)
    with pytest.raises(ValueError, match=r"\[9, 12\].*\[9, 13\]"):
        bank.add(0, make(OUT, 12))
    with pytest.raises(ValueError, match="not -1"):
        bank.add(-1, make(OUT, IN))


def test_components_of_rank_0_hold_nothing():
    bank = KINDS["components"].bank(IN, OUT, "cpu", False)
    bank.add(0, components(OUT, IN))
    bank.add(0, [PackedFactors(codes(OUT, 0), codes(IN, 0), torch.zeros(0))])
    assert bank.slots == []


@dataclass(frozen=True)
class Diagonal:
    """A kind that exists only here: d [n] for the matrix diag(d)."""

    values: Tensor

    @property
    def shape(self):
        return (len(self.values), len(self.values))

    nbytes = 0

    def to(self, device):
        return Diagonal(self.values.to(device))


def test_a_kind_needs_a_dense_matrix_and_a_registration(monkeypatch):
    monkeypatch.setattr("dts_kernels.parts.kind.KINDS", dict(KINDS))
    with pytest.raises(TypeError, match="Diagonal.*components.*sample"):
        kind_of(Diagonal(torch.ones(3)))
    kind = register(
        Kind("diagonal", Diagonal, partial(PlainBank, matrix=lambda one, dtype: one.values.to(dtype).diag()))
    )
    with pytest.raises(ValueError, match="diagonal"):
        register(kind)
    data = Diagonal(torch.randn(5))
    assert kind_of(data) is kind
    bank = kind.bank(5, 5, "cpu", False)
    bank.add(1, [data])
    x, routing = torch.randn(2, 5), Routing.of([1, None])
    wanted = torch.stack([x[0] * data.values, torch.zeros(5)])
    torch.testing.assert_close(bank.product(x, None, routing), wanted)
    assert bank.held()[0] is data.values


def test_the_naive_bank_does_not_spread_what_is_not_finite():
    bank = PlainBank(2, 2, matrix=lambda one, dtype: one.values.to(dtype).diag())
    bank.add(0, [Diagonal(torch.tensor([torch.inf, 1.0]))])
    assert torch.equal(bank.product(torch.ones(2, 2), None, Routing.of([None, None])), torch.zeros(2, 2))
